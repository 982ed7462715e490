"""Reads JSON that we wrote, as it is found: cut, damaged, replaced, of another version.

Every file of ours that is read again is read here, against a shape. What does not fit is as good as
absent, and is made anew. A `seal` also finds damage that leaves the shape whole.

A shape is one of:

    str, bool, float, dict, list     a value of that type; a float may be written as a whole number
    int                              a whole number of at most 63 bits
    object                           any value
    None                             null
    a compiled pattern               a string that it matches as a whole
    (shape, shape)                   either
    [shape]                          a list of such values
    {str: shape}                     an object with any keys and such values
    {"name": shape}                  an object with these keys, and any others; one that the shape
                                     calls "name?" may be left out
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipeline.model import Publication

HEX64 = re.compile("[0-9a-f]{64}")
"""A SHA-256."""
FILE_NAME = re.compile(r"(?!\.\.?$)[^/\0]{1,255}")
"""The name of a file or folder, without a path."""

MOST = 64 << 20  # bytes; a manifest of a thousand packages has some hundred thousand
_SEAL = "seal"
_WORDS: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    None: "null",
}

PUBLICATION: Mapping[str, Any] = {
    "site": str,
    "cloud": str,
    "region": (str, None),
    "image_id": str,
    "location": str,
    "sha256": str,
    "published_at": str,
    "sandbox": bool,
}
"""The shape of a `Publication`."""


class Unfit(ValueError):
    """A file holds no JSON, or JSON of another shape; the message says what is wrong with it."""


def read(path: Path, shape: Any, *, sealed: bool = False) -> Any:
    """The value in a file of ours; None where there is no file, or one that does not fit. A value
    that is `sealed` must be as `seal` wrote it, and comes without the seal."""
    try:
        return load(path, shape, sealed=sealed)
    except (OSError, ValueError):
        return None


def load(path: Path, shape: Any, *, sealed: bool = False) -> Any:
    """As `read`, but raises OSError for a file that cannot be read, and Unfit."""
    value = parse(read_bytes(path), shape)
    if sealed:
        seal = value.pop(_SEAL, None) if isinstance(value, dict) else None
        if seal != digest(value):
            raise Unfit("its content is not what was written")
    return value


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises OSError, and Unfit for anything but a regular file of a size that a
    record can have."""
    with opened(path) as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise Unfit("it is too large")
    return data


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file of ours, opened to be read. Raises OSError, and Unfit for anything but a file."""
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unfit("it is no file")
        yield file


def _open(path: str, flags: int) -> int:
    # A FIFO would wait for a writer, and a link was not made by us.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def parse(data: bytes, shape: Any) -> Any:
    """The value in JSON of ours. Raises Unfit."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # which half a surrogate pair is not
    except (ValueError, RecursionError) as error:
        raise Unfit("it holds no JSON") from error
    fault = find_fault(value, shape)
    if fault is not None:
        raise Unfit(fault)
    return value


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value with a digest of itself, for a file that is read with `sealed`."""
    return {**value, _SEAL: digest(value)}


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON."""
    value = json.loads(json.dumps(value))  # so that keys are sorted as they are read
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def find_fault(value: Any, shape: Any, where: str = "") -> str | None:
    """What first keeps a value from having a shape, in words; None where it has it."""
    if isinstance(shape, type):
        return None if _is_of(value, shape) else _describe(where, shape)
    if isinstance(shape, tuple):
        faults = [find_fault(value, each, where) for each in shape]
        return None if None in faults else faults[0]
    if isinstance(shape, dict):
        return _find_fault_inside(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _describe(where, list)
        parts = (
            find_fault(part, shape[0], f"{where}[{number}]") for number, part in enumerate(value)
        )
        return next(filter(None, parts), None)
    if isinstance(shape, re.Pattern):
        whole = isinstance(value, str) and shape.fullmatch(value)
        return None if whole else f"{where or 'it'} is not as it is written by us"
    return None if _is_of(value, shape) else _describe(where, shape)


def _find_fault_inside(value: Any, shape: Mapping[Any, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return _describe(where, dict)
    for key, inner in shape.items():
        name = key.removesuffix("?") if isinstance(key, str) else key
        if name is str:
            parts = (find_fault(part, inner, f"{where}.{at}") for at, part in value.items())
            fault = next(filter(None, parts), None)
        elif name in value:
            fault = find_fault(value[name], inner, f"{where}.{name}".lstrip("."))
        elif name != key:
            fault = None
        else:
            fault = f"{where or 'it'} has no {name!r}"
        if fault is not None:
            return fault
    return None


def _is_of(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if kind is float:
        return _is_of(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def _describe(where: str, kind: type | None) -> str:
    return f"{where or 'it'} is not {_WORDS[kind]}"


def to_publication(told: Mapping[str, Any]) -> Publication:
    """A publication that has its shape. What else another version wrote is left out."""
    return Publication(**{member.name: told[member.name] for member in fields(Publication)})
