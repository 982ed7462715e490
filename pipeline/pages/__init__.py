"""Static HTML pages: without JavaScript, and without a request to any host."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model import format_size
from pipeline.terminal import escape

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
"""The folder of what all pages share: `base.html`, which they extend, and its style."""


def render(template: str, folder: Path, **values: Any) -> str:
    """The page that a template of a folder makes of values."""
    return f"{make_environment(folder).get_template(template).render(values)}\n"


@cache
def make_environment(folder: Path) -> Environment:
    """The templates of a folder, and those that all pages share.

    They escape what they insert, both for HTML and as `terminal.escape` does, so that no text turns
    a line around or hides in it. A value that a template names and does not get is an error of
    jinja2's.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "size": format_size,
        "duration": format_duration,
        "time": format_time,
        "count": count,
    }
    return environment


def _finalize(value: object) -> object:
    return value if hasattr(value, "__html__") else escape(str(value), keep="\n\t")


def format_duration(seconds: float) -> str:
    """A duration for people: `1 h 04 min`, `2 min 05 s`, `3.2 s`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def format_time(seconds: float, form: str = "%Y-%m-%d %H:%M UTC") -> str:
    """A time, in seconds since 1970, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def count(number: int, one: str, many: str | None = None) -> str:
    """A number of things: `1 build`, `1,200 builds`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
