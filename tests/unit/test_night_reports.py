"""Reports of nights for programs: report.json, JUnit XML, Prometheus; and what a log gets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from night_values import (
    ARABIC,
    FIRST,
    HOSTILE,
    LONG,
    make_built,
    make_full_night,
    make_history,
    make_night,
    make_outcome,
)
from prometheus_client.parser import text_string_to_metric_families

from pipeline import records
from pipeline.nightly import reports
from pipeline.nightly.junit import to_junit
from pipeline.nightly.metrics import to_metrics
from pipeline.nightly.night import Night, NightState, Outcome, State
from pipeline.nightly.report_json import to_report
from pipeline.nightly.report_schema import report_schema
from pipeline.nightly.summary import to_lines

NIGHTS = {
    "full": make_full_night(),
    "fine": make_night(3, make_outcome("web"), make_built("mail", "hotel", 3)),
    "empty": make_night(0),
    "could not run": make_night(5, could_not_run=HOSTILE, warnings=(ARABIC,)),
    "backwards": make_night(1, make_outcome("web"), ended=FIRST, store_limit=None),
}


@pytest.fixture(params=NIGHTS)
def night(request: pytest.FixtureRequest) -> Night:
    return NIGHTS[request.param]


def test_a_report_has_its_schema_and_is_read_again(night: Night, tmp_path: Path) -> None:
    paths = reports.write(night, (), tmp_path)
    told = json.loads(paths.report.read_text())
    jsonschema.Draft202012Validator.check_schema(report_schema())
    jsonschema.validate(told, report_schema())
    (again,) = reports.history(tmp_path)
    assert json.loads(json.dumps(to_report(again))) == told
    assert again.state is night.state


def test_the_schema_knows_no_other_keys(night: Night) -> None:
    told = json.loads(json.dumps(to_report(night)))
    for faulty in (told | {"more": 1}, {key: told[key] for key in list(told)[1:]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(faulty, report_schema())


def test_a_report_says_what_a_program_asks_for() -> None:
    told = to_report(make_full_night())
    assert [told[key] for key in ("schema", "name", "state", "started", "ended", "seconds")] == [
        2,
        "20260110T023000Z",
        "failed",
        "2026-01-10T02:30:00Z",
        "2026-01-10T03:00:00Z",
        1800.0,
    ]
    assert told["counts"] == {"built": 3, "reused": 1, "unchanged": 14, "failed": 5, "skipped": 2}
    assert [night.state for night in NIGHTS.values()] == [
        *(NightState.FAILED, NightState.WELL, NightState.WELL, NightState.COULD_NOT_RUN),
        NightState.WELL,
    ]


# ---- the folder of nights


def test_a_night_has_all_reports_and_the_last_one_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "build/nightly"
    for number in (0, 1):
        paths = reports.write(make_night(number), reports.history(folder), folder)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        *(f"{day}T023000Z{file}" for day in ("20260101", "20260102") for file in FILES),
        *("index.html", "latest", "phantom_image.prom"),
    ]
    assert (folder / "latest").resolve() == paths.page.parent
    assert (folder / "phantom_image.prom").read_text() == paths.metrics.read_text()


FILES = ("", "/index.html", "/junit.xml", "/metrics.prom", "/report.json")


def test_history_is_the_last_nights_and_leaves_out_what_is_damaged(tmp_path: Path) -> None:
    for night in make_history(6):
        reports.write(night, (), tmp_path)
    names = [night.name for night in make_history(6)]
    (tmp_path / names[1] / "report.json").write_text("{")
    wrong = tmp_path / names[2] / "report.json"
    wrong.write_text(wrong.read_text().replace('"state": "built"', '"state": "bought"', 1))
    later = tmp_path / names[3] / "report.json"
    later.write_text(later.read_text().replace('"schema": 2', '"schema": 3'))
    moved = tmp_path / "20250101T000000Z"
    (tmp_path / names[0]).rename(moved)
    day = tmp_path / names[4] / "report.json"
    day.write_text(re.sub('"ended": "[^"]*"', '"ended": "2026-02-31T00:00:00Z"', day.read_text()))
    (tmp_path / "20270101T000000Z").mkdir()
    assert [night.name for night in reports.history(tmp_path)] == names[5:]
    assert reports.history(tmp_path / "nowhere") == ()
    for number in (7, 8):
        reports.write(make_night(number), (), tmp_path)
    last = reports.history(tmp_path, most=2)
    assert [night.name for night in last] == [make_night(number).name for number in (7, 8)]


def test_reports_of_the_first_schema_are_read(tmp_path: Path) -> None:
    night = make_night(0, make_outcome("web", state=State.FAILED, message="no", todo="so"))
    told = json.loads(reports.write(night, (), tmp_path).report.read_text())
    for outcome in told["outcomes"]:
        del outcome["todo"]
    (tmp_path / night.name / "report.json").write_text(json.dumps({**told, "schema": 1}))
    (read,) = reports.history(tmp_path)
    assert read.outcomes == (replace(night.outcomes[0], todo=None),)


def test_old_folders_go_and_nothing_else(tmp_path: Path) -> None:
    names = [f"202401{day:02}T000000Z" for day in range(1, 6)]
    others = ["20240101", "20240101T000000Z.old", "memory.json"]
    for name in (*names, *others):
        (tmp_path / name).mkdir()
    reports.write(make_night(0), (), tmp_path, keep=3)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {*names[3:], *others, "20260101T023000Z", "latest"}


def test_a_failure_tells_when_it_was_last_well(tmp_path: Path) -> None:
    failed = make_outcome("web", state=State.FAILED, message="no")
    nights = [
        make_night(0, make_outcome("web"), make_outcome("web", "frankfurt")),
        make_night(1, failed, make_outcome("web", "frankfurt")),
        make_night(2, replace(failed, state=State.SKIPPED)),
        make_night(3, could_not_run="no"),
        make_night(4, failed, make_outcome("new", state=State.FAILED)),
    ]
    for night in nights:
        paths = reports.write(night, reports.history(tmp_path), tmp_path)
    told = json.loads(paths.report.read_text())["outcomes"]
    assert [each["last_success"] for each in told] == ["2026-01-01T03:00:00Z", None]


def test_a_night_that_could_not_run_leaves_the_time_of_the_last_success(tmp_path: Path) -> None:
    reports.write(make_night(0, make_outcome("web")), (), tmp_path)
    for number in (1, 2):
        away = make_night(number, could_not_run="no")
        paths = reports.write(away, reports.history(tmp_path), tmp_path)
    samples = read_metrics(paths.metrics.read_text())
    place = (("appliance", "web"), ("cloud", "nimbus"), ("site", "hotel"))
    assert samples["phantom_image_nightly_last_success_timestamp_seconds", place] == FIRST + 1800
    assert not [name for name, labels in samples if labels == place and "duration" in name]


# ---- JUnit

# What Jenkins and GitLab take: attributes that must be there, those that may be, and elements
# inside, in this order.
JUNIT: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "testsuites": (
        {"tests", "failures", "errors", "time"},
        {"name", "skipped"},
        ("testsuite",),
    ),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        {"hostname"},
        ("testcase",),
    ),
    "testcase": (
        {"name", "classname", "time"},
        set(),
        ("skipped", "error", "failure", "system-out"),
    ),
    "failure": ({"message", "type"}, set(), ()),
    "error": ({"message"}, {"type"}, ()),
    "skipped": ({"message"}, set(), ()),
    "system-out": (set(), set(), ()),
}


def check_junit(element: ElementTree.Element) -> None:
    must, may, inside = JUNIT[element.tag]
    assert must <= set(element.attrib) <= must | may, element.tag
    places = [inside.index(child.tag) for child in element]
    assert places == sorted(places)
    for name in ("tests", "failures", "errors", "skipped"):
        assert element.get(name, "0").isdecimal()
    assert float(element.get("time", "0")) >= 0
    for child in element:
        check_junit(child)


def test_junit_is_what_ci_servers_read(night: Night) -> None:
    root = ElementTree.fromstring(to_junit(night))
    check_junit(root)
    assert int(root.get("tests", "")) == len(root.findall(".//testcase"))
    assert int(root.get("failures", "")) == len(night.failed)
    assert int(root.get("errors", "")) == (night.could_not_run is not None)
    names = {suite.get("name") for suite in root}
    assert len(names) == len(root)


def test_junit_has_a_case_for_each_site_and_says_what_failed() -> None:
    root = ElementTree.fromstring(to_junit(make_full_night()))
    (web,) = root.findall("testsuite[@name='web']")
    assert [case.get("name") for case in web] == ["frankfurt", "hotel"]
    failure = web[0].find("failure")
    assert failure is not None
    assert failure.attrib == {
        "message": "boot frankfurt bios: the guest did not report within 240 s; its console ends "
        "with: Kernel panic - not syncing: VFS: Unable to mount root fs",
        "type": "BootError",
    }
    assert (failure.text or "").splitlines() == [
        "stage: boot frankfurt bios",
        "message: the guest did not report within 240 s; its console ends with: Kernel panic - "
        "not syncing: VFS: Unable to mount root fs",
        "do: look at the log for what the guest was doing",
        "log: /var/lib/phantom-image/build/web/logs/boot-hotel.log",
        "tries: 2",
    ]
    (skipped,) = root.findall("testsuite[@name='cache']/testcase/skipped")
    assert skipped.get("message") == "base failed at 'packages'"
    (long,) = root.findall("testsuite[@name='base']/testcase/failure")
    assert long.get("message") == f"packages: {LONG}"
    (mail,) = root.findall("testsuite[@name='mail']/testcase[@name='hotel']/system-out")
    assert (mail.text or "").splitlines()[:2] == [
        "built 0923456789ab",
        "because: openssl 3.0.19-1~deb12u1 -> 3.0.20-1~deb12u1",
    ]
    shown = "<script>alert('x')</script> & \\x1b[31m red \\u202eabc\\u202c \\ud800 \\ufffe"
    assert shown in {suite.get("name") for suite in root}


# ---- Prometheus


def read_metrics(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    found = {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}
    assert len(found) == len(samples)
    return found


def test_metrics_are_what_prometheus_reads(night: Night) -> None:
    samples = read_metrics(to_metrics(night))
    for state in NightState:
        value = samples["phantom_image_nightly_state", (("state", state.value),)]
        assert value == (night.state is state)
    for kind in State:
        count = samples["phantom_image_nightly_outcomes", (("state", kind.value),)]
        assert count == len([each for each in night.outcomes if each.state is kind])
    assert samples["phantom_image_store_bytes", ()] == night.store_bytes
    assert samples["phantom_image_store_free_bytes", ()] == night.free_bytes
    assert samples["phantom_image_nightly_run_duration_seconds", ()] == night.seconds
    limit = samples.get(("phantom_image_store_limit_bytes", ()))
    assert limit == night.store_limit


def test_metrics_of_an_outcome() -> None:
    night = make_night(3, make_built("mail", "frankfurt", 3, last_success=FIRST))
    samples = read_metrics(to_metrics(night))
    place = (("appliance", "mail"), ("cloud", "ec2"), ("site", "frankfurt"))
    values = {
        name.removeprefix("phantom_image_nightly_"): value
        for (name, labels), value in samples.items()
        if labels == place
    }
    outcome: Any = night.outcomes[0]
    assert values == {
        "duration_seconds": outcome.seconds,
        "last_success_timestamp_seconds": FIRST,
        "built_bytes": outcome.bytes_built,
        "sent_bytes": outcome.bytes_sent,
        "saved_bytes": outcome.bytes_saved,
        "image_bytes": outcome.image_bytes,
        "root_bytes": outcome.root_bytes,
        "boot_seconds": 21.5,
    }
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in samples.items()
        if name == "phantom_image_nightly_outcome"
    }
    assert states == {"built": 1, "reused": 0, "unchanged": 0, "failed": 0, "skipped": 0}


# ---- lines


def test_lines_say_what_needs_somebody_first(tmp_path: Path) -> None:
    web = make_outcome(
        "web",
        state=State.FAILED,
        stage="root",
        message="no",
        todo="so",
        log="/l",
        error="E",
        because=None,
    )
    night = make_night(
        0,
        make_outcome("database"),
        make_built("mail", "hotel", 1, reasons=tuple("abcde"), warnings=("old",)),
        web,
        replace(web, site="frankfurt"),
        make_outcome("shop", state=State.SKIPPED, because="base failed"),
        make_built("mail", "sierra", 1, reasons=tuple("abcde"), warnings=("old", "slow")),
        warnings=("the mirror is slow",),
    )
    assert to_lines(night, tmp_path) == [
        "night 20260101T023000Z: 2 failed, 1 skipped, 2 built, 1 unchanged (4 appliances at "
        "3 sites) in 30 min 00 s",
        "failed   web at frankfurt, hotel: root: no",
        "         do: so",
        "         log: /l",
        "skipped  shop at hotel: base failed",
        "built    mail at hotel, sierra: a; b; c and 2 more",
        "warning: the mirror is slow",
        "warning: mail at hotel, sierra: old",
        "warning: mail at sierra: slow",
        "store: 12 GiB of at most 20 GiB; 80 GiB free",
        f"report: {tmp_path}",
    ]
    assert to_lines(make_night(0, could_not_run="no space")) == [
        "night 20260101T023000Z: could not run: no space"
    ]
    assert to_lines(make_night(0))[0] == (
        "night 20260101T023000Z: nothing to do (0 appliances at 0 sites) in 30 min 00 s"
    )


def test_a_damaged_outcome_of_any_kind_makes_the_report_absent(tmp_path: Path) -> None:
    paths = reports.write(make_full_night(), (), tmp_path)
    told = json.loads(paths.report.read_text())
    for name in Outcome.__dataclass_fields__:
        faulty = json.loads(json.dumps(told))
        faulty["outcomes"][0][name] = {"not": "this"}
        paths.report.write_text(json.dumps(faulty))
        assert reports.history(tmp_path) == (), name
    assert records.read(paths.report, dict) is not None
