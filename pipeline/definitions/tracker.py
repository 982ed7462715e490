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
        "description": "File with the JSON export of Debian's security tracker, for the command "
        "`vulnerabilities`. A relative name starts at the working directory.",
        "type": "string",
        "minLength": 1,
        "examples": ["debian-tracker.json"],
    }


def load_tracker(path: Path | None) -> Path | None:
    """The file, where sites.yaml names one; it was checked when its sites were loaded."""
    if path is None or not os.path.exists(path):
        return None
    named = read_yaml(path).text(("vulnerabilities",))
    return Path(named).expanduser().absolute() if named else None
