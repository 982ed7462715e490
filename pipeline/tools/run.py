"""The only place that runs programs.

Each command is written to a log so that it can be replayed, its output is streamed there while it
runs, and the error of a failed one carries the command, its exit status, its last lines and the
log's path. Programs die with this process, by the kernel's hand: nothing outlives a `kill -9`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.errors import HostError, NoSpaceError, PhantomError, StageFailedError
from pipeline.model import NoProgress, Progress

LAST_LINES = 12
_LINES, _LINE = 200, 4096  # of a program's output, and letters of each, that are kept
_READ_LOG = "read the log; its first line is the command, to run it by hand"
_NO_SPACE = "No space left on device"
Process = subprocess.Popen[str]
"""A running program."""

_running: dict[Process, bool] = {}
"""What runs, and whether it has a lifeline."""
_stops: list[Callable[[], None]] = []
"""What ends work of our own that takes long."""

# Where Debian keeps programs for administrators, which the PATH of other users lacks.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class ToolError(StageFailedError):
    """A program ended with a status other than 0; `status` and `output` say how."""

    def __init__(self, argv: Sequence[str], status: int, output: str, log: Path | None) -> None:
        ended = f"ended with status {status}" if status >= 0 else f"was ended by {_signal(status)}"
        super().__init__(
            f"{Path(_program(argv)).name} {ended}",
            todo=_READ_LOG if log is not None else f"run it by hand: {shlex.join(_shown(argv))}",
            log=log,
            detail="\n".join(output.splitlines()[-LAST_LINES:]),
        )
        self.status = status
        self.output = output


def capture(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
    most: int | None = None,
) -> str:
    """What a short program prints on its standard output.

    One that runs for longer than `timeout` seconds is killed; it must not be another user's. So is
    one that has printed `most` letters: these are returned. Raises ToolError, HostError.
    """
    try:
        process = subprocess.Popen(
            [*_DIE_WITH_PARENT, *argv],
            env=_environment(env),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _cannot_start(argv, error) from error
    with process, _listed(process, lifeline=False):
        try:
            if most is None:
                printed, complaints = process.communicate(input, timeout)
            else:
                printed, complaints = _communicate(process, input or "", timeout, most)
                if len(printed) == most:
                    return printed
        except subprocess.TimeoutExpired as error:
            late = f"it had not ended after {error.timeout:.3g} s"
            raise ToolError(argv, -signal.SIGKILL, late, None) from error
        finally:
            process.kill()
    _check_started(argv, process.returncode)
    if process.returncode != 0:
        raise _failure(argv, process.returncode, complaints + printed, None)
    return printed


def _communicate(process: Process, input: str, timeout: float | None, most: int) -> tuple[str, str]:
    """As `Popen.communicate`, but no more than so many letters; the program may then run on."""
    assert process.stdout is not None and process.stderr is not None
    complaints: deque[str] = deque(maxlen=_LINES)
    drain = threading.Thread(
        target=lambda: complaints.extend(iter(lambda: process.stderr.readline(_LINE), "")),  # type: ignore[union-attr]
        daemon=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout or 0.0, end)
    drain.start()
    if timeout is not None:
        timer.start()
    try:
        with suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.write(input)
                process.stdin.close()
        printed = process.stdout.read(most)
        if len(printed) < most:
            process.wait()
    finally:
        timer.cancel()
        process.kill()
        drain.join()
    if late.is_set():
        raise subprocess.TimeoutExpired(process.args, timeout or 0.0)
    return printed, "".join(complaints)


def capture_head(argv: Sequence[str], most: int) -> bytes:
    """The first bytes that a program writes, at most so many; it is ended when it has written them.

    Raises ToolError where it failed without having written so many, HostError.
    """
    try:
        process = subprocess.Popen(
            [*_DIE_WITH_PARENT, *argv],
            env=_environment(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise _cannot_start(argv, error) from error
    with process:
        assert process.stdout is not None and process.stderr is not None
        try:
            head = process.stdout.read(most)
            if len(head) == most:
                return head
            complaints = process.stderr.read().decode(errors="replace")
            status = process.wait()
        finally:
            process.kill()
    _check_started(argv, status)
    if status != 0:
        raise _failure(argv, status, complaints, None)
    return head


def run(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    progress: Progress | None = None,
    lifeline: bool = False,
) -> None:
    """Runs a program to its end, with its output going to `log` and to `progress`.

    With `lifeline`, the program's standard input stays open for as long as this process lives: the
    program may watch it, where the kernel cannot end it with us since it runs as another user.
    Raises ToolError, NoSpaceError, HostError.
    """
    progress = progress or NoProgress()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="replace") as written:
        written.write(f"$ {shlex.join(_shown(argv))}\n")
        written.flush()
        with start(argv, env=env, cwd=cwd, lifeline=lifeline) as process:
            tail = _stream(process, written, progress)
            status = process.wait()
        written.write(f"# status {status}\n")
    _check_started(argv, status)
    if status != 0:
        raise _failure(argv, status, "\n".join(tail), log)


@contextmanager
def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    lifeline: bool = False,
    outlives: bool = False,
) -> Iterator[Process]:
    """A running program, its output on one pipe; ended when the block is left. Raises HostError.

    With `outlives`, a program with a lifeline is not ended with this process by the kernel or by
    the terminal: it cleans up behind us, and ends when its standard input has.
    """
    try:
        process = subprocess.Popen(
            [*(() if outlives else _DIE_WITH_PARENT), *argv],
            start_new_session=outlives,
            env=_environment(env),
            cwd=cwd,
            stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _cannot_start(argv, error) from error
    with _listed(process, lifeline=lifeline):
        try:
            yield process
        finally:
            _end(process)


def stop_all() -> None:
    """Ends every program that runs; whoever waits for one sees it fail."""
    for stop in tuple(_stops):
        stop()
    for process, lifeline in tuple(_running.items()):
        if lifeline and process.stdin is not None:
            process.stdin.close()  # it reaches what a signal may not
        else:
            process.kill()


@contextmanager
def stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """Has `stop_all` call `stop` too while the block lasts: for long work that is no program's. It
    is called on another thread, and may be called again and again."""
    _stops.append(stop)
    try:
        yield
    finally:
        _stops.remove(stop)


@contextmanager
def _listed(process: Process, *, lifeline: bool) -> Iterator[None]:
    """Keeps a program where `stop_all` finds it."""
    _running[process] = lifeline
    try:
        yield
    finally:
        del _running[process]


def attach(argv: Sequence[str]) -> int:
    """Runs a program on this process's own terminal, for a person; its exit status."""
    try:
        return subprocess.run([*_DIE_WITH_PARENT, *argv], check=False).returncode
    except OSError as error:
        raise _cannot_start(argv, error) from error


