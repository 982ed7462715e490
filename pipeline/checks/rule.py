"""What a rule of the gate is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.checks.root import Root

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One place where an image breaks a rule."""

    path: str
    detail: str
    subject: str = ""
    """What it is about, where the path does not say it: a user's name."""
    since: str = ""
    """The day, as in ISO 8601, from which this is a fault; empty: it always is."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the gate looks for."""

    id: str
    """Lower-case words and hyphens; definitions waive it by this name."""
    severity: Severity
    what: str
    """The fault, in a few words."""
    reason: str
    """Why an image that many people boot should not be so."""
    todo: str
    """How to mend it."""
    find: Callable[[Root], Iterable[Found]] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Finding(Found):
    """What a rule found; `path` is printable."""

    rule: str

    def to_facts(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        told = {"rule": self.rule, "path": self.path, "detail": self.detail}
        more = {"subject": self.subject, "since": self.since}
        return told | {key: value for key, value in more.items() if value}
