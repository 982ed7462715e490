"""A command in a copy of a root file system, on this process's terminal or with its files."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import NoSpaceError, StageFailedError
from pipeline.machine import console
from pipeline.tools import namespace, open_tree, run

_PROGRAM = Path(open_tree.__file__)


def run_in_copy(root: Path, command: Sequence[str], work: Path, *, terminal: bool) -> int:
    """Unpacks an ext4 file system into the empty folder `work` and runs a command there as root of
    namespaces of its own, which has no network; without a command, the tree's shell. Returns its
    exit status as a shell tells it.

    With `terminal`, it gets a terminal of its own, shown on this process's; else this process's
    standard input, output and error. Whatever it starts ends with it, and with this process. Raises
    StageFailedError where the file system cannot be unpacked as it is, NoSpaceError, HostError.
    """
    seen = work / "seen"
    seen.mkdir()
    how = "terminal" if terminal else "files"
    argv = [sys.executable, "-I", "-S", str(_PROGRAM), how, str(root), str(seen), *command]
    python = map(Path, dict.fromkeys((sys.prefix, sys.base_prefix)))
    view = namespace.View(readable=[*python, _PROGRAM, root], writable=[seen])
    environment = {
        "LC_ALL": "C.UTF-8",
        "PATH": f"{namespace.PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": os.environ.get("TERM", "dumb"),
    }
    with _listening(seen) as listener:
        started = namespace.started_isolated(
            argv, view=view, folder=work / "namespace", environment=environment
        )
        with started as process:
            asked = _wait_for_tree(listener, process)
            with asked:
                status = _serve(asked, terminal=terminal)
    if status is None:
        raise StageFailedError("the command was ended with what it ran in")
    return status


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """A socket in a folder, whose path may be longer than a socket's."""
    descriptor = os.open(folder, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/{open_tree.SOCKET}")
            listener.listen(1)
            yield listener
    finally:
        os.close(descriptor)


def _wait_for_tree(listener: socket.socket, process: run.Process) -> socket.socket:
    """The connection that comes when the tree is there. Raises StageFailedError, NoSpaceError."""
    assert process.stdout is not None
    output, said = process.stdout.fileno(), b""
    while True:
        ready, _, _ = select.select([listener.fileno(), output], [], [])
        if listener.fileno() in ready:
            return listener.accept()[0]
        printed = os.read(output, 1 << 12)
        said = (said + printed)[-(1 << 14) :]
        if not printed:
            break
    text = said.decode(errors="replace").strip()
    if "No space left on device" in text:
        raise NoSpaceError(
            "no space is left for a copy of the root file system",
            todo="free some space in the store's folder (`phantom-image gc` evicts old artifacts), "
            "then run the same command again",
        )
    raise StageFailedError("the root file system cannot be unpacked", detail=text or None)


def _serve(asked: socket.socket, *, terminal: bool) -> int | None:
    """Lets the command run to its end; its status, or None where it did not tell one."""
    if terminal:
        _, (side,), _, _ = socket.recv_fds(asked, 1, 1)
        try:
            with console.raw(), _sized(side):
                _copy(side, asked)
        finally:
            os.close(side)
    else:
        socket.send_fds(asked, [b"."], [0, 1, 2])
    told = b""
    while data := asked.recv(16):
        told += data
    return int(told) if told else None


@contextmanager
def _sized(side: int) -> Iterator[None]:
    """Keeps a pseudo-terminal as large as this process's terminal."""

    def resize(*_: object) -> None:
        with suppress(OSError):
            size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(side, termios.TIOCSWINSZ, size)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize()
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy(side: int, asked: socket.socket) -> None:
    """Copies between the terminal and the command's until the command has ended."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    os.set_blocking(side, False)
    typed = b""
    while True:
        sources = [side, asked, *([] if typed else [keyboard])]
        ready, writable, _ = select.select(sources, [side] if typed else [], [])
        if side in ready:
            try:
                printed = os.read(side, 1 << 16)
            except BlockingIOError:
                continue
            except OSError:  # how Linux reports that nobody has it open any more
                return
            console.write(screen, printed)
        elif asked in ready:
            return
        if keyboard in ready:
            typed = os.read(keyboard, 1 << 10)
            if not typed:  # the terminal was closed
                return
        if side in writable:
            with suppress(BlockingIOError):
                typed = typed[os.write(side, typed) :]
