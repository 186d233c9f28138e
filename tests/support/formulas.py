"""A small catalogue, and the check of a recommender against its formula written out in NumPy.

The catalogue has a user without history, an item that nobody has and an item without a modality.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.recommenders import base
from support.dumps import _flat, close

USERS, ITEMS = 20, 13
WIDTHS = {"visual": 9, "textual": 6}
ABSENT = {"visual": 4, "textual": 7}  # the item without each


def catalog(*modalities: str) -> base.Catalog:
    """With both modalities, or the named ones."""
    rng = np.random.default_rng(0)
    bought = rng.random((USERS, ITEMS)) < 0.3
    bought[USERS - 1] = bought[:, ITEMS - 1] = False
    user, item = np.nonzero(bought)
    features = {m: rng.normal(size=(ITEMS, width)) for m, width in WIDTHS.items()}
    present = {m: np.arange(ITEMS) != ABSENT[m] for m in features}
    names = modalities or tuple(WIDTHS)
    return base.Catalog(
        n_users=USERS,
        n_items=ITEMS,
        train_user=user.astype(np.int32),
        train_item=item.astype(np.int32),
        train_rating=np.ones(len(user), np.float32),
        features={m: features[m] * present[m][:, None] for m in names},
        present={m: present[m] for m in names},
    )


def matrix(catalog: base.Catalog) -> np.ndarray:
    """R [U, I], zeros and ones."""
    bought = np.zeros(catalog.shape)
    bought[catalog.train_user, catalog.train_item] = 1
    return bought


def unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def bpr(users: np.ndarray, items: np.ndarray, batch: dict) -> float:
    margin = (users[batch["user"]] * (items[batch["pos"]] - items[batch["neg"]])).sum(1)
    return np.log1p(np.exp(-margin)).mean()


def mean_squares(x: np.ndarray) -> float:
    return np.square(x).mean()


def build(recommender, catalog: base.Catalog, options: dict, rng) -> tuple:
    """Made as `ensemble` makes it, traced: graphdef, frozen state, and random numbers in place of
    what is trained and of what is drawn."""
    frozen = {}

    def draw(key):
        model = recommender(catalog, **options, rngs=nnx.Rngs(params=key))
        frozen["graphdef"], *states, frozen["rest"] = nnx.split(model, nnx.Param, base.Drawn, ...)
        return [nnx.to_pure_dict(state) for state in states]

    shapes = jax.eval_shape(draw, jax.random.key(0))
    moved = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)
    return frozen["graphdef"], frozen["rest"], *moved


def similar(x: np.ndarray, k: int) -> np.ndarray:
    """The k largest cosines of each row, the rest zero, [I, I]; rows of zeros have none."""
    found = unit(x) @ unit(x).T
    there = np.abs(x).max(axis=1) > 0
    ranked = np.where(there[None], found, -np.inf)
    kept = np.zeros_like(found)
    for row in np.flatnonzero(there):
        best = [n for n in np.argsort(-ranked[row], kind="stable")[:k] if there[n]]
        kept[row, best] = found[row, best]
    return kept


def by_row_sums(s: np.ndarray) -> np.ndarray:
    """D^-1/2 S D^-1/2 with the row sums D on both sides."""
    sums = s.sum(axis=1)
    scale = np.where(sums > 0, np.where(sums > 0, sums, 1) ** -0.5, 0)
    return scale[:, None] * s * scale[None]


def adjacency(catalog: base.Catalog) -> np.ndarray:
    """D^-1/2 A D^-1/2 of users and items, [U + I, U + I]."""
    bought = matrix(catalog)
    users, items = (np.zeros((n, n)) for n in bought.shape)
    return by_row_sums(np.block([[users, bought], [bought.T, items]]))


def info_nce(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    logits = unit(a) @ unit(b).T / temperature
    return (np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)).mean()


def check(
    recommender,
    catalog: base.Catalog,
    options: dict,
    formula,
    *,
    epoch=None,
    step_number=0,
    **hypers,
):
    """Loss, scores and gradient in float64, at random parameters.

    Where `epoch` is None and the recommender has one, it is what that gives.

    `formula(p, batch)` gives the loss, and the tables of users and items at evaluation, from what
    is trained and drawn by the dotted paths. Gradients are compared along two random directions in
    each parameter with the central difference of the formula.
    """
    rng = np.random.default_rng(1)
    graphdef, rest, params, drawn = build(recommender, catalog, options, rng)
    batch = {
        "user": rng.integers(USERS, size=24),
        "pos": rng.integers(ITEMS, size=24),
        "neg": rng.integers(ITEMS, size=24),
        "step": np.array(step_number),
    }

    @jax.jit
    def compute(params, drawn, batch):
        def model_of(params):
            return nnx.merge(graphdef, nnx.State(params), nnx.State(drawn), rest)

        model, redrawn = model_of(params), epoch
        if redrawn is None:
            redrawn = model.epoch(jax.random.key(0)) if hasattr(model, "epoch") else {}

        def loss(params):
            return model_of(params).loss(batch, redrawn, **hypers, key=jax.random.key(0))

        scores = model.scores(model.tables(), {"user": jnp.arange(USERS)})
        return *jax.value_and_grad(loss)(params), scores

    value, gradients, scores = compute(params, drawn, batch)
    assert value.dtype == np.float64
    start = _flat(params) | _flat(drawn)
    want, (users, items) = formula(start, batch)
    close(value, want, 1e-9, "loss")
    close(scores, users @ items.T, 1e-9, "scores")

    step = 1e-6
    for path, gradient in _flat(gradients).items():
        for _ in range(2):
            direction = rng.normal(size=gradient.shape)
            ends = [
                formula(start | {path: start[path] + side * step * direction}, batch)[0]
                for side in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert abs((gradient * direction).sum() - slope) < 1e-7 * max(1, abs(slope)), path
