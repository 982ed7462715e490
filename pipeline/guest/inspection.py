"""Finds out what a base image holds: which operating system, on which of its file systems.

libguestfs's own inspection takes four times as long as all of this, since it tries every rule that
it knows on every file system. Nothing of the image is run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.disk.os_release import FAMILIES, Release, parse_assignments
from pipeline.disk.partitions import HEAD, file_system_bytes
from pipeline.disk.superblock import read_superblock
from pipeline.disk.system import FileSystem, Geometry, Partition, Place, System
from pipeline.disk.untrusted import version_order
from pipeline.errors import FileSystemError, UnknownSystemError
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.image import Image
from pipeline.guest.mounting import REPAIR, device_of, first_line
from pipeline.guest.release import read_release
from pipeline.guest.root_search import RootSearch
from pipeline.guest.tree import GuestTree

SECONDS = 600.0
"""The limit of an inspection: a thousand times what one takes. A file system may be made to be
slow."""

_MANAGERS = ("apt-get", "dnf", "yum", "zypper", "apk", "pacman")
_PROGRAMS = (
    *(*_MANAGERS, "curl", "wget", "cloud-init", "openrc", "openrc-init", "ifup", "netplan"),
    "NetworkManager",
)
_FETCHER = PurePosixPath("/usr/lib/phantom/fetch-user-data")

# The configurations by which boot loaders are known.
_BOOT_LOADERS: Mapping[str, tuple[str, ...]] = {
    "grub2": ("/boot/grub{,2}/grub.cfg",),
    "grub-legacy": ("/boot/grub/{menu.lst,grub.conf}",),
    "extlinux": (
        "/boot/{extlinux,syslinux}/{extlinux,syslinux}.conf",
        "/{boot/,}{extlinux,syslinux}.{conf,cfg}",
        "/boot/syslinux/syslinux.cfg",
    ),
    "systemd-boot": ("/{boot,boot/efi,efi}/loader/loader.conf",),
}

# e_machine of ELF (elf.h), in the words of `uname -m`.
_MACHINES = {
    3: "i686",
    8: "mips",
    20: "ppc",
    21: "ppc64le",
    22: "s390x",
    40: "armv7l",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}


def inspect_system(guest: Guest, geometry: Geometry, disk: Drive) -> System:
    """The one operating system of the image on the drive `disk`, which has that geometry. Leaves
    nothing mounted.

    Raises NoSystemError, SeveralSystemsError, UnknownSystemError, EncryptedError, FileSystemError.
    """
    with _looking(guest):
        search = RootSearch(guest, geometry, disk)
        try:
            file_systems = search.find()
            search.mounts.mount_others(file_systems)
            return _describe(guest, geometry, disk, file_systems)
        finally:
            search.mounts.unmount()


def look_again(image: Image) -> Image:
    """The image with all that packages, files and scripts may have changed since its inspection.
    Raises FileSystemError."""
    with _looking(image.guest):
        changed = _describe_changing(GuestTree(image.guest), image.system.init)
    fetcher = image.files.exists(_FETCHER)
    return replace(image, system=replace(image.system, fetcher=fetcher, **changed))


def to_facts(system: System) -> dict[str, Any]:
    """A system as JSON can hold it."""
    return dataclasses.asdict(system)


def from_facts(facts: Mapping[str, Any]) -> System:
    """The system of which `to_facts` made these."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    fields["partitions"] = tuple(Partition(**entry) for entry in facts["partitions"])
    fields["file_systems"] = tuple(
        FileSystem(**{**file_system, "place": Place(**file_system["place"])})
        for file_system in facts["file_systems"]
    )
    return System(**fields)


@contextmanager
def _looking(guest: Guest) -> Iterator[None]:
    """Limits the time, and explains errors of libguestfs. Raises FileSystemError."""

    def explain(error: RuntimeError) -> FileSystemError:
        what = f"the image's file systems cannot be read: {first_line(error)}"
        return FileSystemError(what, todo=REPAIR)

    try:
        with guest.explained(explain), guest.limited(SECONDS):
            yield
    except TimeoutError as error:
        what = f"looking into the image has not ended: {error}"
        raise FileSystemError(what, todo=REPAIR) from error


