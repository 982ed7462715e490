"""What a layout says."""

from __future__ import annotations

from dataclasses import dataclass

SECTOR = 512


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How file systems lie on a disk, and what boots them."""

    name: str
    root_start: int
    """Offset of the root file system, in bytes."""
    table: str
    """`sfdisk`'s script of the partition table; `{start}` and `{size}` of root are in sectors."""
    boot_prefix: str
    """Where GRUB finds its configuration: a partition of the disk that it was read from."""
    boot_modules: tuple[str, ...]
