"""Formats of disk images and what they are packed in, read from the files' own headers.

No program that would follow an image's references looks at it before this did: an image that names
another file is refused here. Layouts: QEMU's docs/interop/qcow2.txt, VMware's Virtual Disk Format
5.0, Microsoft's VHD specification, VirtualBox's VDICore.h.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ImageFormatError
from pipeline.model import KIB, MIB, format_size

FORMATS = ("raw", "qcow2", "vmdk", "vpc", "vdi")
"""qemu-img's names; `vpc` is VHD, which is what people call it."""

SECTOR = 512
HEAD = 64 * KIB
"""As much of a file's beginning tells what it is."""

LARGEST = 16 << 40
"""Bytes of the largest disk that is believed: ext4 holds no more."""
_SMALLEST = 64 * KIB
_PART = 64 * KIB  # numbers of a table that are in memory at once

_COMPRESSIONS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
_CONTAINERS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
# What is no disk of the formats above, in words for people.
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
)
_CONVERT = "convert it with a program that its publisher trusts, to raw or to a qcow2 of its own"
_AGAIN = "fetch it again: a part of it is missing, or was changed"


@dataclass(frozen=True, kw_only=True)
class DiskFormat:
    """What a disk image is by its headers."""

    name: str
    """One of `FORMATS`."""
    bytes: int
    """The size of the disk that a machine sees."""


def called(name: str) -> str:
    """What definitions call a format."""
    return "vhd" if name == "vpc" else name


def named(word: str) -> str:
    """qemu-img's name of a format that a definition or a person calls so."""
    return "vpc" if word == "vhd" else word


def detect_compression(head: bytes) -> str | None:
    """`gzip`, `xz`, `zstd`, `bzip2` or `zip` by a file's first bytes; None: it is not packed."""
    for magic, name in _COMPRESSIONS:
        if head.startswith(magic):
            # bzip2's magic is three letters; its block size and first block follow.
            if name == "bzip2" and not re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head):
                continue
            return name
    return None


def is_web_page(head: bytes) -> bool:
    """Whether a file begins as HTML or XML does."""
    start = head[:KIB].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))


def detect_format(head: bytes, where: str) -> str:
    """The format that a disk image begins like: `raw` where it begins like none.

    A fixed VHD begins like a raw disk: only its end tells (`read_format`).
    Raises ImageFormatError for what is no disk image, or one of another kind.
    """
    if not head:
        raise ImageFormatError("the file is empty", where=where, todo="fetch it again")
    for offset, magic, name in _CONTAINERS:
        if head.startswith(magic, offset):
            return name
    for offset, magic, words in _OTHERS:
        if head.startswith(magic, offset):
            todo = "unpack it, and name the disk that is in it" if "archive" in words else _CONVERT
            raise ImageFormatError(f"is {words}", where=where, todo=todo)
    if head.lstrip().lower().startswith(b"# disk descriptorfile"):
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


_DISK_TODO = f"name a disk image: {', '.join(map(called, FORMATS))}, alone or packed"


def _nothing(*_: object) -> None: ...


def read_format(
    file: Path,
    where: str,
    declared: str | None = None,
    *,
    check_size: Callable[[int], None] = _nothing,
    check: Callable[[], None] = _nothing,
) -> DiskFormat:
    """What an unpacked disk image is; `where` names it in messages.

    Whatever its tables say must lie within it. `check_size` is told the size of the disk before
    these are read, and `check` is called now and then meanwhile: what they raise ends it.
    Raises ImageFormatError for an image that is not as `declared`, names other files, is encrypted,
    damaged or cut, or is none.
    """
    with file.open("rb") as opened:
        return _Image(opened, where, check_size, check).read(declared)


def peek_size(name: str, head: bytes) -> int | None:
    """The size of the disk by an image's first bytes, where these tell it."""
    place = {"qcow2": (">Q", 24, 1), "vmdk": ("<Q", 12, SECTOR), "vdi": ("<Q", 368, 1)}
    place["vpc"] = (">Q", 48, 1)
    if name not in place:
        return None
    form, offset, unit = place[name]
    return None if len(head) < offset + 8 else unit * int(struct.unpack_from(form, head, offset)[0])


def check_declared(found: str, declared: str | None, where: str) -> None:
    """Raises ImageFormatError where a format is not the declared one."""
    if declared is not None and declared != found:
        raise ImageFormatError(
            f"is declared as {called(declared)}, and is {called(found)}",
            where=where,
            todo=f"write `format: {called(found)}` if that is what you trust it to be",
        )


def _is_text(head: bytes) -> bool:
    """Whether a beginning is printable text; a disk has zeros and other bytes soon."""
    start = head[: 4 * KIB]
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start):
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # a letter cut in the middle
    return True


