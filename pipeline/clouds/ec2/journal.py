"""What an upload notes beside its build, so that a killed one goes on where it was.

The token of StartSnapshot is noted before it is used: the same token with the same parameters gives
the same snapshot again, whether the answer was heard or not. A line for a block is written after
EBS took it, and need not last: a block whose line is lost is sent again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.clouds.ec2.blocks import Digests, count_blocks, recording, write_record
from pipeline.model import GIB, Sha256

_FORMAT = 2
_BLOCK = re.compile(rb"block (\d{1,12}) ([0-9a-f]{64})\n")
_SNAPSHOT = re.compile(rb"snapshot (snap-[0-9a-zA-Z]+) (\d+)\n")
_COMPLETING = b"completing\n"


@dataclass
class Journal:
    """One upload's notes. `begin` makes new ones, `read` finds those of an earlier run. What writes
    them raises NoSpaceError and StoreError."""

    file: Path
    token: str
    content: Sha256
    region: str
    start: Mapping[str, object]
    """The parameters of StartSnapshot, without the token."""
    chain: int
    """How many deltas will lie between the snapshot and a full upload."""
    encrypted: bool
    kms_key: str | None
    """That of the snapshot; with a parent `start` does not say it."""
    sent: Digests
    """What EBS has taken."""
    snapshot_id: str | None = None
    started_at: int = 0
    """When StartSnapshot answered: seconds of the epoch."""
    completing: bool = False
    """CompleteSnapshot may have been called."""
    _opened: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def begin(
        cls,
        file: Path,
        *,
        content: Sha256,
        region: str,
        start: Mapping[str, object],
        chain: int = 0,
        encrypted: bool = False,
        kms_key: str | None = None,
    ) -> Journal:
        """Notes a new token. It lasts when this returns."""
        token = secrets.token_hex(16)
        header = {
            "format": _FORMAT,
            "token": token,
            "content": content,
            "region": region,
            "start": start,
            "chain": chain,
            "encrypted": encrypted,
            "kms_key": kms_key,
        }
        write_record(file, [json.dumps(header).encode() + b"\n"])
        return cls(
            file=file,
            token=token,
            content=content,
            region=region,
            start=start,
            chain=chain,
            encrypted=encrypted,
            kms_key=kms_key,
            sent=_make_table(start),
        )

    @classmethod
    def read(cls, file: Path) -> Journal | None:
        """The notes in a file, as far as they are whole; None where not even the token is."""
        try:
            with file.open("rb") as opened:
                journal = cls._parse_header(file, opened.readline())
                journal._take(opened)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return journal

    @classmethod
    def _parse_header(cls, file: Path, line: bytes) -> Journal:
        header = json.loads(line)
        if header["format"] != _FORMAT:
            raise ValueError("another format")
        start = dict(header["start"])
        return cls(
            file=file,
            token=str(header["token"]),
            content=Sha256(header["content"]),
            region=str(header["region"]),
            start=start,
            chain=int(header["chain"]),
            encrypted=bool(header["encrypted"]),
            kms_key=header["kms_key"],
            sent=_make_table(start),
        )

    @property
    def parent_id(self) -> str | None:
        """The snapshot that this one is a delta to."""
        parent = self.start.get("ParentSnapshotId")
        return None if parent is None else str(parent)

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if found := _BLOCK.fullmatch(line):
                number = int(found[1])
                if number < self.sent.blocks:
                    self.sent.note(number, bytes.fromhex(found[2].decode()))
            elif found := _SNAPSHOT.fullmatch(line):
                self.snapshot_id = found[1].decode()
                self.started_at = int(found[2])
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
    """Where an upload's notes lie. `records` is what all files of the build's upload start with."""
    return records.with_name(f"{records.name}.journal")


def _make_table(start: Mapping[str, object]) -> Digests:
    volume_gib = start["VolumeSize"]
    if not isinstance(volume_gib, int):
        raise TypeError("the volume's size is no number")
    return Digests(count_blocks(volume_gib * GIB))
