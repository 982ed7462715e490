"""Sparse files: where their data lies, how to copy them, and a digest that skips the holes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.model import MIB, Sha256

CHUNK = 4 * MIB
_ZEROS = bytes(CHUNK)
_PIECE = 64 * MIB  # that is copied, or digested by a thread, at once
_THREADS = 2  # more would wait for memory


def data_chunks(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each chunk of `CHUNK` bytes that is not all zeros, in order, from
    `start`, a multiple of `CHUNK`, up to `size`.

    Offsets are multiples of `CHUNK`; the last chunk may be shorter. Holes are skipped by the file
    system, and zeros that are stored are found, so the answer depends on the content alone.
    """
    offset = start
    while offset < size:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole until the end
                return
            raise
        offset = data - data % CHUNK
        if offset >= size:
            return
        chunk = os.pread(descriptor, min(CHUNK, size - offset), offset)
        if chunk != _ZEROS[: len(chunk)]:
            yield offset, chunk
        offset += CHUNK


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Start and end of each piece of a file that is no hole, in order; what is in them is not read,
    so stored zeros count as data."""
    size, end = os.fstat(descriptor).st_size, 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole until the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def digest(file: Path) -> Sha256:
    """A SHA-256 of the size, and of the SHA-256 of each piece of `_PIECE` bytes.

    It is no SHA-256 of the file, but as good at finding a change; it does not read holes, and has
    more than one core at work.
    """
    with file.open("rb") as opened, ThreadPoolExecutor(_THREADS) as pool:
        size = os.fstat(opened.fileno()).st_size
        hashed = hashlib.sha256(f"size {size}\n".encode())
        starts = range(0, size, _PIECE)
        for piece in pool.map(lambda at: _digest_piece(opened.fileno(), at, size), starts):
            hashed.update(piece)
    return Sha256(hashed.hexdigest())


def _digest_piece(descriptor: int, start: int, size: int) -> bytes:
    """A SHA-256 of offset and content of the chunks of a piece that are not all zeros."""
    hashed = hashlib.sha256()
    for offset, chunk in data_chunks(descriptor, min(start + _PIECE, size), start):
        hashed.update(f"at {offset}\n".encode())
        hashed.update(chunk)
    return hashed.digest()


def sha256(file: Path, advance: Callable[[int, int], None] | None = None) -> Sha256:
    """The SHA-256 of a whole file, holes included, in constant memory."""
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        position = 0
        for offset, chunk in data_chunks(opened.fileno(), size):
            _update_zeros(hashed.update, offset - position)
            hashed.update(chunk)
            position = offset + len(chunk)
            if advance is not None:
                advance(position, size)
        _update_zeros(hashed.update, size - position)
    return Sha256(hashed.hexdigest())


def copy_into(source: Path, descriptor: int, at: int) -> None:
    """Writes a file's data at an offset of another, leaving its holes unwritten."""
    with source.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for _ in copy_range(opened.fileno(), 0, size, descriptor, at):
            pass


def copy_range(source: int, start: int, size: int, target: int, at: int) -> Iterator[int]:
    """Writes `size` bytes of a file, from `start`, at an offset of another, leaving its holes
    unwritten. Works as it is asked for more, and gives the number of bytes after each piece."""
    for data, hole in extents(source):
        offset, end = max(data, start), min(hole, start + size)
        while offset < end:
            count = _copy_piece(
                source, offset, min(_PIECE, end - offset), target, at + offset - start
            )
            if not count:
                return
            offset += count
            yield count


def _copy_piece(source: int, start: int, size: int, target: int, at: int) -> int:
    """Copies within the kernel, at a third of the time, where the file systems can."""
    try:
        return os.copy_file_range(source, target, size, start, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        chunk = os.pread(source, min(size, CHUNK), start)
        write_at(target, chunk, at)
        return len(chunk)


def write_at(descriptor: int, chunk: bytes, at: int) -> None:
    """Writes all of a chunk at an offset."""
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _update_zeros(update: Callable[[memoryview], object], count: int) -> None:
    zeros = memoryview(_ZEROS)
    while count > 0:
        step = min(count, CHUNK)
        update(zeros[:step])
        count -= step
