"""Sends the blocks of a disk that a snapshot lacks, over many connections at once.

Each connection has a thread with a buffer of one block: it takes the number of the next block, and
reads, hashes and sends that. So memory depends only on the number of connections. A few times a
second the main thread writes what the threads have sent to the journal, and reports the progress.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clouds.ec2.blocks import (
    BLOCK,
    ZEROS,
    ZEROS_DIGEST,
    Digests,
    find_blocks,
    merge,
    read_block,
    reading,
)
from pipeline.clouds.ec2.connection import BlockConnection, TimedOut
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import Journal
from pipeline.errors import PhantomError, UploadError
from pipeline.model import NoProgress, Progress
from pipeline.tools.aws import FIRST_PAUSE, LONGEST_PAUSE, Cut, Outage, Refused, is_transient

UNKNOWN_SECONDS = 120.0
"""For how long after StartSnapshot EBS may answer that there is no such snapshot."""

_COLLECT_SECONDS = 0.2  # between two looks at what the threads have done
_STOP_SECONDS = 2.0  # for threads to end; one that still waits for an answer is abandoned
_SLICE_SECONDS = 0.5  # of a pause, after which a thread checks whether to stop
_PARK_SECONDS = 0.1
_TELL_SECONDS = 3.0  # a shorter wait is not reported: of many connections one breaks now and then

_BUSY_REASONS = frozenset({"CONFLICTING_BLOCK_UPDATE"})
"""EBS's answer for a block that it is still writing, as after a time-out."""


class SnapshotGone(Exception):
    """EBS no longer knows the snapshot that was being written."""


