"""Recognises the formats of disk images from their headers.

This happens before any program that would follow an image's references reads the image. Images that
name other files are refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk.containers import CONVERT, READERS, SECTOR, Image
from pipeline.errors import EncryptedError, ImageFormatError
from pipeline.model import KIB

FORMATS = tuple(READERS)
"""qemu-img's names of the formats; it calls VHD `vpc`."""

HEAD = 64 * KIB
"""How many bytes from a file's start show its format."""

_CONTAINERS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
_LUKS = b"LUKS\xba\xbe"
# Other kinds of files, as messages call them.
_OTHERS = (
    (0, b"COWD", "a VMware ESX disk of the old kind (COWD)"),
    (0, b"vhdxfile", "a VHDX disk"),
    (0, b"QED\0", "a QED disk"),
    (0, b"WithoutFreeSpace", "a Parallels disk"),
    (0, b"WithouFreSpacExt", "a Parallels disk"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\x1f\x9d", "packed by compress"),
    (0, b"\x04\x22\x4d\x18", "packed by lz4"),
    (257, b"ustar", "a tar archive, as an OVA is"),
    (0, b"Bochs Virtual HD Image", "a Bochs disk"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "a cloop disk"),
)
# What QEMU takes for the descriptor of a VMDK disk, whatever follows.
_DESCRIPTOR = re.compile(rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n")
_PROBED = 4 * KIB  # eight times what QEMU looks at


@dataclass(frozen=True, kw_only=True)
class DiskFormat:
    """The facts in a disk image's headers."""

    name: str
    """One of `FORMATS`."""
    bytes: int
    """The size of the disk as a machine sees it."""


def to_user_name(name: str) -> str:
    """The name of a format in definitions and messages."""
    return "vhd" if name == "vpc" else name


def from_user_name(word: str) -> str:
    """qemu-img's name of a format, from its name in definitions."""
    return "vpc" if word == "vhd" else word


def is_web_page(head: bytes) -> bool:
    """Whether a file starts like HTML or XML."""
    start = head[:KIB].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))


def detect_format(head: bytes, where: str) -> str:
    """The format that an image's first bytes show; `raw` if they show none.

    Only the end of a fixed VHD distinguishes it from a raw disk (`read_format`).
    Raises ImageFormatError for a file that is not a disk image, and for an unsupported format;
    EncryptedError.
    """
    if not head:
        raise ImageFormatError("the file is empty", where=where, todo="fetch it again")
    names = [name for offset, magic, name in _CONTAINERS if head.startswith(magic, offset)]
    if len(names) > 1:
        named = " and ".join(map(to_user_name, names))
        raise ImageFormatError(f"has the marks of {named} at once", where=where, todo=CONVERT)
    if names:
        return names[0]
    for offset, magic, words in _OTHERS:
        if head.startswith(magic, offset):
            todo = "unpack it, and name the disk that is in it" if "archive" in words else CONVERT
            raise ImageFormatError(f"is {words}", where=where, todo=todo)
    if head.startswith(_LUKS):
        raise EncryptedError(
            "the image's root is encrypted: LUKS on the whole disk",
            where=where,
            todo="decrypt it, or choose another base image: nobody is there to enter a key",
        )
    is_named = head[:KIB].lstrip().lower().startswith(b"# disk descriptorfile")
    if is_named or _DESCRIPTOR.match(head[:_PROBED]):
        raise ImageFormatError(
            "is the descriptor of a VMDK disk, whose data lies in other files",
            where=where,
            todo="convert the disk to one file (monolithicSparse or streamOptimized)",
        )
    if is_web_page(head):
        raise ImageFormatError(
            "is a web page and not a disk image",
            where=where,
            todo="name the location of the image itself, not of the page that links to it",
        )
    if _is_text(head):
        raise ImageFormatError("is a text and not a disk image", where=where, todo=_DISK_TODO)
    return "raw"


_DISK_TODO = f"name a disk image: {', '.join(map(to_user_name, FORMATS))}, alone or packed"


def _nothing(*_: object) -> None: ...


def read_format(
    file: Path,
    where: str,
    declared: str | None = None,
    *,
    check_size: Callable[[int], None] = _nothing,
    check: Callable[[], None] = _nothing,
) -> DiskFormat:
    """Reads the headers and tables of an unpacked disk image; `where` names it in messages.

    All that the tables point to must lie within the file. `check_size` is called with the disk's
    size before the tables are read, and `check` now and then while they are read; either may raise.
    Raises ImageFormatError for a file that is not a disk image, that is encrypted, damaged or
    truncated, that names other files, or whose format is not the `declared` one.
    """
    with file.open("rb") as opened:
        image = Image(opened, where, check_size, check)
        name = detect_format(image.bytes_at(0, min(HEAD, image.size)), where)
        end = image.size - SECTOR
        last = image.bytes_at(end, 8) if name == "raw" and end > 0 else b""
        if last == b"conectix" and not image.size % SECTOR:
            name = "vpc"
        elif last.startswith(b"koly"):
            raise ImageFormatError("is an Apple disk image (DMG)", where=where, todo=CONVERT)
        check_declared(name, declared, where)
        return DiskFormat(name=name, bytes=READERS[name](image))


# Where the disk's size stands in a header: format, offset, unit.
_SIZES = {
    "qcow2": (">Q", 24, 1),
    "vpc": (">Q", 48, 1),
    "vmdk": ("<Q", 12, SECTOR),
    "vdi": ("<Q", 368, 1),
}


def peek_size(name: str, head: bytes) -> int | None:
    """The size of the disk if an image's first bytes show it."""
    if name not in _SIZES:
        return None
    form, offset, unit = _SIZES[name]
    return None if len(head) < offset + 8 else unit * int(struct.unpack_from(form, head, offset)[0])


def check_declared(actual: str, declared: str | None, where: str) -> None:
    """Raises ImageFormatError if a format is not the declared one."""
    if declared is not None and declared != actual:
        raise ImageFormatError(
            f"is declared as {to_user_name(declared)}, and is {to_user_name(actual)}",
            where=where,
            todo=f"write `format: {to_user_name(actual)}` if that is what you trust it to be",
        )


def _is_text(head: bytes) -> bool:
    """Whether a file's first bytes are printable text; those of a disk include zeros."""
    start = head[: 4 * KIB]
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start):
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # a character that the end cuts
    return True
