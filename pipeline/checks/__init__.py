"""What must not be in an image that others boot: the rules of the gate, one module per family.

A new rule is an entry in its family's `RULES`; a new family is a module, and a line here. Images
are only read. What a rule finds depends on the root file system alone, and not on the day or on
who asks: `judge` decides what of it counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from fnmatch import fnmatchcase

from pipeline.checks import accounts, leftovers, modes, packages, secrets, system, traces
from pipeline.checks.root import Root
from pipeline.checks.rule import Finding, Found, Rule
from pipeline.disk.contents import Contents, shown
from pipeline.disk.untrusted import to_printable
from pipeline.waiver import Waiver

FAMILIES = (accounts, secrets, traces, packages, modes, system, leftovers)
RULES: dict[str, Rule] = {rule.id: rule for family in FAMILIES for rule in family.RULES}
"""All rules by their ids, in the order in which they are told."""
MOST = 50
"""How many findings of one rule are told one by one."""


def check_image(contents: Contents, host_name: str = "") -> list[Finding]:
    """All that the rules find in an image, what one rule finds sorted by path. `host_name` is that
    of the build host, which the image should not have. Raises FileSystemError."""
    root = Root(contents, host_name)
    return [finding for rule in RULES.values() for finding in _apply(rule, root)]


def _apply(rule: Rule, root: Root) -> Iterator[Finding]:
    found = sorted(set(rule.find(root)), key=lambda each: (each.path, each.detail))
    for each in found[:MOST]:
        yield _make_finding(rule, each)
    if len(found) > MOST:
        more = f"and {len(found) - MOST} more of this kind"
        yield _make_finding(rule, replace(found[MOST], detail=more, subject=""))


def _make_finding(rule: Rule, found: Found) -> Finding:
    return Finding(
        rule=rule.id,
        path=to_printable(shown(found.path)),
        detail=to_printable(shown(found.detail)),
        subject=found.subject,
        since=found.since,
    )


def judge(
    findings: list[Finding], waivers: tuple[Waiver, ...], today: date
) -> tuple[list[Finding], list[tuple[Finding, Waiver]]]:
    """Which findings count on a day, errors first, and which are waived, by what."""
    counted, waived = [], []
    for finding in findings:
        if finding.since and date.fromisoformat(finding.since) > today:
            continue
        waiver = next((each for each in waivers if _covers(each, finding)), None)
        if waiver is None:
            counted.append(finding)
        else:
            waived.append((finding, waiver))
    counted.sort(key=lambda finding: RULES[finding.rule].severity == "warning")
    return counted, waived


def _covers(waiver: Waiver, finding: Finding) -> bool:
    return (
        waiver.rule == finding.rule
        and (waiver.path is None or fnmatchcase(finding.path, waiver.path))
        and (waiver.subject is None or waiver.subject == finding.subject)
    )
