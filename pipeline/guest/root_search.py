"""Finds the root file system of an image, and where the image's fstab mounts the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.disk import fstab
from pipeline.disk.partitions import HEAD, Found, recognise
from pipeline.disk.system import FileSystem, Geometry, Place
from pipeline.disk.untrusted import to_printable
from pipeline.errors import (
    EncryptedError,
    FileSystemError,
    NoSystemError,
    PhantomError,
    SeveralSystemsError,
)
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.mounting import REPAIR, Mounts, describe_place
from pipeline.guest.release import read_release
from pipeline.guest.tree import GuestTree

_ROOT_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs")
_ENCRYPTED = ("crypto_LUKS", "BitLocker")
_DISKS = ("sda", "hda", "vda", "xvda")
_CRYPTTAB = PurePosixPath("/etc/crypttab")
_MARKS = (
    *("/etc/os-release", "/usr/lib/os-release", "/etc/debian_version", "/etc/redhat-release"),
    *("/etc/SuSE-release", "/etc/alpine-release", "/etc/arch-release", "/etc/gentoo-release"),
)
"""Files by which a root file system is known, also of systems older than os-release."""

_OF_A_DISK = re.compile(
    r"(UUID|LABEL|PARTUUID|PARTLABEL)=|/dev/(disk/|mapper/|[hsv]d|xvd|nvme|mmcblk|md)"
)
"""The source in a line of fstab that needs a disk, and not only a removable medium."""


class RootSearch:
    """A search through the file systems of one image, which are mounted one after the other."""

    def __init__(self, guest: Guest, geometry: Geometry, disk: Drive) -> None:
        self.mounts = Mounts(guest, disk.device)
        self._guest = guest
        self._tree = GuestTree(guest)
        self._geometry = geometry
        self._file_systems = [*geometry.file_systems, *self._find_volumes()]

    def find(self) -> list[FileSystem]:
        """All file systems with their mount points; the one at `/` is root, and is mounted there.

        Raises NoSystemError, SeveralSystemsError, EncryptedError, FileSystemError.
        """
        root = self._find_root()
        self.mounts.mount_root(root)
        mounts = self._read_mounts() | {root: "/"}
        return [replace(source, mount=mounts.get(source)) for source in self._file_systems]

    def _find_volumes(self) -> Iterator[FileSystem]:
        """The logical volumes, which the appliance has activated."""
        handle = self._guest.handle
        if "LVM2_member" not in {at.type for at in self._geometry.file_systems}:
            return
        for device in handle.lvs():
            try:
                size = handle.blockdev_getsize64(device)
                head = handle.pread_device(device, HEAD, 0)
            except RuntimeError:  # it has no device, such as the pool of thin volumes
                if self._guest.ended:
                    raise
                continue
            place = Place(volume=device.removeprefix("/dev/"), size=size)
            yield (recognise(head) or Found("")).at(place)

    # ---- root

    def _find_root(self) -> FileSystem:
        """The one file system that holds an operating system."""
        systems: list[tuple[FileSystem, str]] = []
        damaged: list[str] = []
        for file_system in self._file_systems:
            if file_system.type not in _ROOT_TYPES:
                continue
            try:
                self.mounts.mount_root(file_system)
                if self._tree.glob(*_MARKS):
                    release = read_release(self._tree)
                    name = release.product if release else "an unknown system"
                    systems.append((file_system, name))
            except FileSystemError as error:
                damaged.append(error.what)
        if len(systems) > 1:
            told = " and ".join(f"{name} on {describe_place(at.place)}" for at, name in systems)
            raise SeveralSystemsError(
                f"the image holds several operating systems: {told}",
                todo="choose a base image with one, or copy the partition that you want to a disk "
                "of its own",
            )
        if not systems:
            raise self._no_system(damaged)
        return systems[0][0]

    def _no_system(self, damaged: list[str]) -> PhantomError:
        encrypted = [volume for volume in self._file_systems if volume.type in _ENCRYPTED]
        if encrypted:
            return _encrypted("root", *encrypted)
        if damaged:
            return FileSystemError("; ".join(damaged), todo=REPAIR)
        kinds = [f"{at.type} on {describe_place(at.place)}" for at in self._file_systems if at.type]
        return NoSystemError(
            f"the image holds no operating system: there is {', '.join(kinds) or 'nothing on it'}",
            todo="name an image of a machine's whole disk, or of its root file system",
        )

    # ---- fstab

    def _read_mounts(self) -> dict[FileSystem, str]:
        """Where fstab mounts the file systems, apart from root."""
        mounts: dict[FileSystem, str] = {}
        lines = tuple(fstab.parse(self._tree.read(fstab.FSTAB)))
        self._refuse_encrypted(lines)
        for line in lines:
            source, mount = self._find_source(line.source), line.mount
            if not mount.startswith("/"):
                continue
            if source is not None:
                mounts.setdefault(source, mount)
            elif _OF_A_DISK.match(line.source):
                told = to_printable(f"{line.source} {mount}")[:200]
                self._guest.progress.output(f"fstab names what is not in the image: {told}")
        return {source: mount for source, mount in mounts.items() if mount != "/"}

    def _refuse_encrypted(self, lines: Iterable[fstab.Line]) -> None:
        """Raises EncryptedError if fstab mounts an encrypted file system."""
        mapped = {}
        for entry in self._tree.read(_CRYPTTAB).splitlines():
            name, *rest = entry.split()[:2] or [""]
            if rest and not name.startswith("#"):
                mapped[f"/dev/mapper/{name}"] = rest[0].replace('"', "")
        for line in lines:
            source = self._find_source(mapped.get(line.source, line.source))
            # What is not mounted, such as swap, can be left out.
            if source is not None and source.type in _ENCRYPTED and line.mount.startswith("/"):
                raise _encrypted(to_printable(line.mount)[:200], source)

    def _find_source(self, name: str) -> FileSystem | None:
        """The file system that a line of fstab means."""
        return next((source for source in self._file_systems if name in self._names(source)), None)

    def _names(self, file_system: FileSystem) -> set[str]:
        """All names by which fstab can refer to a file system."""
        place, names = file_system.place, set[str]()
        tags = {"UUID": file_system.uuid, "LABEL": file_system.label}
        for entry in self._geometry.partitions:
            if entry.number == place.partition:
                tags |= {"PARTUUID": entry.uuid, "PARTLABEL": entry.name}
        if place.volume is not None:
            group, volume = place.volume.split("/")
            mapped = f"{group.replace('-', '--')}-{volume.replace('-', '--')}"
            names |= {f"/dev/{group}/{volume}", f"/dev/mapper/{mapped}"}
        else:
            # A site gives a bare file system the name of a first partition.
            number = place.partition or 1
            names |= {f"/dev/{disk}{number}" for disk in _DISKS}
            names |= {f"/dev/{disk}p{number}" for disk in ("nvme0n1", "mmcblk0")}
            if place.partition is None:
                names |= {f"/dev/{disk}" for disk in _DISKS}
        for tag, value in tags.items():
            if value:
                names |= {f"{tag}={value}", f"/dev/disk/by-{tag.lower()}/{value}"}
        return names


def _encrypted(what: str, *volumes: FileSystem) -> EncryptedError:
    kind = volumes[0].type.removeprefix("crypto_")
    where = " and ".join(describe_place(volume.place) for volume in volumes)
    return EncryptedError(
        f"the image's {what} is encrypted: {kind} on {where}",
        todo="decrypt it, or choose another base image: nobody is there to enter a key",
    )
