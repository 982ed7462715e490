"""The digest of a base image of this host: kept while the file stays as it is, and looked at again
before the image is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from files import make_context

from pipeline.errors import StageFailedError
from pipeline.model import MIB, Sha256
from pipeline.sources.base_disk import BASE, BaseDisk, digest_memory, stamp_of
from pipeline.sources.base_file import _find_file
from pipeline.stages.base import LocalFile
from pipeline.store import Store


def change_unseen(file: Path) -> None:
    """Changes a file's content as `touch -r` would hide it: it keeps size, inode and time."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"changed")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (
        before.st_size,
        before.st_ino,
        before.st_mtime_ns,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "base.raw"
    file.write_bytes(b"content" + bytes(MIB - 7))
    return file


def test_a_change_that_keeps_size_and_time_is_seen(image: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = _find_file(image, store, keep=True)
    assert _find_file(image, store, keep=True) == first
    change_unseen(image)
    second = _find_file(image, store, keep=True)
    assert second.sha256 != first.sha256


def test_the_digest_is_taken_again_before_the_image_is_used(image: Path, tmp_path: Path) -> None:
    """Here what is kept of the digest is of another content, as if the file's times had not told of
    a change: the stage refuses the file, and the next plan takes the digest anew."""
    store = Store(tmp_path / "store")
    planned = _find_file(image, store, keep=True)
    (tmp_path / "run").mkdir()
    context = make_context(tmp_path / "run")
    stage = BaseDisk(
        file=LocalFile(digest=planned.sha256, path=image),
        most_bytes=MIB,
        location=str(image),
        stamp=planned.stamp,
    )
    stage.run([], context)
    assert (context.out / BASE).read_bytes() == image.read_bytes()
    wrong = BaseDisk(
        file=LocalFile(digest=Sha256("1" * 64), path=image),
        most_bytes=MIB,
        location=str(image),
        stamp=stamp_of(image),
    )
    memory = digest_memory(context.store, image, stamp_of(image))
    memory.parent.mkdir()
    memory.write_text("kept")
    with pytest.raises(StageFailedError) as caught:
        wrong.run([], context)
    assert str(caught.value) == (
        f"{image} was changed after the plan was made\n  do: run the same command again"
    )
    assert not memory.exists()
