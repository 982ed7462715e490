"""A disk becomes a completed snapshot by the EBS direct APIs: whole, or as a delta to another.

Beside the build lie `<records>.journal` while the upload goes on (see `journal.py`) and
`<records>.blocks` when the snapshot is completed (see `blocks.py`). Wherever a run was killed, the
same call again ends with the one snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.clouds.ec2.aws import Cut, NoCredentials, Outage, Refused, is_transient, retrying
from pipeline.clouds.ec2.blocks import (
    BLOCK,
    BlockIndex,
    Digests,
    count_blocks,
    digest_blocks,
    index_file,
    reading,
)
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import Journal, journal_file
from pipeline.clouds.ec2.transfer import UNKNOWN_SECONDS, Sent, SnapshotGone, Transfer, make_changed
from pipeline.errors import PhantomError, UploadError
from pipeline.model import GIB, Progress, Sha256

IDLE_MINUTES = 24 * 60
"""After so long without a block EBS cancels a pending snapshot: a killed upload can go on for a
day, and one that is forgotten costs nothing for longer."""

COMPLETION_SECONDS = 3600.0  # EBS takes seconds to minutes; it promises nothing
HEARD_SECONDS = 900.0
"""So long a refused call to complete may mean that an earlier one was heard."""
_POLL_SECONDS = (1.0, 15.0)  # between two looks at a snapshot: at first, and at most

_PARENT_REFUSED = frozenset({"ValidationException", "ResourceNotFoundException"})
"""How StartSnapshot answers for a parent that is deleted, not ours or encrypted otherwise. It may
mean something else: then the call without a parent is answered in the same way."""
_PARENT_DENIED = frozenset({"UNAUTHORIZED_ACCOUNT", "DEPENDENCY_ACCESS_DENIED"})
"""EBS's reasons of an AccessDeniedException that is about the parent, or its key. Without one the
account lacks the right to call StartSnapshot."""

_NOT_COMPLETED = frozenset(
    {"ValidationException", "ResourceNotFoundException", "ConflictException"}
)
"""How CompleteSnapshot answers for a wrong count or checksum, and for a snapshot that is no longer
pending, as after an earlier call whose answer was not heard."""
_NOT_PENDING = "INVALID_SNAPSHOT_ID"
"""EBS's reason for the latter; the code is then ValidationException."""


@dataclass(frozen=True, kw_only=True)
class SnapshotOrder:
    """What shall become a snapshot."""

    disk: Path
    """Raw and sparse."""
    volume_gib: int
    description: str
    tags: Mapping[str, str]
    encrypted: bool
    kms_key: str | None
    parent: BlockIndex | None
    """Send only what differs from it. Its snapshot is encrypted as `encrypted` and `kms_key` say:
    EBS takes neither together with a parent."""
    records: Path
    """What the names of the files start with that remember the upload."""
    content: Sha256
    """Of the disk."""


@dataclass(frozen=True, kw_only=True)
class UploadedSnapshot:
    """A completed snapshot, and what it took."""

    snapshot_id: str
    blocks_sent: int
    """By this run: fewer than the snapshot was given, where it took up an earlier one."""
    blocks_total: int
    """Blocks of the disk that are not all zeros."""
    bytes_sent: int
    parent_id: str | None


class Snapshots(Protocol):
    """What must be known of snapshots, beyond the EBS direct APIs."""

    def state(self, snapshot_id: str) -> str | None:
        """`pending`, `completed` or `error`; None where there is no such snapshot."""

    def delete(self, snapshot_id: str) -> None:
        """Deletes a snapshot of ours. One that is gone already is no error."""


