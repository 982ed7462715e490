"""The one way to a terminal for text that is not our own.

What images, servers, programs and definitions say may hold escape sequences that move the cursor,
retitle the window or answer as if typed; characters that turn the order of a line around; and line
feeds that make one field look like several. `escape` shows them instead. `guard` puts it in front
of a process's standard output and error, so that no code can forget it.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import IO, Any

# All that `str.isprintable` might refuse; a space and a tab do no harm.
_SUSPECT = re.compile(r"[^ -~]")
_HARMLESS = ("Zs",)  # such as the no-break space of French numbers
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\t"}


def escape(text: str, *, keep: str = "") -> str:
    """The text as one line that any terminal shows as it is: each control or format character, line
    separator, surrogate and unassigned code point becomes an escape such as `\\x1b` or `\\u202e`.

    Those in `keep` stay. In JSON the text keeps its meaning: the escapes of what may stand in a
    JSON string are JSON's own.
    """
    if text.isascii() and text.isprintable():
        return text
    return _SUSPECT.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) in _HARMLESS:
        return character
    if character < " ":
        return _SHORT.get(character, f"\\x{ord(character):02x}")
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class _Guarded:
    """A text stream that escapes what is written to it, except line feeds."""

    def __init__(self, stream: IO[str]) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        self.unguarded.write(escape(text, keep="\n"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def guard() -> None:
    """Guards standard output and error until the process ends. Characters that their encoding lacks
    are shown as escapes, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Guarded):
            continue  # closed by whoever started us
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Guarded(stream))


def unguarded(stream: IO[str]) -> IO[str]:
    """The stream behind a guard, for our own colours and bars: what is not ours goes through
    `escape` first."""
    return stream.unguarded if isinstance(stream, _Guarded) else stream
