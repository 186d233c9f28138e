"""Imputation: each method against its published formula in dense NumPy, and what all keep."""

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.sparse as sp
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset, Interactions
from mmjax.features.imputation import autoencoders, propagation
from mmjax.features.imputation.impute import METHODS, impute
from mmjax.features.imputation.missing import Gaps, mask
from mmjax.ops import graph

# Who bought which of eight items; item 6 was bought alone and item 7 never.
BASKETS = (
    (0, 1, 2),
    (0, 1, 2, 3),
    (1, 2, 5),
    (2, 3, 4),
    (3, 4),
    (0, 3, 4, 5),
    (1, 5),
    (6,),
    (0, 1),
)
FROM_BASKETS = ("neigh_mean", "feat_prop", "pers_page_rank", "heat")


def catalogue(baskets, items):
    """A dataset of these train interactions; the held-out ones must not matter."""
    user = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    item = np.concatenate([np.array(basket, int) for basket in baskets])

    def split(user, item):
        ones, times = np.ones(len(user), np.float32), np.zeros(len(user), np.int64)
        return Interactions(user.astype(np.int32), item.astype(np.int32), ones, times)

    held_out = split(np.arange(len(baskets)), np.full(len(baskets), items - 1))
    return Dataset(
        name="small",
        user_ids=[f"u{u}" for u in range(len(baskets))],
        item_ids=[f"i{i}" for i in range(items)],
        titles=[""] * items,
        texts=[""] * items,
        images=[""] * items,
        audios=[""] * items,
        train=split(user, item),
        valid=held_out,
        test=held_out,
    )


def example(baskets=BASKETS, items=8, absent=(1, 4, 6, 7), width=3, seed=0):
    present = ~np.isin(np.arange(items), absent)
    features = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)
    return Gaps(catalogue(baskets, items), np.where(present[:, None], features, 0), present)


def neighbours_of(gaps, top_k):
    """A [I, I], by sorting each row of the dense C."""
    users, items = gaps.dataset.n_users, gaps.dataset.n_items
    bought = np.zeros((users, items))
    bought[gaps.dataset.train.user, gaps.dataset.train.item] = 1
    counts = bought.T @ bought
    out = np.zeros((items, items))
    for i, row in enumerate(counts):
        out[i, sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))[:top_k]] = 1
    return out


def series_of(gaps, method, top_k, parameter):
    """S [I, I] in closed form: the inverse, or the matrix exponential."""
    neighbours = neighbours_of(gaps, top_k)
    eye = np.eye(len(neighbours))
    averaged = (neighbours + eye) / (min(top_k, len(eye)) + 1)
    if method == "heat":
        return scipy.linalg.expm(-parameter * (eye - averaged))
    return parameter * np.linalg.inv(eye - (1 - parameter) * averaged)


def sparsified(dense, top_k):
    out = np.zeros_like(dense)
    for j, column in enumerate(dense.T):
        steps = np.round(column / column.max() * 2**20)  # of two equal ones the lower item
        kept = np.argsort(-steps, kind="stable")[:top_k]
        out[kept, j] = column[kept] / column[kept].sum()
    return out


def cut_is_clear(dense, top_k):
    """Whether no two entries around the cut of a column are equal but for rounding."""
    if top_k >= len(dense):
        return True
    ordered = -np.sort(-dense, axis=0)
    gap = ordered[top_k - 1] - ordered[top_k]
    return bool(((gap > 1e-5) | (ordered[top_k - 1] == 0)).all())


def expected(gaps, method, *, top_k=3, layers=2, alpha=0.1, time=5.0):
    """What a method must give, [I, F] float64."""
    observed, features = gaps.present, gaps.features.astype(np.float64)
    neighbours = neighbours_of(gaps, top_k)
    if method in ("zeros", "mean"):
        fill = features[observed].mean(0) if method == "mean" else np.zeros(features.shape[1])
        return np.where(observed[:, None], features, fill)
    if method == "neigh_mean":
        filled = features.copy()
        for i in np.flatnonzero(~observed):
            around = np.flatnonzero(neighbours[i])
            filled[i] = features[around].mean(0) if len(around) else 0
        return filled
    if method == "feat_prop":
        np.fill_diagonal(neighbours, 0)
        degree = neighbours.sum(1)
        scale = np.array([d**-0.5 if d else 0 for d in degree])
        operator = np.diag(scale) @ neighbours @ np.diag(scale)
    else:
        parameter = time if method == "heat" else alpha
        operator = sparsified(series_of(gaps, method, top_k, parameter), top_k)
    state = features
    for _ in range(layers):
        state = np.where(observed[:, None], features, operator @ state)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeros", "mean", *FROM_BASKETS])
