"""All files of an image's root file system, listed once: for what looks at many of them, with their
modes and owners.

Names that are not UTF-8 are kept with surrogates, as `os.fsdecode` has them; `shown` makes them
printable.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.disk.ext4_reader import ROOT, Inode, Reader
from pipeline.disk.tree import COPY_LIMIT, TEXT_LIMIT, check_size
from pipeline.errors import FileSystemError

_DEEPEST = 128  # folders within each other
_MOST_LINKS = 40  # on the way to a file, as in Linux


@dataclass(frozen=True, slots=True)
class File:
    """A file, folder, link or device of an image."""

    path: str
    """Absolute, without any link on the way; that of the root folder is empty."""
    mode: int
    """With the type, as in `st_mode`."""
    uid: int
    gid: int
    size: int
    """Bytes."""
    target: str | None = None
    """What a symbolic link says."""
    inode: Inode | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


class Contents(ABC):
    """The files of an image by their paths, and what they hold (a `pipeline.disk.tree.Tree` too).

    All methods raise FileSystemError for what is damaged.
    """

    def __init__(self, files: Iterable[File], identifiers: Iterable[str]) -> None:
        self.files = {file.path: file for file in files}
        self.identifiers = frozenset(identifiers)
        """What fstab may call the file systems and partitions that are there: `LABEL=root`."""
        self._names: dict[str, list[str]] = {}
        for path in filter(None, self.files):
            folder, _, name = path.rpartition("/")
            self._names.setdefault(folder, []).append(name)
        self._resolved: dict[str, str | None] = {}

    @abstractmethod
    def chunks(self, file: File) -> Iterator[bytes]:
        """The content of a regular file, in pieces."""

    def find(self, path: str) -> File | None:
        """What a path leads to, through links; None where nothing is."""
        found = self.files.get(path)
        if found is not None and found.target is None:
            return found
        place = self._resolve(path)
        return None if place is None else self.files.get(place)

    def locate(self, path: str) -> str:
        """The path with links followed on the way, but not at its end: what `files` would have."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if folder not in self._resolved:
            self._resolved[folder] = self._resolve(folder)
        above = self._resolved[folder]
        return path if above is None else f"{above}/{name}"

    def _resolve(self, path: str) -> str | None:
        """The path without links; None where it leads to nothing."""
        parts, here, links = path.split("/")[::-1], "", _MOST_LINKS
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = here.rpartition("/")[0]
                continue
            file = self.files.get(f"{here}/{part}")
            if file is None:
                return None
            if file.target is None:
                here = file.path
                continue
            links -= 1
            if links < 0:
                return None
            parts += file.target.split("/")[::-1]
            here = "" if file.target.startswith("/") else here
        return here

    def inside(self, folder: File) -> Iterator[File]:
        """What lies directly in a folder, sorted by name."""
        for name in sorted(self._names.get(folder.path, ())):
            yield self.files[f"{folder.path}/{name}"]

    def below(self, folder: str) -> Iterator[File]:
        """Everything in a folder, and in the folders in it, sorted; follows no links but those on
        the way to it."""
        place = self.find(folder)
        if place is not None and place.is_folder:
            for file in self.inside(place):
                yield file
                if file.is_folder:
                    yield from self.below(file.path)

    def head(self, file: File, most: int) -> bytes:
        """The first bytes of a regular file."""
        found = b""
        for chunk in self.chunks(file):
            found += chunk
            if len(found) >= most:
                break
        return found[:most]

    def md5(self, file: File) -> str:
        """The MD5 of a regular file, as dpkg's lists have it."""
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in self.chunks(file):
            digest.update(chunk)
        return digest.hexdigest()

    def text(self, path: str) -> str:
        """As `read`."""
        file = self.find(path)
        if file is None or not file.is_file:
            return ""
        check_size(PurePosixPath(shown(path)), file.size, TEXT_LIMIT)
        return b"".join(self.chunks(file)).decode(errors="replace")

    # ---- Tree

    def names(self, folder: PurePosixPath) -> list[str]:
        place = self._resolve(str(folder))
        return [] if place is None else sorted(self._names.get(place, ()))

    def exists(self, path: PurePosixPath) -> bool:
        return self.locate(str(path)) in self.files

    def read(self, path: PurePosixPath) -> str:
        return self.text(str(path))

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        file = self.files.get(self.locate(str(path)))
        if file is None or file.target is None:
            return None
        return PurePosixPath(posixpath.join(posixpath.dirname(file.path), file.target))

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        file = self.find(str(path))
        if file is None or not file.is_file:
            return False
        check_size(path, file.size, COPY_LIMIT)
        with copy.open("wb") as written:
            written.writelines(self.chunks(file))
        return True


class Ext4Contents(Contents):
    """The files of an ext file system."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        super().__init__(_walk(reader), [f"UUID={reader.uuid}", f"LABEL={reader.label}"])

    def chunks(self, file: File) -> Iterator[bytes]:
        assert file.inode is not None
        return self._reader.content(file.inode)


def _walk(reader: Reader) -> Iterator[File]:
    root = reader.inode(ROOT)
    yield File("", root.mode, root.uid, root.gid, 0, None, root)
    folders = [("", root, 0)]
    seen = {ROOT}
    while folders:
        above, folder, depth = folders.pop()
        for name, number in reader.folder(folder).items():
            path = f"{above}/{name.decode(errors='surrogateescape')}"
            if path == "/lost+found":
                continue
            inode = reader.inode(number)
            is_link = stat.S_ISLNK(inode.mode)
            target = reader.link(inode).decode(errors="surrogateescape") if is_link else None
            yield File(path, inode.mode, inode.uid, inode.gid, inode.size, target, inode)
            if stat.S_ISDIR(inode.mode):
                if number in seen or depth == _DEEPEST:
                    raise FileSystemError(
                        f"a folder of the image holds itself, or lies too deep: {path[:200]!r}",
                        todo="the image is damaged, or was made to harm",
                    )
                seen.add(number)
                folders.append((path, inode, depth + 1))


def shown(path: str) -> str:
    """A path for people and JSON: what is not UTF-8 is escaped."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace") or "/"
