"""Debian packages in a root file system: what is installed, versions, changelogs and licences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from pipeline.disk.ext4_reader import Reader, read_lines
from pipeline.disk.untrusted import to_printable
from pipeline.model import MIB

_STATUS = "var/lib/dpkg/status"
_MOST = 16 * MIB  # of a changelog, unpacked
_LONGEST_STATUS = 64 * MIB
_HEADING = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]{1,99}) \((?P<version>[^\s()]{1,200})\) ")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_SOURCE = re.compile(r"(?P<name>[^\s()]+)(?: \((?P<version>[^\s()]+)\))?")
_FORMAT = re.compile(r"Format(-Specification)?:\s*\S*(copyright-format|dep5)", re.IGNORECASE)
_LICENCE = re.compile(r"License:[ \t]*(\S.{0,199})", re.IGNORECASE)
_MOST_COPYRIGHT = 4 * MIB
_BINARY_ONLY = re.compile(r"\+b[0-9]{1,9}$")  # a rebuild of the same source


@dataclass(frozen=True, kw_only=True, order=True)
class DebianPackage:
    """An installed package, as dpkg's database has it."""

    name: str
    version: str
    architecture: str
    source: str
    """The source package that it was built from."""
    source_version: str


def read_installed(reader: Reader) -> dict[str, tuple[str, str]]:
    """Version and architecture of each installed package, by name; empty where there is no dpkg.
    Raises FileSystemError."""
    return {each.name: (each.version, each.architecture) for each in read_packages(reader)}


def read_packages(reader: Reader) -> list[DebianPackage]:
    """The installed packages, in the order of the database; none where there is no dpkg. Raises
    FileSystemError."""
    return [package for fields in _stanzas(reader) for package in _installed(fields)]


def _stanzas(reader: Reader) -> Iterator[dict[str, str]]:
    fields = dict[str, str]()
    for line in read_lines(reader, _STATUS, _LONGEST_STATUS):
        name, _, value = line.partition(": ")
        if line == "":
            yield fields
            fields = {}
        elif name in ("Package", "Version", "Architecture", "Status", "Source"):
            fields[name] = to_printable(value)
    yield fields


def _installed(fields: Mapping[str, str]) -> Iterator[DebianPackage]:
    if {"Package", "Version"} <= fields.keys() and fields.get("Status", "").partition(" ")[
        2
    ] == "ok installed":
        name, version = fields["Package"], fields["Version"]
        source = _SOURCE.fullmatch(fields.get("Source", name))
        yield DebianPackage(
            name=name,
            version=version,
            architecture=fields.get("Architecture", ""),
            source=source["name"] if source else name,
            source_version=(source and source["version"]) or version,
        )


def read_licences(reader: Reader, package: str) -> list[str]:
    """The short names of the licences that a package's copyright file names, sorted; none where the
    image has no such file, or one that is not machine-readable (Debian's copyright-format 1.0).
    Raises FileSystemError."""
    if not _NAME.fullmatch(package):
        return []
    lines = read_lines(reader, f"usr/share/doc/{package}/copyright", _MOST_COPYRIGHT)
    if not _FORMAT.match(next(lines, "")):
        return []
    found = (_LICENCE.match(line) for line in lines)
    return sorted({to_printable(match[1].strip()) for match in found if match is not None})


def read_changes(reader: Reader, package: str, old: str, new: str) -> list[str]:
    """The lines of a package's changelog in the image from version `new` down to `old`, without
    `old` itself; empty where the image has none, or where `new` is no later one. Raises
    FileSystemError."""
    if not _NAME.fullmatch(package) or compare_versions(old, new) >= 0:
        return []
    folder = f"usr/share/doc/{package}"
    for name in ("changelog.Debian.gz", "changelog.gz", "changelog.Debian", "changelog"):
        lines = [*_entries(read_lines(reader, f"{folder}/{name}", _MOST), old)]
        if lines:
            return lines
    return []


def _entries(lines: Iterator[str], old: str) -> Iterator[str]:
    """The lines of entries of later versions than `old`, as long as they come first."""
    begun = False
    for line in lines:
        heading = _HEADING.match(line)
        if heading is not None:
            if compare_versions(heading["version"], _BINARY_ONLY.sub("", old)) <= 0:
                return
            begun = True
        if begun and line.strip():
            yield to_printable(line.rstrip().replace("\t", "        "))


def compare_versions(one: str, other: str) -> int:
    """Less than, equal to or greater than 0 as dpkg orders two versions (deb-version(7))."""
    (epoch, upstream, revision), (epoch2, upstream2, revision2) = _split(one), _split(other)
    if epoch != epoch2:
        return -1 if epoch < epoch2 else 1
    return _compare_part(upstream, upstream2) or _compare_part(revision, revision2)


def _split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit() or len(epoch) > 9:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), upstream, revision


def _compare_part(one: str, other: str) -> int:
    """Letters and digits by turns; `~` comes before the end, and letters before other signs."""
    pattern = r"([^0-9]*)([0-9]*)"
    parts = zip_longest(re.findall(pattern, one), re.findall(pattern, other), fillvalue=("", ""))
    for (text, digits), (text2, digits2) in parts:
        for sign, sign2 in zip_longest(text, text2, fillvalue=""):
            if _order(sign) != _order(sign2):
                return -1 if _order(sign) < _order(sign2) else 1
        number, number2 = digits.lstrip("0"), digits2.lstrip("0")
        key, key2 = (len(number), number), (len(number2), number2)
        if key != key2:
            return -1 if key < key2 else 1
    return 0


def _order(sign: str) -> int:
    if sign == "~":
        return -1
    if not sign:
        return 0
    return ord(sign) if sign.isalpha() else ord(sign) + 0x110000
