"""How the image boots: fstab, boot loader and consoles, for a disk with root alone.

Each layout's own GRUB lies in front of the root file system and reads /boot/grub/grub.cfg there.
It has built in what it may need, so no module of the image's GRUB, perhaps another version's, is
ever loaded. A base that has a layout of ours already keeps its own boot loader as it is.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.guest import fstab, kernel_options, network
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.root import EXT, STAYING
from pipeline.guest.superblock import says_ext
from pipeline.guest.system import Partition, System
from pipeline.model import MIB

_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"  # GRUB's manual
_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # the UEFI specification
_TAIL = MIB  # the second table takes 33 sectors of it

_GRUB = PurePosixPath("/boot/grub")
_CONFIGURATION = _GRUB / "grub.cfg"
_LEGACY_CONFIGURATION = _GRUB / "menu.lst"
_FSTAB = PurePosixPath("/etc/fstab")
_INITTAB = PurePosixPath("/etc/inittab")
_OUR_DEFAULTS = kernel_options.MORE_DEFAULTS / "99-phantom.cfg"
_RESUME = PurePosixPath("/etc/initramfs-tools/conf.d/resume")

# What distributions call a kernel of version `{}`, and its initramfs.
_KERNELS = ("vmlinuz-{}", "bzImage-{}", "kernel-{}", "linux-{}")
_INITRAMFSES = (
    *("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initramfs-{}", "initrd-{}.img"),
    *("initramfs-genkernel-x86_64-{}", "initramfs-genkernel-{}"),
)
# Links that a distribution keeps on the kernel that is to be booted, and on its initramfs.
_KERNEL_LINKS = ("/vmlinuz", "/boot/vmlinuz")
_INITRAMFS_LINKS = ("initrd.img", "initrd", "initramfs.img")

# Boots with the kernel alone first, and again with the initramfs when that failed: Ubuntu's.
_TRIES_WITHOUT_INITRAMFS = "initrdfail"
_UPDATE_GRUB = PurePosixPath("/usr/sbin/update-grub")
_GETTYS = (PurePosixPath("/sbin/getty"), PurePosixPath("/sbin/agetty"))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A layout of ours that a base has already: its disk up to root can be used as it is."""

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


def configure_boot(guest: Guest, files: ImageFiles, system: System, *, base: Drive) -> Kept | None:
    """Makes the image, whose root is mounted at /, boot from a disk with root alone.

    The base's disk is looked at on the drive `base`: where it has a layout of ours, its boot
    loader's configuration changes only as far as the console and the names of devices need it,
    and what the layout is made again from is returned. Raises UnsafeImageError, FileSystemError.
    """
    uuid, kind = _identity(guest, system)
    kept = _find_kept(guest, system, base)
    keep_efi = kept is not None and kept.layout == "hybrid"
    table = kernel_options.read_text(files, _FSTAB)
    _write(files, _FSTAB, fstab.rewrite(table, uuid=uuid, type=kind, keep_efi=keep_efi))
    swap = any(each.type == "swap" for each in system.file_systems)
    if swap and files.exists(_RESUME):
        files.write(_RESUME, "RESUME=none\n")
    extra = network.kernel_options(files, system)
    options = _options(files, system, extra, swap=swap)
    kernels = _find_kernels(files, system)
    _follow_everywhere(files, uuid, extra)
    if kept is None or not _boots_elsewhere(files):
        _write_configuration(files, kernels, uuid, options)
    if kept is None:
        _forget_modules(files)
        _write_defaults(files, system, options)
    else:
        _add_to_defaults(files, system, extra)
    if kept is None or "grub-legacy" not in system.boot_loaders:
        _write_legacy_configuration(files, kernels, uuid, options)
    _add_getty(files, system)
    return kept


def _identity(guest: Guest, system: System) -> tuple[str, str]:
    """UUID and type of the root file system that is mounted: those of the base's, unless that had
    to be made anew."""
    root = system.root
    if root.type in EXT and STAYING.isdisjoint(system.root_features):
        return root.uuid, root.type
    working = str(guest.handle.mounts()[0])
    return str(guest.handle.vfs_uuid(working)), str(guest.handle.vfs_type(working))


