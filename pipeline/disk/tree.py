"""The interface to the files of an image's root file system.

`ext4.FileSystem` reads a disk file by debugfs. `pipeline.guest.tree` reads and
`pipeline.guest.files` changes what libguestfs has mounted in its appliance.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.errors import FileSystemError
from pipeline.model import GIB, MIB, format_size

TEXT_LIMIT, COPY_LIMIT = 16 * MIB, GIB
"""The size limits of `read` and `copy_out`: an untrusted image may hold files of any size."""


class Tree(Protocol):
    """An image's files by absolute path. All methods raise FileSystemError."""

    def names(self, folder: PurePosixPath) -> list[str]:
        """The names in a folder; none if the folder does not exist."""

    def exists(self, path: PurePosixPath) -> bool:
        """Whether a path exists, even as a dangling link."""

    def read(self, path: PurePosixPath) -> str:
        """The content of a small text file; empty if there is no such file. U+FFFD replaces bytes
        that are not UTF-8."""

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """The absolute target of a symbolic link; None if the path is not a link."""

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file to the host. Returns whether it exists."""


def check_size(path: PurePosixPath, size: int, limit: int) -> int:
    """Returns the size. Raises FileSystemError if it exceeds `limit`."""
    if size > limit:
        raise FileSystemError(
            f"{path} in the image takes {format_size(size)}, and at most {format_size(limit)} "
            "of such a file are read",
            todo="remove it, or choose another base image",
        )
    return size
