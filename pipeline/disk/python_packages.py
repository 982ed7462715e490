"""Python packages in a root file system that pip, or a program like it, put there: those of its
distribution's own packages, which dpkg or rpm know, are left out."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string
from email.message import Message

from pipeline.disk.ext4_reader import Inode, Reader
from pipeline.disk.untrusted import to_printable
from pipeline.model import MIB

_PLACES = ("usr/lib", "usr/lib64", "usr/local/lib", "usr/local/lib64", "opt", "srv", "home", "root")
_DEEPEST = 8  # folders below a place: /home/USER/.local/share/pipx/venvs/NAME/lib/python3.11
_SITES = (b"site-packages", b"dist-packages")
_DISTRIBUTIONS = ("usr/lib/python", "usr/lib64/python")
_MOST = 2 * MIB  # of one file of metadata, with its description
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,199}")
_LONGEST_LICENCE = 200
_APPROVED = "License :: OSI Approved :: "


@dataclass(frozen=True, kw_only=True, order=True)
class PythonPackage:
    """An installed distribution of Python."""

    name: str
    version: str
    place: str
    """The folder that it was installed to, absolute."""
    licences: tuple[str, ...]
    """What its metadata says: one SPDX expression, or names."""


def read_packages(reader: Reader) -> list[PythonPackage]:
    """The installed packages, sorted. Metadata that is malformed is left out. Raises
    FileSystemError."""
    return sorted(
        package
        for folder in _PLACES
        for site, inode in _find_sites(reader, folder)
        for package in _read_site(reader, site, inode)
    )


def _find_sites(reader: Reader, path: str) -> Iterator[tuple[str, Inode]]:
    """The folders below a path that Python imports installed packages from."""
    start = reader.find(path, links=0)
    waiting = [(path, start, 0)] if start is not None else []
    while waiting:
        here, folder, depth = waiting.pop()
        if not stat.S_ISDIR(folder.mode):
            continue
        for name, number in sorted(reader.folder(folder).items(), reverse=True):
            below = f"{here}/{name.decode(errors='replace')}"
            if name in _SITES:
                yield below, reader.inode(number)
            elif depth < _DEEPEST and _may_lead_on(here, name):
                waiting.append((below, reader.inode(number), depth + 1))


def _may_lead_on(folder: str, name: bytes) -> bool:
    """Whether a folder may hold installed packages: of those with libraries only Python's own."""
    return name.startswith(b"python") if folder.endswith(("/lib", "/lib64")) else True


def _read_site(reader: Reader, site: str, inode: Inode) -> Iterator[PythonPackage]:
    if not stat.S_ISDIR(inode.mode):
        return
    for name, number in reader.folder(inode).items():
        if not name.endswith(b".dist-info"):
            continue
        told = reader.inode(number)
        files = reader.folder(told) if stat.S_ISDIR(told.mode) else {}
        if b"INSTALLER" not in files and site.startswith(_DISTRIBUTIONS):
            continue
        found = _read_metadata(_read(reader, files.get(b"METADATA")), f"/{to_printable(site)}")
        if found is not None:
            yield found


def _read(reader: Reader, number: int | None) -> str:
    inode = None if number is None else reader.inode(number)
    if inode is None or not stat.S_ISREG(inode.mode) or inode.size > _MOST:
        return ""
    return b"".join(reader.content(inode)).decode(errors="replace")


def _read_metadata(text: str, place: str) -> PythonPackage | None:
    told = message_from_string(text.partition("\n\n")[0])
    name, version = str(told["Name"]), str(told["Version"])
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        return None
    return PythonPackage(name=name, version=version, place=place, licences=_find_licences(told))


def _find_licences(told: Message) -> tuple[str, ...]:
    """By PEP 639, or what was usual before it; a whole licence text is no name."""
    classifiers = [str(each) for each in told.get_all("Classifier", ())]
    approved = (each.removeprefix(_APPROVED) for each in classifiers if each.startswith(_APPROVED))
    named = told["License-Expression"] or told["License"]
    words = [str(named)] if named and "\n" not in str(named) else sorted(approved)
    return tuple(to_printable(word) for word in words if 0 < len(word) <= _LONGEST_LICENCE)
