"""The root file system: taken out of a base image, made readable for old nodes, and completed.

A disk of any shape becomes one ext file system with everything that the image's fstab mounts. A
root that is an ext file system already is copied as blocks, which is the fastest way; any other is
copied file by file. File systems of the image are opened only inside the appliance; on the host
their bytes are copied unread.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline import sparse
from pipeline.disk import fstab
from pipeline.disk.fstab import FSTAB, normal
from pipeline.disk.superblock import Superblock, superblock_at
from pipeline.disk.system import FileSystem, Geometry, Place, System
from pipeline.disk.untrusted import to_printable
from pipeline.errors import (
    DiskTooSmallError,
    FileSystemError,
    PhantomError,
    StageFailedError,
    UnsafeImageError,
)
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.mounting import Mounts, device_of
from pipeline.layouts import AROUND_ROOT
from pipeline.model import GIB, KIB, MIB, format_size
from pipeline.tools import run

_EXT = ("ext2", "ext3", "ext4")
_FEATURES = (  # of elements/phantom-debian's file systems: nodes of 2010 and GRUB know them
    *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "flex_bg"),
    *("sparse_super", "large_file", "huge_file", "uninit_bg", "dir_nlink", "extra_isize"),
)
# Features that Linux 2.6.32 or GRUB 2.06 do not know, by what takes them away.
_TUNED_AWAY = (
    *("orphan_file", "fast_commit", "mmp", "quota", "project", "metadata_csum_seed"),
    "metadata_csum",
)
_RESIZED_AWAY = "64bit"
_STAYING = frozenset(
    ("bigalloc", "casefold", "ea_inode", "encrypt", "inline_data", "large_dir", "meta_bg")
    + ("shared_blocks", "sparse_super2", "stable_inodes", "verity")
)
_SECONDS, _SECONDS_PER_GIB = 600.0, 60.0  # twenty times what copying takes
_REPAIRED = 3  # up to this exit status of e2fsck the file system is in order
_ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"  # Discoverable Partitions: root, x86-64
_REPAIR = "repair the base image by hand, with `e2fsck -f` on its root file system"
_LOOK = "look at the base image with e2fsck, or with its own system"
_FROM = "/tmp/phantom-from"  # noqa: S108  (a folder of the appliance)


@dataclass(frozen=True, kw_only=True)
class Likely:
    """The file system that is probably root, as far as the host can tell. The guess saves time;
    `settle_root` checks it."""

    place: Place
    bytes: int
    """Of the file system itself."""


def keeps_blocks(system: System) -> bool:
    """Whether root can be copied as blocks: an ext file system with no feature that is too new and
    that nothing takes away. Any other is made anew and gets its files."""
    return system.root.type in _EXT and _STAYING.isdisjoint(system.root_features)


def find_likely_root(base: Path, geometry: Geometry) -> Likely | None:
    """The largest file system, unless another one's type or superblock says that it is root; None
    if it is not an ext file system that is complete."""
    roots = {entry.number for entry in geometry.partitions if entry.type == _ROOT_TYPE}
    ranked = []
    for file_system in geometry.file_systems:
        place = file_system.place
        if file_system.type == "swap" or place.start is None:
            continue
        superblock = superblock_at(base, place.start) if file_system.type in _EXT else None
        if superblock is None:
            ranked.append((False, False, place.size, place, 0))
        else:
            mounted = superblock.last_mounted == "/"
            ranked.append((place.partition in roots, mounted, place.size, place, superblock.bytes))
    if not ranked:
        return None
    *_, place, size = max(ranked, key=lambda candidate: candidate[:3])
    if not size or size > place.size or (place.start or 0) + size > geometry.disk_bytes:
        return None
    return Likely(place=place, bytes=size)


def make_root(root: Path, size: int, likely: Likely | None) -> None:
    """Makes the sparse file for root: `size` bytes, or more if `likely` needs them."""
    with root.open("wb") as made:
        made.truncate(max(size, 0 if likely is None else likely.bytes))


def copy_root(
    base: Path, root: Path, likely: Likely, *, stop: threading.Event | None = None
) -> None:
    """Copies the likely root's blocks into the file that `make_root` made. Raises StageFailedError
    when `run.stop_all` is called or `stop` is set."""
    assert likely.place.start is not None
    stop = stop or threading.Event()
    with run.stopped_by(stop.set), base.open("rb") as disk, root.open("r+b") as made:
        start, size = likely.place.start, likely.bytes
        for _ in sparse.copy_range(disk.fileno(), start, size, made.fileno(), 0):
            if stop.is_set():
                raise StageFailedError("was interrupted", todo="run the same command again")
        os.fdatasync(made.fileno())  # then little is left to wait for when the artifact is stored


def settle_root(
    guest: Guest, system: System, likely: Likely | None, *, working: Drive, base: Drive, room: int
) -> None:
    """Makes the root file system on the drive `working`, which has `room` bytes, from the image on
    the drive `base`.

    Afterwards it is mounted at / and writable: ext2, ext3 or ext4 with features that nodes of 2010
    know, as large as its device, and with all in it that the image's fstab mounts elsewhere, but
    for an EFI system partition. The blocks of `likely` are on `working` already.
    Raises DiskTooSmallError, FileSystemError, UnsafeImageError.
    """
    conversion = _Conversion(guest=guest, system=system, drive=working, base=base.device, room=room)
    with (
        bounded(guest, room),
        _explained(guest, "the image's root file system cannot be made one that boots"),
    ):
        conversion.run(copied=None if likely is None else likely.place)


def trim(guest: Guest, room: int) -> None:
    """Frees the unused blocks of the mounted root file system, of `room` bytes, so that its file is
    sparse. Raises FileSystemError."""
    with bounded(guest, room), _explained(guest, "the root file system cannot be written"):
        # libguestfs's own call takes twice as long: it writes out all disks, before and after.
        guest.shell("sync -f /sysroot && fstrim /sysroot")


@contextmanager
def written_out(guest: Guest, *, on_failure: bool) -> Iterator[None]:
    """With `on_failure`, what the appliance holds of the file system in memory is written to it
    when the block fails, so that the file shows what was there."""
    try:
        yield
    except PhantomError:
        if on_failure and not guest.ended:
            with suppress(RuntimeError):
                guest.handle.sync()
        raise


@contextmanager
def bounded(guest: Guest, room: int) -> Iterator[None]:
    """Kills the appliance, and raises FileSystemError, if the block takes far too long for a file
    system of `room` bytes: an image may be made to be slow."""
    try:
        with guest.limited(_SECONDS + room / GIB * _SECONDS_PER_GIB):
            yield
    except TimeoutError as error:
        raise FileSystemError(
            f"work on the image's file systems has not ended: {error}", todo=_LOOK, log=guest.log
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A file system, or a subvolume of one, that the image mounts below root."""

    path: PurePosixPath
    source: FileSystem
    options: str = ""


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """Makes the root file system of one image."""

    guest: Guest
    system: System
    drive: Drive
    """Where root is made."""
    base: str
    """The appliance's name of the disk with the image."""
    room: int
    """Bytes of `drive`."""

    def run(self, copied: Place | None) -> None:
        """Does all of it. The blocks of the file system at `copied` are on the drive already."""
        guest, root, working = self.guest, self.system.root, self.drive.device
        guest.shell(f"blockdev --flushbufs {working}")  # it may have been read during the copy
        foreign = not keeps_blocks(self.system)
        if copied is not None and (foreign or copied != root.place):
            guest.shell(f"blkdiscard {working}")
            copied = None
        if foreign:
            subvolume = Mounts(guest, self.base).find_subvolume(root)
            self._make_file_system()
        else:
            if copied is None:
                self._copy_blocks()
            superblock = self._age()
        with _explained(guest, "the image's root file system cannot be mounted"):
            guest.handle.mount(working, "/")
        if foreign:
            mount = _Mount(path=PurePosixPath("/"), source=root, options=subvolume)
            with self._mounted(mount):
                self._copy_files(mount)
        else:
            self._grow(superblock)
        self._fold()

    def _copy_blocks(self) -> None:
        """Copies root's blocks inside the appliance."""
        place, size = self.system.root.place, self.system.root_bytes
        if size > place.size:
            raise FileSystemError(
                f"the image's root file system has {format_size(size)}, and what holds it only "
                f"{format_size(place.size)}",
                todo="the image was cut: get it again, or repair it",
            )
        if size > self.room:
            raise DiskTooSmallError(
                f"the image's root file system of {format_size(size)} does not fit on the disk",
                todo=f"set disk_size to {_mebibytes(size + AROUND_ROOT)}MiB or more",
            )
        # Three times as fast as libguestfs's own call, and as sparse.
        source, target = shlex.quote(device_of(place, self.base)), self.drive.device
        self.guest.shell(
            f"dd if={source} of={target} bs=1M count={size} "
            "iflag=fullblock,count_bytes oflag=direct conv=sparse,nocreat"
        )

    def _age(self) -> Superblock:
        """Removes features that are too new, and repairs damage. Mounting replays a journal.
        Returns the superblock as it is afterwards."""
        guest, working, superblock = self.guest, self.drive.device, self._superblock()
        tuned = [feature for feature in _TUNED_AWAY if feature in superblock.features]
        resized = _RESIZED_AWAY in superblock.features
        if tuned or resized or not superblock.clean:
            self._check()
        with _explained(guest, "features of the image's root file system cannot be taken away"):
            if tuned:
                features = ",".join(f"^{feature}" for feature in tuned)
                guest.shell(f"tune2fs -f -O {features} {working}")
            if resized:
                guest.shell(f"resize2fs -s {working}")
        return self._superblock() if tuned or resized else superblock

    def _check(self) -> None:
        """Repairs the file system if that loses no data. Raises FileSystemError."""
        working = self.drive.device
        printed = self.guest.shell(f"e2fsck -f -p {working} 2>&1; echo status $?")
        text, _, status = printed.rpartition("status ")
        if int(status) > _REPAIRED:
            raise FileSystemError(
                "the image's root file system is damaged, and e2fsck cannot repair it without a "
                "loss",
                todo=_REPAIR,
                detail=_last_lines(text.replace(working, "root")),
            )

    def _grow(self, superblock: Superblock) -> None:
        """Grows the mounted root, which has that superblock, to the size of its device."""
        guest, working = self.guest, self.drive.device
        if self.room - superblock.bytes < MIB:
            return
        with _explained(guest, "the image's root file system cannot grow"):
            if "resize_inode" in superblock.features:
                guest.shell(f"resize2fs {working}")
                return
            guest.handle.umount("/")  # without reserved room it grows only while it is not mounted
            self._check()
            guest.shell(f"resize2fs {working}")
            guest.handle.mount(working, "/")

    def _superblock(self) -> Superblock:
        """Root's superblock. The programs that wrote it in the appliance have ended."""
        superblock = superblock_at(self.drive.file, 0)
        if superblock is None or not superblock.bytes:
            raise FileSystemError(
                "the image's root file system cannot be read: its superblock is damaged",
                todo=_REPAIR,
            )
        return superblock

    def _make_file_system(self) -> None:
        """Makes an empty file system with the identity of the one whose files it will get."""
        root = self.system.root
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1"]
        words += ["-O", f"none,{','.join(_FEATURES)}", "-J", "size=64"]
        words += ["-E", "nodiscard,assume_storage_prezeroed=1"]
        words += ["-U", root.uuid] if len(root.uuid) == 36 else []  # as long as an ext one's
        words += ["-L", root.label] if 0 < len(root.label.encode()) <= 16 else []
        self.guest.shell(shlex.join([*words, self.drive.device]))

    def _fold(self) -> None:
        """Moves into root what the image mounts elsewhere, outer mounts first."""
        for mount in sorted(self._mounts(), key=lambda mount: len(mount.path.parts)):
            self.guest.progress.step(f"moving {mount.path} into the root file system")
            _clear_mount_point(self.guest, mount.path)
            with self._mounted(mount):
                self._check_room(mount)
                self._copy_files(mount)

    def _mounts(self) -> list[_Mount]:
        mounts = {}
        for file_system in self.system.file_systems:
            mount = normal(file_system.mount or "/")
            if mount not in ("/", *fstab.EFI_MOUNTS) and file_system.type != "swap":
                path = _safe(mount)
                mounts[path] = _Mount(path=path, source=file_system)
        for file_system in self.system.file_systems:
            if file_system.type == "btrfs":
                mounts |= {mount.path: mount for mount in _subvolumes(self.guest, file_system)}
        return list(mounts.values())

    @contextmanager
    def _mounted(self, mount: _Mount) -> Iterator[None]:
        """Mounts a file system of the image outside its root, where no path of the image leads."""
        source = shlex.quote(device_of(mount.source.place, self.base))
        options = shlex.quote(",".join(filter(None, ("ro", mount.options))))
        words = f"-t {mount.source.type} -o {options} {source} {_FROM}"
        with _explained(self.guest, f"the image's file system for {mount.path} cannot be mounted"):
            self.guest.shell(f"mkdir -p {_FROM} && mount {words}")
        try:
            yield
        finally:
            self.guest.shell(f"umount -R {_FROM}")

    def _copy_files(self, mount: _Mount) -> None:
        """Copies all files of the mounted file system, with owners, modes, times and attributes."""
        target = shlex.quote(f"/sysroot{mount.path}")
        # Snapshots are no part of what is seen; an empty folder covers them.
        kept = f"{_FROM}/.snapshots"
        hide = f"if [ -d {kept} ] && [ ! -h {kept} ]; then mount -t tmpfs none {kept}; fi"
        lost = f"rm -rf {target}/lost+found" if mount.path != PurePosixPath("/") else "true"

        def explain(error: RuntimeError) -> PhantomError:
            if "No space left on device" not in str(error):
                return _unreadable(f"the image's {mount.path} cannot be copied", error)
            used = int(self.guest.shell(f"du -skx {_FROM}").split()[0]) * KIB
            return self._no_room(mount, used, 0)

        with self.guest.explained(explain):
            self.guest.shell(f"{hide}; cp -a {_FROM}/. {target} && {lost}")

    def _check_room(self, mount: _Mount) -> None:
        used = int(self.guest.shell(f"df -k --output=used {_FROM}").split()[-1]) * KIB
        root = self.guest.handle.statvfs("/")
        free = int(root["bavail"] * root["frsize"])  # without the reserved blocks
        if used > free:
            raise self._no_room(mount, used, free)

    def _no_room(self, mount: _Mount, used: int, free: int) -> PhantomError:
        needed = self.room + (used - free) * 11 // 10 + AROUND_ROOT
        return FileSystemError(
            f"the root file system has no room for the image's {mount.path}, which takes "
            f"{format_size(used)}: {format_size(free)} are free",
            todo=f"set disk_size to {_mebibytes(needed)}MiB or more",
        )


