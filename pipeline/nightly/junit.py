"""JUnit XML, which Jenkins, GitLab and others show: a suite per appliance, a case per site."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from xml.etree import ElementTree

from pipeline.nightly.night import Night, Outcome, State
from pipeline.terminal import escape


def to_junit(night: Night) -> str:
    """The whole file."""
    root = ElementTree.Element("testsuites", name="nightly", time=_seconds(night.seconds))
    if night.could_not_run is not None:
        suite = _add_suite(root, "nightly", night)
        case = ElementTree.SubElement(suite, "testcase", classname="nightly", name="run", time="0")
        _add_text(case, "error", night.could_not_run, ())
    ordered = sorted(night.outcomes, key=lambda each: (each.appliance, each.site))
    for appliance, outcomes in groupby(ordered, key=lambda each: each.appliance):
        suite = _add_suite(root, appliance, night)
        for outcome in outcomes:
            _add_case(suite, outcome)
    for suite in root:
        _count(suite)
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _add_suite(root: ElementTree.Element, name: str, night: Night) -> ElementTree.Element:
    began = datetime.fromtimestamp(night.started, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return ElementTree.SubElement(root, "testsuite", name=escape(name), timestamp=began)


def _count(suite: ElementTree.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", _seconds(sum(float(case.get("time", "0")) for case in cases)))


def _add_case(suite: ElementTree.Element, outcome: Outcome) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=escape(outcome.appliance),
        name=escape(outcome.site),
        time=_seconds(outcome.seconds),
    )
    if outcome.state is State.FAILED:
        lines = (
            f"stage: {outcome.stage or 'none'}",
            f"message: {outcome.message or 'none'}",
            *(f"do: {todo}" for todo in (outcome.todo,) if todo),
            *(f"log: {log}" for log in (outcome.log,) if log),
            *(f"tries: {tries}" for tries in (outcome.tries,) if tries > 1),
        )
        text = f"{outcome.stage}: {outcome.message}" if outcome.stage else outcome.message or ""
        failure = _add_text(case, "failure", text, lines)
        failure.set("type", escape(outcome.error or "failure"))
    elif outcome.state is State.SKIPPED:
        _add_text(case, "skipped", outcome.because or "", ())
    told = [
        f"{outcome.state}{f' {outcome.build}' if outcome.build else ''}",
        *(f"because: {reason}" for reason in outcome.reasons),
        *(f"changed: {change}" for change in outcome.changes),
        *(f"warning: {warning}" for warning in outcome.warnings),
    ]
    ElementTree.SubElement(case, "system-out").text = _lines(told)


def _add_text(
    case: ElementTree.Element, tag: str, message: str, lines: Iterable[str]
) -> ElementTree.Element:
    element = ElementTree.SubElement(case, tag, message=escape(message))
    element.text = _lines(lines) or None
    return element


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(map(escape, lines))


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"