@pytest.mark.parametrize("top_k", [2, 3, 20])
def test_the_worked_example_follows_the_published_formula(method, top_k):
    gaps = example()
    options = {"top_k": top_k} if method in FROM_BASKETS else {}
    options |= {"layers": 3} if method in FROM_BASKETS[1:] else {}
    rows, reached = METHODS[method](gaps, **options)
    filled = np.where(gaps.present[:, None], gaps.features, rows)
    np.testing.assert_allclose(filled, expected(gaps, method, **options), atol=1e-6)
    if method in FROM_BASKETS:  # nothing is known of what was bought alone or never
        assert not filled[6:].any()
        np.testing.assert_array_equal(reached[[1, 4, 6, 7]], [1, 1, 0, 0])


def test_the_worked_example_in_figures():
    """Item 4 was bought with 3 (three times), 2 and 0, 5 (once, so the lower of them is kept)."""
    gaps = example()._replace(features=np.array([[8], [0], [2], [4], [0], [1], [0], [0]], "f"))
    rows, _ = METHODS["neigh_mean"](gaps, top_k=3)
    np.testing.assert_allclose(rows[4], [(0 + 4 + 8) / 3], atol=1e-6)
    rows, _ = METHODS["feat_prop"](gaps, top_k=3, layers=1)
    np.testing.assert_allclose(rows[4], [(4 + 8) / 2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("pers_page_rank", {"alpha": 0.02}),
        ("pers_page_rank", {"alpha": 1.0}),
        ("heat", {"time": 0.3}),
        ("heat", {"time": 120.0}),  # exp(-120) is no float32
    ],
)
def test_diffusion_at_the_ends_of_its_range(method, options):
    gaps = example()
    rows, _ = METHODS[method](gaps, top_k=8, layers=4, **options)
    wanted = expected(gaps, method, top_k=8, layers=4, **options)
    np.testing.assert_allclose(rows, wanted, atol=1e-5)


@pytest.mark.parametrize("method", FROM_BASKETS)
def test_where_nobody_buys_two_items_nothing_is_known(method):
    gaps = example([(i,) for i in range(6)], items=8)
    rows, reached = METHODS[method](gaps)
    np.testing.assert_array_equal(rows[~reached], np.zeros((4, 3)))
    np.testing.assert_array_equal(reached, gaps.present)


BOUGHT = st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=14)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(BOUGHT, st.integers(1, 14), st.integers(1, 4), st.sampled_from(FROM_BASKETS), st.data())
def test_any_catalogue_follows_the_formula(baskets, top_k, layers, method, data):
    absent = data.draw(st.sets(st.integers(0, 11), max_size=11))
    gaps = example([sorted(basket) for basket in baskets], 12, list(absent), width=2)
    options = {"top_k": top_k} | ({} if method == "neigh_mean" else {"layers": layers})
    if method in ("pers_page_rank", "heat"):
        series = series_of(gaps, method, top_k, 5.0 if method == "heat" else 0.1)
        assume(cut_is_clear(series, top_k))
    rows, reached = METHODS[method](gaps, **options)
    np.testing.assert_allclose(rows, expected(gaps, method, **options), atol=1e-5)
    np.testing.assert_array_equal(rows[gaps.present], gaps.features[gaps.present])
    assert not rows[~reached].any()


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(BOUGHT, st.permutations(range(12)), st.sampled_from(("zeros", "mean", *FROM_BASKETS)))
def test_the_order_of_the_items_does_not_matter(baskets, order, method):
    """With all neighbours kept, since ties at a cut go to the lower item."""
    options = {"top_k": 12} if method in FROM_BASKETS else {}
    gaps = example([sorted(basket) for basket in baskets], 12, (0, 3, 4, 8, 11))
    place = np.argsort(order)  # where each item went
    moved = Gaps(
        catalogue([sorted(place[list(basket)]) for basket in baskets], 12),
        gaps.features[order],
        gaps.present[order],
    )
    (rows, reached), (rows_moved, reached_moved) = (
        METHODS[method](g, **options) for g in (gaps, moved)
    )
    np.testing.assert_allclose(rows_moved, rows[list(order)], atol=1e-5)
    np.testing.assert_array_equal(reached_moved, reached[list(order)])