class _Image:
    """One image while its headers are read."""

    def __init__(
        self,
        file: BinaryIO,
        where: str,
        check_size: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        self.file = file
        self.where = where
        self.check = check
        self._check_size = check_size
        self.size = os.fstat(file.fileno()).st_size

    def read(self, declared: str | None) -> DiskFormat:
        head = self.bytes_at(0, min(HEAD, self.size))
        name = detect_format(head, self.where)
        end = self.size - self.size % SECTOR - SECTOR
        if name == "raw" and end > 0 and self.bytes_at(end, 8) == b"conectix":
            name = "vpc"
        check_declared(name, declared, self.where)
        return DiskFormat(name=name, bytes=_READERS[name](self))

    def believe(self, disk: int) -> None:
        """Refuses a size of the disk, in bytes, that cannot be or is not wanted: to be called
        before any table is read, since it says how long these are."""
        if disk > LARGEST:
            raise self.error(f"claims to be a disk of {format_size(disk)}", _AGAIN)
        if disk < _SMALLEST:
            raise self.error(f"is too small for a disk: {format_size(disk)}", _AGAIN)
        self._check_size(disk)

    def error(self, what: str, todo: str) -> ImageFormatError:
        return ImageFormatError(what, where=self.where, todo=todo)

    def bytes_at(self, offset: int, count: int) -> bytes:
        """So many bytes of the file. Raises ImageFormatError where it ends before."""
        if offset + count > self.size:
            raise self.cut(offset + count)
        return os.pread(self.file.fileno(), count, offset)

    def fields(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, self.bytes_at(offset, struct.calcsize(form)))

    def numbers(self, code: str, order: str, offset: int, count: int) -> array[int]:
        """A table of the file; `code` as in `array`, `order` as in `sys.byteorder`."""
        self.check()
        table = array(code)
        table.frombytes(self.bytes_at(offset, count * table.itemsize))
        if order != sys.byteorder:
            table.byteswap()
        return table

    def stream(self, code: str, order: str, offset: int, count: int) -> Iterator[array[int]]:
        """A table of any length, in parts. Raises ImageFormatError at once where it is cut."""
        width = array(code).itemsize
        self.must_hold(offset + count * width)
        for start in range(0, count, _PART):
            yield self.numbers(code, order, offset + start * width, min(_PART, count - start))

    def must_hold(self, end: int) -> None:
        """Raises ImageFormatError for data that would end behind the file."""
        if end > self.size:
            raise self.cut(end)

    def cut(self, end: int) -> ImageFormatError:
        return self.error(
            f"is cut: it has {self.size:,} bytes, and its own tables speak of {end:,} or more",
            _AGAIN,
        )

    def refers(self, what: str) -> ImageFormatError:
        return self.error(
            f"names {what}: only an image that is whole in one file is taken", _CONVERT
        )

    def shared(self) -> ImageFormatError:
        return self.error("is damaged: it has one table in several places", _AGAIN)


class _Places:
    """Places of a file that were come across. It takes memory only around these."""

    def __init__(self, count: int) -> None:
        self._bits = mmap.mmap(-1, count // 8 + 1)

    def add(self, place: int) -> bool:
        """Whether it is a new one."""
        byte, bit = place // 8, 1 << place % 8
        before = self._bits[byte]
        self._bits[byte] = before | bit
        return not before & bit


def _read_raw(image: _Image) -> int:
    if image.size % SECTOR:
        raise image.error(f"is cut: {image.size:,} bytes are no whole sectors of a disk", _AGAIN)
    image.believe(image.size)
    return image.size


# ---- qcow2

_DIRTY, _CORRUPT, _DATA_FILE, _PACKED, _EXTENDED_L2 = (1 << bit for bit in range(5))
_QCOW2_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _PACKED | _EXTENDED_L2
_DATA_FILE_NAME, _BACKING_FORMAT = 0x44415441, 0xE2792ACA
_OFFSET = (1 << 56) - (1 << 9)  # bits 9 to 55 of a table's entry
_COMPRESSED = 1 << 62
_LONGEST_L1 = 32 * MIB  # QEMU takes no longer one


def _read_qcow2(image: _Image) -> int:
    version, backing, backing_length = image.fields(">IQI", 4)
    if version not in (2, 3):
        raise image.error(f"is a qcow image of version {version}, not 2 or 3", _CONVERT)
    cluster_bits, disk, crypt, l1_count, l1_offset = image.fields(">IQIIQ", 20)
    features = length = 0
    if version == 3:
        features, _, _, _, length = image.fields(">QQQII", 72)
    if backing or backing_length:
        raise image.refers("a backing file")
    if features & _DATA_FILE:
        raise image.refers("an external data file")
    if features & ~_QCOW2_KNOWN:
        raise image.error("has features of qcow2 that are not known", _CONVERT)
    if features & _CORRUPT:
        raise image.error("is marked as damaged by the program that wrote it", _AGAIN)
    if crypt:
        raise image.error("is encrypted", "decrypt it: nobody is there to enter a key")
    if not 9 <= cluster_bits <= 21 or (version == 3 and length < 104):
        raise image.error("has a header that is no qcow2 image's", _AGAIN)
    _check_extensions(image, length or 72, 1 << cluster_bits)
    image.believe(disk)
    _check_clusters(image, disk, cluster_bits, l1_offset, l1_count, features)
    return disk


def _check_extensions(image: _Image, offset: int, end: int) -> None:
    """Refuses header extensions that name other files."""
    while offset + 8 <= end:
        kind, length = image.fields(">II", offset)
        if kind == 0:
            return
        if kind == _DATA_FILE_NAME:
            raise image.refers("an external data file")
        if kind == _BACKING_FORMAT and length:
            raise image.refers("the format of a backing file")
        offset += 8 + -(-length // 8) * 8


def _check_clusters(
    image: _Image, disk: int, cluster_bits: int, l1_offset: int, l1_count: int, features: int
) -> None:
    """Every cluster lies in the file: what is missing at its end would be read as zeros."""
    cluster = 1 << cluster_bits
    words = 2 if features & _EXTENDED_L2 else 1
    entries = cluster // 8 // words
    needed = -(-disk // (cluster * entries))
    if not needed <= l1_count <= _LONGEST_L1 // 8 or l1_offset % SECTOR:
        raise image.error("has a header that is no qcow2 image's", _AGAIN)
    seen = _Places(image.size >> cluster_bits)
    for number, entry in enumerate(
        chain.from_iterable(image.stream("Q", "big", l1_offset, needed))
    ):
        table = entry & _OFFSET
        if table:
            first = number * entries * cluster
            l2 = image.numbers("Q", "big", table, cluster // 8)[::words]
            if table % cluster or not seen.add(table >> cluster_bits):
                raise image.shared()
            image.must_hold(_last_cluster(l2, cluster_bits, disk - first))


def _last_cluster(entries: array[int], cluster_bits: int, left: int) -> int:
    """Where the data of one table ends; `left` bytes of the disk are from its first cluster on."""
    cluster, shift = 1 << cluster_bits, 62 - (cluster_bits - 8)
    end = 0
    for index, entry in enumerate(entries):
        if not entry:
            continue
        if entry & _COMPRESSED:
            start = entry & ((1 << shift) - 1)
            sectors = (entry & (_COMPRESSED - 1)) >> shift
            end = max(end, start // SECTOR * SECTOR + sectors * SECTOR + 1)
        elif entry & _OFFSET:
            # Of the disk's last cluster, not all need be there.
            end = max(end, (entry & _OFFSET) + min(cluster, left - index * cluster))
    return end


# ---- vmdk

_AT_END = (1 << 64) - 1
_DESCRIPTOR = MIB  # of it, QEMU reads no more
_LONGEST_GRAIN_TABLE = 512  # QEMU takes no longer one
_SPARSE_TYPES = ("monolithicsparse", "streamoptimized")
_EXTENT = re.compile(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE | re.IGNORECASE)


def _read_vmdk(image: _Image) -> int:
    disk = _check_vmdk_header(image, 0)
    (directory,) = image.fields("<Q", 56)
    header = 0
    if directory == _AT_END:  # the real header is a footer, a sector before the end marker
        header = image.size - 2 * SECTOR
        if header < SECTOR or image.size % SECTOR or image.bytes_at(header, 4) != b"KDMV":
            raise image.error("is cut: a stream-optimized VMDK ends with a footer", _AGAIN)
        if _check_vmdk_header(image, header) != disk:
            raise image.error("has a footer that does not fit its header", _AGAIN)
        (directory,) = image.fields("<Q", header + 56)
    image.believe(disk)
    _check_grains(image, header, disk, directory * SECTOR)
    return disk


def _check_vmdk_header(image: _Image, header: int) -> int:
    """Refuses a header, and the descriptor that it names, that lead to other files."""
    (version,) = image.fields("<I", header + 4)
    capacity, _, descriptor, _ = image.fields("<QQQQ", header + 12)
    if version not in (1, 2, 3):
        raise image.error(f"is a VMDK of version {version}, not 1, 2 or 3", _CONVERT)
    if capacity == 0:  # QEMU would take the descriptor for the disk, and open what that names
        raise image.refers("other files by its descriptor")
    if descriptor:
        start = descriptor * SECTOR
        if start >= image.size:
            raise image.cut(start)
        length = min(_DESCRIPTOR, image.size - start)
        _check_descriptor(image, image.bytes_at(start, length).split(b"\0")[0])
    return capacity * SECTOR


def _check_descriptor(image: _Image, text: bytes) -> None:
    said = {
        match[1].lower(): match[2].strip(b'" \t\r').lower()
        for match in re.finditer(rb"^\s*(\w+)\s*=(.*)$", text, re.MULTILINE)
    }
    parent = said.get(b"parentcid", b"ffffffff")
    if b"parentfilenamehint" in text.lower() or parent != b"ffffffff":
        raise image.refers("a parent")
    kind = said.get(b"createtype", b"monolithicsparse").decode(errors="replace")
    extents = [match[1].upper() for match in _EXTENT.finditer(text)]
    if kind not in _SPARSE_TYPES or len(extents) > 1 or extents not in ([], [b"SPARSE"]):
        raise image.refers("other files as its extents")


def _check_grains(image: _Image, header: int, disk: int, directory: int) -> None:
    """Every grain lies in the file."""
    flags, _, grain = image.fields("<IQQ", header + 8)
    (per_table,) = image.fields("<I", header + 44)
    if not 1 <= grain <= 128 * KIB or not 1 <= per_table <= _LONGEST_GRAIN_TABLE:
        raise image.error("has a header that is no VMDK's", _AGAIN)
    packed = bool(flags & 1 << 16)
    seen = _Places(image.size // SECTOR)
    count = -(-disk // (grain * SECTOR * per_table))
    for table in chain.from_iterable(image.stream("I", "little", directory, count)):
        if table <= 1:  # they stand for none
            continue
        grains = image.numbers("I", "little", table * SECTOR, per_table)
        if not seen.add(table):
            raise image.shared()
        last = max(grains) * SECTOR
        if last and packed:  # it tells its length itself, behind its number
            (length,) = image.fields("<I", last + 8)
            image.must_hold(last + 12 + length)
        elif last:
            image.must_hold(last + min(grain * SECTOR, disk))


# ---- vhd

_FIXED, _DYNAMIC = 2, 3
_NO_BLOCK = 0xFFFFFFFF


def _read_vhd(image: _Image) -> int:
    dynamic = image.bytes_at(0, 8) == b"conectix"
    footer = 0 if dynamic else image.size - image.size % SECTOR - SECTOR
    (offset,) = image.fields(">Q", footer + 16)
    (disk,) = image.fields(">Q", footer + 48)
    (kind,) = image.fields(">I", footer + 60)
    if kind not in (_FIXED, _DYNAMIC):
        raise image.refers("a parent, as a differencing disk,")
    if (kind == _DYNAMIC) != dynamic:
        raise image.error("has a header that is no VHD's", _AGAIN)
    image.believe(disk)
    if not dynamic:
        image.must_hold(disk + SECTOR)
    else:
        _check_blocks(image, offset, disk)
    return disk


def _check_blocks(image: _Image, offset: int, disk: int) -> None:
    """Every block of a dynamic disk lies in the file."""
    (table,) = image.fields(">Q", offset + 16)
    count, block = image.fields(">II", offset + 28)
    if image.bytes_at(offset, 8) != b"cxsparse" or block < SECTOR or block & (block - 1):
        raise image.error("has a header that is no VHD's", _AGAIN)
    needed = -(-disk // block)
    if count < needed:
        raise image.error("has a header that is no VHD's", _AGAIN)
    bitmap = -(-block // SECTOR // 8 // SECTOR) * SECTOR
    for part in image.stream("I", "big", table, needed):
        last = max((each for each in part if each != _NO_BLOCK), default=None)
        if last is not None:
            image.must_hold(last * SECTOR + bitmap + block)


# ---- vdi

_VDI_DYNAMIC, _VDI_STATIC = 1, 2
_VDI_BLOCK = MIB  # QEMU reads no other
_NOT_STORED = 0xFFFFFFFE  # from here on: a block of zeros, or one that was never written


def _read_vdi(image: _Image) -> int:
    version, _, kind = image.fields("<III", 68)
    table, data = image.fields("<II", 340)
    (disk, block, extra, count) = image.fields("<QIII", 368)
    link, parent = image.bytes_at(424, 16), image.bytes_at(440, 16)
    if version != 0x10001:
        raise image.error("is a VDI of a version that is not known", _CONVERT)
    if kind not in (_VDI_DYNAMIC, _VDI_STATIC) or any(link) or any(parent):
        raise image.refers("a parent, as a differencing disk,")
    if block != _VDI_BLOCK or extra or count * block < disk:
        raise image.error("has a header that is no VDI's", _AGAIN)
    image.believe(disk)
    for part in image.stream("I", "little", table, -(-disk // block)):
        last = max((each for each in part if each < _NOT_STORED), default=None)
        if last is not None:
            image.must_hold(data + last * block + min(block, disk))
    return disk


_READERS: dict[str, Callable[[_Image], int]] = {
    "raw": _read_raw,
    "qcow2": _read_qcow2,
    "vmdk": _read_vmdk,
    "vpc": _read_vhd,
    "vdi": _read_vdi,
}
