"""Reads superblocks of ext file systems (ext4's documentation, "The Super Block")."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk.untrusted import to_name
from pipeline.model import KIB

AT_LEAST = 2 * KIB
"""How many bytes from the start of a file system include the superblock."""

NEW_FEATURES = frozenset(
    {
        *("metadata_csum", "metadata_csum_seed", "bigalloc", "quota", "inline_data", "encrypt"),
        *("casefold", "project", "verity", "ea_inode", "large_dir", "mmp", "orphan_file"),
    }
)
"""Features of ext4 that keep Linux 2.6.32, of 2010, from mounting a file system for writing
(fs/ext4/ext4.h), by e2fsprogs' names."""

_MAGIC = b"\x53\xef"
_CLEAN, _ERRORS = 1, 2
_LARGEST_SHIFT = 6  # blocks of 64 KiB

# e2fsprogs' names of the bits of the three fields, from bit 0.
_FEATURES = (
    "dir_prealloc imagic_inodes has_journal ext_attr resize_inode dir_index lazy_bg - "
    "snapshot_bitmap sparse_super2 fast_commit stable_inodes orphan_file",
    "compression filetype needs_recovery journal_dev meta_bg - extent 64bit mmp flex_bg ea_inode "
    "- dirdata metadata_csum_seed large_dir inline_data encrypt casefold",
    "sparse_super large_file - huge_file uninit_bg dir_nlink extra_isize - quota bigalloc "
    "metadata_csum replica read-only project shared_blocks verity orphan_present",
)
_UNKNOWN = ("FEATURE_C{}", "FEATURE_I{}", "FEATURE_R{}")


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """The facts in a superblock."""

    type: str
    """`ext2`, `ext3`, `ext4`, or `jbd` for an external journal."""
    uuid: str
    label: str
    bytes: int
    """The file system's size; 0 if the superblock gives an impossible block size."""
    clean: bool
    """Whether it was unmounted and has no known error."""
    features: tuple[str, ...]
    """e2fsprogs' names, such as FEATURE_I20 for a feature without one."""
    last_mounted: str
    """The last mount point, if the kernel recorded it."""


def read_superblock(head: bytes) -> Superblock | None:
    """The superblock in a file system's first bytes; None if it is not ext2, ext3 or ext4."""
    block = head[1024:2048]
    if len(block) < 1024 or block[56:58] != _MAGIC:
        return None
    count, shift = struct.unpack_from("<I16xI", block, 4)
    state, fields = struct.unpack_from("<H", block, 58)[0], struct.unpack_from("<III", block, 92)
    features = tuple(_names(fields))
    if "64bit" in features:
        count |= struct.unpack_from("<I", block, 336)[0] << 32
    return Superblock(
        type=_type(*fields),
        uuid=str(uuid.UUID(bytes=block[104:120])),
        label=to_name(block[120:136]),
        bytes=count << (10 + shift) if shift <= _LARGEST_SHIFT else 0,
        clean=state & (_CLEAN | _ERRORS) == _CLEAN,
        features=features,
        last_mounted=to_name(block[136:200]),
    )


def superblock_at(disk: Path, start: int) -> Superblock | None:
    """The superblock of the file system at an offset, in bytes, of a disk; None if it is not ext2,
    ext3 or ext4."""
    with disk.open("rb") as file:
        return read_superblock(os.pread(file.fileno(), AT_LEAST, start))


def is_ext_at(disk: Path, start: int) -> bool:
    """Whether an ext file system starts at an offset, in bytes, and fits on the disk."""
    superblock = superblock_at(disk, start)
    return superblock is not None and 0 < superblock.bytes <= disk.stat().st_size - start


def _type(compatible: int, incompatible: int, read_only: int) -> str:
    """The type by the features, as in libblkid's ext.c."""
    if incompatible & 0x8:
        return "jbd"
    if incompatible & ~0x16 or read_only & ~0x7:
        return "ext4"
    return "ext3" if compatible & 0x4 else "ext2"


def _names(fields: tuple[int, ...]) -> Iterator[str]:
    for field, known, unknown in zip(fields, _FEATURES, _UNKNOWN, strict=True):
        names = dict(enumerate(known.split()))
        for bit in range(32):
            if field >> bit & 1:
                name = names.get(bit, "-")
                yield unknown.format(bit) if name == "-" else name
