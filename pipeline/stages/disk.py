"""Assembles a disk: partition table, boot loaders and root file system in one sparse file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import DiskTooSmallError, StageFailedError
from pipeline.layouts.layout import BASE_IMAGE_MODULES, SECTOR, BiosBoot, EfiBoot, Layout
from pipeline.model import MIB, format_size
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact
from pipeline.tools import fat, grub, sfdisk

PASSED_ON = ("python",)
"""Facts of a root file system that those of its images have too, where there are any."""
DISK = "disk.raw"
HEAD = "head.raw"
"""What lies before root on a base image's disk that is kept: a file of the stage `root`."""

_NAMESPACE = uuid.UUID("d1eeef3a-ff28-4105-9457-10fe8705fd07")  # of our disks' GUIDs; drawn once
_NUMBERS = 16  # of the GUIDs that a layout can name: the disk's, and partitions 1 to 15
# What UEFI starts from a disk that it has no entry for: the specification's own path.
_EFI_PROGRAM = PurePosixPath("/EFI/BOOT/BOOTX64.EFI")
_BOOT_CODE = 440  # bytes of the first sector before what belongs to the table

TOOL_VERSIONS: Mapping[str, Callable[[], str]] = {"grub": grub.version, "mtools": fat.version}
"""The programs whose output lies in a disk, and how to ask for their versions."""


@dataclass(frozen=True, kw_only=True)
class AssembleDisk(Stage):
    """The disk that a site's machines boot from, raw and sparse. Needs no root rights.

    The root file system lies in it byte for byte; where its partition is larger, it grows at the
    first boot. If it is from a base image that has this layout already (`kept` in its facts), all
    that lies before root is the base image's. Raises DiskTooSmallError.
    """

    name: ClassVar[str] = "disk"

    layout: Layout
    size: int
    """Bytes of the whole disk."""
    tools: Mapping[str, str]
    """Versions of the programs whose output lies in the result."""

    @property
    def requires(self) -> tuple[str, ...]:
        if self.layout.table is None:
            return ()
        return (self.name,) if self.layout.efi is None else (self.name, "disk for UEFI")

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (source,) = inputs
        root = source.file("root.ext4")
        kept = source.facts.get("kept") or {}
        kept = kept if kept.get("layout") == self.layout.name else {}
        start = kept.get("root_start", self.layout.root_start)
        tail = kept.get("tail", self.layout.tail)
        self._check_size(start, root.stat().st_size, tail)
        context.progress.step("assembling the disk")
        disk = context.out / DISK
        with disk.open("wb") as file:
            file.truncate(self.size)
        room = (self.size - tail - start) // SECTOR
        if kept:
            sfdisk.write_table(disk, kept["table"].replace("{size}", str(room)))
            self._copy_head(source.file(HEAD), disk)
        elif self.layout.table is not None:
            sfdisk.write_table(disk, self._table(self.layout.table, room))
            more = BASE_IMAGE_MODULES if "system" in source.facts else ()
            self._write_loaders(disk, more, context)
        with disk.open("r+b") as file:
            sparse.copy_into(root, file.fileno(), start)
        return {
            "bytes": self.size,
            "root_sha256": source.facts.get("sha256"),
            "identities": source.facts.get("identities"),
            **{name: source.facts[name] for name in PASSED_ON if name in source.facts},
        }

    def _check_size(self, start: int, root: int, tail: int) -> None:
        needed = start + root + tail
        if needed > self.size:
            around = " and what lies around it take" if start or tail else " takes"
            raise DiskTooSmallError(
                f"the disk of {format_size(self.size)} is too small: the root file system"
                f"{around} {format_size(needed)}",
                todo=f"set disk_size to {-(-needed // MIB)}MiB or more",
            )

    def _table(self, table: str, room: int) -> str:
        return table.format(
            identifier=self.key[:8],
            guids=[uuid.uuid5(_NAMESPACE, f"{self.key} {number}") for number in range(_NUMBERS)],
            start=self.layout.root_start // SECTOR,
            size=room,
        )

    def _copy_head(self, head: Path, disk: Path) -> None:
        """Boot code, and what lies between table and root: GRUB's core, other partitions."""
        table = self.layout.table_bytes
        with head.open("rb") as source, disk.open("r+b") as file:
            code = os.pread(source.fileno(), _BOOT_CODE, 0)
            sparse.write_at(file.fileno(), code, 0)
            for offset, chunk in sparse.data_chunks(source.fileno(), head.stat().st_size):
                skipped = max(0, table - offset)
                sparse.write_at(file.fileno(), chunk[skipped:], offset + skipped)

    def _write_loaders(self, disk: Path, more: Sequence[str], context: Context) -> None:
        """Boot loaders, with more modules of GRUB than the layout says."""
        with disk.open("r+b") as file:
            if self.layout.bios is not None:
                self._write_bios_loader(self.layout.bios, more, file.fileno(), context)
            if self.layout.efi is not None:
                _write_efi_system(self.layout.efi, more, file.fileno(), context)

    def _write_bios_loader(
        self, bios: BiosBoot, more: Sequence[str], disk: int, context: Context
    ) -> None:
        modules = _with(bios.modules, more)
        code, core = grub.make_bios_loader(
            bios.prefix, modules, bios.core_start // SECTOR, context.work, context.log
        )
        if len(core) > bios.core_room:
            raise StageFailedError(
                f"GRUB's core of {len(core)} bytes has no room in the layout {self.layout.name}",
                todo="build on a release of Debian that ARCHITECTURE.md names",
            )
        sparse.write_at(disk, code, 0)
        sparse.write_at(disk, core, bios.core_start)


def _with(modules: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*modules, *more)))


def _write_efi_system(efi: EfiBoot, more: Sequence[str], disk: int, context: Context) -> None:
    modules = _with(efi.modules, more)
    program = grub.make_efi_program(efi.prefix, modules, context.work, context.log)
    system = context.work / "efi.fat"
    fat.make(
        system, efi.size, {_EFI_PROGRAM: program}, label="EFI", serial=efi.serial, start=efi.start
    )
    sparse.copy_into(system, disk, efi.start)
