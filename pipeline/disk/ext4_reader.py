"""Reads folders, inodes and contents of ext2, ext3 and ext4 file systems in files, without mounting
them, without root, and without a program for each file (ext4's documentation, "Data Structures").

A file system may have been made to harm: every number is checked before it is used, and all faults
are FileSystemError. At most one folder of the path that is looked at is in memory.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from pipeline.disk.superblock import AT_LEAST, read_superblock
from pipeline.errors import FileSystemError
from pipeline.model import MIB

ROOT = 2
"""The inode of the root folder."""
CHUNK = MIB
"""Bytes of a file that are read at a time, at most."""
_FOLDER_LIMIT = 64 * MIB
_DEEPEST = 5  # levels of an extent tree (fs/ext4/ext4_extents.h)
_EXTENTS, _INLINE = 0x80000, 0x10000000  # flags of inodes
_LONGEST_LINK = 4096
_IN_INODE = 60  # bytes of a symbolic link that need no block
_UNREADABLE = frozenset({"inline_data", "encrypt", "bigalloc", "journal_dev", "compression"})
_UNWRITTEN = 32768  # the length from which an extent is of blocks that read as zeros


@dataclass(frozen=True)
class Inode:
    """What an inode says of its file."""

    number: int
    mode: int
    """With the type, as in `st_mode`."""
    uid: int
    gid: int
    size: int
    """Bytes."""
    links: int
    flags: int
    block: bytes
    """The 60 bytes that say where the content is; of a device, its number."""

    @property
    def device(self) -> tuple[int, int]:
        """Of a device, its major and minor number in the old and the new form."""
        old, new = struct.unpack_from("<II", self.block)
        return old, new


class Reader:
    """The ext file system at an offset, in bytes, of a file. Used as a context.

    All methods raise FileSystemError for what is damaged.
    """

    def __init__(self, file: Path, offset: int = 0) -> None:
        self._path = file
        self._offset = offset
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._open()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _open(self) -> None:
        head = os.pread(self._file, AT_LEAST, self._offset)
        found = read_superblock(head)
        if found is None:
            raise self._damaged("there is no ext file system")
        unknown = sorted(_UNREADABLE.intersection(found.features))
        if unknown:
            raise self._damaged(f"this program cannot read its features: {', '.join(unknown)}")
        block = head[1024:2048]
        self._inodes, free, self._first, shift = struct.unpack_from("<I8xI4xII", block)
        (self._per_group,) = struct.unpack_from("<I", block, 40)
        old = struct.unpack_from("<I", block, 76)[0] == 0
        self._inode_size = 128 if old else struct.unpack_from("<H", block, 88)[0]
        wide = "64bit" in found.features
        self._group_size = struct.unpack_from("<H", block, 254)[0] if wide else 32
        if wide:
            free |= struct.unpack_from("<I", block, 344)[0] << 32
        if shift > 6 or not self._per_group or self._inode_size < 128 or self._group_size < 32:
            raise self._damaged("its superblock is")
        self._block: int = 1024 << shift
        self.uuid, self.label = found.uuid, found.label
        self._blocks = found.bytes // self._block
        self.bytes = found.bytes
        """Of the file system."""
        self.used = max(0, found.bytes - free * self._block)
        """Bytes that are not free."""
        self._table: Callable[[int], int] = lru_cache(maxsize=4096)(self._find_table)

    def _damaged(self, what: str) -> FileSystemError:
        return FileSystemError(
            f"the root file system cannot be read: {what}"
            + (" damaged" if what.endswith(" is") else ""),
            where=str(self._path),
            todo="see whether all of the image is there; `phantom-image inspect` tells more of it",
        )

    def _read(self, at: int, size: int) -> bytes:
        data = os.pread(self._file, size, self._offset + at)
        if len(data) != size:
            raise self._damaged("the file ends before it does")
        return data

    def _find_table(self, group: int) -> int:
        """The byte at which a group's inodes start."""
        start: int = (self._first + 1) * self._block + group * self._group_size
        described = self._read(start, self._group_size)
        block = int(struct.unpack_from("<I", described, 8)[0])
        if self._group_size >= 64:
            block |= struct.unpack_from("<I", described, 40)[0] << 32
        return block * self._block

    def inode(self, number: int) -> Inode:
        """The inode of a number."""
        if not 0 < number <= self._inodes:
            raise self._damaged(f"it names the inode {number}, which it does not have")
        group, index = divmod(number - 1, self._per_group)
        data = self._read(self._table(group) + index * self._inode_size, 128)
        mode, uid, low, gid, links = struct.unpack_from("<HHI16xHH", data)
        (flags,) = struct.unpack_from("<I", data, 32)
        (high,) = struct.unpack_from("<I", data, 108)
        upper_uid, upper_gid = struct.unpack_from("<HH", data, 120)
        size = low | (high << 32 if stat.S_ISREG(mode) else 0)
        return Inode(
            number=number,
            mode=mode,
            uid=uid | upper_uid << 16,
            gid=gid | upper_gid << 16,
            size=size,
            links=links,
            flags=flags,
            block=data[40:100],
        )

    def folder(self, inode: Inode) -> dict[bytes, int]:
        """The names in a folder, without `.` and `..`, and their inodes."""
        if inode.size > _FOLDER_LIMIT:
            raise self._damaged(f"the folder {inode.number} has {inode.size} bytes")
        names = {}
        for chunk in self.content(inode, self._block):
            at = 0
            while at + 8 <= len(chunk):
                number, length, size = struct.unpack_from("<IHB", chunk, at)
                if length < 8 or at + length > len(chunk) or size > length - 8:
                    raise self._damaged(f"the folder {inode.number} is")
                name = chunk[at + 8 : at + 8 + size]
                if number and name not in (b".", b".."):
                    names[name] = number
                at += length
        return names

    def link(self, inode: Inode) -> bytes:
        """The target of a symbolic link."""
        if inode.size > _LONGEST_LINK:
            raise self._damaged(f"the link {inode.number} is")
        if inode.size < _IN_INODE and not inode.flags & _EXTENTS:
            return inode.block[: inode.size]
        return b"".join(self.content(inode))

    def content(self, inode: Inode, chunk: int = CHUNK) -> Iterator[bytes]:
        """The content of a file, in pieces of `chunk` bytes, a multiple of a block; zeros where it
        has holes."""
        if inode.flags & _INLINE:
            raise self._damaged(f"the inode {inode.number} holds its content itself")
        runs = self._runs(inode)
        first, count, start = next(runs, (0, 0, 0))
        for at in range(0, inode.size, chunk):
            size = min(chunk, inode.size - at)
            piece = bytearray(size)
            while count:
                begin, end = first * self._block, (first + count) * self._block
                low, high = max(begin, at), min(end, at + size)
                if low < high and start:
                    read = self._read(start * self._block + low - begin, high - low)
                    piece[low - at : high - at] = read
                if end > at + size:
                    break
                first, count, start = next(runs, (0, 0, 0))
            yield bytes(piece)

    def _runs(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """First block in the file, number of blocks, and first block on the disk, 0 for zeros, of
        each part of a file, in order."""
        found = self._extents(inode.block, _DEEPEST) if inode.flags & _EXTENTS else self._map(inode)
        after = 0
        for first, count, start in found:
            if first < after or start + count > self._blocks:
                raise self._damaged(f"the inode {inode.number} is")
            after = first + count
            yield first, count, start

    def _extents(self, node: bytes, left: int) -> Iterator[tuple[int, int, int]]:
        magic, count, _, depth = struct.unpack_from("<HHHH", node)
        if magic != 0xF30A or depth > left or 12 + 12 * count > len(node):
            raise self._damaged("an extent tree is")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = struct.unpack_from("<4xIH", node, at)
                yield from self._extents(
                    self._read((low | high << 32) * self._block, self._block), depth - 1
                )
            else:
                first, length, high, low = struct.unpack_from("<IHHI", node, at)
                zeros = length > _UNWRITTEN
                yield (
                    first,
                    length - _UNWRITTEN if zeros else length,
                    0 if zeros else (low | high << 32),
                )

    def _map(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """The parts of a file by the block maps of ext2 and ext3."""
        needed = -(-inode.size // self._block)
        blocks = struct.unpack("<15I", inode.block)
        per, first = self._block // 4, 12
        for number, start in enumerate(blocks[: min(12, needed)]):
            if start:
                yield number, 1, start
        for level, start in enumerate(blocks[12:], 1):
            if first < needed and start:
                yield from self._indirect(start, level, first, needed)
            first += per**level

    def _indirect(
        self, block: int, level: int, first: int, needed: int
    ) -> Iterator[tuple[int, int, int]]:
        per = self._block // 4
        covered = per ** (level - 1)
        for number, start in enumerate(
            struct.unpack(f"<{per}I", self._read(block * self._block, self._block))
        ):
            at = first + number * covered
            if at >= needed:
                return
            if start and level > 1:
                yield from self._indirect(start, level - 1, at, needed)
            elif start:
                yield at, 1, start

    def find(self, path: str, *, links: int = 8) -> Inode | None:
        """The inode of a path, through symbolic links; None where there is nothing."""
        parts = [part.encode() for part in path.split("/") if part]
        here, trail = self.inode(ROOT), [self.inode(ROOT)]
        while parts:
            part, *parts = parts
            if part in (b".", b".."):
                trail = trail[: max(1, len(trail) - (part == b".."))]
                here = trail[-1]
                continue
            number = self.folder(here).get(part) if stat.S_ISDIR(here.mode) else None
            if number is None:
                return None
            found = self.inode(number)
            if stat.S_ISLNK(found.mode):
                links -= 1
                if links < 0:
                    return None
                target = self.link(found)
                parts = [each for each in target.split(b"/") if each] + parts
                if target.startswith(b"/"):
                    trail = trail[:1]
                here = trail[-1]
                continue
            here = found
            trail.append(found)
        return here


def read_lines(reader: Reader, path: str, most: int) -> Iterator[str]:
    """The lines of a text file, unpacked where its name ends with `.gz`, up to so many bytes;
    none where there is no such file. Raises FileSystemError."""
    inode = reader.find(path)
    if inode is None or not stat.S_ISREG(inode.mode):
        return
    packed = zlib.decompressobj(31) if path.endswith(".gz") else None
    rest, done = b"", 0
    for chunk in reader.content(inode):
        try:
            data = chunk if packed is None else packed.decompress(chunk, most)
        except zlib.error:
            break
        done += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if done >= most:
            return
    if rest:
        yield rest.decode(errors="replace")
