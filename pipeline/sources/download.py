"""A file from a network, fetched whole, checked, and kept once.

What has arrived lies in the store's `downloads/`, outside of what a stage throws away, beside a
record of what is needed to go on: so a broken or killed download loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ChecksumError, DownloadError, NoSpaceError
from pipeline.model import KIB, MIB, Progress, Sha256, format_size
from pipeline.sources.transport import Body, Broken, Changed, Transport, make_transport, shown
from pipeline.sources.unpacking import interruptible
from pipeline.stages.base import HERE_ONLY, Context, Stage
from pipeline.store import Artifact, Store, write_atomically
from pipeline.tools.disk_formats import HEAD, is_web_page

FILE = "download"

PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds; each pause is twice the one before
_FIRST_ATTEMPTS = 3  # until anything has come: a name that is wrong is told soon
_ATTEMPTS = 6  # in a row, of which each brought less than `_PROGRESS`
_ALL_ATTEMPTS = 200
_PROGRESS = 1 << 20
_LONGEST_WAIT = 30.0  # of what a server may ask for
_OPEN_SECONDS = 120.0  # until a body begins, with all redirections
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 64 * KIB  # a server that sends less meanwhile has broken off
_SPACE_STEP = 64 * MIB


@dataclass(frozen=True, kw_only=True)
class Download(Stage):
    """A file by its digest, from wherever it can be had."""

    name: ClassVar[str] = "download"

    sha256: Sha256
    url: str = field(metadata=HERE_ONLY)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        store = Store(context.store)
        fetched = fetch(self.url, store, context.progress, expected=self.sha256)
        return fetched.move(context.out)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that has come whole."""

    file: Path
    """In the store's `downloads/`."""
    bytes: int
    sha256: Sha256
    origin: Mapping[str, str | None]
    """What the server said by which it would know the file again."""
    forget: Callable[[], None]
    """Removes the file and what was noted to go on by."""

    def move(self, folder: Path) -> Mapping[str, Any]:
        """Moves the file into the folder of an artifact; the artifact's facts."""
        self.file.rename(folder / FILE)
        self.forget()
        return {"bytes": self.bytes, "sha256": self.sha256, "origin": self.origin}


def fetch(url: str, store: Store, progress: Progress, expected: Sha256 | None) -> Fetched:
    """Fetches a file, going on where an earlier attempt ended; the caller holds a lock on it.

    With `expected`, mirrors share what has arrived, and another digest is an error.
    Raises ChecksumError, DownloadError, NoSpaceError, StoreError.
    """
    name = expected or f"url-{digest_of_url(url)}"
    partial = _Partial(store.path("downloads") / f"{name}.part")
    work = _Fetching(url, partial, store, progress, known=expected is not None)
    with store.errors():
        work.run()
        if expected is not None and partial.joined and partial.digest() != expected:
            # Two files that had the same ETag or time may have been put together.
            progress.step("what had arrived before does not fit: fetching all of it anew")
            partial.remove()
            work.run()
        digest, size, head = partial.digest(), partial.size, partial.head()
        if expected is not None and digest != expected:
            partial.remove()
            raise _wrong(url, digest, expected, head)
    origin = {"url": digest_of_url(url), "validator": partial.validator}
    return Fetched(
        file=partial.file, bytes=size, sha256=digest, origin=origin, forget=partial.remove
    )


def keep(fetched: Fetched, url: str, store: Store) -> None:
    """Stores what was fetched without knowing its digest, where a build finds it by that."""
    stage = Download(sha256=fetched.sha256, url=url)
    with store.lock(f"{stage.name}-{stage.key}"), store.errors():
        if store.find(stage.name, stage.key) is None:
            with store.making(stage.name, stage.key) as folder:
                out = folder / "out"
                out.mkdir()
                facts = fetched.move(out)
                store.add(stage.name, stage.key, out, facts)
        fetched.forget()


def is_current(url: str, artifact: Artifact) -> bool:
    """Whether a URL still leads to what was fetched from there, as far as its server tells by what
    it said then. Raises DownloadError."""
    origin, size = artifact.facts.get("origin") or {}, int(artifact.facts["bytes"])
    validator = origin.get("validator")
    if origin.get("url") != digest_of_url(url) or not validator or not size:
        return False
    try:
        body = make_transport(url).open(size - 1, validator)
    except Broken:
        return False  # what is wrong is told when it is fetched
    body.close()
    return body.start == size - 1 and body.total == size


