"""The kernel that an image boots: which one, and where its drivers are.

Read from the tree of the image's root file system, whoever opens it: debugfs (`ext4.FileSystem`),
or libguestfs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.errors import KernelError
from pipeline.model import Hardware
from pipeline.tools import initramfs

CONFIGURATIONS = tuple(
    map(PurePosixPath, ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/grub/menu.lst"))
)
"""GRUB's configuration: of Debian and most others, of Red Hat and SUSE, and of GRUB 1."""

_LINKS = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"))
_BOOT = PurePosixPath("/boot")
_ENTRIES = _BOOT / "loader/entries"
_KERNEL_NAME = re.compile(r"^(?:vmlinuz|vmlinux|bzImage|kernel|linux)-(.+)$")
_INITRAMFS_NAMES = (
    *("initrd.img-{0}", "initramfs-{0}.img", "initrd-{0}", "initrd-{0}.img", "initramfs-{0}"),
    *("initramfs.img-{0}", "initramfs-genkernel-x86_64-{0}"),
)
_MODULE = re.compile(r"([^/]+)\.ko(\.(gz|xz|zst|lz4))?$")
_LONGEST_CHAIN = 8  # of symbolic links that are followed
_FSTAB = PurePosixPath("/etc/fstab")


class Tree(Protocol):
    """The files of an image's root file system."""

    def names(self, folder: PurePosixPath) -> list[str]:
        """What lies in a folder; nothing where there is none."""

    def read(self, path: PurePosixPath) -> str:
        """The content of a small text file; empty where there is none."""

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """What a symbolic link leads to, from the root; None where there is no link."""

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file to the host; whether there was one."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a boot loader boots unless somebody chooses."""

    kernel: PurePosixPath
    initramfs: tuple[PurePosixPath, ...] = ()
    command_line: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The kernel that an image boots. Modules are named with `_` for `-`, as the kernel does."""

    version: str
    options: frozenset[str]
    """The lines of its configuration; empty where the image has not got it."""
    command_line: tuple[str, ...]
    configuration: PurePosixPath
    """Where the command line is from."""
    built_in: frozenset[str]
    modules: Mapping[str, frozenset[str]]
    """What can be loaded, with all that each needs besides."""
    in_initramfs: frozenset[str]
    root_type: str = "ext4"
    """What fstab says that root is."""

    def place(self, driver: str) -> str | None:
        """Where a driver is: `kernel`, `initramfs` or `modules`; None: nowhere."""
        name = driver.replace("-", "_")
        if name in self.built_in:
            return "kernel"
        if name in self.in_initramfs:
            return "initramfs"
        return "modules" if name in self.modules else None

    def needed_by(self, driver: str) -> frozenset[str]:
        """The other modules that one needs."""
        return self.modules.get(driver.replace("-", "_"), frozenset())


@dataclass(frozen=True)
class Fault:
    """Why a kernel cannot serve a site, and what to do about it."""

    what: str
    todo: str


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What a person can do, in the words of what the image is made from."""

    kernel: str
    """For another kernel."""
    initramfs: str
    """For a driver in the initramfs; `{0}` is its name."""
    dependency: str
    """For what a driver in the initramfs needs."""
    missing: str
    """Where the image has no kernel, or no initramfs for it."""


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
"""The package of the kernel that has all drivers, by what os-release calls the distribution."""

_GENERATORS = {
    "/etc/initramfs-tools": "write MODULES=most into the image's "
    "/etc/initramfs-tools/initramfs.conf and run `update-initramfs -u -k all`",
    "/etc/dracut.conf.d": "run `dracut --no-hostonly --force --regenerate-all`",
    "/etc/mkinitcpio.d": "take autodetect out of the HOOKS in the image's /etc/mkinitcpio.conf and "
    "run `mkinitcpio -P`",
    "/etc/mkinitfs": "add {0} to the image's /etc/mkinitfs and run `mkinitfs`",
}
"""What puts all drivers into an initramfs, by the folder of the program that makes it."""


def remedies_of(tree: Tree) -> Remedies:
    """What a person can do about the kernel of a base image."""
    told = read_os_release(tree)
    names = [told.get("ID", ""), *told.get("ID_LIKE", "").split()]
    package = next((_KERNEL_PACKAGES[name] for name in names if name in _KERNEL_PACKAGES), None)
    wanted = "a kernel's package" if package is None else f"`packages: [{package}]`"
    another = (
        f"add {wanted} to the definition and `network: true` below its base_image, "
        "or choose another base image"
    )
    found = [act for folder, act in _GENERATORS.items() if tree.names(PurePosixPath(folder))]
    anew = f"let a script of the definition {found[0]}" if found else "choose another base image"
    return Remedies(kernel=another, initramfs=anew, dependency=anew, missing=another)


