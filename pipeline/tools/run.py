"""The only place that runs programs.

Each command line goes to a log, and its output follows. The error of a failed command carries the
command, its exit status, its last lines and the log's path.
The kernel ends programs together with this process: none survives a `kill -9`, but those that are
to (`leave_running`).

A program gets no environment but `INHERITED` and what its caller says: credentials that stand in
the user's environment are for those who ask for them by name. Logs are for the user alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import HostError, NoSpaceError, PhantomError, StageFailedError
from pipeline.model import NoProgress, Progress
from pipeline.resources import setup_hint
from pipeline.terminal import escape
from pipeline.tools.tails import tail

_LINES, _LINE = 200, 4096  # lines of a program's output that are kept, and characters of each
_WATCH_SECONDS = 0.2
_NOTHING = re.compile("(?!)")
Process = subprocess.Popen[str]
"""A running program."""

_running: dict[Process, tuple[bool, int]] = {}
"""The running programs: whether each has a lifeline, and the thread that started it."""
_stops: list[tuple[Callable[[], None], int]] = []
"""Functions that end long work in this process, each with the thread that does it."""

INHERITED = (
    *("HOME", "LOGNAME", "USER", "PATH", "TERM", "TMPDIR", "TZ", "XDG_CACHE_HOME"),
    *("XDG_RUNTIME_DIR", "LD_LIBRARY_PATH", "LIBGUESTFS_HV", "LIBGUESTFS_PATH"),
)
"""The variables that every program gets from the user's environment: none of them is secret."""
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")

# Debian's folders of programs for administrators, which other users' PATH lacks.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
# What becomes the program first writes down which process it is.
_NOTED_START = (
    'cat "/proc/$$/stat" /proc/sys/kernel/random/boot_id >"$1.new" && mv "$1.new" "$1" && '
    'shift && exec "$@"'
)
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


class ToolError(StageFailedError):
    """A program ended with a status other than 0; `status` and `output` say how."""

    def __init__(self, argv: Sequence[str], status: int, output: str, log: Path | None) -> None:
        ended = f"ended with status {status}" if status >= 0 else f"was ended by {_signal(status)}"
        super().__init__(
            f"{Path(_program(argv)).name} {ended}",
            todo=None if log is None else "see the log, which has all that it printed",
            log=log,
            detail=tail(output.splitlines()),
        )
        self.argv = tuple(argv)
        self.status = status
        self.output = output

    def __str__(self) -> str:
        # A log begins with the command.
        command = f"\n  command: {escape(shlex.join(self.argv))}" if self.log is None else ""
        return super().__str__() + command


