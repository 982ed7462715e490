"""Files and folders of ours, in places that other users may share.

What is made in a folder that its group may write to gets that group and its rights, whatever the
umask says. No link is followed: one that somebody planted is removed, and never what it leads to.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_MINE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def share(path: Path) -> None:
    """Gives a file or folder that was just made the group of its folder, and the group's rights, if
    that group may write to the folder."""
    with suppress(OSError):  # another user's, or gone already
        descriptor = os.open(path, os.O_RDONLY | _MINE)
        try:
            share_open(descriptor, path.parent)
        finally:
            os.close(descriptor)


def share_open(descriptor: int, folder: Path) -> None:
    """As `share`, for an open file that lies in a folder."""
    above, status = folder.stat(), os.fstat(descriptor)
    of_everybody = above.st_mode & stat.S_IWOTH and above.st_mode & stat.S_ISVTX  # as /tmp is
    if of_everybody or not above.st_mode & stat.S_IWGRP:
        return
    mode = stat.S_IMODE(status.st_mode)
    rights = stat.S_IRGRP
    if stat.S_ISDIR(status.st_mode):
        rights = stat.S_IRWXG | stat.S_ISGID
    elif mode & stat.S_IWUSR:
        rights |= stat.S_IWGRP
    with suppress(PermissionError):  # another user's
        if status.st_gid != above.st_gid:
            os.fchown(descriptor, -1, above.st_gid)
        if mode | rights != mode:
            os.fchmod(descriptor, mode | rights)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, unless they are there. Raises OSError, such as
    NotADirectoryError where something else is in its place."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir()
    except FileExistsError as error:
        if not path.is_dir():  # else another process made it first
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
    share(path)


def open_lock(path: Path) -> int:
    """A descriptor of a file to lock, which is made if need be. Anything but a file in its place
    was not made by us, and is removed. Raises OSError."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | _MINE)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process made it first
                descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | _MINE, 0o666)
                share_open(descriptor, path.parent)
                return descriptor
            continue
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
        else:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def protect(path: Path) -> None:
    """Takes everybody's right to write to a file. Raises OSError for anything but a file."""
    descriptor = os.open(path, os.O_RDONLY | _MINE)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        os.fchmod(descriptor, 0o444)
    finally:
        os.close(descriptor)


def discard(path: Path, remove_tree: Callable[[Path], None]) -> None:
    """Removes a file, a link, or by `remove_tree` a folder, if it is there. Raises OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def disk_usage(path: Path) -> int:
    """The bytes that removing a path would free: those of files without other hard links."""
    total = _own_bytes(path)
    if path.is_dir() and not path.is_symlink():
        for folder, _, names in os.walk(path):
            total += sum(_own_bytes(Path(folder, name)) for name in names)
    return total


def _own_bytes(path: Path) -> int:
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return status.st_blocks * 512
    return 0


def temporary_name(path: Path) -> Path:
    """A name beside a file that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that even after a power failure it has either the old content or the new."""
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # of a killed process of the same number
    try:
        with temporary.open("x", encoding="utf-8") as file:
            share_open(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
