"""report.json: a night as programs read it, and as the nights after it do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.nightly.night import Kept, Night, Outcome, StageTime, State

SCHEMA = 2
"""The version of report.json: any change of its keys is a new one. 1 had no `todo`."""

_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z")
_TEXT_OR_NULL = (str, None)
_OUTCOME: Mapping[str, Any] = {
    "appliance": str,
    "version": str,
    "site": str,
    "cloud": str,
    "state": re.compile("|".join(State)),
    "reasons": [str],
    "changes": [str],
    "warnings": [str],
    **dict.fromkeys(("build", "before", "because", "stage", "message"), _TEXT_OR_NULL),
    **dict.fromkeys(("error", "log", "image_id"), _TEXT_OR_NULL),
    "todo?": _TEXT_OR_NULL,
    "exit_status": int,
    "tries": int,
    "seconds": float,
    "stages": [{"title": str, "reused": bool, "seconds": float}],
    "image_bytes": (int, None),
    "root_bytes": (int, None),
    "boot_seconds": (float, None),
    "bytes_built": int,
    "bytes_sent": int,
    "bytes_saved": int,
    "last_success": (_TIME, None),
}
_SHAPE: Mapping[str, Any] = {
    "schema": int,
    "name": records.FILE_NAME,
    "started": _TIME,
    "ended": _TIME,
    "host_cores": int,
    "jobs": int,
    "outcomes": [_OUTCOME],
    "kept": [{"appliance": str, "build": str, "action": str, "reason": str, "bytes": int}],
    "warnings": [str],
    "store_bytes": int,
    "store_limit": (int, None),
    "free_bytes": int,
    "forecast_bytes": int,
    "could_not_run": _TEXT_OR_NULL,
    "environment": {str: str},
}


def to_report(night: Night) -> dict[str, Any]:
    """A night as report.json has it."""
    counts = Counter(outcome.state for outcome in night.outcomes)
    return {
        "schema": SCHEMA,
        "name": night.name,
        "state": night.state,
        "started": _to_iso(night.started),
        "ended": _to_iso(night.ended),
        "seconds": night.seconds,
        "counts": {state: counts[state] for state in State},
        "could_not_run": night.could_not_run,
        "warnings": night.warnings,
        "outcomes": [*map(_from_outcome, night.outcomes)],
        "kept": [asdict(each) for each in night.kept],
        "store_bytes": night.store_bytes,
        "store_limit": night.store_limit,
        "free_bytes": night.free_bytes,
        "forecast_bytes": night.forecast_bytes,
        "host_cores": night.host_cores,
        "jobs": night.jobs,
        "environment": night.environment,
    }


def _from_outcome(outcome: Outcome) -> dict[str, Any]:
    success = outcome.last_success
    return {**asdict(outcome), "last_success": None if success is None else _to_iso(success)}


def _to_iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_report(path: Path) -> Night | None:
    """The night that a report.json is of; None where there is none, or one that is damaged or of
    another version."""
    told = records.read(path, _SHAPE)
    try:
        return None if told is None or told["schema"] not in (1, SCHEMA) else _to_night(told)
    except (ValueError, OverflowError):  # the 31st of February
        return None


def _to_night(told: Mapping[str, Any]) -> Night:
    known = (member.name for member in fields(Night) if member.name in told)
    values = {name: told[name] for name in known}
    values |= {
        "started": _from_iso(told["started"]),
        "ended": _from_iso(told["ended"]),
        "outcomes": tuple(map(_to_outcome, told["outcomes"])),
        "kept": tuple(Kept(**_named(Kept, each)) for each in told["kept"]),
        "warnings": tuple(told["warnings"]),
    }
    return Night(**values)


def _to_outcome(told: Mapping[str, Any]) -> Outcome:
    values = _named(Outcome, {"todo": None, **told})
    success = values["last_success"]
    values |= {
        "state": State(values["state"]),
        "stages": tuple(StageTime(**_named(StageTime, each)) for each in values["stages"]),
        "last_success": None if success is None else _from_iso(success),
    }
    values |= {name: tuple(values[name]) for name in ("reasons", "changes", "warnings")}
    return Outcome(**values)


def _named(kind: type[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    return {member.name: told[member.name] for member in fields(kind)}


def _from_iso(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
