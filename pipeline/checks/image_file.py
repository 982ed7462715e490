"""Opens a raw disk whose files are to be checked: by itself where one ext file system has all of
them, and else by libguestfs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.disk import fstab
from pipeline.disk.contents import Contents, Ext4Contents
from pipeline.disk.ext4_reader import Reader
from pipeline.disk.partitions import read_geometry
from pipeline.disk.superblock import is_ext_at
from pipeline.disk.system import Geometry
from pipeline.errors import FileSystemError
from pipeline.guest.appliance import Drive, launched
from pipeline.guest.contents import GuestContents
from pipeline.guest.inspection import SECONDS, inspect_system
from pipeline.guest.mounting import REPAIR, first_line, mounted
from pipeline.model import Progress
from pipeline.store import Store


@contextmanager
def opened(
    disk: Path, work: Path, log: Path, store: Store, progress: Progress
) -> Iterator[Contents]:
    """The files of the one system on an untrusted raw disk. `work` is an empty folder. Raises
    ImageFormatError, FileSystemError, and what `inspect_system` and `launched` raise."""
    geometry = read_geometry(disk)
    start = _find_only_root(disk, geometry)
    if start is not None:
        with Reader(disk, start) as reader:
            contents = Ext4Contents(reader)
            contents.identifiers |= _identify(geometry)
            yield contents
        return
    drive = Drive(file=disk, name="disk")

    def explain(error: RuntimeError) -> FileSystemError:
        what = f"the image's file systems cannot be read: {first_line(error)}"
        return FileSystemError(what, todo=REPAIR)

    with launched([drive], store=store.folder, log=log, progress=progress) as guest:
        progress.step("looking into the image")
        system = inspect_system(guest, geometry, drive)
        with mounted(guest, system, drive):
            try:
                with guest.explained(explain), guest.limited(SECONDS):
                    yield GuestContents(guest, system, work)
            except TimeoutError as error:
                what = f"looking into the image has not ended: {error}"
                raise FileSystemError(what, todo=REPAIR) from error


def _identify(geometry: Geometry) -> set[str]:
    systems = (
        f"{name}={value}"
        for each in geometry.file_systems
        for name, value in (("UUID", each.uuid), ("LABEL", each.label))
        if value
    )
    parts = (f"PARTUUID={partition.uuid}" for partition in geometry.partitions)
    return {*systems, *parts}


def _find_only_root(disk: Path, geometry: Geometry) -> int | None:
    """The byte at which the ext file system with all files of a system starts; None where there is
    no such, or several that may be it."""
    starts = [each.place.start for each in geometry.file_systems if each.type.startswith("ext")]
    roots = []
    for start in starts:
        if start is not None and is_ext_at(disk, start):
            with Reader(disk, start) as reader:
                if all(reader.find(path) for path in ("etc", "usr", "etc/os-release")):
                    roots.append(start)
    others = {"", "vfat", "swap"}
    alone = all(
        each.type in others or each.type.startswith("ext") for each in geometry.file_systems
    )
    if len(roots) != 1 or not alone:
        return None
    with Reader(disk, roots[0]) as reader:
        mounts = [*fstab.parse(Ext4Contents(reader).text(str(fstab.FSTAB)))]
    elsewhere = [
        line
        for line in mounts
        if line.mount.startswith("/") and line.mount != "/"
        if line.mount not in fstab.EFI_MOUNTS and line.type not in ("swap", "tmpfs", "proc")
    ]
    return None if elsewhere else roots[0]
