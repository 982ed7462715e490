"""The root file system: taken out of a base image, aged for old nodes, and made whole.

What lay on a disk of any shape becomes one ext file system with all that the image's own fstab
mounts. It is copied as blocks where it is one already, which costs least, and by its files
elsewhere. All of an image is looked at inside the appliance only; on the host its bytes are copied
without a look at them.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import sparse
from pipeline.errors import (
    DiskTooSmallError,
    FileSystemError,
    StageFailedError,
    UnsafeImageError,
)
from pipeline.guest import fstab
from pipeline.guest.appliance import Drive, Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.geometry import Geometry
from pipeline.guest.mounts import OF_ROOT, SUBVOLUMES, normal
from pipeline.guest.superblock import Superblock, superblock_at
from pipeline.guest.system import FileSystem, Place, System
from pipeline.model import GIB, KIB, MIB, format_size
from pipeline.tools import run

EXT = ("ext2", "ext3", "ext4")
"""What can be root of the result as it is."""

AROUND_ROOT = 65 * MIB
"""What the largest of the layouts puts around the root file system."""

_FEATURES = (  # as elements/phantom-debian makes its own: known to nodes of 2010 and to GRUB
    *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "flex_bg"),
    *("sparse_super", "large_file", "huge_file", "uninit_bg", "dir_nlink", "extra_isize"),
)
# Features that Linux 2.6.32 or GRUB 2.06 do not know, by what takes them away.
_TUNED_AWAY = (
    *("orphan_file", "fast_commit", "mmp", "quota", "project", "metadata_csum_seed"),
    "metadata_csum",
)
_RESIZED_AWAY = ("64bit",)
STAYING = frozenset(
    ("bigalloc", "casefold", "ea_inode", "encrypt", "inline_data", "large_dir", "meta_bg")
    + ("shared_blocks", "sparse_super2", "stable_inodes", "verity")
)
"""New features that nothing takes away: such a file system is copied by its files."""

_SECONDS, _SECONDS_PER_GIB = 600.0, 60.0  # twenty times what copying takes
_REPAIRED = 3  # e2fsck's statuses up to this one say that all is well now
_ROOT_TYPES = ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",)  # Discoverable Partitions: root, x86-64
_FSTAB = PurePosixPath("/etc/fstab")
_FROM = "/tmp/phantom-from"  # noqa: S108  (a folder of the appliance)


@dataclass(frozen=True, kw_only=True)
class Likely:
    """What is likely the root file system, as far as the host can tell. A guess, to save time:
    `settle_root` looks whether it was right."""

    place: Place
    bytes: int
    """Of the file system itself."""


def find_likely_root(base: Path, geometry: Geometry) -> Likely | None:
    """The largest file system, unless another says that it is root; None where its blocks alone are
    no file system of ours."""
    found = _likely_root(base, geometry)
    return None if found is None else Likely(place=found[0], bytes=found[1])


def make_root(root: Path, size: int, likely: Likely | None) -> None:
    """Makes the sparse file that root is to lie in: of `size` bytes, or what it needs."""
    with root.open("wb") as made:
        made.truncate(max(size, 0 if likely is None else likely.bytes))


def copy_root(
    base: Path, root: Path, likely: Likely, *, stop: threading.Event | None = None
) -> None:
    """Copies the likely root's blocks into the file that `make_root` made. Raises StageFailedError
    once all is to end (`run.stop_all`), or `stop` is set."""
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
    with (
        bounded(guest, room),
        _explained(guest, "the image's root file system cannot be made one that boots"),
    ):
        _settle(guest, system, likely, drive=working, base=base.device, room=room)


def trim(guest: Guest, room: int) -> None:
    """Gives back what the mounted root file system, of `room` bytes, does not use, so that its file
    is sparse. Raises FileSystemError."""
    with bounded(guest, room), _explained(guest, "the root file system cannot be written"):
        # libguestfs's own call takes twice as long: it writes out all disks, before and after.
        _sh(guest, "sync -f /sysroot && fstrim /sysroot")


@contextmanager
def bounded(guest: Guest, room: int) -> Iterator[None]:
    """Ends work on a file system of so many bytes that takes far longer than it can: one may be
    made to be slow. Raises FileSystemError then; the appliance is gone."""
    try:
        with guest.limited(_SECONDS + room / GIB * _SECONDS_PER_GIB):
            yield
    except TimeoutError as error:
        raise FileSystemError(
            f"work on the image's file systems has not ended: {error}",
            todo="look at the base image with e2fsck, or with its own system",
            log=guest.log,
        ) from error


def _settle(
    guest: Guest, system: System, likely: Likely | None, *, drive: Drive, base: str, room: int
) -> None:
    copied, working = None if likely is None else likely.place, drive.device
    _sh(guest, f"blockdev --flushbufs {working}")  # it may have been looked at while it was copied
    root = system.root
    foreign = root.type not in EXT or not STAYING.isdisjoint(system.root_features)
    if copied is not None and (foreign or copied != root.place):
        _sh(guest, f"blkdiscard {working}")
        copied = None
    if foreign:
        _make_file_system(guest, root, working)
    else:
        if copied is None:
            _copy_blocks(guest, system, working, base, room)
        told = _age(guest, drive)
    with _explained(guest, "the image's root file system cannot be mounted"):
        guest.handle.mount(working, "/")
    if foreign:
        _copy_root_files(guest, root, base, room)
    else:
        _grow(guest, working, told, room)
    _fold(guest, system, base, room)


def device(place: Place, disk: str) -> str:
    """The appliance's name of what holds a file system of the image on `disk`."""
    if place.volume is not None:
        return f"/dev/{place.volume}"
    return disk if place.partition is None else f"{disk}{place.partition}"


