"""Reads a raw disk's partition table, and recognises the content of each partition.

Our own small parsers take a millisecond, and a malicious disk meets Python here rather than a C
library that runs as root. They read tables as the kernel does, but refuse a damaged table where the
kernel would guess.

Sources: the UEFI specification (GPT), the kernel's block/partitions/msdos.c and efi.c, and
util-linux's libblkid/src/superblocks for the offsets of magic numbers.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import IO

from pipeline.disk.containers import SECTOR
from pipeline.disk.superblock import read_superblock
from pipeline.disk.system import FileSystem, Geometry, Partition, Place
from pipeline.disk.untrusted import to_name
from pipeline.errors import ImageFormatError
from pipeline.model import KIB, format_size

_BOOT_CODE = 440  # bytes of the first sector before the MBR's data
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE
_LONGEST_CHAIN = 100  # logical partitions: the kernel's limit
_MOST_ENTRIES = 1024  # of a GPT; all known tools write 128
_GPT = b"EFI PART"


def read_geometry(disk: Path) -> Geometry:
    """Reads the geometry of an untrusted raw disk of any size, in a few reads. No file system has
    a `mount`.

    Raises ImageFormatError if the partition table is damaged, or the disk ends before a partition.
    """
    with disk.open("rb") as file:
        image = _Image(file, disk)
        table, partitions = _read_table(image)
        _check_partitions(image, partitions)
        return Geometry(
            disk_bytes=image.size,
            table=table,
            partitions=partitions,
            boot_code=_has_boot_code(image),
            file_systems=tuple(_file_systems(image, table, partitions)),
        )


class _Image:
    """Reads the bytes of a disk."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self.size = file.seek(0, 2)

    def read(self, at: int, count: int) -> bytes:
        """Reads bytes at an offset: fewer at the disk's end, and none beyond it."""
        if at >= self.size:  # a table may contain offsets that are too large for any file
            return b""
        self._file.seek(at)
        return self._file.read(count)

    def damaged(self, how: str) -> ImageFormatError:
        return self._error(f"the image's partition table is damaged: {how}")

    def truncated(self, what: str, end: int) -> ImageFormatError:
        sizes = f"ends at {format_size(end)}, and the image has {format_size(self.size)}"
        return self._error(f"the image is truncated: {what} {sizes}")

    def _error(self, what: str) -> ImageFormatError:
        todo = "fetch the image again and compare its checksum"
        return ImageFormatError(what, where=str(self._path), todo=todo)


# ---- partition tables


def _read_table(image: _Image) -> tuple[str | None, tuple[Partition, ...]]:
    first = image.read(0, SECTOR)
    if first[510:] != b"\x55\xaa":
        if image.read(SECTOR, 8) == _GPT:
            raise image.damaged("it is a GPT without the protective MBR before it")
        return None, ()
    entries = [_Entry.unpack(first, 446 + 16 * index) for index in range(4)]
    if any(entry.kind == _PROTECTIVE for entry in entries):
        return "gpt", tuple(_read_gpt(image))
    if all(entry.kind == 0 for entry in entries):
        return None, ()
    if any(entry.flag not in (0, 0x80) or (entry.kind and entry.start == 0) for entry in entries):
        if _look(image, 0, image.size) is not None:
            return None, ()  # a bare file system whose boot sector has the MBR's signature
        raise image.damaged("the MBR's entries are invalid")
    return "mbr", tuple(_read_mbr(image, first, entries))


@dataclass(frozen=True)
class _Entry:
    """An entry of an MBR or of the chain of logical partitions, in sectors."""

    flag: int
    kind: int
    start: int
    count: int

    @staticmethod
    def unpack(sector: bytes, at: int) -> _Entry:
        flag, kind, start, count = struct.unpack_from("<B3xB3xII", sector, at)
        return _Entry(flag, kind if count else 0, start, count)

    def partition(self, number: int, identifier: int, start: int) -> Partition:
        return Partition(
            number=number,
            start=start * SECTOR,
            size=self.count * SECTOR,
            type=f"{self.kind:02x}",
            bootable=self.flag == 0x80,
            uuid=f"{identifier:08x}-{number:02x}",
        )


def _read_mbr(image: _Image, first: bytes, entries: list[_Entry]) -> Iterator[Partition]:
    (identifier,) = struct.unpack_from("<I", first, _BOOT_CODE)
    for number, entry in enumerate(entries, 1):
        if entry.kind:
            yield entry.partition(number, identifier, entry.start)
    extended = [entry for entry in entries if entry.kind in _EXTENDED]
    if len(extended) > 1:
        raise image.damaged("it has two extended partitions")
    for entry in extended:
        yield from _read_logical(image, identifier, entry)


