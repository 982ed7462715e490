"""Machines as the controller sees them, and those that are processes of this host.

A process has a folder of its own, where it writes down its id and start time before it becomes the
machine: so a Phantom that was killed at any moment finds its machines again, and takes no other
process for one. It holds the folder's lock for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import StageFailedError
from pipeline.files import make_folder
from pipeline.tools import run

LOCK, NOTE, LOG = "lock", "process", "console.log"
_START_SECONDS = 30.0  # until a process has written its note, on the busiest host
_END_SECONDS = 5.0  # from SIGTERM to SIGKILL
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TIME = 21 - 2  # field 22 of /proc/PID/stat; what follows the name begins with field 3


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a machine is to be."""

    machine: str
    domain: int
    site: str
    image_id: str
    instance_type: str
    user_data: str | None


class Machines(Protocol):
    """What runs machines. All methods but `alive` may take seconds."""

    def start(self, order: Order) -> None:
        """Starts a machine. Raises PhantomError, OSError."""

    def alive(self, machine: str) -> bool:
        """Whether a machine that was started or taken up still runs."""

    def end(self, machine: str) -> None:
        """Ends a machine, which may have ended before, and removes what it leaves. Raises
        OSError."""

    def adopt(self, machines: Collection[str]) -> None:
        """Takes up the machines of an earlier process that still run, and ends all others that it
        left. Raises OSError."""


@dataclass(frozen=True)
class Identity:
    """A process, told from any later one with its id."""

    pid: int
    started: int
    """Clock ticks from the host's start."""
    boot: str
    """The host's start."""

    def runs(self) -> bool:
        """Whether it is still there; a process that has ended and is not yet waited for is not."""
        with suppress(OSError):
            state, started = _read_stat(Path(f"/proc/{self.pid}/stat").read_text())
            here = _BOOT_ID.read_text().strip()
            return (started, here) == (self.started, self.boot) and state not in ("Z", "X")
        return False


class ProcessMachines(ABC):
    """Machines that are processes, with a folder for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Identity] = {}
        self._children: dict[str, run.Process] = {}

    @abstractmethod
    def command(self, order: Order, folder: Path) -> Sequence[str]:
        """Readies a machine's folder, and returns the command that is the machine. Raises
        PhantomError, OSError."""

    def start(self, order: Order) -> None:
        place = self._folder / order.machine
        make_folder(place)
        argv = self.command(order, place)
        with (place / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._children[order.machine] = run.leave_running(
                argv, note=place / NOTE, log=place / LOG, held=lock.fileno()
            )
        identity = _wait_for_note(place)
        if identity is None:
            raise StageFailedError("the machine's process did not start")
        self._known[order.machine] = identity

    def alive(self, machine: str) -> bool:
        child = self._children.get(machine)
        if child is not None and child.poll() is not None:
            return False
        identity = self._known.get(machine)
        return identity is not None and identity.runs()

    def end(self, machine: str) -> None:
        place = self._folder / machine
        identity = self._known.pop(machine, None) or _wait_for_note(place)
        if identity is not None:
            _end(identity)
        child = self._children.pop(machine, None)
        if child is not None:
            child.wait()
        if place.exists():
            shutil.rmtree(place)

    def adopt(self, machines: Collection[str]) -> None:
        make_folder(self._folder)
        for place in sorted(self._folder.iterdir()):
            identity = _wait_for_note(place)
            if place.name in machines and identity is not None and identity.runs():
                self._known[place.name] = identity
            else:
                self.end(place.name)

    def running(self) -> list[str]:
        """The machines that were started or taken up, and not ended."""
        return list(self._known)

    def find_pid(self, machine: str) -> int | None:
        """The id of a machine's process."""
        identity = self._known.get(machine)
        return None if identity is None else identity.pid


def _wait_for_note(place: Path) -> Identity | None:
    """What a process has written down; None where none has begun. One that holds the lock is about
    to write."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        locked = _is_locked(place / LOCK)
        with suppress(OSError, ValueError, IndexError):
            stat, boot = (place / NOTE).read_text().rstrip("\n").rsplit("\n", 1)
            return Identity(int(stat.partition(" ")[0]), _read_stat(stat)[1], boot)
        if not locked or time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read_stat(text: str) -> tuple[str, int]:
    """The state and the start time in the text of /proc/PID/stat."""
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[_START_TIME])


def _end(identity: Identity) -> None:
    """Ends a process. A descriptor of it cannot come to mean another process."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not identity.runs():
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], _END_SECONDS)[0]:
                return
    finally:
        os.close(descriptor)
