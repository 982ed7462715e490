"""What two root file systems have in different ways: files, modes, owners, contents."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.disk.ext4_reader import ROOT, Inode, Reader
from pipeline.errors import FileSystemError

_DEEPEST = 128  # folders within each other
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True)
class Entry:
    """A file, folder, link or device in a file system."""

    kind: str
    mode: int
    """Permissions, and the bits above them."""
    uid: int
    gid: int
    size: int
    """Bytes; of a folder 0."""
    target: str | None = None
    """Of a link."""


@dataclass(frozen=True)
class Change:
    """One path that two file systems have in different ways; `old` or `new` is None where one of
    them lacks it."""

    path: str
    """Absolute; what is no UTF-8 is escaped."""
    old: Entry | None
    new: Entry | None
    content: bool
    """Whether the contents, of files of both, differ."""


def compare_trees(old: Reader, new: Reader) -> Iterator[Change]:
    """The differences, by path, folders before what they hold. Times do not count. Two trees are
    walked side by side, so no more than the folders of one path is in memory. Raises
    FileSystemError."""
    yield from _compare(old, old.inode(ROOT), new, new.inode(ROOT), "", 0)


def _compare(
    old: Reader, one: Inode, new: Reader, other: Inode, path: str, depth: int
) -> Iterator[Change]:
    _check_depth(depth, path)
    before, after = _names(old, one), _names(new, other)
    for name in sorted(before.keys() | after.keys()):
        here = f"{path}/{name.decode(errors='backslashreplace')}"
        left = old.inode(before[name]) if name in before else None
        right = new.inode(after[name]) if name in after else None
        if left is None and right is not None:
            yield from _walk(new, right, here, depth, added=True)
        elif right is None and left is not None:
            yield from _walk(old, left, here, depth, added=False)
        elif left is not None and right is not None:
            was, now = _describe(old, left), _describe(new, right)
            differs = _differ(old, left, new, right)
            if was != now or differs:
                yield Change(here, was, now, differs)
            if stat.S_ISDIR(left.mode) or stat.S_ISDIR(right.mode):
                if stat.S_IFMT(left.mode) == stat.S_IFMT(right.mode):
                    yield from _compare(old, left, new, right, here, depth + 1)
                elif stat.S_ISDIR(left.mode):
                    yield from _inside(old, left, here, depth, added=False)
                else:
                    yield from _inside(new, right, here, depth, added=True)


def _walk(reader: Reader, inode: Inode, path: str, depth: int, *, added: bool) -> Iterator[Change]:
    """A path that only one side has, with what it holds."""
    entry = _describe(reader, inode)
    yield Change(path, None if added else entry, entry if added else None, False)
    if stat.S_ISDIR(inode.mode):
        yield from _inside(reader, inode, path, depth, added=added)


def _inside(
    reader: Reader, inode: Inode, path: str, depth: int, *, added: bool
) -> Iterator[Change]:
    _check_depth(depth, path)
    names = _names(reader, inode)
    for name in sorted(names):
        here = f"{path}/{name.decode(errors='backslashreplace')}"
        yield from _walk(reader, reader.inode(names[name]), here, depth + 1, added=added)


def _names(reader: Reader, inode: Inode) -> dict[bytes, int]:
    names = reader.folder(inode)
    if inode.number == ROOT:
        names.pop(b"lost+found", None)
    return names


def _check_depth(depth: int, path: str) -> None:
    if depth > _DEEPEST:  # or a folder that holds itself
        raise FileSystemError(
            f"folders lie {depth} deep within each other: {path[:200]}...",
            todo="the image is damaged, or was made to harm",
        )


def _describe(reader: Reader, inode: Inode) -> Entry:
    kind = _KINDS.get(stat.S_IFMT(inode.mode), "unknown")
    target = reader.link(inode).decode(errors="backslashreplace") if kind == "link" else None
    size = 0 if kind == "folder" else inode.size
    return Entry(kind, stat.S_IMODE(inode.mode), inode.uid, inode.gid, size, target)


def _differ(old: Reader, one: Inode, new: Reader, other: Inode) -> bool:
    """Whether two files have different contents, or two devices different numbers."""
    kind = stat.S_IFMT(one.mode)
    if kind != stat.S_IFMT(other.mode):
        return False
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return one.device != other.device
    if kind != stat.S_IFREG:
        return False
    if one.size != other.size:
        return True
    return any(a != b for a, b in zip(old.content(one), new.content(other), strict=True))
