"""The import rule of the house: an arrow never runs upwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmjax"
LAYERS = (
    {"errors", "files", "bisection", "integers", "mesh", "partition", "lifting", "optimizer"}
    | {"heartbeat", "processes", "buckets", "checkpoint", "bucket_checkpoint", "progress"}
    | {"compilation", "unread", "modality"},
    {"data", "store", "sparse", "graph", "edges", "neighbours", "sampling", "journal"},
    {"encoders", "recommenders"},
    {"evaluation"},
    {"features", "ensemble", "assembly", "selection", "epochs", "setup", "loop", "train"}
    | {"explain"},
    {"sweep"},
    {"report", "gallery", "showcase", "ablation"},
)
# What a folder may use although the layer order alone would allow more or less.
ONLY = {
    "encoders": LAYERS[0] | {"graph", "encoders"},
    "recommenders": LAYERS[0] | {"sparse", "graph", "edges", "neighbours", "recommenders"},
    "evaluation": LAYERS[0] | {"evaluation"},
}
THIRD_PARTY = {"transformers": {"encoders"}, "torch": {"encoders"}, "orbax": {"checkpoint"}}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The house's room of a file: its folder or, at the top, its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = room(path)
    if here == "__init__":
        assert not imports(path)
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in THIRD_PARTY:
            assert here in THIRD_PARTY[parts[0]], f"{here} imports {parts[0]}"
        assert parts[0] not in {"absl", "ml_collections"}, f"{here} touches flags: {name}"
        if parts[0] != "mmjax" or len(parts) < 2 or parts[1] == "__version__":
            continue
        there = parts[1]
        if here in ONLY:
            assert there in ONLY[here], f"{here} imports {there}"
        elif there != here:
            assert level(there) <= level(here), f"{here} imports upwards: {there}"
            if level(there) == level(here):
                assert here not in {"data", "features"}, f"{here} imports its neighbour {there}"


def test_only_mesh_asks_for_devices():
    asking = {"devices", "local_devices", "make_mesh", "device_count", "local_device_count"}
    for path in MODULES:
        if room(path) == "mesh":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "jax":
                assert node.attr not in asking, f"{path} asks for devices"


def test_configs_import_only_common():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        known = ("configs.common", "ml_collections")
        if path.name == "common.py":  # it finds a sweep's training configs by their names
            known += ("copy", "importlib", "collections.abc", "typing")
        for name in imports(path):
            assert name.startswith(known), f"{path}: {name}"


def test_every_file_stays_readable():
    for path in [*MODULES, *sorted((ROOT / "scripts").rglob("*.py"))]:
        lines = len(path.read_text().splitlines())
        assert lines <= 320, f"{path} has {lines} lines"
