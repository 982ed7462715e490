"""Initramfs: what is in one that an untrusted image holds, and one of our own.

An initramfs is a row of cpio archives (format `newc`), each but the last uncompressed; microcode
for the processor comes first so. They are read here, and not by a program that unpacks them, since
whoever made an image decides what its archives hold.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from pipeline.errors import KernelError
from pipeline.model import GIB, MIB
from pipeline.tools import members, run

_HEADER = 110  # bytes: a magic and 13 numbers of 8 hexadecimal digits
_MAGICS = (b"070701", b"070702")
_END = "TRAILER!!!"
# Far beyond any: of Debian's largest kernel with all of its modules and firmware, 400 MB unpacked.
_UNPACKED_LIMIT, _ENTRY_LIMIT, _SECONDS = 4 * GIB, 200_000, 120.0
_LONGEST_NAME, _NAMES_LIMIT = 4096, 64 * MIB

# What each compression begins with; the kernel knows these.
_LIBRARIES = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "xz"),  # the older lzma
)
_PROGRAMS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",  # the older format, which kernels and Ubuntu use
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class Entry:
    """A file that goes into an initramfs, owned by root; its folders are made with it."""

    path: str
    """Without a slash before it."""
    content: bytes
    """Of a symbolic link, what it leads to."""
    mode: int = 0o644
    link: bool = False


class _Budget:
    """What is left of what an initramfs may hold, over all of its archives."""

    def __init__(self) -> None:
        self.entries, self.names, self.bytes = _ENTRY_LIMIT, _NAMES_LIMIT, _UNPACKED_LIMIT
        self._deadline = time.monotonic() + _SECONDS

    def take(self, name: int, content: int) -> None:
        """Raises ValueError where an entry is more than is left."""
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
    """Chunks, some of which may be empty, as a file."""

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
    """The paths of what is in it, without a slash before them. A part of it may go to the folder
    `work`. Raises KernelError where it cannot be read to its end, and HostError."""
    budget = _Budget()
    try:
        with initramfs.open("rb") as file:
            found = [*_read_uncompressed(file, budget)]
            with _unpacked(file, work, budget) as unpacked:
                if unpacked is not None:
                    found += _read_archive(unpacked, budget)
    except members.errors() as error:
        raise _damaged(str(error)) from error
    if not found:
        raise _damaged("there is no cpio archive in it")
    return found


def write(initramfs: Path, entries: list[Entry]) -> None:
    """Makes an uncompressed initramfs, the same bytes for the same entries."""
    folders = {str(parent) for each in entries for parent in Path(each.path).parents if parent.name}
    with initramfs.open("wb") as file:
        for number, folder in enumerate(sorted(folders)):
            _write_entry(file, number, folder, 0o40755, b"")
        for number, each in enumerate(entries, len(folders)):
            kind = 0o120000 if each.link else 0o100000
            _write_entry(file, number, each.path, kind | each.mode, each.content)
        _write_entry(file, 0, _END, 0, b"")


def unpack(file: Path, work: Path) -> bytes:
    """The content of a file of this host that may be compressed, as modules are."""
    with file.open("rb") as opened:
        if file.suffix not in (".gz", ".xz", ".zst"):
            return opened.read()
        with _unpacked(opened, work, _Budget()) as unpacked:
            return b"" if unpacked is None else unpacked.read()


def _damaged(reason: str) -> KernelError:
    return KernelError(
        f"the initramfs cannot be read: {reason}",
        todo="have the image's own tool make it anew (update-initramfs, dracut)",
    )


def _read_uncompressed(file: IO[bytes], budget: _Budget) -> Iterator[str]:
    """What the archives hold that are not compressed; afterwards the file is at what follows."""
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
    """The last archive without its compression; None where nothing is left."""
    start = file.tell()
    magic = file.read(6)
    file.seek(start)
    program = _PROGRAMS.get(magic[:4])
    compression = next((name for each, name in _LIBRARIES if magic.startswith(each)), None)
    if not magic:
        yield None
    elif program is not None:
        part = work / "initramfs.part"
        with part.open("wb") as copy:
            shutil.copyfileobj(file, copy, MIB)
        with (
            run.start([program, "-d", "-c", "-q", str(part)]) as process,
            os.fdopen(os.dup(process.stdout.fileno()), "rb") as unpacked,  # type: ignore[union-attr]
        ):
            yield unpacked
    elif compression is not None:
        chunks = members.read(file, partial(members.make, compression))
        yield io.BufferedReader(_Stream(chunks, budget), MIB)
    else:
        raise ValueError(f"it is compressed in an unknown way (it begins with {magic.hex()})")


def _read_archive(file: IO[bytes], budget: _Budget) -> Iterator[str]:
    """The names in the archive that begins where the file is; afterwards it is behind it."""
    while True:
        header = file.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(_MAGICS):
            raise ValueError("an archive in it is cut off or damaged")
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        if name_size > _LONGEST_NAME:
            raise ValueError("a name in it is longer than names can be")
        # Names are padded together with the header, contents by themselves.
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
    head = b"070701" + "".join(f"{each:08X}" for each in numbers).encode() + encoded
    file.write(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))
