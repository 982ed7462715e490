"""Looks what a base image is: which system on which of its file systems, and what it has.

libguestfs's own inspection takes four times as long as all of this, since it tries every rule that
it knows on every file system. Nothing of the image is run.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import (
    EncryptedError,
    FileSystemError,
    NoSystemError,
    PhantomError,
    SeveralSystemsError,
    UnknownSystemError,
)
from pipeline.guest import fstab
from pipeline.guest.appliance import Drive, Guest, NotTextError
from pipeline.guest.files import ImageFiles
from pipeline.guest.geometry import HEAD, Geometry, file_system_bytes, recognise
from pipeline.guest.mounts import OF_ROOT, SUBVOLUMES, normal
from pipeline.guest.superblock import read_superblock
from pipeline.guest.system import FileSystem, Partition, Place, System
from pipeline.model import MIB

SECONDS = 600.0
"""How long looking may take: a thousand times what it does, for file systems made to be slow."""

_ROOT_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs")
_ENCRYPTED = ("crypto_LUKS", "BitLocker")
_LOOKED_INTO = ("/usr", "/var", "/boot", "/boot/efi", "/efi")
"""Where what is looked at may lie on file systems of its own; a mount point after what holds it."""

_MARKS = (
    *("/etc/os-release", "/usr/lib/os-release", "/etc/debian_version", "/etc/redhat-release"),
    *("/etc/SuSE-release", "/etc/alpine-release", "/etc/arch-release", "/etc/gentoo-release"),
)
"""The files by which a root file system is known; those of systems older than os-release too."""

_FAMILIES = {
    "debian": ("debian", "ubuntu", "devuan", "raspbian", "linuxmint", "kali"),
    "redhat": (
        *("rhel", "fedora", "centos", "rocky", "almalinux", "amzn", "ol", "scientific"),
        *("eurolinux", "virtuozzo", "cloudlinux"),
    ),
    "suse": ("suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles", "sled"),
    "alpine": ("alpine",),
    "arch": ("arch", "archarm", "manjaro"),
    "gentoo": ("gentoo",),
}
_MANAGERS = {
    "apt": "apt-get",
    "dnf": "dnf",
    "yum": "yum",
    "zypper": "zypper",
    "apk": "apk",
    "pacman": "pacman",
}
_PROGRAMS = (
    *(*_MANAGERS.values(), "curl", "wget", "cloud-init", "openrc", "openrc-init", "ifup"),
    *("netplan", "NetworkManager"),
)
_FETCHER = "/usr/lib/phantom/fetch-user-data"
_LARGEST_TEXT = MIB
_LONGEST_NUMBER = 100  # digits in a version
_OF_A_DISK = re.compile(
    r"(UUID|LABEL|PARTUUID|PARTLABEL)=|/dev/(disk/|mapper/|[hsv]d|xvd|nvme|mmcblk|md)"
)
"""What a line of fstab is about that needs a disk; those for removable media are none."""

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
    """The one operating system of an image, which is the appliance's drive `disk`, and has that
    geometry. Leaves nothing mounted.

    Raises NoSystemError, SeveralSystemsError, UnknownSystemError, EncryptedError, FileSystemError.
    """
    with _looking(guest):
        return _Inspection(guest, geometry, disk).run()


def look_again(guest: Guest, files: ImageFiles, system: System) -> System:
    """A system whose root file system is mounted at /, with all that packages, files and scripts
    may have changed since it was inspected. Raises FileSystemError."""
    shape = Geometry(
        disk_bytes=system.disk_bytes,
        table=system.table,
        partitions=system.partitions,
        boot_code=system.boot_code,
        file_systems=(),
    )
    with _looking(guest):
        found = _Inspection(guest, shape, None).find_changing(system.init)
    return replace(system, fetcher=files.exists(PurePosixPath(_FETCHER)), **found)


@contextmanager
def _looking(guest: Guest) -> Iterator[None]:
    """Makes sentences of what goes wrong with file systems. Raises FileSystemError."""
    try:
        with guest.limited(SECONDS):
            yield
    except TimeoutError as error:
        raise FileSystemError(
            f"looking into the image has not ended: {error}", todo=_REPAIR
        ) from error
    except RuntimeError as error:
        if guest.ended:
            raise
        raise FileSystemError(
            f"the image's file systems cannot be read: {_first_line(error)}", todo=_REPAIR
        ) from error


@contextmanager
def mounted(guest: Guest, system: System, disk: Drive) -> Iterator[None]:
    """The system mounted read-only, from the drive `disk`, with what fstab mounts where programs
    and boot loaders lie. Raises FileSystemError."""
    mounts = _Mounts(guest, disk.device)
    try:
        mounts.mount_root(system.root)
        mounts.mount_others(system.file_systems)
        yield
    finally:
        mounts.unmount()


def to_facts(system: System) -> dict[str, Any]:
    """A system as JSON can hold it."""
    return dataclasses.asdict(system)


def from_facts(facts: Mapping[str, Any]) -> System:
    """The system that `to_facts` told of."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    fields["partitions"] = tuple(Partition(**each) for each in facts["partitions"])
    fields["file_systems"] = tuple(
        FileSystem(**{**each, "place": Place(**each["place"])}) for each in facts["file_systems"]
    )
    return System(**fields)


