"""A machine's console on a person's terminal, with hints that come again when the machine has
cleared the screen."""

from __future__ import annotations

import itertools
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pipeline.errors import NoSpaceError
from pipeline.machine.full_disk import FullDiskWatch
from pipeline.tools import run

_KERNEL = re.compile(rb"\] Linux version |systemd\[1\]: ")
_LOGIN = re.compile(rb"login: ")
_QUIET = 1.0  # seconds after which a prompt waits for a person
_KEPT = 200  # bytes of the last line that are looked at


def attach(argv: Sequence[str], hint: str) -> int:
    """Runs a machine whose serial port is its standard input and output, on this process's
    terminal. Returns its exit status.

    The lines of `hint` come after the boot loader and again with the login prompt: firmware and
    boot loader clear the screen. Raises HostError, and NoSpaceError where the machine's disk cannot
    grow.
    """
    with FullDiskWatch() as watch:
        argv = [*argv, *itertools.chain.from_iterable(watch.options)]
        with run.start(argv, lifeline=True) as process, raw():
            try:
                _copy(process, Hints(hint))
                status = process.wait()
            finally:
                process.kill()  # its disk is thrown away: nothing has to be shut down
    if watch.full is not None:
        raise NoSpaceError(
            "the machine was ended: no space is left on this host for what it writes to its disk",
            todo="free some space in the store's folder (`phantom-image gc` evicts old artifacts), "
            "then run the same command again",
        )
    return status


class Hints:
    """Puts a hint into what a machine prints: when its kernel starts, and at its login prompt."""

    def __init__(self, hint: str) -> None:
        lines = (f"\x1b[7m{line}\x1b[0m" for line in hint.splitlines())
        self._hint = "".join(f"{line}\r\n" for line in lines).encode()
        self._due = {_KERNEL, _LOGIN}
        self._line = b""
        """The end of the last line, which no line feed has ended yet."""

    def pass_on(self, data: bytes) -> bytes:
        """What the machine printed, with the hint in it where it is due."""
        shown = b""
        *lines, rest = data.split(b"\n")
        for line in lines:
            shown += line + b"\n"
            self._line += line
            for due in [due for due in self._due if due.search(self._line)]:
                self._due.remove(due)
                shown += self._hint
            self._line = b""
        self._line = (self._line + rest)[-_KEPT:]
        return shown + rest

    def is_waiting(self) -> bool:
        """Whether the machine waits at a login prompt whose hint is still due."""
        return _LOGIN in self._due and self._line.endswith(b"login: ")

    def at_prompt(self) -> bytes:
        """The hint below a login prompt, and the prompt again."""
        self._due.discard(_LOGIN)
        prompt = self._line.rpartition(b"\r")[2]
        return b"\r\n" + self._hint + prompt


def _copy(process: run.Process, hints: Hints) -> None:
    """Copies between terminal and machine until the machine ends."""
    assert process.stdin is not None and process.stdout is not None
    machine_in, machine_out = process.stdin.fileno(), process.stdout.fileno()
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    os.set_blocking(machine_in, False)
    typed = b""
    while True:
        sources = [machine_out, *([] if typed else [keyboard])]
        ready, writable, _ = select.select(sources, [machine_in] if typed else [], [], _QUIET)
        if not ready and hints.is_waiting():
            write(screen, hints.at_prompt())
        if machine_out in ready:
            printed = os.read(machine_out, 1 << 16)
            if not printed:
                return
            write(screen, hints.pass_on(printed))
        if keyboard in ready:
            typed = os.read(keyboard, 1 << 10)
            if not typed:  # the terminal was closed
                process.kill()
                return
        if machine_in in writable:
            typed = typed[os.write(machine_in, typed) :]


def write(file: int, data: bytes) -> None:
    """Writes all of it."""
    while data:
        data = data[os.write(file, data) :]


@contextmanager
def raw() -> Iterator[None]:
    """The terminal passes on every key, control-c too, while the block lasts."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setraw(keyboard, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        with suppress(OSError):  # it may be gone
            write(sys.stdout.fileno(), b"\x1b[0m\n")
