"""Files that a check found, opened only where it found them.

A name can be made a link to another file after it was checked. So what was checked is a canonical
path (`os.path.realpath`), and what is opened must lie at exactly that path.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_file(path: Path) -> BufferedReader:
    """Opens a regular file by its canonical path. Raises OSError if a link now lies on the way to
    it or in its place, or if it is not a regular file."""
    descriptor = _open(path, os.O_NONBLOCK)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def open_folder(path: Path) -> int:
    """A descriptor of a folder, by its canonical path. Raises OSError as `open_file` does."""
    return _open(path, os.O_DIRECTORY)


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(os.fspath(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    try:
        opened = os.readlink(f"/proc/self/fd/{descriptor}")
        if opened != os.fspath(path):
            raise OSError(errno.ELOOP, "a link leads to another place", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
