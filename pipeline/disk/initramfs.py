"""Lists the files of an untrusted initramfs, and writes our own.

An initramfs is a sequence of cpio archives (format `newc`), of which only the last may be
compressed; processor microcode comes first. Since the archives are untrusted, we read them
ourselves rather than have a program unpack them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from pipeline.disk import decompress
from pipeline.errors import KernelError
from pipeline.model import GIB, MIB
from pipeline.tools import run

_HEADER = 110  # bytes: a magic and 13 numbers of 8 hexadecimal digits
_SOUND_HEADER = re.compile(rb"07070[12][0-9A-Fa-f]{104}")
_MAGICS = (b"070701", b"070702")
_END = "TRAILER!!!"
# Ten times Debian's largest: 400 MB with all modules and firmware.
_UNPACKED_LIMIT, _ENTRY_LIMIT, _SECONDS = 4 * GIB, 200_000, 120.0
_LONGEST_NAME, _NAMES_LIMIT = 4096, 16 * MIB  # Debian's largest has 1 MB of names
_FILE_LIMIT = 128 * MIB  # ten times the host's largest module

# Compressions that the kernel supports beside those of `decompress.detect`.
_OTHERS = (
    (b"\x5d\0\0", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),  # the older format, which kernels and Ubuntu use
    (b"\x04\x22\x4d\x18", "lz4"),
)


_PROGRAMS = {
    "zstd": ["zstd", "-d", "-c", "-q", f"--memory={decompress.MEMORY}"],
    "lz4": ["lz4", "-d", "-c", "-q"],
}


@dataclass(frozen=True)
class Entry:
    """A file to write to an initramfs, with its folders, all owned by root."""

    path: str
    """Without a leading slash."""
    content: bytes
    """A symbolic link's is its target."""
    mode: int = 0o644
    link: bool = False


class _Budget:
    """The remaining limits of an initramfs, for all its archives together."""

    def __init__(self) -> None:
        self.entries, self.names, self.bytes = _ENTRY_LIMIT, _NAMES_LIMIT, _UNPACKED_LIMIT
        self._deadline = time.monotonic() + _SECONDS

    def take(self, name: int, content: int) -> None:
        """Counts an entry. Raises ValueError if it exceeds the limits."""
        self.entries -= 1
        self.names -= name
        self.bytes -= content
        if self.entries < 0 or self.names < 0:
            raise ValueError("it holds more files than any that boots")
        self.check(self.bytes)

    def check(self, left: int = 0) -> None:
        if left < 0 or time.monotonic() > self._deadline:
            raise ValueError("it is larger than any that boots")


class _Stream(io.RawIOBase):
    """A file of chunks, some of which may be empty."""

    def __init__(self, chunks: Iterator[bytes], budget: _Budget) -> None:
        self._chunks = chunks
        self._budget = budget
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            self._budget.check()
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def list_files(initramfs: Path, work: Path) -> list[str]:
    """The paths in an initramfs, without a leading slash; the folder `work` is for a temporary
    file. Raises KernelError if the initramfs is damaged, and HostError."""
    budget = _Budget()
    try:
        with initramfs.open("rb") as file:
            paths = [*_read_uncompressed(file, budget)]
            with _unpacked(file, work, budget) as unpacked:
                if unpacked is not None:
                    paths += _read_archive(unpacked, budget)
    except decompress.errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(str(error)) from error
    if not paths:
        raise _damaged("there is no cpio archive in it")
    return paths


def write(initramfs: Path, entries: list[Entry]) -> None:
    """Writes an uncompressed initramfs; the same entries give the same bytes."""
    folders = {str(folder) for entry in entries for folder in Path(entry.path).parents[:-1]}
    with initramfs.open("wb") as file:
        for number, folder in enumerate(sorted(folders)):
            _write_entry(file, number, folder, 0o40755, b"")
        for number, entry in enumerate(entries, len(folders)):
            kind = 0o120000 if entry.link else 0o100000
            _write_entry(file, number, entry.path, kind | entry.mode, entry.content)
        _write_entry(file, 0, _END, 0, b"")


