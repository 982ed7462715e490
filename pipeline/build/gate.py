"""Judges what the gate found in a build: which of it stops the publication, and which is waived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from pipeline import checks
from pipeline.checks import report
from pipeline.checks.rule import Finding
from pipeline.errors import GateError
from pipeline.model import Appliance
from pipeline.waiver import Waiver


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What counts of what was found, and what does not."""

    counted: Sequence[Finding]
    """Errors first."""
    waived: Sequence[tuple[Finding, Waiver]]

    def describe(self) -> dict[str, Any]:
        """It as the manifest has it."""
        return {
            "findings": [report.describe(finding) for finding in self.counted],
            "waived": [report.describe_waived(*pair) for pair in self.waived],
        }


def judge(appliance: Appliance, facts: Mapping[str, Any], today: date | None = None) -> Verdict:
    """The verdict on the facts of the stage `gate`: what the definition waives, or itself asks for,
    does not count."""
    findings = [Finding(**told) for told in facts["findings"]]
    waivers = (*appliance.waive, *_asked_for(appliance))
    counted, waived = checks.judge(findings, waivers, today or datetime.now(UTC).date())
    return Verdict(counted=counted, waived=waived)


def find_error(told: Mapping[str, Any] | None, appliance: Appliance) -> GateError | None:
    """The error that keeps a build from being published whose manifest says so; None where nothing
    does, and where nothing is known. What the definition waives by now does not."""
    if told is None:
        return None
    findings = [
        Finding(rule=each["rule"], path=each["path"], detail=each["detail"])
        for each in told["findings"]
        if each["rule"] in checks.RULES
    ]
    counted, _ = checks.judge(findings, appliance.waive, date.min)
    return report.make_error(counted)


def _asked_for(appliance: Appliance) -> Iterator[Waiver]:
    """What the definition's users are meant to have."""
    for user in appliance.customizations.get("users", ()):
        name = user["name"]
        if "password" in user:
            reason = f"the definition gives {name} a password"
            yield Waiver(rule="password-set", subject=name, reason=reason)
        if "ssh_authorized_keys" in user:
            reason = f"the definition lets the owners of keys log in as {name}"
            yield Waiver(rule="authorized-keys", subject=name, reason=reason)