def _find_kept(guest: Guest, system: System, base: Drive) -> Kept | None:
    root = system.root
    if root.type not in EXT or root.place.partition != 1 or not system.boot_code:
        return None
    if not STAYING.isdisjoint(system.root_features) or _has_other_parts(system):
        return None
    assert root.place.start is not None
    layout = _layout(system)
    if layout == "mbr" and says_ext(base.file, 0):
        return None  # nodes would take the whole disk for a file system, which it once was
    if layout is None or (layout == "hybrid" and not _boots_by_uefi(guest, system, base.device)):
        return None
    return Kept(
        layout=layout,
        root_start=root.place.start,
        tail=_TAIL if layout == "hybrid" else 0,
        table=_table(str(guest.handle.debug("sh", [f"sfdisk --dump {base.device}"]))),
    )


def _has_other_parts(system: System) -> bool:
    """Whether something of the system lies outside root."""
    apart = ("/", *fstab.EFI_MOUNTS)
    return any(each.mount and each.mount not in apart for each in system.file_systems)


def _layout(system: System) -> str | None:
    """The layout of ours that the partitions are; root is the first one."""
    if system.table == "mbr":
        return "mbr" if len(system.partitions) == 1 else None
    if system.table != "gpt":
        return None
    root, *others = system.partitions
    last = all(each.start < root.start for each in others)
    types = sorted(each.type for each in others)
    return "hybrid" if last and types == sorted((_BIOS_BOOT, _EFI_SYSTEM)) else None


def _boots_by_uefi(guest: Guest, system: System, base: str) -> bool:
    """Whether a machine that does not know the disk finds a program on it."""
    efi = _partition(system, _EFI_SYSTEM)
    script = (
        f"mkdir -p /tmp/phantom-efi && mount -t vfat -o ro {base}{efi.number} /tmp/phantom-efi "
        "&& { test -e /tmp/phantom-efi/EFI/BOOT/BOOTX64.EFI && echo yes; "
        "umount /tmp/phantom-efi; }"
    )
    try:
        return str(guest.handle.debug("sh", [script])).strip() == "yes"
    except RuntimeError:
        if guest.ended:
            raise
        return False


def _partition(system: System, kind: str) -> Partition:
    return next(each for each in system.partitions if each.type == kind)


def _table(dump: str) -> str:
    """A script of sfdisk that makes the same table with another size of partition 1."""
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


def _options(files: ImageFiles, system: System, extra: Sequence[str], *, swap: bool) -> list[str]:
    """The kernel's options but for root's, as they are to be."""
    found = kernel_options.find(files)
    # An initramfs of Debian's waits half a minute for the swap that it remembers.
    if swap and system.family == "debian" and "noresume" not in found:
        found.append("noresume")
    found += kernel_options.missing(found, extra)
    return [*dict.fromkeys(found), *kernel_options.CONSOLES]


