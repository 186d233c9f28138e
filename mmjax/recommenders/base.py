"""The recommender contract, and the losses and initialisers that the models share.

A recommender is an `nnx.Module` in a module of its own:

    __init__(catalog, *, ..., rngs)      keyword arguments that SHAPE the program
    loss(batch, epoch, *, ..., key)      keyword arguments that are TRACED: a sweep never recompiles
    epoch(key) -> arrays                 optional: what is redrawn or rebuilt each epoch
    tables() -> arrays                   whatever does not depend on the batch, once an evaluation
    scores(tables, batch) -> [B, I]      batch["user"] is [B]

A training batch holds "user", "pos" and "neg", each [B], and "step", its number in the epoch. What
training changes is an `nnx.Param`; features and graphs are `Frozen` and shared by all trials;
`Drawn` is random, one a trial, and never trained. A recommender without `loss` (MostPop, ItemKNN)
is ready when it is built.
"""

import difflib
import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.core.errors import InputError
from mmjax.ops import knn
from mmjax.parallel.lazy_features import Unread, by_rows

# Of this folder, what is no recommender.
SHARED = ("base", "layers")


class Frozen(nnx.Variable):
    """Never changes and does not depend on the seed: features, graphs, counts."""


class Drawn(nnx.Variable):
    """Drawn from the trial's seed at initialisation and never trained."""


@dataclass(frozen=True)
class Catalog:
    """All that a recommender may know: sizes, train interactions, item features by modality."""

    n_users: int
    n_items: int
    train_user: np.ndarray  # [E] int32, sorted by user, then item
    train_item: np.ndarray  # [E] int32
    train_rating: np.ndarray  # [E] float32
    features: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I, F], absent rows 0
    present: Mapping[str, Any] = field(default_factory=dict)  # modality -> [I] bool
    cache: str = ""  # folder that keeps graphs of the features; "" keeps none
    mesh: Any = None  # whose devices share the work of building such graphs

    @classmethod
    def of(
        cls,
        data: Any,
        features: Mapping[str, Any],
        present: Mapping[str, Any],
        cache: str = "",
        mesh: Any = None,
    ) -> "Catalog":
        """The catalogue of a dataset, which has `n_users`, `n_items` and `train`."""
        train = (data.train.user, data.train.item, data.train.rating)
        return cls(data.n_users, data.n_items, *train, features, present, cache, mesh)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_users, self.n_items

    def concatenated(self) -> jax.Array | Unread:
        """All modalities side by side in their order, [I, F1 + F2 + ...].

        Raises:
          InputError: there is no modality.
        """
        self.modalities()
        beside = lambda *rows: jnp.concatenate(rows, axis=1)  # noqa: E731
        return by_rows(beside, *self.features.values())

    def modalities(self) -> tuple[str, ...]:
        """Their names, in their order.

        Raises:
          InputError: there is none, or one does not have a row for each item, holds what is not a
            number, or nothing but zeros.
        """
        if not self.features:
            raise InputError(
                "this recommender needs item features; give --config.features=NAME=STORE"
            )
        for name, rows in self.features.items():
            if rows.ndim != 2 or rows.shape[0] != self.n_items:
                raise InputError(
                    f"features {name!r} have the shape {tuple(rows.shape)}; there are "
                    f"{self.n_items} items, each needs one row"
                )
            if isinstance(rows, Unread):
                finite, some = True, rows.some()  # what is not finite cannot be read
            else:
                with jax.ensure_compile_time_eval():
                    finite, some = map(bool, _looked_at(jnp.asarray(rows)))
            if not finite:
                raise InputError(
                    f"features {name!r} hold NaN or infinite values; extract them again"
                )
            if not some:
                raise InputError(f"features {name!r} are all zero; leave this modality out")
        return tuple(self.features)

    def neighbours(self, modality: str, top_k: int) -> knn.Neighbours:
        """The `top_k` items most similar to each in a modality, by cosine; see `neighbours.build`.

        Raises:
          InputError: there is no such modality, or `top_k` is not between 1 and I.
        """
        if modality not in self.features:
            raise InputError(f"no features {modality!r}{suggestion(modality, self.features)}")
        with jax.ensure_compile_time_eval():
            return knn.build(self.features[modality], top_k, self.cache, self.mesh)


