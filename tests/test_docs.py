"""What the READMEs name exists: links, pictures, paths, flags."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".venv", ".pytest_cache", "runs"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not SKIPPED & set(path.relative_to(ROOT).parts)
    and ".venv" not in path.parts[len(ROOT.parts)]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path of the repository, in prose or in a command; of a brace list, the words before it.
PLACE = re.compile(r"(?<![\w./-])((?:mmjax|configs|scripts|tests)/[\w./-]*\w)")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
# Flags of other programs, in commands that a README shows.
FOREIGN = {
    *("xla_force_host_platform_device_count", "fast", "no-deps", "ntasks", "nodes", "worker"),
    *(
        "zone",
        "command",
        "processes",
        "devices",
        "grace",
        "name",
        "help",
        "gpus",
        "a",
        "gpus-per-node",
    ),
}


@cache
def known_flags() -> set[str]:
    """Return the names of all flags that scripts define."""
    define = re.compile(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?([a-z_]\w*)"')
    names = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        names |= set(define.findall(path.read_text()))
    return names


def faults(page: Path, root: Path) -> list[str]:
    """Return what a page names and is not there, a sentence each."""
    text, said = page.read_text(), []
    for link in LINK.findall(text):
        target = link.partition("#")[0]
        if target and "://" not in link and not (page.parent / target).exists():
            said.append(f"{page}: the link {link} leads nowhere")
    for name in PLACE.findall(text):
        options = (name, f"{name}.py")
        if "NAME" in name:  # stands for any
            continue
        if not any((root / option).exists() for option in options):
            said.append(f"{page}: there is no {name}")
    for flag in FLAG.findall(text):
        if flag not in known_flags() | FOREIGN and not flag.startswith("config"):
            said.append(f"{page}: no script has a flag --{flag}")
    return said


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_a_page_names_exists(page):
    assert faults(page, ROOT) == []


def test_the_front_door_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_planted_faults_are_found(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("[a](nowhere.md) `mmjax/nothing.py` `python scripts/train.py --confg=x`")
    assert [sentence.split(": ")[1] for sentence in faults(page, ROOT)] == [
        "the link nowhere.md leads nowhere",
        "there is no mmjax/nothing.py",
        "no script has a flag --confg",
    ]