def _likely_root(base: Path, geometry: Geometry) -> tuple[Place, int] | None:
    """The place of the likely root and the bytes of its file system: the largest one, unless
    another says that it is root."""
    types = {each.number: each.type for each in geometry.partitions}
    ranked = []
    for each in geometry.file_systems:
        place, size = each.place, None
        if each.type == "swap" or place.start is None:
            continue
        typed = told = False
        found = superblock_at(base, place.start) if each.type in EXT else None
        if found is not None:
            size = found.bytes
            typed = place.partition is not None and types[place.partition] in _ROOT_TYPES
            told = found.last_mounted == "/"
        ranked.append((typed, told, place.size, place, size))
    if not ranked:
        return None
    *_, place, size = max(ranked, key=lambda each: each[:3])
    if size is None or size > place.size or (place.start or 0) + size > geometry.disk_bytes:
        return None
    return place, size


def _copy_blocks(guest: Guest, system: System, working: str, base: str, room: int) -> None:
    """Copies root's blocks inside the appliance."""
    size = system.root_bytes
    if size > system.root.place.size:
        raise FileSystemError(
            f"the image's root file system has {format_size(size)}, and what holds it only "
            f"{format_size(system.root.place.size)}",
            todo="the image was cut: get it again, or repair it",
        )
    if size > room:
        raise DiskTooSmallError(
            f"the image's root file system of {format_size(size)} does not fit on the disk",
            todo=f"set disk_size to {_mebibytes(size + AROUND_ROOT)}MiB or more",
        )
    # Three times as fast as libguestfs's own call, and as sparse.
    _sh(
        guest,
        f"dd if={shlex.quote(device(system.root.place, base))} of={working} bs=1M count={size} "
        "iflag=fullblock,count_bytes oflag=direct conv=sparse,nocreat",
    )


def _age(guest: Guest, drive: Drive) -> Superblock:
    """Takes new features away, and repairs what is damaged. A journal is replayed by mounting.
    Returns what the superblock says then."""
    told, working = _superblock(drive), drive.device
    tuned = [each for each in _TUNED_AWAY if each in told.features]
    resized = not set(_RESIZED_AWAY).isdisjoint(told.features)
    if tuned or resized or not told.clean:
        _check(guest, working)
    with _explained(guest, "features of the image's root file system cannot be taken away"):
        if tuned:
            _sh(guest, f"tune2fs -f -O {','.join(f'^{each}' for each in tuned)} {working}")
        if resized:
            _sh(guest, f"resize2fs -s {working}")
    return _superblock(drive) if tuned or resized else told


def _check(guest: Guest, working: str) -> None:
    """Repairs what can be repaired without a loss. Raises FileSystemError."""
    printed = _sh(guest, f"e2fsck -f -p {working} 2>&1; echo status $?")
    text, _, status = printed.rpartition("status ")
    if int(status) > _REPAIRED:
        lines = [line.replace(working, "root") for line in text.splitlines() if line.strip()]
        raise FileSystemError(
            "the image's root file system is damaged, and e2fsck cannot repair it without a loss",
            todo="repair the base image by hand, with `e2fsck -f` on its root file system",
            detail="\n".join(lines[-6:]),
        )


