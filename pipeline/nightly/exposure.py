"""The known vulnerabilities of what sites have after a night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations.vulnerabilities import (
    Vulnerability,
    find_open,
    find_worse,
    list_components,
)
from pipeline.build.manifest import FILE, load_manifest
from pipeline.definitions.tracker import SEVERITIES
from pipeline.errors import GateError, PhantomError
from pipeline.nightly.night import Night, Outcome, State
from pipeline.nightly.summary import shorten_list

STAGE = "vulnerabilities"
"""What failed, in reports, where a vulnerability is too bad."""
_GOOD = (State.BUILT, State.REUSED, State.UNCHANGED)


def judge(night: Night, builds: Path, tracker: Mapping[str, Any], fail_above: str | None) -> Night:
    """The night with a warning of what is open in each build that a site has, by the export of
    Debian's security tracker. A build with an issue worse than `fail_above` has failed, though the
    site has it."""

    @cache
    def find(appliance: str, build: str) -> tuple[Vulnerability, ...] | str:
        folder = builds / appliance / build
        try:
            listed = list_components(load_manifest(folder / FILE), folder)
        except PhantomError as error:
            return error.what
        except (OSError, records.Unfit) as error:
            return str(error)
        return tuple(find_open(listed, tracker))

    outcomes = [
        each
        if each.state not in _GOOD or each.build is None
        else _judge(each, find(each.appliance, each.build), fail_above)
        for each in night.outcomes
    ]
    return replace(night, outcomes=tuple(outcomes))


def _judge(
    outcome: Outcome, found: tuple[Vulnerability, ...] | str, fail_above: str | None
) -> Outcome:
    if isinstance(found, str):
        warning = f"its known vulnerabilities cannot be told: {found}"
        return replace(outcome, warnings=(*outcome.warnings, warning))
    if found:
        outcome = replace(outcome, warnings=(*outcome.warnings, _summarize(found)))
    if not (bad := find_worse(found, fail_above)):
        return outcome
    issues = shorten_list([f"{each.issue} in {each.source}" for each in bad])
    return replace(
        outcome,
        state=State.FAILED,
        stage=STAGE,
        message=f"{len(bad)} worse than {fail_above}: {issues}",
        error=GateError.__name__,
        exit_status=GateError.exit_code,
    )


def _summarize(found: Sequence[Vulnerability]) -> str:
    """How many are open, by severity, and the worst one."""
    counts = Counter(each.severity for each in found)
    told = ", ".join(f"{counts[each]} {each}" for each in reversed(SEVERITIES) if counts[each])
    worst = found[0]
    mend = f"corrected in {worst.fixed}" if worst.fixed else "not corrected yet"
    return f"known vulnerabilities: {told}; {worst.issue} in {worst.source} is {mend}"
