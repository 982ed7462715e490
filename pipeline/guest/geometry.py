"""What lies where on a raw disk: its partition table, and what each part begins with.

Read here, on the host, by parsers of our own: they are small, take a millisecond, and a disk that
was made to confuse them meets Python and not a C library with root's rights. Tables are read as the
kernel reads them, but for damaged ones, which are refused where the kernel would guess.

The sources of facts: the UEFI specification (GPT), the kernel's block/partitions/msdos.c and efi.c,
and util-linux's libblkid/src/superblocks for the places of magic numbers.
"""

from __future__ import annotations

import re
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from pipeline.errors import ImageFormatError
from pipeline.guest.superblock import read_superblock
from pipeline.guest.system import FileSystem, Partition, Place
from pipeline.model import KIB, format_size

SECTOR = 512
_BOOT_CODE = 440  # bytes of the first sector before an MBR's own data
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE
_LONGEST_CHAIN = 100  # of logical partitions, as the kernel has it
_MOST_ENTRIES = 1024  # of a GPT; all known tools write 128
_GPT = b"EFI PART"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What lies where on a disk."""

    disk_bytes: int
    table: str | None
    """`mbr`, `gpt`, or None where there is none."""
    partitions: tuple[Partition, ...]
    """In the order of their numbers."""
    boot_code: bool
    """Whether the first sector holds a boot loader's code."""
    file_systems: tuple[FileSystem, ...]
    """What each partition begins with, or the whole disk; `mount` is None. Extended partitions are
    not among them, nor is a disk on which nothing is recognised."""


def read_geometry(disk: Path) -> Geometry:
    """What lies where on a raw disk, which may hold anything. A few reads, whatever its size.

    Raises ImageFormatError for a partition table that is damaged, and for a disk that ends before
    its last partition does.
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
    """The disk's bytes; beyond its end there are none."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self.size = file.seek(0, 2)

    def read(self, at: int, count: int) -> bytes:
        """Bytes at an offset; fewer at the end, and none beyond it."""
        if at >= self.size:  # a table may name any place, also one that no file can have
            return b""
        self._file.seek(at)
        return self._file.read(count)

    def damaged(self, how: str) -> ImageFormatError:
        return ImageFormatError(
            f"the image's partition table is damaged: {how}",
            where=str(self._path),
            todo="get the image anew from where it came, and compare its checksum",
        )

    def truncated(self, what: str, end: int) -> ImageFormatError:
        return ImageFormatError(
            f"the image is truncated: {what} ends at {format_size(end)}, and the image has "
            f"{format_size(self.size)}",
            where=str(self._path),
            todo="get the image anew from where it came, and compare its checksum",
        )


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
            return None, ()  # a bare file system, whose boot sector ends with the same two bytes
        raise image.damaged("the MBR's entries are none")
    return "mbr", tuple(_read_mbr(image, first, entries))


@dataclass(frozen=True)
class _Entry:
    """An entry of an MBR, or of the chain of logical partitions; in sectors."""

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
    """The logical partitions: a chain of sectors, each with one of them and the next link."""
    at, seen = extended.start, set[int]()
    number = 5
    while at not in seen:
        seen.add(at)
        if len(seen) > _LONGEST_CHAIN:
            raise image.damaged("its chain of logical partitions has no end")
        sector = image.read(at * SECTOR, SECTOR)
        if sector[510:] != b"\x55\xaa":
            if at * SECTOR >= image.size:
                raise image.truncated("the extended partition", _end(extended) * SECTOR)
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


def _end(entry: _Entry) -> int:
    return entry.start + entry.count


def _read_gpt(image: _Image) -> Iterator[Partition]:
    header = image.read(SECTOR, SECTOR)
    if header[:8] != _GPT:
        if image.read(4 * KIB, 8) == _GPT:
            raise image.damaged("it is for a disk with sectors of 4,096 bytes")
        raise image.damaged("the GPT that the MBR speaks of is not there")
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
    for each in partitions:
        if each.start + each.size > image.size:
            raise image.truncated(f"partition {each.number}", each.start + each.size)
    by_place = sorted(
        (each for each in partitions if not is_extended(each)), key=lambda each: each.start
    )
    for one, other in pairwise(by_place):
        if one.start + one.size > other.start:
            raise image.damaged(f"partitions {one.number} and {other.number} overlap")


def is_extended(partition: Partition) -> bool:
    """Whether a partition only holds others."""
    return len(partition.type) == 2 and int(partition.type, 16) in _EXTENDED


def _has_boot_code(image: _Image) -> bool:
    first = image.read(0, SECTOR)
    return first[510:] == b"\x55\xaa" and any(first[:_BOOT_CODE])


# ---- what a partition begins with


def _file_systems(
    image: _Image, table: str | None, partitions: tuple[Partition, ...]
) -> Iterator[FileSystem]:
    if table is None:
        found = _look(image, 0, image.size)
        if found is not None:
            needed = _bytes_of(image, 0)
            if needed is not None and needed > image.size:
                raise image.truncated(f"its {found.type} file system", needed)
            place = Place(start=0, size=image.size)
            yield FileSystem(place=place, type=found.type, uuid=found.uuid, label=found.label)
        return
    for each in partitions:
        if not is_extended(each):
            found = _look(image, each.start, each.size) or Found("")
            place = Place(partition=each.number, start=each.start, size=each.size)
            yield FileSystem(place=place, type=found.type, uuid=found.uuid, label=found.label)


