"""Where nights keep their files: `build/nightly`, with a folder for each night's reports."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline import records
from pipeline.errors import NightNotRunError
from pipeline.files import make_folder, open_lock, write_atomically
from pipeline.workspace import NIGHTLY, Workspace

_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_FORMAT = "%Y%m%dT%H%M%SZ"
_STATE = {"name": _NAME, "done": [{"appliance": str, "site": str, "build": str}]}


@dataclass(frozen=True)
class Done:
    """A build that a site got."""

    appliance: str
    site: str
    build: str


@dataclass(frozen=True)
class Unfinished:
    """A night that was killed, and what it had done."""

    name: str
    done: tuple[Done, ...]


def make_name(moment: float) -> str:
    """The name of a night that begins at that moment."""
    return datetime.fromtimestamp(moment, UTC).strftime(_FORMAT)


class Places:
    """The nights of one folder of builds."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.build / NIGHTLY
        self._errors = workspace.errors
        self._state = self.folder / "state.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other nights of this folder out while the block runs; the kernel lets them in again
        if this process dies. Raises NightNotRunError, StoreError."""
        with self._errors():
            make_folder(self.folder)
            lock = open_lock(self.folder / "lock")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise NightNotRunError(
                    "another nightly runs here",
                    where=str(self.folder),
                    todo="let it end; what it does not build, the next one does",
                ) from error
            yield
        finally:
            os.close(lock)

    def make_name(self, now: float) -> str:
        """The name of a night that begins now: later than those of all nights before, even where
        the clock was set back."""
        names = [each.name for each in self.folder.glob("*Z") if _NAME.fullmatch(each.name)]
        if unfinished := self.find_unfinished():
            names.append(unfinished.name)
        moments = [datetime.strptime(each, _FORMAT).replace(tzinfo=UTC) for each in names]
        earliest = max((each.timestamp() + 1 for each in moments), default=now)
        return make_name(max(now, earliest))

    def find_unfinished(self) -> Unfinished | None:
        """The last night, if it was killed."""
        told = records.read(self._state, _STATE, sealed=True)
        if told is None:
            return None
        done = (Done(each["appliance"], each["site"], each["build"]) for each in told["done"])
        return Unfinished(name=told["name"], done=tuple(done))

    def note(self, name: str, done: Sequence[Done]) -> None:
        """Notes what the night of that name has done so far."""
        state = {"name": name, "done": [vars(each) for each in done]}
        with self._errors():
            make_folder(self.folder)
            write_atomically(self._state, json.dumps(records.seal(state)) + "\n")

    def finish(self) -> None:
        """Notes that the night came to its end."""
        with self._errors():
            self._state.unlink(missing_ok=True)