def upload_snapshot(
    ebs: Ebs,
    order: SnapshotOrder,
    snapshots: Snapshots,
    progress: Progress,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> UploadedSnapshot:
    """Sends a disk, or what an earlier run did not send of it, and waits until it is completed.

    Raises UploadError for what is found here, StoreError and NoSpaceError for what the file system
    says, and Refused, Cut and NoCredentials as the service or the network gave them. Whatever was
    raised, the same call goes on from there.
    """
    return _Upload(ebs, order, snapshots, progress, pause).run()


class _Upload:
    def __init__(
        self,
        ebs: Ebs,
        order: SnapshotOrder,
        snapshots: Snapshots,
        progress: Progress,
        pause: Callable[[float], None],
    ) -> None:
        self._ebs = ebs
        self._order = order
        self._snapshots = snapshots
        self._progress = progress
        self._pause = pause
        self._parent = order.parent
        self._stamp = _take_stamp(order.disk)

    def run(self) -> UploadedSnapshot:
        if self._stamp[0] > self._order.volume_gib * GIB:
            raise UploadError(
                f"{self._order.disk.name} is larger than a volume of {self._order.volume_gib} GiB",
                todo="ask for a larger volume",
            )
        journal = self._find_journal()
        if journal is None and (done := self._find_completed()) is not None:
            return done
        if journal is not None:
            try:
                return self._fill(journal)
            except SnapshotGone:
                self._progress.step(f"{journal.snapshot_id} is gone; sends everything anew")
                self._discard(journal)
        journal = self._begin()
        try:
            return self._fill(journal)
        except Refused as refused:
            if not is_transient(refused) and next(journal.sent.numbers(), None) is None:
                with suppress(Refused, Cut, NoCredentials, PhantomError):  # nothing is lost by it
                    self._discard(journal)
            raise
        except SnapshotGone as gone:
            self._discard(journal)
            raise UploadError(
                f"{journal.snapshot_id} was deleted while it was written",
                todo="find out who deletes pending snapshots, and run the same command again",
            ) from gone

    # ---- what earlier runs left

    def _find_completed(self) -> UploadedSnapshot | None:
        """The snapshot that an earlier run completed of the same order."""
        index = BlockIndex.read(index_file(self._order.records))
        if (
            index is None
            or (index.content, index.region) != (self._order.content, self._ebs.region)
            or index.volume_gib != self._order.volume_gib
            or (index.encrypted, index.kms_key) != (self._order.encrypted, self._order.kms_key)
            or self._snapshots.state(index.snapshot_id) != "completed"
        ):
            return None
        self._progress.step(f"{index.snapshot_id} has it all")
        return UploadedSnapshot(
            snapshot_id=index.snapshot_id,
            blocks_sent=0,
            blocks_total=index.digests.summary()[0],
            bytes_sent=0,
            parent_id=index.parent_id,
        )

    def _find_journal(self) -> Journal | None:
        """The journal of a killed run of the same order, if its snapshot can be gone on with."""
        journal = Journal.read(journal_file(self._order.records))
        if journal is None:
            return None
        full, delta = self._make_start(None), self._make_start(self._parent)
        same = (journal.content, journal.region) == (self._order.content, self._ebs.region)
        # A parent may have been refused, or have come since: a full upload is always right.
        if not same or (journal.start not in (full, delta) and not self._is_whole(journal)):
            self._discard(journal)
            return None
        if journal.start == full:
            self._parent = None
        if journal.snapshot_id is None:
            try:
                self._start(journal)
            except Refused as refused:
                if not _blames_parent(refused) and refused.code != "ConflictException":
                    raise
                journal.remove()
                self._parent = self._order.parent
                return None
        assert journal.snapshot_id is not None
        state = self._snapshots.state(journal.snapshot_id)
        if state == "error" or (state is None and not _is_young(journal)):
            self._progress.step(f"{journal.snapshot_id} is lost; sends everything anew")
            self._discard(journal)
            self._parent = self._order.parent
            return None
        self._progress.step(f"goes on with {journal.snapshot_id}")
        return journal

    def _is_whole(self, journal: Journal) -> bool:
        """Whether its snapshot got all of the disk. Then it is what was ordered, whatever the
        parent and the tags would be today."""
        return (
            journal.completing
            and journal.start["VolumeSize"] == self._order.volume_gib
            and (journal.encrypted, journal.kms_key) == (self._order.encrypted, self._order.kms_key)
        )

    def _discard(self, journal: Journal) -> None:
        """Deletes what a journal's run began, unless it was completed, and the journal."""
        if journal.region == self._ebs.region:
            snapshot_id = journal.snapshot_id
            if snapshot_id is None:
                with suppress(Refused):  # then it was never started, or is gone
                    snapshot_id = self._start(journal)
            if snapshot_id is not None and self._snapshots.state(snapshot_id) != "completed":
                self._snapshots.delete(snapshot_id)
        elif journal.snapshot_id is not None:
            self._progress.step(
                f"{journal.snapshot_id} was begun in {journal.region}; it ends there by itself "
                f"after {IDLE_MINUTES // 60} hours"
            )
        journal.remove()

    # ---- a new one

    def _make_start(self, parent: BlockIndex | None) -> dict[str, object]:
        """The parameters of StartSnapshot."""
        start: dict[str, object] = {
            "VolumeSize": self._order.volume_gib,
            "Description": self._order.description,
            "Tags": [{"Key": key, "Value": value} for key, value in self._order.tags.items()],
            "Timeout": IDLE_MINUTES,
        }
        if parent is not None:
            start["ParentSnapshotId"] = parent.snapshot_id
        elif self._order.encrypted:
            start["Encrypted"] = True
            if self._order.kms_key is not None:
                start["KmsKeyArn"] = self._order.kms_key
        return start

    def _begin(self) -> Journal:
        """Starts a snapshot: as a delta if its parent is taken."""
        self._parent = self._order.parent
        if self._parent is not None:
            assert self._parent.volume_gib <= self._order.volume_gib
            journal = self._note(self._parent)
            try:
                self._start(journal)
            except Refused as refused:
                if not _blames_parent(refused):
                    raise
                journal.remove()
                self._progress.step(
                    f"{self._parent.snapshot_id} cannot be the parent "
                    f"({refused.message or refused.code}); sends everything"
                )
                self._parent = None
            else:
                return journal
        journal = self._note(None)
        self._start(journal)
        return journal

    def _note(self, parent: BlockIndex | None) -> Journal:
        return Journal.begin(
            journal_file(self._order.records),
            content=self._order.content,
            region=self._ebs.region,
            start=self._make_start(parent),
            chain=parent.chain + 1 if parent is not None else 0,
            encrypted=self._order.encrypted,
            kms_key=self._order.kms_key,
        )

    def _start(self, journal: Journal) -> str:
        snapshot_id = self._retry(lambda: self._ebs.start(journal.token, journal.start))
        journal.note_snapshot(snapshot_id)
        return snapshot_id

    def _retry(self, call: Callable[[], str], also: Callable[[Refused], bool] | None = None) -> str:
        return retrying(
            call, outage=Outage(), progress=self._progress, pause=self._pause, also=also
        )

    # ---- its blocks

    def _fill(self, journal: Journal) -> UploadedSnapshot:
        assert journal.snapshot_id is not None
        try:
            sent, found = self._read(journal) if journal.completing else self._send(journal)
            if _take_stamp(self._order.disk) != self._stamp:
                self._discard(journal)
                raise make_changed(self._order.disk)
            self._complete(journal)
        finally:
            journal.close()
        self._make_index(journal, found).write(index_file(self._order.records))
        journal.remove()
        return self._sum_up(journal.snapshot_id, journal.parent_id, sent)

    def _send(self, journal: Journal) -> tuple[Sent, Digests]:
        found = Digests(count_blocks(self._order.volume_gib * GIB))
        parent = self._parent.digests if self._parent is not None else None
        transfer = Transfer(self._ebs, journal, self._order.disk, parent, found, pause=self._pause)
        self._progress.step(f"sends blocks to {journal.snapshot_id}")
        return transfer.run(self._progress), found

    def _read(self, journal: Journal) -> tuple[Sent, Digests]:
        """Of a disk that was sent: only what the index holds."""
        found = digest_blocks(self._order.disk, count_blocks(self._order.volume_gib * GIB))
        before, data = journal.sent.summary()[0], found.summary()[0]
        return Sent(blocks=0, zeros=0, before=before, data=data), found

    def _sum_up(self, snapshot_id: str, parent_id: str | None, sent: Sent) -> UploadedSnapshot:
        zeros = f" and {sent.zeros:,} of zeros" if sent.zeros else ""
        more = [f"{sent.before:,} were sent before"] if sent.before else []
        more += [f"delta to {parent_id}"] if parent_id is not None else []
        self._progress.step(
            f"sent {sent.blocks - sent.zeros:,} of {sent.data:,} blocks{zeros}"
            + (f" ({', '.join(more)})" if more else "")
        )
        return UploadedSnapshot(
            snapshot_id=snapshot_id,
            blocks_sent=sent.blocks,
            blocks_total=sent.data,
            bytes_sent=sent.blocks * BLOCK,
            parent_id=parent_id,
        )

    def _make_index(self, journal: Journal, found: Digests) -> BlockIndex:
        assert journal.snapshot_id is not None
        return BlockIndex(
            snapshot_id=journal.snapshot_id,
            region=self._ebs.region,
            parent_id=journal.parent_id,
            chain=journal.chain,
            volume_gib=self._order.volume_gib,
            content=self._order.content,
            encrypted=self._order.encrypted,
            kms_key=self._order.kms_key,
            digests=found,
        )

    # ---- its end

    def _complete(self, journal: Journal) -> None:
        assert journal.snapshot_id is not None
        snapshot_id = journal.snapshot_id
        repeated = journal.completing
        if not repeated:
            journal.note_completing()
        elif self._snapshots.state(snapshot_id) == "completed":
            return
        heard = repeated  # perhaps, though its answer was not

        def complete() -> str:
            nonlocal heard
            try:
                self._ebs.complete(snapshot_id, *journal.sent.summary())
            except (Refused, Cut) as error:
                heard = heard or isinstance(error, Cut) or is_transient(error)
                raise
            return snapshot_id

        def is_unknown_yet(refused: Refused) -> bool:
            return refused.code == "ResourceNotFoundException" and _is_young(journal)

        self._progress.step(f"completes {snapshot_id}")
        try:
            self._retry(complete, also=is_unknown_yet)
        except Refused as refused:
            if refused.code not in _NOT_COMPLETED:
                raise
            # Of a wrong count or checksum nothing can come.
            if refused.code == "ValidationException" and refused.reason != _NOT_PENDING:
                if self._is_completed(journal, HEARD_SECONDS if heard else 0.0):
                    return
                self._discard(journal)
                raise UploadError(
                    f"EBS did not complete {snapshot_id}: {refused.message or refused.code}",
                    todo="run the same command again: it sends everything anew",
                ) from refused
        if not self._is_completed(journal, COMPLETION_SECONDS):
            raise UploadError(
                f"{snapshot_id} is still not completed after {COMPLETION_SECONDS / 60:.0f} minutes",
                todo="run the same command again: it goes on waiting; nothing is sent twice",
            )

    def _is_completed(self, journal: Journal, seconds: float) -> bool:
        """Waits for so long. Raises UploadError where it went wrong, and SnapshotGone."""
        assert journal.snapshot_id is not None
        snapshot_id = journal.snapshot_id
        waited, (step, longest) = 0.0, _POLL_SECONDS
        while True:
            state = self._snapshots.state(snapshot_id)
            if state == "completed":
                return True
            if state == "error":
                self._discard(journal)
                raise UploadError(
                    f"EBS could not complete {snapshot_id}: it is in error, and was deleted",
                    todo="run the same command again: it sends everything anew",
                )
            if state is None and (waited >= UNKNOWN_SECONDS or not _is_young(journal)):
                raise SnapshotGone(snapshot_id)
            self._progress.output(f"{snapshot_id} is {state or 'not known yet'}")
            if waited >= seconds:
                return False
            self._pause(step)
            waited, step = waited + step, min(step * 2, longest)


def _blames_parent(refused: Refused) -> bool:
    if refused.code == "AccessDeniedException":
        return refused.reason in _PARENT_DENIED
    return refused.code in _PARENT_REFUSED


def _is_young(journal: Journal) -> bool:
    """Whether EBS may not know yet of the snapshot that it started."""
    return time.time() - journal.started_at < UNKNOWN_SECONDS


def _take_stamp(disk: Path) -> tuple[int, int, int]:
    """Size, inode and time: what a file that is written to does not keep."""
    with reading(disk):
        status = disk.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns
