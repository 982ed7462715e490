"""What a layout says."""

from __future__ import annotations

from dataclasses import dataclass

SECTOR = 512


@dataclass(frozen=True, kw_only=True)
class BiosBoot:
    """How a BIOS boots the disk: code in the first sector, and GRUB's core at some other place."""

    core_start: int
    """Offset of GRUB's core, in bytes."""
    core_room: int
    """How many bytes it may take there."""
    prefix: str
    """Where GRUB finds its configuration: a partition of the disk that it was read from."""
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EfiBoot:
    """How UEFI boots the disk: GRUB as the one program of an EFI system partition."""

    start: int
    """Offset of the partition, in bytes."""
    size: int
    serial: int
    """The FAT's serial number, of 32 bits: always the same, so that the partition is the same in
    every build and need not be sent again."""
    prefix: str
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How file systems lie on a disk, and what boots them. Root is partition 1 of every layout, and
    the last one on the disk, so that it can grow."""

    name: str
    root_start: int
    """Offset of the root file system, in bytes."""
    tail: int = 0
    """Bytes behind the root partition, for what the table keeps at the disk's end."""
    table: str
    """`sfdisk`'s script of the partition table. `{start}` and `{size}` of root are in sectors;
    `{identifier}` has 8 hexadecimal digits; `{guids[N]}` is partition N's own, `{guids[0]}` the
    disk's."""
    bios: BiosBoot
    efi: EfiBoot | None = None
    tools: tuple[str, ...]
    """The programs whose output lies between table and root file system."""