@jax.jit
def _looked_at(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether all values are finite, and whether any is not zero. Compiled, so nothing is copied.

    Not the largest value in one go: on CPU, XLA's maximum of several NaN can be a number.
    """
    return jnp.isfinite(rows).all(), (rows != 0).any()


def find(name: str) -> type[nnx.Module]:
    """The recommender class of a module: `vbpr` here, or `my_package.my_model` anywhere.

    Raises:
      InputError: no such module, or not exactly one recommender in it.
    """
    path = name if "." in name else f"mmjax.recommenders.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
        here = [file.name for file in pkgutil.iter_modules([os.path.dirname(__file__)])]
        known = [file for file in here if file not in SHARED]
        raise InputError(f"no recommender {name!r}{suggestion(name, known)}") from None
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, nnx.Module)
        and value.__module__ == module.__name__
        and hasattr(value, "scores")
    ]
    if len(classes) != 1:
        raise InputError(f"{path} holds {len(classes)} recommenders; it must hold exactly one")
    return classes[0]


def split_options(
    recommender: type[nnx.Module], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sorts options into those of `__init__` and those of `loss`, by the two signatures.

    Raises:
      InputError: an option that neither takes, or one that has no default and is not given.
    """
    signatures = {"__init__": _keywords(recommender.__init__, skip={"rngs"})}
    if hasattr(recommender, "loss"):
        signatures["loss"] = _keywords(recommender.loss, skip={"key"})
    known = [name for names in signatures.values() for name in names]
    for name in options:
        if name not in known:
            raise InputError(
                f"{recommender.__name__} has no option {name!r}{suggestion(name, known)}"
            )
    for names in signatures.values():
        for name, parameter in names.items():
            if parameter.default is inspect.Parameter.empty and name not in options:
                raise InputError(f"{recommender.__name__} needs the option {name!r}")
    shaping = {k: v for k, v in options.items() if k in signatures["__init__"]}
    defaults = {k: p.default for k, p in signatures.get("loss", {}).items()}
    return shaping, {k: options.get(k, default) for k, default in defaults.items()}


def _keywords(function: Any, skip: set[str]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {k: p for k, p in parameters if p.kind == keyword_only and k not in skip}


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """`value`, if it is one of `allowed`.

    Raises:
      InputError: it is not.
    """
    if value not in allowed:
        raise InputError(f"{name}={value!r}{suggestion(value, allowed)}")
    return value


# Losses. `margin` is s(u, i) - s(u, j), [B].


def bpr(margin: jax.Array, kind: str, offset: float = 1e-10) -> jax.Array:
    """Bayesian personalised ranking, mean over the batch.

    `softplus` is -log sigmoid(margin) and stays exact for any margin (Elliot clips it at -80);
    `offset` is MMRec's -log(1e-10 + sigmoid(margin)); others add more.
    """
    if kind == "softplus":
        return jax.nn.softplus(-margin).mean()
    return -jnp.log(offset + jax.nn.sigmoid(margin)).mean()


def penalty(rows: Iterable[jax.Array], kind: str) -> jax.Array:
    """Regulariser of gathered rows, each [B, D], repeated rows counted each time.

    `squares` is Elliot's half sum of squares over B; `norms` is MMRec's EmbLoss, the sum of the
    Frobenius norms (not squared) over B.
    """
    rows = list(rows)
    if kind == "squares":
        total = sum(0.5 * jnp.square(x).sum() for x in rows)
    else:
        total = sum(jnp.sqrt(jnp.square(x).sum()) for x in rows)
    return total / rows[-1].shape[0]


LOSSES = ("softplus", "offset")
PENALTIES = ("squares", "norms")


# Initialisers with the meaning of their torch names on a table or weight [in, out].

BIASES = ("linear", "zeros")


def init_table(kind: str, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """`xavier_uniform`, `xavier_normal`, `normal` (sd 1), `normal0.1` (sd 0.1) or `linear`
    (torch's default for a Linear's weight: uniform within 1/sqrt(in))."""
    rows, columns = shape
    if kind == "xavier_uniform":
        bound = (6 / (rows + columns)) ** 0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    if kind == "linear":
        return jax.random.uniform(key, shape, minval=-(rows**-0.5), maxval=rows**-0.5)
    scale = {"xavier_normal": (2 / (rows + columns)) ** 0.5, "normal": 1.0, "normal0.1": 0.1}
    return scale[choice("init", kind, ("xavier_uniform", "linear", *scale))] * jax.random.normal(
        key, shape
    )


def init_tables(
    kind: str, rngs: nnx.Rngs, shape: tuple[int, int], dim: int, joint: bool
) -> list[jax.Array]:
    """Draw tables of users [U, D] and items [I, D], as one table of both where `joint`.

    Xavier's deviation goes by the number of rows: one table has smaller entries than two.
    """
    if joint:
        whole = init_table(kind, rngs.params(), (sum(shape), dim))
        return jnp.split(whole, [shape[0]])
    return [init_table(kind, rngs.params(), (rows, dim)) for rows in shape]


def init_bias(kind: str, key: jax.Array, inputs: int, size: int) -> jax.Array:
    """Draw the bias [size] of a linear layer with `inputs` inputs.

    `linear` is torch's default for a Linear's bias, uniform within 1/sqrt(inputs): what it has
    unless its code says otherwise, whatever the weight is drawn from. `zeros` is the other kind.
    """
    bound = inputs**-0.5 if choice("bias", kind, BIASES) == "linear" else 0.0
    return jax.random.uniform(key, (size,), minval=-bound, maxval=bound)
