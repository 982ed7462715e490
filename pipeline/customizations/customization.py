"""What a key of a definition that customizes the image consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
Keys = tuple[str | int, ...]
"""The path to a part of a key's value, from that value on."""
Report = Callable[[Keys, str], None]
"""Adds a mistake: the part of the value that is wrong, and what is wrong with it."""

HEAD = """\
set -eu
fail() {
    echo "$1" >&2
    exit 1
}
# need PROGRAM PACKAGE
need() {
    command -v "$1" >/dev/null 2>&1 || fail "the image lacks $1; add the package $2"
}
"""
"""What every script begins with."""


def _check_nothing(value: Any, report: Report) -> None:
    pass


def _say_nothing(value: Any) -> str:
    return ""


def _need_nothing(value: Any) -> Iterable[str]:
    return ()


def merge_named(parent: Sequence[Mapping[str, Any]], child: Sequence[Mapping[str, Any]]) -> Any:
    """Lists of mappings with a `name`: of two entries with one name, the child's is taken."""
    ours = {entry["name"] for entry in child}
    return [*(entry for entry in parent if entry["name"] not in ours), *child]


def _replace(parent: Any, child: Any) -> Any:
    return child


class UnreadyError(Exception):
    """A script cannot be written, because something outside the definition is missing."""

    def __init__(self, keys: Keys, what: str, *, todo: str) -> None:
        super().__init__(what)
        self.keys = keys
        self.what = what
        self.todo = todo


@dataclass(frozen=True, kw_only=True)
class Customization:
    """One key of a definition. The same `script` does what the value says in images from scratch
    and in base images: it runs in the image, as root, in `/`, after the definition's files were
    copied and before its scripts run."""

    key: str
    schema: Schema
    """The JSON Schema of its value."""
    script: Callable[[Any], str] = _say_nothing
    """POSIX sh that follows `HEAD`; the same value gives the same text. What it prints to standard
    error before it fails is shown to people. Raises UnreadyError."""
    answers: Callable[[Any], str] = _say_nothing
    """Answers for debconf, set before packages are configured."""
    packages: Callable[[Any], Iterable[str]] = _need_nothing
    """Debian packages that the script needs, installed from scratch. A base image must have them:
    there the script's `need` tells which is missing."""
    check: Callable[[Any, Report], None] = _check_nothing
    """Checks what a schema cannot, in a value that fits the schema."""
    merge: Callable[[Any, Any], Any] = _replace
    """The value of a definition that extends another: of the parent's value and its own."""
    kept: Callable[[Any], Iterable[str]] = _need_nothing
    """Absolute paths of what the script makes where images are cleaned, and that is to stay."""
    text_files: tuple[Keys, ...] = ()
    """Paths to parts of the value that name text files of the definition; `*` stands for any index.
    The script and the check get a `TextFile` there."""
    decode: Callable[[bytes], str] = bytes.decode
    """The text of such a file. Raises UnicodeDecodeError."""
    text_bytes: int = 1 << 16
    """The most bytes that such a file may have."""
    seconds: int = 600
    """How long the script may take in a base image, whose programs may run on an emulated
    processor."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A customization of one image, ready to run."""

    name: str
    """The key."""
    digest: str
    """The script's."""
    script: str = field(compare=False, repr=False, metadata={"key": False})
    where: str = field(default="", compare=False, metadata={"key": False})
    """`file:line:column` of the value."""
    kept: tuple[str, ...] = ()
    """Absolute paths of what cleaning must leave."""
    seconds: int = field(default=600, compare=False, metadata={"key": False})
    """How long it may take in a base image."""
