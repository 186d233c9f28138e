"""What the authors' code draws each parameter from, and whether numbers look drawn from that.

`PYTHONPATH=.:tests python tests/support/starts.py` prints the table: model, preset, parameter,
the authors' distribution, and mean, deviation and bound of theirs and ours on a small world.
"""

import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from mmjax.recommenders import base as core
from mmjax.recommenders import registry
from support.dumps import _flat

# What a torch initialiser draws. `linear` is what a Linear has unless its code says otherwise.
XU, XN, LINEAR, NORMAL, TENTH = "xavier_uniform", "xavier_normal", "linear", "normal", "normal0.1"
ZEROS, EQUAL, GIVEN = "zeros", "1 / modalities", "the features"
SHARES = "softmax of xavier_normal"


class Side(NamedTuple):
    """A table of several that were drawn apart: side by side, or one above the other."""

    axis: int
    parts: tuple[tuple[int, str], ...]  # width of each (0: equal parts) and its kind


TABLES = {"user|item": XU}
WORLD = dict(users=300, items=200, widths={"visual": 80, "textual": 48})


def linear(path: str, weight: str = LINEAR, bias: str | None = LINEAR) -> dict[str, Any]:
    return {rf"{path}\.kernel": weight} | ({rf"{path}\.bias": bias} if bias else {})


def content(
    path: str, weight: str = LINEAR, bias: str | None = LINEAR, trained: bool = True
) -> dict[str, Any]:
    found = {rf"{path}\.weight": weight} | ({rf"{path}\.bias": bias} if bias else {})
    return found | ({rf"{path}\.features": GIVEN} if trained else {})


def head(user: str = XU) -> dict[str, Any]:
    return {r"head\.user": user} | content(r"head\.content", trained=False)


ATTENTION = linear(r"attention\.hidden") | linear(r"attention\.query", bias=None)
TOWERS = (
    {r"towers\.preferences\.\d": XN, r"towers\.shares": SHARES}
    | content(r"towers\.hidden\.\d", trained=False)
    | linear(r"towers\.out\.\d")
)
NGCF = TABLES | {r"layers\.\d\.(weight|bias)\d": XU}
MICRO = {
    rf"similar\.\d\.{path}": kind for path, kind in content(r"contents\.0").items()
} | ATTENTION


def mmgcn(kind: str, merge: str) -> dict[str, Any]:
    layers = r"modalities\.\d\.layers\.\d"
    return (
        {"user|item": kind, r"modalities\.\d\.preference": kind}
        | content(r"modalities\.\d\.content", trained=False)
        | linear(rf"{layers}\.message", kind, None)
        | linear(rf"{layers}\.own", kind)
        | linear(r"modalities\.\d\.layers\.0\.merge", kind)
        | linear(r"modalities\.\d\.layers\.[1-9]\.merge", merge)
    )


def grcn(kind: str, projection: str) -> dict[str, Any]:
    every = {"node": kind, "confidence": kind, r"preferences\.\d": kind}
    return every | content(r"contents\.\d", projection, trained=False)


