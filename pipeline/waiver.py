"""What of the findings of rules for images an appliance is meant to have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """A rule that does not count, and why."""

    rule: str
    """Its id."""
    reason: str
    path: str | None = None
    """A pattern of paths, in which `*` stands for anything; None: all of them."""
    subject: str | None = None
    """What a finding is about beside its path, such as a user; None: anything."""
