"""What a cluster check is to have, and the placeholders in the user-data of its guests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

OF_PHANTOM = (
    *("phantom_url", "phantom_access_key", "phantom_secret_key"),
    *("site", "image", "instance_type"),
)
"""Placeholders that a check with a local Phantom has."""
SECRET, ADDRESS = "cluster_secret", "address:"
"""Placeholders of every check; the second one is followed by a guest's name."""
_PLACEHOLDER = re.compile(r"@([A-Za-z][A-Za-z0-9_]*(?::[A-Za-z0-9._-]*)?)@")


@dataclass(frozen=True, kw_only=True)
class ClusterGuest:
    """Guests of a cluster check that are alike."""

    name: str
    count: int = 1
    user_data: Path | None = None
    """Text with placeholders."""
    script: Path | None = None
    """Run in the first of them once its user-data has ended; its exit status decides."""


@dataclass(frozen=True, kw_only=True)
class ClusterPolicy:
    """How an appliance proves that several machines of it work together."""

    guests: tuple[ClusterGuest, ...]
    phantom: bool = False
    """Whether a local Phantom runs beside them."""
    seconds: int | None = None
    """Time limit until all have reported; with None, the host's accelerator decides."""


def find_placeholders(text: str) -> Iterator[tuple[str, int]]:
    """Each placeholder of a text, without its `@`, and its line, counted from 1."""
    for found in _PLACEHOLDER.finditer(text):
        yield found[1], text.count("\n", 0, found.start()) + 1


def fill(text: str, values: Mapping[str, str]) -> str:
    """A text with values in place of its placeholders."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)
