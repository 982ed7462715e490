"""What users and groups have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

NAME: Schema = {
    "type": "string",
    "pattern": "^[a-z_][a-z0-9_-]{0,31}$",
    "errorMessage": "must be lower-case letters, digits, '_' and '-', beginning with a letter or "
    "'_', and at most 32 of them",
}
"""A name as useradd and groupadd take it."""

NUMBER: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": 59999,  # those that follow are systemd's
}
"""A user's or group's number."""


OWNER: dict[str, Schema] = {
    "owner": {
        "description": "The user who owns it; one that the image has, or that 'users' adds.",
        "default": "root",
        "examples": ["web"],
        **NAME,
    },
    "group": {
        "description": "The group that owns it; by default the owner's own.",
        "examples": ["web"],
        **NAME,
    },
}
"""The keys of an entry that say who owns it."""


def text(description: str, examples: list[Any], **more: Any) -> Schema:
    """The schema of a text."""
    return {"description": description, "type": "string", "examples": examples, **more}


def listed(description: str, items: Schema, example: Any) -> Schema:
    """The schema of a list without repeats."""
    return {
        "description": description,
        "type": "array",
        "uniqueItems": True,
        "items": items,
        "examples": [example],
    }


def repeated(entries: Sequence[Mapping[str, Any]], report: Any, *, by: tuple[str, ...]) -> None:
    """Reports entries that have another one's name or number."""
    for part in by:
        first: dict[Any, int] = {}
        for index, entry in enumerate(entries):
            value = entry.get(part)
            if value is not None and first.setdefault(value, index) != index:
                report((index, part), f"entry {first[value] + 1} has the same {part}, {value!r}")