def _read_logical(image: _Image, identifier: int, extended: _Entry) -> Iterator[Partition]:
    """Logical partitions form a chain of sectors, each with one partition and the next link."""
    at, seen = extended.start, set[int]()
    number = 5
    while at not in seen:
        seen.add(at)
        if len(seen) > _LONGEST_CHAIN:
            raise image.damaged("its chain of logical partitions has no end")
        sector = image.read(at * SECTOR, SECTOR)
        if sector[510:] != b"\x55\xaa":
            if at * SECTOR >= image.size:
                end = (extended.start + extended.count) * SECTOR
                raise image.truncated("the extended partition", end)
            raise image.damaged("its chain of logical partitions is broken")
        entries = [_Entry.unpack(sector, 446 + 16 * index) for index in range(2)]
        for entry in entries:
            if entry.kind and entry.kind not in _EXTENDED:
                yield entry.partition(number, identifier, at + entry.start)
                number += 1
        links = [entry for entry in entries if entry.kind in _EXTENDED]
        if not links:
            return
        at = extended.start + links[0].start
    raise image.damaged("its chain of logical partitions leads back into itself")


def _read_gpt(image: _Image) -> Iterator[Partition]:
    header = image.read(SECTOR, SECTOR)
    if header[:8] != _GPT:
        if image.read(4 * KIB, 8) == _GPT:
            raise image.damaged("it is for a disk with sectors of 4,096 bytes")
        raise image.damaged("the GPT that the MBR announces is missing")
    if len(header) < SECTOR:
        raise image.damaged("the image ends in the GPT's header")
    size, checksum = struct.unpack_from("<II", header, 12)
    (own,) = struct.unpack_from("<Q", header, 24)
    at, count, width, entries_sum = struct.unpack_from("<QIII", header, 72)
    blank = header[:16] + bytes(4) + header[20:size]
    if not 92 <= size <= SECTOR or own != 1 or zlib.crc32(blank) != checksum:
        raise image.damaged("the checksum of the GPT's header is wrong")
    if width not in (128, 256, 512) or count > _MOST_ENTRIES:
        raise image.damaged(f"its GPT has {count} entries of {width} bytes")
    entries = image.read(at * SECTOR, count * width)
    if len(entries) < count * width:
        raise image.damaged("the GPT's entries lie behind the image's end")
    if zlib.crc32(entries) != entries_sum:
        raise image.damaged("the checksum of the GPT's entries is wrong")
    for number in range(1, count + 1):
        entry = entries[(number - 1) * width : number * width]
        if entry[:16] == bytes(16):
            continue
        start, last, flags = struct.unpack_from("<QQQ", entry, 32)
        if last < start:
            raise image.damaged(f"partition {number} ends before it starts")
        yield Partition(
            number=number,
            start=start * SECTOR,
            size=(last - start + 1) * SECTOR,
            type=_guid(entry[:16]).upper(),
            bootable=bool(flags & 4),
            uuid=_guid(entry[16:32]),
            name=entry[56:128].decode("utf-16-le", "replace").split("\0")[0],
        )


def _guid(stored: bytes) -> str:
    return str(uuid.UUID(bytes_le=stored))


def _check_partitions(image: _Image, partitions: tuple[Partition, ...]) -> None:
    for partition in partitions:
        end = partition.start + partition.size
        if end > image.size:
            raise image.truncated(f"partition {partition.number}", end)
    real = (partition for partition in partitions if not is_extended(partition))
    for one, other in pairwise(sorted(real, key=attrgetter("start"))):
        if one.start + one.size > other.start:
            raise image.damaged(f"partitions {one.number} and {other.number} overlap")


def is_extended(partition: Partition) -> bool:
    """Whether a partition is a container for logical partitions."""
    return len(partition.type) == 2 and int(partition.type, 16) in _EXTENDED


def _has_boot_code(image: _Image) -> bool:
    first = image.read(0, SECTOR)
    return first[510:] == b"\x55\xaa" and any(first[:_BOOT_CODE])


# ---- contents


def _file_systems(
    image: _Image, table: str | None, partitions: tuple[Partition, ...]
) -> Iterator[FileSystem]:
    if table is None:
        whole = _look(image, 0, image.size)
        if whole is not None:
            needed = file_system_bytes(image.read(0, HEAD))
            if needed is not None and needed > image.size:
                raise image.truncated(f"its {whole.type} file system", needed)
            yield whole.at(Place(start=0, size=image.size))
        return
    for partition in partitions:
        if not is_extended(partition):
            start, size = partition.start, partition.size
            content = _look(image, start, size) or Found("")
            yield content.at(Place(partition=partition.number, start=start, size=size))


