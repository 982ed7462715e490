"""Finds the kernel that an image boots, and its drivers, in the image's root file system."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.disk import fstab, initramfs
from pipeline.disk.boot_entries import Entry, find_entry
from pipeline.disk.fstab import FSTAB
from pipeline.disk.os_release import read_os_release
from pipeline.disk.tree import Tree
from pipeline.disk.untrusted import lines_of, version_order
from pipeline.errors import KernelError
from pipeline.model import Hardware

_KERNEL_LINKS = (PurePosixPath("/vmlinuz"), PurePosixPath("/boot/vmlinuz"))
_INITRAMFS_LINKS = (PurePosixPath("/initrd.img"), PurePosixPath("/boot/initrd.img"))
_BOOT = PurePosixPath("/boot")
_KERNEL_NAME = re.compile(r"^(?:vmlinuz|vmlinux|bzImage|kernel|linux)-(.+)$")
INITRAMFS_NAMES = (
    *("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initrd-{}.img", "initramfs-{}"),
    *("initramfs.img-{}", "initramfs-genkernel-x86_64-{}", "initramfs-genkernel-{}"),
)
"""Distributions' names for the initramfs of a kernel of version `{}`."""

_MODULE = re.compile(r"([^/]+)\.ko(?:\.(?:gz|xz|zst|lz4))?")
_LONGEST_CHAIN = 8  # of symbolic links
_MOST_LINES = 50_000  # five times those of the largest list of options or modules


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The kernel that an image boots. Like the kernel, we write modules' names with `_` for `-`."""

    version: str
    options: frozenset[str]
    """The lines of the kernel's configuration; empty if the image does not have it."""
    command_line: tuple[str, ...]
    configuration: PurePosixPath
    """The file with the command line."""
    built_in: frozenset[str]
    modules: Mapping[str, frozenset[str]]
    """The loadable modules, each with all its dependencies."""
    in_initramfs: frozenset[str]
    root_type: str = "ext4"
    """Root's type in fstab."""

    def place(self, driver: str) -> str | None:
        """Where a driver is: `kernel`, `initramfs` or `modules`; None if it does not exist."""
        name = driver.replace("-", "_")
        if name in self.built_in:
            return "kernel"
        if name in self.in_initramfs:
            return "initramfs"
        return "modules" if name in self.modules else None

    def needed_by(self, driver: str) -> frozenset[str]:
        """All dependencies of a module."""
        return self.modules.get(driver.replace("-", "_"), frozenset())


@dataclass(frozen=True)
class Fault:
    """Why a kernel cannot serve a site, and what to do about it."""

    what: str
    todo: str


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What users can do, depending on the image's source."""

    kernel: str
    """To get another kernel."""
    initramfs: str
    """To get the driver `{0}` into the initramfs."""
    dependency: str
    """To get a driver's dependencies into the initramfs."""
    missing: str
    """If the image has no kernel, or no initramfs for it."""


SCRATCH = Remedies(
    kernel="choose another `kernel` in the definition: `auto` takes one that serves the sites",
    initramfs="list {0} in the image's /etc/initramfs-tools/modules, before the initramfs is made",
    dependency="let initramfs-tools copy modules, which brings what they need",
    missing="let the operating-system element install one of Debian's kernel packages and make its "
    "initramfs, as elements/phantom-debian does",
)

_KERNEL_PACKAGES = {
    "debian": "linux-image-amd64",
    "ubuntu": "linux-image-generic",
    "rhel": "kernel",
    "fedora": "kernel",
    "suse": "kernel-default",
    "alpine": "linux-lts",
    "arch": "linux",
}
"""The package of the kernel with all drivers, by the distribution's ID in os-release."""

_GENERATORS = {
    "/etc/initramfs-tools": "write MODULES=most into the image's "
    "/etc/initramfs-tools/initramfs.conf and run `update-initramfs -u -k all`",
    "/etc/dracut.conf.d": "run `dracut --no-hostonly --force --regenerate-all`",
    "/etc/mkinitcpio.d": "take autodetect out of the HOOKS in the image's /etc/mkinitcpio.conf and "
    "run `mkinitcpio -P`",
    "/etc/mkinitfs": "add {0} to the image's /etc/mkinitfs and run `mkinitfs`",
}
"""How to put all drivers into an initramfs, by the folder of the program that makes it."""


