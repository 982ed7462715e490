"""Looks, before any boot, whether the image's kernel can drive what a site's machines have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pipeline.errors import KernelError
from pipeline.model import Hardware
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact
from pipeline.tools import ext4, initramfs

_KERNEL_LINK, _INITRAMFS_LINK = PurePosixPath("/vmlinuz"), PurePosixPath("/initrd.img")
_GRUB_CONFIGURATION = PurePosixPath("/boot/grub/grub.cfg")
_MODULE = re.compile(r"([^/]+)\.ko(\.(gz|xz|zst))?$")
_OTHER_KERNEL = "choose another `kernel` in the definition: `auto` takes one that serves the sites"


@dataclass(frozen=True, kw_only=True)
class CheckDrivers(Stage):
    """Finds the drivers of a site's hardware in the kernel and the initramfs that the image boots.

    Its facts are the kernel's version and where each driver is: `kernel`, `initramfs` or `modules`.
    Raises KernelError.
    """

    name: ClassVar[str] = "drivers"

    hardware: Hardware

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (root,) = inputs
        context.progress.step("looking for drivers")
        kernel = _read_kernel(ext4.FileSystem(root.file("root.ext4"), 0), context)
        faults = [*self._disk_faults(kernel), *self._network_faults(kernel)]
        faults += self._console_faults(kernel)
        if faults:
            whats, todos = zip(*faults, strict=True)
            raise KernelError(
                f"the kernel {kernel.version} cannot serve {self.label or 'the site'}: "
                f"{'; '.join(whats)}",
                todo="; ".join(dict.fromkeys(todos)),
            )
        return {
            "kernel": kernel.version,
            "disks": {name: kernel.place(name) for name in self.hardware.disks},
            "networks": {name: kernel.place(name) for name in self.hardware.networks},
            "console": self.hardware.console,
        }

    def _disk_faults(self, kernel: _Kernel) -> Iterator[tuple[str, str]]:
        for name in self.hardware.disks:
            place = kernel.place(name)
            if place is None:
                yield f"it has no {name}, which drives disks there", _OTHER_KERNEL
            elif place == "modules":
                yield (
                    f"{name}, which drives disks there, is not in the initramfs, so root would not "
                    "be found",
                    f"list {name} in the image's /etc/initramfs-tools/modules, before the "
                    "initramfs is made",
                )
            lost = sorted(kernel.needed_by(name) - kernel.built_in - kernel.in_initramfs)
            if place == "initramfs" and lost:
                yield (
                    f"{name} is in the initramfs without {', '.join(lost)}, which it needs",
                    "let initramfs-tools copy modules, which brings what they need",
                )

    def _network_faults(self, kernel: _Kernel) -> Iterator[tuple[str, str]]:
        for name in self.hardware.networks:
            if kernel.place(name) is None:
                yield f"it has no {name}, which drives network cards there", _OTHER_KERNEL

    def _console_faults(self, kernel: _Kernel) -> Iterator[tuple[str, str]]:
        console = self.hardware.console
        if console.startswith("ttyS") and "CONFIG_SERIAL_8250_CONSOLE=y" not in kernel.options:
            yield f"it cannot use {console} as its console", _OTHER_KERNEL
        wanted = re.compile(rf"console={re.escape(console)}(,\S*)?")
        if not any(wanted.fullmatch(word) for word in kernel.command_line):
            yield (
                f"its command line has no console={console}, so that nothing is heard of it",
                f"add console={console} to the first menu entry of the image's "
                f"{_GRUB_CONFIGURATION}",
            )


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """The kernel that an image boots. Modules are named with `_` for `-`, as the kernel does."""

    version: str
    options: frozenset[str]
    """The lines of its configuration."""
    command_line: tuple[str, ...]
    built_in: frozenset[str]
    modules: Mapping[str, frozenset[str]]
    """What can be loaded, with all that each needs besides."""
    in_initramfs: frozenset[str]

    def place(self, driver: str) -> str | None:
        """Where a driver is."""
        name = driver.replace("-", "_")
        if name in self.built_in:
            return "kernel"
        if name in self.in_initramfs:
            return "initramfs"
        return "modules" if name in self.modules else None

    def needed_by(self, driver: str) -> frozenset[str]:
        """The other modules that one needs."""
        return self.modules.get(driver.replace("-", "_"), frozenset())


def _read_kernel(root: ext4.FileSystem, context: Context) -> _Kernel:
    linked = root.read_link(_KERNEL_LINK)
    if linked is None or linked.name not in root.names(linked.parent):
        raise KernelError(
            f"the image has no kernel: {_KERNEL_LINK} leads to none",
            todo="let the operating-system element install one of Debian's kernel packages",
        )
    version = linked.name.removeprefix("vmlinuz-")
    modules = PurePosixPath("/lib/modules", version)
    copy = context.work / "initramfs"
    initrd = root.read_link(_INITRAMFS_LINK)
    if initrd is None or not root.copy_out(initrd, copy):
        raise KernelError(
            f"the image has no initramfs: {_INITRAMFS_LINK} leads to none",
            todo="let the operating-system element make one, as elements/phantom-debian does",
        )
    return _Kernel(
        version=version,
        options=frozenset(root.read(PurePosixPath(f"/boot/config-{version}")).splitlines()),
        command_line=_command_line(root.read(_GRUB_CONFIGURATION)),
        built_in=_module_names(root.read(modules / "modules.builtin").splitlines()),
        modules=_dependencies(root.read(modules / "modules.dep")),
        in_initramfs=_module_names(
            file
            for file in initramfs.list_files(copy, context.work)
            if f"lib/modules/{version}/" in file
        ),
    )


def _command_line(configuration: str) -> tuple[str, ...]:
    """The words of the first `linux` line: what is booted unless somebody chooses."""
    for line in configuration.splitlines():
        words = line.split()
        if words[:1] == ["linux"]:
            return tuple(words[2:])
    return ()


def _dependencies(table: str) -> dict[str, frozenset[str]]:
    """The modules of a `modules.dep`, each with all that it needs."""
    needed = {}
    for line in table.splitlines():
        module, _, others = line.partition(":")
        for name in _module_names([module]):
            needed[name] = _module_names(others.split())
    return needed


def _module_names(files: Iterable[str]) -> frozenset[str]:
    found = (_MODULE.search(file) for file in files)
    return frozenset(match[1].replace("-", "_") for match in found if match is not None)
