"""Assembles a disk: partition table, boot loader and root file system in one sparse file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import DiskTooSmallError
from pipeline.layouts.layout import SECTOR, Layout
from pipeline.model import MIB, format_size
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact
from pipeline.tools import grub, sfdisk

DISK = "disk.raw"


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

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (source,) = inputs
        root = source.file("root.ext4")
        self._check_size(root.stat().st_size)
        context.progress.step("assembling the disk")
        disk = context.out / DISK
        with disk.open("wb") as file:
            file.truncate(self.size)
        self._write_table(disk)
        code, core = grub.make_bios_loader(
            self.layout.boot_prefix, self.layout.boot_modules, context.work, context.log
        )
        with disk.open("r+b") as file:
            descriptor = file.fileno()
            sparse.write_at(descriptor, code, 0)
            sparse.write_at(descriptor, core, SECTOR)
            sparse.copy_into(root, descriptor, self.layout.root_start)
        return {"bytes": self.size, "root_sha256": source.facts["sha256"]}

    def _check_size(self, root: int) -> None:
        needed = self.layout.root_start + root
        if needed > self.size:
            raise DiskTooSmallError(
                f"the disk of {format_size(self.size)} is too small: the root file system and what "
                f"comes before it take {format_size(needed)}",
                todo=f"set disk_size to {-(-needed // MIB)}MiB or more",
            )

    def _write_table(self, disk: Path) -> None:
        start = self.layout.root_start // SECTOR
        table = self.layout.table.format(
            identifier=self.key[:8], start=start, size=self.size // SECTOR - start
        )
        sfdisk.write_table(disk, table)
