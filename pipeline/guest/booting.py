"""How the image boots: fstab, boot loader and consoles, for a disk with root alone.

Each layout's own GRUB lies in front of the root file system and reads /boot/grub/grub.cfg there.
It has all modules that it needs built in, so it never loads one of the image's own GRUB, which may
be of another version. A base that already has one of our layouts keeps its boot loader unchanged.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.disk import boot_entries, fstab
from pipeline.disk.kernel import INITRAMFS_NAMES
from pipeline.disk.superblock import superblock_at
from pipeline.disk.system import System
from pipeline.disk.untrusted import version_order
from pipeline.guest import kernel_options, network
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.root import keeps_blocks
from pipeline.layouts import LAYOUTS, find_layout
from pipeline.layouts.layout import Layout

_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # the UEFI specification

_GRUB = PurePosixPath("/boot/grub")
_CONFIGURATION = _GRUB / "grub.cfg"
_LEGACY_CONFIGURATION = _GRUB / "menu.lst"
_INITTAB = PurePosixPath("/etc/inittab")
_OUR_DEFAULTS = kernel_options.MORE_DEFAULTS / "99-phantom.cfg"
_RESUME = PurePosixPath("/etc/initramfs-tools/conf.d/resume")

# What distributions call a kernel of version `{}`.
_KERNELS = ("vmlinuz-{}", "bzImage-{}", "kernel-{}", "linux-{}")
# Links that a distribution keeps to the kernel to boot, and to its initramfs.
_KERNEL_LINKS = ("/vmlinuz", "/boot/vmlinuz")
_TITLES = ("Linux", "Linux, the kernel before")
_INITRAMFS_LINKS = ("initrd.img", "initrd", "initramfs.img")

# Ubuntu's variable for a first attempt without the initramfs, and a second one with it.
_TRIES_WITHOUT_INITRAMFS = "initrdfail"
_UPDATE_GRUB = PurePosixPath("/usr/sbin/update-grub")
_GETTYS = (PurePosixPath("/sbin/getty"), PurePosixPath("/sbin/agetty"))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One of our layouts that the base already has: its disk is used unchanged up to root."""

    layout: str
    """`mbr` or `hybrid`."""
    root_start: int
    """Bytes in front of root, with table and boot loader."""
    tail: int
    """Bytes behind root's partition."""
    table: str
    """sfdisk's script of the table; `{size}` stands for root's size in sectors."""


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """A kernel to boot, by paths in the image."""

    image: str
    initramfs: str | None
    linked: bool
    """Whether the image's own links name it, so that an upgraded one will be booted next."""


def configure_boot(image: Image, *, base: Drive) -> Kept | None:
    """Makes the image boot from a disk with root alone.

    Where the base's disk, on the drive `base`, has a layout of ours, its boot loader's
    configuration changes only as far as the console and the names of devices need it, and what is
    needed to make that layout again is returned. Raises UnsafeImageError, FileSystemError.
    """
    files, system = image.files, image.system
    uuid, kind = _identity(image.guest, system)
    kept = _find_kept(image.guest, system, base)
    keep_efi = kept is not None and LAYOUTS[kept.layout].efi is not None
    table = files.read_to_edit(fstab.FSTAB)
    files.write(fstab.FSTAB, fstab.rewrite(table, uuid=uuid, type=kind, keep_efi=keep_efi))
    swap = any(file_system.type == "swap" for file_system in system.file_systems)
    if swap and files.exists(_RESUME):
        files.write(_RESUME, "RESUME=none\n")
    extra = network.kernel_options(image)
    options = _options(image, extra, swap=swap)
    words = [f"root=UUID={uuid}", "ro", *options]
    kernels = _find_kernels(image)
    _follow_everywhere(files, uuid, extra)
    if kept is None or not _boots_elsewhere(files):
        _write_configuration(files, kernels, words)
    if kept is None:
        _forget_modules(files)
        _write_defaults(image, options)
    else:
        _add_to_defaults(image, extra)
    if kept is None or "grub-legacy" not in system.boot_loaders:
        _write_legacy_configuration(files, kernels, words)
    _add_getty(image)
    return kept


