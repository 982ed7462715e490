"""What people say of a finished build: that it is deprecated, or withdrawn; and what became of it.

It is in a file in the build's folder, beside the manifest, which does not change with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.files import write_atomically

FILE = "state.json"
REPLACEMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99})?")
"""An appliance, or `APPLIANCE/BUILD`."""
_SHAPE: Mapping[str, Any] = {
    "state": re.compile("published|deprecated|withdrawn|deleted"),
    "replacement": (REPLACEMENT, None),
    "reason": str,
}


class State(StrEnum):
    """Where a build is in its life."""

    PUBLISHED = "published"
    """Sites have it, and it may be used."""
    DEPRECATED = "deprecated"
    """Sites have it, and something else should be used."""
    WITHDRAWN = "withdrawn"
    """Sites may have it, and it must not be used."""
    UNPUBLISHED = "unpublished"
    """No site has it yet."""
    DELETED = "deleted"
    """Its images were removed from all sites."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was said of a build."""

    state: State = State.PUBLISHED
    replacement: str | None = None
    """What to use in its place: an appliance, or `APPLIANCE/BUILD`."""
    reason: str = ""


def read_mark(folder: Path) -> Mark:
    """The mark of the build in a folder. One without a mark, or with a damaged one, is as it was
    published."""
    told = records.read(folder / FILE, _SHAPE)
    if told is None:
        return Mark()
    state = State(told["state"])
    return Mark(state=state, replacement=told["replacement"], reason=told["reason"])


def write_mark(folder: Path, mark: Mark) -> None:
    """Marks the build in a folder. Raises OSError."""
    write_atomically(folder / FILE, json.dumps(asdict(mark), indent=2) + "\n")


def find_state(mark: Mark, *, published: bool) -> State:
    """The state of a build with such a mark; `published`: whether its manifest names a site."""
    if published:
        return State.PUBLISHED if mark.state is State.DELETED else mark.state
    return State.UNPUBLISHED if mark.state in (State.PUBLISHED, State.DEPRECATED) else mark.state
