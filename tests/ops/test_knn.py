"""Exact nearest neighbours by blocks against one dense, stable sort, and graphs made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.ops import knn
from mmjax.ops.normalize import unit

SMALL = {"LARGEST": 16, "FEWEST": 3, "PART": 4}


@pytest.fixture
def small(monkeypatch):
    """Blocks of a few rows."""
    for name, value in SMALL.items():
        monkeypatch.setattr(knn, name, value)


def dense(x, k):
    """Values and columns [I, k]; -inf and 0 where there are fewer than k."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    there = lengths[:, 0] > 0
    rows = x / np.where(lengths > 0, lengths, 1)
    cosines = np.where(there[:, None] & there, rows @ rows.T, -np.inf)
    columns = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(cosines, columns, axis=1)
    return values, np.where(np.isfinite(values), columns, 0)


def signs(rng, count, width=6):
    """Rows of four entries 1 or -1: cosines are exact quarters, most of them tied, many rows are
    equal; a third of the rows are zeros."""
    rows = np.zeros((count, width), np.float32)
    for row in rows:
        row[rng.choice(width, 4, replace=False)] = rng.choice([-1, 1], 4)
    return rows * (rng.random(count) < 2 / 3)[:, None]


def check(found, x, k, atol=0.0):
    values, columns = dense(x, k)
    np.testing.assert_allclose(found.values, values, atol=atol)
    np.testing.assert_array_equal(found.columns, columns)
    assert found.columns.dtype == np.int32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (3, 2), (16, 5), (37, 1), (37, 20), (48, 48), (101, 20)]
)
def test_nearest_is_a_stable_sort_at_any_size(count, k, small):
    """Ties, equal rows, rows of zeros; k of 1, few, more than a block has, and all rows."""
    x = signs(np.random.default_rng(count), count)
    check(knn.nearest(jnp.asarray(x), k), x, k)


@pytest.mark.slow
def test_nearest_of_nothing_but_zeros(small):
    found = knn.nearest(jnp.zeros((9, 3)), 4)
    assert (np.asarray(found.values) == -np.inf).all()
    assert (np.asarray(found.columns) == 0).all()


@functools.cache
def compiled():
    """With small blocks, one program a k: 37 rows are no multiple of any."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(knn, name, value)
        shape = jax.ShapeDtypeStruct((37, 6), np.float32)
        lower = jax.jit(knn.nearest, static_argnums=1).lower
        return {k: lower(shape, k).compile() for k in (6, 37)}


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from([6, 37]), st.booleans())
@settings(deadline=None, max_examples=30)
def test_nearest_of_any_rows(seed, k, tied):
    rng = np.random.default_rng(seed)
    x = signs(rng, 37)
    if not tied:
        x = (rng.normal(size=x.shape) * np.abs(x) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    found = compiled()[k](x)
    if tied:
        check(found, x, k)
    else:  # in float32 the order of cosines that are nearly equal is free
        values, _ = dense(x.astype(np.float64), 37)
        np.testing.assert_allclose(found.values, values[:, :k], atol=1e-6)
        kept = np.isfinite(found.values)
        cosines = np.asarray(knn.cosines(jnp.asarray(x), found.columns))
        np.testing.assert_allclose(found.values[kept], cosines[kept], atol=1e-6)
        for row, there in zip(found.columns, kept, strict=True):
            assert len(set(row[there].tolist())) == there.sum()


@pytest.mark.slow
def test_nearest_at_its_own_block_sizes_and_over_trials():
    """700 rows make six blocks with parts that are not looked at; in float64 nothing is tied."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(2, 700, 8))
        x[:, 5] = 0
        found = jax.jit(jax.vmap(lambda x: knn.nearest(x, 7)))(x)
        for n in range(2):
            trial = knn.Neighbours(np.asarray(found.values[n]), found.columns[n])
            check(trial, x[n], 7, atol=1e-12)


