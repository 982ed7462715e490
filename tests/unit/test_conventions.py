"""Conventions of this repository that no linter checks."""

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
# These come after all others of their phase: one writes the finished tree, the other shows again
# what the hooks before it were not to see.
LAST_OF_ALL = {
    "phantom-debian/cleanup.d/99-phantom-debian",
    "phantom-debian/post-root.d/95-phantom-debian-identities",
}
IGNORED = {".git", ".venv", "__pycache__"}


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
    """Programs that elements put on the PATH of hooks, without the Python modules beside them."""
    found = (path for element in ELEMENTS for path in element.glob("bin/*"))
    return sorted(path for path in found if path.suffix != ".py")


@pytest.mark.parametrize("element", ELEMENTS, ids=name)
def test_each_element_has_a_readme(element: Path) -> None:
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


def test_sourced_hooks_are_named_and_do_not_exit() -> None:
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
    """Every text file of the checkout except sites.yaml, which belongs to its user."""
    queue = [ROOT]
    while queue:
        for path in sorted(queue.pop().iterdir()):
            ignored = path.name in IGNORED or path.name.endswith("_cache") or path == ROOT / "build"
            if ignored or path.name in (".hypothesis", "sites.yaml") or path.is_symlink():
                continue
            if path.is_dir():
                queue.append(path)
            elif b"\0" not in (data := path.read_bytes()):
                yield path, data.decode("utf-8")


# The names are in pieces, so that this file does not contain what it searches for. Mirrors and
# indexes are settings of each host: a name of one in the repository would send everybody there.
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


def test_files_with_a_shebang_are_executable() -> None:
    for path, text in texts():
        if text.startswith("#!") and path.parent.name not in SOURCED:
            in_package = (ROOT / "pipeline") in path.parents  # sourced, or handed to an interpreter
            assert in_package or path.stat().st_mode & stat.S_IXUSR, path


def test_only_the_command_line_ends_the_process() -> None:
    """ruff's rules forbid `sys.exit` elsewhere, but not `raise SystemExit`."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.name == "cli.py":
            continue
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
        }
        assert names.isdisjoint({"SystemExit", "exit", "quit"}), path


def test_files_and_functions_of_the_pipeline_are_short() -> None:
    long: list[str] = []
    for path in (ROOT / "pipeline").rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > 500:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= 60:
                    long.append(f"{path}:{node.lineno} {node.name}")
    assert long == []


def test_references_to_facts_lead_to_a_page() -> None:
    named = {
        page for _, text in texts() for page in re.findall(r"docs/facts/([a-z0-9-]+\.md)", text)
    }
    assert {"nimbus.md", "ec2.md"} <= named
    assert [page for page in named if not (ROOT / "docs/facts" / page).is_file()] == []