def _identity(guest: Guest, system: System) -> tuple[str, str]:
    """UUID and type of the mounted root file system: those of the base's root, unless it had to be
    made anew."""
    if keeps_blocks(system):
        return system.root.uuid, system.root.type
    working = str(guest.handle.mounts()[0])
    return str(guest.handle.vfs_uuid(working)), str(guest.handle.vfs_type(working))


def _find_kept(guest: Guest, system: System, base: Drive) -> Kept | None:
    place = system.root.place
    if place.partition != 1 or not system.boot_code or not keeps_blocks(system):
        return None
    layout = None if _has_other_parts(system) else _layout(system)
    if layout is None:
        return None
    assert place.start is not None
    if layout.table_kind == "mbr" and superblock_at(base.file, 0) is not None:
        return None  # nodes would take the disk for the file system that once filled it
    if layout.efi is not None and not _boots_by_uefi(guest, system, base.device):
        return None
    return Kept(
        layout=layout.name,
        root_start=place.start,
        tail=layout.tail,
        table=_table(guest.shell(f"sfdisk --dump {base.device}")),
    )


def _has_other_parts(system: System) -> bool:
    """Whether a part of the system lies on a file system other than root."""
    apart = ("/", *fstab.EFI_MOUNTS)
    mounts = (file_system.mount for file_system in system.file_systems)
    return any(mount and mount not in apart for mount in mounts)


def _layout(system: System) -> Layout | None:
    """The layout that the partitions are; root is the first one, and the last on the disk."""
    root, *others = system.partitions
    if any(partition.start > root.start for partition in others):
        return None
    return find_layout(system.table, [partition.type for partition in others])


def _boots_by_uefi(guest: Guest, system: System, base: str) -> bool:
    """Whether the EFI system partition has the program that UEFI looks for on an unknown disk."""
    efi = next(entry.number for entry in system.partitions if entry.type == _EFI_SYSTEM)
    script = (
        f"mkdir -p /tmp/phantom-efi && mount -t vfat -o ro {base}{efi} /tmp/phantom-efi "
        "&& { test -e /tmp/phantom-efi/EFI/BOOT/BOOTX64.EFI && echo yes; "
        "umount /tmp/phantom-efi; }"
    )
    try:
        return guest.shell(script).strip() == "yes"
    except RuntimeError:
        if guest.ended:
            raise
        return False


def _table(dump: str) -> str:
    """A script for sfdisk that makes the same table, with `{size}` for the size of partition 1."""
    lines = []
    for line in dump.splitlines():
        name, separator, value = line.partition(" : ")
        if separator:
            number = re.sub(r"^.*?([0-9]+)$", r"\1", name.strip())
            if number == "1":
                value = re.sub(r"\bsize=\s*[0-9]+", "size={size}", value, count=1)
            lines.append(f"{number}: {value.strip()}")
        elif not line.startswith(("device:", "last-lba:")) and line.strip():
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def _options(image: Image, extra: Sequence[str], *, swap: bool) -> list[str]:
    """The kernel's new options, without root's."""
    options = kernel_options.find(image.files)
    # An initramfs of Debian's waits half a minute for the swap that it remembers.
    if swap and image.system.family == "debian" and "noresume" not in options:
        options.append("noresume")
    options += kernel_options.missing(options, extra)
    return [*dict.fromkeys(options), *kernel_options.CONSOLES]


def _find_kernels(image: Image) -> list[_Kernel]:
    """The kernels for the menu, the default first; empty if the image has no kernel."""
    newest, older = (_find_linked(image.files, suffix) for suffix in ("", ".old"))
    if newest is not None:
        return [newest] if older is None else [newest, older]
    names = image.files.names(PurePosixPath("/boot"))
    for version in reversed(image.system.kernels or _versions(names)):
        file = _named(names, _KERNELS, version)
        if file is not None:
            own = file.partition("-")[2]
            initramfs = _named(names, INITRAMFS_NAMES, own, version)
            place = None if initramfs is None else f"/boot/{initramfs}"
            return [_Kernel(image=f"/boot/{file}", initramfs=place, linked=False)]
    return []