def remedies_of(tree: Tree) -> Remedies:
    """What users can do about a base image's kernel."""
    release = read_os_release(tree.read)
    names = () if release is None else (release.id, *release.like)
    package = next((_KERNEL_PACKAGES[name] for name in names if name in _KERNEL_PACKAGES), None)
    wanted = "a kernel's package" if package is None else f"`packages: [{package}]`"
    other_kernel = (
        f"add {wanted} to the definition and `network: true` below its base_image, "
        "or choose another base image"
    )
    acts = [act for folder, act in _GENERATORS.items() if tree.names(PurePosixPath(folder))]
    remake = f"let a script of the definition {acts[0]}" if acts else "choose another base image"
    return Remedies(kernel=other_kernel, initramfs=remake, dependency=remake, missing=other_kernel)


def find_faults(kernel: Kernel, hardware: Hardware, remedies: Remedies) -> list[Fault]:
    """Why a kernel cannot serve a site's machines; empty if it can."""
    networks = [
        Fault(f"it has no {name}, which drives network cards there", remedies.kernel)
        for name in hardware.networks
        if kernel.place(name) is None
    ]
    return [
        *_disk_faults(kernel, hardware, remedies),
        *networks,
        *_console_faults(kernel, hardware.console, remedies),
    ]


def _disk_faults(kernel: Kernel, hardware: Hardware, remedies: Remedies) -> Iterator[Fault]:
    purposes = dict.fromkeys(hardware.disks, "drives disks there")
    for name, purpose in {**purposes, _root_driver(kernel): "reads the root file system"}.items():
        place = kernel.place(name)
        if place is None:
            yield Fault(f"it has no {name}, which {purpose}", remedies.kernel)
        elif place == "modules":
            yield Fault(
                f"{name}, which {purpose}, is not in the initramfs, so root would not be found",
                remedies.initramfs.format(name),
            )
        lost = sorted(kernel.needed_by(name) - kernel.built_in - kernel.in_initramfs)
        if place == "initramfs" and lost:
            yield Fault(
                f"{name} is in the initramfs without {', '.join(lost)}, which it needs",
                remedies.dependency.format(name),
            )


def _root_driver(kernel: Kernel) -> str:
    """The driver of the root file system. Either driver reads ext3, and old kernels lack ext4."""
    early = kernel.place("ext3") in ("kernel", "initramfs")
    return "ext3" if kernel.root_type == "ext3" and early else "ext4"


def _console_faults(kernel: Kernel, console: str, remedies: Remedies) -> Iterator[Fault]:
    # Without its configuration, a distribution's kernel can be taken to have a serial console.
    has_serial = not kernel.options or "CONFIG_SERIAL_8250_CONSOLE=y" in kernel.options
    if console.startswith("ttyS") and not has_serial:
        yield Fault(f"it cannot use {console} as its console", remedies.kernel)
    wanted = re.compile(rf"console={re.escape(console)}(,\S*)?")
    if not any(wanted.fullmatch(word) for word in kernel.command_line):
        yield Fault(
            f"its command line has no console={console}, so its messages cannot be read",
            f"add console={console} to the first menu entry of the image's {kernel.configuration}",
        )


def read_kernel(tree: Tree, work: Path, remedies: Remedies) -> Kernel:
    """The kernel that the image boots by default; the folder `work` is for copies of its files.
    Raises KernelError if the image has no kernel, or no initramfs for it."""
    configuration, entry = find_entry(tree)
    kernel = _find_kernel(tree, entry)
    if kernel is None:
        named = f"{configuration} names {entry.kernel}, and that leads to none" if entry else ""
        where = named or "there is none in /boot"
        raise KernelError(f"the image has no kernel: {where}", todo=remedies.missing)
    version = _find_version(tree, kernel, work)
    packed = _find_initramfs(tree, entry, kernel, version)
    copy = work / "initramfs"
    if packed is None or not tree.copy_out(packed, copy):
        raise KernelError(f"the image has no initramfs for {kernel}", todo=remedies.missing)
    modules = PurePosixPath("/lib/modules", version)
    # Some distributions keep the configuration with the modules.
    options = tree.read(_BOOT / f"config-{version}") or tree.read(modules / "config")
    return Kernel(
        version=version,
        options=frozenset(islice(lines_of(options), _MOST_LINES)),
        command_line=() if entry is None else entry.command_line,
        configuration=configuration,
        built_in=_module_names(
            islice(lines_of(tree.read(modules / "modules.builtin")), _MOST_LINES)
        ),
        modules={
            name: _module_names(needed)
            for name, (_, *needed) in dependencies_of(tree.read(modules / "modules.dep")).items()
        },
        in_initramfs=_module_names(
            file for file in initramfs.list_files(copy, work) if f"lib/modules/{version}/" in file
        ),
        root_type=next(
            (line.type for line in fstab.parse(tree.read(FSTAB)) if line.mount == "/"), "ext4"
        ),
    )


