"""The kernel's options, as the configuration of every boot loader writes them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.guest.files import ImageFiles

CONSOLES = ("console=tty0", "console=ttyS0,115200")
"""The screen, and what the console of a cloud's machine is heard on; the last one is the one that
/dev/console leads to."""

GRUB_CONFIGURATIONS = tuple(
    PurePosixPath(path) for path in ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
)
LEGACY_CONFIGURATIONS = tuple(
    PurePosixPath(path) for path in ("/boot/grub/menu.lst", "/boot/grub/grub.conf")
)
ENVIRONMENTS = tuple(PurePosixPath(path) for path in ("/boot/grub2/grubenv", "/boot/grub/grubenv"))
ENTRIES = PurePosixPath("/boot/loader/entries")
DEFAULTS = PurePosixPath("/etc/default/grub")
MORE_DEFAULTS = PurePosixPath("/etc/default/grub.d")
COMMAND_LINE = PurePosixPath("/etc/kernel/cmdline")
EXTLINUX_CONFIGURATIONS = tuple(
    PurePosixPath(path)
    for path in (
        *("/boot/extlinux/extlinux.conf", "/boot/extlinux.conf", "/extlinux.conf"),
        *("/boot/syslinux/syslinux.cfg", "/boot/syslinux.cfg", "/syslinux.cfg"),
    )
)

# First words of the lines that hold options, and how many words lie before these.
GRUB_LINE = re.compile(r"^\s*(?:linux|linux16|linuxefi)\s+\S+[ \t]*", re.MULTILINE)
LEGACY_LINE = re.compile(r"^\s*kernel\s+(?:--\S+\s+)*\S+[ \t]*", re.MULTILINE)
EXTLINUX_LINE = re.compile(r"^\s*append[ \t]+", re.MULTILINE | re.IGNORECASE)
ENTRY_LINE = re.compile(r"^options[ \t]+", re.MULTILINE)
ENVIRONMENT_LINE = re.compile(r"^kernelopts=", re.MULTILINE)

_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/@%+\[\]-]+")
# What says where root, its parts and swap lie, or which console there is: none of it is as it was.
_OUTDATED = re.compile(
    r"(root|rootflags|rootfstype|rootovl|resume|resume_offset|console|BOOT_IMAGE|initrd|cryptdevice"
    r"|rd\.lvm[.\w]*|rd\.luks[.\w]*|rd\.md[.\w]*|rd\.dm[.\w]*|ds|cloud-init)(=.*)?|ro|rw|quiet|splash|rhgb"
)
# What tells cloud-init where its data is, or to stay off: as the machine was that the base ran on.
_CLOUD_INIT = re.compile(r"(?:^|(?<=\s))(?:ds|cloud-init)=\S*\s*")
_OLD_ROOT = re.compile(r"\broot=(?:/dev/\S+|PARTUUID=\S+)")


def find(files: ImageFiles) -> list[str]:
    """The options that the base's own boot loader gives to the kernel, without those that only fit
    the base's disk and consoles."""
    for words in _all(files):
        if words:
            return [
                word for word in words if _PLAIN.fullmatch(word) and not _OUTDATED.fullmatch(word)
            ]
    return []


def follow(options: str, uuid: str, extra: Sequence[str] = ()) -> str:
    """A line of options for a disk with root alone: root by its UUID and not by a device or a
    partition, a console that is heard, no word to cloud-init, and what is said in `extra`."""
    options = _CLOUD_INIT.sub("", _OLD_ROOT.sub(f"root=UUID={uuid}", options)).rstrip()
    added = missing(options.split(), extra)
    consoles = re.findall(r"\bconsole=(\w+)", options)
    if "ttyS0" not in consoles:
        added += CONSOLES if not consoles else CONSOLES[1:]
    return " ".join(filter(None, (options, *added)))


def missing(options: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Those of `extra` whose names no option has: what the image's owner says counts."""
    names = {word.partition("=")[0] for word in options}
    return [word for word in extra if word.partition("=")[0] not in names]


def follow_lines(text: str, start: re.Pattern[str], uuid: str, extra: Sequence[str] = ()) -> str:
    """A configuration with the options behind each `start` as `follow` makes them."""
    pieces, position = [], 0
    for found in start.finditer(text):
        end = text.find("\n", found.end())
        end = len(text) if end < 0 else end
        head = text[position : found.end()]
        pieces.append(head if head[-1:] in " \t=" else f"{head} ")
        pieces.append(follow(text[found.end() : end], uuid, extra))
        position = end
    return "".join([*pieces, text[position:]])


def read_text(files: ImageFiles, path: PurePosixPath) -> str:
    """A file of the image as text; empty where there is none."""
    return (files.read(path) or b"").decode("utf-8", "surrogateescape")


def entries(files: ImageFiles) -> list[PurePosixPath]:
    """The boot loader specification's entries, the newest kernel's last, without rescue ones."""
    names = [name for name in files.names(ENTRIES) if name.endswith(".conf")]
    names.sort(key=lambda name: version_key(name))
    return [ENTRIES / name for name in names if "rescue" not in name]


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sorts versions of kernels as people do."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", version)
    )


def _all(files: ImageFiles) -> Iterator[list[str]]:
    for path in GRUB_CONFIGURATIONS:
        yield _first(read_text(files, path), GRUB_LINE)
    yield _entry_options(files)
    for path in EXTLINUX_CONFIGURATIONS:
        yield _first(read_text(files, path), EXTLINUX_LINE)
    for path in LEGACY_CONFIGURATIONS:
        yield _first(read_text(files, path), LEGACY_LINE)
    yield _default_options(read_text(files, DEFAULTS))
    yield read_text(files, COMMAND_LINE).split()


def _first(text: str, start: re.Pattern[str]) -> list[str]:
    found = start.search(text)
    return text[found.end() :].partition("\n")[0].split() if found else []


def _entry_options(files: ImageFiles) -> list[str]:
    words: list[str] = []
    for path in entries(files)[-1:]:
        words = _first(read_text(files, path), ENTRY_LINE)
    if "$kernelopts" in words:
        for path in ENVIRONMENTS:
            words += _first(read_text(files, path), ENVIRONMENT_LINE)
    return words


def _default_options(text: str) -> list[str]:
    words: list[str] = []
    for line in text.splitlines():
        found = re.match(r"\s*GRUB_CMDLINE_LINUX(_DEFAULT)?=(.*)", line)
        if found:
            words += _unquoted(found[2])
    return words


def _unquoted(value: str) -> Sequence[str]:
    try:
        return [word for each in shlex.split(value, comments=True) for word in each.split()]
    except ValueError:
        return []
