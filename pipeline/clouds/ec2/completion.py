"""Completes a snapshot whose blocks were all sent, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import Journal
from pipeline.clouds.ec2.transfer import UNKNOWN_SECONDS, SnapshotGone
from pipeline.errors import UploadError
from pipeline.model import Progress
from pipeline.tools.aws import Cut, Refused, is_transient, retrying

COMPLETION_SECONDS = 3600.0  # EBS takes seconds to minutes, and promises nothing
HEARD_SECONDS = 900.0
"""For how long a refused call to complete may mean that an earlier one arrived."""
_POLL_SECONDS = (1.0, 15.0)  # between two looks at a snapshot: at first, and at most

_NOT_COMPLETED = frozenset(
    {"ValidationException", "ResourceNotFoundException", "ConflictException"}
)
"""How CompleteSnapshot answers for a wrong count or checksum, and for a snapshot that is no longer
pending, as after an earlier call whose answer was lost."""
_NOT_PENDING = "INVALID_SNAPSHOT_ID"
"""EBS's reason for the latter; the code is then ValidationException."""


class Snapshots(Protocol):
    """The calls on snapshots that the EBS direct APIs lack."""

    def state(self, snapshot_id: str) -> str | None:
        """`pending`, `completed` or `error`; None where there is no such snapshot."""

    def delete(self, snapshot_id: str) -> None:
        """Deletes a snapshot of ours. One that is gone already is no error."""


class NeverCompleted(Exception):
    """A snapshot cannot be completed, and everything must be sent again."""


@dataclass
class Completion:
    """Completes the snapshot of a journal."""

    ebs: Ebs
    journal: Journal
    snapshots: Snapshots
    progress: Progress
    pause: Callable[[float], None]

    def __post_init__(self) -> None:
        assert self.journal.snapshot_id is not None
        self._id = self.journal.snapshot_id
        self._heard = self.journal.completing
        """Whether an earlier call may have arrived, though its answer was lost."""

    def run(self) -> None:
        """Raises NeverCompleted, SnapshotGone, Refused, Cut, NoCredentials, and UploadError when
        EBS takes too long."""
        if not self.journal.completing:
            self.journal.note_completing()
        elif self.snapshots.state(self._id) == "completed":
            return
        self.progress.step(f"completes {self._id}")
        try:
            retrying(
                self._complete,
                progress=self.progress,
                pause=self.pause,
                also=lambda refused: (
                    refused.code == "ResourceNotFoundException" and is_young(self.journal)
                ),
            )
        except Refused as refused:
            if refused.code not in _NOT_COMPLETED:
                raise
            # A wrong count or checksum stays wrong.
            if refused.code == "ValidationException" and refused.reason != _NOT_PENDING:
                if self._wait(HEARD_SECONDS if self._heard else 0.0):
                    return
                said = refused.message or refused.code
                raise NeverCompleted(f"EBS did not complete {self._id}: {said}") from refused
        if not self._wait(COMPLETION_SECONDS):
            raise UploadError(
                f"{self._id} is still not completed after {COMPLETION_SECONDS / 60:.0f} minutes",
                todo="run the same command again: it goes on waiting; nothing is sent twice",
            )

    def _complete(self) -> None:
        try:
            self.ebs.complete(self._id, *self.journal.sent.summary())
        except (Refused, Cut) as error:
            self._heard = self._heard or isinstance(error, Cut) or is_transient(error)
            raise

    def _wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the snapshot, and returns whether it is completed."""
        waited, (step, longest) = 0.0, _POLL_SECONDS
        while True:
            state = self.snapshots.state(self._id)
            if state == "completed":
                return True
            if state == "error":
                raise NeverCompleted(
                    f"EBS could not complete {self._id}: it is in error, and was deleted"
                )
            if state is None and (waited >= UNKNOWN_SECONDS or not is_young(self.journal)):
                raise SnapshotGone(self._id)
            self.progress.output(f"{self._id} is {state or 'not known yet'}")
            if waited >= seconds:
                return False
            self.pause(step)
            waited, step = waited + step, min(step * 2, longest)


def is_young(journal: Journal) -> bool:
    """Whether EBS started the snapshot so lately that it may not know it yet."""
    return time.time() - journal.started_at < UNKNOWN_SECONDS