# ---- the mounted system


def _describe(
    guest: Guest, geometry: Geometry, disk: Drive, file_systems: list[FileSystem]
) -> System:
    tree = GuestTree(guest)
    release, family = _read_known_release(tree)
    programs = _find_programs(tree)
    root = next(file_system for file_system in file_systems if file_system.mount == "/")
    size, features = _read_superblock(guest, disk, root)
    init = _find_init(tree, programs)
    managers = [program for program in _MANAGERS if program in programs]
    return System(
        disk_bytes=geometry.disk_bytes,
        table=geometry.table,
        partitions=geometry.partitions,
        boot_code=geometry.boot_code,
        file_systems=tuple(file_systems),
        root_bytes=size,
        root_features=features,
        distribution=release.id,
        family=family,
        release=release.version,
        codename=release.codename,
        product=release.product,
        architecture=_find_architecture(tree),
        package_manager=managers[0].removesuffix("-get") if managers else None,
        init=init,
        boot_loaders=tuple(
            name for name, patterns in _BOOT_LOADERS.items() if tree.glob(*patterns)
        ),
        selinux=_find_selinux(tree),
        fetcher=tree.exists(_FETCHER),
        **_describe_changing(tree, init),
    )


def _describe_changing(tree: GuestTree, init: str | None) -> dict[str, Any]:
    """What packages, files and scripts may change, by its name in `System`."""
    programs = _find_programs(tree)
    enabled = _find_enabled(tree)
    has_cloud_init = "cloud-init" in programs and _may_run(tree, init, enabled)
    return {
        "kernels": _find_kernels(tree),
        "cloud_init": (_read_cloud_init_version(tree) or "unknown") if has_cloud_init else None,
        "networks": _find_networks(tree, programs, enabled),
        "clients": tuple(name for name in ("curl", "wget") if name in programs),
    }


def _read_known_release(tree: GuestTree) -> tuple[Release, str]:
    """What the system says that it is, and its family. Raises UnknownSystemError."""
    release = read_release(tree)
    if release is None or release.family is None:
        name = "without a name" if release is None else release.product or release.id
        raise UnknownSystemError(
            f"the image's distribution is not known: {name}",
            todo=f"choose an image of a distribution of these families: {', '.join(FAMILIES)}",
        )
    return release, release.family


def _find_programs(tree: GuestTree) -> set[str]:
    paths = tree.glob(f"/{{usr/,usr/local/,}}{{s,}}bin/{{{','.join(_PROGRAMS)}}}")
    return {PurePosixPath(path).name for path in paths}


def _read_superblock(guest: Guest, disk: Drive, root: FileSystem) -> tuple[int, tuple[str, ...]]:
    """Bytes and features of the root file system."""
    if root.place.start is None:
        head = bytes(guest.handle.pread_device(device_of(root.place, disk.device), HEAD, 0))
    else:
        with disk.file.open("rb") as file:  # without the appliance, whose call takes 70 ms
            file.seek(root.place.start)
            head = file.read(HEAD)
    superblock = read_superblock(head) if root.type.startswith("ext") else None
    features = () if superblock is None else superblock.features
    return file_system_bytes(head) or root.place.size, features


def _find_architecture(tree: GuestTree) -> str:
    """The architecture that the header of a program names."""
    for path in ("/bin/sh", "/sbin/init", "/usr/bin/env", "/bin/ls"):
        header = tree.read_head(PurePosixPath(path), 20)
        if header[:4] == b"\x7fELF" and len(header) == 20:
            little = header[5] == 1
            machine = int.from_bytes(header[18:], "little" if little else "big")
            name = _MACHINES.get(machine, f"machine {machine}")
            return "ppc64" if name == "ppc64le" and not little else name
    return "unknown"


def _find_init(tree: GuestTree, programs: set[str]) -> str | None:
    first = PurePosixPath(tree.resolve(PurePosixPath("/sbin/init"))).name
    if not first:
        return None
    if first == "systemd":
        return "systemd"
    if {"openrc", "openrc-init"} & programs and tree.exists(PurePosixPath("/etc/runlevels")):
        return "openrc"
    return "sysv" if tree.glob("/etc/rc{2,3,.d/rc3}.d", "/etc/init.d/rcS") else None


def _find_kernels(tree: GuestTree) -> tuple[str, ...]:
    """The versions that have a kernel image and modules. Alpine and Arch name the image by its kind
    only, with which the version of the modules ends, or which their file `pkgbase` holds."""
    images = {
        re.sub(r"^(vmlinuz|vmlinux|kernel|bzImage)-", "", PurePosixPath(path).name)
        for path in tree.glob("/boot/{vmlinuz,vmlinux,kernel,bzImage}-*")
    }
    kinds = tuple(f"-{image}" for image in images)
    versions = set()
    for path in map(PurePosixPath, tree.glob("/{usr/,}lib/modules/*/modules.dep")):
        version, kind = path.parent.name, tree.read(path.with_name("pkgbase")).strip()
        if {version, kind} & images or version.endswith(kinds):
            versions.add(version)
    return tuple(sorted(versions, key=version_order))


def _find_enabled(tree: GuestTree) -> set[str]:
    """The services that start at boot, without `.service`; SysV's, without their order."""
    paths = tree.glob(
        "/{etc,usr/lib,lib}/systemd/system/*.{wants,requires}/*",
        "/etc/runlevels/*/*",
        "/etc/{rc.d/,}rc[S2345].d/S[0-9][0-9]*",
    )
    services = set()
    for path in map(PurePosixPath, paths):
        is_script = re.match(r"rc.\.d$", path.parent.name)
        services.add(path.name[3:] if is_script else path.name.removesuffix(".service"))
    return services


def _find_selinux(tree: GuestTree) -> str | None:
    fields = parse_assignments(tree.read(PurePosixPath("/etc/selinux/config")))
    mode, policy = fields.get("SELINUX", ""), fields.get("SELINUXTYPE", "targeted")
    if mode not in ("enforcing", "permissive") or not re.match(r"[\w-]+$", policy):
        return None
    return mode if tree.glob(f"/etc/selinux/{policy}/policy/policy.*") else None


def _find_networks(tree: GuestTree, programs: set[str], enabled: set[str]) -> tuple[str, ...]:
    scripts = PurePosixPath("/etc/sysconfig/network-scripts/ifup")
    managers = {
        "networkd": "systemd-networkd" in enabled,
        "ifupdown": "ifup" in programs and "networking" in enabled,
        "netplan": "netplan" in programs,
        "NetworkManager": "NetworkManager" in programs & enabled,
        "network-scripts": "network" in enabled and tree.exists(scripts),
    }
    return tuple(name for name, is_used in managers.items() if is_used)


# ---- cloud-init


def _may_run(tree: GuestTree, init: str | None, enabled: set[str]) -> bool:
    """Whether the installed cloud-init is neither disabled nor masked."""
    masks = tree.glob("/etc/systemd/system/{cloud-init*,cloud-config*}")
    for mask in map(PurePosixPath, masks):
        target = tree.resolve(mask)
        if target == "/dev/null" or (not target and tree.read_link(mask) is not None):
            return False
    if tree.exists(PurePosixPath("/etc/cloud/cloud-init.disabled")):
        return False
    return init == "systemd" or any(name.startswith("cloud-init") for name in enabled)


def _read_cloud_init_version(tree: GuestTree) -> str | None:
    package = "/usr/lib/python{2,3}*/{dist,site}-packages"
    for path in tree.glob(f"{package}/cloudinit/version.py"):
        text = tree.read(PurePosixPath(path))
        for name in ("_PACKAGED_VERSION", "__VERSION__"):
            version = re.search(rf"(?m)^{name} *= *['\"]([^'\"@]+)['\"]", text)
            if version is not None:
                return version[1]
    paths = tree.glob(f"{package}/cloud_init-*")
    versions = (re.search(r"/cloud_init-([0-9.]+[0-9])[^/]*$", path) for path in paths)
    return next((version[1] for version in versions if version is not None), None)
