"""The first of several processes takes longer than a collective would wait: see test_processes."""

import os
import time

from mmjax import processes

processes.join(
    *(
        cast(os.environ[f"JAX_{name}"])
        for name, cast in (
            ("COORDINATOR_ADDRESS", str),
            ("NUM_PROCESSES", int),
            ("PROCESS_ID", int),
        )
    )
)
print(processes.gather([processes.alone(lambda: time.sleep(40) or "done"), processes.told(True)]))
