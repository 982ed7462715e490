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

from pipeline.clouds.ec2.blocks import (
    BlockIndex,
    Digests,
    count_blocks,
    digest_blocks,
    index_file,
    reading,
)
from pipeline.clouds.ec2.completion import Completion, NeverCompleted, Snapshots, is_young
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import Journal, journal_file
from pipeline.clouds.ec2.transfer import Sent, SnapshotGone, Transfer, make_changed
from pipeline.errors import PhantomError, UploadError
from pipeline.model import GIB, Progress, Sha256
from pipeline.tools.aws import Cut, NoCredentials, Refused, is_transient, retrying

IDLE_MINUTES = 24 * 60
"""For how long EBS keeps a pending snapshot that gets no blocks: a killed upload can go on for a
day, and a forgotten one costs nothing afterwards."""

_PARENT_REFUSED = frozenset({"ValidationException", "ResourceNotFoundException"})
"""How StartSnapshot answers for a parent that is deleted, not ours or encrypted otherwise. Where it
means something else, the call without a parent gets the same answer."""
_PARENT_DENIED = frozenset({"UNAUTHORIZED_ACCOUNT", "DEPENDENCY_ACCESS_DENIED"})
"""The reasons in an AccessDeniedException that is about the parent or its key. Without one of them
the account lacks the right to call StartSnapshot."""


@dataclass(frozen=True, kw_only=True)
class SnapshotOrder:
    """What is to become a snapshot."""

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
    """The files that remember the upload have names that start with this."""
    content: Sha256
    """Of the disk."""


@dataclass(frozen=True, kw_only=True)
class UploadedSnapshot:
    """A completed snapshot, and how much was sent for it."""

    snapshot_id: str
    blocks_sent: int
    """By this run, without what an earlier run sent."""
    blocks_total: int
    """Blocks of the disk that are not all zeros."""
    parent_id: str | None