# Model -> (presets, the file that says so, parameters by pattern). MMRec is enoche/MMRec e775373;
# Formal is sisinflab/Formal-MultiMod-Rec, Missing sisinflab/Graph-Missing-Modalities.
AUTHORS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "bprmf": [
        ("default mmrec", "MMRec bpr.py", {"user|item": XN}),
        ("elliot", "Elliot BPRMF_batch_model.py", {"user|item": XU, "bias": ZEROS}),
    ],
    "lightgcn": [
        ("default mmrec", "MMRec lightgcn.py", TABLES),
        ("elliot", "Elliot LightGCNModel.py", {"user|item": TENTH}),
    ],
    "lightgcnm": [
        ("default elliot", "Formal LightGCNMModel.py", {"user": XU} | content(r"contents\.\d")),
        ("head", "Missing LightGCNMModel.py", {"user|item": TENTH} | head()),
    ],
    "vbpr": [
        ("default mmrec", "MMRec vbpr.py", TABLES | content("content", XN, ZEROS, trained=False)),
        (
            "elliot",
            "Formal VBPRModel.py",
            {"user": Side(1, ((0, XU), (0, NORMAL))), "item": XU}
            | content("content", trained=False),
        ),
    ],
    "bm3": [
        (
            "default mmrec elliot",
            "MMRec bm3.py, Formal BM3Model.py",
            TABLES | content(r"contents\.\d", XN) | linear("predictor", XN),
        )
    ],
    "freedom": [
        (
            "default mmrec elliot",
            "MMRec freedom.py, Formal FREEDOMModel.py",
            TABLES | content(r"contents\.\d"),
        )
    ],
    "lattice": [
        (
            "default mmrec elliot",
            "MMRec lattice.py, Formal LATTICEModel.py",
            TABLES | content(r"similar\.contents\.\d") | {r"similar\.importance": EQUAL},
        )
    ],
    "micro": [("default authors", "method of MICRO: its file was not read", TABLES | MICRO)],
    "mgcn": [
        (
            "default mmrec elliot",
            "MMRec mgcn.py, Missing MGCNModel.py",
            TABLES
            | content(r"contents\.\d")
            | linear(r"gates\.\d")
            | linear(r"prefers\.\d")
            | ATTENTION,
        )
    ],
    "ngcf": [("default elliot", "Elliot NGCFModel.py, NGCFLayer.py", NGCF)],
    "ngcfm": [("default elliot", "Elliot NGCFMModel.py", NGCF | head())],
    "sgl": [("default elliot", "Elliot SGLModel.py", TABLES)],
    "simgcl": [("default elliot", "Elliot SimGCLModel.py", TABLES)],
    "layergcn": [("default mmrec", "MMRec layergcn.py", TABLES)],
    "selfcf": [("default mmrec", "MMRec selfcfed_lgn.py", TABLES | linear("predictor"))],
    "slmrec": [
        (
            "default mmrec",
            "MMRec slmrec.py",
            TABLES
            | content(r"contents\.\d", XU, trained=False)
            | linear("fuse_(users|items)", XU)
            | linear(r"steps\.\d", XU)
            | linear(r"heads\.\d", XU, None),
        )
    ],
    "smore": [
        (
            "default mmrec",
            "MMRec smore.py",
            TABLES
            | content(r"contents\.\d")
            | {"filters": NORMAL}
            | linear(r"(gates|prefers|hidden)\.\d")
            | linear(r"queries\.\d", bias=None),
        )
    ],
    "dualgnn": [("default mmrec", "MMRec dualgnn.py", TOWERS)],
    "dragon": [("default mmrec", "MMRec dragon.py", TOWERS)],
    "lgmrec": [
        (
            "default mmrec",
            "MMRec lgmrec.py",
            TABLES | {r"contents\.\d\.weight": Side(0, ((64, XU), (4, XU)))},
        )
    ],
    "pgl": [
        (
            "default mmrec",
            "MMRec pgl.py",
            {"user": Side(1, ((0, XU), (0, XU)))} | content(r"contents\.\d"),
        )
    ],
    "grcn": [
        ("default mmrec", "MMRec grcn.py", grcn(XN, XN)),
        (
            "elliot",
            "Formal GRCNModel.py",
            grcn(XU, LINEAR) | {"node": Side(0, ((300, XU), (0, XU)))},
        ),
    ],
    "mmgcn": [
        ("default mmrec", "MMRec mmgcn.py", mmgcn(XN, LINEAR) | {"user|item": XN + " of both"}),
        ("elliot", "Formal MMGCNModel.py", mmgcn(XU, XU)),
    ],
}


def cases() -> list[tuple[str, str]]:
    """List every trained model with every preset that its config has."""
    return [(model, preset) for model, rows in AUTHORS.items() for preset in presets(rows)]


def presets(rows: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    return [preset for names, *_ in rows for preset in names.split()]


def expected(model: str, preset: str) -> tuple[str, dict[str, Any]]:
    """Return the authors' file, and the kinds of a preset's parameters by pattern."""
    return next((file, kinds) for names, file, kinds in AUTHORS[model] if preset in names.split())


def start(model: str, preset: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Return what a preset's parameters start as, by path, the untrained ones among them."""
    config = importlib.import_module(f"configs.{model}").get_config(preset).to_dict()
    recommender = registry.find(config["recommender"])
    shaping, _ = registry.split_options(recommender, config["model"])
    model = recommender(catalog(), **shaping, rngs=nnx.Rngs(params=seed))
    _, params, drawn, _ = nnx.split(model, nnx.Param, core.Drawn, ...)
    both = {**_flat(nnx.to_pure_dict(params)), **_flat(nnx.to_pure_dict(drawn))}
    return {path: np.asarray(value) for path, value in both.items() if path != "seed"}


def catalog() -> core.Catalog:
    rng = np.random.default_rng(0)
    users, items = WORLD["users"], WORLD["items"]
    user, item = np.nonzero(rng.random((users, items)) < 0.05)
    features = {
        name: rng.normal(size=(items, width)).astype(np.float32)
        for name, width in WORLD["widths"].items()
    }
    ones = np.ones(len(user), np.float32)
    pairs = user.astype(np.int32), item.astype(np.int32)
    return core.Catalog(users, items, *pairs, ones, features)


def given(world: core.Catalog) -> list[np.ndarray]:
    """List the features that a parameter may start as: each modality's, all side by side."""
    every = [np.asarray(rows) for rows in world.features.values()]
    return [*every, np.concatenate(every, axis=1)]


def pieces(path: str, value: np.ndarray, kind: Any) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield the parts of a parameter that were drawn apart: name, values, kind."""
    if not isinstance(kind, Side):
        yield path, value, kind
        return
    ends = np.cumsum([width for width, _ in kind.parts])[:-1]
    cuts = ends if kind.parts[0][0] else len(kind.parts)
    blocks = np.split(value, cuts, axis=kind.axis)
    for n, (block, (_, own)) in enumerate(zip(blocks, kind.parts, strict=True)):
        yield f"{path}[{n}]", block, own


def inputs(path: str, every: dict[str, np.ndarray]) -> int:
    """Count the inputs of the linear layer that a path belongs to."""
    base = path.split("[")[0].rpartition(".")[0]
    kernel, weight = every.get(f"{base}.kernel"), every.get(f"{base}.weight")
    return kernel.shape[0] if kernel is not None else weight.shape[1]


def law(
    path: str, value: np.ndarray, kind: str, every: dict[str, np.ndarray], nodes: int
) -> tuple[float, float, float | None]:
    """Return mean, deviation and bound (None without one) of what a kind draws here."""
    if kind in (ZEROS, EQUAL):
        constant = 0.0 if kind == ZEROS else 1 / value.size
        return constant, 0.0, constant
    if kind == LINEAR:
        bound = inputs(path, every) ** -0.5
        return 0.0, bound / 3**0.5, bound
    if kind in (NORMAL, TENTH):
        return 0.0, 1.0 if kind == NORMAL else 0.1, None
    rows, columns = value.shape
    if kind.endswith(" of both"):
        rows = nodes
    deviation = (2 / (rows + columns)) ** 0.5
    return 0.0, deviation, 3**0.5 * deviation if kind == XU else None


def faults(value: np.ndarray, mean: float, deviation: float, bound: float | None) -> list[str]:
    """List in what numbers differ from those of a law by more than chance would."""
    found, size = [], value.size
    if deviation == 0:
        return [] if np.allclose(value, mean, atol=0) else [f"not {mean:.4f} throughout"]
    if abs(value.mean() - mean) > 5 * deviation / size**0.5:
        found.append(f"mean {value.mean():.4f} is not {mean:.4f}")
    spread = 0.45 if bound is not None else 0.71  # of the deviation's own, times sqrt(size)
    if abs(value.std() / deviation - 1) > 5 * spread / size**0.5:
        found.append(f"deviation {value.std():.4f} is not {deviation:.4f}")
    largest = np.abs(value - mean).max()
    if bound is not None and not bound * (1 - 15 / size) <= largest <= bound * (1 + 1e-5):
        found.append(f"largest {largest:.4f} is not just within {bound:.4f}")
    if bound is None and size >= 500 and largest < 2.6 * deviation:
        found.append(f"largest {largest:.4f}: it has a bound that a normal does not have")
    return found


def check(
    every: dict[str, np.ndarray], kinds: dict[str, Any], features: list[np.ndarray], nodes: int
) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yield each parameter's name, kind and values, and what is wrong with them."""
    unused = set(kinds)
    for path, value in every.items():
        # Later patterns are exceptions to earlier ones.
        found = [pattern for pattern in kinds if re.fullmatch(pattern, path)]
        if not found:
            yield path, "?", value, ["the authors' table does not have it"]
            continue
        unused.discard(found[-1])
        for name, block, kind in pieces(path, value, kinds[found[-1]]):
            if kind == GIVEN:
                same = any(block.shape == f.shape and (block == f).all() for f in features)
                yield name, kind, block, [] if same else ["not the features"]
            elif kind == SHARES:
                rows = block.reshape(len(block), -1)
                gap = np.log(rows[:, 0] / rows[:, 1])
                wrong = faults(gap, 0.0, 2 / (len(rows) + 2) ** 0.5, None)
                wrong += [] if np.allclose(rows.sum(axis=1), 1) else ["rows do not add up to 1"]
                yield name, kind, block, wrong
            else:
                yield name, kind, block, faults(block, *law(name, block, kind, every, nodes))
    for pattern in unused:
        yield pattern, kinds[pattern], np.zeros(0), ["no parameter has this name"]


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the table's rows: model, preset, parameter, file, the authors' law, ours, alike."""
    world, nodes = catalog(), WORLD["users"] + WORLD["items"]
    features = given(world)
    for model, preset in cases():
        file, kinds = expected(model, preset)
        every = start(model, preset)
        for name, kind, value, wrong in check(every, kinds, features, nodes):
            theirs = str(kind)
            if kind not in (GIVEN, SHARES):
                mean, deviation, bound = law(name, value, kind, every, nodes)
                theirs += f": {mean:.4f} ± {deviation:.4f}"
                theirs += f", within {bound:.4f}" if bound is not None else ""
            ours = f"{value.mean():.4f} ± {value.std():.4f}, within {np.abs(value).max():.4f}"
            yield model, preset, name, file, theirs, ours, "; ".join(wrong) or "yes"


if __name__ == "__main__":
    print("| model | preset | parameter | the authors' file | their law | ours | alike |")
    print("|:--|:--|:--|:--|:--|:--|:--|")
    for row in rows():
        print(f"| {' | '.join(row)} |", flush=True)