def _find_linked(files: ImageFiles, suffix: str) -> _Kernel | None:
    for link in _KERNEL_LINKS:
        if not _leads_to_file(files, f"{link}{suffix}"):
            continue
        for name in _INITRAMFS_LINKS:
            initramfs = f"{posixpath.dirname(link).rstrip('/')}/{name}{suffix}"
            if _leads_to_file(files, initramfs):
                return _Kernel(image=f"{link}{suffix}", initramfs=initramfs, linked=True)
    return None


def _leads_to_file(files: ImageFiles, link: str) -> bool:
    target = files.read_link(PurePosixPath(link))
    if target is None:
        return False
    place = PurePosixPath(posixpath.normpath(target))
    return files.exists(place) and files.read_link(place) is None


def _versions(names: Sequence[str]) -> list[str]:
    """The versions of kernels by their names alone, the newest last."""
    versions = [name.removeprefix("vmlinuz-") for name in names if name.startswith("vmlinuz-")]
    return sorted((name for name in versions if "rescue" not in name), key=version_order)


def _named(names: Sequence[str], patterns: Sequence[str], *versions: str) -> str | None:
    """The name among `names` of what belongs to a kernel. Alpine and Arch name it by its flavour
    alone, which its version ends with."""
    parts = [part for version in versions for part in (version, version.rpartition("-")[2])]
    wanted = (pattern.format(part) for part in parts for pattern in patterns)
    return next((name for name in wanted if name in names), None)


def _write_configuration(files: ImageFiles, kernels: list[_Kernel], options: list[str]) -> None:
    lines = ["# Read by the boot loader in front of the root partition."]
    if kernels and not kernels[0].linked and not files.exists(_UPDATE_GRUB):
        lines.append(
            "# Nothing keeps the names up to date: a new kernel is booted when it is here."
        )
    lines += ["", "set default=0", "set timeout=1"]
    for title, kernel in zip(_TITLES, kernels, strict=False):
        lines += ["", f'menuentry "{title}" {{']
        lines.append(f"    linux {kernel.image} {' '.join(options)}")
        lines += [f"    initrd {kernel.initramfs}"] if kernel.initramfs else []
        lines.append("}")
    files.write(_CONFIGURATION, "".join(f"{line}\n" for line in lines))


def _write_legacy_configuration(
    files: ImageFiles, kernels: list[_Kernel], options: list[str]
) -> None:
    """Writes the file that pygrub reads first. On Xen the console has another name."""
    others = ("console=", "earlyprintk=")
    words = [word for word in options if not word.startswith(others)]
    words += ["console=tty0", "console=hvc0"]
    lines = ["# Read by pygrub on nodes with Xen.", "default 0", "timeout 1"]
    for title, kernel in zip(_TITLES, kernels, strict=False):
        lines += ["", f"title {title}", "root (hd0)"]
        lines.append(f"kernel {kernel.image} {' '.join(words)}")
        lines += [f"initrd {kernel.initramfs}"] if kernel.initramfs else []
    if kernels:
        files.write(_LEGACY_CONFIGURATION, "".join(f"{line}\n" for line in lines))


def _boots_elsewhere(files: ImageFiles) -> bool:
    """Whether the base's own grub.cfg boots from every layout, at the first attempt."""
    text = files.read_to_edit(_CONFIGURATION)
    return bool(kernel_options.GRUB_LINE.search(text)) and _TRIES_WITHOUT_INITRAMFS not in text


def _follow_everywhere(files: ImageFiles, uuid: str, extra: Sequence[str]) -> None:
    """Edits the kernel options in every boot configuration of the image, and nothing else there."""
    configurations = [
        *((path, kernel_options.GRUB_LINE) for path in boot_entries.GRUB_CONFIGURATIONS),
        *((path, kernel_options.LEGACY_LINE) for path in boot_entries.LEGACY_CONFIGURATIONS),
        *((path, kernel_options.EXTLINUX_LINE) for path in kernel_options.EXTLINUX_CONFIGURATIONS),
        *((path, kernel_options.ENTRY_LINE) for path in kernel_options.entries(files)),
        (kernel_options.COMMAND_LINE, re.compile(r"\A")),
    ]
    for path, start in configurations:
        text = files.read_to_edit(path)
        edited = kernel_options.follow_lines(text, start, uuid, extra)
        if text and edited != text:
            files.write(path, edited)
    for path in boot_entries.ENVIRONMENTS:  # blocks of fixed size, filled up with `#`
        text = files.read_to_edit(path)
        edited = kernel_options.follow_lines(text, kernel_options.ENVIRONMENT_LINE, uuid, extra)
        edited = edited.rstrip("#").ljust(len(text), "#")
        if edited != text and len(edited) == len(text):
            files.write(path, edited)


