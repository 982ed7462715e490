"""The forms in which a secret is looked for in files, and hidden in what programs print."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

SHORTEST = 8
"""Bytes that a secret has at least: fewer would be found by chance."""

_WRAPPED = (64, 76)  # the characters of a line of base64: openssl's, and those of base64(1)
_UNCERTAIN = (0, 2, 3)  # characters that hold bits of the 0, 1 or 2 bytes before


def core(value: bytes) -> bytes:
    """A secret without white space around it, as a shell's `$(cat FILE)` leaves it."""
    return value.strip()


def forms(value: bytes) -> tuple[bytes, ...]:
    """What tells of a secret: its bytes without white space around them, and their base64, whatever
    stands before and behind them in what was encoded, also broken into the usual lines."""
    plain = core(value)
    return tuple(dict.fromkeys((plain, *_encoded(plain))))


def _encoded(plain: bytes) -> Iterator[bytes]:
    for before, uncertain in enumerate(_UNCERTAIN):
        shifted = bytes(before) + plain
        whole = len(shifted) * 8 // 6  # characters with nothing of what follows
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            yield encode(shifted)[uncertain:whole]
    text = base64.standard_b64encode(plain)[: len(plain) * 8 // 6]
    for width in _WRAPPED:
        yield b"\n".join(text[start : start + width] for start in range(0, len(text), width))


def hiding(values: Iterable[bytes], texts: Iterable[str] = ()) -> re.Pattern[str]:
    """A pattern of all that is to be hidden in a line: the lines of these secrets, their base64,
    and other texts."""
    hidden = {text for text in texts if text}
    for value in values:
        for form in forms(value):
            lines = form.decode("utf-8", "replace").splitlines()
            hidden |= {line.strip() for line in lines if len(line.strip()) >= SHORTEST}
    words = map(re.escape, sorted(hidden, key=lambda text: (-len(text), text)))
    return re.compile("|".join(words) or "(?!)")
