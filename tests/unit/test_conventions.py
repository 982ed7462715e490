"""Conventions of the tree that no linter knows."""

from __future__ import annotations

import ast
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELEMENTS = sorted(path for path in (ROOT / "elements").iterdir() if path.is_dir())
# diskimage-builder sources these; all other hooks are run.
SOURCED = {"environment.d"}
# What closes a phase, after whatever others do in it: writes the finished tree.
LAST_OF_ALL = {"phantom-debian/cleanup.d/99-phantom-debian"}
IGNORED = {".git", ".venv", "build", "__pycache__"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "elements"))


def hooks() -> list[Path]:
    return sorted(
        path
        for element in ELEMENTS
        for path in element.glob("*.d/*")
        if path.parent.name not in SOURCED
    )


def commands() -> list[Path]:
    """Programs that elements put on the PATH of hooks; what they need in Python lies beside."""
    found = (path for element in ELEMENTS for path in element.glob("bin/*"))
    return sorted(path for path in found if path.suffix != ".py")


@pytest.mark.parametrize("element", ELEMENTS, ids=name)
def test_an_element_says_what_it_is(element: Path) -> None:
    lines = (element / "README.rst").read_text().splitlines()
    frame, title, below = lines[:3]
    assert title == element.name
    assert frame == below == "=" * len(title)
    assert len([line for line in lines[3:] if line.strip()]) >= 3


@pytest.mark.parametrize("hook", hooks() + commands(), ids=name)
def test_a_hook_runs_and_stops_at_the_first_failure(hook: Path) -> None:
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755
    lines = hook.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "set -eu -o pipefail" in lines


@pytest.mark.parametrize("hook", hooks(), ids=name)
def test_a_hook_has_a_number_that_leaves_room(hook: Path) -> None:
    number = re.fullmatch(r"([0-9]{2})-[a-z0-9-]+", hook.name)
    assert number is not None
    assert 10 <= int(number[1]) <= 90 or name(hook) in LAST_OF_ALL


@pytest.mark.parametrize("hook", hooks(), ids=name)
def test_a_hook_can_be_traced(hook: Path) -> None:
    assert "DIB_DEBUG_TRACE" in hook.read_text()


def test_what_is_sourced_is_not_run() -> None:
    for element in ELEMENTS:
        for phase in SOURCED:
            for path in element.glob(f"{phase}/*"):
                assert re.fullmatch(r"[1-9][0-9]-[a-z0-9-]+\.bash", path.name), path
                assert "exit" not in path.read_text().split(), path


def test_files_that_land_in_an_image_are_plain() -> None:
    for element in ELEMENTS:
        for path in (element / "static").rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), path


def test_elements_depend_on_elements_that_are_there() -> None:
    diskimage_builder = pytest.importorskip("diskimage_builder")
    theirs = Path(diskimage_builder.__file__).parent / "elements"
    for element in ELEMENTS:
        listed = element / "element-deps"
        for needed in listed.read_text().split() if listed.exists() else []:
            assert (ROOT / "elements" / needed).is_dir() or (theirs / needed).is_dir(), needed


# ---- the whole tree


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the checkout; sites.yaml is its user's own."""
    queue = [ROOT]
    while queue:
        for path in sorted(queue.pop().iterdir()):
            ignored = path.name in IGNORED or path.name.endswith("_cache")
            if ignored or path.name in (".hypothesis", "sites.yaml") or path.is_symlink():
                continue
            if path.is_dir():
                queue.append(path)
            elif b"\0" not in (data := path.read_bytes()):
                yield path, data.decode("utf-8")


# In pieces, so that this file does not hold what it looks for. Mirrors and indexes are settings of
# each host: a name of one in the tree would send everybody there.
FORBIDDEN = [
    ".".join(words)
    for words in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("ftp", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("registry", "npmjs", "org"),
    )
]


def test_the_tree_names_no_index_and_no_mirror() -> None:
    found = [(path, word) for path, text in texts() for word in FORBIDDEN if word in text]
    assert found == []


def test_the_tree_does_not_know_where_it_lies() -> None:
    assert [path for path, text in texts() if f"{ROOT}/" in text] == []


def test_files_end_with_one_line_feed_and_lines_without_blanks() -> None:
    bad = re.compile(r"\r|[ \t]$|\n\n\Z|[^\n]\Z", re.MULTILINE)
    assert [path for path, text in texts() if bad.search(text)] == []


def test_what_begins_with_a_first_line_for_the_kernel_can_be_run() -> None:
    for path, text in texts():
        if text.startswith("#!") and path.parent.name not in SOURCED:
            in_package = (ROOT / "pipeline") in path.parents  # sourced, or handed to an interpreter
            assert in_package or path.stat().st_mode & stat.S_IXUSR, path


def test_only_the_command_line_ends_the_process() -> None:
    """What ruff's rules on `print`, `subprocess` and `sys.exit` leave: `raise SystemExit`."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.name == "cli.py":
            continue
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
        }
        assert names.isdisjoint({"SystemExit", "exit", "quit"}), path
