"""Reads text of untrusted images, which may be malicious."""

from __future__ import annotations

import re
from collections.abc import Iterator

_MOST_DIGITS = 18  # fit in 64 bits, signed or unsigned
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def to_number(text: str) -> int | None:
    """The number in a text of up to 18 ASCII digits; None for any other text. (`int` also accepts
    signs and other scripts' digits, and raises an error for 5,000 digits.)"""
    short = len(text) <= _MOST_DIGITS
    return int(text) if short and text.isascii() and text.isdigit() else None


def to_printable(text: str) -> str:
    """The text with `?` for each control character, safe for terminals and logs."""
    return _CONTROL.sub("?", text)


def to_name(stored: bytes) -> str:
    """A printable name from a superblock's field, which a zero byte ends."""
    return to_printable(stored.split(b"\0")[0].decode(errors="replace"))


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text, one at a time: a large text may have millions. As in the kernel and the
    C library, only line feeds separate them."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def version_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key for versions and for names that contain versions: 5.10 comes after 5.9."""
    parts = []
    for part in re.findall(r"[0-9]+|[^0-9]+", name):
        digits = part.lstrip("0") if part[0] in "0123456789" else None
        # The longer of two numbers is larger, so we need not convert them.
        parts.append((0, 0, part) if digits is None else (1, len(digits), digits))
    return parts, name