def _grow(guest: Guest, working: str, told: Superblock, room: int) -> None:
    """Grows the mounted root to its device. `told` is what its superblock says."""
    if room - told.bytes < MIB:
        return
    with _explained(guest, "the image's root file system cannot grow"):
        if "resize_inode" in told.features:
            _sh(guest, f"resize2fs {working}")
            return
        guest.handle.umount("/")  # without reserved room it grows only while it is not mounted
        _check(guest, working)
        _sh(guest, f"resize2fs {working}")
        guest.handle.mount(working, "/")


def _superblock(drive: Drive) -> Superblock:
    """What the appliance has written to the drive, each program to its end, is in its file."""
    found = superblock_at(drive.file, 0)
    if found is None:
        raise FileSystemError(
            "the image's root file system cannot be read: its superblock is damaged",
            todo="repair the base image by hand, with `e2fsck -f` on its root file system",
        )
    return found


def _make_file_system(guest: Guest, root: FileSystem, working: str) -> None:
    """Makes an empty root file system, with the identity of the one whose files it will get."""
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1"]
    words += ["-O", f"none,{','.join(_FEATURES)}", "-J", "size=64"]
    words += ["-E", "nodiscard,assume_storage_prezeroed=1"]
    words += ["-U", root.uuid] if len(root.uuid) == 36 else []  # an ext file system's are as long
    words += ["-L", root.label] if 0 < len(root.label.encode()) <= 16 else []
    _sh(guest, shlex.join([*words, working]))


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A file system, or a subvolume of one, that the image mounts below root."""

    path: PurePosixPath
    source: FileSystem
    options: str = ""


def _copy_root_files(guest: Guest, root: FileSystem, base: str, room: int) -> None:
    """Copies the files of a root that is no plain ext file system."""
    options = ""
    if root.type == "btrfs":
        with _mounted(guest, _Mount(path=PurePosixPath("/"), source=root, options=""), base):
            options = _find_subvolume(guest)
    mount = _Mount(path=PurePosixPath("/"), source=root, options=options)
    with _mounted(guest, mount, base):
        _copy_files(guest, mount, room)


def _find_subvolume(guest: Guest) -> str:
    """The mount options that show the subvolume with root."""
    tests = " ".join(shlex.quote(name) for name in SUBVOLUMES)
    files = " ".join(OF_ROOT)
    told = _sh(
        guest,
        f"for name in {tests}; do for file in {files}; do "
        # Whatever is behind a link is none of the image's, but the appliance's.
        f'at="{_FROM}/$name"; [ -d "$at" ] && [ ! -h "$at" ] && [ ! -h "$at/etc" ] || continue; '
        'if [ -e "$at/$file" ] || [ -h "$at/$file" ]; then echo "found $name"; exit; fi; '
        "done; done",
    )
    name = told.removeprefix("found ").strip()
    return f"subvol=/{name}" if name else ""


def _fold(guest: Guest, system: System, base: str, room: int) -> None:
    """Moves into root what the image mounts elsewhere, outer mounts first."""
    mounts = sorted(_mounts(guest, system), key=lambda each: len(each.path.parts))
    for mount in mounts:
        guest.progress.step(f"moving {mount.path} into the root file system")
        _clear_mount_point(guest, mount.path)
        with _mounted(guest, mount, base):
            _check_room(guest, mount, room)
            _copy_files(guest, mount, room)


def _mounts(guest: Guest, system: System) -> list[_Mount]:
    found = {}
    for each in system.file_systems:
        mount = normal(each.mount or "/")
        if mount not in ("/", *fstab.EFI_MOUNTS) and each.type != "swap":
            path = _safe(mount)
            found[path] = _Mount(path=path, source=each)
    for each in system.file_systems:
        if each.type == "btrfs":
            found.update({mount.path: mount for mount in _subvolumes(guest, each)})
    return list(found.values())


def _subvolumes(guest: Guest, source: FileSystem) -> Iterator[_Mount]:
    """The subvolumes of a btrfs that the image's fstab mounts, but for snapshots of others."""
    names = (f"UUID={source.uuid}", f'UUID="{source.uuid}"', f"LABEL={source.label}")
    for line in fstab.parse(_read_fstab(guest)):
        path = normal(line.mount)
        if line.type != "btrfs" or not path.startswith("/") or path == "/":
            continue
        wanted = [each for each in line.options if each.startswith(("subvol=", "subvolid="))]
        known = line.source in names or line.source.startswith("/dev/")
        if known and wanted and PurePosixPath(path).name != ".snapshots":
            yield _Mount(path=_safe(path), source=source, options=wanted[0])


