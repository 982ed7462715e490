"""Reads `nightly:` of `sites.yaml`: what a night does at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.definitions.messages import check_schema, raise_mistakes
from pipeline.definitions.schema import Schema
from pipeline.definitions.tracker import SEVERITIES
from pipeline.definitions.yaml import read_yaml

_TODO = "correct it; sites.example.yaml shows what the file can say"
_SECONDS = 60
CATALOG_TITLE = "Appliances"
CATALOG_URL = r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9_.~%/-]*)?$"
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


@dataclass(frozen=True, kw_only=True)
class CatalogSettings:
    """The catalog that a night writes."""

    folder: Path
    title: str = CATALOG_TITLE
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class NightSettings:
    """What a night does at its end."""

    hooks: Hooks = field(default_factory=Hooks)
    fail_above: str | None = None
    """The severity above which an open vulnerability is a failure; None: none is."""
    catalog: CatalogSettings | None = None


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
            "fail_above": {
                "description": "An appliance with an open vulnerability that is worse than this "
                "has failed. Needs `vulnerabilities`.",
                "type": "string",
                "enum": list(SEVERITIES),
                "examples": ["medium"],
            },
            "catalog": _catalog_schema(),
            "hooks": {
                "description": "Commands that get the report: its path in PHANTOM_REPORT, and a "
                "summary on standard input.",
                "type": "object",
                "additionalProperties": False,
                "properties": properties,
            },
        },
    }


def _catalog_schema() -> Schema:
    return {
        "description": "The catalog that each night writes, as `phantom-image catalog` does.",
        "type": "object",
        "additionalProperties": False,
        "required": ["folder"],
        "properties": {
            "folder": {
                "description": "Where. A relative name starts at the working directory.",
                "type": "string",
                "minLength": 1,
                "examples": ["/var/www/appliances"],
            },
            "title": {
                "description": "What its pages are called.",
                "type": "string",
                "pattern": r"^[^\x00-\x1f\x7f]{0,199}[^\x00-\x20\x7f]$",
                "errorMessage": "must be one line of at most 200 characters",
                "default": CATALOG_TITLE,
                "examples": ["Images of our institute"],
            },
            "url": {
                "description": "Where it will be on the web, for links in feeds.",
                "type": "string",
                "pattern": CATALOG_URL,
                "errorMessage": "must be an address such as https://images.example.org",
                "examples": ["https://images.example.org"],
            },
        },
    }


def load_nightly(path: Path | None) -> NightSettings:
    """What `sites.yaml` says, if there is one. Raises DefinitionError with all mistakes of the
    key."""
    if path is None or not os.path.exists(path):
        return NightSettings()
    file = read_yaml(path)
    if not file.broken:
        check_schema(file, {"type": "object", "properties": {"nightly": nightly_schema()}})
    raise_mistakes([file], _TODO)
    told = file.value(("nightly",))
    nightly = told if isinstance(told, dict) else {}
    hooks, catalog = nightly.get("hooks") or {}, nightly.get("catalog")
    commands = {when: hooks[when] for when in _WHEN if when in hooks}
    return NightSettings(
        hooks=Hooks(commands=commands, seconds=hooks.get("seconds", _SECONDS)),
        fail_above=nightly.get("fail_above"),
        catalog=_to_catalog(catalog) if catalog else None,
    )


def _to_catalog(told: Mapping[str, str]) -> CatalogSettings:
    return CatalogSettings(
        folder=Path(told["folder"]).expanduser().absolute(),
        title=told.get("title", CATALOG_TITLE),
        url=told.get("url", "").rstrip("/"),
    )
