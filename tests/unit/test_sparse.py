"""Sparse files are read, copied and hashed as any other program would read them."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from files import extents, sizes, write_sparse
from hypothesis import given, settings
from soak import examples

from pipeline import sparse
from pipeline.model import GIB


@settings(max_examples=examples(30), deadline=None)
@given(size=sizes, data=extents)
def test_sha256_is_that_of_the_file(size: int, data: list[tuple[int, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write_sparse(path, size, data)
        assert sparse.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=examples(30), deadline=None)
@given(size=sizes, data=extents)
def test_a_copy_is_the_same_at_its_offset(size: int, data: list[tuple[int, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder, "file"), Path(folder, "copy")
        write_sparse(path, size, data)
        with copy.open("wb") as file:
            file.truncate(1000 + size)
            sparse.copy_into(path, file.fileno(), 1000)
        assert copy.read_bytes() == bytes(1000) + path.read_bytes()


@settings(max_examples=examples(30), deadline=None)
@given(size=sizes, data=extents)
def test_the_digest_comes_from_the_content(size: int, data: list[tuple[int, bytes, int]]) -> None:
    """It does not depend on where the file system has holes."""
    with tempfile.TemporaryDirectory() as folder:
        path, dense = Path(folder, "file"), Path(folder, "dense")
        write_sparse(path, size, data)
        dense.write_bytes(path.read_bytes())
        assert sparse.digest(path) == sparse.digest(dense)


def test_the_digest_sees_a_flipped_bit_a_moved_block_and_a_longer_file(tmp_path: Path) -> None:
    size = 3 * sparse.CHUNK
    digests = set()
    for number, (length, data) in enumerate(
        [
            (size, [(100, b"a", 1)]),
            (size, [(100, b"b", 1)]),
            (size, [(100 + sparse.CHUNK, b"a", 1)]),
            (size + 1, [(100, b"a", 1)]),
            (size, []),
        ]
    ):
        write_sparse(tmp_path / str(number), length, data)
        digests.add(sparse.digest(tmp_path / str(number)))
    assert len(digests) == 5


def test_holes_are_not_read(tmp_path: Path) -> None:
    """A file of a thousand gigabytes with a few bytes takes no time."""
    write_sparse(tmp_path / "file", 1000 * GIB, [(7, b"first", 1)])
    with (tmp_path / "file").open("rb") as file:
        chunks = list(sparse.data_chunks(file.fileno(), 1000 * GIB))
    assert [(offset, chunk[7:12]) for offset, chunk in chunks] == [(0, b"first")]