def _read_fstab(guest: Guest) -> str:
    content = ImageFiles(guest).read(_FSTAB) or b""
    return content.decode("utf-8", "replace")


def _safe(mount: str) -> PurePosixPath:
    """A mount point below root as a path. Raises UnsafeImageError."""
    path = PurePosixPath(normal(mount))
    if not path.is_absolute() or ".." in path.parts or path.parent == path or "\0" in mount:
        shown = re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", mount)
        raise UnsafeImageError(f"the image's fstab mounts something at {shown}, which is no path")
    return path


def _clear_mount_point(guest: Guest, path: PurePosixPath) -> None:
    """Makes an empty folder of a mount point: what a mount hid is seen by nobody. Raises
    UnsafeImageError where a link leads elsewhere."""
    for folder in (*reversed(path.parents), path):
        if guest.handle.is_symlink(str(folder)):
            target = guest.read_link(str(folder))
            raise UnsafeImageError(
                f"the image's fstab mounts something at {path}, and {folder} is a link to {target}",
                todo="name the mount point in the base's fstab by the folder that it leads to",
            )
    place = shlex.quote(f"/sysroot{path}")
    with _explained(guest, f"the image's {path} cannot be emptied"):
        _sh(guest, f"mkdir -p {place} && find {place} -xdev -mindepth 1 -delete")


@contextmanager
def _mounted(guest: Guest, mount: _Mount, base: str) -> Iterator[None]:
    """Mounts something of the image outside its root, where none of its paths lead."""
    source = shlex.quote(device(mount.source.place, base))
    options = shlex.quote(",".join(filter(None, ("ro", mount.options))))
    with _explained(guest, f"the image's file system for {mount.path} cannot be mounted"):
        _sh(
            guest, f"mkdir -p {_FROM} && mount -t {mount.source.type} -o {options} {source} {_FROM}"
        )
    try:
        yield
    finally:
        _sh(guest, f"umount -R {_FROM}")


def _copy_files(guest: Guest, mount: _Mount, room: int) -> None:
    """Copies all that lies in the mounted one, with all that files have besides content."""
    target = shlex.quote(f"/sysroot{mount.path}")
    # Snapshots are no part of what is seen; an empty folder covers them.
    kept = f"{_FROM}/.snapshots"
    hide = f"if [ -d {kept} ] && [ ! -h {kept} ]; then mount -t tmpfs none {kept}; fi"
    lost = f"rm -rf {target}/lost+found" if mount.path != PurePosixPath("/") else "true"
    try:
        _sh(guest, f"{hide}; cp -a {_FROM}/. {target} && {lost}")
    except RuntimeError as error:
        if guest.ended:
            raise
        if "No space left on device" not in str(error):
            raise _unreadable(f"the image's {mount.path} cannot be copied", error) from error
        used = int(_sh(guest, f"du -skx {_FROM}").split()[0]) * KIB
        raise _no_room(mount, used, room, 0) from error


def _check_room(guest: Guest, mount: _Mount, room: int) -> None:
    used = int(_sh(guest, f"df -k --output=used {_FROM}").split()[-1]) * KIB
    free = _free(guest)
    if used > free:
        raise _no_room(mount, used, room, free)


def _free(guest: Guest) -> int:
    """Bytes of root that are free, but for what it keeps for itself."""
    told = guest.handle.statvfs("/")
    return int(told["bavail"] * told["frsize"])


def _no_room(mount: _Mount, used: int, room: int, free: int) -> FileSystemError:
    needed = room + (used - free) * 11 // 10 + AROUND_ROOT
    return FileSystemError(
        f"the root file system has no room for the image's {mount.path}, which takes "
        f"{format_size(used)}: {format_size(free)} are free",
        todo=f"set disk_size to {_mebibytes(needed)}MiB or more",
    )


def _mebibytes(size: int) -> int:
    return -(-size // MIB)


@contextmanager
def _explained(guest: Guest, what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if guest.ended:
            raise
        raise _unreadable(what, error) from error


def _unreadable(what: str, error: RuntimeError) -> FileSystemError:
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return FileSystemError(
        what,
        todo="look at the base image with e2fsck, or with its own system",
        detail="\n".join(lines[-6:]),
    )


def _sh(guest: Guest, script: str) -> str:
    """Runs a shell in the appliance; raises RuntimeError with all that it said if it fails."""
    return str(guest.handle.debug("sh", [script]))
