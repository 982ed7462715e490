"""What disk images are packed in: unpacked in constant memory, into sparse files, up to a limit."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline import sparse
from pipeline.errors import ImageFormatError, StageFailedError
from pipeline.model import KIB, MIB, Progress
from pipeline.tools import members, run
from pipeline.tools.disk_formats import HEAD
from pipeline.tools.members import CHUNK

_BLOCK = 64 * KIB  # zeros are looked for in such blocks, and left out
_ZEROS = bytes(_BLOCK)
_CENTRAL_DIRECTORY = MIB  # a zip's list of files; of one file it has some hundred bytes
_DAMAGED = "fetch it again: it is damaged or cut"


class TooLarge(Exception):
    """More came out than was allowed; `size` is how much it is, as far as is known."""

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self.size = size


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may come out."""

    most: int
    """Bytes that are written."""
    counted: int
    """So many bytes are unpacked, and no longer written, to tell how large it is."""


@contextmanager
def interruptible(stop: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
    """A check that raises StageFailedError once the command is to end (`run.stop_all`); then `stop`
    is called too, on another thread, to end what the work waits for."""
    stopped = threading.Event()

    def end() -> None:
        stopped.set()
        if stop is not None:
            stop()

    def check() -> None:
        if stopped.is_set():
            raise StageFailedError("was interrupted", todo="run the same command again")

    with run.stopped_by(end):
        yield check


def unpack(
    packed: Path,
    compression: str,
    target: Path,
    limits: Limits,
    *,
    where: str,
    log: Path,
    progress: Progress,
) -> None:
    """Unpacks a file into `target`, whose zeros are holes.

    Raises TooLarge, and ImageFormatError for what is damaged, cut, or no one file.
    """
    if compression == "zstd":
        _run_zstd(packed, target, limits, where=where, log=log, progress=progress)
        return
    with interruptible() as check, packed.open("rb") as opened, target.open("wb") as written:
        size = os.fstat(opened.fileno()).st_size
        writer = _SparseWriter(written.fileno())
        total = 0
        for chunk in _chunks(opened, compression, where):
            total += len(chunk)
            if total > limits.counted:
                raise TooLarge(None)
            if total <= limits.most:
                writer.write(chunk)
            check()
            progress.advance(opened.tell(), size)
        if total > limits.most:
            raise TooLarge(total)
        writer.finish()


def read_head(packed: Path, compression: str, where: str) -> bytes:
    """The first bytes of what is packed in a file. Raises ImageFormatError."""
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
    """What is packed in a file, in chunks that are not longer than `CHUNK`, and may be empty."""
    try:
        if compression == "zip":
            yield from _open_zip(opened, where)
        else:
            yield from members.read(opened, partial(members.make, compression))
    except members.errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(compression, str(error), where) from error


def _damaged(compression: str, reason: str, where: str) -> ImageFormatError:
    detail = " ".join(reason.split()).removeprefix("Error -3 ")
    return ImageFormatError(
        f"cannot be unpacked by {compression}: {detail or 'it is damaged'}",
        where=where,
        todo=_DAMAGED,
    )


# ---- zip


def _open_zip(opened: BinaryIO, where: str) -> Iterator[bytes]:
    """The one file of a zip archive."""
    import zipfile

    _check_directory(opened, where)
    try:
        with zipfile.ZipFile(opened) as archive:
            files = [each for each in archive.infolist() if not each.is_dir()]
            if len(files) != 1:
                raise ImageFormatError(
                    f"is a zip archive of {len(files)} files, not one",
                    where=where,
                    todo="unpack it, and name the disk image that is in it",
                )
            if files[0].flag_bits & 1:
                raise ImageFormatError(
                    "is a zip archive with a password", where=where, todo="unpack it"
                )
            with archive.open(files[0]) as member:
                while chunk := member.read(CHUNK):
                    yield chunk
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged("zip", str(error), where) from error


def _check_directory(opened: BinaryIO, where: str) -> None:
    """The list of files, which is read at once, is short. Raises ImageFormatError."""
    size = os.fstat(opened.fileno()).st_size
    start = max(0, size - 22 - 0xFFFF - 20)
    end = os.pread(opened.fileno(), size - start, start)
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) < at + 22:
        raise _damaged("zip", "it ends too early", where)
    (length,) = struct.unpack_from("<I", end, at + 12)
    if at >= 20 and end[at - 20 : at - 16] == b"PK\x06\x07":  # zip64: the real figures are before
        (record,) = struct.unpack_from("<Q", end, at - 12)
        header = os.pread(opened.fileno(), 56, record) if record < size else b""
        length = struct.unpack_from("<Q", header, 40)[0] if len(header) == 56 else 1 << 62
    if length > _CENTRAL_DIRECTORY:
        raise ImageFormatError(
            "is a zip archive of many files, not one",
            where=where,
            todo="unpack it, and name the disk image that is in it",
        )


# ---- zstd


def _run_zstd(
    packed: Path, target: Path, limits: Limits, *, where: str, log: Path, progress: Progress
) -> None:
    known = _zstd_size(packed)
    if known is not None and known > limits.most:
        raise TooLarge(known)
    argv = ["prlimit", f"--fsize={limits.most}", "--core=0", "zstd", "-d", "-q", "-f", "--sparse"]
    argv += [f"--memory={members.MEMORY}", "--no-progress", "-o", str(target), "--"]
    try:
        run.run([*argv, str(packed.resolve())], log=log, progress=progress)
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
    single, length = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    if single and not length:
        length = 1
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not length:
        return None
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


def _read_zstd_head(packed: Path, where: str) -> bytes:
    argv = ["zstd", "-dcq", f"--memory={members.MEMORY}", "--", str(packed.resolve())]
    try:
        return run.capture_head(argv, HEAD)
    except run.ToolError as error:
        raise _zstd_failed(error, where) from error


# ---- sparse files


class _SparseWriter:
    """Writes a file from its start, leaving out what is zeros."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    def write(self, chunk: bytes) -> None:
        view, start = memoryview(chunk), 0
        # Blocks are counted from the file's start, so that holes fit the file system's blocks.
        end = min(len(chunk), _BLOCK - self._position % _BLOCK)
        pending = 0
        while start < len(chunk):
            if view[start:end] == _ZEROS[: end - start]:
                self._put(view[pending:start], pending)
                pending = end
            start, end = end, min(len(chunk), end + _BLOCK)
        self._put(view[pending:], pending)
        self._position += len(chunk)

    def _put(self, data: memoryview, offset: int) -> None:
        if data:
            sparse.write_at(self._descriptor, bytes(data), self._position + offset)

    def finish(self) -> None:
        """Gives the file its length, which a hole may end."""
        os.ftruncate(self._descriptor, self._position)
