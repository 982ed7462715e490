"""A disk as EBS sees it: blocks of 512 KiB, told apart by their SHA-256.

`Digests` holds one digest for each block that is not all zeros. With the snapshot that they were
sent to they are a `BlockIndex`, which lies beside the build: the next build of the appliance sends
only the blocks that differ from it. (EBS's own block tokens are no digests, and expire.)
"""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import sparse
from pipeline.errors import NoSpaceError, StoreError
from pipeline.model import GIB, KIB, Sha256
from pipeline.store import sync

BLOCK = 512 * KIB
"""The only size of a block that EBS takes."""
ZEROS = bytes(BLOCK)
ZEROS_DIGEST = hashlib.sha256(ZEROS).digest()

MAX_CHAIN = 16
"""So many deltas may follow a full upload. EBS itself sets no bound; but were one block wrong, by a
fault of ours or on the way, every delta would carry it on, and a full upload ends that."""

CANDIDATES = 8  # indexes that are asked for their snapshot, the newest first: each costs a call

_SIZE = hashlib.sha256().digest_size
_NONE = bytes(_SIZE)
_PAGE = 4096  # entries that are looked at together
_FORMAT = 1


class Digests:
    """SHA-256 by block number, for the blocks that have one.

    A flat table, whose pages take memory only where something is noted: 64 bytes a MiB of data.
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
            # Most of a large volume holds nothing, and is passed over a page at a time.
            if self._table[first * _SIZE : last * _SIZE] != _NONE * (last - first):
                yield from (each for each in range(first, last) if self._at(each) != _NONE)

    def summary(self) -> tuple[int, str]:
        """How many digests there are, and the checksum of all that EBS calls LINEAR: the SHA-256,
        in base64, of the digests in the order of their blocks."""
        hashed, count = hashlib.sha256(), 0
        for number in self.numbers():
            hashed.update(self._at(number))
            count += 1
        return count, base64.b64encode(hashed.digest()).decode()

    def _at(self, number: int) -> bytes:
        return self._table[number * _SIZE : (number + 1) * _SIZE]


@dataclass(frozen=True, kw_only=True)
class BlockIndex:
    """What a completed snapshot holds."""

    snapshot_id: str
    region: str
    parent_id: str | None
    """The snapshot that it was sent as a delta to."""
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
        header = {
            "format": _FORMAT,
            "snapshot": self.snapshot_id,
            "region": self.region,
            "parent": self.parent_id,
            "chain": self.chain,
            "volume_gib": self.volume_gib,
            "content": self.content,
            "encrypted": self.encrypted,
            "kms_key": self.kms_key,
        }
        write_record(file, self._make_lines(header))

    def _make_lines(self, header: dict[str, object]) -> Iterator[bytes]:
        hashed = hashlib.sha256()
        for line in itertools.chain(
            [json.dumps(header).encode() + b"\n"],
            (b"%d %s\n" % (each, found.hex().encode()) for each, found in self.digests.items()),
        ):
            hashed.update(line)
            yield line
        yield b"end %s\n" % hashed.hexdigest().encode()

    @classmethod
    def read(cls, file: Path) -> BlockIndex | None:
        """The index in a file; None where there is none, or not a whole one."""
        try:
            with file.open("rb") as opened:
                return cls._parse(opened)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None  # it only saves work: without it everything is sent

    @classmethod
    def _parse(cls, lines: Iterable[bytes]) -> BlockIndex:
        lines = iter(lines)
        first = next(lines, b"")
        header = json.loads(first)
        if header["format"] != _FORMAT:
            raise ValueError("another format")
        index = cls(
            snapshot_id=str(header["snapshot"]),
            region=str(header["region"]),
            parent_id=header["parent"],
            chain=int(header["chain"]),
            volume_gib=int(header["volume_gib"]),
            content=Sha256(header["content"]),
            encrypted=bool(header["encrypted"]),
            kms_key=header["kms_key"],
            digests=Digests(count_blocks(int(header["volume_gib"]) * GIB)),
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
    """Where the index of a build's snapshot lies. `records` is what all its files start with."""
    return records.with_name(f"{records.name}.blocks")


def find_parent(
    builds: Path, name: str, region: str, volume_gib: int, usable: Callable[[str], bool]
) -> BlockIndex | None:
    """The newest snapshot of an appliance's builds that the next one can be a delta to.

    `builds` holds a folder for each build, with `<name>.blocks` in it where a snapshot was
    completed. `usable` says of a snapshot whether it may be a parent: it is there, completed, ours,
    and encrypted as it must be. None where there is none, or its chain is as long as it may be.
    """
    files = sorted(builds.glob(f"*/{_escaped(name)}.blocks"), key=_modified, reverse=True)
    for file in files[:CANDIDATES]:
        index = BlockIndex.read(file)
        if index is None or index.region != region or index.volume_gib > volume_gib:
            continue
        if not usable(index.snapshot_id):
            continue
        # An older one would do, but each build would then be a delta to that one, and a larger one.
        return index if index.chain < MAX_CHAIN else None
    return None


def count_blocks(size: int) -> int:
    """How many blocks hold so many bytes."""
    return -(-size // BLOCK)


def find_blocks(descriptor: int) -> Iterator[int]:
    """The numbers of the blocks of a file that hold data, for all that its file system knows: holes
    are left out, stored zeros are not."""
    following = 0
    for start, end in sparse.extents(descriptor):
        first = max(following, start // BLOCK)
        following = max(following, count_blocks(end))
        yield from range(first, following)


def read_block(descriptor: int, number: int, buffer: bytearray) -> None:
    """Fills a buffer of one block; what lies after the end of the file reads as zeros."""
    view, at = memoryview(buffer), number * BLOCK
    while view:
        count = os.preadv(descriptor, [view], at)
        if not count:
            view[:] = ZEROS[: len(view)]
            return
        view, at = view[count:], at + count


def digest_blocks(disk: Path, blocks: int) -> Digests:
    """The digests of a disk's blocks that are not all zeros, on a volume of so many. Raises
    StoreError."""
    found, buffer = Digests(blocks), bytearray(BLOCK)
    with reading(disk), disk.open("rb", buffering=0) as opened:
        for number in find_blocks(opened.fileno()):
            read_block(opened.fileno(), number, buffer)
            if buffer != ZEROS:
                found.note(number, hashlib.sha256(buffer).digest())
    return found


def merge(*numbers: Iterator[int]) -> Iterator[int]:
    """Ordered numbers in one order, each once."""
    import heapq

    last = -1
    for number in heapq.merge(*numbers):
        if number != last:
            yield number
        last = number


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


@contextmanager
def recording(file: Path) -> Iterator[None]:
    """Turns what the file system says of a record into NoSpaceError and StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "no space for the record of the upload",
                where=str(file.parent),
                todo="free some space there, then run the same command again: it goes on where it "
                "was",
            ) from error
        raise StoreError(
            f"the record of the upload cannot be written: {error.strerror or error}",
            where=str(file),
            todo="let this user write there (--build names another folder), then run the same "
            "command again",
        ) from error


@contextmanager
def reading(disk: Path) -> Iterator[None]:
    """Turns what the file system says of a disk into StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the disk cannot be read: {error.strerror or error}",
            where=str(disk),
            todo="see that it is there, that this user may read it, and what the kernel says of "
            "its device (`dmesg`); then run the same command again",
        ) from error


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)
