"""Assembles a disk: partition table, boot loaders and root file system in one sparse file."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import DiskTooSmallError, StageFailedError
from pipeline.layouts.layout import SECTOR, EfiBoot, Layout
from pipeline.model import MIB, format_size
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact
from pipeline.tools import fat, grub, sfdisk

DISK = "disk.raw"

_NAMESPACE = uuid.UUID("d1eeef3a-ff28-4105-9457-10fe8705fd07")  # of our disks' GUIDs; drawn once
_NUMBERS = 16  # of the GUIDs that a layout can name: the disk's, and partitions 1 to 15
# What UEFI starts from a disk that it has no entry for: the specification's own path.
_EFI_PROGRAM = PurePosixPath("/EFI/BOOT/BOOTX64.EFI")


@dataclass(frozen=True, kw_only=True)
class AssembleDisk(Stage):
    """The disk that a site's machines boot from, raw and sparse. Needs no root rights.

    The root file system lies in it byte for byte; where its partition is larger, it grows at the
    first boot. Raises DiskTooSmallError.
    """

    name: ClassVar[str] = "disk"

    layout: Layout
    size: int
    """Bytes of the whole disk."""
    tools: Mapping[str, str]
    """Versions of the programs whose output lies in the result."""

    @property
    def requires(self) -> tuple[str, ...]:
        return (self.name,) if self.layout.efi is None else (self.name, "disk for UEFI")

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (source,) = inputs
        root = source.file("root.ext4")
        self._check_size(root.stat().st_size)
        context.progress.step("assembling the disk")
        disk = context.out / DISK
        with disk.open("wb") as file:
            file.truncate(self.size)
        self._write_table(disk)
        with disk.open("r+b") as file:
            self._write_bios_loader(file.fileno(), context)
            if self.layout.efi is not None:
                system = _make_efi_system(self.layout.efi, context)
                sparse.copy_into(system, file.fileno(), self.layout.efi.start)
            sparse.copy_into(root, file.fileno(), self.layout.root_start)
        return {"bytes": self.size, "root_sha256": source.facts["sha256"]}

    def _check_size(self, root: int) -> None:
        needed = self.layout.root_start + root + self.layout.tail
        if needed > self.size:
            raise DiskTooSmallError(
                f"the disk of {format_size(self.size)} is too small: the root file system and what "
                f"lies around it take {format_size(needed)}",
                todo=f"set disk_size to {-(-needed // MIB)}MiB or more",
            )

    def _write_table(self, disk: Path) -> None:
        start, end = self.layout.root_start, self.size - self.layout.tail
        table = self.layout.table.format(
            identifier=self.key[:8],
            guids=[uuid.uuid5(_NAMESPACE, f"{self.key} {number}") for number in range(_NUMBERS)],
            start=start // SECTOR,
            size=(end - start) // SECTOR,
        )
        sfdisk.write_table(disk, table)

    def _write_bios_loader(self, disk: int, context: Context) -> None:
        bios = self.layout.bios
        code, core = grub.make_bios_loader(
            bios.prefix, bios.modules, bios.core_start // SECTOR, context.work, context.log
        )
        if len(core) > bios.core_room:
            raise StageFailedError(
                f"GRUB's core of {len(core)} bytes has no room in the layout {self.layout.name}",
                todo="build on a release of Debian that ARCHITECTURE.md names",
            )
        sparse.write_at(disk, code, 0)
        sparse.write_at(disk, core, bios.core_start)


def _make_efi_system(efi: EfiBoot, context: Context) -> Path:
    """The EFI system partition in a file."""
    program = grub.make_efi_program(efi.prefix, efi.modules, context.work, context.log)
    system = context.work / "efi.fat"
    fat.make(
        system,
        efi.size,
        {_EFI_PROGRAM: program},
        label="EFI",
        serial=efi.serial,
        start=efi.start,
    )
    return system
