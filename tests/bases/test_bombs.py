"""Files that unpack to much, or ask for much memory, take little of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bombs
import pytest

from pipeline.errors import ImageFormatError
from pipeline.sources.base_disk import look

LIMIT = 200_000_000  # bytes of one process


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What was said of each bomb, and the most memory that was taken until then."""
    folder, work = tmp_path_factory.mktemp("bombs"), tmp_path_factory.mktemp("work")
    bombs.make_bombs(folder)
    words = [sys.executable, bombs.__file__, str(folder), str(work)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        words, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    )
    lines = map(json.loads, ran.stdout.splitlines())
    return {name: (reason, memory) for name, reason, memory in lines}


def test_no_bomb_takes_much_memory(told: dict[str, tuple[str, int]]) -> None:
    assert len(told) == len(bombs.IMAGES) + len(bombs.INITRAMFS)
    assert {name: memory for name, (_, memory) in told.items() if memory > LIMIT} == {}


def test_what_asks_for_more_memory_can_be_unpacked_by_hand(tmp_path: Path) -> None:
    bombs.IMAGES["xz dictionary"](tmp_path / "bomb")
    with pytest.raises(ImageFormatError) as caught:
        look(tmp_path / "bomb", "BOMB")
    assert str(caught.value) == (
        "BOMB: cannot be unpacked by xz: Memory usage limit exceeded\n  do: unpack it yourself, "
        "and name what comes out: this takes more memory than is given here"
    )


def test_what_is_said_of_bombs(told: dict[str, tuple[str, int]]) -> None:
    reasons = {name: reason for name, (reason, _) in told.items()}
    large = f"the disk in the base image has {bombs.SIZE >> 20} MiB, and disk_size is 64 MiB"
    for name in ("zip bzip2", "zip lzma", "zip deflate", "xz"):
        assert reasons[f"image {name}"] == large
    memory = "Memory usage limit exceeded"
    assert reasons["image zip lzma dictionary"] == f"cannot be unpacked by zip: {memory}"
    assert reasons["image xz dictionary"] == f"cannot be unpacked by xz: {memory}"
    assert reasons["image zip deflate64"] == (
        "is a zip archive compressed by deflate64, which is not supported"
    )
    assert reasons["image zip directory"] == "is a zip archive of many files, not one"
    assert reasons["image qcow2 packed"] == "taken"
    assert reasons["image qcow2 bitmaps"] == "has dirty bitmaps that are too large"
    assert reasons["initramfs gzip"] == (
        "the initramfs cannot be read: it holds more files than any that boots"
    )