def digest_of_url(url: str) -> str:
    """What stands for a URL in names of files: it may hold what is secret."""
    return hashlib.sha256(url.encode()).hexdigest()


def _wrong(url: str, digest: Sha256, expected: Sha256, head: bytes) -> Exception:
    if is_web_page(head):
        return DownloadError(
            "the base image cannot be fetched: a web page came in its place",
            where=shown(url),
            todo="open the location in a browser: it may want a login, or lead to another place",
        )
    return ChecksumError(
        f"the base image has the SHA-256 {digest}, and its definition says {expected}",
        where=shown(url),
        todo="if its publisher has a new image there, `phantom-image pin` looks at it and writes "
        "the new digest; else do not trust it",
    )


class _Partial:
    """What has arrived of a file, and the record that lies beside it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._record = file.with_suffix(".json")
        self._hashed = hashlib.sha256()
        self._hashed_bytes = 0
        self.validator: str | None = None
        self.total: int | None = None
        self.boot = ""
        """The host's start since which it has been arriving."""
        self.joined = True
        """Whether what is there came in several parts, as far as is known."""
        self._read()

    def _read(self) -> None:
        try:
            record = json.loads(self._record.read_text())
            self.validator, self.total = record["validator"], record["total"]
            self.boot = record["boot"]
        except (OSError, ValueError, KeyError, TypeError):
            self.validator = self.total = None

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def complete(self) -> bool:
        return self.total is not None and self.size == self.total

    def begin(self, body: Body) -> None:
        """Notes what comes, before its first byte does; what is there of another file goes."""
        self.file.unlink(missing_ok=True)
        self._hashed, self._hashed_bytes = hashlib.sha256(), 0
        self.validator, self.total, self.joined = body.validator, body.total, False
        self.boot = _boot()
        record = {"validator": body.validator, "total": body.total, "boot": self.boot}
        write_atomically(self._record, json.dumps(record) + "\n")

    def shorten(self) -> None:
        """Takes the last byte away."""
        with self.file.open("r+b") as opened:
            opened.truncate(max(0, self.size - 1))
        self._hashed, self._hashed_bytes = hashlib.sha256(), 0

    def append(self, opened: Any, chunk: bytes) -> None:
        opened.write(chunk)
        if self._hashed_bytes == opened.tell() - len(chunk):
            self._hashed.update(chunk)
            self._hashed_bytes += len(chunk)

    def digest(self) -> Sha256:
        """The SHA-256 of all that has arrived; what was not hashed as it came is read again."""
        if self._hashed_bytes != self.size:
            with self.file.open("rb") as opened:
                self._hashed = hashlib.file_digest(opened, "sha256")
            self._hashed_bytes = self.size
        return Sha256(self._hashed.hexdigest())

    def head(self) -> bytes:
        with self.file.open("rb") as opened:
            return opened.read(HEAD)

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class _Slowness:
    """Notices a server that sends next to nothing, and goes on with that."""

    def __init__(self) -> None:
        self._since, self._bytes = time.monotonic(), 0

    def check(self, came: int) -> None:
        """Counts what came. Raises Broken."""
        self._bytes += came
        if time.monotonic() - self._since > _SLOW_SECONDS:
            if self._bytes < _SLOW_BYTES:
                raise Broken("the server sends next to nothing")
            self._since, self._bytes = time.monotonic(), 0


