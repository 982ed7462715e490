"""The files of a system that libguestfs has mounted, to read."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from pipeline.disk.tree import COPY_LIMIT, TEXT_LIMIT, check_size
from pipeline.guest.appliance import Guest, NotTextError
from pipeline.model import MIB

PIECE = MIB  # libguestfs's answers hold less than 4 MiB


class MountedTree(ABC):
    """The files of the system that is mounted at /, by absolute paths (`pipeline.disk.tree.Tree`).

    A file that is not a regular one counts as absent: reading a pipe of an image would never end.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._handle = guest.handle

    @abstractmethod
    def locate(self, path: PurePosixPath) -> str | None:
        """The place of a file or folder, for calls of libguestfs; None if its folder is absent. The
        last part may be absent, or a link."""

    @abstractmethod
    def locate_folder(self, path: PurePosixPath) -> str | None:
        """The place of a folder, reached without any link; None where there is none."""

    def names(self, folder: PurePosixPath) -> list[str]:
        """The names in a folder, sorted; empty if there is no folder. Names that are not UTF-8 are
        left out: no caller asks for one."""
        with self._explained(folder):
            place = self.locate_folder(folder)
            return [] if place is None else sorted(self._guest.names(place))

    def exists(self, path: PurePosixPath) -> bool:
        """Whether anything lies at this place, be it a link that leads nowhere."""
        return self._look(path)[1] is not None

    def read(self, path: PurePosixPath) -> str:
        """The content of a small text file; empty where there is none. What is not UTF-8 becomes
        U+FFFD."""
        return (self.read_bytes(path) or b"").decode("utf-8", "replace")

    def read_bytes(self, path: PurePosixPath) -> bytes | None:
        """The content of a small file; None where there is none. Raises FileSystemError."""
        with self._explained(path):
            place, status = self._look(path, file=True)
            if not is_regular(status):
                return None
            pieces = range(0, check_size(path, status["st_size"], TEXT_LIMIT), PIECE)
            return b"".join(self._handle.pread(place, PIECE, start) for start in pieces)

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """What a symbolic link leads to, from the root; None where there is no link."""
        with self._explained(path):
            place, status = self._look(path)
            if place is None or status is None or not stat.S_ISLNK(status["st_mode"]):
                return None
            return PurePosixPath("/", path.parent, self._guest.read_link(place))

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file that is not empty to the host; whether there was one."""
        with self._explained(path):
            place, status = self._look(path, file=True)
            if not is_regular(status) or not check_size(path, status["st_size"], COPY_LIMIT):
                return False
            try:
                self._handle.download(place, str(copy))
            except RuntimeError as error:
                if str(error).endswith(os.strerror(errno.ENOSPC)):  # the copy is what it writes
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from error
                raise
            return True

    def _look(
        self, path: PurePosixPath, *, file: bool = False
    ) -> tuple[str | None, dict[str, int] | None]:
        """The place that a path names, and what stat says of it: None if nothing lies there. With
        `file`, stat follows the links that reading follows."""
        with self._explained(path):
            place = self.locate(path)
            return place, None if place is None else self._status(place, file=file)

    def _status(self, place: str, *, file: bool = False) -> dict[str, int] | None:
        return self._guest.status(place, follow=file)

    def _explained(self, path: PurePosixPath) -> AbstractContextManager[object]:
        """Explains errors of libguestfs."""
        return nullcontext()


class GuestTree(MountedTree):
    """A mounted system's files. Links are followed, inside the image, by libguestfs. Raises
    RuntimeError, FileSystemError."""

    def locate(self, path: PurePosixPath) -> str:
        """A path itself: libguestfs follows its links."""
        return str(path)

    def locate_folder(self, path: PurePosixPath) -> str | None:
        """The place of a folder, all links followed; None where there is none."""
        _, status = self._look(path, file=True)
        is_folder = status is not None and stat.S_ISDIR(status["st_mode"])
        return self.resolve(path) or None if is_folder else None

    def read_head(self, path: PurePosixPath, size: int) -> bytes:
        """The first bytes of a file of any size; empty where there is none."""
        place, status = self._look(path, file=True)
        return bytes(self._handle.pread(place, size, 0)) if is_regular(status) else b""

    def resolve(self, path: PurePosixPath) -> str:
        """Where a path ends when its links are followed; empty where nothing is."""
        try:
            return str(self._handle.realpath(str(path)))
        except RuntimeError:
            return ""

    def glob(self, *patterns: str) -> list[str]:
        """The existing paths that match patterns with braces and wild cards, without those that are
        not UTF-8."""
        wanted = patterns[0]
        if len(patterns) > 1:
            wanted = f"/{{{','.join(pattern[1:] for pattern in patterns)}}}"
        try:
            paths: list[str] = self._handle.glob_expand(wanted)
        except NotTextError:
            plain = dict.fromkeys(_without_braces(wanted))
            paths = [path for pattern in plain for path in self._expand(pattern)]
        return [path.rstrip("/") for path in paths]

    def _expand(self, pattern: str) -> list[str]:
        """What a pattern without braces names, by looking into one folder after the other."""
        paths = [PurePosixPath("/")]
        for part in PurePosixPath(pattern).parts[1:]:
            if re.search(r"[*?[]", part):
                paths = [
                    folder / name
                    for folder in paths
                    for name in self.names(folder)
                    if fnmatch.fnmatchcase(name, part) and not name.startswith(".")
                ]
            else:
                paths = [folder / part for folder in paths]
        return [str(path) for path in paths if self.exists(path)]


def is_regular(status: dict[str, int] | None) -> TypeGuard[dict[str, int]]:
    """Whether stat speaks of a regular file."""
    return status is not None and stat.S_ISREG(status["st_mode"])


def _without_braces(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for; some of them twice."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        yield pattern
        return
    for choice in inner[1].split(","):
        yield from _without_braces(f"{pattern[: inner.start()]}{choice}{pattern[inner.end() :]}")
