"""Tables, graphs and work split over eight devices give the numbers of one."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from support import worlds

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.evaluation import ranking
from mmjax.ops import graph, knn, sparse
from mmjax.parallel import mesh as meshes
from mmjax.parallel import table_sharding
from mmjax.training import ensemble, evaluator, experiment, fit
from mmjax.training.checkpoint import Checkpoints

GRIDS = ("data=8", "model=8", "data=2,model=4")
# Of every kind: tables alone, features, a fixed graph, drawn and learned ones, all items
# beside all, solved when built.
KINDS = ("bprmf", "vbpr", "lightgcn", "freedom", "lattice", "micro", "ials")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Neither count divides by the number of devices."""
    return worlds.small(tmp_path_factory.mktemp("data") / "small", users=203, items=101)


def config(name, folder, **changes):
    made = importlib.import_module(f"configs.{name}").get_config().to_dict()
    made |= {"dataset": str(folder), "epochs": 2, "patience": 0, "cutoffs": (10, 20)}
    return made | {"batch_size": 512, "mesh": "data=1"} | changes


def build(made, points=({},)):
    data = dataset.load(made["dataset"])
    return experiment.trials(made, data, experiment.features(made, data), points)


def ranked(made, workdir, points=({},)):
    """Progress, losses of an epoch, rankings of the test split after training."""
    data, trials = dataset.load(made["dataset"]), build(made, points)
    timing = {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, experiment.tasks(made, data), made, data, timing)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = trials.init()
    best, progress = fit.fit(trials, state, evaluate, checkpoints, made, workdir, timing)
    checkpoints.close()
    return best, progress, evaluate(best, "test")


@functools.lru_cache
def alone(name, folder, workdir):
    return ranked(config(name, folder), workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("grid", ["data=2,model=4"])
def test_a_mesh_gives_the_numbers_of_one_device(name, grid, folder, tmp_path_factory):
    here, there = (tmp_path_factory.mktemp(name) for _ in range(2))
    best, progress, found = ranked(config(name, folder, mesh=grid), here)
    own, own_progress, expected = alone(name, folder, there)
    assert progress["best_epoch"] == own_progress["best_epoch"]
    np.testing.assert_array_equal(found[0].ranked, expected[0].ranked)
    for metric, value in expected[0].overall.items():
        assert abs(found[0].overall[metric] - value) <= 1e-6, metric
    for mine, other in zip(*map(jax.tree.leaves, (best, own)), strict=True):
        if mine.ndim > 1:  # rows that fill a table up stay zero
            assert not np.asarray(mine)[:, other.shape[1] :].any()
            mine = mine[:, : other.shape[1]]
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [*GRIDS, "trial=2,data=2,model=2"])
def test_lightgcn_on_every_mesh(grid, folder, tmp_path):
    points = [{"seed": n} for n in range(2 if "trial" in grid else 1)]
    _, _, found = ranked(config("lightgcn", folder, mesh=grid), tmp_path / "mesh", points)
    _, _, expected = ranked(config("lightgcn", folder), tmp_path / "one", points)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.ranked, other.ranked)


