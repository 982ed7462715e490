#!/usr/bin/env python3
"""Sets in each inode of a new ext4 file system what mke2fs took from the tree's history.

    settle_inodes.py FILE SECONDS

mke2fs copies the times of each file's last change of status, which no program can set on a tree,
and of its last use, which reading it changes: both become SECONDS. It counts the links that
arrange_files.py made: one of each regular file that has several names. And each superblock says how
much was written, which depends on the holes of the tree's files.

debugfs could do the same, but takes long for thousands of files. The file system has the features
that write-root-file-system gives it, so neither inodes nor superblocks have checksums.
"""

from __future__ import annotations

import mmap
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

SUPERBLOCK = 1024
GROUP = 32
"""Bytes of a group's descriptor without the feature 64bit."""
INODE_UNINIT = 1
KBYTES_WRITTEN = slice(376, 384)
RESERVED = 10
"""The first inodes: all but the root folder, which is 2, have no times."""
ROOT = 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """A block group."""

    inode_bitmap: int
    inode_table: int
    initialised: bool


class FileSystem:
    """The parts of an ext4 file system in memory that this program changes."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        words = struct.unpack_from("<11I", memory, SUPERBLOCK)
        self.block = 1024 << words[6]
        self.first_block = words[5]
        self.blocks_per_group = words[8]
        self.inodes_per_group = words[10]
        (self.inode_size,) = struct.unpack_from("<H", memory, SUPERBLOCK + 88)
        self._count = -(-(words[1] - self.first_block) // self.blocks_per_group)

    def groups(self) -> Iterator[Group]:
        """The block groups, in order."""
        table = (self.first_block + 1) * self.block
        for number in range(self._count):
            at = table + number * GROUP
            bitmap, inodes = struct.unpack_from("<2I", self._memory, at + 4)
            (flags,) = struct.unpack_from("<H", self._memory, at + 18)
            yield Group(
                inode_bitmap=bitmap, inode_table=inodes, initialised=not flags & INODE_UNINIT
            )

    def inodes(self) -> Iterator[tuple[int, int]]:
        """Number and place of each inode that is in use."""
        for number, group in enumerate(self.groups()):
            if not group.initialised:
                continue
            start = group.inode_bitmap * self.block
            bitmap = self._memory[start : start + self.inodes_per_group // 8]
            for index in _set_bits(bitmap):
                place = group.inode_table * self.block + index * self.inode_size
                yield number * self.inodes_per_group + index + 1, place

    def superblocks(self) -> Iterator[int]:
        """The place of each superblock: the first, and its copies in the groups that have one."""
        yield SUPERBLOCK
        for number in range(1, self._count):
            if any(_is_power(number, base) for base in (3, 5, 7)):
                yield (self.first_block + number * self.blocks_per_group) * self.block


def _set_bits(bitmap: bytes) -> Iterator[int]:
    for place, byte in enumerate(bitmap):
        if byte:
            yield from (place * 8 + bit for bit in range(8) if byte >> bit & 1)


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def time_fields(seconds: int) -> tuple[bytes, bytes]:
    """A time as an inode has it: the lower half, which is signed, and what goes beyond it."""
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return struct.pack("<I", low), struct.pack("<I", (seconds - signed) >> 32 & 3)


def settle(memory: mmap.mmap, seconds: int) -> None:
    """Does what the module says, in memory."""
    system = FileSystem(memory)
    low, high = time_fields(seconds)
    for number, at in system.inodes():
        if number <= RESERVED and number != ROOT:
            continue
        memory[at + 8 : at + 16] = low + low  # last use, last change of status
        memory[at + 132 : at + 136] = high
        memory[at + 140 : at + 144] = high
        mode, links = struct.unpack_from("<H", memory, at)[0], memory[at + 26 : at + 28]
        names = int.from_bytes(links, "little")
        if stat.S_ISREG(mode) and names > 1:
            memory[at + 26 : at + 28] = (names - 1).to_bytes(2, "little")
    for place in system.superblocks():
        memory[place + KBYTES_WRITTEN.start : place + KBYTES_WRITTEN.stop] = bytes(8)


def main() -> None:
    """Reads the arguments and does what the module says."""
    with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        settle(memory, int(sys.argv[2]))


if __name__ == "__main__":
    main()
