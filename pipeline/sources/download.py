"""A file from a network, fetched whole, checked, and kept once.

What has arrived lies in the store's `downloads/`, which a failed stage does not clear, beside a
record of what is needed to go on: a broken or killed download loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import records, sparse
from pipeline.disk.formats import HEAD, is_web_page
from pipeline.errors import ChecksumError, DownloadError, NoSpaceError
from pipeline.files import discard, share
from pipeline.model import MIB, Progress, Sha256, format_size
from pipeline.sources.transport import TODO, Broken, Changed, Transport, make_transport, shown
from pipeline.sources.unpacking import interruptible
from pipeline.stages.base import HERE_ONLY, Context, Stage
from pipeline.store import Artifact, Store, write_atomically
from pipeline.tools.curl import Answer

FILE = "download"

PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds; each pause is twice the one before
_FIRST_ATTEMPTS = 3  # until the first byte arrives: a wrong name is reported soon
_ATTEMPTS = 6  # in a row that each bring less than `_PROGRESS`
_PROGRESS = 1 << 20
_LONGEST_WAIT = 30.0  # the longest that a server may have us wait
_SPACE_STEP = 64 * MIB  # stays free while a file of unknown length arrives

_SHAPE = {"validator": (str, None), "total": (int, None), "boot": str}


@dataclass(frozen=True, kw_only=True)
class Download(Stage):
    """A file by its digest, from wherever it can be had."""

    name: ClassVar[str] = "download"

    sha256: Sha256
    url: str = field(metadata=HERE_ONLY)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        arrived = fetch(self.url, context.store, context.progress, expected=self.sha256)
        return arrived.move(context.out)


class Arrived:
    """What has arrived of a file, and the record that lies beside it."""

    def __init__(self, file: Path, url: str) -> None:
        self.file, self._url = file, url
        self._record = file.with_suffix(".json")
        self.sha256 = Sha256("")
        """Known once the file is whole."""
        self.validator: str | None = None
        self.total: int | None = None
        self.boot = ""
        """The host's start since which the file has been arriving."""
        self.joined = True
        """Whether it may have come in several parts."""
        record = records.read(self._record, _SHAPE, sealed=True)
        if record is None or not self._can_go_on():
            self.remove()
        else:
            self.validator, self.total = record["validator"], record["total"]
            self.boot = record["boot"]

    def _can_go_on(self) -> bool:
        """Whether what has arrived, if anything has, is a file that this user may write to."""
        if self.file.is_symlink() or not self.file.exists():
            return not self.file.is_symlink()
        return self.file.is_file() and os.access(self.file, os.W_OK)

    @property
    def size(self) -> int:
        """How many bytes have arrived."""
        return self.file.stat().st_size if self.file.exists() else 0

    def begin(self, answer: Answer) -> None:
        """Records which file arrives from now on."""
        self.validator, self.total, self.joined = answer.validator, answer.total, False
        self.boot = _boot()
        record = {"validator": self.validator, "total": self.total, "boot": self.boot}
        write_atomically(self._record, json.dumps(records.seal(record)) + "\n")
        share(self.file)

    def move(self, folder: Path) -> Mapping[str, Any]:
        """Moves the whole file into the folder of an artifact; the artifact's facts."""
        origin = {"url": digest_of_url(self._url), "validator": self.validator}
        facts = {"bytes": self.size, "sha256": self.sha256, "origin": origin}
        self.file.rename(folder / FILE)
        self.remove()
        return facts

    def remove(self) -> None:
        """Removes what has arrived, and the record."""
        discard(self.file, shutil.rmtree)
        discard(self._record, shutil.rmtree)
        self.validator = self.total = None


def fetch(url: str, store: Store, progress: Progress, expected: Sha256 | None) -> Arrived:
    """Fetches a file, going on where an earlier attempt ended; the caller holds a lock on it.

    With `expected`, mirrors share what has arrived, and another digest is an error.
    Raises ChecksumError, DownloadError, NoSpaceError, StoreError.
    """
    name = expected or f"url-{digest_of_url(url)}"
    with store.errors(), interruptible() as check:
        arrived = Arrived(store.path("downloads") / f"{name}.part", url)
        work = _Fetching(url, arrived, store, progress, check, known=expected is not None)
        work.run()
        if expected is not None and arrived.joined and arrived.sha256 != expected:
            # Two files that had the same ETag or time may have been put together.
            progress.step("what had arrived before does not fit: fetching all of it anew")
            arrived.remove()
            work.run()
        if expected is not None and arrived.sha256 != expected:
            with arrived.file.open("rb") as opened:
                head = opened.read(HEAD)
            arrived.remove()
            raise _wrong(url, arrived.sha256, expected, head)
    return arrived


def keep(arrived: Arrived, url: str, store: Store) -> None:
    """Stores a file whose digest was not known before where a build looks it up by its digest."""
    stage = Download(sha256=arrived.sha256, url=url)
    with store.lock(f"{stage.name}-{stage.key}"), store.errors():
        if store.find(stage.name, stage.key) is None:
            with store.making(stage.name, stage.key) as folder:
                store.add(stage.name, stage.key, folder, arrived.move(folder))
        arrived.remove()


