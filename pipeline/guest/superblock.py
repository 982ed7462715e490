"""The superblock of an ext file system, by ext4's documentation ("The Super Block")."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.model import KIB

AT_LEAST = 2 * KIB
"""So many bytes of a file system tell all."""

_MAGIC = b"\x53\xef"
_CLEAN, _ERRORS = 1, 2
_LARGEST_SHIFT = 6  # no block is larger than 64 KiB

# By the numbers of the bits of the three fields, in the words of e2fsprogs.
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
    """What a file system says of itself."""

    bytes: int
    clean: bool
    """It was unmounted, and no error was seen in it."""
    features: tuple[str, ...]
    """In e2fsprogs' words, those that it has no name for too."""
    last_mounted: str
    """Where, if the kernel has told."""


def read_superblock(head: bytes) -> Superblock | None:
    """What the beginning of a file system tells; None where it is none of ext2, 3 or 4."""
    block = head[1024:2048]
    if len(block) < 1024 or block[56:58] != _MAGIC:
        return None
    count, shift = struct.unpack_from("<I16xI", block, 4)
    state, fields = struct.unpack_from("<H", block, 58)[0], struct.unpack_from("<III", block, 92)
    if shift > _LARGEST_SHIFT:
        return None
    features = tuple(_names(fields))
    if "64bit" in features:
        count |= struct.unpack_from("<I", block, 336)[0] << 32
    return Superblock(
        bytes=count << (10 + shift),
        clean=state & (_CLEAN | _ERRORS) == _CLEAN,
        features=features,
        last_mounted=block[136:200].partition(b"\0")[0].decode(errors="replace"),
    )


def says_ext(disk: Path, start: int) -> bool:
    """Whether what lies at an offset of a disk calls itself one, be it damaged."""
    with disk.open("rb") as file:
        return os.pread(file.fileno(), 2, start + 1080) == _MAGIC


def superblock_at(disk: Path, start: int) -> Superblock | None:
    """That of the file system at an offset of a disk."""
    with disk.open("rb") as file:
        file.seek(start)
        return read_superblock(file.read(AT_LEAST))


def _names(fields: tuple[int, ...]) -> Iterator[str]:
    for field, known, unknown in zip(fields, _FEATURES, _UNKNOWN, strict=True):
        names = dict(enumerate(known.split()))
        for bit in range(32):
            if field >> bit & 1:
                name = names.get(bit, "-")
                yield unknown.format(bit) if name == "-" else name