class _Fetching:
    """One file's way, over as many attempts as it takes."""

    def __init__(
        self, url: str, partial: _Partial, store: Store, progress: Progress, *, known: bool
    ) -> None:
        """`known`: the digest is, so it tells whether the file is whole and the right one."""
        self._url = url
        self._known = known
        self._partial = partial
        self._store = store
        self._progress = progress
        self._body: Body | None = None

    def run(self) -> None:
        """Fetches until the file is whole."""
        if not self._known and self._partial.boot != _boot():
            self._partial.remove()  # what a crash of the host left need not be what arrived
        if self._partial.complete:
            if self._known:
                return
            self._partial.shorten()  # its last byte tells whether the file is still that one
        transport = make_transport(self._url)
        with interruptible(self._stop) as check:
            self._attempts(transport, check)

    def _attempts(self, transport: Transport, check: Callable[[], None]) -> None:
        came, failures, best = False, 0, self._partial.size
        for _ in range(_ALL_ATTEMPTS):
            try:
                self._attempt(transport, check)
                return
            except Broken as error:
                check()
                if isinstance(error, Changed):
                    self._partial.remove()
                gained = self._partial.size - best
                came = came or gained > 0
                best = max(best, self._partial.size)
                failures = 1 if gained >= _PROGRESS else failures + 1
                if failures >= (_ATTEMPTS if came else _FIRST_ATTEMPTS):
                    raise self._given_up(error) from error
                self._wait(failures, error, check)
        raise self._given_up(Broken("the connection broke again and again"))

    def _attempt(self, transport: Transport, check: Callable[[], None]) -> None:
        start = self._partial.size
        self._say(start)
        body = self._open(transport, start, check)
        self._body = body
        try:
            self._take(body, start, check)
        finally:
            self._body = None
            body.close()

    def _open(self, transport: Transport, start: int, check: Callable[[], None]) -> Body:
        """What a transport opens, on a thread of its own: what waits for a server's first answer
        cannot be stopped, but it can be left."""
        opened: Future[Body] = Future()
        left = threading.Event()

        def work() -> None:
            try:
                body = transport.open(start, self._partial.validator)
            except BaseException as error:  # noqa: BLE001 # whoever waits raises it
                opened.set_exception(error)
                return
            opened.set_result(body)
            if left.is_set():
                body.close()

        threading.Thread(target=work, daemon=True).start()
        deadline = time.monotonic() + _OPEN_SECONDS
        try:
            while not wait([opened], timeout=0.1).done:
                check()
                if time.monotonic() > deadline:
                    raise Broken("the server does not answer in time")
        except BaseException:
            left.set()
            raise
        return opened.result()

    def _take(self, body: Body, start: int, check: Callable[[], None]) -> None:
        """Writes down what comes, behind what is there or in its place."""
        partial = self._partial
        if not (self._known or body.whole_at_end):
            raise DownloadError(
                "the server does not tell how long the file is, so nobody knows when it is whole",
                where=shown(self._url),
                todo="fetch it by other means and see that it is whole; a definition may name a "
                "file",
            )
        goes_on = body.start == start and start > 0
        if goes_on and body.total != partial.total:
            raise Changed
        if goes_on:
            partial.joined = True
        else:
            if start:
                self._progress.step("the server does not go on, or has another file: from anew")
            partial.begin(body)
        if body.total is not None:
            self._store.check_space(body.total - partial.size)
        try:
            self._write(body, check)
        except (NoSpaceError, OSError):
            if body.total is None:  # it may have no end
                partial.remove()
            raise
        self._check_length(body)

    def _write(self, body: Body, check: Callable[[], None]) -> None:
        slow, space = _Slowness(), 0
        with self._partial.file.open("ab") as opened:
            for chunk in body.chunks():
                place = opened.tell()
                if place >= space:
                    left = _SPACE_STEP if body.total is None else max(0, body.total - place)
                    self._store.check_space(min(left, _SPACE_STEP))
                    space = place + _SPACE_STEP
                self._partial.append(opened, chunk)
                check()
                slow.check(len(chunk))
                self._progress.advance(opened.tell(), body.total)

    def _check_length(self, body: Body) -> None:
        size = self._partial.size
        if body.total is not None and size < body.total:
            raise Broken("the connection ended too early")
        if body.total is not None and size > body.total:
            self._partial.remove()
            raise Broken("more came than the server had said")

    def _say(self, start: int) -> None:
        place = shown(self._url)
        if start:
            self._progress.step(f"going on with {place} after {format_size(start)}")
        else:
            self._progress.step(f"fetching {place}")

    def _wait(self, failures: int, error: Broken, check: Callable[[], None]) -> None:
        pause = min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        pause = max(pause, min(error.pause, _LONGEST_WAIT))
        self._progress.step(f"{error.reason}; trying again in {pause:.3g} s")
        deadline = time.monotonic() + pause
        while (left := deadline - time.monotonic()) > 0:
            check()
            time.sleep(min(0.2, left))

    def _given_up(self, error: Broken) -> DownloadError:
        size, total = self._partial.size, self._partial.total
        of = f" of {format_size(total)}" if total else ""
        so_far = f"; {format_size(size)}{of} have arrived and are kept" if size else ""
        return DownloadError(
            f"the base image cannot be fetched: {error.reason}{so_far}",
            where=shown(self._url),
            todo="run the same command again when the server answers; it goes on"
            if size
            else "see that the location is right and that this host reaches it, then run the "
            "command again",
        )

    def _stop(self) -> None:
        body = self._body
        if body is not None:
            body.stop()
