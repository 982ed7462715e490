"""Keys, ids and names that packages make while they are installed, and each machine has to have for
itself.

The element phantom-debian knows them, by its makers in `identities/`. What a definition's packages
made is removed again, and made by each machine at boot, by the same service as in images from
scratch. What the base image had stays, since its owner may want it so, and is told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from pipeline.disk.tree import Tree
from pipeline.guest import services
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.tools import dib

SERVICE = "phantom-identities"
PROGRAMS = PurePosixPath("/usr/lib/phantom")
_ELEMENT = dib.OURS / "phantom-debian"
MAKERS, FIRST_BOOT = _ELEMENT / "identities", _ELEMENT / "first-boot"
"""Folders: what makes the files, and the service that runs it."""
_HASH_LINK = re.compile(r"[0-9a-f]{8}\.[0-9]+")
_FILES = re.compile(r'^files="([^"]*)"$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What makes some files at boot."""

    name: str
    """The package's."""
    text: str
    files: tuple[PurePosixPath, ...]


@cache
def makers() -> tuple[Maker, ...]:
    """Those that the element has."""
    found = []
    for file in sorted(MAKERS.iterdir()):
        text = file.read_text()
        listed = _FILES.search(text)
        assert listed is not None, file
        paths = tuple(map(PurePosixPath, listed[1].split()))
        found.append(Maker(name=file.name, text=text, files=paths))
    return tuple(found)


def find(tree: Tree) -> list[PurePosixPath]:
    """The files of all makers that an image has."""
    return [path for maker in makers() for path in maker.files if tree.exists(path)]


def note(files: ImageFiles) -> dict[PurePosixPath, str]:
    """The files of all makers that an image has, with their digests."""
    return {path: _digest(files, path) for path in find(files)}


def settle(
    image: Image, before: Mapping[PurePosixPath, str], installed: Mapping[PurePosixPath, str]
) -> dict[str, Any]:
    """Has each machine make what the definition's packages made, and tells what all machines share.

    `before` and `installed` are what `note` found before and after packages were installed. What
    the definition's files and scripts changed after that stays. Raises FileSystemError,
    UnsafeImageError.
    """
    files = image.files
    fresh = {path: digest for path, digest in installed.items() if path not in before}
    made, shared = [], []
    for maker in makers():
        present = [path for path in maker.files if files.exists(path)]
        ours = all(path in fresh and fresh[path] == _digest(files, path) for path in present)
        if present and ours and image.init == "systemd":
            _take_out(files, maker, present)
            made.append({"package": maker.name, "files": [*map(str, present)]})
        else:
            shared += [path for path in present if installed.get(path) == _digest(files, path)]
    if made:
        files.write(PROGRAMS / "make-identities", _first_boot("make-identities"), 0o755)
        unit = services.UNITS[0] / f"{SERVICE}.service"
        files.write(unit, _first_boot(unit.name))
        services.enable(image, SERVICE, "boot")
    what = "as it is in the image"
    return {
        "made_at_boot": made,
        "shared": [{"file": str(path), "what": what} for path in shared],
    }


def _take_out(files: ImageFiles, maker: Maker, present: list[PurePosixPath]) -> None:
    restore = [line for path in present for line in _restoring(files, path)]
    text = "\n".join([maker.text.rstrip("\n"), "restore() {", *restore, "}", ""])
    files.write(PROGRAMS / "identities" / maker.name, text)
    for path in present:
        files.remove(path)
        for name in filter(_HASH_LINK.fullmatch, files.names(path.parent)):
            if files.read_link(path.parent / name) == path:
                files.remove(path.parent / name)


def _restoring(files: ImageFiles, path: PurePosixPath) -> Iterator[str]:
    """Commands that give a file the owner and mode that it had."""
    mode, owner = files.mode(path), files.owner(path)
    if mode is not None and owner is not None:
        yield f"    chown {owner[0]}:{owner[1]} {path}"
        yield f"    chmod {mode:04o} {path}"


def _digest(files: ImageFiles, path: PurePosixPath) -> str:
    return hashlib.sha256(files.read_bytes(path) or b"").hexdigest()


def _first_boot(name: str) -> str:
    return (FIRST_BOOT / name).read_text()