@pytest.mark.slow
def test_unit_and_cosines_have_finite_gradients():
    """That of a row of zeros, or of one that is too short to tell where it points, is zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    x[2], x[4] = 0, x[4] * 1e-20
    columns = jnp.asarray(rng.integers(6, size=(6, 3)))
    weights = rng.normal(size=(6, 3)).astype(np.float32)

    def energy(x):
        return (weights * knn.cosines(x, columns)).sum()

    def plain(x):
        rows = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        there = np.isin(np.arange(6), [2, 4], invert=True)
        both = there[:, None] & there[columns]
        return (
            weights * jnp.where(both, (rows @ rows.T)[jnp.arange(6)[:, None], columns], 0)
        ).sum()

    safe = np.where(np.isin(np.arange(6), [2, 4])[:, None], 1, x)
    values, gradient = jax.value_and_grad(energy)(jnp.asarray(x))
    expected, of_safe = jax.value_and_grad(plain)(jnp.asarray(safe))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, of_safe, atol=1e-5)
    assert (np.asarray(gradient)[[2, 4]] == 0).all()


@pytest.mark.parametrize("how", ["uniform", "cosine", "self_one"])
def test_graphs_of_neighbours_by_their_formulas(how):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(23, 5)).astype(np.float32)
    x[[4, 11]] = 0
    x[7] = -x[8] * 2
    found = knn.build(jnp.asarray(x), 22)
    options = {"uniform": dict(eps=1e-7), "self_one": dict(self_one=True)}.get(how, {})
    built = knn.weigh(found, "uniform" if how == "uniform" else "cosine", **options)
    assert built.dtype == np.float64
    values, columns = dense(x, 22)
    kept = np.full((23, 23), -np.inf)
    for row in range(23):
        there = np.isfinite(values[row])
        kept[row, columns[row][there]] = values[row][there]
    if how == "uniform":
        count = np.isfinite(kept).sum(1, keepdims=True)
        expected = np.where(np.isfinite(kept), 1 / (count + 1e-7), 0)
    else:
        similar = np.where(np.isfinite(kept), kept, 0)
        if how == "self_one":
            similar[np.arange(23), np.arange(23)] = np.isfinite(kept).any(1)
        sums = similar.sum(1)
        assert (sums < 0).any()  # such a row counts as one without edges
        scale = np.where(sums > 0, np.abs(np.where(sums, sums, 1)) ** -0.5, 0)
        expected = scale[:, None] * similar * scale
    np.testing.assert_allclose(built.toarray(), expected, atol=1e-5)
    assert (expected[[4, 11]] == 0).all()


@pytest.mark.slow
def test_a_graph_is_kept_under_its_content_and_made_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(19, 4)), jnp.float32)
    made, real = [], knn._nearest

    def nearest(x, k):
        made.append(k)
        return real(x, k)

    monkeypatch.setattr(knn, "_nearest", nearest)
    first = knn.build(x, 3, tmp_path)
    again = knn.build(jnp.array(x), 3, tmp_path)
    plain = knn.build(x, 3)
    for a, b, c in zip(first, again, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert made == [3, 3]  # once for the folder, once without one
    assert len(list(tmp_path.iterdir())) == 1
    changed = x.at[0, 0].add(1e-3)
    for rows, k in ((changed, 3), (x, 4), (x.reshape(38, 2), 3), (x[::-1], 3)):
        before = len(made)
        kept = knn.build(rows, k, tmp_path)
        assert len(made) == before + 1
        np.testing.assert_array_equal(kept.columns, knn.build(rows, k).columns)
    assert len(list(tmp_path.iterdir())) == 5


def test_features_in_bfloat16_are_kept_too(tmp_path):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(19, 4)), jnp.bfloat16)
    wide = knn.build(x.astype(jnp.float32), 3)
    for found in (knn.build(x, 3, folder) for folder in ("", tmp_path, tmp_path)):
        for a, b in zip(found, wide, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("k", [0, 5])
def test_a_number_of_neighbours_that_there_are_not(k):
    with pytest.raises(InputError, match=f"top_k={k} neighbours of 4 items.*between 1 and 4"):
        knn.build(jnp.ones((4, 2)), k)


@pytest.mark.slow
def test_unit_rows_are_torchs_down_to_rows_of_zeros():
    """Rows over their length, or over 1e-12 where they are shorter; zeros have no gradient here."""
    torch = pytest.importorskip("torch")
    rows = np.random.default_rng(0).normal(size=(5, 3))
    rows[1] *= 1e-11
    rows[2] *= 1e-14
    rows[3] *= 1e-30
    rows[4] = 0
    weights = np.random.default_rng(1).normal(size=(5, 3))
    given = torch.tensor(rows, requires_grad=True)
    wanted = torch.nn.functional.normalize(given)
    (wanted * torch.tensor(weights)).sum().backward()
    with jax.enable_x64(True):
        found, back = jax.vjp(unit, jnp.asarray(rows))
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-12)
        gradient = np.asarray(back(jnp.asarray(weights))[0])
    np.testing.assert_allclose(gradient[:4], given.grad.numpy()[:4], rtol=1e-9)
    assert not gradient[4].any()
    single = jax.grad(lambda x: (unit(x) * weights.astype(np.float32)).sum())
    assert np.isfinite(single(rows.astype(np.float32))).all()
