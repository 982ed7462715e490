"""Debian packages in a root file system: what is installed, versions, and their changelogs."""

from __future__ import annotations

import re
import stat
import zlib
from collections.abc import Iterator
from itertools import zip_longest

from pipeline.disk.ext4_reader import Reader
from pipeline.disk.untrusted import to_printable
from pipeline.model import MIB

_STATUS = "var/lib/dpkg/status"
_MOST = 16 * MIB  # of a changelog, unpacked
_LONGEST_STATUS = 64 * MIB
_HEADING = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]{1,99}) \((?P<version>[^\s()]{1,200})\) ")
_BINARY_ONLY = re.compile(r"\+b[0-9]{1,9}$")  # a rebuild of the same source


def read_installed(reader: Reader) -> dict[str, tuple[str, str]]:
    """Version and architecture of each installed package, by name; empty where there is no dpkg.
    Raises FileSystemError."""
    found, fields = {}, dict[str, str]()
    for line in _lines(reader, _STATUS, _LONGEST_STATUS):
        name, _, value = line.partition(": ")
        if line == "":
            found.update(_installed(fields))
            fields = {}
        elif name in ("Package", "Version", "Architecture", "Status"):
            fields[name] = to_printable(value)
    found.update(_installed(fields))
    return found


def _installed(fields: dict[str, str]) -> dict[str, tuple[str, str]]:
    if (
        not {"Package", "Version"} <= fields.keys()
        or fields.get("Status") != "install ok installed"
    ):
        return {}
    return {fields["Package"]: (fields["Version"], fields.get("Architecture", ""))}


def read_changes(reader: Reader, package: str, old: str, new: str) -> list[str]:
    """The lines of a package's changelog in the image from version `new` down to `old`, without
    `old` itself; empty where the image has none, or where `new` is no later one. Raises
    FileSystemError."""
    if not re.fullmatch("[a-z0-9][a-z0-9+.-]*", package) or compare_versions(old, new) >= 0:
        return []
    folder = f"usr/share/doc/{package}"
    for name in ("changelog.Debian.gz", "changelog.gz", "changelog.Debian", "changelog"):
        lines = [*_entries(_lines(reader, f"{folder}/{name}", _MOST), old)]
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


def _lines(reader: Reader, path: str, most: int) -> Iterator[str]:
    """The lines of a text file, unpacked where its name ends with `.gz`, up to so many bytes."""
    inode = reader.find(path)
    if inode is None or not stat.S_ISREG(inode.mode):
        return
    packed = zlib.decompressobj(31) if path.endswith(".gz") else None
    rest, done = b"", 0
    for chunk in reader.content(inode):
        try:
            data = chunk if packed is None else packed.decompress(chunk, most)
        except zlib.error:
            break
        done += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if done >= most:
            return
    if rest:
        yield rest.decode(errors="replace")


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