def _subvolumes(guest: Guest, source: FileSystem) -> Iterator[_Mount]:
    """The subvolumes of a btrfs that the image's fstab mounts, but for snapshots of others."""
    names = (f"UUID={source.uuid}", f'UUID="{source.uuid}"', f"LABEL={source.label}")
    for line in fstab.parse(ImageFiles(guest).read(FSTAB)):
        path = line.mount
        if line.type != "btrfs" or not path.startswith("/") or path == "/":
            continue
        wanted = [option for option in line.options if option.startswith(("subvol=", "subvolid="))]
        known = line.source in names or line.source.startswith("/dev/")
        if known and wanted and PurePosixPath(path).name != ".snapshots":
            yield _Mount(path=_safe(path), source=source, options=wanted[0])


def _safe(mount: str) -> PurePosixPath:
    """A mount point below root as a path. Raises UnsafeImageError."""
    path = PurePosixPath(mount)
    if not path.is_absolute() or ".." in path.parts or path.parent == path or "\0" in mount:
        raise UnsafeImageError(
            f"the image's fstab mounts something at {to_printable(mount)}, which is no path"
        )
    return path


def _clear_mount_point(guest: Guest, path: PurePosixPath) -> None:
    """Makes a mount point an empty folder: the running system never saw what the mount hid.
    Raises UnsafeImageError if the path leads through a link."""
    for folder in (*reversed(path.parents), path):
        if guest.handle.is_symlink(str(folder)):
            target = guest.read_link(str(folder))
            raise UnsafeImageError(
                f"the image's fstab mounts something at {path}, and {folder} is a link to {target}",
                todo="name the mount point in the base's fstab by the folder that it leads to",
            )
    place = shlex.quote(f"/sysroot{path}")
    with _explained(guest, f"the image's {path} cannot be emptied"):
        guest.shell(f"mkdir -p {place} && find {place} -xdev -mindepth 1 -delete")


def _mebibytes(size: int) -> int:
    return -(-size // MIB)


def _explained(guest: Guest, what: str) -> AbstractContextManager[None]:
    return guest.explained(partial(_unreadable, what))


def _unreadable(what: str, error: RuntimeError) -> PhantomError:
    return FileSystemError(what, todo=_LOOK, detail=_last_lines(str(error)))


def _last_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-6:])