def _find_kernels(files: ImageFiles, system: System) -> list[_Kernel]:
    """The kernels for the menu, the one to boot first; none where the image has none."""
    found = [_find_linked(files, suffix) for suffix in ("", ".old")]
    if found[0] is not None:
        return [each for each in found if each is not None]
    names = files.names(PurePosixPath("/boot"))
    for version in reversed(system.kernels or _versions(names)):
        image = _named(names, _KERNELS, version)
        if image is not None:
            own = image.partition("-")[2]
            initramfs = _named(names, _INITRAMFSES, own) or _named(names, _INITRAMFSES, version)
            place = None if initramfs is None else f"/boot/{initramfs}"
            return [_Kernel(image=f"/boot/{image}", initramfs=place, linked=False)]
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
    place = PurePosixPath(posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
    return files.exists(place) and files.read_link(place) is None


def _versions(names: Sequence[str]) -> list[str]:
    """The versions of kernels by their names alone, the newest last."""
    found = [name.removeprefix("vmlinuz-") for name in names if name.startswith("vmlinuz-")]
    return sorted((name for name in found if "rescue" not in name), key=kernel_options.version_key)


def _named(names: Sequence[str], patterns: Sequence[str], version: str) -> str | None:
    """The name among `names` of what belongs to a kernel. Alpine and Arch name it by its flavour
    alone, which its version ends with."""
    flavour = version.rpartition("-")[2]
    for each in (version, flavour):
        for pattern in patterns:
            if pattern.format(each) in names:
                return pattern.format(each)
    return None


def _write_configuration(
    files: ImageFiles, kernels: Sequence[_Kernel], uuid: str, options: Sequence[str]
) -> None:
    lines = ["# Read by the boot loader in front of the root partition."]
    if kernels and not kernels[0].linked and not files.exists(_UPDATE_GRUB):
        lines.append(
            "# Nothing keeps the names up to date: a new kernel is booted when it is here."
        )
    lines += ["", "set default=0", "set timeout=1"]
    for number, kernel in enumerate(kernels):
        title = "Linux, the kernel before" if number else "Linux"
        lines += ["", f'menuentry "{title}" {{']
        lines.append(f"    linux {kernel.image} {_root(uuid)} {' '.join(options)}")
        lines += [f"    initrd {kernel.initramfs}"] if kernel.initramfs else []
        lines.append("}")
    _write(files, _CONFIGURATION, "".join(f"{line}\n" for line in lines))


def _write_legacy_configuration(
    files: ImageFiles, kernels: Sequence[_Kernel], uuid: str, options: Sequence[str]
) -> None:
    """Writes what pygrub reads first, on Xen: its machines' console is another one."""
    console = ["console=tty0", "console=hvc0"]
    others = ("console=", "earlyprintk=")
    words = [*(word for word in options if not word.startswith(others)), *console]
    lines = ["# Read by pygrub on nodes with Xen.", "default 0", "timeout 1"]
    for number, kernel in enumerate(kernels):
        lines += ["", f"title {'Linux, the kernel before' if number else 'Linux'}", "root (hd0)"]
        lines.append(f"kernel {kernel.image} {_root(uuid)} {' '.join(words)}")
        lines += [f"initrd {kernel.initramfs}"] if kernel.initramfs else []
    if kernels:
        _write(files, _LEGACY_CONFIGURATION, "".join(f"{line}\n" for line in lines))


def _root(uuid: str) -> str:
    return f"root=UUID={uuid} ro"


def _boots_elsewhere(files: ImageFiles) -> bool:
    """Whether the base's own grub.cfg boots from every layout, and at the first try."""
    text = kernel_options.read_text(files, _CONFIGURATION)
    return bool(kernel_options.GRUB_LINE.search(text)) and _TRIES_WITHOUT_INITRAMFS not in text


def _follow_everywhere(files: ImageFiles, uuid: str, extra: Sequence[str]) -> None:
    """Edits the options in each configuration that the image has, and nothing else of it."""
    configurations = [
        *((path, kernel_options.GRUB_LINE) for path in kernel_options.GRUB_CONFIGURATIONS),
        *((path, kernel_options.LEGACY_LINE) for path in kernel_options.LEGACY_CONFIGURATIONS),
        *((path, kernel_options.EXTLINUX_LINE) for path in kernel_options.EXTLINUX_CONFIGURATIONS),
        *((path, kernel_options.ENTRY_LINE) for path in kernel_options.entries(files)),
        (kernel_options.COMMAND_LINE, re.compile(r"\A")),
    ]
    for path, start in configurations:
        text = kernel_options.read_text(files, path)
        if text:
            _change(files, path, text, kernel_options.follow_lines(text, start, uuid, extra))
    for path in kernel_options.ENVIRONMENTS:
        _follow_environment(files, path, uuid, extra)


def _follow_environment(
    files: ImageFiles, path: PurePosixPath, uuid: str, extra: Sequence[str]
) -> None:
    """Edits the options in GRUB's environment, a block of fixed size."""
    text = kernel_options.read_text(files, path)
    if kernel_options.ENVIRONMENT_LINE.search(text):
        edited = kernel_options.follow_lines(text, kernel_options.ENVIRONMENT_LINE, uuid, extra)
        edited = edited.rstrip("#")
        if len(edited) <= len(text):
            _change(files, path, text, edited.ljust(len(text), "#"))


def _change(files: ImageFiles, path: PurePosixPath, text: str, edited: str) -> None:
    if edited != text:
        _write(files, path, edited)


def _write(files: ImageFiles, path: PurePosixPath, text: str) -> None:
    files.write(path, text.encode("utf-8", "surrogateescape"))


def _forget_modules(files: ImageFiles) -> None:
    """Removes the modules of the image's own GRUB: ours would take them for its own."""
    for name in files.names(_GRUB):
        if re.fullmatch(r"(i386|x86_64)-[a-z]+(-signed)?", name):
            files.remove(_GRUB / name)


def _write_defaults(files: ImageFiles, system: System, options: Sequence[str]) -> None:
    """Has the distribution's own tool write what boots, when it rewrites grub.cfg one day."""
    text = (
        "\n# For the boot loader in front of root, and the console of a cloud's machine.\n"
        f"GRUB_CMDLINE_LINUX={shlex.quote(' '.join(options))}\n"
        'GRUB_CMDLINE_LINUX_DEFAULT=""\n'
        "GRUB_TERMINAL=console\nGRUB_TIMEOUT=1\nGRUB_DISABLE_OS_PROBER=true\n"
        "unset GRUB_FORCE_PARTUUID\n"
    )
    _append_defaults(files, system, text)


def _add_to_defaults(files: ImageFiles, system: System, extra: Sequence[str]) -> None:
    names = files.names(kernel_options.MORE_DEFAULTS)
    paths = [kernel_options.DEFAULTS, *(kernel_options.MORE_DEFAULTS / name for name in names)]
    texts = [kernel_options.read_text(files, path) for path in paths]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    text = "unset GRUB_FORCE_PARTUUID\n" if "GRUB_FORCE_PARTUUID" in "\n".join(lines) else ""
    told = re.findall(r"[^\s\"'=]+=[^\s\"']*", " ".join(x for x in lines if "GRUB_CMDLINE" in x))
    words = kernel_options.missing(told, extra)
    if not any(word.startswith("console=ttyS0") for word in told):
        words += kernel_options.CONSOLES
    if words:
        text += f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(words)}"\n'
    if text:
        _append_defaults(files, system, f"\n# The console of a cloud's machine.\n{text}")