def _end(process: Process) -> None:
    """Ends what is still running. The lifeline goes first: it reaches what a signal may not."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        try:
            process.wait(timeout=0.2 if process.stdin is None else 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _stream(process: Process, log: IO[str], progress: Progress) -> deque[str]:
    tail: deque[str] = deque(maxlen=_LINES)
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        log.flush()
        line = line.rstrip("\n")
        tail.append(line)
        progress.output(line)
    return tail


def _failure(argv: Sequence[str], status: int, output: str, log: Path | None) -> PhantomError:
    if _NO_SPACE in output:
        return NoSpaceError(
            f"{Path(_program(argv)).name} found no space left on the device",
            todo="free some space there (`phantom-image gc` evicts old artifacts), then run the "
            "same command again",
            log=log,
        )
    return ToolError(argv, status, output, log)


def _check_started(argv: Sequence[str], status: int) -> None:
    if status == 127 and shutil.which(argv[0], path=_environment(None)["PATH"]) is None:
        raise _cannot_start(argv, FileNotFoundError())


def _cannot_start(argv: Sequence[str], error: OSError) -> HostError:
    program = Path(_program(argv)).name
    reason = (
        "is not installed"
        if isinstance(error, FileNotFoundError)
        else f"does not start: {error.strerror}"
    )
    return HostError(f"{program} {reason}", todo="`make setup` installs what is missing")


def _program(argv: Sequence[str]) -> str:
    """The program that matters to a reader: not the ones that only start another."""
    words = iter(argv)
    for word in words:
        if word == "--" or word.startswith("-") or "=" in word:
            continue
        if Path(word).name not in {"sudo", "env", "prlimit", "setpriv", "unshare", "sh"}:
            return word
    return argv[0]


def _shown(argv: Sequence[str]) -> list[str]:
    return [str(word) for word in argv]


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Messages in English, since some are read by this program; the rest as the user has it."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(extra or {})}


def _signal(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
