"""The reports of a night, in files: for people, for programs, for CI servers, for Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import HostError
from pipeline.files import make_folder, temporary_name, write_atomically
from pipeline.nightly.junit import to_junit
from pipeline.nightly.metrics import to_metrics
from pipeline.nightly.night import Night, NightState, Outcome, State
from pipeline.nightly.page import make_index, make_page
from pipeline.nightly.report_json import read_report, to_report

REPORT = "report.json"
METRICS = "phantom_image.prom"
"""The last night's metrics, in the folder of all nights: node exporter reads what ends so."""
_LATEST = "latest"
_NAME = re.compile("[0-9]{8}T[0-9]{6}Z")
_MOST = 30  # nights that a page shows
_KEPT = 400  # nights whose folders stay


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where the reports of a night are."""

    report: Path
    page: Path
    junit: Path
    metrics: Path

    @classmethod
    def of(cls, night: Night, folder: Path) -> Paths:
        """Those of a night, in the folder of all nights."""
        own = folder / night.name
        return cls(
            report=own / REPORT,
            page=own / "index.html",
            junit=own / "junit.xml",
            metrics=own / "metrics.prom",
        )


def check() -> None:
    """Raises HostError where this host lacks what reports are made with."""
    try:
        import jinja2
        import prometheus_client

        del jinja2, prometheus_client
    except ImportError as error:
        raise HostError(
            f"the Python package {error.name} is not installed, and the reports need it",
            todo="`pip install 'phantom-image[nightly]'` installs it",
        ) from error


def write(night: Night, history: Sequence[Night], folder: Path, *, keep: int = _KEPT) -> Paths:
    """Writes all reports of a night into a folder of its name, in the folder of all nights, and
    has the index and `latest` there lead to it. `history` are the nights before, newest last.

    Each file is written at once, and report.json after those that it stands for. The oldest
    folders go where there are more than `keep`. Raises OSError.
    """
    history = [each for each in history if each.name != night.name][-_MOST + 1 :]
    night = replace(night, outcomes=tuple(_date(night, history)))
    paths, own = Paths.of(night, folder), folder / night.name
    make_folder(own)
    metrics = to_metrics(night, _find_missing(night, history))
    report = json.dumps(to_report(night), indent=2, ensure_ascii=False)
    write_atomically(paths.page, _whole(make_page(night, history, own)))
    write_atomically(paths.junit, to_junit(night))
    write_atomically(paths.metrics, metrics)
    write_atomically(paths.report, _whole(report) + "\n")
    write_atomically(folder / METRICS, metrics)
    write_atomically(folder / "index.html", _whole(make_index([*history, night])))
    _point(folder / _LATEST, night.name)
    for name in _list_names(folder)[:-keep]:
        shutil.rmtree(folder / name, ignore_errors=True)
    return paths


def history(folder: Path, most: int = _MOST) -> tuple[Night, ...]:
    """The last nights of which the folder of all nights has reports, newest last. Reports that are
    damaged, or of another version, are left out."""
    nights: list[Night] = []
    for name in reversed(_list_names(folder)):
        night = read_report(folder / name / REPORT)
        if night is not None and night.name == name:
            nights.append(night)
        if len(nights) == most:
            break
    return tuple(reversed(nights))


def _list_names(folder: Path) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )
    return []


def _date(night: Night, history: Sequence[Night]) -> Iterator[Outcome]:
    """The outcomes, each with the time of its last success."""
    known = {
        (each.appliance, each.site): each.last_success
        for past in history
        for each in past.outcomes
        if each.last_success is not None
    }
    for outcome in night.outcomes:
        bad = outcome.state in (State.FAILED, State.SKIPPED)
        success = known.get((outcome.appliance, outcome.site)) if bad else night.ended
        yield replace(outcome, last_success=success)


def _find_missing(night: Night, history: Sequence[Night]) -> tuple[Outcome, ...]:
    """What a night that could not run does not tell of."""
    if night.state is not NightState.COULD_NOT_RUN or night.outcomes:
        return ()
    return next((each.outcomes for each in reversed(history) if each.outcomes), ())


def _point(link: Path, name: str) -> None:
    """Has a link lead to a folder beside it."""
    temporary = temporary_name(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _whole(text: str) -> str:
    """The text without halves of characters, which no file in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()
