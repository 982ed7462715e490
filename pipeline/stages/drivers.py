"""Looks, before any boot, whether the image's kernel can drive what a site's machines have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.disk import ext4, foreign_kernel, kernel
from pipeline.disk.boot_entries import find_entry
from pipeline.disk.kernel import SCRATCH, Fault
from pipeline.disk.tree import Tree
from pipeline.errors import KernelError
from pipeline.model import Hardware
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact


@dataclass(frozen=True, kw_only=True)
class CheckDrivers(Stage):
    """Finds the drivers of a site's hardware in the kernel and the initramfs that the image boots;
    or, where the site gives kernel and ramdisk, what in the image would need others of them.

    Its facts are the kernel's version and where each driver is: `kernel`, `initramfs` or `modules`.
    Raises KernelError.
    """

    name: ClassVar[str] = "drivers"
    revision: ClassVar[int] = 3

    hardware: Hardware
    base_image: bool = False
    """Whether the root file system is from a base image; what can be done about it differs."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (root,) = inputs
        context.progress.step("looking for drivers")
        tree = ext4.FileSystem(root.file("root.ext4"), 0)
        if not self.hardware.own_kernel:
            return self._check_under_site_kernel(tree, context)
        remedies = kernel.remedies_of(tree) if self.base_image else SCRATCH
        booted = kernel.read_kernel(tree, context.work, remedies)
        faults = kernel.find_faults(booted, self.hardware, remedies)
        self._refuse(f"the kernel {booted.version} cannot serve", faults)
        return {
            "kernel": booted.version,
            "disks": {name: booted.place(name) for name in self.hardware.disks},
            "networks": {name: booted.place(name) for name in self.hardware.networks},
            "console": self.hardware.console,
        }

    def _check_under_site_kernel(self, tree: Tree, context: Context) -> Mapping[str, Any]:
        """Its facts also tell what pygrub would boot, which other sites of Xen use."""
        self._refuse("the image cannot boot with the kernel of", foreign_kernel.find_faults(tree))
        _, entry = find_entry(tree)
        if entry is None:
            context.progress.output("the image has no GRUB configuration: pygrub cannot boot it")
        return {"kernel": None, "pygrub": None if entry is None else str(entry.kernel)}

    def _refuse(self, what: str, faults: Sequence[Fault]) -> None:
        if faults:
            raise KernelError(
                f"{what} {self.label or 'the site'}: {'; '.join(fault.what for fault in faults)}",
                todo="; ".join(dict.fromkeys(fault.todo for fault in faults)),
            )
