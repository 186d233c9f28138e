"""LATTICE against method.md 7.7 written out with dense matrices, in float64.

The formula builds its item graph from the parameters at the first step of an epoch and keeps that
of the first call at the others, which is what the gradient must agree with. MMRec's variant of two
modalities is compared with its dump in test_parity.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas
from support.formulas import unit

from mmjax.core.errors import InputError
from mmjax.recommenders import base, lattice

L_W, DIM, K = 0.3, 5, 4
CASES = {
    "elliot": dict(norm="both", normalize=True, self_one=True, skip=0.7, item_layers=2, layers=1),
    "mmrec, one modality": dict(skip=0.5, trainable_features=False),
}


def walk(catalog, p, options):
    bought = formulas.matrix(catalog)
    n_users, n_items = bought.shape
    whole = np.block([[np.eye(n_users), bought], [bought.T, np.eye(n_items)]])
    inverse = np.diag(1 / whole.sum(axis=1))
    whole = inverse @ whole @ (inverse if options.get("norm") == "both" else np.eye(len(whole)))
    state = total = np.vstack([p["user"], p["item"]])
    layers = options.get("layers", 2)
    for _ in range(layers):
        state = whole @ state
        state = unit(state) if options.get("normalize") else state
        total = total + state
    return np.split(total / (layers + 1), [n_users])


def item_graph(catalog, p, options, prefix="similar.", modalities=None):
    """S, dense; of the named modalities, numbered from 0."""

    def normalised(s):
        if options.get("self_one"):
            s = s - np.diag(np.diagonal(s)) + np.diag((s != 0).any(axis=1).astype(float))
        return formulas.by_row_sums(s)

    modalities = modalities or list(catalog.features)
    w = np.exp(p.get(f"{prefix}importance", np.zeros(len(modalities))))
    learned = frozen = 0
    for m, (name, share) in enumerate(zip(modalities, w / w.sum(), strict=True)):
        raw = np.asarray(catalog.features[name])
        path = f"{prefix}contents.{m}"
        x = p.get(f"{path}.features", raw) @ p[f"{path}.weight"].T + p[f"{path}.bias"]
        x = x * catalog.present[name][:, None]
        learned = learned + share * formulas.similar(x, K)
        frozen = frozen + share * normalised(formulas.similar(raw, K))
    skip = options.get("skip", 0.9)
    return (1 - skip) * normalised(learned) + skip * frozen


def formula(catalog, options):
    kept = []

    def compute(p, batch):
        built = item_graph(catalog, p, options)
        kept.append(built)
        users, items = walk(catalog, p, options)
        similar = p["item"]
        for _ in range(options.get("item_layers", 1)):
            similar = (kept[0] if batch["step"] else built) @ similar
        tables = users, items + unit(similar)
        rows = [tables[0][batch["user"]], tables[1][batch["pos"]], tables[1][batch["neg"]]]
        squares = sum(np.square(x).sum() for x in rows)
        return formulas.bpr(*tables, batch) + L_W / 2 * squares / len(batch["user"]), tables

    return compute


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [*((case, 0) for case in CASES), ("elliot", 3)])
def test_equals_the_formula(case, step):
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if "one" in case else []))
        options = CASES[case]
        formulas.check(
            lattice.LATTICE,
            catalog,
            dict(dim=DIM, top_k=K) | options,
            formula(catalog, options),
            step_number=step,
            l_w=L_W,
        )


def catalog_of(items, width):
    """One modality, features `width` wide, of this many items."""
    rng = np.random.default_rng(0)
    return base.Catalog(
        n_users=formulas.USERS,
        n_items=items,
        train_user=rng.integers(formulas.USERS, size=4 * items).astype(np.int32),
        train_item=np.arange(4 * items, dtype=np.int32) % items,
        train_rating=np.ones(4 * items, np.float32),
        features={"visual": rng.normal(size=(items, width)).astype(np.float32)},
    )


def programs(catalog, top_k):
    """The epoch's graph and a step's loss and gradient as functions, and their first arguments."""
    options, rng = dict(dim=DIM, top_k=top_k), np.random.default_rng(0)
    graphdef, rest, params, _ = formulas.build(lattice.LATTICE, catalog, options, rng)
    params = jax.tree.map(jnp.asarray, params)
    rows = jnp.arange(5)

    def build(params, rest):
        return nnx.merge(graphdef, nnx.State(params), rest).epoch(None)

    def step(params, rest, kept, number):
        batch = {"user": rows, "pos": rows, "neg": rows + 5, "step": number}

        def loss(params):
            model = nnx.merge(graphdef, nnx.State(params), rest)
            return model.loss(batch, kept, l_w=0.1, key=None)

        return jax.value_and_grad(loss)(params)

    return build, step, params, rest


@pytest.mark.slow
def test_more_neighbours_than_items_with_the_modality():
    """With 13 items, one without each modality, 13 neighbours are one too many."""
    with jax.enable_x64(True):
        build, _, params, rest = programs(formulas.catalog(), 13)
        kept = jax.jit(build)(params, rest)
        there = np.asarray(kept.there).reshape(13, 2, 13)
        absent = [formulas.ABSENT["visual"], formulas.ABSENT["textual"]]
        assert [set(there[:, m].sum(axis=1)) for m in (0, 1)] == [{0, 12}, {0, 12}]
        assert [np.flatnonzero(~there[:, m].any(axis=1)).item() for m in (0, 1)] == absent
        assert np.isfinite(kept.graph.forward.values).all()


@pytest.mark.slow
def test_no_matrix_of_items_by_items():
    build, step, params, rest = programs(catalog_of(1500, 3), K)
    kept = jax.eval_shape(build, params, rest)
    lowered = (
        jax.jit(build).lower(params, rest),
        jax.jit(step).lower(params, rest, kept, jnp.array(0)),
    )
    for program in lowered:
        assert program.compile().memory_analysis().temp_size_in_bytes < 4 * 1500**2


@pytest.mark.slow
def test_only_the_first_step_projects_features():
    """Outside a branch, none but the first step's, nothing multiplies features 37 wide."""
    build, step, params, rest = programs(catalog_of(40, 37), K)

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "cond":
                continue
            if eqn.primitive.name == "dot_general":
                yield from (v.aval.shape for v in [*eqn.invars, *eqn.outvars])
            for inner in jax.tree.leaves(list(eqn.params.values())):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from products(getattr(inner, "jaxpr", inner))

    found, kept = jax.make_jaxpr(build, return_shape=True)(params, rest)
    assert [shape for shape in products(found.jaxpr) if 37 in shape]  # such products are seen
    number = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr = jax.make_jaxpr(step)(params, rest, kept, number).jaxpr
    assert not [shape for shape in products(jaxpr) if 37 in shape]


@pytest.mark.slow
def test_options_that_cannot_be():
    with jax.enable_x64(True):
        with pytest.raises(InputError, match="did you mean 'both'"):
            lattice.LATTICE(formulas.catalog(), dim=4, norm="bot", rngs=nnx.Rngs(0))
        with pytest.raises(InputError, match="choose a number between 1 and 13"):
            lattice.LATTICE(formulas.catalog(), dim=4, top_k=14, rngs=nnx.Rngs(0))