@dataclass(frozen=True)
class Found:
    """The recognised content of a partition or volume, in blkid's terms."""

    type: str
    uuid: str = ""
    label: str = ""

    def at(self, place: Place) -> FileSystem:
        """The same as a file system at a place."""
        return FileSystem(place=place, type=self.type, uuid=self.uuid, label=self.label)


HEAD = 70 * KIB  # btrfs and reiserfs have their superblocks at 64 KiB


def _look(image: _Image, start: int, size: int) -> Found | None:
    """Recognises what starts at an offset. RAID comes first: a mirror's member looks like the file
    system in it."""
    head = image.read(start, min(HEAD, size))
    return _find_raid(image, start, size, head) or recognise(head)


def recognise(head: bytes) -> Found | None:
    """Recognises a partition or volume from its first `HEAD` bytes."""
    return next(filter(None, (look(head) for look in _LOOKS)), None)


def _find_raid(image: _Image, start: int, size: int, head: bytes) -> Found | None:
    """Recognises a member of Linux's software RAID: its superblock is at the start or the end."""
    magic = 0xA92B4EFC.to_bytes(4, "little")
    new = (size // SECTOR - 16) & ~7
    old = (size & ~(64 * KIB - 1)) - 64 * KIB
    tails = (image.read(start + at, 4) for at in (new * SECTOR, old) if at > 0)
    places = (head[:4], head[4096:4100], *tails)
    return Found("linux_raid_member") if magic in places else None


def _find_luks(head: bytes) -> Found | None:
    if head[:6] != b"LUKS\xba\xbe":
        return None
    label = to_name(head[24:72]) if head[6:8] == b"\0\2" else ""
    return Found("crypto_LUKS", to_name(head[168:208]), label)


def _find_lvm(head: bytes) -> Found | None:
    for at in range(0, 4 * SECTOR, SECTOR):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            name = to_name(head[at + 32 : at + 64])
            parts = (name[a:b] for a, b in pairwise((0, 6, 10, 14, 18, 22, 26, 32)))
            return Found("LVM2_member", "-".join(parts))
    return None


def _find_ext(head: bytes) -> Found | None:
    block = read_superblock(head)
    return None if block is None else Found(block.type, block.uuid, block.label)


# Type, offset of the magic and the magic; offsets of UUID and label, and the label's length.
_NAMED = (
    ("xfs", 0, b"XFSB", 32, 108, 12),
    ("btrfs", 64 * KIB + 64, b"_BHRfS_M", 64 * KIB + 32, 64 * KIB + 0x12B, 0x100),
    *(
        ("swap", page - 10, magic, 1036, 1052, 16)
        for page in (4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB)
        for magic in (b"SWAPSPACE2", b"SWAP-SPACE")
    ),
)


def _find_named(head: bytes) -> Found | None:
    for kind, at, magic, id_at, label_at, length in _NAMED:
        if head.startswith(magic, at) and len(head) >= label_at + length:
            identifier = uuid.UUID(bytes=head[id_at : id_at + 16])
            return Found(kind, str(identifier), to_name(head[label_at : label_at + length]))
    return None


def _find_fat(head: bytes) -> Found | None:
    if head[510:512] != b"\x55\xaa":
        return None
    for kind, at in ((b"FAT32   ", 82), (b"FAT16   ", 54), (b"FAT12   ", 54)):
        if head[at : at + 8] == kind:
            (serial,) = struct.unpack_from("<I", head, at - 15)
            label = to_name(head[at - 11 : at]).rstrip()
            number = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
            return Found("vfat", number, "" if label == "NO NAME" else label)
    return None


# These types are only named: none can be our root file system.
_OTHERS = (
    ("BitLocker", 3, b"-FVE-FS-"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("jfs", 32 * KIB, b"JFS1"),
    ("iso9660", 32 * KIB + 1, b"CD001"),
    ("reiserfs", 64 * KIB + 52, b"ReIsEr"),
)


def _find_other(head: bytes) -> Found | None:
    return next((Found(kind) for kind, at, magic in _OTHERS if head.startswith(magic, at)), None)


_LOOKS: tuple[Callable[[bytes], Found | None], ...] = (
    *(_find_luks, _find_lvm, _find_ext, _find_named, _find_other, _find_fat),
)


def file_system_bytes(head: bytes) -> int | None:
    """The size of a file system by its first `HEAD` bytes; None if they do not show it."""
    if head[:4] == b"XFSB" and len(head) >= SECTOR:
        size, blocks = struct.unpack_from(">IQ", head, 4)
        return int(size * blocks)
    if head[64 * KIB + 64 : 64 * KIB + 72] == b"_BHRfS_M":
        return int(struct.unpack_from("<Q", head, 64 * KIB + 112)[0])
    superblock = read_superblock(head)
    return None if superblock is None else superblock.bytes or None
