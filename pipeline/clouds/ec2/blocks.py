"""A disk as EBS sees it: blocks of 512 KiB, compared by their SHA-256.

`Digests` holds a digest of every block that is not all zeros. A `BlockIndex` says which snapshot
holds those blocks, and is kept beside the build: the next build of the appliance sends only the
blocks that differ from it. (EBS's own block tokens are no digests, and expire.)
"""

from __future__ import annotations

import base64
import glob
import hashlib
import heapq
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipeline import records, sparse
from pipeline.errors import NoSpaceError, StoreError, translated
from pipeline.model import GIB, KIB, Sha256
from pipeline.store import sync

BLOCK = 512 * KIB
"""The only size of a block that EBS takes."""
ZEROS = bytes(BLOCK)
ZEROS_DIGEST = hashlib.sha256(ZEROS).digest()

MAX_VOLUME_GIB = 1 << 16
"""The largest volume that EBS has."""

MAX_CHAIN = 16
"""How many deltas may follow a full upload. EBS sets no limit, but a block that went wrong once
would stay wrong in all deltas that follow; a full upload ends that."""

CANDIDATES = 8  # indexes whose snapshots are looked up, the newest first: each costs a call

_SIZE = hashlib.sha256().digest_size
_NONE = bytes(_SIZE)
_PAGE = 4096  # entries that are looked at together
_FORMAT = 1
_HEADER = {
    "snapshot": "snapshot_id",
    "region": "region",
    "parent": "parent_id",
    "chain": "chain",
    "volume_gib": "volume_gib",
    "content": "content",
    "encrypted": "encrypted",
    "kms_key": "kms_key",
}
"""The keys of an index's first line, and the fields that they hold."""
_SHAPE = {
    "format": int,
    "snapshot": str,
    "region": str,
    "parent": (str, None),
    "chain": int,
    "volume_gib": int,
    "content": str,
    "encrypted": bool,
    "kms_key": (str, None),
}


class Digests:
    """SHA-256 by block number, for the blocks that have one.

    A flat table, whose pages take memory only where a digest is noted: 64 bytes a MiB of data.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._table = mmap.mmap(-1, max(1, blocks) * _SIZE)

    def get(self, number: int) -> bytes | None:
        """The digest of a block; None where none is noted, or the block lies outside."""
        if not 0 <= number < self.blocks:
            return None
        digest = self._at(number)
        return None if digest == _NONE else digest

    def note(self, number: int, digest: bytes) -> None:
        """Notes the digest of a block. Raises IndexError for a block outside."""
        if not 0 <= number < self.blocks or len(digest) != _SIZE:
            raise IndexError(f"no block {number} of {self.blocks}, or no SHA-256")
        self._table[number * _SIZE : (number + 1) * _SIZE] = digest

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and digests in the order of the numbers."""
        return ((number, self._at(number)) for number in self.numbers())

    def numbers(self) -> Iterator[int]:
        """The numbers of the blocks that have a digest, in order."""
        for first in range(0, self.blocks, _PAGE):
            last = min(first + _PAGE, self.blocks)
            # Most of a large volume is empty, and is skipped a page at a time.
            if self._table[first * _SIZE : last * _SIZE] != _NONE * (last - first):
                yield from (number for number in range(first, last) if self._at(number) != _NONE)

    def summary(self) -> tuple[int, str]:
        """The number of digests, and the checksum that EBS calls LINEAR: the SHA-256, in base64, of
        all digests in the order of their blocks."""
        hashed, count = hashlib.sha256(), 0
        for number in self.numbers():
            hashed.update(self._at(number))
            count += 1
        return count, base64.b64encode(hashed.digest()).decode()

    def _at(self, number: int) -> bytes:
        return self._table[number * _SIZE : (number + 1) * _SIZE]


@dataclass(frozen=True, kw_only=True)
class BlockIndex:
    """The content of a completed snapshot."""

    snapshot_id: str
    region: str
    parent_id: str | None
    """The snapshot that this one is a delta to."""
    chain: int
    """How many deltas lie between it and a full upload; 0 for a full one."""
    volume_gib: int
    content: Sha256
    """Of the disk."""
    encrypted: bool
    kms_key: str | None
    digests: Digests

    def write(self, file: Path) -> None:
        """Writes it whole or not at all. Raises NoSpaceError and StoreError."""
        write_record(file, self._make_lines())

    def _make_lines(self) -> Iterator[bytes]:
        values = {key: getattr(self, name) for key, name in _HEADER.items()}
        hashed = hashlib.sha256()
        for line in itertools.chain(
            [json.dumps({"format": _FORMAT, **values}).encode() + b"\n"],
            (b"%d %s\n" % (n, digest.hex().encode()) for n, digest in self.digests.items()),
        ):
            hashed.update(line)
            yield line
        yield b"end %s\n" % hashed.hexdigest().encode()

    @classmethod
    def read(cls, file: Path) -> BlockIndex | None:
        """The index in a file; None where there is none, or not a whole one."""
        try:
            with records.opened(file) as opened:
                return cls._parse(opened)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None  # an index only saves work: without one everything is sent

    @classmethod
    def _parse(cls, lines: Iterable[bytes]) -> BlockIndex:
        lines = iter(lines)
        first = next(lines, b"")
        header = records.parse(first, _SHAPE)
        if header["format"] != _FORMAT or not 0 < header["volume_gib"] <= MAX_VOLUME_GIB:
            raise ValueError("another format")
        index = cls(
            **{name: header[key] for key, name in _HEADER.items()},
            digests=Digests(count_blocks(header["volume_gib"] * GIB)),
        )
        hashed = hashlib.sha256(first)
        for line in lines:
            number, digest = line.split()
            if number == b"end":
                if digest != hashed.hexdigest().encode():
                    raise ValueError("a line is damaged")
                return index
            hashed.update(line)
            index.digests.note(int(number), bytes.fromhex(digest.decode()))
        raise ValueError("the end is missing")