def read_os_release(tree: Tree) -> dict[str, str]:
    """The image's os-release, by name."""
    text = tree.read(PurePosixPath("/usr/lib/os-release"))
    text = tree.read(PurePosixPath("/etc/os-release")) or text
    found = re.findall(r"^([A-Z_]+)=[\"']?(.*?)[\"']?$", text, re.MULTILINE)
    return dict(found)


def find_faults(kernel: Kernel, hardware: Hardware, remedies: Remedies) -> list[Fault]:
    """Why a kernel cannot serve the machines of a site; nothing if it can."""
    return [
        *_disk_faults(kernel, hardware, remedies),
        *_network_faults(kernel, hardware, remedies),
        *_console_faults(kernel, hardware, remedies),
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
    """What has to read root: an ext3 is read by either, and old kernels know no ext4."""
    early = kernel.place("ext3") in ("kernel", "initramfs")
    return "ext3" if kernel.root_type == "ext3" and early else "ext4"


def _network_faults(kernel: Kernel, hardware: Hardware, remedies: Remedies) -> Iterator[Fault]:
    for name in hardware.networks:
        if kernel.place(name) is None:
            yield Fault(f"it has no {name}, which drives network cards there", remedies.kernel)


def _console_faults(kernel: Kernel, hardware: Hardware, remedies: Remedies) -> Iterator[Fault]:
    console = hardware.console
    unknown = not kernel.options  # some distributions keep it elsewhere, and all of them have it
    if (
        console.startswith("ttyS")
        and not unknown
        and "CONFIG_SERIAL_8250_CONSOLE=y" not in kernel.options
    ):
        yield Fault(f"it cannot use {console} as its console", remedies.kernel)
    wanted = re.compile(rf"console={re.escape(console)}(,\S*)?")
    if not any(wanted.fullmatch(word) for word in kernel.command_line):
        yield Fault(
            f"its command line has no console={console}, so that nothing is heard of it",
            f"add console={console} to the first menu entry of the image's {kernel.configuration}",
        )


# ---- which kernel


def read_kernel(tree: Tree, work: Path, remedies: Remedies) -> Kernel:
    """The kernel that the image boots unless somebody chooses. What has to be copied out of the
    image goes to the folder `work`. Raises KernelError where there is none, or no initramfs."""
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
    # Some distributions keep it with the modules.
    options = tree.read(_BOOT / f"config-{version}") or tree.read(modules / "config")
    return Kernel(
        version=version,
        options=frozenset(options.splitlines()),
        command_line=() if entry is None else entry.command_line,
        configuration=configuration,
        built_in=_module_names(tree.read(modules / "modules.builtin").splitlines()),
        modules={
            name: _module_names(needed)
            for name, (_, *needed) in dependencies_of(tree.read(modules / "modules.dep")).items()
        },
        in_initramfs=_module_names(
            file for file in initramfs.list_files(copy, work) if f"lib/modules/{version}/" in file
        ),
        root_type=_find_root_type(tree.read(_FSTAB)),
    )


def _find_root_type(table: str) -> str:
    found = re.search(r"^[^#\s]\S*\s+/\s+(\S+)", table, re.MULTILINE)
    return found[1] if found is not None else "ext4"


def find_entry(tree: Tree) -> tuple[PurePosixPath, Entry | None]:
    """The first entry of the image's boot loader, and the file that it is from."""
    for path in CONFIGURATIONS:
        text = tree.read(path)
        if not text:
            continue
        entry = parse_configuration(text)
        if entry is None and re.search(r"^\s*blscfg\b", text, re.MULTILINE):
            return _newest_entry(tree, text) or (path, None)
        return path, entry
    return _newest_entry(tree, "") or (CONFIGURATIONS[0], None)


def parse_configuration(text: str) -> Entry | None:
    """The first entry of a GRUB configuration, with its variables filled in as far as the file
    itself sets them; None where there is none."""
    variables = _variables(text)
    kernel: PurePosixPath | None = None
    command_line: tuple[str, ...] = ()
    for words in (line.split() for line in text.splitlines()):
        if kernel is None:
            if words[:1] and words[0] in ("linux", "linux16", "linuxefi", "kernel") and words[1:]:
                kernel = _path(words[1])
                command_line = tuple(_filled(" ".join(words[2:]), variables).split())
        elif words[:1] and words[0] in ("initrd", "initrd16", "initrdefi"):
            packed = tuple(map(_path, words[1:]))
            return Entry(kernel=kernel, initramfs=packed, command_line=command_line)
        elif words[:1] and words[0] in ("menuentry", "title", "linux", "kernel"):
            break
    return None if kernel is None else Entry(kernel=kernel, command_line=command_line)


def _newest_entry(tree: Tree, configuration: str) -> tuple[PurePosixPath, Entry] | None:
    """The entry of the Boot Loader Specification that is shown first: the newest."""
    names = [
        name for name in tree.names(_ENTRIES) if name.endswith(".conf") and "rescue" not in name
    ]
    environment = tree.read(_BOOT / "grub2/grubenv")
    variables = _variables(configuration, re.sub(r"^(\w+)=", r"set \1=", environment, flags=re.M))
    for name in sorted(names, key=order_of_version, reverse=True):
        fields: dict[str, str] = {}
        for line in tree.read(_ENTRIES / name).splitlines():
            field, _, value = line.strip().partition(" ")
            fields[field] = f"{fields.get(field, '')} {value}".strip()
        if "linux" in fields:
            words = _filled(fields.get("options", ""), variables).split()
            packed = _filled(fields.get("initrd", ""), {}).split()
            return _ENTRIES / name, Entry(
                kernel=_path(fields["linux"].split()[0]),
                initramfs=tuple(map(_path, packed)),
                command_line=tuple(words),
            )
    return None


def _variables(*texts: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        for name, value in re.findall(r"^\s*set\s+(\w+)=(.*)$", text, re.MULTILINE):
            found.setdefault(name, value.strip().strip("\"'"))
    return found


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], ""), text)


