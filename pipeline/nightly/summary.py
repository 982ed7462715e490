"""A night in words: a headline, and lines for logs and mail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.model import format_size
from pipeline.nightly.night import Kept, Night, Outcome, State
from pipeline.pages import count, format_duration

ORDER = (State.FAILED, State.SKIPPED, State.BUILT, State.REUSED, State.UNCHANGED)
"""In which states are told: what needs somebody comes first."""
_REASONS, _WORDS = 3, 300  # that a line tells; characters of a message in it


@dataclass(frozen=True, kw_only=True)
class Alike:
    """What came of one appliance at several sites for the same cause."""

    first: Outcome
    sites: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.first.appliance} at {', '.join(self.sites)}"


def headline(night: Night) -> str:
    """What became of the night, in one line."""
    if night.could_not_run is not None:
        return f"could not run: {night.could_not_run}"
    counts = Counter(each.state for each in night.outcomes)
    told = ", ".join(f"{counts[state]:,} {state}" for state in ORDER if counts[state])
    sites = len({each.site for each in night.outcomes})
    appliances = len({each.appliance for each in night.outcomes})
    of = f"{count(appliances, 'appliance')} at {count(sites, 'site')}"
    return f"{told or 'nothing to do'} ({of}) in {format_duration(night.seconds)}"


def sort_outcomes(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """What failed first, and then by name."""
    return sorted(outcomes, key=lambda each: (ORDER.index(each.state), each.appliance, each.site))


def alike(outcomes: Iterable[Outcome]) -> list[Alike]:
    """Outcomes of one appliance in one state whose cause is the same become one, in order."""
    found: dict[object, list[Outcome]] = {}
    for each in sort_outcomes(outcomes):
        cause = (each.stage, each.message, each.because, each.reasons, each.build, each.changes)
        found.setdefault((each.appliance, each.state, cause), []).append(each)
    return [
        Alike(first=same[0], sites=tuple(each.site for each in same)) for same in found.values()
    ]


def find_warnings(night: Night) -> list[tuple[str, str]]:
    """The warnings of its outcomes, each once, after the appliance and the sites that have it."""
    sites: dict[tuple[str, str], list[str]] = {}
    for each in sort_outcomes(night.outcomes):
        for warning in each.warnings:
            sites.setdefault((each.appliance, warning), []).append(each.site)
    return [
        (f"{appliance} at {', '.join(where)}", warning)
        for (appliance, warning), where in sites.items()
    ]


def describe(outcome: Outcome, *, most: int = _WORDS) -> str:
    """Why it is as it is, in one line of at most so many characters."""
    if outcome.state is State.FAILED:
        stage = f"{outcome.stage}: " if outcome.stage else ""
        return shorten(stage + (outcome.message or "no message"), most)
    if outcome.state is State.BUILT or outcome.state is State.REUSED:
        return shorten(shorten_list(outcome.reasons), most)
    return shorten(outcome.because or "", most)


def describe_help(outcome: Outcome) -> list[str]:
    """What to do where it failed, and where more is said; lines."""
    told = {"do": outcome.todo and shorten(outcome.todo), "log": outcome.log}
    return [f"{word}: {text}" for word, text in told.items() if text]


def shorten(text: str, most: int = _WORDS) -> str:
    """A text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."


def shorten_list(words: Sequence[str], most: int = _REASONS) -> str:
    """Some words, and how many more there are."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more


def to_lines(night: Night, page: Path | None = None) -> list[str]:
    """The night in plain lines: what failed and was skipped, what is new, warnings, space. Those
    that are unchanged are only counted."""
    lines = [f"night {night.name}: {headline(night)}"]
    for each in alike(night.outcomes):
        if each.first.state is not State.UNCHANGED:
            lines += _lines_of(each)
    return lines + to_last_lines(night, page)


def to_last_lines(night: Night, page: Path | None = None) -> list[str]:
    """Of the lines of a night those behind its outcomes."""
    lines = [f"warning: {warning}" for warning in night.warnings]
    lines += (f"warning: {whose}: {warning}" for whose, warning in find_warnings(night))
    if night.kept:
        lines.append(describe_kept(night.kept))
    if night.could_not_run is None:
        lines.append(describe_space(night))
    if page is not None:
        lines.append(f"report: {page}")
    return lines


def _lines_of(each: Alike) -> Iterator[str]:
    outcome = each.first
    why = describe(outcome)
    yield f"{outcome.state:<8} {each.where}" + (f": {why}" if why else "")
    yield from (f"         {line}" for line in describe_help(outcome))


def describe_kept(kept: Sequence[Kept]) -> str:
    """What retention did, in one line."""
    parts = []
    for action in ("removed", "retired", "kept"):
        lines = [each for each in kept if each.action == action]
        if lines:
            size = format_size(sum(each.bytes for each in lines))
            freed = f", which took {size}" if action == "removed" else ""
            parts.append(f"{action} {count(len(lines), 'build')}{freed}")
    return "; ".join(parts)


def describe_space(night: Night) -> str:
    """What the store has and what is free, in one line."""
    limit = "" if night.store_limit is None else f" of at most {format_size(night.store_limit)}"
    return f"store: {format_size(night.store_bytes)}{limit}; {format_size(night.free_bytes)} free"