@functools.cache
def baskets_of_many(items=150, users=120, seed=3):
    rng = np.random.default_rng(seed)
    popular = (1.0 + rng.permutation(items)) ** -0.8
    return tuple(
        tuple(
            sorted(rng.choice(items, rng.integers(2, 15), replace=False, p=popular / popular.sum()))
        )
        for _ in range(users)
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pers_page_rank", "heat"])
def test_blocks_of_any_size_give_the_closed_form(method):
    gaps = example(baskets_of_many(), 150, range(0, 150, 3))
    top_k, parameter = 7, {"pers_page_rank": 0.1, "heat": 5.0}[method]
    neighbours = gaps.co_purchase(top_k)
    np.testing.assert_array_equal(neighbours.toarray(), neighbours_of(gaps, top_k))
    averaged = (neighbours + sp.eye(150)) / (top_k + 1)
    dense = series_of(gaps, method, top_k, parameter)
    n = np.arange(200)
    weights = (
        scipy.stats.poisson.pmf(n, parameter)
        if method == "heat"
        else parameter * (1 - parameter) ** n
    )
    kept = [
        propagation.diffuse(averaged, weights, top_k, block=block).toarray()
        for block in (1, 16, 53, 1000, None)
    ]
    for other in kept[1:]:
        np.testing.assert_allclose(other, kept[0], atol=1e-7)
    pointed = averaged.getnnz(axis=0) > 1  # by another item too; the others stay alone
    mine, wanted = kept[0][:, pointed], dense[:, pointed]
    np.testing.assert_allclose(mine[mine > 0], wanted[mine > 0], atol=1e-6)
    largest = [np.sort(x, axis=0)[-top_k:] for x in (mine, wanted)]  # ties may fall either way
    np.testing.assert_allclose(*largest, atol=1e-6)
    assert np.count_nonzero(mine, axis=0).max() == top_k
    np.testing.assert_array_equal(kept[0][:, ~pointed], np.eye(150)[:, ~pointed])


@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_co_purchases_by_blocks(budget):
    gaps = example(baskets_of_many(), 150)
    train = gaps.dataset.train
    shape = gaps.dataset.n_users, 150
    found = graph.co_purchase(train.user, train.item, shape, top_k=5, budget=budget)
    np.testing.assert_array_equal(found.toarray(), neighbours_of(gaps, 5))


@given(st.integers(1, 300), st.floats(0, 0.999), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_a_mask_hides_exactly_its_share(count, rate, seed):
    present = np.random.default_rng(seed).random(count) < 0.7
    left = mask(present, rate, seed)
    total = present.sum()
    assert left.sum() == max(total - round(rate * total), min(total, 1))
    assert not (left & ~present).any()
    np.testing.assert_array_equal(left, mask(present, rate, seed))


def test_masks_of_different_seeds_differ():
    present = np.ones(100, bool)
    assert (mask(present, 0.5, 42) != mask(present, 0.5, 43)).any()
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"in \[0, 1\)"):
            mask(present, rate, 0)


# --- autoencoders


def pairs(items=240, seed=0):
    """Two modalities of one three-dimensional cause; people buy what is near in it."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(items, 3)) + 3 * rng.normal(size=(6, 3))[np.arange(items) % 6]
    source = np.tanh(cause @ rng.normal(size=(3, 20)) / 3).astype(np.float32)
    target = np.tanh(cause @ rng.normal(size=(3, 12)) / 3).astype(np.float32)
    baskets = [rng.choice(np.arange(i % 6, items, 6), 6, replace=False) for i in range(150)]
    present = rng.random(items) < 0.7
    there = rng.random(items) < 0.9
    gaps = Gaps(
        catalogue([sorted(basket) for basket in baskets], items),
        np.where(present[:, None], target, 0),
        present,
        np.where(there[:, None], source, 0),
        there,
    )
    return gaps, target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("ae", {"epochs": 200}), ("gae", {"epochs": 400, "lr": 1e-2, "top_k": 10})],
)
def test_autoencoders_find_the_common_cause(method, options):
    gaps, truth = pairs()
    hidden = ~gaps.present & gaps.other_present
    rows, reached = METHODS[method](gaps, **options)
    average, _ = METHODS["mean"](gaps)
    error, of_mean = (np.square(x - truth)[hidden].mean() for x in (rows, average))
    assert error < 0.25 * of_mean
    neither = ~gaps.present & ~gaps.other_present
    assert neither.any()
    assert not rows[neither].any()
    np.testing.assert_array_equal(reached, gaps.present | gaps.other_present)
    again, _ = METHODS[method](gaps, **options)
    np.testing.assert_array_equal(again, rows)


def test_published_widths():
    assert autoencoders.hidden_widths(2048, 768) == [1024, 512, 512]
    assert autoencoders.hidden_widths(768, 2048) == [1024]
    assert autoencoders.hidden_widths(3, 2) == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("convolutions", [False, True])
def test_layers_start_as_the_authors(convolutions):
    """Check torch's Linear, weights and biases, and PyTorch Geometric's convolution."""
    model = autoencoders.Autoencoder([80, 60, 50], convolutions=convolutions, rngs=nnx.Rngs(0))
    for layer, convolution in zip(model.layers, (convolutions, False), strict=True):
        inputs, outputs = layer.kernel.shape
        bound = (6 / (inputs + outputs)) ** 0.5 if convolution else inputs**-0.5
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
        if convolution:
            assert not bias.any()
        else:
            assert 0.8 * bound < np.abs(bias).max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_training_is_torch_step_for_step(with_graph, l1):
    """Five full-batch epochs in float64: the losses and weights of torch's own optimisers."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    source, target = rng.random((30, 6)), rng.random((30, 4))
    both = np.sort(rng.choice(30, 21, replace=False))
    dense = graph.by_degree(sp.random(30, 30, 0.1, random_state=0, format="csr") + sp.eye(30))
    model = autoencoders.Autoencoder([6, 5, 3, 4], convolutions=with_graph, rngs=nnx.Rngs(1))
    weights = [
        torch.tensor(np.array(x[...], float), requires_grad=True)
        for layer in model.layers
        for x in (layer.kernel, layer.bias)
    ]
    if with_graph:
        ours, theirs = optax.adam(1e-2), torch.optim.Adam(weights, lr=1e-2)
    else:
        ours = optax.adagrad(0.01, initial_accumulator_value=0.0, eps=1e-20)
        theirs = torch.optim.Adagrad(weights, lr=0.01, eps=0)
    with jax.enable_x64(True):
        definition, params = nnx.split(model)
        params = jax.tree.map(lambda x: x.astype(np.float64), params)
        neighbours = graph.from_scipy(dense, np.float64) if with_graph else None
        data = jax.device_put((source, target, both, neighbours))
        common = {"key": jax.random.key(0), "epochs": 5, "batch": 21, "l1": l1}
        params, losses = autoencoders.train("ae", definition, params, ours, data, **common)
        layers = nnx.merge(definition, params).layers
        trained = [np.asarray(x[...]) for layer in layers for x in (layer.kernel, layer.bias)]
    wanted = []
    operator = torch.tensor(dense.toarray() if with_graph else np.eye(30))
    for _ in range(5):
        x = torch.tensor(source)
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = torch.nn.functional.leaky_relu(operator @ (x @ kernel) + bias)
        out = torch.sigmoid(x @ weights[-2] + weights[-1])[both]
        loss = torch.nn.functional.binary_cross_entropy(out, torch.tensor(target)[both])
        loss = loss + l1 * out.abs().sum() / len(both)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        wanted.append(loss.item())
    np.testing.assert_allclose(losses, wanted, atol=1e-9)
    assert losses[-1] < losses[0]
    for mine, other in zip(trained, weights, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), atol=1e-7)


