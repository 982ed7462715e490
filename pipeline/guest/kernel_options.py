"""The kernel's options, as the configuration of every boot loader writes them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from pipeline.disk.boot_entries import (
    ENTRIES,
    ENVIRONMENTS,
    GRUB_CONFIGURATIONS,
    LEGACY_CONFIGURATIONS,
    order_entries,
    parse_configuration,
    parse_entry,
)
from pipeline.guest.files import ImageFiles

CONSOLES = ("console=tty0", "console=ttyS0,115200")
"""The screen and the serial port, which clouds record; /dev/console is the last one."""

DEFAULTS = PurePosixPath("/etc/default/grub")
MORE_DEFAULTS = PurePosixPath("/etc/default/grub.d")
COMMAND_LINE = PurePosixPath("/etc/kernel/cmdline")
EXTLINUX_CONFIGURATIONS = (
    *map(PurePosixPath, ("/boot/extlinux/extlinux.conf", "/boot/extlinux.conf", "/extlinux.conf")),
    *map(PurePosixPath, ("/boot/syslinux/syslinux.cfg", "/boot/syslinux.cfg", "/syslinux.cfg")),
)

# What lies before the options in the lines that hold them.
GRUB_LINE = re.compile(r"^[ \t]*(?:linux|linux16|linuxefi)[ \t]+\S+[ \t]*", re.MULTILINE)
LEGACY_LINE = re.compile(r"^[ \t]*kernel[ \t]+(?:--\S+[ \t]+)*\S+[ \t]*", re.MULTILINE)
EXTLINUX_LINE = re.compile(r"^[ \t]*append[ \t]+", re.MULTILINE | re.IGNORECASE)
ENTRY_LINE = re.compile(r"^options[ \t]+", re.MULTILINE)
ENVIRONMENT_LINE = re.compile(r"^kernelopts=", re.MULTILINE)

_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/@%+\[\]-]+")
# What names devices of the base's disk, or its console.
_OUTDATED = re.compile(
    r"(root|rootflags|rootfstype|rootovl|resume|resume_offset|console|BOOT_IMAGE|initrd|cryptdevice"
    r"|rd\.lvm[.\w]*|rd\.luks[.\w]*|rd\.md[.\w]*|rd\.dm[.\w]*|ds|cloud-init)(=.*)?|ro|rw|quiet|splash|rhgb"
)
# What tells cloud-init where the base's own machine had its data, or to stay off.
_CLOUD_INIT = re.compile(r"(?:^|(?<=\s))(?:ds|cloud-init)=\S*\s*")
_OLD_ROOT = re.compile(r"\broot=(?:/dev/\S+|PARTUUID=\S+)")


def find(files: ImageFiles) -> list[str]:
    """The options that the base's own boot loader gives to the kernel, without those that only fit
    the base's disk and consoles."""
    words = next(filter(None, _all(files)), [])
    return [word for word in words if _PLAIN.fullmatch(word) and not _OUTDATED.fullmatch(word)]


def follow(options: str, uuid: str, extra: Sequence[str] = ()) -> str:
    """A line of options for a disk with root alone: root by its UUID and not by a device or a
    partition, the serial console, nothing for cloud-init, and `extra`."""
    options = _CLOUD_INIT.sub("", _OLD_ROOT.sub(f"root=UUID={uuid}", options)).rstrip()
    added = missing(options.split(), extra)
    consoles = re.findall(r"\bconsole=(\w+)", options)
    if "ttyS0" not in consoles:
        added += CONSOLES if not consoles else CONSOLES[1:]
    return " ".join(filter(None, (options, *added)))


def missing(options: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Those of `extra` whose names no option has: the image's owner decides."""
    names = {word.partition("=")[0] for word in options}
    return [word for word in extra if word.partition("=")[0] not in names]


def follow_lines(text: str, start: re.Pattern[str], uuid: str, extra: Sequence[str] = ()) -> str:
    """A configuration with the options behind each `start` as `follow` makes them."""

    def change(line: re.Match[str]) -> str:
        space = "" if line[1][-1:] in " \t=" else " "
        return f"{line[1]}{space}{follow(line[2], uuid, extra)}"

    return re.sub(f"({start.pattern})(.*)", change, text, flags=start.flags)


def entries(files: ImageFiles) -> list[PurePosixPath]:
    """The Boot Loader Specification's entries, the newest kernel's first, without rescue ones."""
    return [ENTRIES / name for name in order_entries(files.names(ENTRIES))]


def _all(files: ImageFiles) -> Iterator[list[str]]:
    for path in GRUB_CONFIGURATIONS:
        yield _configured(files.read_to_edit(path))
    yield _entry_options(files)
    for path in EXTLINUX_CONFIGURATIONS:
        yield _first(files.read_to_edit(path), EXTLINUX_LINE)
    for path in LEGACY_CONFIGURATIONS:
        yield _configured(files.read_to_edit(path))
    yield _default_options(files.read_to_edit(DEFAULTS))
    yield files.read_to_edit(COMMAND_LINE).split()


def _configured(text: str) -> list[str]:
    entry = parse_configuration(text)
    return [] if entry is None else [*entry.command_line]


def _first(text: str, start: re.Pattern[str]) -> list[str]:
    match = start.search(text)
    return text[match.end() :].partition("\n")[0].split() if match else []


def _entry_options(files: ImageFiles) -> list[str]:
    words: list[str] = []
    for path in entries(files)[:1]:
        words = parse_entry(files.read_to_edit(path)).get("options", "").split()
    if "$kernelopts" in words:
        for path in ENVIRONMENTS:
            words += _first(files.read_to_edit(path), ENVIRONMENT_LINE)
    return words


def _default_options(text: str) -> list[str]:
    words: list[str] = []
    for line in text.splitlines():
        match = re.match(r"\s*GRUB_CMDLINE_LINUX(_DEFAULT)?=(.*)", line)
        with suppress(ValueError):  # a quotation that does not end
            words += " ".join(shlex.split(match[2], comments=True)).split() if match else []
    return words