def describe_place(place: Place) -> str:
    """Where a file system lies, for people."""
    if place.volume is not None:
        return f"the logical volume {place.volume}"
    return "the whole disk" if place.partition is None else f"partition {place.partition}"


_REPAIR = "repair the image's file systems with their own program, or choose another base image"
_ANOTHER = "choose another base image"


@dataclass(frozen=True, kw_only=True)
class _Release:
    """What a system says that it is."""

    id: str
    like: tuple[str, ...] = ()
    version: str = ""
    codename: str = ""
    product: str = ""

    @property
    def family(self) -> str | None:
        names = (self.id, *self.like)
        return next(
            (family for name in names for family, ids in _FAMILIES.items() if name in ids), None
        )


class _Mounts:
    """What is mounted of an image, all of it read-only."""

    def __init__(self, guest: Guest, disk: str) -> None:
        self._guest = guest
        self._disk = disk
        self._root: FileSystem | None = None

    def device(self, place: Place) -> str:
        """What the appliance calls it."""
        if place.volume is not None:
            return f"/dev/{place.volume}"
        return self._disk if place.partition is None else f"{self._disk}{place.partition}"

    def mount_root(self, root: FileSystem) -> None:
        """Mounts a file system at / and no other."""
        if self._root != root:
            self.unmount()
            self._mount(root, "/")
            self._root = root
            name = self._find_subvolume() if root.type == "btrfs" else ""
            if name:
                self._guest.handle.umount_all()
                self._mount(root, "/", f"subvol=/{name}")

    def _find_subvolume(self) -> str:
        """Which of a btrfs's subvolumes holds a system; empty for what is shown without asking."""
        names = ",".join(f"{name}/" if name else "" for name in SUBVOLUMES)
        found = _expand(self._guest, f"/{{{names}}}{{{','.join(OF_ROOT)}}}")
        for name in SUBVOLUMES:
            if any(f"/{name}/{file}".replace("//", "/") in found for file in OF_ROOT):
                return name
        return ""

    def mount_others(self, file_systems: Iterable[FileSystem]) -> None:
        """Mounts what belongs to the root file system."""
        for mount in _LOOKED_INTO:
            for each in file_systems:
                if each.mount == mount and self._guest.handle.is_dir(mount):
                    self._mount(each, mount)

    def unmount(self) -> None:
        """Leaves nothing mounted."""
        if self._root is not None and not self._guest.ended:
            self._guest.handle.umount_all()
        self._root = None

    def _mount(self, file_system: FileSystem, mount: str, *options: str) -> None:
        device = self.device(file_system.place)
        try:
            self._guest.handle.mount_options(",".join(("ro", *options)), device, mount)
        except RuntimeError as error:
            if self._guest.ended:
                raise
            raise FileSystemError(
                f"the {file_system.type} file system on {describe_place(file_system.place)} cannot "
                f"be mounted: {_first_line(error)}",
                todo=_REPAIR,
            ) from error


