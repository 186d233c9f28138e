"""What a mesh of many devices would hold, compute and send, compiled for virtual ones.

Nothing is put on a device, so a world for a pod is planned on one machine: its interactions are
drawn, the ensemble is built as shapes (`mesh.plan`), and XLA compiles the epoch and tells.
"""

import re
import time
from typing import Any

import numpy as np

from mmjax import assembly, ensemble, explain
from mmjax import mesh as meshes
from mmjax.recommenders import core

MESHES = {1: "data=1", 8: "data=2,model=4", 64: "data=8,model=8", 256: "data=16,model=16"}


def drawn(users: int, items: int, count: int, width: int) -> core.Catalog:
    """About `count` interactions with long tails on both sides, and features of ones."""
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 0.8, users)
    degree = rng.multinomial(count, weight / weight.sum())
    user = np.repeat(np.arange(users, dtype=np.int32), degree)
    item = (items * rng.random(count, np.float32) ** 2).astype(np.int32)
    np.minimum(item, items - 1, out=item)
    features = {"textual": np.ones((items, width), np.float32)} if width else {}
    return core.Catalog(users, items, user, item, np.ones(0, np.float32), features)


def plan(
    model: str, config: dict[str, Any], catalog: core.Catalog, batch_size: int, devices: int
) -> dict[str, Any]:
    """Bytes, FLOPs and what travels in a step, of each of so many devices."""
    recommender = core.find(model)
    options, traced = core.split_options(recommender, config["model"])
    hypers = {"lr": [1e-3], **{name: [value] for name, value in traced.items()}}
    begin = time.perf_counter()
    trials = assembly.build(
        recommender,
        catalog,
        options,
        seeds=[0],
        hypers=hypers,
        settings=ensemble.Settings(batch_size, config["sampler"], config["optimizer"]),
        mesh=meshes.make(MESHES.get(devices, f"data={devices}")),
        put=meshes.plan,
    )
    built = time.perf_counter()
    compiled = trials.program
    memory = compiled.memory_analysis()
    rows, _ = explain.arrays(trials)
    received = sum(
        explain.bytes_of(result) * times
        for (when, _, result, _), times in explain.collectives(compiled.as_text())
        if when == "every step"
    )
    return {
        "devices": devices,
        "mesh": MESHES.get(devices, f"data={devices}"),
        "held_bytes": memory.argument_size_in_bytes,
        "scratch_bytes": memory.temp_size_in_bytes,
        "step_flop": compiled.cost_analysis()["flops"],
        "received_bytes": received,
        "arrays": [row for row in rows if not re.search(r"\b(?:k?B)$", row[-1])],
        "build_s": built - begin,
        "compile_s": time.perf_counter() - built,
    }
