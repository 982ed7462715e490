"""What tells which vulnerabilities are known: `vulnerabilities` of sites.yaml."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.definitions.schema import Schema
from pipeline.definitions.yaml import read_yaml

SEVERITIES = ("unimportant", "low", "unknown", "medium", "high")
"""Of vulnerabilities, from the least to the worst. The tracker has not judged those that are
`unknown`."""


def tracker_schema() -> Schema:
    """The schema of the key."""
    return {
        "description": "An export of Debian's security tracker, or of OSV, by which "
        "`vulnerabilities`, catalogs and nights tell of known ones: a file or a URL. A relative "
        "name starts at the working directory.",
        "type": "string",
        "minLength": 1,
        "examples": ["debian-tracker.json"],
    }


def load_tracker(path: Path | None) -> str | None:
    """Its path or URL, where sites.yaml names one; it was checked when the sites were loaded."""
    if path is None or not os.path.exists(path):
        return None
    named = read_yaml(path).text(("vulnerabilities",))
    if not named or "://" in named:
        return named
    return str(Path(named).expanduser().absolute())