@dataclass(frozen=True)
class Found:
    """What was recognised, in the words of blkid."""

    type: str
    uuid: str = ""
    label: str = ""


HEAD = 70 * KIB  # btrfs and reiserfs have their superblocks at 64 KiB


def _look(image: _Image, start: int, size: int) -> Found | None:
    """What begins at an offset. What covers others comes first: a member of a mirror looks like the
    file system in it."""
    head = image.read(start, min(HEAD, size))
    return _find_raid(image, start, size, head) or recognise(head)


def recognise(head: bytes) -> Found | None:
    """What a partition or volume holds that begins so; `HEAD` bytes tell."""
    return next(filter(None, (look(head) for look in _LOOKS)), None)


def _find_raid(image: _Image, start: int, size: int, head: bytes) -> Found | None:
    """A member of Linux's software RAID: its superblock is at the start or near the end."""
    magic = 0xA92B4EFC.to_bytes(4, "little")
    new = (size // SECTOR - 16) & ~7
    old = (size & ~(64 * KIB - 1)) - 64 * KIB
    tails = (image.read(start + at, 4) for at in (new * SECTOR, old) if at > 0)
    places = (head[:4], head[4096:4100], *tails)
    return Found("linux_raid_member") if magic in places else None


def _find_luks(head: bytes) -> Found | None:
    if head[:6] != b"LUKS\xba\xbe":
        return None
    label = _text(head[24:72]) if head[6:8] == b"\0\2" else ""
    return Found("crypto_LUKS", _text(head[168:208]), label)


def _find_lvm(head: bytes) -> Found | None:
    for at in range(0, 4 * SECTOR, SECTOR):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            name = _text(head[at + 32 : at + 64])
            cuts = (0, 6, 10, 14, 18, 22, 26, 32)
            parts = (name[a:b] for a, b in pairwise(cuts))
            return Found("LVM2_member", "-".join(parts))
    return None


def _find_ext(head: bytes) -> Found | None:
    """The type is told by the features, as libblkid's ext.c does it."""
    block = head[1024:2048]
    if len(block) < 1024 or block[56:58] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 92)
    if incompatible & 0x8:
        kind = "jbd"
    elif incompatible & ~0x16 or read_only & ~0x7:
        kind = "ext4"
    else:
        kind = "ext3" if compatible & 0x4 else "ext2"
    return Found(kind, str(uuid.UUID(bytes=block[104:120])), _text(block[120:136]))


def _find_xfs(head: bytes) -> Found | None:
    if head[:4] != b"XFSB" or len(head) < SECTOR:
        return None
    return Found("xfs", str(uuid.UUID(bytes=head[32:48])), _text(head[108:120]))


def _find_btrfs(head: bytes) -> Found | None:
    block = head[64 * KIB : 68 * KIB]
    if block[64:72] != b"_BHRfS_M":
        return None
    return Found("btrfs", str(uuid.UUID(bytes=block[32:48])), _text(block[0x12B:0x22B]))


def _find_swap(head: bytes) -> Found | None:
    for page in (4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE") and len(head) >= 1068:
            return Found("swap", str(uuid.UUID(bytes=head[1036:1052])), _text(head[1052:1068]))
    return None


def _find_fat(head: bytes) -> Found | None:
    if head[510:512] != b"\x55\xaa":
        return None
    for kind, at in ((b"FAT32   ", 82), (b"FAT16   ", 54), (b"FAT12   ", 54)):
        if head[at : at + 8] == kind:
            (serial,) = struct.unpack_from("<I", head, at - 15)
            label = _text(head[at - 11 : at]).rstrip()
            number = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
            return Found("vfat", number, "" if label == "NO NAME" else label)
    return None


# What is only told, since no root file system of ours can be of these kinds.
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
    for kind, at, magic in _OTHERS:
        if head[at : at + len(magic)] == magic:
            return Found(kind)
    return None


_LOOKS: tuple[Callable[[bytes], Found | None], ...] = (
    *(_find_luks, _find_lvm, _find_ext, _find_xfs, _find_btrfs, _find_swap),
    *(_find_other, _find_fat),
)


def _text(stored: bytes) -> str:
    """A name of a superblock, without what would disturb a terminal or a log."""
    text = stored.split(b"\0")[0].decode("utf-8", "replace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


def _bytes_of(image: _Image, start: int) -> int | None:
    return file_system_bytes(image.read(start, HEAD))


def file_system_bytes(head: bytes) -> int | None:
    """How large a file system says that it is, by its first 70 KiB; None where it does not."""
    if head[:4] == b"XFSB" and len(head) >= SECTOR:
        size, blocks = struct.unpack_from(">IQ", head, 4)
        return int(size * blocks)
    if head[64 * KIB + 64 : 64 * KIB + 72] == b"_BHRfS_M":
        (size,) = struct.unpack_from("<Q", head, 64 * KIB + 112)
        return int(size)
    found = read_superblock(head)
    return None if found is None else found.bytes