def _find_kernel(tree: Tree, entry: Entry | None) -> PurePosixPath | None:
    """The kernel's file: that of the boot loader's entry, if there is one; else that of a
    distribution's link; else the newest."""
    if entry is not None:
        return _resolve_any(tree, [entry.kernel, _BOOT / entry.kernel.relative_to("/")])
    linked = _resolve_any(tree, _KERNEL_LINKS)
    if linked is not None:
        return linked
    kernels = [name for name in tree.names(_BOOT) if _KERNEL_NAME.match(name)]
    kernels = [name for name in kernels if "rescue" not in name and not name.endswith(".old")]
    return _BOOT / max(kernels, key=version_order) if kernels else None


def _find_version(tree: Tree, kernel: PurePosixPath, work: Path) -> str:
    """A kernel's version by its file's name, or by its header if that version has no modules."""
    match = _KERNEL_NAME.match(kernel.name)
    version = kernel.name if match is None else match[1]
    if tree.names(PurePosixPath("/lib/modules", version)):
        return version
    copy = work / "kernel"
    return (_read_version(copy) if tree.copy_out(kernel, copy) else None) or version


def _read_version(kernel: Path) -> str | None:
    """The version in an x86 kernel's header: the boot protocol's `kernel_version`."""
    with kernel.open("rb") as file:
        head = file.read(1 << 16)
    if head[0x202:0x206] != b"HdrS":
        return None
    start = 0x200 + int.from_bytes(head[0x20E:0x210], "little")
    words = head[start : start + 256].split(b"\0")[0].decode("ascii", "replace").split()
    return words[0] if words and re.fullmatch(r"[A-Za-z0-9._+~-]+", words[0]) else None


def _find_initramfs(
    tree: Tree, entry: Entry | None, kernel: PurePosixPath, version: str
) -> PurePosixPath | None:
    if entry is not None and entry.initramfs:
        last = entry.initramfs[-1]  # those before it hold microcode
        return _resolve_any(tree, [last, _BOOT / last.relative_to("/")])
    suffix = kernel.name.removeprefix("vmlinuz-")
    names = [name.format(part) for part in (version, suffix) for name in INITRAMFS_NAMES]
    beside = _resolve_any(tree, [kernel.parent / name for name in names])
    return beside or _resolve_any(tree, _INITRAMFS_LINKS)


def _resolve_any(tree: Tree, paths: Sequence[PurePosixPath]) -> PurePosixPath | None:
    return next(filter(None, (_resolve(tree, path) for path in paths)), None)


def _resolve(tree: Tree, path: PurePosixPath) -> PurePosixPath | None:
    """The file at a path, through symbolic links; None if there is no such file."""
    for _ in range(_LONGEST_CHAIN):
        if path.name not in tree.names(path.parent):
            return None
        target = tree.read_link(path)
        if target is None:
            return path
        path = PurePosixPath("/", posixpath.normpath(target).lstrip("/"))
    return None


def dependencies_of(table: str) -> dict[str, tuple[str, ...]]:
    """The modules in a `modules.dep` by name: each one's file, then those of its dependencies. Load
    the last one first."""
    modules = {}
    for line in islice(lines_of(table), _MOST_LINES):
        module, _, others = line.partition(":")
        for name in _module_names([module]):
            modules[name] = (module, *others.split())
    return modules


def _module_names(files: Iterable[str]) -> frozenset[str]:
    matches = (_MODULE.fullmatch(file.rpartition("/")[2]) for file in files)
    return frozenset(match[1].replace("-", "_") for match in matches if match is not None)