def _path(word: str) -> PurePosixPath:
    """A file as GRUB names it, without the device before it."""
    return PurePosixPath("/", re.sub(r"^\([^)]*\)|^\$\{?\w+\}?", "", word.strip("\"'")))


def order_of_version(name: str) -> list[tuple[int, int, str]]:
    """Sorts versions in names as people would: 5.10 after 5.9."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", name)
    ]


def _find_kernel(tree: Tree, entry: Entry | None) -> PurePosixPath | None:
    """The kernel's file: what the boot loader's entry names, or else a distribution's own link, or
    the newest one."""
    if entry is not None:
        return _resolve_any(tree, [entry.kernel, _BOOT / entry.kernel.relative_to("/")])
    linked = _resolve_any(tree, [PurePosixPath(name) for name, _ in _LINKS])
    if linked is not None:
        return linked
    kernels = [name for name in tree.names(_BOOT) if _KERNEL_NAME.match(name)]
    kernels = [name for name in kernels if "rescue" not in name and not name.endswith(".old")]
    return _BOOT / max(kernels, key=order_of_version) if kernels else None


def _find_version(tree: Tree, kernel: PurePosixPath, work: Path) -> str:
    """A kernel's version: by its name, or as it tells itself where no modules are of that name."""
    match = _KERNEL_NAME.match(kernel.name)
    version = kernel.name if match is None else match[1]
    if tree.names(PurePosixPath("/lib/modules", version)):
        return version
    copy = work / "kernel"
    told = _version_of(copy) if tree.copy_out(kernel, copy) else None
    return told or version


def _version_of(kernel: Path) -> str | None:
    """What a kernel for x86 says of itself: the boot protocol's `kernel_version`."""
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
        last = entry.initramfs[-1]  # microcode comes before
        return _resolve_any(tree, [last, _BOOT / last.relative_to("/")])
    suffix = kernel.name.removeprefix("vmlinuz-")
    names = [each.format(part) for part in (version, suffix) for each in _INITRAMFS_NAMES]
    beside = _resolve_any(tree, [kernel.parent / name for name in names])
    return beside or _resolve_any(tree, [PurePosixPath(name) for _, name in _LINKS])


def _resolve_any(tree: Tree, paths: Sequence[PurePosixPath]) -> PurePosixPath | None:
    return next((found for each in paths if (found := _resolve(tree, each)) is not None), None)


def _resolve(tree: Tree, path: PurePosixPath) -> PurePosixPath | None:
    """The file that a path leads to, by way of symbolic links; None where there is none."""
    for _ in range(_LONGEST_CHAIN):
        if path.name not in tree.names(path.parent):
            return None
        linked = tree.read_link(path)
        if linked is None:
            return path
        path = _normal(linked)
    return None


def _normal(path: PurePosixPath) -> PurePosixPath:
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return PurePosixPath("/", *parts)


def dependencies_of(table: str) -> dict[str, tuple[str, ...]]:
    """The modules of a `modules.dep`, by name: the file of each, and then those of all that it
    needs, of which the last one has to be loaded first."""
    found = {}
    for line in table.splitlines():
        module, _, others = line.partition(":")
        for name in _module_names([module]):
            found[name] = (module, *others.split())
    return found


def _module_names(files: Iterable[str]) -> frozenset[str]:
    found = (_MODULE.search(file) for file in files)
    return frozenset(match[1].replace("-", "_") for match in found if match is not None)
