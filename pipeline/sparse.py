"""Sparse files: finding their data, copying them, and a digest that skips holes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.model import MIB, Sha256

CHUNK = 4 * MIB
ZEROS = bytes(CHUNK)
_PIECE = 64 * MIB  # copied, or digested by one thread, at a time
_THREADS = 2  # more threads would only wait for memory


def data_chunks(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each chunk of `CHUNK` bytes that is not all zeros, in order, from
    `start`, a multiple of `CHUNK`, up to `size`.

    Offsets are multiples of `CHUNK`; the last chunk may be shorter. The file system skips holes,
    and stored zeros are left out too, so the result depends on the content alone."""
    done = start
    for data, end in extents(descriptor, start):
        for offset in range(max(done, data - data % CHUNK), min(end, size), CHUNK):
            chunk = os.pread(descriptor, min(CHUNK, size - offset), offset)
            if chunk != ZEROS[: len(chunk)]:
                yield offset, chunk
            done = offset + CHUNK
        if end >= size:
            return


def all_chunks(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every chunk up to `size`, in order. A whole chunk of zeros is `ZEROS`
    itself."""
    position = 0
    for offset, chunk in itertools.chain(data_chunks(descriptor, size), [(size, b"")]):
        for zeros in range(position, offset, CHUNK):
            yield zeros, ZEROS if offset - zeros >= CHUNK else ZEROS[: offset - zeros]
        if chunk:
            yield offset, chunk
        position = offset + len(chunk)


def extents(descriptor: int, position: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of each extent of data in a file, in order, from `position` on. It reads
    nothing, so stored zeros count as data."""
    size = os.fstat(descriptor).st_size
    while position < size:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole until the end
                return
            raise
        position = os.lseek(descriptor, data, os.SEEK_HOLE)
        yield data, position


def digest(file: Path) -> Sha256:
    """A SHA-256 of the size, and of the SHA-256 of each piece of `_PIECE` bytes.

    This is not the file's SHA-256, but detects every change as well. It does not read holes, and
    uses two cores."""
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
        for offset, chunk in all_chunks(opened.fileno(), size):
            hashed.update(chunk)
            if advance is not None:
                advance(offset + len(chunk), size)
    return Sha256(hashed.hexdigest())


def sha256_in_background(file: Path) -> Future[Sha256]:
    """What `sha256` will say of a file, computed on a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sha256, file)
    pool.shutdown(wait=False)
    return future


def copy_data(
    source: Path, target: Path, size: int, advance: Callable[[int, int], None] | None = None
) -> None:
    """Makes a file of the first `size` bytes of another; all zeros become holes."""
    with source.open("rb") as opened, target.open("wb") as written:
        written.truncate(size)
        for offset, chunk in data_chunks(opened.fileno(), size):
            write_at(written.fileno(), chunk, offset)
            if advance is not None:
                advance(offset + len(chunk), size)


def copy_into(source: Path, descriptor: int, at: int) -> None:
    """Writes a file's data at an offset of another, leaving its holes unwritten."""
    with source.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for _ in copy_range(opened.fileno(), 0, size, descriptor, at):
            pass


def copy_range(source: int, start: int, size: int, target: int, at: int) -> Iterator[int]:
    """Writes `size` bytes of a file, from `start`, at an offset of another, leaving its holes
    unwritten. A generator: it copies a piece at a time, and yields how many bytes that was."""
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
    """Copies within the kernel, in a third of the time, if the file systems can do that."""
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
