"""Which files of the build host a definition may name, and what a copied folder holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.definitions.messages import quote
from pipeline.definitions.yaml import shown
from pipeline.file_copies import Copy, FolderCopy
from pipeline.realfile import open_folder

_NOT_OF_THE_IMAGE = tuple(
    PurePosixPath(path) for path in ("/proc", "/sys", "/dev", "/run", "/var/run", "/var/lock")
)
"""What each boot fills anew. While the image is made, most of them are the build host's."""


class OutsideError(ValueError):
    """A path that a definition may not name; the text says why."""


class Grounds:
    """The folders that a definition may take files from: its own, those of the definitions that it
    extends, and the folder of all definitions."""

    def __init__(self, own: Path, others: Iterable[Path]) -> None:
        self.own = own
        real = dict.fromkeys(Path(os.path.realpath(folder)) for folder in (own, *others))
        self._folders = [
            folder for folder in real if not any(other in folder.parents for other in real)
        ]

    def resolve(self, text: str) -> Path:
        """The canonical path of what a text names, whether it is there or not. Raises OutsideError.

        Links are followed: it is what they lead to that would be copied.
        """
        real = Path(os.path.realpath(self.own / text))
        if any(real == folder or folder in real.parents for folder in self._folders):
            return real
        *others, last = (shown(folder) for folder in self._folders)
        folders = f"{', '.join(others)} and {last}" if others else last
        raise OutsideError(f"{quote(text)} leads to {shown(real)}, outside {folders}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in a folder. An empty folder is told, others are not."""

    below: PurePosixPath
    """Its path below the folder."""
    kind: str
    """`file`, `link`, `folder`, or `other`."""
    leads_to: str = ""


def walk(top: Path) -> list[Found]:
    """All that lies below a folder with this canonical path, sorted. No link is followed. Raises
    OSError."""
    found: list[Found] = []
    queue = [PurePosixPath()]
    while queue:
        below = queue.pop()
        descriptor = open_folder(top / below)
        try:
            inside = list(_look_into(descriptor, below))
        finally:
            os.close(descriptor)
        queue += (each.below for each in inside if each.kind == "folder")
        found += (each for each in inside if each.kind != "folder")
        if not inside and below.parts:
            found.append(Found(below=below, kind="folder"))
    return sorted(found, key=lambda each: os.fsencode(each.below))


def _look_into(descriptor: int, below: PurePosixPath) -> Iterator[Found]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            place = below / entry.name
            if entry.is_symlink():
                leads_to = os.readlink(entry.name, dir_fd=descriptor)
                yield Found(below=place, kind="link", leads_to=leads_to)
            elif entry.is_dir(follow_symlinks=False):
                yield Found(below=place, kind="folder")
            else:
                is_file = entry.is_file(follow_symlinks=False)
                yield Found(below=place, kind="file" if is_file else "other")


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, as keys, manifests and base images need it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- targets


class Targets:
    """The places in the image that the entries of one definition write to."""

    def __init__(self) -> None:
        self._copies: dict[PurePosixPath, tuple[Copy, int]] = {}
        self._folders: dict[PurePosixPath, int] = {}
        """The folders above all targets, each with the line of the first entry that needs it."""

    def add(self, copy: Copy, line: int) -> str | None:
        """Adds a copy by the entry on a line; returns what is wrong with it, if anything is."""
        target = copy.target
        is_folder = isinstance(copy, FolderCopy)
        for place in _NOT_OF_THE_IMAGE:
            if place in target.parents or (place == target and not is_folder):
                return f"{str(target)!r} lies in {place}, which the image does not keep"
        first, on = self._copies.setdefault(target, (copy, line))
        if first is not copy and not (is_folder and isinstance(first, FolderCopy)):
            return f"{str(target)!r} is written by the entry on line {on} too"
        if not is_folder and target in self._folders:
            on = self._folders[target]
            return f"{str(target)!r} is a folder in the entry on line {on}"
        for folder in target.parents:
            above, on = self._copies.get(folder, (None, 0))
            if above is not None and not isinstance(above, FolderCopy):
                return f"{str(target)!r} lies below {folder}, no folder in the entry on line {on}"
            self._folders.setdefault(folder, line)
        return None


def merge_copies(parent: Sequence[Copy], child: Sequence[Copy]) -> list[Copy]:
    """The copies of a definition after those of the one that it extends. Where both cannot be, the
    child's wins: at the same place, or where one has a folder and the other has not."""
    folders = {folder for copy in child for folder in copy.target.parents}
    taken = {copy.target for copy in child}
    no_folders = {copy.target for copy in child if not isinstance(copy, FolderCopy)}

    def stays(copy: Copy) -> bool:
        if copy.target in taken or not no_folders.isdisjoint(copy.target.parents):
            return False
        return isinstance(copy, FolderCopy) or copy.target not in folders

    return [*filter(stays, parent), *child]