def upload_snapshot(
    ebs: Ebs,
    order: SnapshotOrder,
    snapshots: Snapshots,
    progress: Progress,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> UploadedSnapshot:
    """Sends a disk, or what an earlier run did not send of it, and waits until it is completed.

    Raises UploadError for an order that cannot be carried out, StoreError and NoSpaceError for what
    the file system says, and Refused, Cut and NoCredentials as the service or the network gave
    them. Whatever was raised, the same call goes on from there.
    """
    return _Upload(ebs, order, snapshots, progress, pause).run()


@dataclass
class _Upload:
    ebs: Ebs
    order: SnapshotOrder
    snapshots: Snapshots
    progress: Progress
    pause: Callable[[float], None]

    def __post_init__(self) -> None:
        self._parent = self.order.parent
        self._stamp = _take_stamp(self.order.disk)

    def run(self) -> UploadedSnapshot:
        if self._stamp[0] > self.order.volume_gib * GIB:
            raise UploadError(
                f"{self.order.disk.name} is larger than a volume of {self.order.volume_gib} GiB",
                todo="ask for a larger volume",
            )
        journal = self._find_journal()
        if journal is None and (done := self._find_completed()) is not None:
            return done
        if journal is not None:
            try:
                return self._fill(journal)
            except SnapshotGone:
                self.progress.step(f"{journal.snapshot_id} is gone; sends everything anew")
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
        """The snapshot that an earlier run completed for the same order."""
        index = BlockIndex.read(index_file(self.order.records))
        if (
            index is None
            or (index.content, index.region) != (self.order.content, self.ebs.region)
            or index.volume_gib != self.order.volume_gib
            or (index.encrypted, index.kms_key) != (self.order.encrypted, self.order.kms_key)
            or self.snapshots.state(index.snapshot_id) != "completed"
        ):
            return None
        self.progress.step(f"{index.snapshot_id} has it all")
        return UploadedSnapshot(
            snapshot_id=index.snapshot_id,
            blocks_sent=0,
            blocks_total=index.digests.summary()[0],
            parent_id=index.parent_id,
        )

    def _find_journal(self) -> Journal | None:
        """The journal of a killed run of the same order, where its upload can go on."""
        journal = Journal.read(journal_file(self.order.records))
        if journal is None:
            return None
        full, delta = self._make_start(None), self._make_start(self._parent)
        same = (journal.content, journal.region) == (self.order.content, self.ebs.region)
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
                return None
        assert journal.snapshot_id is not None
        state = self.snapshots.state(journal.snapshot_id)
        if state == "error" or (state is None and not is_young(journal)):
            self.progress.step(f"{journal.snapshot_id} is lost; sends everything anew")
            self._discard(journal)
            return None
        self.progress.step(f"goes on with {journal.snapshot_id}")
        return journal

    def _is_whole(self, journal: Journal) -> bool:
        """Whether the journal's snapshot got all of the disk. Then it is what was ordered, whatever
        parent and tags it would have today."""
        return (
            journal.completing
            and journal.start["VolumeSize"] == self.order.volume_gib
            and (journal.encrypted, journal.kms_key) == (self.order.encrypted, self.order.kms_key)
        )

    def _discard(self, journal: Journal) -> None:
        """Deletes a journal, and its snapshot unless that was completed."""
        if journal.region == self.ebs.region:
            snapshot_id = journal.snapshot_id
            if snapshot_id is None:
                with suppress(Refused):  # then it was never started, or is gone
                    snapshot_id = self._start(journal)
            if snapshot_id is not None and self.snapshots.state(snapshot_id) != "completed":
                self.snapshots.delete(snapshot_id)
        elif journal.snapshot_id is not None:
            self.progress.step(
                f"{journal.snapshot_id} was begun in {journal.region}; it ends there by itself "
                f"after {IDLE_MINUTES // 60} hours"
            )
        journal.remove()

    # ---- a new one

    def _make_start(self, parent: BlockIndex | None) -> dict[str, object]:
        """The parameters of StartSnapshot."""
        start: dict[str, object] = {
            "VolumeSize": self.order.volume_gib,
            "Description": self.order.description,
            "Tags": [{"Key": key, "Value": value} for key, value in self.order.tags.items()],
            "Timeout": IDLE_MINUTES,
        }
        if parent is not None:
            start["ParentSnapshotId"] = parent.snapshot_id
        elif self.order.encrypted:
            start["Encrypted"] = True
            if self.order.kms_key is not None:
                start["KmsKeyArn"] = self.order.kms_key
        return start

    def _begin(self) -> Journal:
        """Starts a snapshot: as a delta if EBS accepts the parent."""
        self._parent = parent = self.order.parent
        assert parent is None or parent.volume_gib <= self.order.volume_gib
        journal = self._note(parent)
        try:
            self._start(journal)
        except Refused as refused:
            if parent is None or not _blames_parent(refused):
                raise
            journal.remove()
            self.progress.step(
                f"{parent.snapshot_id} cannot be the parent "
                f"({refused.message or refused.code}); sends everything"
            )
            self._parent = None
            journal = self._note(None)
            self._start(journal)
        return journal

    def _note(self, parent: BlockIndex | None) -> Journal:
        journal = Journal(
            journal_file(self.order.records),
            content=self.order.content,
            region=self.ebs.region,
            start=self._make_start(parent),
            chain=parent.chain + 1 if parent is not None else 0,
            encrypted=self.order.encrypted,
            kms_key=self.order.kms_key,
        )
        return journal.begin()

    def _start(self, journal: Journal) -> str:
        snapshot_id = retrying(
            lambda: self.ebs.start(journal.token, journal.start),
            progress=self.progress,
            pause=self.pause,
        )
        journal.note_snapshot(snapshot_id)
        return snapshot_id

    # ---- its blocks

    def _fill(self, journal: Journal) -> UploadedSnapshot:
        assert journal.snapshot_id is not None
        try:
            sent, digests = self._read(journal) if journal.completing else self._send(journal)
            if _take_stamp(self.order.disk) != self._stamp:
                self._discard(journal)
                raise make_changed(self.order.disk)
            Completion(self.ebs, journal, self.snapshots, self.progress, self.pause).run()
        except NeverCompleted as failure:
            self._discard(journal)
            raise UploadError(
                str(failure), todo="run the same command again: it sends everything anew"
            ) from failure
        finally:
            journal.close()
        index = BlockIndex(
            snapshot_id=journal.snapshot_id,
            region=self.ebs.region,
            parent_id=journal.parent_id,
            chain=journal.chain,
            volume_gib=self.order.volume_gib,
            content=self.order.content,
            encrypted=self.order.encrypted,
            kms_key=self.order.kms_key,
            digests=digests,
        )
        index.write(index_file(self.order.records))
        journal.remove()
        return self._sum_up(journal.snapshot_id, journal.parent_id, sent)

    def _send(self, journal: Journal) -> tuple[Sent, Digests]:
        digests = Digests(count_blocks(self.order.volume_gib * GIB))
        parent = self._parent.digests if self._parent is not None else Digests(0)
        transfer = Transfer(self.ebs, journal, self.order.disk, parent, digests, self.pause)
        self.progress.step(f"sends blocks to {journal.snapshot_id}")
        return transfer.run(self.progress), digests

    def _read(self, journal: Journal) -> tuple[Sent, Digests]:
        """The digests for the index of a disk that an earlier run has sent."""
        digests = digest_blocks(self.order.disk, count_blocks(self.order.volume_gib * GIB))
        before, data = journal.sent.summary()[0], digests.summary()[0]
        return Sent(blocks=0, zeros=0, before=before, data=data), digests

    def _sum_up(self, snapshot_id: str, parent_id: str | None, sent: Sent) -> UploadedSnapshot:
        zeros = f" and {sent.zeros:,} of zeros" if sent.zeros else ""
        more = [f"{sent.before:,} were sent before"] if sent.before else []
        more += [f"delta to {parent_id}"] if parent_id is not None else []
        self.progress.step(
            f"sent {sent.blocks - sent.zeros:,} of {sent.data:,} blocks{zeros}"
            + (f" ({', '.join(more)})" if more else "")
        )
        return UploadedSnapshot(
            snapshot_id=snapshot_id,
            blocks_sent=sent.blocks,
            blocks_total=sent.data,
            parent_id=parent_id,
        )


def _blames_parent(refused: Refused) -> bool:
    if refused.code == "AccessDeniedException":
        return refused.reason in _PARENT_DENIED
    return refused.code in _PARENT_REFUSED


def _take_stamp(disk: Path) -> tuple[int, int, int]:
    """Size, inode and time of a file, which change when it is written to."""
    with reading(disk):
        status = disk.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns
