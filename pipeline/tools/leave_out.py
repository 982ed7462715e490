"""Removes files that a tree is to be without, as dpkg leaves them out by `path-exclude`.

    python3 leave_out.py TREE

Standard input has dpkg's options, one a line: `path-exclude=PATTERN` and `path-include=PATTERN`.
The last one that matches a file decides. A folder goes if it matches and is empty, unless something
in it could be included.

mmdebstrap unpacks essential packages before it installs them, and would start a Python for each of
them to leave out the same.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One of dpkg's options."""

    out: bool
    """Whether files that match are left out."""
    pattern: re.Pattern[str]
    prefix: str
    """What the pattern begins with, up to its first wildcard."""


def main() -> None:
    """Reads the arguments and does what the module says."""
    remove(sys.argv[1], read_rules(sys.stdin.read().splitlines()))


def read_rules(options: Sequence[str]) -> list[Rule]:
    """The rules that dpkg's options say."""
    kinds = {"path-exclude": True, "path-include": False}
    pairs = (option.partition("=") for option in options)
    return [
        Rule(
            kinds[kind],
            re.compile(fnmatch.translate(pattern)),
            re.split(r"[*?[\\]", pattern)[0].rstrip("/"),
        )
        for kind, _, pattern in pairs
        if kind in kinds
    ]


def is_left_out(path: str, rules: Sequence[Rule]) -> bool:
    """Whether a path, which begins with a slash, is left out."""
    return next((rule.out for rule in reversed(rules) if rule.pattern.match(path)), False)


def remove(tree: str, rules: Sequence[Rule]) -> None:
    """Removes the files, links and folders of a tree that are left out."""
    for folder, folders, files in os.walk(tree, topdown=False):
        for path in (os.path.join(folder, name) for name in (*files, *folders)):
            place = path.removeprefix(tree)
            if not is_left_out(place, rules):
                continue
            if not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif not any(place.startswith(rule.prefix) for rule in rules if not rule.out):
                with suppress(OSError):  # it holds something that stays
                    os.rmdir(path)


if __name__ == "__main__":
    main()
