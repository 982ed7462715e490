"""The progress of long work: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from pipeline.model import Progress, format_size
from pipeline.terminal import escape

if TYPE_CHECKING:
    from pipeline.progress_bars import Bars

_LINE_SECONDS = 10.0  # between two lines about how far a transfer is
_QUIET_SECONDS = 30.0  # after which a line says that work still goes on

Start = Callable[[str], Progress]
"""Starts the progress of a piece of work with that title."""


@contextmanager
def shown(stream: IO[str], *, verbose: bool) -> Iterator[Start]:
    """Shows progress while the block lasts. `verbose` passes on what programs print.

    Work with the title of earlier work takes its place. Work that has no end when the block is left
    has ended as the block has: well, or stopped by an error.
    """
    if verbose or not _can_draw(stream):
        with _Log(stream, verbose=verbose) as log:
            yield log.start
        return
    from pipeline.progress_bars import drawn

    with drawn(stream) as bars:
        yield lambda title: _Bar(bars, title)


def _can_draw(stream: IO[str]) -> bool:
    """Whether the stream is a terminal that can move its cursor."""
    terminal = os.environ.get("TERM", "").lower()
    return stream.isatty() and terminal not in ("", "dumb", "unknown")


@contextmanager
def failing(progress: Progress, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Where an error ends the block, marks the work as failed, or as stopped if it was."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or stopped()
        progress.fail("stopped" if interrupted else "failed")
        raise


class _Log:
    """Progress as lines. A thread says of quiet work that it goes on."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._lock = threading.Lock()
        self._open: dict[str, _Lines] = {}
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._remind, name="progress", daemon=True)

    def __enter__(self) -> _Log:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def start(self, title: str) -> Progress:
        lines = self._open[title] = _Lines(self.write, title, verbose=self._verbose)
        return lines

    def write(self, line: str) -> None:
        with self._lock:
            self._stream.write(f"{escape(line)}\n")
            self._stream.flush()

    def _remind(self) -> None:
        while not self._ended.wait(1.0):
            for lines in list(self._open.values()):
                lines.remind()


class _Lines:
    """One piece of work as lines of a log."""

    def __init__(self, write: Callable[[str], None], title: str, *, verbose: bool) -> None:
        self._write = write
        self._title = title
        self._verbose = verbose
        self._text: str | None = None
        self._began = self._said = time.monotonic()
        self._advanced = self._began
        self._limit = ""

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self._text, self._began = text, time.monotonic()
        self._limit = "" if seconds is None else f" of at most {seconds:.0f} s"
        limit = "" if seconds is None else f", at most {seconds:.0f} s"
        self._say(f"{text}{limit}")

    def finish(self, text: str) -> None:
        self._text = None
        self._say(text)

    fail = finish

    def advance(self, done: int, total: int | None) -> None:
        if time.monotonic() < self._advanced + _LINE_SECONDS:
            return
        self._advanced = time.monotonic()
        of = f" of {format_size(total)}" if total is not None else ""
        self._say(f"{format_size(done)}{of}")

    def output(self, line: str) -> None:
        if self._verbose:
            self._said = time.monotonic()
            self._write(f"{self._title} |: " + line.rstrip("\r"))

    def remind(self) -> None:
        """Says that the work goes on, if nothing was said of it for a while."""
        now = time.monotonic()
        if self._text is not None and now >= self._said + _QUIET_SECONDS:
            self._say(f"{self._text}: {now - self._began:.0f} s{self._limit}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self._write(f"{self._title}: {text}")


class _Bar:
    """One piece of work as a row on a terminal."""

    def __init__(self, bars: Bars, title: str) -> None:
        self._bars = bars
        self._row = bars.begin(title)

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self._bars.step(self._row, text, seconds)

    def finish(self, text: str) -> None:
        self._bars.end(self._row, "done", text)

    def fail(self, text: str) -> None:
        self._bars.end(self._row, "failed", text)

    def advance(self, done: int, total: int | None) -> None:
        self._bars.advance(self._row, done, total)

    def output(self, line: str) -> None: ...
