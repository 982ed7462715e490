#!/usr/bin/env python3
"""Takes away the attributes by which files cannot be changed, and notes whose they were.

    take_attributes.py TREE NOTES

For each file or folder of TREE that is immutable or append-only (chattr +i, +a), NOTES gets a line
more: the attributes as a number, a blank, and its path below TREE, ended by a NUL. What is mounted
below TREE is left alone.
"""

from __future__ import annotations

import array
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import suppress

IMMUTABLE, APPEND_ONLY = 0x10, 0x20
GET, SET = 0x80086601, 0x40086602
"""The calls FS_IOC_GETFLAGS and FS_IOC_SETFLAGS on 64-bit machines."""


def main() -> None:
    """Reads the arguments and does what the module says."""
    tree, notes = os.path.abspath(sys.argv[1]), sys.argv[2]
    with open(notes, "a", errors="surrogateescape") as file:
        for path in walk(tree):
            attributes = take(path)
            if attributes:
                file.write(f"{attributes} {os.path.relpath(path, tree)}\0")


def walk(tree: str) -> Iterator[str]:
    """The files and folders of a tree's own file system. What is above comes first."""
    device = os.lstat(tree).st_dev
    queue = [tree]
    while queue:
        folder = queue.pop()
        yield folder
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.stat(follow_symlinks=False).st_dev == device:
                        queue.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.path


def take(path: str) -> int:
    """The attributes of a file or folder, which it has no longer."""
    flags = array.array("l", [0])
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        with suppress(OSError):  # of a file system without attributes
            fcntl.ioctl(descriptor, GET, flags)
        taken = flags[0] & (IMMUTABLE | APPEND_ONLY)
        if taken:
            flags[0] &= ~taken
            fcntl.ioctl(descriptor, SET, flags)
    finally:
        os.close(descriptor)
    return taken


if __name__ == "__main__":
    main()