def is_current(url: str, artifact: Artifact) -> bool:
    """Whether a URL still leads to the file that was fetched from there: its server still gives the
    same validator and length. Raises DownloadError."""
    origin, size = artifact.facts.get("origin") or {}, int(artifact.facts["bytes"])
    validator = origin.get("validator")
    if origin.get("url") != digest_of_url(url) or not validator or size < 2:
        return False
    with interruptible() as check:
        try:
            transport = make_transport(url)
            last = transport.fetch(Path(os.devnull), size - 1, validator, 1, lambda _: check())
        except Broken:
            check()
            return False  # the reason is told when the file is fetched
    return last.total == size


def digest_of_url(url: str) -> str:
    """Stands for a URL in names of files, since the URL itself may hold a secret."""
    return hashlib.sha256(url.encode()).hexdigest()


def _wrong(url: str, digest: Sha256, expected: Sha256, head: bytes) -> Exception:
    if is_web_page(head):
        return DownloadError(
            "the file cannot be fetched: a web page came in its place",
            where=shown(url),
            todo="open the location in a browser: it may want a login, or lead to another place",
        )
    return ChecksumError(
        f"the base image has the SHA-256 {digest}, and its definition says {expected}",
        where=shown(url),
        todo="if its publisher has a new image there, `phantom-image pin` looks at it and writes "
        "the new digest; else do not trust it",
    )


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass
class _Fetching:
    """Fetches one file, in as many attempts as it takes."""

    url: str
    arrived: Arrived
    store: Store
    progress: Progress
    check: Callable[..., None]
    """As `interruptible` makes it."""
    known: bool
    """Whether the digest is known: it then decides whether the file is whole and the right one."""
    changes: int = 0
    """How often the server has sent the file from its start instead of going on."""

    def run(self) -> None:
        """Fetches until the file is whole."""
        arrived = self.arrived
        if not self.known and arrived.boot != _boot():
            arrived.remove()  # what a crash of the host left need not be what arrived
        complete = arrived.total is not None and arrived.size == arrived.total
        if complete and not self.known:  # the last byte tells whether the file is still that one
            os.truncate(arrived.file, max(0, arrived.size - 1))
        if not (complete and self.known):
            self._try_until_whole(make_transport(self.url))
        arrived.sha256 = sparse.sha256(arrived.file, self._advance)

    def _advance(self, done: int, total: int | None) -> None:
        self.check()
        self.progress.advance(done, total)

    def _try_until_whole(self, transport: Transport) -> None:
        attempts, failures, best = _FIRST_ATTEMPTS, 0, self.arrived.size
        while True:
            try:
                self._try(transport)
                return
            except Broken as error:
                self.check()
                gained = self.arrived.size - best
                if gained > 0:
                    attempts, best = _ATTEMPTS, self.arrived.size
                failures = 1 if gained >= _PROGRESS else failures + 1
                if failures >= attempts:
                    raise self._given_up(error.reason) from error
                pause = min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
                pause = max(pause, min(error.pause, _LONGEST_WAIT))
                self.progress.step(f"{error.reason}; trying again in {pause:.3g} s")
                self.check(pause)

    def _try(self, transport: Transport) -> None:
        if self.arrived.validator is None or self.changes > 1:
            self.arrived.remove()
        try:
            self._append(transport)
        except Changed:
            self.changes += 1
            self.arrived.remove()
            self.progress.step("the server does not go on, or has another file: from anew")
            self._append(transport)

    def _append(self, transport: Transport) -> None:
        """Has curl write what is missing behind what has arrived."""
        arrived, start, place = self.arrived, self.arrived.size, shown(self.url)
        going_on = f"going on with {place} after {format_size(start)}"
        self.progress.step(going_on if start else f"fetching {place}")
        begun = False

        def watch(answer: Answer) -> None:
            nonlocal begun
            self.check()
            if answer.status and not begun:
                self._begin(answer, start)
                begun = True
            if begun:
                size, total = arrived.size, arrived.total
                self.store.check_space(_SPACE_STEP if total is None else max(0, total - size))
                self.progress.advance(size, total)

        most = shutil.disk_usage(arrived.file.parent).free
        try:
            transport.fetch(arrived.file, start, arrived.validator, most, watch)
        except (NoSpaceError, OSError):
            if arrived.total is None:  # it may have no end
                arrived.remove()
            raise
        finally:
            if not begun and not start:
                arrived.remove()  # what came was not the file
        excess = 0 if arrived.total is None else arrived.size - arrived.total
        if excess < 0:
            raise Broken("the connection ended too early")
        if excess > 0:
            arrived.remove()
            raise Broken("more came than the server had said")

    def _begin(self, answer: Answer, start: int) -> None:
        if not (self.known or answer.chunked or answer.total is not None):
            raise DownloadError(
                "the server does not tell the length of the file: a cut one would look whole",
                where=shown(self.url),
                todo="fetch it by other means and see that it is whole; a definition may name a "
                "file",
            )
        if start and answer.total != self.arrived.total:
            raise Changed
        if not start:
            self.arrived.begin(answer)
        self.arrived.joined = start > 0

    def _given_up(self, reason: str) -> DownloadError:
        size, total = self.arrived.size, self.arrived.total
        of = f" of {format_size(total)}" if total else ""
        so_far = f"; {format_size(size)}{of} have arrived and are kept" if size else ""
        return DownloadError(
            f"the file cannot be fetched: {reason}{so_far}",
            where=shown(self.url),
            todo="run the same command again when the server answers; it goes on" if size else TODO,
        )
