"""How long work is shown: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from pipeline.model import Progress, format_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_LINE_SECONDS = 10.0  # between two lines that tell how far a transfer is


class Reporter:
    """Makes the progress of each piece of work; `verbose` passes on what programs print."""

    def __init__(self, stream: IO[str], *, verbose: bool = False) -> None:
        self._stream = stream
        self._verbose = verbose
        self._bars: Bars | None = None
        self._lock = threading.Lock()

    @contextmanager
    def shown(self) -> Iterator[Reporter]:
        """Shows progress while the block lasts."""
        if self._verbose or not self._stream.isatty():
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}", markup=False),
        )
        with Bars(*columns, console=Console(file=self._stream), transient=False) as self._bars:
            try:
                yield self
            finally:
                for task in self._bars.tasks:
                    self._bars.stop_task(task.id)
        self._bars = None

    def start(self, title: str) -> Progress:
        """The progress of one piece of work."""
        if self._bars is None:
            return _Lines(self, title)
        return _Bar(self._bars, self._bars.add_task(title, total=None, step=""))

    def line(self, title: str, text: str) -> None:
        """Writes a line of one piece of work."""
        with self._lock:
            self._stream.write(f"{title}: {text}\n")
            self._stream.flush()

    def verbose_line(self, title: str, text: str) -> None:
        """Writes a line that a program printed, if these are wanted."""
        if self._verbose:
            self.line(f"{title} |", text)


class _Lines:
    """Progress as lines of a log."""

    def __init__(self, reporter: Reporter, title: str) -> None:
        self._reporter = reporter
        self._title = title
        self._next = time.monotonic() + _LINE_SECONDS

    def step(self, text: str) -> None:
        self._reporter.line(self._title, text)

    def advance(self, done: int, total: int | None) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_SECONDS
        of = f" of {format_size(total)}" if total is not None else ""
        self._reporter.line(self._title, f"{format_size(done)}{of}")

    def output(self, line: str) -> None:
        self._reporter.verbose_line(self._title, line)


class _Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def step(self, text: str) -> None:
        finished = text.startswith("done")
        self._bars.update(self._task, step=text, total=1 if finished else None, completed=finished)
        if finished:
            self._bars.stop_task(self._task)

    def advance(self, done: int, total: int | None) -> None:
        self._bars.update(self._task, completed=done, total=total)

    def output(self, line: str) -> None: ...
