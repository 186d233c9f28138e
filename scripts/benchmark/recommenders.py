"""Measure recommenders for the benchmark, in separate processes.

models   an epoch, an evaluation, what is built before the first epoch, compile time; and the least
         time that an epoch's FLOPs and Adam's bytes would take these cores
trials   a grid of ten points as one program against ten programs, compile time included
graph    the k-NN graph of many items against the bare product of the same matrix
"""

import gc
import importlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.timing import median, timed, warm
from mmjax.data.prepare import prepare
from mmjax.data.synthetic import world
from mmjax.evaluation import protocol as protocols
from mmjax.ops import knn
from mmjax.parallel import mesh as meshes
from mmjax.recommenders import base, registry
from mmjax.training import assembly, ensemble, evaluator, results

LONGEST = 50
LRS, FACTORS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.1, 1.0)  # the grid of `trials`


def config_of(model: str) -> dict[str, Any]:
    """Return the config that is timed for a model.

    It is MMRec's preset where the model has one, else its default.
    """
    module = importlib.import_module(f"configs.{model}")
    try:
        return module.get_config("mmrec").to_dict()
    except ValueError:
        return module.get_config().to_dict()


def setting(users: int, items: int, interactions: int, widths: Sequence[int], model: str) -> tuple:
    """Build a world of the given shape and its ranking task.

    The catalog has random features where the model reads any.

    Returns:
      The dataset, the catalog and the task.
    """
    raw = world.generate(users=users, items=items, interactions=interactions, seed=0)
    data = prepare(raw, name="benchmark", keep_items="all", test=0.1, valid=1 / 9)
    rng, names = np.random.default_rng(0), ("visual", "textual", "third", "fourth")
    wanted = widths if config_of(model)["features"] else ()
    drawn = {
        name: jnp.asarray(rng.standard_normal((data.n_items, width), np.float32))
        for name, width in zip(names, wanted, strict=False)
    }
    task = protocols.build(
        protocols.find("mmrec"),
        held_out=(data.test.user, data.test.item),
        rating=data.test.rating,
        masked=[(data.train.user, data.train.item)],
        n_items=data.n_items,
        longest=LONGEST,
    )
    return data, base.Catalog.of(data, drawn, {}), task


def build(
    model: str,
    catalog: base.Catalog,
    batch_size: int,
    hypers: dict[str, list[float]] | None = None,
    mesh: str = "data=1",
    put: meshes.Put = meshes.put,
    **options: Any,
) -> ensemble.Ensemble:
    """Build the ensemble of a model's config.

    `hypers` makes it as many trials as they have values.
    """
    config = config_of(model)
    recommender = registry.find(model)
    options, traced = registry.split_options(recommender, config["model"] | options)
    defaults = {"lr": [1e-3], **{name: [value] for name, value in traced.items()}}
    count = len(next(iter(hypers.values()))) if hypers else 1
    values_by_name = {name: values * count for name, values in defaults.items()} | (hypers or {})
    return assembly.build(
        recommender,
        catalog,
        options,
        seeds=[0] * count,
        hypers=values_by_name,
        settings=ensemble.Settings(batch_size, config["sampler"], config["optimizer"]),
        mesh=meshes.make(mesh),
        put=put,
    )


def of_mmjax(
    model: str,
    catalog: base.Catalog,
    data: Any,
    task: Any,
    batch_size: int,
    repeats: int,
    parts: Sequence[str],
    profile: str = "",
) -> dict[str, Any]:
    """Measure our training and evaluation of a model.

    Args:
      parts: "train", "evaluate" or both.
      profile: the folder into which one more epoch is traced, if given.
    """
    begin = time.perf_counter()
    trials = build(model, catalog, batch_size)
    state = jax.block_until_ready(trials.init())
    build_s = time.perf_counter() - begin
    config = {"cutoffs": (20, LONGEST), "protocol": "mmrec", "threshold": 0.0}
    timing: dict[str, Any] = {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, {"test": task}, config, data, timing)
    row = {"build_s": build_s, "compile_s": 0.0, "times": {}}
    if trials.trainable and "train" in parts:
        begin = time.perf_counter()
        epoch = trials.epoch().lower(*trials.arguments(state)).compile()
        row["compile_s"] = time.perf_counter() - begin
        row |= counted(trials, state)

        def one_epoch():
            nonlocal state
            state, losses = epoch(*trials.arguments(state))
            losses.block_until_ready()

        row["times"]["epoch_s"] = warm(one_epoch, repeats)
        if profile:
            with jax.profiler.trace(profile):
                one_epoch()
    if "evaluate" in parts:
        row["times"]["eval_s"] = warm(lambda: evaluate(state, "test", lists=False), repeats)
    row |= {name: median(times) for name, times in row["times"].items()}
    row |= {"compile_eval_s": timing["compile_s"], "peak_rss_mb": results.peak_rss_mb()}
    memory = jax.devices()[0].memory_stats() or {}  # a CPU has none
    return row | ({"peak_device_mb": memory["peak_bytes_in_use"] / 1e6} if memory else {})


