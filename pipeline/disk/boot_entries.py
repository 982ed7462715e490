"""Reads boot loader entries: GRUB's, and those of the Boot Loader Specification."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import PurePosixPath

from pipeline.disk.tree import Tree
from pipeline.disk.untrusted import lines_of, version_order
from pipeline.model import KIB

GRUB_CONFIGURATIONS = tuple(map(PurePosixPath, ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")))
"""GRUB 2's: in Debian and most distributions, and in Red Hat's and SUSE's."""
LEGACY_CONFIGURATIONS = tuple(map(PurePosixPath, ("/boot/grub/menu.lst", "/boot/grub/grub.conf")))
"""GRUB 1's; pygrub reads these too."""
ENVIRONMENTS = tuple(map(PurePosixPath, ("/boot/grub2/grubenv", "/boot/grub/grubenv")))
ENTRIES = PurePosixPath("/boot/loader/entries")

_KERNEL_WORDS = ("linux", "linux16", "linuxefi", "kernel")
_INITRAMFS_WORDS = ("initrd", "initrd16", "initrdefi")
_TITLE_WORDS = ("menuentry", "title")
# An untrusted image may have lines of any length, and any number of entries.
_LONGEST_LINE = 4 * KIB  # twice Linux's limit of its command line
_MOST_ENTRIES = 20  # how many entries we search for one with a kernel


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a boot loader boots by default."""

    kernel: PurePosixPath
    initramfs: tuple[PurePosixPath, ...] = ()
    command_line: tuple[str, ...] = ()


def find_entry(tree: Tree) -> tuple[PurePosixPath, Entry | None]:
    """The configuration file of the image's boot loader, and its first entry. Variables that the
    image itself sets are filled in."""
    configurations = (*GRUB_CONFIGURATIONS, *LEGACY_CONFIGURATIONS)
    for path in configurations:
        text = tree.read(path)
        if not text:
            continue
        entry = parse_configuration(text)
        if entry is not None:
            return path, _fill_command_line(entry, _read_variables(text, "set"))
        uses_entries = any(line.split()[:1] == ["blscfg"] for line in lines_of(text))
        newest = _find_newest_entry(tree, text) if uses_entries else None
        return newest or (path, None)
    return _find_newest_entry(tree, "") or (configurations[0], None)


def parse_configuration(text: str) -> Entry | None:
    """The first entry of a GRUB configuration, as written; None if it has no entry."""
    entry: Entry | None = None
    for line in lines_of(text):
        words = line[:_LONGEST_LINE].split()
        first = words[0] if words else ""
        # GRUB 1 allows options before the kernel's file.
        words = [*dropwhile(lambda word: word.startswith("--"), words[1:])]
        if entry is None:
            if first in _KERNEL_WORDS and words:
                entry = Entry(kernel=_path(words[0]), command_line=tuple(words[1:]))
        elif first in _INITRAMFS_WORDS:
            return replace(entry, initramfs=tuple(map(_path, words)))
        elif first in (*_TITLE_WORDS, *_KERNEL_WORDS):
            break
    return entry


def order_entries(names: Iterable[str]) -> list[str]:
    """The files of Boot Loader Specification entries, the newest kernel first, without rescue
    entries."""
    wanted = (name for name in names if name.endswith(".conf") and "rescue" not in name)
    return sorted(wanted, key=version_order, reverse=True)


def parse_entry(text: str) -> dict[str, str]:
    """The fields of a Boot Loader Specification entry; the values of repeated fields are joined."""
    fields: dict[str, list[str]] = {}
    for line in lines_of(text):
        name, *values = line[:_LONGEST_LINE].split(maxsplit=1)[:2] or [""]
        fields.setdefault(name, []).extend(value.strip() for value in values)
    return {name: " ".join(values) for name, values in fields.items()}


def _find_newest_entry(tree: Tree, configuration: str) -> tuple[PurePosixPath, Entry] | None:
    """The newest Boot Loader Specification entry, which GRUB shows first."""
    variables = _read_variables(configuration, "set")
    for path in ENVIRONMENTS:
        variables = {**_read_variables(tree.read(path)), **variables}
    for name in order_entries(tree.names(ENTRIES))[:_MOST_ENTRIES]:
        fields = parse_entry(tree.read(ENTRIES / name))
        if fields.get("linux"):
            entry = Entry(
                kernel=_path(fields["linux"].split()[0]),
                initramfs=tuple(map(_path, _fill(fields.get("initrd", ""), {}))),
                command_line=tuple(fields.get("options", "").split()),
            )
            return ENTRIES / name, _fill_command_line(entry, variables)
    return None


def _read_variables(text: str, command: str = "") -> dict[str, str]:
    """The first value that a text assigns to each variable."""
    assignment = re.compile(rf"[ \t]*{command}[ \t]+(\w+)=(.*)" if command else r"(\w+)=(.*)")
    variables: dict[str, str] = {}
    for match in filter(None, map(assignment.match, lines_of(text))):
        variables.setdefault(match[1], match[2][:_LONGEST_LINE].strip().strip("\"'"))
    return variables


def _fill_command_line(entry: Entry, variables: Mapping[str, str]) -> Entry:
    return replace(entry, command_line=tuple(_fill(" ".join(entry.command_line), variables)))


def _fill(text: str, variables: Mapping[str, str]) -> list[str]:
    """The words of a text with variables replaced by their values."""
    text = text[:_LONGEST_LINE]
    filled = re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], ""), text)
    return filled[:_LONGEST_LINE].split()


def _path(word: str) -> PurePosixPath:
    """The path in a GRUB file name, without the device before it."""
    path = re.sub(r"^\([^)]*\)|^\$\{?\w+\}?", "", word.strip("\"'"))
    return PurePosixPath("/", path.lstrip("/"))