@pytest.mark.slow
def test_short_last_batches_count_as_they_should():
    """At a rate of zero every epoch has the loss of all items, however they are dealt out."""
    gaps, _ = pairs(items=60)
    source, _, _ = autoencoders.scale(gaps.other, gaps.other_present)
    target, low, extent = autoencoders.scale(gaps.features, gaps.present)
    np.testing.assert_allclose(
        (low + extent * target)[gaps.present], gaps.features[gaps.present], atol=1e-6
    )
    both = np.flatnonzero(gaps.present & gaps.other_present)
    model = autoencoders.Autoencoder([20, 6, 12], convolutions=False, rngs=nnx.Rngs(0))
    definition, params = nnx.split(model)
    data = jax.device_put((source, target, both, None))
    common = {"key": jax.random.key(0), "epochs": 2, "l1": 0.01}
    args = "ae", definition, params, optax.sgd(0.0), data
    losses = [autoencoders.train(*args, batch=b, **common)[1] for b in (1, 7, len(both))]
    np.testing.assert_allclose(losses, np.full((3, 2), losses[2][0]), atol=1e-5)


# --- stores


@pytest.fixture
def saved(tmp_path):
    """The worked example as a store, and its other modality."""
    gaps = example()
    about = {"item_ids": gaps.dataset.item_ids, "chunk_rows": 3, "encoder": "truth", "size": 7}
    store.write_array(tmp_path / "s", gaps.features, present=gaps.present, **about)
    other = np.random.default_rng(1).random((8, 5), np.float32)
    store.write_array(tmp_path / "o", other, present=np.arange(8) != 6, **about)
    return gaps, tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_store_is_filled_and_says_how(saved, method):
    gaps, folder = saved
    options = {"epochs": 3} if method in ("ae", "gae") else {}
    done = impute(
        gaps.dataset,
        folder / "s",
        folder / "out",
        method=method,
        options=options,
        other=folder / "o",
    )
    opened = store.open_store(folder / "out", item_hash=gaps.dataset.item_hash())
    rows, present = opened.read()
    np.testing.assert_array_equal(rows[gaps.present], gaps.features[gaps.present])
    absent = {"ae": [6], "gae": [6]}.get(method, [6, 7] if method in FROM_BASKETS else [])
    np.testing.assert_array_equal(np.flatnonzero(~present), absent)
    assert not rows[absent].any()
    assert (done.imputed, done.absent, done.masked) == (4 - len(absent), len(absent), 0)
    if method != "zeros":
        assert rows[[1, 4]].any(axis=1).all()
    source = store.open_store(folder / "s").manifest
    assert opened.manifest["encoder"] == "truth"
    assert opened.manifest["settings"]["size"] == 7
    said = opened.manifest["settings"]["imputed"]
    assert said["method"] == method
    assert said["rows"] == done.imputed
    assert said["features_hash"] == source["content_hash"]
    assert said["data_hash"] == gaps.dataset.interaction_hash()
    assert done.options.items() <= said.items()
    assert opened.manifest["content_hash"] != source["content_hash"]