def _append_defaults(files: ImageFiles, system: System, text: str) -> None:
    """Adds to what grub-mkconfig reads, behind all else: only Debian's reads a folder, too."""
    if not files.exists(kernel_options.DEFAULTS):
        return
    if system.family == "debian":
        _write(files, _OUR_DEFAULTS, text.lstrip())
    else:
        old = kernel_options.read_text(files, kernel_options.DEFAULTS)
        _write(files, kernel_options.DEFAULTS, f"{old.rstrip()}\n{text}")


def _add_getty(files: ImageFiles, system: System) -> None:
    """Has a login prompt on the serial console; systemd has one by itself."""
    if system.init not in ("sysv", "openrc"):
        return
    text = kernel_options.read_text(files, _INITTAB)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    getty = next((path for path in _GETTYS if files.exists(path)), None)
    if not text or getty is None or any("ttyS0" in line for line in lines):
        return
    # BusyBox takes a terminal for the name, and no levels; a name of init's has four letters.
    name, levels = ("ttyS0", "") if system.family == "alpine" else ("S0", "2345")
    # Where there is no port, init would complain of a program that ends at once.
    command = (
        "sh -c 'stty -F /dev/ttyS0 >/dev/null 2>&1 || exec sleep 99999; "
        f"exec {getty} -L ttyS0 115200 vt100'"
    )
    _write(files, _INITTAB, f"{text.rstrip()}\n{name}:{levels}:respawn:{command}\n")
