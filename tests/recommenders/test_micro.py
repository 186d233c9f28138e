"""MICRO against method.md 7.14 written out with dense matrices, in float64."""

import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from recommenders.test_lattice import item_graph, walk
from support import formulas
from support.formulas import unit

from mmjax.ops import pairwise
from mmjax.parallel import mesh as meshes
from mmjax.recommenders import micro

L_W, CL, TAU, DIM, K = 0.3, 0.7, 0.4, 5, 4
CASES = {
    "first step": dict(skip=0.6),
    "later step, two item layers": dict(item_layers=2),
    "one modality": dict(layers=0, skip=0.5),
}


def contrast(state, fused, there):
    """C of each item, 0 where it is not there."""
    same, both = (np.exp(unit(state) @ unit(z).T / TAU) for z in (state, fused))
    same = same - np.diag(np.diagonal(same))
    others = ((same + both) * there[None]).sum(axis=1)
    return np.where(there, np.log(others) - np.log(np.diagonal(both)), 0)


def formula(catalog, options):
    kept = []

    def compute(p, batch):
        built = [
            item_graph(catalog, p, options, f"similar.{m}.", [name])
            for m, name in enumerate(catalog.features)
        ]
        kept.append(built)
        users, items = walk(catalog, p, options)
        states = []
        for s in kept[0] if batch["step"] else built:
            state = p["item"]
            for _ in range(options.get("item_layers", 1)):
                state = s @ state
            states.append(state)
        hidden, query = p["attention.hidden.kernel"], p["attention.query.kernel"]
        logits = [np.tanh(e @ hidden + p["attention.hidden.bias"]) @ query for e in states]
        shares = np.exp(logits) / np.exp(logits).sum(axis=0)
        fused = (shares * states).sum(axis=0)
        tables = users, items + unit(fused)
        rows = [tables[0][batch["user"]], tables[1][batch["pos"]], tables[1][batch["neg"]]]
        loss = formulas.bpr(*tables, batch)
        loss += L_W / 2 * sum(np.square(x).sum() for x in rows) / len(batch["user"])
        for name, state in zip(catalog.features, states, strict=True):
            loss += CL * contrast(state, fused, catalog.present[name]).mean()
        return loss, tables

    return compute


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", 5)  # the last is not full
    with jax.enable_x64(True):
        catalog = formulas.catalog(*(["textual"] if case == "one modality" else []))
        formulas.check(
            micro.MICRO,
            catalog,
            dict(dim=DIM, top_k=K) | CASES[case],
            formula(catalog, CASES[case]),
            step_number=2 if "later" in case else 0,
            l_w=L_W,
            cl_weight=CL,
            temperature=TAU,
        )


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [1, 2])
def test_the_contrast_holds_a_block_at_a_time(monkeypatch, modalities):
    """Forwards and backwards, and does not depend on the blocks."""
    count, dim = 1000, 8
    states = tuple(jax.random.normal(jax.random.key(0), (2, count, dim)))[:modalities]

    def total(block):
        monkeypatch.setattr(pairwise, "BLOCK", block)

        def mean(states):
            return micro._contrast(states[0], states[-1], jnp.ones(count), 0.5).mean()

        return jax.jit(jax.value_and_grad(mean)).lower(states).compile()

    small, whole = total(64), total(count)
    assert small.memory_analysis().temp_size_in_bytes < 4 * count**2
    assert whole.memory_analysis().temp_size_in_bytes > 4 * count**2
    for one, other in zip(*(jax.tree.leaves(f(states)) for f in (small, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_the_derivative_of_the_contrast_among_a_modality_is_that_of_differences():
    """In x, the weights and the shift, each of its own making."""
    x = np.random.default_rng(0).normal(size=(7, 3))
    weight = np.linspace(0.5, 2, 7)
    with jax.enable_x64(True):
        jax.test_util.check_grads(pairwise.other_sums, (x, weight, 0.3), order=1, modes=["rev"])


@pytest.mark.slow
def test_a_contrast_of_small_temperature_overflows_nowhere():
    state = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    state = state.at[2].set(0)  # an item without the modality
    there = (jnp.arange(6) != 2).astype(jnp.float32)

    def total(state):
        return (there * micro._contrast(state, -state, there, 0.05)).mean()

    value, gradient = jax.value_and_grad(total)(state)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [1, 2])
def test_devices_share_the_contrast(modalities, monkeypatch):
    """Each computes an eighth of the pairs, and all get the numbers of one device."""
    monkeypatch.setattr(pairwise, "BLOCK", 64)
    states = tuple(jax.random.normal(jax.random.key(0), (2, 1001, 8)))[:modalities]

    def mean(states):
        return micro._contrast(states[0], states[-1], jnp.ones(1001), 0.5).mean()

    step = jax.jit(jax.value_and_grad(mean))
    alone = step.lower(states).compile()
    with meshes.use(meshes.make("data=2,model=4")):
        shared = step.lower(states).compile()
    turns = [
        set(re.findall(r'known_trip_count":{"n":"(\d+)"', c.as_text())) for c in (alone, shared)
    ]
    assert turns == ([{"136"}, {"17"}] if modalities == 1 else [{"136", "16"}, {"17", "2"}])
    for one, other in zip(*(jax.tree.leaves(f(states)) for f in (shared, alone)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)
