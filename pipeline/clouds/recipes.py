"""How people start published images by a cloud's own means: commands and code to copy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

USER_DATA_FILE = "user-data"
"""The file that recipes read user-data from."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to start an image."""

    title: str
    """The tool, such as `AWS command line`."""
    text: str
    note: str = ""
    """What to know before, for people; empty if there is nothing."""


def literal(value: object) -> str:
    """A text, number, list or object from JSON as Python writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value)


def call(function: str, arguments: Mapping[str, str]) -> str:
    """A call in Python, with an argument on each line; values are Python already."""
    lines = "".join(f"    {name}={value},\n" for name, value in arguments.items())
    return f"{function}(\n{lines})\n"


def command(*lines: str) -> str:
    """A command of the shell on several lines; words are quoted already."""
    return " \\\n    ".join(lines) + "\n"


def option(name: str, *values: str) -> str:
    """An option of the shell with its values, quoted."""
    return " ".join([name, *map(shlex.quote, values)])
