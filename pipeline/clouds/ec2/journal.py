"""The notes of an upload, kept beside its build, so that a killed one goes on where it was.

The token of StartSnapshot is noted before it is used: the same token with the same parameters
returns the same snapshot, also where the first answer was lost. A block's line is written after EBS
took the block, and need not last: a block whose line is lost is sent again.

The file is text, not a database: after a power cut the token and all whole lines can still be read
though nothing but the token was forced to the disk.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from pipeline import records
from pipeline.clouds.ec2.blocks import (
    MAX_VOLUME_GIB,
    Digests,
    count_blocks,
    recording,
    write_record,
)
from pipeline.model import GIB, Sha256

_FORMAT = 2
_HEADER = ("token", "content", "region", "start", "chain", "encrypted", "kms_key")
_SHAPE = {
    "format": int,
    "token": re.compile("[!-~]{1,64}"),
    "content": str,
    "region": str,
    "start": {"VolumeSize": int},
    "chain": int,
    "encrypted": bool,
    "kms_key": (str, None),
}
_BLOCK = re.compile(rb"block (\d{1,12}) ([0-9a-f]{64})\n")
_SNAPSHOT = re.compile(rb"snapshot (snap-[0-9a-zA-Z]+) (\d{1,18})\n")
_COMPLETING = b"completing\n"


@dataclass
class Journal:
    """One upload's notes. `begin` writes new ones, `read` finds those of an earlier run. What
    writes them raises NoSpaceError and StoreError."""

    file: Path
    _: KW_ONLY
    content: Sha256
    region: str
    start: Mapping[str, object]
    """The parameters of StartSnapshot, without the token."""
    chain: int = 0
    """How many deltas will lie between the snapshot and a full upload."""
    encrypted: bool = False
    kms_key: str | None = None
    """The snapshot's key, which `start` does not name where there is a parent."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    sent: Digests = field(init=False)
    """The blocks that EBS has taken."""
    snapshot_id: str | None = None
    started_at: int = 0
    """When StartSnapshot answered, in seconds since the epoch."""
    completing: bool = False
    """CompleteSnapshot may have been called."""
    _opened: BinaryIO | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        volume_gib = self.start["VolumeSize"]
        if not isinstance(volume_gib, int):
            raise TypeError("the volume's size is no number")
        self.sent = Digests(count_blocks(volume_gib * GIB))

    def begin(self) -> Self:
        """Notes the token. It lasts when this returns."""
        header = {"format": _FORMAT} | {name: getattr(self, name) for name in _HEADER}
        write_record(self.file, [json.dumps(header).encode() + b"\n"])
        return self

    @classmethod
    def read(cls, file: Path) -> Journal | None:
        """The notes in a file, up to a cut line; None where even the line of the token is cut."""
        try:
            with records.opened(file) as opened:
                journal = cls._parse_header(file, opened.readline())
                journal._take(opened)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return journal

    @classmethod
    def _parse_header(cls, file: Path, line: bytes) -> Journal:
        header = records.parse(line, _SHAPE)
        if header["format"] != _FORMAT:
            raise ValueError("another format")
        if not 0 < header["start"]["VolumeSize"] <= MAX_VOLUME_GIB:
            raise ValueError("no volume is so large")
        return cls(file, **{name: header[name] for name in _HEADER})

    @property
    def parent_id(self) -> str | None:
        """The snapshot that this one is a delta to."""
        parent = self.start.get("ParentSnapshotId")
        return None if parent is None else str(parent)

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if match := _BLOCK.fullmatch(line):
                number = int(match[1])
                if number < self.sent.blocks:
                    self.sent.note(number, bytes.fromhex(match[2].decode()))
            elif match := _SNAPSHOT.fullmatch(line):
                self.snapshot_id = match[1].decode()
                self.started_at = int(match[2])
            elif line == _COMPLETING:
                self.completing = True

    def note_snapshot(self, snapshot_id: str) -> None:
        """Notes what StartSnapshot answered. It lasts when this returns."""
        self.snapshot_id, self.started_at = snapshot_id, int(time.time())
        self._write(f"snapshot {snapshot_id} {self.started_at}\n".encode(), lasting=True)

    def note_blocks(self, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Notes blocks that EBS has taken."""
        lines = []
        for number, digest in blocks:
            self.sent.note(number, digest)
            lines.append(b"block %d %s\n" % (number, digest.hex().encode()))
        if lines:
            self._write(b"".join(lines), lasting=False)

    def note_completing(self) -> None:
        """Notes that all blocks were sent. It lasts, and with it all that was noted before."""
        self.completing = True
        self._write(_COMPLETING, lasting=True)

    def remove(self) -> None:
        """Removes the notes."""
        self.close()
        with recording(self.file):
            self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves the notes for a later run."""
        if self._opened is not None:
            with suppress(OSError):  # a block whose line is lost is sent again
                self._opened.close()
            self._opened = None

    def _write(self, text: bytes, *, lasting: bool) -> None:
        with recording(self.file):
            if self._opened is None:
                # Without a buffer nothing is left to be written, and to fail, when it is closed.
                self._opened = self.file.open("ab", buffering=0)
                # The last line may be cut, and would swallow the first one that follows.
                text = b"\n" + text
            left = memoryview(text)
            while left:
                left = left[self._opened.write(left) :]
            if lasting:
                os.fsync(self._opened.fileno())


def journal_file(records: Path) -> Path:
    """The file of an upload's notes. All files of the upload have names that start as `records`."""
    return records.with_name(f"{records.name}.journal")
