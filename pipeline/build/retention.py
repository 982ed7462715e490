"""Which builds of an appliance are kept, and why: rules without clock, disk or network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.model import Keep


@dataclass(frozen=True, kw_only=True)
class KnownBuild:
    """What retention has to know of a build."""

    build: str
    made: float
    """Seconds since the epoch, by the host's clock, which may have been wrong."""
    protected: tuple[str, ...] = ()
    """Why it stays in any case, for people: `tagged keep`, `published at hotel`."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a build."""

    build: str
    keep: bool
    reason: str
    """For people."""


_PERIODS: tuple[tuple[str, str, Callable[[datetime], object]], ...] = (
    ("daily", "day", lambda made: made.date()),
    ("weekly", "week", lambda made: made.isocalendar()[:2]),
    ("monthly", "month", lambda made: (made.year, made.month)),
)


def decide(builds: Sequence[KnownBuild], rule: Keep | None) -> list[Decision]:
    """What happens to each build, the newest first. Without a rule, all stay.

    `daily: 7` keeps the newest build of each of the last seven days that have any, and so on; days
    are UTC's. Today's date plays no part: a clock that jumps lets no build be removed that the
    builds after it do not replace. The newest build always stays.
    """
    ordered = sorted(builds, key=lambda each: (each.made, each.build), reverse=True)
    if rule is None:
        reason = "its definition says nothing of `keep`"
        return [Decision(build=each.build, keep=True, reason=reason) for each in ordered]
    reasons: dict[str, list[str]] = {each.build: list(each.protected) for each in ordered}
    for number, each in enumerate(ordered[: max(1, rule.last)], 1):
        reasons[each.build].append("the newest" if number == 1 else f"one of the last {rule.last}")
    for name, word, find in _PERIODS:
        seen: dict[object, str] = {}
        for each in ordered:
            seen.setdefault(find(datetime.fromtimestamp(each.made, UTC)), each.build)
        for build in list(seen.values())[: getattr(rule, name)]:
            reasons[build].append(f"the newest of its {word}")
    return [
        Decision(
            build=each.build,
            keep=bool(reasons[each.build]),
            reason="; ".join(reasons[each.build]) or "no rule of `keep` asks for it",
        )
        for each in ordered
    ]
