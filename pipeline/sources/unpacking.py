"""Unpacks disk images in constant memory, into sparse files, up to a limit."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline import sparse
from pipeline.disk import decompress
from pipeline.disk.formats import HEAD
from pipeline.errors import ImageFormatError, StageFailedError, located
from pipeline.model import KIB
from pipeline.sources.zips import read_zip
from pipeline.stages.base import Context
from pipeline.tools import run

_UNPACK = "unpack it yourself, and name what comes out: this takes more memory than is given here"
_BLOCK = 64 * KIB  # zeros are looked for in such blocks, and left out
_ZEROS = bytes(_BLOCK)


class TooLarge(Exception):
    """The unpacked file exceeds its limit; `size` is its size, if that is known."""

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self.size = size


@contextmanager
def interruptible() -> Iterator[Callable[..., None]]:
    """A check that raises StageFailedError once `run.stop_all` has been called. Given a number of
    seconds, it waits that long for the call."""
    stopped = threading.Event()

    def check(seconds: float = 0.0) -> None:
        if stopped.wait(seconds) if seconds else stopped.is_set():
            raise StageFailedError("was interrupted", todo="run the same command again")

    with run.stopped_by(stopped.set):
        yield check


def unpack(
    packed: Path,
    compression: str,
    target: Path,
    context: Context,
    *,
    where: str,
    most: int,
    counted: int,
) -> None:
    """Unpacks a file of at most `most` bytes into `target`, whose zeros are holes. Bytes beyond
    `most` are counted up to `counted`, for the message, and not written.

    Raises TooLarge, and ImageFormatError for a damaged file or an archive of several.
    """
    if compression == "zstd":
        _run_zstd(packed, target, context, where, most)
        return
    with interruptible() as check, packed.open("rb") as opened, target.open("wb") as written:
        size = os.fstat(opened.fileno()).st_size
        total = 0
        for chunk in _chunks(opened, compression, where):
            if total + len(chunk) <= most:
                context.store.check_space()
                _write_data(written.fileno(), chunk, total)
            total += len(chunk)
            if total > counted:
                raise TooLarge(None)
            check()
            context.progress.advance(opened.tell(), size)
        if total > most:
            raise TooLarge(total)
        written.truncate(total)


def _write_data(descriptor: int, chunk: bytes, position: int) -> None:
    """Writes a chunk at its position in a file, except blocks of zeros. Blocks are counted from the
    file's start, so that holes fit the file system's blocks."""
    start = 0
    while start < len(chunk):
        block = chunk[start : start + _BLOCK - (position + start) % _BLOCK]
        if block != _ZEROS[: len(block)]:
            sparse.write_at(descriptor, block, position + start)
        start += len(block)


def read_head(packed: Path, compression: str, where: str) -> bytes:
    """The first bytes of the unpacked file. Raises ImageFormatError."""
    if compression == "zstd":
        return _read_zstd_head(packed, where)
    head = b""
    with packed.open("rb") as opened:
        for chunk in _chunks(opened, compression, where):
            head += chunk[: HEAD - len(head)]
            if len(head) >= HEAD:
                break
    return head


def _chunks(opened: BinaryIO, compression: str, where: str) -> Iterator[bytes]:
    """The unpacked file in chunks of at most `CHUNK` bytes, some of them empty."""
    with located(where):
        try:
            if compression == "zip":
                yield from read_zip(opened, partial(_damaged, "zip"))
            else:
                yield from decompress.read(opened, partial(decompress.make, compression))
        except decompress.errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _damaged(compression, str(error)) from error


def _damaged(compression: str, reason: str, where: str | None = None) -> ImageFormatError:
    detail = re.sub(r"^Error -?[0-9]+ ", "", " ".join(reason.split()))
    return ImageFormatError(
        f"cannot be unpacked by {compression}: {detail or 'it is damaged'}",
        where=where,
        todo=_UNPACK if "memory" in detail.lower() else "fetch it again: it is damaged or cut",
    )


# ---- zstd


def _run_zstd(packed: Path, target: Path, context: Context, where: str, most: int) -> None:
    known = _zstd_size(packed)
    if known is not None and known > most:
        raise TooLarge(known)
    argv = ["prlimit", f"--fsize={most}", "--core=0", "zstd", "-d", "-q", "-f", "--sparse"]
    argv += [f"--memory={decompress.MEMORY}", "--no-progress", "-o", str(target), "--"]
    try:
        run.run(
            [*argv, str(packed.resolve())],
            log=context.log,
            progress=context.progress,
            watch=context.store.check_space,
        )
    except run.ToolError as error:
        if error.status == -signal.SIGXFSZ or "File too large" in error.output:
            raise TooLarge(None) from error
        raise _zstd_failed(error, where) from error


def _zstd_failed(error: run.ToolError, where: str) -> ImageFormatError:
    lines = error.output.strip().splitlines() or [error.what]
    return _damaged("zstd", lines[-1].rpartition(" : ")[2], where)


def _zstd_size(packed: Path) -> int | None:
    """What the first frame's header says of its content (RFC 8878, 3.1.1.1)."""
    with packed.open("rb") as opened:
        head = opened.read(18)
    if len(head) < 18:
        return None
    flags = head[4]
    single = flags >> 5 & 1
    length = (single, 2, 4, 8)[flags >> 6]
    if not length:
        return None
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


def _read_zstd_head(packed: Path, where: str) -> bytes:
    argv = ["zstd", "-dcq", f"--memory={decompress.MEMORY}", "--", str(packed.resolve())]
    try:
        return run.capture_head(argv, HEAD)
    except run.ToolError as error:
        raise _zstd_failed(error, where) from error