def counted(trials: ensemble.Ensemble, state: Any) -> dict[str, float]:
    """Count a step's FLOPs and the bytes that Adam moves.

    Adam reads and writes each array once. The FLOPs are XLA's count of the program for an
    accelerator, which has no loop but that of the steps, counted once. A CPU projects an item that
    a batch names twice only once, and so may take fewer.
    """
    traced = trials.epoch().trace(*trials.arguments(state))
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    n_bytes = sum(x.nbytes for x in jax.tree.leaves((state["params"], state["opt"])))
    return {"step_flop": cost["flops"], "step_bytes": 2 * n_bytes, "steps": trials.steps}


def of_torch(
    model: str,
    catalog: base.Catalog,
    data: Any,
    task: Any,
    batch_size: int,
    repeats: int,
    parts: Sequence[str],
) -> dict[str, Any]:
    import torch

    from benchmark import torch_peers

    torch.manual_seed(0)
    begin = time.perf_counter()
    options = config_of(model)["model"]
    peer = torch_peers.Peer(model, catalog, options)
    build_s = time.perf_counter() - begin
    adam = torch.optim.Adam(peer.parameters(), lr=1e-3)
    user, item = (torch.from_numpy(x.astype("int64")) for x in (data.train.user, data.train.item))

    def one_epoch():
        torch_peers.epoch(peer, adam, user, item, data.n_items, batch_size, options["l_w"])

    calls = {
        "train": ("epoch_s", one_epoch),
        "evaluate": ("eval_s", lambda: torch_peers.evaluate(peer, task, LONGEST)),
    }
    times = {calls[part][0]: warm(calls[part][1], repeats) for part in parts}
    return {
        "build_s": build_s,
        "times": times,
        **{name: median(seconds) for name, seconds in times.items()},
        "compile_s": 0.0,
        "compile_eval_s": 0.0,
        "peak_rss_mb": results.peak_rss_mb(),
        "torch": torch.__version__,
    }


def of_trials(model: str, catalog: base.Catalog, batch_size: int, epochs: int) -> dict[str, Any]:
    """Time ten points as one program and as ten.

    The points are five learning rates by two weights.
    """
    l_w = config_of(model)["model"]["l_w"]
    points = [(lr, l_w * factor) for lr in LRS for factor in FACTORS]
    frozen = {"trainable_features": False} if model == "freedom" else {}

    def run(points: Sequence[tuple[float, float]]) -> list[float]:
        lrs, weights = (list(values) for values in zip(*points, strict=True))
        hypers = {"lr": lrs, "l_w": weights}
        trials = build(model, catalog, batch_size, hypers, **frozen)
        state = trials.init()
        epoch = trials.epoch().lower(*trials.arguments(state)).compile()
        for _ in range(epochs):
            state, losses = epoch(*trials.arguments(state))
        return np.asarray(losses).mean(axis=1).tolist()

    begin = time.perf_counter()
    joint_losses = run(points)
    middle = time.perf_counter()
    peak = results.peak_rss_mb()
    single_losses = []
    for point in points:
        jax.clear_caches()
        gc.collect()
        single_losses += run([point])
    end = time.perf_counter()
    assert np.allclose(joint_losses, single_losses, rtol=1e-5), (joint_losses, single_losses)
    return {
        "points": len(points),
        "epochs": epochs,
        "together_s": middle - begin,
        "apart_s": end - middle,
        "times": {"together_s": [middle - begin], "apart_s": [end - middle]},
        "together_peak_rss_mb": peak,
    }


def of_graph(items: int, width: int, top_k: int, repeats: int) -> dict[str, Any]:
    """Time the k-NN graph and the bare product it needs.

    The product is of all rows with all rows, by blocks.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((items, width), np.float32))
    begin = time.perf_counter()
    nearest = jax.jit(knn.nearest, static_argnums=1).lower(x, top_k).compile()
    compile_s = time.perf_counter() - begin
    block = min(knn.LARGEST, items)

    def product(x: jax.Array) -> jax.Array:
        blocks = jnp.pad(x, ((0, -items % block), (0, 0))).reshape(-1, block, width)
        return jax.lax.map(lambda rows: (rows @ x.T).max(axis=1), blocks)

    bare = jax.jit(product).lower(x).compile()
    times = {"graph_s": timed(lambda: jax.block_until_ready(nearest(x)), repeats)}
    peak = results.peak_rss_mb()
    times["product_s"] = timed(lambda: jax.block_until_ready(bare(x)), repeats)
    medians = {name: median(seconds) for name, seconds in times.items()}
    return {**medians, "times": times, "compile_s": compile_s, "graph_mb": peak}
