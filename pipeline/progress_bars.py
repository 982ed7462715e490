"""Rows on a terminal: a mark, the work's title, its time, a bar where its size is known, and a
text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, OverflowMethod, RenderableType
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from pipeline.terminal import escape, unguarded

_MARKS = {"done": ("✓", "+", "green"), "failed": ("✗", "x", "red")}  # in Unicode, in ASCII
_NEW: dict[str, Any] = {
    "state": "running",
    "step": "",
    "since": 0.0,
    "seconds": None,
    "done": 0,
    "size": None,
}
_BAR_WIDTH = 20


class Bars:
    """The rows of one command."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rows: dict[str, TaskID] = {}

    def begin(self, title: str) -> TaskID:
        """Adds a row, or begins the one of that title again."""
        if title in self._rows:
            self._progress.reset(self._rows[title], **_NEW)
        else:
            self._rows[title] = self._progress.add_task(title, total=None, **_NEW)
        return self._rows[title]

    def step(self, row: TaskID, text: str, seconds: float | None) -> None:
        """Says what is done now, and how many seconds it may take."""
        since = time.monotonic()
        self._progress.update(row, step=text, since=since, seconds=seconds, done=0, size=None)

    def advance(self, row: TaskID, done: int, size: int | None) -> None:
        """Says how many bytes are done, of how many."""
        self._progress.update(row, done=done, size=size)

    def end(self, row: TaskID, state: str, text: str | None) -> None:
        """Marks a row as `done` or `failed`; without a text its last step stays."""
        more: dict[str, Any] = {} if text is None else {"step": text}
        self._progress.update(row, state=state, seconds=None, **more)
        self._progress.stop_task(row)

    def end_all(self, state: str, text: str | None) -> None:
        """Ends the rows that have no end yet."""
        for task in self._progress.tasks:
            if task.fields["state"] == "running":
                self.end(task.id, state, text)


@contextmanager
def drawn(stream: IO[str]) -> Iterator[Bars]:
    """Rows on a terminal while the block lasts; they stay there in their last state."""
    console = Console(file=unguarded(stream))
    plain = not console.encoding.lower().startswith("utf")
    columns = (
        _Mark(plain=plain),
        _Title(Column(no_wrap=True)),
        TimeElapsedColumn(),
        _Bar(),
        _Step(plain=plain),
    )
    with Progress(*columns, console=console) as progress:
        bars = Bars(progress)
        try:
            yield bars
        except BaseException:
            bars.end_all("failed", "stopped")
            raise
        bars.end_all("done", None)


class _Mark(SpinnerColumn):
    """A spinner while the work runs, then how it ended."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__("line" if plain else "dots")
        self._plain = plain

    def render(self, task: Task) -> RenderableType:
        if task.fields["state"] == "running":
            return super().render(task)
        mark, ascii_mark, style = _MARKS[task.fields["state"]]
        return Text(ascii_mark if self._plain else mark, style=style)


class _Title(ProgressColumn):
    """What the work is called."""

    def render(self, task: Task) -> Text:
        return Text(escape(task.description))


class _Bar(ProgressColumn):
    """How far a transfer is; nothing where nobody knows."""

    def render(self, task: Task) -> RenderableType:
        done, size = task.fields["done"], task.fields["size"]
        if not size or task.fields["state"] != "running":
            return Text()
        return ProgressBar(size, min(done, size), width=_BAR_WIDTH)


class _Step(ProgressColumn):
    """What is being done, and where its time is limited, for how long already."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self._overflow: OverflowMethod = "crop" if plain else "ellipsis"

    def render(self, task: Task) -> Text:
        text = Text(escape(task.fields["step"]), no_wrap=True, overflow=self._overflow)
        if (limit := task.fields["seconds"]) is not None:
            took = time.monotonic() - task.fields["since"]
            text.append(f": {_clock(took)} of at most {_clock(limit)}")
        return text


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