def index_file(records: Path) -> Path:
    """The file with the index of a build's snapshot. All files of the upload start with
    `records`."""
    return records.with_name(f"{records.name}.blocks")


def find_parent(
    builds: Path, name: str, region: str, volume_gib: int, usable: Callable[[str], bool]
) -> BlockIndex | None:
    """The newest snapshot of an appliance's builds that the next one can be a delta to.

    `builds` holds a folder for each build, with `<name>.blocks` in it where a snapshot was
    completed. `usable` tells whether a snapshot may be a parent: it exists, is completed and ours,
    and is encrypted as the site asks. None where no snapshot may, or the newest one's chain has
    reached its limit.
    """
    files = sorted(builds.glob(f"*/{glob.escape(name)}.blocks"), key=_modified, reverse=True)
    for file in files[:CANDIDATES]:
        index = BlockIndex.read(file)
        if index is None or index.region != region or index.volume_gib > volume_gib:
            continue
        if usable(index.snapshot_id):
            # An older one would do, but every later build would then be a delta to that one, and a
            # larger one.
            return index if index.chain < MAX_CHAIN else None
    return None


def count_blocks(size: int) -> int:
    """How many blocks it takes to hold `size` bytes."""
    return -(-size // BLOCK)


def find_blocks(descriptor: int) -> Iterator[int]:
    """The numbers of the blocks of a file that hold data, as its file system knows it: without
    holes, but with stored zeros."""
    following = 0
    for start, end in sparse.extents(descriptor):
        first = max(following, start // BLOCK)
        following = max(following, count_blocks(end))
        yield from range(first, following)


def read_block(descriptor: int, number: int, buffer: bytearray) -> None:
    """Reads one block into a buffer of its size, with zeros after the end of the file."""
    view, at = memoryview(buffer), number * BLOCK
    while view:
        count = os.preadv(descriptor, [view], at)
        if not count:
            view[:] = ZEROS[: len(view)]
            return
        view, at = view[count:], at + count


def digest_blocks(disk: Path, blocks: int) -> Digests:
    """The digests of a disk's blocks that are not all zeros, on a volume of `blocks` blocks. Raises
    StoreError."""
    digests, buffer = Digests(blocks), bytearray(BLOCK)
    with reading(disk), disk.open("rb", buffering=0) as opened:
        for number in find_blocks(opened.fileno()):
            read_block(opened.fileno(), number, buffer)
            if buffer != ZEROS:
                digests.note(number, hashlib.sha256(buffer).digest())
    return digests


def merge(*numbers: Iterator[int]) -> Iterator[int]:
    """Several ordered series of numbers as one, without repetitions."""
    return (number for number, _ in itertools.groupby(heapq.merge(*numbers)))


def write_record(file: Path, lines: Iterable[bytes]) -> None:
    """Writes a record of an upload whole or not at all. It lasts when this returns. Raises
    NoSpaceError and StoreError."""
    spare = file.with_name(f"{file.name}.new")
    with recording(file):
        with spare.open("wb") as opened:
            opened.writelines(lines)
            opened.flush()
            os.fsync(opened.fileno())
        spare.rename(file)
        sync(file.parent)


def recording(file: Path) -> AbstractContextManager[None]:
    """Turns an error of the file system about a record into NoSpaceError or StoreError."""
    return translated(
        lambda _: NoSpaceError(
            "no space for the record of the upload",
            where=str(file.parent),
            todo="free some space there, then run the same command again: it goes on where it was",
        ),
        lambda error: StoreError(
            f"the record of the upload cannot be written: {error.strerror or error}",
            where=str(file),
            todo="let this user write there (--build names another folder), then run the same "
            "command again",
        ),
    )


def reading(disk: Path) -> AbstractContextManager[None]:
    """Turns an error of the file system about a disk into StoreError."""

    def make(error: OSError) -> StoreError:
        return StoreError(
            f"the disk cannot be read: {error.strerror or error}",
            where=str(disk),
            todo="see that it is there, that this user may read it, and what the kernel says of "
            "its device (`dmesg`); then run the same command again",
        )

    return translated(make, make)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
