"""Mounts the file systems of an image that is only inspected, all of them read-only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.disk.fstab import OF_ROOT, SUBVOLUMES
from pipeline.disk.system import FileSystem, Place, System
from pipeline.errors import FileSystemError
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.tree import GuestTree

REPAIR = "repair the image's file systems with their own program, or choose another base image"

_LOOKED_INTO = ("/usr", "/var", "/boot", "/boot/efi", "/efi")
"""Mount points below which inspection looks. Each comes after the one that holds it."""


@contextmanager
def mounted(guest: Guest, system: System, disk: Drive) -> Iterator[None]:
    """The system mounted read-only, from the drive `disk`, with what fstab mounts where programs
    and boot loaders lie. Raises FileSystemError."""
    mounts = Mounts(guest, disk.device)
    try:
        mounts.mount_root(system.root)
        mounts.mount_others(system.file_systems)
        yield
    finally:
        mounts.unmount()


class Mounts:
    """The file systems of one image that are mounted."""

    def __init__(self, guest: Guest, disk: str) -> None:
        self._guest = guest
        self._disk = disk
        self._root: FileSystem | None = None

    def mount_root(self, root: FileSystem) -> None:
        """Mounts a file system at / and no other. Raises FileSystemError."""
        if self._root != root:
            self._mount(root, "/", self.find_subvolume(root))
            self._root = root

    def mount_others(self, file_systems: Iterable[FileSystem]) -> None:
        """Mounts those that hold what is inspected, below root. Raises FileSystemError."""
        by_mount = {file_system.mount: file_system for file_system in file_systems}
        for mount in _LOOKED_INTO:
            if mount in by_mount and self._guest.handle.is_dir(mount):
                self._mount(by_mount[mount], mount)

    def unmount(self) -> None:
        """Leaves nothing mounted."""
        if self._root is not None and not self._guest.ended:
            self._guest.handle.umount_all()
        self._root = None

    def find_subvolume(self, root: FileSystem) -> str:
        """The mount option for the subvolume of a btrfs that holds the system; empty for another
        file system, and if the system is in what btrfs mounts by default. Leaves nothing mounted.
        Raises FileSystemError."""
        self.unmount()
        if root.type != "btrfs":
            return ""
        self._mount(root, "/")
        self._root = root
        names = ",".join(f"{name}/" if name else "" for name in SUBVOLUMES)
        paths = GuestTree(self._guest).glob(f"/{{{names}}}{{{','.join(OF_ROOT)}}}")
        self.unmount()
        for name in SUBVOLUMES:
            if any(f"/{name}/{file}".replace("//", "/") in paths for file in OF_ROOT):
                return f"subvol=/{name}" if name else ""
        return ""

    def _mount(self, file_system: FileSystem, mount: str, options: str = "") -> None:
        def explain(error: RuntimeError) -> FileSystemError:
            what = f"the {file_system.type} file system on {describe_place(file_system.place)}"
            return FileSystemError(f"{what} cannot be mounted: {first_line(error)}", todo=REPAIR)

        device, words = device_of(file_system.place, self._disk), ["ro", *filter(None, [options])]
        with self._guest.explained(explain):
            self._guest.handle.mount_options(",".join(words), device, mount)


def device_of(place: Place, disk: str) -> str:
    """The appliance's name of the device with a file system of the image on `disk`."""
    if place.volume is not None:
        return f"/dev/{place.volume}"
    return disk if place.partition is None else f"{disk}{place.partition}"


def describe_place(place: Place) -> str:
    """Where a file system lies, in words for people."""
    if place.volume is not None:
        return f"the logical volume {place.volume}"
    return "the whole disk" if place.partition is None else f"partition {place.partition}"


def first_line(error: Exception) -> str:
    """The first line of libguestfs's error, without the name of the call."""
    lines = str(error).splitlines()
    text = next((line for line in lines if line.strip()), "no reason told")
    return re.sub(r"^(\w+: )+(/\S+( on /\S*)?: )?", "", text).rstrip(".")