def test_random_is_uniform_and_seeded(saved):
    gaps, _ = saved
    wide = gaps._replace(features=np.zeros((8, 4000), np.float32))
    rows, _ = METHODS["random"](wide, seed=1)
    drawn = rows[~gaps.present]
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(1), 0.5, atol=0.03)
    assert len(np.unique(drawn[:, :20])) == 80
    np.testing.assert_array_equal(METHODS["random"](wide, seed=1)[0], rows)
    assert (METHODS["random"](wide, seed=2)[0][~gaps.present] != drawn).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_store_keeps_its_dtype_and_its_rows_to_the_bit(saved, dtype):
    gaps, folder = saved
    features = np.random.default_rng(2).normal(size=(8, 3)).astype(dtype)
    store.write_array(folder / "d", features, item_ids=gaps.dataset.item_ids, present=gaps.present)
    impute(gaps.dataset, folder / "d", folder / "out", method="feat_prop")
    opened = store.open_store(folder / "out")
    assert opened.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(opened.read()[0][gaps.present], features[gaps.present])


def test_masking_hides_rows_before_they_are_imputed(saved):
    gaps, folder = saved
    done = impute(
        gaps.dataset, folder / "s", folder / "out", method="mean", mask_rate=0.5, mask_seed=3
    )
    left = mask(gaps.present, 0.5, 3)
    assert (done.masked, done.imputed) == (2, 6)
    rows, present = store.open_store(folder / "out").read()
    assert present.all()
    np.testing.assert_array_equal(rows[left], gaps.features[left])
    average = gaps.features[left].mean(0)
    np.testing.assert_allclose(rows[~left], np.tile(average, (6, 1)), atol=1e-6)


