"""What the gate says of an image: for manifests, for people, and as the error that stops a
publication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.checks import RULES
from pipeline.checks.rule import Finding
from pipeline.errors import GateError
from pipeline.waiver import Waiver


def count(findings: Sequence[Finding]) -> dict[str, int]:
    """How many are of each severity."""
    severities = [RULES[finding.rule].severity for finding in findings]
    return {"errors": severities.count("error"), "warnings": severities.count("warning")}


def say_count(findings: Sequence[Finding]) -> str:
    """The same in words: `1 error, 2 warnings`."""
    words = [
        f"{number} {name if number > 1 else name.removesuffix('s')}"
        for name, number in count(findings).items()
        if number
    ]
    return ", ".join(words) or "nothing found"


def describe(finding: Finding) -> dict[str, Any]:
    """A finding for manifests and programs."""
    rule = RULES[finding.rule]
    return {
        "rule": rule.id,
        "severity": rule.severity,
        "path": finding.path,
        "detail": finding.detail,
        "reason": rule.reason,
        "todo": rule.todo,
    }


def describe_waived(finding: Finding, waiver: Waiver) -> dict[str, Any]:
    """A finding that an appliance is meant to have."""
    told = {"rule": finding.rule, "path": finding.path, "detail": finding.detail}
    return {**told, "reason": waiver.reason}


def say(finding: Finding) -> str:
    """A finding in one line."""
    return f"{RULES[finding.rule].severity} {finding.rule}: {finding.path}: {finding.detail}"


def explain(findings: Sequence[Finding]) -> Mapping[str, tuple[str, str]]:
    """Of each rule that is broken, why it is one and what mends it."""
    broken = dict.fromkeys(finding.rule for finding in findings)
    return {name: (RULES[name].reason, RULES[name].todo) for name in broken}


def make_error(findings: Sequence[Finding]) -> GateError | None:
    """The error that keeps an image with these findings, errors first, from being published; None
    where nothing does."""
    errors = [finding for finding in findings if RULES[finding.rule].severity == "error"]
    if not errors:
        return None
    first, rule = errors[0], RULES[errors[0].rule]
    more = [say(finding) for finding in findings if finding is not first]
    return GateError(
        f"the image must not be published: {rule.id}: {first.path}: {first.detail}",
        todo=f"{rule.todo}; or give the reason why it may be so below `waive:` in the definition",
        detail="\n".join(more) or None,
    )
