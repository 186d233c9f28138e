"""SMORE against its equations (WSDM 2025, the sections on spectrum fusion, multi-modal graphs and
modality-aware preferences, as MMRec's smore.py reads them) with dense matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.recommenders import smore

CASES = {
    "paper": dict(dim=6, layers=2, top_k=(3, 5)),
    "three modalities": dict(dim=5, layers=1, item_layers=2, top_k=4),
    "one modality": dict(dim=5, layers=1, top_k=4, trainable_features=False),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    weights = np.exp(x)
    return weights / weights.sum(axis=1, keepdims=True)


def linear(p, name, x):
    return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0)


def fourier(dim):
    """The orthonormal transform of rows [N, D] to [N, D // 2 + 1], as a matrix."""
    return np.exp(-2j * np.pi * np.outer(np.arange(dim), np.arange(dim // 2 + 1)) / dim) / dim**0.5


def back(spectrum, dim):
    """The real inverse: all frequencies but the first, and the middle one, stand for two."""
    twice = np.where((np.arange(dim // 2 + 1) * 2) % dim == 0, 1, 2)
    return (spectrum * twice @ fourier(dim).conj().T).real


def similar(features, k):
    """Cosines of the k nearest, nan for no edge, normalised by row sums on both sides."""
    cosines = unit(features) @ unit(features).T
    there = np.abs(features).sum(1) > 0
    kept = np.full_like(cosines, np.nan)
    for row in np.flatnonzero(there):
        order = np.argsort(-np.where(there, cosines[row], -np.inf), kind="stable")[:k]
        kept[row, order] = cosines[row, order]
    sums = np.nansum(kept, axis=1)
    scale = np.where(sums > 0, np.abs(np.where(sums, sums, 1)) ** -0.5, 0)
    return scale[:, None] * kept * scale


def nce(a, b, temperature):
    logits = unit(a) @ unit(b).T / temperature
    return (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()


def formula(catalog, options, *, l_w, cl_weight, temperature):
    dim, names = options["dim"], list(catalog.features)
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    degree = bought.sum(1)[:, None] * bought.sum(0)
    read = np.where(bought > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    whole = np.block([[np.zeros((n_users,) * 2), read], [read.T, np.zeros((n_items,) * 2)]])
    ks = options["top_k"] if isinstance(options["top_k"], tuple) else [options["top_k"]] * 3
    graphs = [similar(catalog.features[name], k) for name, k in zip(names, ks, strict=False)]
    graphs.append(np.fmax.reduce(graphs))
    graphs = [np.nan_to_num(s) for s in graphs]

    def compute(p, batch):
        own = state = np.vstack([p["user"], p["item"]])
        for _ in range(options["layers"]):
            state = whole @ state
            own = own + state
        own = own / (options["layers"] + 1)
        spectra, fused = [], 1
        for m, name in enumerate(names):
            features = p.get(f"contents.{m}.features", catalog.features[name])
            there = catalog.present[name][:, None]
            x = features @ p[f"contents.{m}.weight"].T + p[f"contents.{m}.bias"]
            spectra.append(x * there @ fourier(dim))
            fused = fused * np.where(there, spectra[-1], 1)
        views = []
        for m, (spectrum, graph) in enumerate(zip([*spectra, fused], graphs, strict=True)):
            w = p["filters"][m, :, 0] + 1j * p["filters"][m, :, 1]
            v = p["item"] * sigmoid(linear(p, f"gates.{m}", back(spectrum * w, dim)))
            for _ in range(options.get("item_layers", 1)):
                v = graph @ v
            views.append(np.vstack([read @ v, v]))
        *modal, fusion = views
        total = sigmoid(linear(p, f"prefers.{len(names)}", own)) * fusion
        for m, view in enumerate(modal):
            query = linear(p, f"queries.{m}", np.tanh(linear(p, f"hidden.{m}", fusion)))
            total = total + sigmoid(linear(p, f"prefers.{m}", own)) * softmax(query) * view
        side = total / len(views)
        user, pos = batch["user"], n_users + batch["pos"]
        z = own + side
        final = z[np.concatenate([user, pos, n_users + batch["neg"]])]
        loss = formulas.bpr(z[:n_users], z[n_users:], batch)
        loss += l_w * np.square(final).sum() / 2 / len(user)
        loss += cl_weight * nce(side[pos], own[pos], temperature)
        loss += cl_weight * nce(side[user], own[user], temperature)
        return loss, (z[:n_users], z[n_users:])

    return compute


def test_the_transform_of_the_formula_is_numpys():
    x = np.random.default_rng(0).normal(size=(3, 6))
    for dim in (5, 6):
        spectrum = np.fft.rfft(x[:, :dim], axis=1, norm="ortho")
        np.testing.assert_allclose(x[:, :dim] @ fourier(dim), spectrum, atol=1e-14)
        inverse = np.fft.irfft(spectrum * 1j**0.5, n=dim, axis=1, norm="ortho")
        np.testing.assert_allclose(back(spectrum * 1j**0.5, dim), inverse, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case):
    with jax.enable_x64(True):
        names = {"one modality": ["textual"], "three modalities": formulas.WIDTHS}.get(case, [])
        catalog = formulas.catalog(*names)
        if case == "three modalities":
            catalog.features["third"] = np.cos(catalog.features["visual"][:, :5])
            catalog.present["third"] = np.ones(formulas.ITEMS, bool)
        options, hypers = CASES[case], dict(l_w=0.3, cl_weight=0.2, temperature=0.5)
        expected = formula(catalog, options, **hypers)
        formulas.check(smore.SMORE, catalog, options, expected, **hypers)


@pytest.mark.slow
def test_a_node_keeps_one_dropout_mask_in_a_step():
    """Preferences of rate .5 are 0 or doubled, by node and gate."""
    nodes = np.append(np.arange(100), 7)

    @jax.jit
    def sides():
        model = smore.SMORE(formulas.catalog("visual"), dim=6, layers=1, rngs=nnx.Rngs(params=0))
        kept = model._kept(jax.random.key(0), nodes, 0.5)
        views = [jnp.full((101, 6), 3.0), jnp.full((101, 6), 2.0)]
        own = jnp.ones((101, 6))
        return model._side(views, own, kept, 0.5), model._side(views, own)

    with jax.enable_x64(True):
        ratio = np.divide(*sides())
    np.testing.assert_array_equal(ratio[7], ratio[100])
    for column in range(6):  # none, either or both of the two gates are open
        found, counts = np.unique(ratio[:100, column].round(9), return_counts=True)
        np.testing.assert_allclose(found[[0, 3]], [0, 2])
        assert found[1] + found[2] == pytest.approx(2)
        assert counts.min() > 10


def test_strongest_keeps_every_edge_with_its_largest_weight():
    rng = np.random.default_rng(0)
    dense = [np.where(rng.random((6, 6)) < 0.4, rng.normal(size=(6, 6)), np.nan) for _ in range(3)]
    graphs = []
    for matrix in dense:
        place = np.nonzero(~np.isnan(matrix))
        graphs.append(sp.csr_matrix((matrix[place], place), shape=(6, 6)))
    fused = smore.strongest(graphs)
    expected = np.fmax.reduce(dense)
    assert (expected < 0).any()
    np.testing.assert_array_equal(fused.toarray(), np.nan_to_num(expected))
    assert fused.nnz == np.isfinite(expected).sum()


def test_numbers_of_neighbours_that_do_not_fit():
    with pytest.raises(InputError, match=r"3 numbers for the modalities visual, textual: give one"):
        smore.SMORE(formulas.catalog(), dim=4, top_k=(2, 3, 4), rngs=nnx.Rngs(0))