def test_a_store_without_gaps_is_copied(saved):
    gaps, folder = saved
    full = np.random.default_rng(4).normal(size=(8, 3)).astype(np.float32)
    store.write_array(folder / "full", full, item_ids=gaps.dataset.item_ids)
    done = impute(gaps.dataset, folder / "full", folder / "out", method="heat")
    assert (done.imputed, done.absent) == (0, 0)
    one, two = (store.open_store(folder / name) for name in ("full", "out"))
    assert one.manifest["content_hash"] == two.manifest["content_hash"]


def test_what_the_user_can_mend_is_said(saved):
    gaps, folder = saved
    run = functools.partial(impute, gaps.dataset, folder / "s", folder / "new")
    faults = {
        r"no method 'median'; there are zeros, .*gae": {"method": "median"},
        "mean has no option 'top_k'; it has none": {"method": "mean", "options": {"top_k": 3}},
        "neigh_mean has no option 'layers'; it has top_k": {
            "method": "neigh_mean",
            "options": {"layers": 3},
        },
        "top_k is at least 1": {"method": "heat", "options": {"top_k": 0}},
        "layers is at least 1": {"method": "feat_prop", "options": {"layers": 0}},
        "alpha is from 0.001 to 1": {"method": "pers_page_rank", "options": {"alpha": 0.0}},
        "time is above 0 and at most 1000": {"method": "heat", "options": {"time": -1.0}},
        "give --other=STORE": {"method": "ae"},
        "epochs and batch of at least 1": {
            "method": "ae",
            "options": {"epochs": 0},
            "other": folder / "o",
        },
        "lr above 0": {"method": "gae", "options": {"lr": 0.0}, "other": folder / "o"},
        r"in \[0, 1\), not 1": {"method": "mean", "mask_rate": 1.0},
        "there is no store": {"method": "gae", "other": folder / "nothing"},
    }
    for message, arguments in faults.items():
        with pytest.raises(InputError, match=message):
            run(**arguments)
        assert not (folder / "new").exists()
    with pytest.raises(InputError, match="is the store to read from"):
        impute(gaps.dataset, folder / "s", folder / "s", method="mean", overwrite=True)
    with pytest.raises(InputError, match="exists already"):
        impute(gaps.dataset, folder / "s", folder / "o", method="mean")
    elsewhere = dataclasses.replace(gaps.dataset, item_ids=gaps.dataset.item_ids[::-1])
    with pytest.raises(InputError, match="misaligned"):
        impute(elsewhere, folder / "s", folder / "new", method="mean")
    none = np.zeros(8, bool)
    for name in ("empty", "apart"):
        there = none if name == "empty" else ~gaps.present
        store.write_array(
            folder / name, np.ones((8, 3), "f"), item_ids=gaps.dataset.item_ids, present=there
        )
    with pytest.raises(InputError, match="no present row"):
        impute(gaps.dataset, folder / "empty", folder / "new", method="mean")
    with pytest.raises(InputError, match="both modalities and there are none"):
        run(method="ae", other=folder / "apart")
    assert not (folder / "new").exists()