def _popen(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    outlives: bool = False,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Starts a program whose output goes to a pipe. Raises HostError."""
    try:
        return subprocess.Popen(
            [*(() if outlives else _DIE_WITH_PARENT), *argv],
            start_new_session=outlives,
            env=_environment(env),
            stdout=subprocess.PIPE,
            **options,
        )
    except OSError as error:
        raise _cannot_start(argv, error) from error


def capture(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
    most: int | None = None,
) -> str:
    """Returns what a short program prints on its standard output.

    Kills a program that runs for longer than `timeout` seconds, which must not belong to another
    user, or that has printed `most` characters, and returns those. Raises ToolError, HostError.
    """
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    process: Process = _popen(
        argv, env, stdin=stdin, stderr=subprocess.PIPE, text=True, errors="replace"
    )
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
    _check(argv, process.returncode, complaints + printed)
    return printed


def _communicate(process: Process, input: str, timeout: float | None, most: int) -> tuple[str, str]:
    """Like `Popen.communicate`, but reads at most `most` characters."""
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
    """Returns the first `most` bytes that a program writes, and then ends it.

    Raises ToolError for a program that fails before it has written them, HostError.
    """
    process: subprocess.Popen[bytes] = _popen(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
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
    _check(argv, status, complaints)
    return head


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: Path,
    progress: Progress | None = None,
    lifeline: bool = False,
    handed: bytes = b"",
    hidden: re.Pattern[str] | None = None,
    watch: Callable[[], None] | None = None,
) -> None:
    """Runs a program to its end, and sends its output to `log` and to `progress`, with asterisks in
    place of what matches `hidden`. `env` is added to its environment.

    `watch` is called several times a second; what it raises ends the program, and is raised.

    With `lifeline`, the program's standard input stays open for as long as this process lives. A
    program of another user, which the kernel cannot end together with us, watches it instead. It
    reads what is `handed` to it from there before.
    Raises ToolError, NoSpaceError, HostError.
    """
    progress = progress or NoProgress()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open_log(log) as written:
        written.write(f"$ {shlex.join(argv)}\n")
        written.flush()
        with (
            start(argv, env=env, lifeline=lifeline, handed=handed) as process,
            _watched(process, watch),
        ):
            tail = _stream(process, written, progress, hidden or _NOTHING)
            status = process.wait()
        written.write(f"# status {status}\n")
    _check(argv, status, "\n".join(tail), log)


def open_log(log: Path) -> TextIO:
    """Opens a log to append to; one that is not there yet only this user will be able to read."""
    return open(
        log,
        "a",
        encoding="utf-8",
        errors="replace",
        opener=lambda path, flags: os.open(path, flags, 0o600),
    )


@contextmanager
def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    lifeline: bool = False,
    handed: bytes = b"",
    outlives: bool = False,
) -> Iterator[Process]:
    """A running program, its output on one pipe; ended when the block is left. Raises HostError.

    `input` is all that it reads from its standard input, and is short. `handed` is what a program
    with a lifeline reads there first, before it prints anything.
    With `outlives`, a program with a lifeline is not ended with this process by the kernel or by
    the terminal: it cleans up behind us, and ends when its standard input has.
    """
    process: Process = _popen(
        argv,
        env,
        outlives=outlives,
        stdin=subprocess.PIPE if lifeline or input is not None else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if input is not None and process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(input)
        process.stdin = None
    with _listed(process, lifeline=lifeline):
        try:
            if handed and process.stdin is not None:
                with suppress(OSError, ValueError):  # it has ended, or is being ended
                    left = memoryview(handed)
                    while left:
                        left = left[os.write(process.stdin.fileno(), left) :]
            yield process
        finally:
            _end(process)


def leave_running(argv: Sequence[str], *, note: Path, log: Path, held: int) -> Process:
    """Starts a program that goes on when this process ends, its output in `log`.

    Before it begins, its id and start time, as /proc/PID/stat tells them, and the id of the host's
    start are in `note`. It inherits the descriptor `held`. Raises HostError.
    """
    with open_log(log) as written:
        try:
            return subprocess.Popen(
                ["/bin/sh", "-c", _NOTED_START, "sh", str(note), *argv],
                start_new_session=True,
                env=_environment(None),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                pass_fds=(held,),
                text=True,
            )
        except OSError as error:
            raise _cannot_start(argv, error) from error


def stop_all(thread: int | None = None) -> None:
    """Ends every running program, or those that one thread started; whoever waits for one sees it
    fail."""
    for stop, owner in tuple(_stops):
        if thread in (None, owner):
            stop()
    for process, (lifeline, owner) in tuple(_running.items()):
        if thread not in (None, owner):
            continue
        if lifeline and process.stdin is not None:
            process.stdin.close()  # reaches programs that we may not signal
        else:
            process.kill()


@contextmanager
def stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """Has `stop_all` call `stop` too during the block, for long work in this process. The call
    comes from another thread, and may come several times."""
    entry = (stop, threading.get_ident())
    _stops.append(entry)
    try:
        yield
    finally:
        _stops.remove(entry)


@contextmanager
def _listed(process: Process, *, lifeline: bool) -> Iterator[None]:
    """Lists a program for `stop_all`."""
    _running[process] = lifeline, threading.get_ident()
    try:
        yield
    finally:
        del _running[process]


@contextmanager
def _watched(process: Process, watch: Callable[[], None] | None) -> Iterator[None]:
    """Ends a program by what `watch` raises meanwhile, and raises that."""
    if watch is None:
        yield
        return
    ended, raised = threading.Event(), list[Exception]()

    def look() -> None:
        while not ended.wait(_WATCH_SECONDS):
            try:
                watch()
            except (PhantomError, OSError) as error:
                raised.append(error)
                process.kill()
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    if raised:
        raise raised[0]


def attach(argv: Sequence[str]) -> int:
    """Runs a program on this process's terminal, for a person, and returns its exit status."""
    try:
        return subprocess.run(
            [*_DIE_WITH_PARENT, *argv], env=_environment(None), check=False
        ).returncode
    except OSError as error:
        raise _cannot_start(argv, error) from error


def _end(process: Process) -> None:
    """Ends a program. The lifeline goes first: it reaches programs that we may not signal."""
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


def _stream(
    process: Process, log: TextIO, progress: Progress, hidden: re.Pattern[str]
) -> deque[str]:
    tail: deque[str] = deque(maxlen=_LINES)
    assert process.stdout is not None
    for line in process.stdout:
        line = hidden.sub("***", line)
        log.write(line)
        log.flush()
        line = line.rstrip("\n")
        tail.append(line)
        progress.output(line)
    return tail


def _check(argv: Sequence[str], status: int, output: str, log: Path | None = None) -> None:
    """Raises the error for a program that ended with a status other than 0."""
    check_started(argv, status)
    if status == 0:
        return
    if "No space left on device" in output:
        raise NoSpaceError(
            f"{Path(_program(argv)).name} found no space left on the device",
            todo="free some space there (`phantom-image gc` evicts old artifacts), then run the "
            "same command again",
            log=log,
        )
    raise ToolError(argv, status, output, log)


def check_started(argv: Sequence[str], status: int) -> None:
    """Raises HostError where a program ended with this status because it is not installed."""
    # 126 where a folder of the PATH is not for this user, and none has the program.
    if status in (126, 127) and shutil.which(argv[0], path=_environment(None)["PATH"]) is None:
        raise _cannot_start(argv, FileNotFoundError())


def _cannot_start(argv: Sequence[str], error: OSError) -> HostError:
    program = Path(_program(argv)).name
    missing = isinstance(error, FileNotFoundError)
    reason = "is not installed" if missing else f"does not start: {error.strerror}"
    return HostError(f"{program} {reason}", todo=setup_hint())


def _program(argv: Sequence[str]) -> str:
    """The program that a reader is interested in: not those that only start another one."""
    starters = {"sudo", "env", "prlimit", "setpriv", "sh", Path(sys.executable).name}
    programs = (word for word in argv if not (word.startswith("-") or "=" in word))
    return next((word for word in programs if Path(word).name not in starters), argv[0])


def proxy_environment() -> dict[str, str]:
    """The user's proxies, whose URIs may hold passwords, for programs that reach the network."""
    return {name: os.environ[name] for name in _PROXIES if name in os.environ}


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """What programs get of the user's environment, but with messages in English, because we parse
    some of them."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return {**inherited, "PATH": path, "LC_ALL": "C.UTF-8", **(extra or {})}


def _signal(status: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