def unpack(file: Path, work: Path) -> bytes:
    """The content of a host's file that may be compressed, such as a module. Raises KernelError."""
    try:
        with file.open("rb") as opened:
            if file.suffix not in (".gz", ".xz", ".zst"):
                return opened.read()
            with _unpacked(opened, work, _Budget()) as unpacked:
                content = b"" if unpacked is None else unpacked.read(_FILE_LIMIT + 1)
    except decompress.errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _broken(file, str(error)) from error
    if len(content) > _FILE_LIMIT:
        raise _broken(file, "it is larger than any module")
    return content


def _broken(file: Path, reason: str) -> KernelError:
    return KernelError(
        f"{file} cannot be unpacked: {reason}", todo="install the package of this file again"
    )


def _damaged(reason: str) -> KernelError:
    return KernelError(
        f"the initramfs cannot be read: {reason}",
        todo="have the image's own tool make it anew (update-initramfs, dracut)",
    )


def _read_uncompressed(file: IO[bytes], budget: _Budget) -> Iterator[str]:
    """The names in the uncompressed archives; leaves the file's position behind them."""
    while True:
        start = file.tell()
        head = file.read(4096)
        stripped = head.lstrip(b"\0")
        budget.check()
        if not stripped and head:
            continue
        file.seek(start + len(head) - len(stripped))
        if not stripped.startswith(_MAGICS):
            return
        yield from _read_archive(file, budget)


@contextmanager
def _unpacked(file: IO[bytes], work: Path, budget: _Budget) -> Iterator[IO[bytes] | None]:
    """The last archive, decompressed; None at the file's end."""
    head = file.read(10)
    file.seek(-len(head), os.SEEK_CUR)
    others = (name for magic, name in _OTHERS if head.startswith(magic))
    compression = decompress.detect(head) or next(others, None)
    if not head:
        yield None
    elif compression in _PROGRAMS:
        part = work / "initramfs.part"
        with part.open("wb") as copy:
            shutil.copyfileobj(file, copy, MIB)
        with (
            run.start(_PROGRAMS[compression] + [str(part)]) as process,
            os.fdopen(os.dup(process.stdout.fileno()), "rb") as unpacked,  # type: ignore[union-attr]
        ):
            yield unpacked
    elif compression in ("gzip", "bzip2", "xz", "lzma"):
        chunks = decompress.read(file, partial(decompress.make, compression))
        yield io.BufferedReader(_Stream(chunks, budget), MIB)
    else:
        raise ValueError(f"it is compressed in an unknown way (it begins with {head[:6].hex()})")


def _read_archive(file: IO[bytes], budget: _Budget) -> Iterator[str]:
    """The names in the next archive; leaves the file's position behind it."""
    while True:
        header = file.read(_HEADER)
        if not _SOUND_HEADER.fullmatch(header):
            raise ValueError("an archive in it is cut off or damaged")
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        if name_size > _LONGEST_NAME:
            raise ValueError("a name in it is longer than names can be")
        # Header and name are padded together, the content alone.
        name = file.read(name_size + -(_HEADER + name_size) % 4)[: max(name_size - 1, 0)]
        padded = size + -size % 4
        budget.take(name_size, padded)
        if name == _END.encode():
            return
        _skip(file, padded)
        yield name.decode("utf-8", "replace").removeprefix("./").lstrip("/")


def _skip(file: IO[bytes], size: int) -> None:
    while size > 0:
        data = file.read(min(size, MIB))
        if not data:
            raise ValueError("an archive in it is cut off or damaged")
        size -= len(data)


def _write_entry(file: IO[bytes], number: int, name: str, mode: int, content: bytes) -> None:
    encoded = name.encode() + b"\0"
    links = 2 if mode & 0o40000 else 1
    numbers = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + "".join(f"{value:08X}" for value in numbers).encode() + encoded
    file.write(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
