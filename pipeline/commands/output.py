"""Output that commands share: the only place in `commands/` that prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from pipeline.errors import PhantomError
from pipeline.terminal import escape, unguarded

_UNLIMITED = 1 << 20  # columns: no line of a pipe or file is wrapped


def print_line(text: str = "", *, file: IO[str] | None = None) -> None:
    """Prints one line on standard output, or on `file`. A line feed in the text is part of some
    field, and shown as `\\n`."""
    print(escape(text), file=file)


def print_lines(lines: Iterable[str], *, file: IO[str] | None = None) -> None:
    """Prints each line as `print_line` does."""
    for line in lines:
        print_line(line, file=file)


def print_json(value: object, *, ascii_only: bool = True) -> None:
    """Prints a value for programs. What no terminal should see is escaped as JSON has it."""
    print(escape(json.dumps(value, indent=2, ensure_ascii=ascii_only), keep="\n"))


def describe_error(error: PhantomError) -> dict[str, Any]:
    """An error as programs get it."""
    return {
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "what": error.what,
        "where": error.where,
        "todo": error.todo,
        "detail": error.detail,
        "log": str(error.log) if error.log else None,
    }


def print_error(error: PhantomError) -> None:
    """Prints an error for people on standard error, in colour on a terminal."""
    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\x1b[31merror:\x1b[0m" if colours else "error:"
    print(label, end=" ", file=unguarded(sys.stderr))
    print(error, file=sys.stderr)


class Cell(str):
    """A table's cell of several lines or with a style, which `cell` makes."""

    style: str = ""


def cell(lines: Iterable[str], style: str = "") -> Cell:
    """A table's cell of several lines, on a terminal in a style of rich's, such as `red`."""
    made = Cell("\n".join(map(escape, lines)))
    made.style = style
    return made


def print_table(
    rows: Sequence[Sequence[str]],
    headers: Sequence[str] = (),
    *,
    indent: int = 0,
    first: int = 0,
) -> None:
    """Prints columns, the first at least `first` characters wide. Cells wrap to fit a terminal's
    width; elsewhere no line wraps. Columns without any text are left out. Only
    `cell` makes cells of several lines: elsewhere a line feed is part of some field."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        force_terminal=terminal,
        width=None if terminal else _UNLIMITED,
    )
    width = max(map(len, (headers, *rows)), default=0)
    filled = [*(tuple(row) + ("",) * (width - len(row)) for row in rows)]
    names = tuple(headers) + ("",) * (width - len(headers))
    shown = [number for number in range(width) if any(row[number] for row in (names, *filled))]
    table = Table(box=None, pad_edge=False, show_header=bool(headers))
    for number in shown:
        table.add_column(names[number], min_width=None if number else first)
    for row in filled:
        texts = (row[number] for number in shown)
        cells = (text if isinstance(text, Cell) else cell([text]) for text in texts)
        table.add_row(*(Text(each, style=each.style, overflow="fold") for each in cells))
    with console.capture() as captured:
        console.print(Padding(table, (0, 0, 0, indent)))
    for line in captured.get().split("\n")[:-1]:
        print(line.rstrip(), file=unguarded(sys.stdout))  # with rich's colours


def format_place(publication: Mapping[str, Any]) -> str:
    """A publication's site, with its region where it has one."""
    region = publication["region"]
    return f"{publication['site']} ({region})" if region else str(publication["site"])