def _forget_modules(files: ImageFiles) -> None:
    """Removes the modules of the image's own GRUB: ours would take them for its own."""
    for name in files.names(_GRUB):
        if re.fullmatch(r"(i386|x86_64)-[a-z]+(-signed)?", name):
            files.remove(_GRUB / name)


def _write_defaults(image: Image, options: Sequence[str]) -> None:
    """Sets what the distribution's own tool goes by when it rewrites grub.cfg."""
    _append_defaults(
        image,
        "\n# For the boot loader in front of root, and the console of a cloud's machine.\n"
        f"GRUB_CMDLINE_LINUX={shlex.quote(' '.join(options))}\n"
        'GRUB_CMDLINE_LINUX_DEFAULT=""\n'
        "GRUB_TERMINAL=console\nGRUB_TIMEOUT=1\nGRUB_DISABLE_OS_PROBER=true\n"
        "unset GRUB_FORCE_PARTUUID\n",
    )


def _add_to_defaults(image: Image, extra: Sequence[str]) -> None:
    files = image.files
    names = files.names(kernel_options.MORE_DEFAULTS)
    paths = [kernel_options.DEFAULTS, *(kernel_options.MORE_DEFAULTS / name for name in names)]
    texts = [files.read_to_edit(path) for path in paths]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    text = "unset GRUB_FORCE_PARTUUID\n" if "GRUB_FORCE_PARTUUID" in "\n".join(lines) else ""
    told = _settings(" ".join(line for line in lines if "GRUB_CMDLINE" in line))
    words = kernel_options.missing(told, extra)
    if not any(word.startswith("console=ttyS0") for word in told):
        words += kernel_options.CONSOLES
    if words:
        text += f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(words)}"\n'
    if text:
        _append_defaults(image, f"\n# The console of a cloud's machine.\n{text}")


def _settings(text: str) -> list[str]:
    """The words `name=value` of a text in shell syntax."""
    words = (word.lstrip("=") for word in re.split(r"[\s\"']+", text))
    return [word for word in words if "=" in word]


def _append_defaults(image: Image, text: str) -> None:
    """Adds to the settings of grub-mkconfig, after all others. Only Debian's reads a folder too."""
    files = image.files
    if not files.exists(kernel_options.DEFAULTS):
        return
    if image.system.family == "debian":
        files.write(_OUR_DEFAULTS, text.lstrip())
    else:
        old = files.read_to_edit(kernel_options.DEFAULTS)
        files.write(kernel_options.DEFAULTS, f"{old.rstrip()}\n{text}")


def _add_getty(image: Image) -> None:
    """Adds a login prompt on the serial console; systemd has one by itself."""
    files, system = image.files, image.system
    if system.init not in ("sysv", "openrc"):
        return
    text = files.read_to_edit(_INITTAB)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    getty = next((path for path in _GETTYS if files.exists(path)), None)
    if not text or getty is None or any("ttyS0" in line for line in lines):
        return
    # BusyBox takes a terminal for the name, and no levels; a name of init's has four letters.
    name, levels = ("ttyS0", "") if system.family == "alpine" else ("S0", "2345")
    # On a machine without the port, init would complain that getty respawns too fast.
    command = (
        "sh -c 'stty -F /dev/ttyS0 >/dev/null 2>&1 || exec sleep 99999; "
        f"exec {getty} -L ttyS0 115200 vt100'"
    )
    files.write(_INITTAB, f"{text.rstrip()}\n{name}:{levels}:respawn:{command}\n")
