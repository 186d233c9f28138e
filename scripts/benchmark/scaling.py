"""Compile for a mesh of virtual devices: memory, computation, traffic.

Nothing is put on a device, so a world for a pod is planned on one machine: its interactions are
drawn, the ensemble is built as shapes (`mesh.plan`), XLA compiles the epoch, and the sizes are read
from the compiled program.
"""

import time
from typing import Any

import numpy as np

from benchmark import recommenders
from mmjax.parallel import mesh as meshes
from mmjax.recommenders import base
from mmjax.training import sharding_report

MESHES = {1: "data=1", 8: "data=2,model=4", 64: "data=8,model=8", 256: "data=16,model=16"}


def drawn(users: int, items: int, count: int, width: int) -> base.Catalog:
    """Draw a catalog of about `count` interactions.

    Users and items have long tails; the features are ones.
    """
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 0.8, users)
    degree = rng.multinomial(count, weight / weight.sum())
    user = np.repeat(np.arange(users, dtype=np.int32), degree)
    item = (items * rng.random(count, np.float32) ** 2).astype(np.int32)
    np.minimum(item, items - 1, out=item)
    features = {"textual": np.ones((items, width), np.float32)} if width else {}
    return base.Catalog(users, items, user, item, np.ones(0, np.float32), features)


def plan(model: str, catalog: base.Catalog, batch_size: int, devices: int) -> dict[str, Any]:
    """Return the bytes that each device holds, needs and receives.

    `held_bytes` lie on it, the epoch needs `scratch_bytes` in addition, and a step receives
    `received_bytes`.
    """
    begin, mesh = time.perf_counter(), MESHES.get(devices, f"data={devices}")
    trials = recommenders.build(model, catalog, batch_size, mesh=mesh, put=meshes.plan)
    built = time.perf_counter()
    compiled = trials.program
    memory = compiled.memory_analysis()
    sent = sharding_report.collectives(compiled.as_text())
    received = sum(
        sharding_report.bytes_of(result) * times
        for (when, _, result, _), times in sent
        if when == "every step"
    )
    return {
        "devices": devices,
        "mesh": mesh,
        "held_bytes": memory.argument_size_in_bytes,
        "scratch_bytes": memory.temp_size_in_bytes,
        "received_bytes": received,
        "arrays": sharding_report.arrays(trials)[0],
        "collectives": sent,
        "build_s": built - begin,
        "compile_s": time.perf_counter() - built,
    }
