"""What a layout says."""

from __future__ import annotations

from dataclasses import dataclass

SECTOR = 512

BASE_IMAGE_MODULES = (
    *("part_gpt", "part_msdos", "true", "search_fs_uuid", "search_fs_file", "probe", "regexp"),
    *("loadenv", "configfile", "sleep"),
    *("all_video", "gfxterm", "gfxterm_background", "gfxmenu", "png", "font", "gettext"),
    *("serial", "terminal", "minicmd", "keystatus", "linux16", "chain", "boot", "lzopio", "xzio"),
)
"""What GRUB has built in besides where the image is a base image's: what the configuration asks for
that a distribution's own update-grub writes. What lies in the image's /boot/grub may be of another
version, which does not fit."""


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
    """What GRUB has built in at least."""


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
    """How file systems lie on a disk, and what boots them. Root is partition 1 of every table, and
    the last one on the disk, so that it can grow; without a table it is the whole disk."""

    name: str
    root_start: int
    """Offset of the root file system, in bytes."""
    tail: int = 0
    """Bytes behind the root partition, for what the table keeps at the disk's end."""
    table: str | None = None
    """`sfdisk`'s script of the partition table; None: there is none. `{start}` and `{size}` of root
    are in sectors; `{identifier}` has 8 hexadecimal digits; `{guids[N]}` is partition N's own,
    `{guids[0]}` the disk's."""
    bios: BiosBoot | None = None
    efi: EfiBoot | None = None
    tools: tuple[str, ...] = ()
    """The programs whose output lies between table and root file system."""
