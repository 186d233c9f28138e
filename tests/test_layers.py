"""The house's rule: a room imports only rooms before it, and files of a room form no circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmjax"
ORDER = (
    "core",
    "parallel",
    "ops",
    "data",
    "store",
    "encoders",
    "recommenders",
    "evaluation",
    "features",
    "training",
    "sweep",
    "report",
)
# What these must not know, though it comes before them: models run without files of data.
WITHOUT = {
    "encoders": {"data", "store"},
    "recommenders": {"data", "store", "encoders"},
    "evaluation": {"data", "store", "encoders", "recommenders"},
}
THIRD_PARTY = {"transformers": {"encoders"}, "torch": {"encoders"}, "orbax": {"training"}}
LONGEST_CHAIN = 12
LONGEST_FILE = 300  # lines that are not docstrings


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by dotted name."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(path: Path, *, later: bool = True) -> list[str]:
    """Return the dotted names that a file imports; without `later`, only when it is loaded."""
    tree, names = ast.parse(path.read_text()), []
    for node in ast.walk(tree) if later else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def faults(package: Path) -> list[str]:
    """Return what breaks the rule, a sentence each."""
    known, said = modules(package), []
    arrows = {}
    for module, path in known.items():
        found = set()
        for name in imports(path, later=False):
            while name and name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
        arrows[module] = sorted(found - {"", "mmjax", module})
        parts = module.split(".")
        if len(parts) == 1:
            continue
        here = parts[1]
        if here not in ORDER:
            said.append(f"{here} has no place in ORDER")
            continue
        for name in imports(path):
            top, *rest = name.split(".")
            if here not in THIRD_PARTY.get(top, {here}):
                said.append(f"{module} imports {top}")
            if top in {"absl", "ml_collections"}:
                said.append(f"{module} touches flags: {name}")
            if top != "mmjax" or rest in ([], ["__version__"]):
                continue
            there = rest[0]
            if there != here and ORDER.index(there) > ORDER.index(here):
                said.append(f"{module} imports upwards: {name}")
            if there in WITHOUT.get(here, ()):
                said.append(f"{module} must not know {there}: {name}")
            if there != here and any(part.startswith("_") for part in rest):
                said.append(f"{module} imports another room's private name: {name}")
    return said + circles(arrows)


def circles(arrows: dict[str, list[str]]) -> list[str]:
    """Return the circles of a graph, and chains that are too long."""
    said, path = [], []

    @cache
    def longest(module: str) -> int:
        path.append(module)
        lengths = [0]
        for other in arrows[module]:
            if other in path:
                said.append("circle: " + " -> ".join([*path[path.index(other) :], other]))
            else:
                lengths.append(longest(other))
        path.pop()
        return 1 + max(lengths)

    return said + [
        f"{module} ends a chain of {longest(module)} files"
        for module in arrows
        if longest(module) > LONGEST_CHAIN
    ]


@pytest.mark.slow
def test_the_house():
    assert faults(PACKAGE) == []


def test_every_room_has_its_place():
    rooms = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert sorted(rooms) == sorted(ORDER)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert set(imports(PACKAGE / "__init__.py")) == set()


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("data/a.py", "from mmjax.store import x", "imports upwards"),
        ("parallel/a.py", "from mmjax.ops import x", "imports upwards"),  # sideways in the drawing
        ("data/a.py", "from mmjax.data import b", "circle: mmjax.data.a -> mmjax.data.b"),
        ("store/a.py", "from mmjax.data.b import _x", "private name"),
        ("evaluation/a.py", "from mmjax.data import b", "must not know data"),
        ("data/a.py", "import absl.flags", "touches flags"),
        ("data/a.py", "import torch", "imports torch"),
        ("attic/a.py", "", "no place in ORDER"),
    ],
)
def test_planted_faults_are_found(tmp_path, name, text, fault):
    files = {f"{room}/__init__.py": "" for room in ORDER}
    files |= {"__init__.py": "", "data/b.py": "from mmjax.data import a", name: text}
    files.setdefault("data/a.py", "")
    for place, content in files.items():
        (tmp_path / "mmjax" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mmjax" / place).write_text(content)
    said = faults(tmp_path / "mmjax")
    assert len(said) == 1
    assert fault in said[0]


def test_long_chains_are_found():
    chain = {str(n): [str(n + 1)] for n in range(LONGEST_CHAIN)} | {str(LONGEST_CHAIN): []}
    assert circles(chain) == [f"0 ends a chain of {LONGEST_CHAIN + 1} files"]


@pytest.mark.slow
def test_only_mesh_asks_for_devices():
    asking = {"devices", "local_devices", "make_mesh", "device_count", "local_device_count"}
    for module, path in modules(PACKAGE).items():
        if module == "mmjax.parallel.mesh":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "jax":
                assert node.attr not in asking, f"{module} asks for devices"


def test_configs_import_only_common():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        known = ("configs.common", "ml_collections")
        if path.name == "common.py":  # it finds a sweep's training configs by their names
            known += ("copy", "importlib", "collections.abc", "typing")
        for name in imports(path):
            assert name.startswith(known), f"{path}: {name}"


def code_lines(path: Path) -> int:
    """Return the lines of a file that are not docstrings."""
    text = path.read_text()
    lines = len(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


@pytest.mark.slow
def test_every_file_stays_readable():
    for path in [*PACKAGE.rglob("*.py"), *sorted((ROOT / "scripts").rglob("*.py"))]:
        lines = code_lines(path)
        assert lines <= LONGEST_FILE, f"{path} has {lines} lines beside its docstrings"
