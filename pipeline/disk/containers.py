"""Reads the tables of disk images, and checks that all their data lies in the image's own file.

The formats are described in QEMU's docs/interop/qcow2.txt, VMware's Virtual Disk Format 5.0,
Microsoft's VHD specification and VirtualBox's VDICore.h.
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
from typing import BinaryIO

from pipeline.errors import ImageFormatError
from pipeline.model import KIB, MIB, format_size

SECTOR = 512

LARGEST = 16 << 40
"""Bytes of the largest disk that we accept: ext4's limit."""
_SMALLEST = 64 * KIB
_PART = 64 * KIB  # entries of a table that are in memory at once
_WINDOW = 8 * 32 * MIB  # places of tables that are compared at once, each by one bit
_LONGEST_TABLE = 64 * MIB  # of those that QEMU holds in memory; 16 TiB in blocks of 1 MiB take it

CONVERT = "convert it with a program that its publisher trusts, to raw or to a qcow2 of its own"
_AGAIN = "fetch it again: a part of it is missing, or was changed"


@dataclass
class Image:
    """An image whose headers are being read."""

    file: BinaryIO
    where: str
    check_size: Callable[[int], None]
    check: Callable[[], None]

    def __post_init__(self) -> None:
        self.size = os.fstat(self.file.fileno()).st_size

    def check_disk(self, disk: int) -> None:
        """Refuses a disk of an impossible or unwanted size, in bytes. Call this before reading
        tables, whose lengths depend on the size."""
        if disk > LARGEST:
            raise self.error(f"claims to be a disk of {format_size(disk)}", _AGAIN)
        if disk < _SMALLEST:
            raise self.error(f"is too small for a disk: {format_size(disk)}", _AGAIN)
        self.check_size(disk)

    def error(self, what: str, todo: str) -> ImageFormatError:
        return ImageFormatError(what, where=self.where, todo=todo)

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Reads `count` bytes of the file. Raises ImageFormatError if it is shorter."""
        self.must_hold(offset + count)
        return os.pread(self.file.fileno(), count, offset)

    def fields(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, self.bytes_at(offset, struct.calcsize(form)))

    def numbers(self, code: str, order: str, offset: int, count: int) -> array[int]:
        """Reads a table; `code` as in `array`, `order` as in `sys.byteorder`."""
        self.check()
        table = array(code)
        table.frombytes(self.bytes_at(offset, count * table.itemsize))
        if order != sys.byteorder:
            table.byteswap()
        return table

    def stream(self, code: str, order: str, offset: int, count: int) -> Iterator[array[int]]:
        """Reads a table of any length in parts. Raises ImageFormatError at once if it is cut."""
        width = array(code).itemsize
        self.must_hold(offset + count * width)
        for start in range(0, count, _PART):
            yield self.numbers(code, order, offset + start * width, min(_PART, count - start))

    def must_hold(self, end: int) -> None:
        """Raises ImageFormatError if the file ends before `end`."""
        if end > self.size:
            raise self.cut(end)

    def cut(self, end: int) -> ImageFormatError:
        return self.error(
            f"is truncated: it has {self.size:,} bytes, but its tables refer to {end:,} or more",
            _AGAIN,
        )

    def refers(self, what: str) -> ImageFormatError:
        return self.error(
            f"names {what}: only an image that is whole in one file is taken", CONVERT
        )

    def shared(self) -> ImageFormatError:
        return self.error("is damaged: it has one table in several places", _AGAIN)


def _check_apart(image: Image, tables: Callable[[], Iterator[int]], places: int) -> None:
    """Refuses an image that has one table twice: it could be read without end. `tables` gives the
    place of each, below `places`."""
    for first in range(0, places, _WINDOW):
        seen = mmap.mmap(-1, _WINDOW // 8)  # takes memory only where bits are set
        for table in tables():
            byte, bit = divmod(table - first, 8)
            if 0 <= table - first < _WINDOW:
                if seen[byte] & 1 << bit:
                    raise image.shared()
                seen[byte] |= 1 << bit
        image.check()


def _read_raw(image: Image) -> int:
    if image.size % SECTOR:
        raise image.error(
            f"is truncated: {image.size:,} bytes are not a whole number of sectors", _AGAIN
        )
    image.check_disk(image.size)
    return image.size


# ---- qcow2

_DIRTY, _CORRUPT, _DATA_FILE, _PACKED, _EXTENDED_L2 = (1 << bit for bit in range(5))
_QCOW2_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _PACKED | _EXTENDED_L2
_DATA_FILE_NAME, _BACKING_FORMAT, _BITMAPS = 0x44415441, 0xE2792ACA, 0x23852875
_HAS_BITMAPS = 1  # an autoclear feature: a program that knows bitmaps has written the image last
_OFFSET = (1 << 56) - (1 << 9)  # bits 9 to 55 of an entry
_COMPRESSED = 1 << 62
_LONGEST_L1 = 32 * MIB  # QEMU's limit


def _read_qcow2(image: Image) -> int:
    version, backing, backing_length = image.fields(">IQI", 4)
    if version not in (2, 3):
        raise image.error(f"is a qcow image of version {version}, not 2 or 3", CONVERT)
    cluster_bits, disk, crypt, l1_count, l1_offset = image.fields(">IQIIQ", 20)
    features = autoclear = length = 0
    if version == 3:
        features, _, autoclear, _, length = image.fields(">QQQII", 72)
    if backing or backing_length:
        raise image.refers("a backing file")
    if features & _DATA_FILE:
        raise image.refers("an external data file")
    if features & ~_QCOW2_KNOWN:
        raise image.error("has unknown qcow2 features", CONVERT)
    if features & _CORRUPT:
        raise image.error("is marked as damaged by the program that wrote it", _AGAIN)
    if crypt:
        raise image.error("is encrypted", "decrypt it: nobody is there to enter a key")
    if not 9 <= cluster_bits <= 21 or (version == 3 and length < 104):
        raise image.error("has an invalid qcow2 header", _AGAIN)
    if disk % SECTOR:
        raise image.error("has an invalid qcow2 header", _AGAIN)
    image.check_disk(disk)
    for kind, start, size in _extensions(image, length or 72, 1 << cluster_bits):
        if kind == _DATA_FILE_NAME:
            raise image.refers("an external data file")
        if kind == _BACKING_FORMAT and size:
            raise image.refers("the format of a backing file")
        if kind == _BITMAPS and autoclear & _HAS_BITMAPS:
            _check_bitmaps(image, start, disk)
    _check_clusters(image, disk, cluster_bits, l1_offset, l1_count, features)
    return disk


def _extensions(image: Image, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, place and length of each header extension."""
    while offset + 8 <= end:
        kind, length = image.fields(">II", offset)
        if kind == 0:
            return
        yield kind, offset + 8, length
        offset += 8 + -(-length // 8) * 8


def _check_bitmaps(image: Image, extension: int, disk: int) -> None:
    """Refuses dirty bitmaps that would fill the memory: QEMU reads all of them."""
    size, start = image.fields(">QQ", extension + 8)
    end = min(start + size, image.size)
    bits = 0
    while start + 24 <= end and bits <= 8 * _LONGEST_TABLE:
        granularity, name, extra = image.fields(">BHI", start + 17)
        bits += disk >> min(granularity, 63)
        start += -(-(24 + extra + name) // 8) * 8
    if bits > 8 * _LONGEST_TABLE or size > _LONGEST_TABLE:
        raise image.error("has dirty bitmaps that are too large", CONVERT)


def _check_clusters(
    image: Image, disk: int, cluster_bits: int, l1_offset: int, l1_count: int, features: int
) -> None:
    """Checks that the file holds every cluster: QEMU reads a missing one at its end as zeros."""
    cluster = 1 << cluster_bits
    words = 2 if features & _EXTENDED_L2 else 1
    entries = cluster // 8 // words
    needed = -(-disk // (cluster * entries))
    if not needed <= l1_count <= _LONGEST_L1 // 8 or l1_offset % SECTOR:
        raise image.error("has an invalid qcow2 header", _AGAIN)

    def tables() -> Iterator[int]:
        for entry in chain.from_iterable(image.stream("Q", "big", l1_offset, needed)):
            yield entry & _OFFSET

    for table in filter(None, tables()):
        image.must_hold(table + cluster)
        if table % cluster:
            raise image.error("has an invalid qcow2 table", _AGAIN)
    _check_apart(
        image,
        lambda: (table >> cluster_bits for table in tables() if table),
        (image.size >> cluster_bits) + 1,
    )
    for number, table in enumerate(tables()):
        if table:
            l2 = image.numbers("Q", "big", table, cluster // 8)[::words]
            first = number * entries * cluster
            image.must_hold(_last_cluster(l2, cluster_bits, disk - first))


def _last_cluster(entries: array[int], cluster_bits: int, left: int) -> int:
    """Where the data of a table ends; the disk has `left` bytes from the table's start on."""
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
            # The disk's last cluster may be incomplete.
            end = max(end, (entry & _OFFSET) + min(cluster, left - index * cluster))
    return end


# ---- vmdk

_AT_END = (1 << 64) - 1
_DESCRIPTOR = MIB  # how much of the descriptor QEMU reads
_QEMU_DESCRIPTOR = SECTOR  # where QEMU looks for a parent, whatever the header says
_LONGEST_GRAIN_TABLE = 512  # QEMU's limit
_LARGEST_PACKED_GRAIN = 2 * MIB // SECTOR  # QEMU unpacks several at once; programs write 64 KiB
_PACKED_FLAG, _DEFLATE = 1 << 16, 1  # in the header's flags, and its algorithm
_SPARSE_TYPES = ("monolithicsparse", "streamoptimized")
_EXTENT = re.compile(
    rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", re.MULTILINE | re.IGNORECASE
)


def _read_vmdk(image: Image) -> int:
    disk = _check_vmdk_header(image, 0)
    (directory,) = image.fields("<Q", 56)
    header = 0
    if directory == _AT_END:  # the footer, one sector before the end marker, has the real header
        header = image.size - 2 * SECTOR
        if header < SECTOR or image.size % SECTOR or image.bytes_at(header, 4) != b"KDMV":
            raise image.error("is truncated: a stream-optimized VMDK ends with a footer", _AGAIN)
        if _check_vmdk_header(image, header) != disk:
            raise image.error("has a footer that does not fit its header", _AGAIN)
        (directory,) = image.fields("<Q", header + 56)
    image.check_disk(disk)
    _check_grains(image, header, disk, directory * SECTOR)
    return disk


def _check_vmdk_header(image: Image, header: int) -> int:
    """Refuses a header or descriptor that names other files. Returns the disk's size."""
    (version,) = image.fields("<I", header + 4)
    capacity, _, descriptor, _ = image.fields("<QQQQ", header + 12)
    if version not in (1, 2, 3):
        raise image.error(f"is a VMDK of version {version}, not 1, 2 or 3", CONVERT)
    if capacity == 0:  # QEMU would open the files that the descriptor names
        raise image.refers("other files by its descriptor")
    for start in sorted({descriptor * SECTOR, _QEMU_DESCRIPTOR}):
        if start >= image.size:
            raise image.cut(start)
        if start:
            length = min(_DESCRIPTOR, image.size - start)
            _check_descriptor(image, image.bytes_at(start, length).split(b"\0")[0])
    return capacity * SECTOR


def _check_descriptor(image: Image, text: bytes) -> None:
    fields = {
        match[1].lower(): match[2].strip(b'" \t\r').lower()
        for match in re.finditer(rb"^[ \t]*(\w+)[ \t]*=(.*)$", text, re.MULTILINE)
    }
    parent = fields.get(b"parentcid", b"ffffffff")
    if b"parentfilenamehint" in text.lower() or parent != b"ffffffff":
        raise image.refers("a parent")
    kind = fields.get(b"createtype", b"monolithicsparse").decode(errors="replace")
    extents = [match[1].upper() for match in _EXTENT.finditer(text)]
    if kind not in _SPARSE_TYPES or len(extents) > 1 or extents not in ([], [b"SPARSE"]):
        raise image.refers("other files as its extents")


def _check_grains(image: Image, header: int, disk: int, directory: int) -> None:
    """Checks that the file holds every grain."""
    flags, _, grain = image.fields("<IQQ", header + 8)
    (per_table,) = image.fields("<I", header + 44)
    (algorithm,) = image.fields("<H", header + 77)
    packed = bool(flags & _PACKED_FLAG) or algorithm == _DEFLATE
    largest = _LARGEST_PACKED_GRAIN if packed else 128 * KIB
    if not 1 <= grain <= largest or not 1 <= per_table <= _LONGEST_GRAIN_TABLE:
        raise image.error("has an invalid VMDK header", _AGAIN)
    count = -(-disk // (grain * SECTOR * per_table))
    if 4 * count > _LONGEST_TABLE:
        raise image.error("has an invalid VMDK header", _AGAIN)

    def tables() -> Iterator[int]:
        entries = chain.from_iterable(image.stream("I", "little", directory, count))
        return (table for table in entries if table > 1)  # else there is no table

    _check_apart(image, tables, image.size // SECTOR + 1)
    for table in tables():
        grains = image.numbers("I", "little", table * SECTOR, per_table)
        last = max(grains) * SECTOR
        if last and packed:  # its header has its length, after its number
            (length,) = image.fields("<I", last + 8)
            image.must_hold(last + 12 + length)
        elif last:
            image.must_hold(last + min(grain * SECTOR, disk))


# ---- vhd

_FIXED, _DYNAMIC = 2, 3
_NO_BLOCK = 0xFFFFFFFF


def _read_vhd(image: Image) -> int:
    dynamic = image.bytes_at(0, 8) == b"conectix"
    footer = 0 if dynamic else image.size - image.size % SECTOR - SECTOR
    (offset,) = image.fields(">Q", footer + 16)
    (disk,) = image.fields(">Q", footer + 48)
    kind, checksum = image.fields(">II", footer + 60)
    if kind not in (_FIXED, _DYNAMIC):
        raise image.refers("a parent, as a differencing disk,")
    others = image.bytes_at(footer, 64) + image.bytes_at(footer + 68, SECTOR - 68)
    is_sound = checksum == ~sum(others) & 0xFFFFFFFF and not disk % SECTOR
    if (kind == _DYNAMIC) != dynamic or not is_sound:
        raise image.error("has an invalid VHD header", _AGAIN)
    image.check_disk(disk)
    if not dynamic:
        image.must_hold(disk + SECTOR)
    else:
        _check_blocks(image, offset, disk)
    return disk


def _check_blocks(image: Image, offset: int, disk: int) -> None:
    """Checks that the file holds every block of a dynamic disk."""
    (table,) = image.fields(">Q", offset + 16)
    count, block = image.fields(">II", offset + 28)
    is_sound = block >= SECTOR and not block & (block - 1) and count * block >= disk
    is_sound = is_sound and 4 * count <= _LONGEST_TABLE
    if image.bytes_at(offset, 8) != b"cxsparse" or not is_sound:
        raise image.error("has an invalid VHD header", _AGAIN)
    bitmap = -(-block // SECTOR // 8 // SECTOR) * SECTOR
    for last in _last_blocks(image, "big", table, -(-disk // block), absent_from=_NO_BLOCK):
        image.must_hold(last * SECTOR + bitmap + block)


def _last_blocks(
    image: Image, order: str, table: int, count: int, *, absent_from: int
) -> Iterator[int]:
    """The largest entry in each part of a table; entries from `absent_from` on mean no block."""
    for part in image.stream("I", order, table, count):
        last = max((entry for entry in part if entry < absent_from), default=None)
        if last is not None:
            yield last


# ---- vdi

_VDI_DYNAMIC, _VDI_STATIC = 1, 2
_VDI_BLOCK = MIB  # the only size that QEMU reads
_NOT_STORED = 0xFFFFFFFE  # this and the next number mean zeros, or a block never written


def _read_vdi(image: Image) -> int:
    version, _, kind = image.fields("<III", 68)
    table, data = image.fields("<II", 340)
    (disk, block, extra, count) = image.fields("<QIII", 368)
    link, parent = image.bytes_at(424, 16), image.bytes_at(440, 16)
    if version != 0x10001:
        raise image.error("is a VDI of an unknown version", CONVERT)
    if kind not in (_VDI_DYNAMIC, _VDI_STATIC) or any(link) or any(parent):
        raise image.refers("a parent, as a differencing disk,")
    is_sound = block == _VDI_BLOCK and not extra and count * block >= disk
    if not is_sound or 4 * count > _LONGEST_TABLE or (table | data) % SECTOR:
        raise image.error("has an invalid VDI header", _AGAIN)
    disk += -disk % SECTOR  # as QEMU does: VBoxManage writes any size
    image.check_disk(disk)
    for last in _last_blocks(image, "little", table, -(-disk // block), absent_from=_NOT_STORED):
        image.must_hold(data + last * block + min(block, disk))
    return disk


READERS: dict[str, Callable[[Image], int]] = {
    "raw": _read_raw,
    "qcow2": _read_qcow2,
    "vmdk": _read_vmdk,
    "vpc": _read_vhd,
    "vdi": _read_vdi,
}
"""For each format, by qemu-img's name, the function that checks an image's tables and returns the
size of its disk."""
