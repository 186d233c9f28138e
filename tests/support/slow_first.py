"""The first of several processes takes longer than a collective would wait: see test_processes."""

import os
import time

from mmjax.parallel import distributed

count, index = (int(os.environ[f"JAX_{name}"]) for name in ("NUM_PROCESSES", "PROCESS_ID"))
distributed.join(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
print(
    distributed.all_gather(
        [
            distributed.run_on_primary(lambda: time.sleep(40) or "done"),
            distributed.broadcast_flag(True),
        ]
    )
)
