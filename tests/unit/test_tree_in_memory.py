"""The folder that a root file system is built in: in memory, as far as there is enough of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import NoSpaceError
from pipeline.model import GIB, MIB, NoProgress
from pipeline.sources.package_tree import limit_memory
from pipeline.tools import namespace


class Heard(NoProgress):
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self.steps.append(text)


def build(folder: Path, mib: int, script: str) -> list[str]:
    work, heard = folder / "work", Heard()
    work.mkdir()
    (folder / "out").mkdir()
    namespace.run_in_memory(
        ["sh", "-euc", script, "sh", str(work), str(folder / "out")],
        view=namespace.View(writable=[folder / "out"]),
        build=work,
        mib=mib,
        folder=folder / "namespace",
        environment={"PATH": os.environ["PATH"]},
        log=folder / "log",
        progress=heard,
    )
    return heard.steps


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
WRITE = 'head -c 3000000 /dev/zero >"$1/made"'


@needs_root
def test_a_tree_that_fits_stays_in_memory(tmp_path: Path) -> None:
    assert build(tmp_path, 8, WRITE) == []
    assert list((tmp_path / "work").iterdir()) == []


@needs_root
def test_where_memory_ends_the_disk_goes_on(tmp_path: Path) -> None:
    assert build(tmp_path, 1, WRITE) == ["memory is too small for it: beginning again on the disk"]
    assert [path.stat().st_size for path in (tmp_path / "work").iterdir()] == [3_000_000]


@needs_root
def test_where_the_disk_ends_too_there_is_an_end(tmp_path: Path) -> None:
    full = "echo 'cp: No space left on device' >&2; echo x >>\"$2/tries\"; exit 1"
    with pytest.raises(NoSpaceError):
        build(tmp_path, 1, full)
    assert (tmp_path / "out/tries").read_text() == "x\nx\n"


@pytest.mark.parametrize(
    ("planned", "room", "available", "limit"),
    [
        (600 * MIB, 2 * GIB, 20 * GIB, 3460 * MIB),  # what disk_size allows, and the tree itself
        (600 * MIB, 8 * GIB, 20 * GIB, 9604 * MIB),
        (600 * MIB, 100 * GIB, 20 * GIB, 20 * GIB - GIB - 1412 * MIB),  # what there is
        (600 * MIB, 1 * GIB, 20 * GIB, 2824 * MIB),  # twice the tree: hooks need room to work
        (600 * MIB, 2 * GIB, 5 * GIB, 0),
        (4 * GIB, 8 * GIB, 20 * GIB, 0),
    ],
)
def test_how_much_memory_a_tree_may_take(
    planned: int, room: int, available: int, limit: int
) -> None:
    assert limit_memory(planned, room, available) == limit
