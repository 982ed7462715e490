"""The files of a system that libguestfs has mounted, read for those who read any image's tree."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pipeline.errors import FileSystemError
from pipeline.guest.appliance import Guest
from pipeline.model import GIB, MIB, format_size

_TEXT_LIMIT, _COPY_LIMIT = 16 * MIB, GIB
_CHUNK = MIB  # a message of libguestfs has less than 4 MiB


class GuestTree:
    """A mounted system's files (`pipeline.tools.kernel.Tree`). Links are followed inside the image
    by libguestfs; pipes and devices count as nothing. Raises RuntimeError, FileSystemError."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._handle = guest.handle

    def names(self, folder: PurePosixPath) -> list[str]:
        """What lies in a folder; nothing where there is none. Names that are not UTF-8 are left
        out."""
        if not self._handle.is_dir(str(folder), followsymlinks=True):
            return []
        return self._guest.names(self._handle.realpath(str(folder)))

    def read(self, path: PurePosixPath) -> str:
        """The content of a small text file; empty where there is none."""
        size, content = self._size(path, _TEXT_LIMIT), b""
        while len(content) < size:
            chunk: bytes = self._handle.pread(str(path), _CHUNK, len(content))
            if not chunk:
                break
            content += chunk
        return content.decode("utf-8", "replace")

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """What a symbolic link leads to, from the root; None where there is no link."""
        if not self._handle.is_symlink(str(path)):
            return None
        return PurePosixPath("/", path.parent, self._guest.read_link(str(path)))

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file to the host; whether there was one."""
        if not self._size(path, _COPY_LIMIT):
            return False
        self._handle.download(str(path), str(copy))
        return True

    def _size(self, path: PurePosixPath, limit: int) -> int:
        """How large a file is; 0 where there is none."""
        if not self._handle.is_file(str(path), followsymlinks=True):
            return 0
        size: int = self._handle.filesize(str(path))
        if size > limit:
            raise FileSystemError(
                f"{path} in the image takes {format_size(size)}, and at most {format_size(limit)} "
                "of such a file are read",
                todo="remove it, or choose another base image",
            )
        return size