class Pace:
    """How many requests may be under way: one per thread until the service is overloaded, then half
    as many, and one more for each round that succeeds, as TCP avoids congestion. A thread that
    waits before it tries again counts too, so that few threads bother an overloaded service."""

    def __init__(self, threads: int) -> None:
        self.window = threads
        self.turns = 0
        """Counts how often the window shrank: requests begun before do not judge the new one."""
        self._threads = threads
        self._under_way = 0
        self._well = 0
        self._lock = threading.Lock()

    def enter(self) -> int | None:
        """Begins a request and returns its turn; None where enough are under way."""
        with self._lock:
            if self._under_way >= self.window:
                return None
            self._under_way += 1
            return self.turns

    def leave(self, *, well: bool) -> None:
        """Ends what `enter` began."""
        with self._lock:
            self._under_way -= 1
            if well and self.window < self._threads:
                self._well += 1
                if self._well >= self.window:
                    self.window += 1
                    self._well = 0

    def shrink(self, turn: int) -> None:
        """A request that was begun in that turn was throttled."""
        with self._lock:
            if turn == self.turns:
                self.window = max(1, self.window // 2)
                self.turns += 1
                self._well = 0


@dataclass
class _Worker:
    """The disk, connection, buffer and counts of one thread, which no other thread writes."""

    descriptor: int = field(init=False)
    connection: BlockConnection = field(init=False)
    buffer: bytearray = field(default_factory=lambda: bytearray(BLOCK))
    looked: int = 0
    empty: int = 0
    data: int = 0
    before: int = 0
    sent: int = 0
    zeros: int = 0


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How many blocks of the disk were sent, and when."""

    blocks: int
    """Sent by this run."""
    zeros: int
    """How many of those are all zeros, and were data in the parent."""
    before: int
    """Sent by an earlier run."""
    data: int
    """Blocks of the disk that are not all zeros."""


@dataclass(eq=False)
class Transfer:
    """Fills one snapshot. `parent` has the digests of the snapshot that this one is a delta to;
    those of the disk go to `digests`."""

    ebs: Ebs
    journal: Journal
    disk: Path
    parent: Digests
    digests: Digests
    pause: Callable[[float], None]

    def __post_init__(self) -> None:
        assert self.journal.snapshot_id is not None
        self._id = self.journal.snapshot_id
        self._before = dict.fromkeys(self.journal.sent.numbers())
        self._outage = Outage()
        self._pace = Pace(self.ebs.connections)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._taken: deque[tuple[int, bytes]] = deque()
        self._messages = _Messages()
        self._failure: BaseException | None = None
        self._numbers: Iterator[int] = iter(())
        self._running = 0

    def run(self, progress: Progress) -> Sent:
        """Sends what the snapshot lacks. Raises Refused, Cut, NoCredentials, UploadError,
        StoreError, NoSpaceError and SnapshotGone; the journal then tells what was sent."""
        with ExitStack() as stack:
            with reading(self.disk):
                opened = stack.enter_context(self.disk.open("rb"))
                total = sum(1 for _ in self._make_numbers(opened.fileno()))
            self._numbers = self._make_numbers(opened.fileno())
            count = min(self.ebs.connections, total)
            workers = [_Worker() for _ in range(count)]
            threads = [
                threading.Thread(target=self._work, args=(worker,), daemon=True)
                for worker in workers
            ]
            self._running = count
            try:
                for thread in threads:
                    thread.start()
                self._watch(workers, total, progress)
                if self._failure is not None:
                    raise self._failure
            except BaseException:
                self._halt(threads)
                with suppress(PhantomError):  # what came first is told
                    self._collect()
                raise
            self._halt(threads)
            self._collect()
        return Sent(
            blocks=sum(worker.sent for worker in workers),
            zeros=sum(worker.zeros for worker in workers),
            before=sum(worker.before for worker in workers),
            data=sum(worker.data for worker in workers),
        )

    def _make_numbers(self, descriptor: int) -> Iterator[int]:
        return merge(find_blocks(descriptor), self.parent.numbers(), iter(self._before))

    # ---- the main thread

    def _watch(self, workers: list[_Worker], total: int, progress: Progress) -> None:
        cut_at: int | None = None
        while self._running and self._failure is None:
            self._wake.wait(_COLLECT_SECONDS)
            if self._failure is not None:  # it shall not be hidden by one of the journal's
                break
            self._collect()
            _tell(workers, total, progress)
            sent = sum(worker.sent for worker in workers)
            while self._messages.lines:
                progress.step(self._messages.lines.popleft())
                cut_at = sent
            if cut_at is not None and sent > cut_at:
                progress.step("goes on")
                cut_at = None
        _tell(workers, total, progress)

    def _halt(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _collect(self) -> None:
        self.journal.note_blocks(self._taken.popleft() for _ in range(len(self._taken)))

    # ---- the threads

    def _work(self, worker: _Worker) -> None:
        try:
            with (
                self.ebs.connect() as worker.connection,
                reading(self.disk),
                self.disk.open("rb", buffering=0) as opened,
            ):
                worker.descriptor = opened.fileno()
                while not self._stop.is_set():
                    with self._lock:
                        number = next(self._numbers, None)
                    if number is None:
                        break
                    read_block(worker.descriptor, number, worker.buffer)
                    digest = self._find_wanted(worker, number)
                    if digest is not None:
                        self._send(worker, number, digest)
                        worker.sent += 1
                        worker.zeros += digest == ZEROS_DIGEST
                        self._taken.append((number, digest))
                    worker.looked += 1
        except Exception as error:  # noqa: BLE001 (the main thread raises it)
            self._failure = self._failure or error
        with self._lock:
            self._running -= 1
            if not self._running or self._failure is not None:
                self._wake.set()

    def _find_wanted(self, worker: _Worker, number: int) -> bytes | None:
        """The digest of the block in the buffer; None where the snapshot has the block already."""
        empty = worker.buffer == ZEROS
        if empty:
            digest = ZEROS_DIGEST
        else:
            digest = hashlib.sha256(worker.buffer).digest()
            self.digests.note(number, digest)
            worker.data += 1
        if number in self._before:
            known = self.journal.sent.get(number) == digest
            worker.before += known
            return None if known else digest
        there = self.parent.get(number)
        worker.empty += empty and there is None
        return None if there == (None if empty else digest) else digest

    def _send(self, worker: _Worker, number: int, digest: bytes) -> None:
        waited, longest, mistaken = 0.0, FIRST_PAUSE, False
        while True:
            while (turn := self._pace.enter()) is None:
                self._rest(_PARK_SECONDS)
            try:
                worker.connection.put_block(self._id, number, worker.buffer, digest)
            except (Refused, Cut) as error:
                if _is_mistaken(error):
                    if mistaken:
                        raise self._make_damaged(number, error) from error
                    mistaken = True
                    self._read_again(worker, number, digest)
                    self._pace.leave(well=False)
                    continue
                self._judge(error, turn, waited)
                seconds = random.uniform(0, longest)  # noqa: S311 (no secret depends on it)
                self._rest(seconds)
                self._pace.leave(well=False)
                waited, longest = waited + seconds, min(longest * 2, LONGEST_PAUSE)
            else:
                self._pace.leave(well=True)
                self._outage.succeeded()
                return

    def _judge(self, error: Refused | Cut, turn: int, waited: float) -> None:
        """Returns where the block should be sent again, and raises otherwise."""
        if isinstance(error, Refused):
            if error.code == "ResourceNotFoundException":
                age = max(waited, time.time() - self.journal.started_at)
                if age >= UNKNOWN_SECONDS:
                    raise SnapshotGone(self._id) from error
            elif error.reason == "INVALID_SNAPSHOT_ID":  # it is no longer pending
                raise SnapshotGone(self._id) from error
            elif error.reason not in _BUSY_REASONS:
                if not is_transient(error):
                    raise error
                self._pace.shrink(turn)
        elif isinstance(error, TimedOut):  # as an overloaded service, or line, behaves
            self._pace.shrink(turn)
        if self._outage.failed(waited):
            raise error
        if isinstance(error, Cut) and waited >= _TELL_SECONDS:
            self._outage.tell(self._messages, error.reason)

    def _rest(self, seconds: float) -> None:
        while seconds > 0:
            if self._stop.is_set() or self._failure is not None:
                raise _Stopped
            self.pause(min(seconds, _SLICE_SECONDS))
            seconds -= _SLICE_SECONDS

    def _read_again(self, worker: _Worker, number: int, digest: bytes) -> None:
        read_block(worker.descriptor, number, worker.buffer)
        if hashlib.sha256(worker.buffer).digest() != digest:
            raise make_changed(self.disk)

    def _make_damaged(self, number: int, error: Refused | Cut) -> UploadError:
        told = error.message if isinstance(error, Refused) else error.reason
        return UploadError(
            f"block {number} of {self.disk.name} arrived damaged at {self._id} twice: {told}",
            todo="run the same command again: it goes on where it was; if the same is said again, "
            "look for a fault of this host's memory, or of a proxy on the way",
        )


def make_changed(disk: Path) -> UploadError:
    """The error of a disk that changed during the upload."""
    return UploadError(
        f"{disk.name} changed while it was sent",
        todo="run the same command again, and leave the store alone meanwhile",
    )


class _Stopped(Exception):
    """A thread ends because another failed, or the command was interrupted."""


def _tell(workers: list[_Worker], total: int, progress: Progress) -> None:
    """Reports the progress through what the file system calls data, without blocks of zeros."""
    empty = sum(worker.empty for worker in workers)
    done = sum(worker.looked for worker in workers) - empty
    progress.advance(max(0, done) * BLOCK, (total - empty) * BLOCK)


class _Messages(NoProgress):
    """Messages of the threads, for the main thread to report."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque()

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self.lines.append(text)


def _is_mistaken(error: Refused | Cut) -> bool:
    """Whether the block that EBS received does not match its checksum."""
    return (
        isinstance(error, Refused)
        and error.code in ("ValidationException", "InvalidSignatureException")
        and "checksum" in error.message.lower()
    )