class _Inspection:
    """One look into one image."""

    def __init__(self, guest: Guest, geometry: Geometry, disk: Drive | None) -> None:
        self.handle = guest.handle
        self.guest = guest
        self.geometry = geometry
        self.disk = disk
        self.mounts = _Mounts(guest, "" if disk is None else disk.device)
        self.file_systems = [*geometry.file_systems, *self._volumes()]
        self.encrypted = [each for each in self.file_systems if each.type in _ENCRYPTED]
        self.damaged: list[str] = []

    def run(self) -> System:
        try:
            root = self._find_root()
            self.mounts.mount_root(root)
            mounts = self._read_mounts(root)
            found = [
                replace(each, mount=mounts.get(index))
                for index, each in enumerate(self.file_systems)
            ]
            self.mounts.mount_others(found)
            return self._describe(found, root)
        finally:
            self.mounts.unmount()

    # ---- file systems

    def _volumes(self) -> Iterator[FileSystem]:
        """The logical volumes; the appliance has started them."""
        if not any(each.type == "LVM2_member" for each in self.geometry.file_systems):
            return
        for device in self.handle.lvs():
            try:
                size = self.handle.blockdev_getsize64(device)
                head = self.handle.pread_device(device, HEAD, 0)
            except RuntimeError:  # it has no device, such as the pool of thin volumes
                if self.guest.ended:
                    raise
                continue
            place = Place(volume=device.removeprefix("/dev/"), size=size)
            found = recognise(head)
            if found is None:
                yield FileSystem(place=place, type="")
            else:
                yield FileSystem(place=place, type=found.type, uuid=found.uuid, label=found.label)

    def _find_root(self) -> FileSystem:
        """The one file system that holds an operating system."""
        found: list[tuple[FileSystem, str]] = []
        for each in self.file_systems:
            if each.type not in _ROOT_TYPES:
                continue
            try:
                self.mounts.mount_root(each)
                if self.paths(*_MARKS):
                    release = self._read_release()
                    found.append((each, release.product if release else "an unknown system"))
            except FileSystemError as error:
                self.damaged.append(error.what)
        if len(found) > 1:
            told = " and ".join(f"{name} on {describe_place(each.place)}" for each, name in found)
            raise SeveralSystemsError(
                f"the image holds several operating systems: {told}",
                todo="choose a base image with one, or copy the partition that you want to a disk "
                "of its own",
            )
        if not found:
            raise self._no_system()
        return found[0][0]

    def _no_system(self) -> PhantomError:
        if self.encrypted:
            where = " and ".join(describe_place(each.place) for each in self.encrypted)
            kind = self.encrypted[0].type.removeprefix("crypto_")
            return EncryptedError(
                f"the image's root is encrypted: {kind} on {where}",
                todo="decrypt it, or choose another base image: nobody is there to enter a key",
            )
        if self.damaged:
            return FileSystemError("; ".join(self.damaged), todo=_REPAIR)
        kinds = [f"{each.type} on {describe_place(each.place)}" for each in self.file_systems]
        return NoSystemError(
            "the image holds no operating system: there is "
            f"{', '.join(kind for kind in kinds if not kind.startswith(' ')) or 'nothing on it'}",
            todo="name an image of a machine's whole disk, or of its root file system",
        )

    # ---- fstab

    def _read_mounts(self, root: FileSystem) -> dict[int, str]:
        """Where each file system is mounted, by its place in the list."""
        mounts: dict[int, str] = {}
        lines = tuple(fstab.parse(self.text("/etc/fstab")))
        self._refuse_encrypted(lines)
        for line in lines:
            index, mount = self._find_source(line.source), normal(line.mount)
            if index is not None and mount.startswith("/") and index not in mounts:
                mounts[index] = mount
            elif index is None and mount.startswith("/") and _OF_A_DISK.match(line.source):
                told = _printable(f"{line.source} {mount}")
                self.guest.progress.output(f"fstab names what is not in the image: {told}")
        mounts = {index: mount for index, mount in mounts.items() if mount != "/"}
        return {**mounts, self.file_systems.index(root): "/"}

    def _refuse_encrypted(self, lines: Iterable[fstab.Line]) -> None:
        """Raises EncryptedError where the system keeps files of its own behind a key."""
        mapped = {}
        for entry in self.text("/etc/crypttab").splitlines():
            name, *rest = entry.split()[:2] or [""]
            if rest and not name.startswith("#"):
                mapped[f"/dev/mapper/{name}"] = rest[0].replace('"', "")
        for line in lines:
            index = self._find_source(mapped.get(line.source, line.source))
            if index is None or not line.mount.startswith("/"):
                continue  # such as swap, which nobody needs
            each = self.file_systems[index]
            if each.type in _ENCRYPTED:
                kind = each.type.removeprefix("crypto_")
                mount = _printable(normal(line.mount))
                raise EncryptedError(
                    f"the image's {mount} is encrypted: {kind} on {describe_place(each.place)}",
                    todo="decrypt it, or choose another base image: nobody is there to enter a key",
                )

    def _find_source(self, source: str) -> int | None:
        """Which file system a line of fstab means."""
        for index, each in enumerate(self.file_systems):
            if source in self._names(each):
                return index
        return None

    def _names(self, each: FileSystem) -> set[str]:
        """Everything that fstab can call a file system."""
        tags = {"UUID": each.uuid, "LABEL": each.label}
        names = set[str]()
        partition = each.place.partition
        if partition is not None:
            (entry,) = (one for one in self.geometry.partitions if one.number == partition)
            tags |= {"PARTUUID": entry.uuid, "PARTLABEL": entry.name}
        if each.place.volume is not None:
            group, volume = each.place.volume.split("/")
            mapped = f"{group.replace('-', '--')}-{volume.replace('-', '--')}"
            names |= {f"/dev/{group}/{volume}", f"/dev/mapper/{mapped}"}
        else:
            # A site gives a bare file system the name of a first partition.
            number = partition or 1
            names |= {f"/dev/{disk}{number}" for disk in ("sda", "hda", "vda", "xvda")}
            names |= {f"/dev/{disk}p{number}" for disk in ("nvme0n1", "mmcblk0")}
            if partition is None:
                names |= {f"/dev/{disk}" for disk in ("sda", "hda", "vda", "xvda")}
        for tag, value in tags.items():
            if value:
                names |= {f"{tag}={value}", f"/dev/disk/by-{tag.lower()}/{value}"}
        return names

    # ---- files of the mounted system

    def paths(self, *patterns: str) -> list[str]:
        """Which of these paths are there; they may have braces and wild cards."""
        wanted = patterns[0]
        if len(patterns) > 1:
            wanted = f"/{{{','.join(pattern[1:] for pattern in patterns)}}}"
        return _expand(self.guest, wanted)

    def text(self, path: str) -> str:
        """The content of a file; empty where there is none, and where it is no usual one: what
        reads a pipe of an image waits for ever."""
        if not self._is_file(path):
            return ""
        # `read_file` starts a program in the appliance each time.
        content: bytes = self.handle.pread(path, _LARGEST_TEXT, 0)
        return content.decode("utf-8", "replace")

    def _is_file(self, path: str) -> bool:
        """Whether a path leads to a regular file."""
        found = self.guest.status(path, follow=True)
        return found is not None and stat.S_ISREG(found["st_mode"])

    def leads_to(self, path: str) -> str:
        """Where a path ends when its links are followed; empty where nothing is."""
        try:
            found: str = self.handle.realpath(path)
        except RuntimeError:
            return ""
        return found

    # ---- what it is

    def _describe(self, found: list[FileSystem], root: FileSystem) -> System:
        release = self._read_release()
        family = release.family if release is not None else None
        if release is None or family is None:
            name = release.product or release.id if release is not None else "without a name"
            raise UnknownSystemError(
                f"the image's distribution is not known: {name}",
                todo=f"choose an image of a distribution of these families: {', '.join(_FAMILIES)}",
            )
        programs = {PurePosixPath(path).name for path in self._programs()}
        size, features = self._read_superblock(root)
        init = self._find_init(programs)
        return System(
            disk_bytes=self.geometry.disk_bytes,
            table=self.geometry.table,
            partitions=self.geometry.partitions,
            boot_code=self.geometry.boot_code,
            file_systems=tuple(found),
            root_bytes=size,
            root_features=features,
            distribution=release.id,
            family=family,
            release=release.version,
            codename=release.codename,
            product=release.product,
            architecture=self._find_architecture(),
            package_manager=next(
                (name for name, program in _MANAGERS.items() if program in programs), None
            ),
            init=init,
            boot_loaders=tuple(self._find_boot_loaders()),
            selinux=self._find_selinux(),
            fetcher=bool(self.paths(_FETCHER)),
            **self.find_changing(init),
        )

    def find_changing(self, init: str | None) -> dict[str, Any]:
        """What packages, files and scripts may change, by its name in `System`."""
        programs = {PurePosixPath(path).name for path in self._programs()}
        enabled = self._enabled_services()
        return {
            "kernels": self._find_kernels(),
            "cloud_init": self._find_cloud_init(init, enabled)
            if "cloud-init" in programs
            else None,
            "networks": tuple(self._find_networks(programs, enabled)),
            "clients": tuple(name for name in ("curl", "wget") if name in programs),
        }

    def _programs(self) -> list[str]:
        return self.paths(f"/{{usr/,usr/local/,}}{{s,}}bin/{{{','.join(_PROGRAMS)}}}")

    def _read_superblock(self, root: FileSystem) -> tuple[int, tuple[str, ...]]:
        head = self._read_head(root.place)
        found = read_superblock(head) if root.type.startswith("ext") else None
        features = () if found is None else found.features
        return file_system_bytes(head) or root.place.size, features

    def _read_head(self, place: Place) -> bytes:
        if place.start is None:
            return bytes(self.handle.pread_device(self.mounts.device(place), HEAD, 0))
        assert self.disk is not None
        with self.disk.file.open("rb") as file:  # without the appliance, whose call takes 70 ms
            file.seek(place.start)
            return file.read(HEAD)

    def _read_release(self) -> _Release | None:
        for path in ("/etc/os-release", "/usr/lib/os-release"):
            fields = _parse_shell(self.text(path))
            if "ID" in fields:
                return _Release(
                    id=fields["ID"].lower(),
                    like=tuple(fields.get("ID_LIKE", "").lower().split()),
                    version=fields.get("VERSION_ID", ""),
                    codename=fields.get("VERSION_CODENAME", ""),
                    product=fields.get("PRETTY_NAME") or fields.get("NAME") or fields["ID"],
                )
        return self._read_old_release()

    def _read_old_release(self) -> _Release | None:
        """Of systems that are older than os-release."""
        fields = _parse_shell(self.text("/etc/lsb-release"))
        if fields.get("DISTRIB_ID") == "Ubuntu":
            version = fields.get("DISTRIB_RELEASE", "")
            return _Release(
                id="ubuntu",
                version=version,
                codename=fields.get("DISTRIB_CODENAME", ""),
                product=fields.get("DISTRIB_DESCRIPTION", f"Ubuntu {version}"),
            )
        for path, name, title in (
            ("/etc/redhat-release", "", ""),
            ("/etc/SuSE-release", "suse", ""),
            ("/etc/debian_version", "debian", "Debian GNU/Linux "),
            ("/etc/alpine-release", "alpine", "Alpine Linux "),
            ("/etc/gentoo-release", "gentoo", ""),
            ("/etc/arch-release", "arch", "Arch Linux"),
        ):
            if not self.paths(path):
                continue
            lines = self.text(path).splitlines()
            line = _printable(lines[0]) if lines else ""
            if not name:  # CentOS release 6.10 (Final), Red Hat Enterprise Linux Server release ...
                name = "rhel" if line.startswith("Red Hat") else line.split(" ")[0].lower()
            number = re.search(r"[0-9]+(\.[0-9]+)*", line)
            return _Release(
                id=name, version=number[0] if number else "", product=f"{title}{line}".strip()
            )
        return None

    def _find_architecture(self) -> str:
        """By the header of a program, after its links were followed inside the image."""
        for path in ("/bin/sh", "/sbin/init", "/usr/bin/env", "/bin/ls"):
            if not self._is_file(path):
                continue
            header = self.handle.pread(path, 20, 0)
            if header[:4] == b"\x7fELF" and len(header) == 20:
                order = "<" if header[5] == 1 else ">"
                (machine,) = struct.unpack_from(f"{order}H", header, 18)
                name = _MACHINES.get(machine, f"machine {machine}")
                return "ppc64" if (name, order) == ("ppc64le", ">") else name
        return "unknown"

    def _find_init(self, programs: set[str]) -> str | None:
        first = PurePosixPath(self.leads_to("/sbin/init")).name
        if not first:
            return None
        if first == "systemd":
            return "systemd"
        if {"openrc", "openrc-init"} & programs and self.paths("/etc/runlevels"):
            return "openrc"
        return "sysv" if self.paths("/etc/rc{2,3,.d/rc3}.d", "/etc/init.d/rcS") else None

    def _find_boot_loaders(self) -> Iterator[str]:
        configurations = {
            "grub2": ("/boot/grub{,2}/grub.cfg",),
            "grub-legacy": ("/boot/grub/{menu.lst,grub.conf}",),
            "extlinux": (
                "/boot/{extlinux,syslinux}/{extlinux,syslinux}.conf",
                "/{boot/,}{extlinux,syslinux}.{conf,cfg}",
                "/boot/syslinux/syslinux.cfg",
            ),
            "systemd-boot": ("/{boot,boot/efi,efi}/loader/loader.conf",),
        }
        for name, patterns in configurations.items():
            if self.paths(*patterns):
                yield name

    def _find_kernels(self) -> tuple[str, ...]:
        """Alpine and Arch name an image by its kind only, which the version of its modules ends
        with, or their file `pkgbase` says."""
        images = {
            re.sub(r"^(vmlinuz|vmlinux|kernel|bzImage)-", "", PurePosixPath(path).name)
            for path in self.paths("/boot/{vmlinuz,vmlinux,kernel,bzImage}-*")
        }
        found = set()
        for path in self.paths("/{usr/,}lib/modules/*/modules.dep"):
            version = PurePosixPath(path).parent.name
            kind = self.text(f"{PurePosixPath(path).parent}/pkgbase").strip()
            if {version, kind} & images or version.endswith(tuple(f"-{each}" for each in images)):
                found.add(version)
        return tuple(sorted(found, key=_version_order))

    def _enabled_services(self) -> set[str]:
        """What starts at boot, without `.service`; of SysV's links, without their order."""
        paths = self.paths(
            "/{etc,usr/lib,lib}/systemd/system/*.{wants,requires}/*",
            "/etc/runlevels/*/*",
            "/etc/{rc.d/,}rc[S2345].d/S[0-9][0-9]*",
        )
        names = set()
        for path in map(PurePosixPath, paths):
            if re.match(r"rc.\.d$", path.parent.name):
                names.add(path.name[3:])
            else:
                names.add(path.name.removesuffix(".service"))
        return names

    def _find_cloud_init(self, init: str | None, enabled: set[str]) -> str | None:
        masks = self.paths("/etc/systemd/system/{cloud-init*,cloud-config*}")
        masked = any(self.handle.is_symlink(path) and not self.leads_to(path) for path in masks)
        nowhere = {self.leads_to(path) for path in masks} & {"/dev/null"}
        if self.paths("/etc/cloud/cloud-init.disabled") or masked or nowhere:
            return None
        if init != "systemd" and not any(name.startswith("cloud-init") for name in enabled):
            return None
        return self._read_cloud_init_version() or "unknown"

    def _read_cloud_init_version(self) -> str | None:
        package = "/usr/lib/python{2,3}*/{dist,site}-packages"
        for path in self.paths(f"{package}/cloudinit/version.py"):
            text = self.text(path)
            for name in ("_PACKAGED_VERSION", "__VERSION__"):
                found = re.search(rf"^{name} *= *['\"]([^'\"@]+)['\"]", text, re.MULTILINE)
                if found is not None:
                    return found[1]
        for path in self.paths(f"{package}/cloud_init-*"):
            found = re.match(r"cloud_init-([0-9.]+[0-9])", PurePosixPath(path).name)
            if found is not None:
                return found[1]
        return None

    def _find_selinux(self) -> str | None:
        fields = _parse_shell(self.text("/etc/selinux/config"))
        mode, policy = fields.get("SELINUX", ""), fields.get("SELINUXTYPE", "targeted")
        if mode not in ("enforcing", "permissive") or not re.match(r"[\w-]+$", policy):
            return None
        return mode if self.paths(f"/etc/selinux/{policy}/policy/policy.*") else None

    def _find_networks(self, programs: set[str], enabled: set[str]) -> Iterator[str]:
        if "systemd-networkd" in enabled:
            yield "networkd"
        if "ifup" in programs and "networking" in enabled:
            yield "ifupdown"
        if "netplan" in programs:
            yield "netplan"
        if "NetworkManager" in programs and "NetworkManager" in enabled:
            yield "NetworkManager"
        if "network" in enabled and self.paths("/etc/sysconfig/network-scripts/ifup"):
            yield "network-scripts"


def _expand(guest: Guest, pattern: str) -> list[str]:
    """The paths that a pattern with braces and wild cards names. Of those that are not UTF-8 none
    is told."""
    try:
        found: list[str] = guest.handle.glob_expand(pattern)
    except NotTextError:
        plain = dict.fromkeys(_without_braces(pattern))
        found = [path for each in plain for path in _glob(guest, each)]
    return [path.rstrip("/") for path in found]


def _without_braces(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for; some of them twice."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        yield pattern
        return
    for choice in inner[1].split(","):
        yield from _without_braces(f"{pattern[: inner.start()]}{choice}{pattern[inner.end() :]}")


def _glob(guest: Guest, pattern: str) -> list[str]:
    """What a pattern names, by looking into one folder after the other."""
    found = [""]
    for part in pattern.strip("/").split("/"):
        if re.search(r"[*?[]", part):
            found = [
                f"{folder}/{name}"
                for folder in found
                for name in _names(guest, folder or "/")
                if fnmatch.fnmatchcase(name, part) and not name.startswith(".")
            ]
        else:
            found = [f"{folder}/{part}" for folder in found]
    return [path for path in found if _is_there(guest, path)]


def _names(guest: Guest, folder: str) -> list[str]:
    if not guest.handle.is_dir(folder, followsymlinks=True):
        return []
    try:
        return guest.names(guest.handle.realpath(folder))
    except NotTextError:  # a link to a folder with such a name
        return []


def _is_there(guest: Guest, path: str) -> bool:
    return bool(guest.handle.is_symlink(path) or guest.handle.exists(path))


def _parse_shell(text: str) -> dict[str, str]:
    """The assignments of a file such as os-release."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*([A-Za-z_]+)=(.*)$", line)
        if match is not None:
            value = match[2].strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[match[1]] = _printable(re.sub(r"\\(.)", r"\1", value))
    return found


def _printable(text: str) -> str:
    """A text of the image, without what would disturb a terminal or a log."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)[:200]


def _version_order(version: str) -> list[tuple[bool, int, str]]:
    """Numbers count as such: 6.10 comes after 6.9."""
    return [
        (number, int(part[:_LONGEST_NUMBER]) if number else 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", version)
        for number in (part.isascii() and part.isdigit(),)
    ]


def _first_line(error: Exception) -> str:
    """What libguestfs says, without the name of its own call."""
    lines: Iterable[str] = str(error).splitlines()
    text = next((line for line in lines if line.strip()), "no reason told")
    return re.sub(r"^(\w+: )+(/\S+( on /\S*)?: )?", "", text).rstrip(".")
