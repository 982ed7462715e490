"""Reads `nightly:` of `sites.yaml`: what runs at the end of a night."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.definitions.messages import check_schema, raise_mistakes
from pipeline.definitions.schema import Schema
from pipeline.definitions.yaml import read_yaml

_TODO = "correct it; sites.example.yaml shows what the file can say"
_SECONDS = 60
FAILURE, CHANGE, ALWAYS = "failure", "change", "always"
_WHEN: Mapping[str, tuple[str, str]] = {
    FAILURE: (
        "something failed or was skipped, or the night could not run",
        'mail -s "$PHANTOM_NIGHT_SUMMARY" admins@example.org',
    ),
    CHANGE: (
        "a site has a new build, or what failed is not what failed the night before",
        "/usr/local/bin/tell-chat",
    ),
    ALWAYS: ("each night, last of the three", 'cp "$PHANTOM_REPORT" /srv/reports/'),
}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The user's commands for the end of a night, by when they run."""

    commands: Mapping[str, str] = field(default_factory=dict)
    seconds: int = _SECONDS
    """How long each may take."""


def nightly_schema() -> Schema:
    """The schema of the key."""
    hooks: dict[str, Schema] = {
        when: {
            "description": f"A shell command that runs at the end of a night: {text}.",
            "type": "string",
            "minLength": 1,
            "examples": [example],
        }
        for when, (text, example) in _WHEN.items()
    }
    seconds = {
        "description": "How long each of them may take.",
        "type": "integer",
        "minimum": 1,
        "maximum": 3600,
        "default": _SECONDS,
        "examples": [300],
    }
    properties = {**hooks, "seconds": seconds}
    return {
        "description": "What `phantom-image nightly` does at the end of a night.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "hooks": {
                "description": "Commands that get the report: its path in PHANTOM_REPORT, and a "
                "summary on standard input.",
                "type": "object",
                "additionalProperties": False,
                "properties": properties,
            }
        },
    }


def load_hooks(path: Path | None) -> Hooks:
    """The hooks of `sites.yaml`, if there is one. Raises DefinitionError with all mistakes of the
    key."""
    if path is None or not os.path.exists(path):
        return Hooks()
    file = read_yaml(path)
    if not file.broken:
        check_schema(file, {"type": "object", "properties": {"nightly": nightly_schema()}})
    raise_mistakes([file], _TODO)
    told = file.value(("nightly", "hooks"))
    hooks = told if isinstance(told, dict) else {}
    commands = {when: hooks[when] for when in _WHEN if when in hooks}
    return Hooks(commands=commands, seconds=hooks.get("seconds", _SECONDS))
