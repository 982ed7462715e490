"""Looks for secrets in whole files, free blocks of file systems included."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import sparse
from pipeline.disk.ext4 import FileSystem
from pipeline.disk.superblock import is_ext_at
from pipeline.disk.untrusted import to_printable
from pipeline.errors import FileSystemError, StageFailedError
from pipeline.secret_forms import forms

_MOST_PLACES = 20  # of one secret


@dataclass(frozen=True, kw_only=True)
class Found:
    """A place of a secret."""

    file: str
    """The name of the file that was searched."""
    offset: int
    """Bytes from its start."""
    path: str = ""
    """The path in the file system, where the place belongs to a file."""
    encoded: bool = False
    """Whether it is base64."""

    def __str__(self) -> str:
        place = self.path or f"byte {self.offset:,} of {self.file}, in no file of the image"
        return f"{place} (in base64)" if self.encoded else place


def find_secrets(file: Path, secrets: Mapping[str, bytes]) -> dict[str, list[Found]]:
    """The places of these secrets in a file, for each that is there; at most 20 of one. In an ext
    file system, the files that they are in are told where that can be."""
    found: dict[str, list[Found]] = {}
    needles = {form: name for name, value in secrets.items() for form in forms(value)}
    plain = {forms(value)[0] for value in secrets.values()}
    for offset, form in _search(file, list(needles)):
        places = found.setdefault(needles[form], [])
        if len(places) < _MOST_PLACES:
            places.append(Found(file=file.name, offset=offset, encoded=form not in plain))
    paths = _paths(file, [each.offset for places in found.values() for each in places])
    return {
        name: [replace(each, path=paths.get(each.offset, "")) for each in places]
        for name, places in found.items()
    }


def _search(file: Path, needles: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Offset and needle of each place of a needle in a file. Holes are not read."""
    overlap = max(map(len, needles)) - 1
    zeros = bytes(overlap)
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        before, end = b"", 0  # what was read last, and where it ended
        for offset, chunk in sparse.data_chunks(opened.fileno(), size):
            if offset != end:  # zeros lie between
                yield from _places(before + zeros, end - len(before), len(before), needles)
                before = zeros[: min(overlap, offset)]
            yield from _places(before + chunk, offset - len(before), len(before), needles)
            before, end = (before + chunk)[-overlap:] if overlap else b"", offset + len(chunk)
        if end < size:
            behind = zeros[: size - end]
            yield from _places(before + behind, end - len(before), len(before), needles)


def _places(
    text: bytes, start: int, known: int, needles: Sequence[bytes]
) -> Iterator[tuple[int, bytes]]:
    """The places in a text that lies at `start`, without those that end within its first `known`
    bytes, which were searched before."""
    for needle in needles:
        at = text.find(needle, max(0, known - len(needle) + 1))
        while at >= 0:
            yield start + at, needle
            at = text.find(needle, at + 1)


def _paths(file: Path, offsets: Sequence[int]) -> dict[int, str]:
    """The path of the file of an ext file system that each of these bytes belongs to, as far as it
    can be told."""
    if not offsets or not is_ext_at(file, 0):
        return {}
    try:
        paths = FileSystem(file, 0).find_owners(offsets)
    except (FileSystemError, StageFailedError):  # an image may be damaged, or hold odd names
        return {}
    return {offset: to_printable(path) for offset, path in paths.items()}