@pytest.mark.slow
def test_tables_features_and_graphs_lie_in_pieces(folder):
    """Each of eight devices holds an eighth of the rows, whatever is as long as users or items."""
    trials = build(config("freedom", folder, mesh="data=2,model=4"))
    for x in jax.tree.leaves(trials.init()):
        if x.ndim > 1 and x.shape[1] in (208, 104):
            assert {s.data.shape[1] for s in x.addressable_shards} == {x.shape[1] // 8}
    held = jax.tree.leaves(trials.frozen, is_leaf=lambda x: isinstance(x, sparse.Pieces))
    graphs = [x for x in held if isinstance(x, sparse.Pieces)]
    assert graphs
    for one in graphs:
        assert {s.data.shape[0] for s in one.values.addressable_shards} == {1}
    trained = trials.shapes()["params"]
    assert any(x.shape[1] == 104 for x in jax.tree.leaves(trained))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vbpr", "bm3", "lattice", "slmrec", "mmgcn"])
def test_features_are_read_by_the_devices_that_hold_them(name, folder, monkeypatch):
    """Frozen ones, trained ones, unit ones, and those that neighbours are found by: never whole."""
    read, original, given, put = [], store.Store.read, [], meshes.put

    def reading(self, sharding=None, dtype=None, **options):
        read.append(sharding)
        return original(self, sharding, dtype, **options)

    def putting(tree, where):
        laid = put(tree, where)
        given.extend(jax.tree.leaves(laid))
        return laid

    monkeypatch.setattr(store.Store, "read", reading)
    monkeypatch.setattr(meshes, "put", putting)
    made = config(name, folder, mesh="data=2,model=4")
    if name == "mmgcn":
        made["model"]["latent"] = 0
    data = dataset.load(folder)
    stores = experiment.features(made, data)
    widths = {opened.shape[1] for opened in stores.values()}
    experiment.trials(made, data, stores, put=putting).init()
    assert read
    assert None not in read
    features = [x for x in given if x.ndim == 2 and x.shape[1] in widths | {sum(widths)}]
    assert features
    for x in features:
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {104 // 8}


def test_a_modality_of_zeros_is_refused_unread(folder, tmp_path):
    made = config("vbpr", folder, mesh="data=8")
    data = dataset.load(folder)
    store.write_array(tmp_path / "none", np.zeros((101, 3), np.float32), item_ids=data.item_ids)
    made["features"] = f"none={tmp_path}/none"
    with pytest.raises(InputError, match="'none' are all zero"):
        experiment.trials(made, data, experiment.features(made, data))


@pytest.mark.slow
def test_no_table_travels_where_a_batch_does(folder):
    """Of BPRMF's step no collective moves as much as a table has, though Adam updates all of it."""
    trials = build(config("bprmf", folder, mesh="data=2,model=4", batch_size=16))
    text = trials.program.as_text()
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-\w+|reduce-scatter|collective-\w+)\(", text)
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in moved]
    assert sizes
    assert max(sizes) <= 3 * 16 * 64 < 101 * 64


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("data=1", "model=8"), ("data=8", "model=3")])
def test_a_run_goes_on_upon_another_mesh(before, after, folder, tmp_path):
    """The rows that fill tables up differ; the parameters do not."""
    made = config("lightgcn", folder, epochs=3)
    ranked(made | {"epochs": 1, "mesh": before}, tmp_path / "cut")
    best, progress, _ = ranked(made | {"mesh": after}, tmp_path / "cut")
    whole, undisturbed, _ = ranked(made, tmp_path / "whole")
    assert progress["best_epoch"] == undisturbed["best_epoch"]
    for mine, other in zip(*map(jax.tree.leaves, (best, whole)), strict=True):
        mine = mine[:, : other.shape[1]] if mine.ndim > 1 else mine
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


def matrices():
    return st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31))


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(matrices())
def test_products_over_devices(shape):
    """Of matrices in pieces and whole, alone and for trials, and backwards."""
    height, width, seed = shape
    rng = np.random.default_rng(seed)
    matrix = sp.random(height, width, 0.2, format="csr", random_state=rng)
    x = rng.normal(size=(2, width, 3)).astype(np.float32)
    expected = np.stack([matrix @ one for one in x])
    whole = graph.from_scipy(matrix)
    cut = graph.Graph(*(sparse.in_pieces(side, 8) for side in whole))
    with jax.set_mesh(meshes.make("data=2,model=4")):
        for one in (whole, cut):
            assert one.shape == matrix.shape
            found = jax.jit(graph.propagate)(one, x[0])
            np.testing.assert_allclose(found, expected[0], atol=1e-5)
            found = jax.jit(jax.vmap(graph.propagate, in_axes=(None, 0)))(one, x)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            back = jax.jit(lambda one, x, y: jax.vjp(graph.propagate, one, x)[1](y)[1])
            y = rng.normal(size=(height, 3)).astype(np.float32)
            np.testing.assert_allclose(back(one, x[0], y), matrix.T @ y, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 70), st.integers(1, 12), st.integers(0, 2**31))
def test_top_k_over_devices_keeps_values_and_the_order_of_ties(items, k, seed):
    scores = np.random.default_rng(seed).integers(0, 5, (4, items)).astype(np.float32)
    with jax.set_mesh(meshes.make("data=2,model=4")):
        found = jax.jit(ranking.top_k, static_argnums=1)(scores, k)
    for mine, other in zip(found, ranking.top_k(jnp.asarray(scores), k), strict=True):
        there = np.isfinite(np.asarray(other)) & (np.arange(k) < items)[None]
        np.testing.assert_array_equal(np.asarray(mine)[there], np.asarray(other)[there])


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("count", "k"), [(1003, 7), (9, 9), (300, 40)])
def test_neighbours_round_a_ring(grid, count, k):
    """Small whole numbers: many ties, and sums without rounding."""
    x = np.random.default_rng(0).integers(0, 2, (count, 4)).astype(np.float32)
    expected = knn.nearest(jnp.asarray(x), k)
    with jax.set_mesh(meshes.make(grid)):
        found = jax.jit(knn.nearest, static_argnums=1)(x, k)
    for one in (found, knn.build(x, k, mesh=meshes.make(grid))):
        np.testing.assert_allclose(one.values, expected.values, atol=1e-6)
        np.testing.assert_array_equal(one.columns, expected.columns)


def test_one_device_splits_nothing(folder):
    trials = build(config("lightgcn", folder))
    assert table_sharding.shard_count(trials.mesh) == 1
    assert not [x for x in jax.tree.leaves(trials.frozen) if isinstance(x, sparse.Pieces)]
    assert ensemble.pick(trials.init(), 0)["params"]["user"].shape[0] == 203
