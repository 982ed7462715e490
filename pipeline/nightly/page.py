"""The HTML page of a night, and the page that leads to all of them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.model import format_size
from pipeline.nightly import summary
from pipeline.nightly.night import Night, NightState, Outcome, State
from pipeline.pages import count, format_duration, format_time, render

_TEMPLATES = Path(__file__).with_name("templates")
_DAY = "%Y-%m-%d"
_NEW = (State.BUILT, State.REUSED)
MEANINGS: Mapping[State, str] = {
    State.FAILED: "was tried and failed; the site keeps the build that it has",
    State.SKIPPED: "was not tried",
    State.BUILT: "has a new build, for which something was made",
    State.REUSED: "has a build that is new to the site; all of it was in the store",
    State.UNCHANGED: "nothing that is in the image has changed",
}


@dataclass(frozen=True)
class Row:
    """One appliance at one site in the table of all, with lines of its last builds."""

    outcome: Outcome
    times: object
    sizes: object


def make_page(night: Night, history: Sequence[Night], folder: Path) -> str:
    """The page of a night, for its folder. `history` are the nights before, newest last."""
    failed, skipped = _of(night, State.FAILED), _of(night, State.SKIPPED)
    new = [*_of(night, State.BUILT), *_of(night, State.REUSED)]
    counts = Counter(each.state for each in night.outcomes)
    rows = _make_rows(night, history)
    return render(
        "night.html",
        _TEMPLATES,
        night=night,
        verdict=make_verdict(night),
        counts=[(state, counts[state]) for state in summary.ORDER if counts[state]],
        meanings=[(state, MEANINGS[state]) for state in summary.ORDER if counts[state]],
        failed=failed,
        skipped=_by_cause(skipped),
        new=new,
        warnings=[*(("", each) for each in night.warnings), *summary.find_warnings(night)],
        rows=rows,
        lines=any(row.times or row.sizes for row in rows),
        plots=_make_plots([*history, night]),
        kept=[each for each in night.kept if each.action != "kept"],
        stays=[each for each in night.kept if each.action == "kept"],
        kept_line=summary.describe_kept(night.kept),
        before=history[-1] if history else None,
        link=_link_into(folder),
        describe=summary.describe,
        shorten_list=summary.shorten_list,
        shorten=summary.shorten,
    )


def make_index(nights: Sequence[Night]) -> str:
    """The page that lists nights, for the folder of all; `nights` are the newest last."""
    return render(
        "nights.html",
        _TEMPLATES,
        nights=[(each, make_verdict(each), summary.headline(each)) for each in reversed(nights)],
        plots=_make_plots(nights),
    )


def make_verdict(night: Night) -> str:
    """What became of a night, in a few words."""
    if night.state is NightState.COULD_NOT_RUN:
        return "The night could not run"
    if night.state is NightState.WELL:
        return "All is well" if night.outcomes else "There was nothing to do"
    every = {each.appliance for each in night.outcomes}
    failed, skipped = (
        {each.appliance for each in night.outcomes if each.state is state}
        for state in (State.FAILED, State.SKIPPED)
    )
    skipped -= failed
    were = f"{len(skipped):,} {'was' if len(skipped) == 1 else 'were'} skipped"
    if not failed:
        return f"Of {count(len(every), 'appliance')}, {were}"
    told = f"{len(failed):,} of {count(len(every), 'appliance')} failed"
    return f"{told}, {were}" if skipped else told


def _of(night: Night, state: State) -> list[summary.Alike]:
    return summary.alike(each for each in night.outcomes if each.state is state)


def _by_cause(skipped: Iterable[summary.Alike]) -> list[tuple[str, list[summary.Alike]]]:
    causes = defaultdict(list)
    for each in skipped:
        causes[each.first.because or "no reason was given"].append(each)
    return sorted(causes.items())


def _link_into(folder: Path) -> Callable[[str], str | None]:
    """A function that makes a path below the folder of builds relative to a night's folder, which
    lies two folders deeper; None for a path elsewhere, which a page must not promise to have."""
    builds = folder.parent.parent

    def link(path: str) -> str | None:
        if not Path(path).is_absolute() or not Path(path).is_relative_to(builds):
            return None
        return os.path.relpath(path, folder)

    return link


def _make_rows(night: Night, history: Sequence[Night]) -> list[Row]:
    past: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for each in (*history, night):
        for outcome in each.outcomes:
            past[outcome.appliance, outcome.site].append(outcome)
    return [
        _make_row(outcome, past[outcome.appliance, outcome.site])
        for outcome in summary.sort_outcomes(night.outcomes)
    ]


def _make_row(outcome: Outcome, past: Iterable[Outcome]) -> Row:
    built = {each.build: each for each in past if each.state in _NEW}.values()
    times = [each.seconds for each in built]
    sizes = [each.image_bytes for each in built if each.image_bytes is not None]
    return Row(
        outcome,
        _draw("time", times, format_duration),
        _draw("size", [*map(float, sizes)], lambda size: format_size(round(size))),
    )


def _draw(what: str, values: Sequence[float], write: Callable[[float], str]) -> object:
    from pipeline.pages.plots import sparkline

    if len(values) < 2:
        return ""
    span = f"{write(min(values))} to {write(max(values))}"
    return sparkline(f"{what} of the last {len(values)} builds: {span}", values)


def _make_plots(nights: Sequence[Night]) -> list[object]:
    """Plots over nights: outcomes by their state, duration, and the store's size."""
    most = max((len(each.outcomes) for each in nights), default=0)
    longest = max((each.seconds for each in nights), default=0.0)
    largest = max((each.store_bytes for each in nights), default=0)
    return [
        _plot("Outcomes by night", nights, _count_states, summary.headline, count(most, "outcome")),
        _plot(
            "Duration by night",
            nights,
            lambda each: ((_colour(each), each.seconds),),
            lambda each: format_duration(each.seconds),
            format_duration(longest),
        ),
        _plot(
            "Store by night",
            nights,
            lambda each: (("reused", float(each.store_bytes)),),
            lambda each: format_size(each.store_bytes),
            format_size(largest),
        ),
    ]


_Parts = tuple[tuple[str, float], ...]


def _plot(
    title: str,
    nights: Sequence[Night],
    parts: Callable[[Night], _Parts],
    text: Callable[[Night], str],
    top: str,
) -> object:
    from pipeline.pages.plots import Column, columns

    values = [
        Column(label=format_time(each.started, _DAY), parts=parts(each), text=text(each))
        for each in nights
    ]
    return columns(title, values, top=top)


def _count_states(night: Night) -> _Parts:
    counts = Counter(each.state for each in night.outcomes)
    return tuple((state.value, float(counts[state])) for state in summary.ORDER)


def _colour(night: Night) -> str:
    return "built" if night.state is NightState.WELL else "failed"
