"""Defines what a layout is."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTOR = 512

# The name and size, in sectors, of a table at the disk's start, by sfdisk's name. A GPT has an MBR,
# a header, and 128 entries of 128 bytes.
_TABLES = {"dos": ("mbr", 1), "gpt": ("gpt", 34)}
_OTHER_PARTITION = re.compile(r"^(?!1:)[0-9]+: .*\btype=([0-9A-F-]+)", re.MULTILINE)

BASE_IMAGE_MODULES = (
    *("part_gpt", "part_msdos", "true", "search_fs_uuid", "search_fs_file", "probe", "regexp"),
    *("loadenv", "configfile", "sleep"),
    *("all_video", "gfxterm", "gfxterm_background", "gfxmenu", "png", "font", "gettext"),
    *("serial", "terminal", "minicmd", "keystatus", "linux16", "chain", "boot", "lzopio", "xzio"),
)
"""The modules that GRUB has built in besides in base images: those that the configuration of a
distribution's update-grub loads. The modules in the image's /boot/grub may be of another version,
which does not fit."""


@dataclass(frozen=True, kw_only=True)
class BiosBoot:
    """How a BIOS boots the disk: by code in the first sector, and GRUB's core elsewhere."""

    core_start: int
    """Offset of GRUB's core, in bytes."""
    core_room: int
    """The space for GRUB's core, in bytes."""
    prefix: str
    """The folder of GRUB's configuration, on a partition of the disk that GRUB was read from."""
    modules: tuple[str, ...]
    """The modules that GRUB always has built in."""


@dataclass(frozen=True, kw_only=True)
class EfiBoot:
    """How UEFI boots the disk: by GRUB, the only program on the EFI system partition."""

    start: int
    """Offset of the partition, in bytes."""
    size: int
    serial: int
    """The FAT's 32-bit serial number: fixed, so that all builds have the same partition, which need
    not be uploaded again."""
    prefix: str
    modules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How file systems lie on a disk, and what boots them. Root is partition 1 of any table, and
    last on the disk, so that it can grow; without a table it is the whole disk."""

    name: str
    root_start: int
    """Offset of the root file system, in bytes."""
    tail: int = 0
    """Bytes behind the root partition, for a GPT's second table."""
    table: str | None = None
    """sfdisk's script for the partition table, or None. Root's `{start}` and `{size}` are in
    sectors, `{identifier}` has 8 hexadecimal digits, `{guids[N]}` is partition N's GUID and
    `{guids[0]}` the disk's."""
    bios: BiosBoot | None = None
    efi: EfiBoot | None = None
    tools: tuple[str, ...] = ()
    """The programs that write the boot loaders."""

    @property
    def around(self) -> int:
        """Bytes that the layout needs on the disk beside the root partition."""
        return self.root_start + self.tail

    @property
    def table_kind(self) -> str | None:
        """`mbr`, `gpt` or None."""
        return None if self.table is None else self._table[0]

    @property
    def table_bytes(self) -> int:
        """The size of the table at the start of the disk."""
        return 0 if self.table is None else self._table[1] * SECTOR

    @property
    def _table(self) -> tuple[str, int]:
        assert self.table is not None
        return _TABLES[self.table.splitlines()[0].removeprefix("label: ")]

    @property
    def other_types(self) -> tuple[str, ...]:
        """The types of the partitions beside root, sorted."""
        return tuple(sorted(_OTHER_PARTITION.findall(self.table or "")))
