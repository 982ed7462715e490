"""`phantom-image nightly`: its exit statuses, messages and reports."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from cli_runs import Project, list_tree, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path / "project")
    made.define("broken", "disk_size: much\n")
    made.define("broken-too", "packages: 3\n")
    return made


def test_a_night_with_failures(project: Project) -> None:
    done = project.run("nightly", "broken", "--no-publish")
    (night,) = (path.name for path in (project.build / "nightly").iterdir() if path.name[0] == "2")
    page = project.build / "nightly" / night / "index.html"
    assert done.status == 71
    assert done.error == (
        "error: 1 of 1 failed or were skipped: broken\n"
        f"  do: {page} says why; the next night tries them again\n"
    )
    headline, failed, *_, last = done.out.splitlines()
    assert headline.startswith(f"night {night}: 1 failed (1 appliance at 1 site) in ")
    assert failed.startswith("failed   broken at nimbus-sandbox: images/broken/appliance.yaml"), (
        failed
    )
    assert last == f"report: {page}"
    assert page.is_file()


def test_a_program_gets_the_report_alone(project: Project) -> None:
    done = project.run("nightly", "broken", "--no-publish", "--json")
    report = project.build / "nightly" / done.json["name"] / "report.json"
    assert json.loads(report.read_text()) == done.json
    assert (done.status, done.json["state"]) == (71, "failed")
    assert done.error.startswith("error: 1 of 1 failed or were skipped: broken\n")


def test_a_second_night_at_the_same_time(project: Project) -> None:
    folder = project.build / "nightly"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = project.run("nightly", "broken")
    assert done.status == 72
    assert project.masked(done.error) == (
        "error: the night could not run: PROJECT/build/nightly: another nightly runs here\n"
        "  do: mend that; what should have been built, the next night builds\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nobody"],
            "error: there is no appliance 'nobody' in images\n  do: name some of broken, "
            "broken-too, debian-cloud-base, hello-base, hello-phantom, ubuntu-base, or none for "
            "all\n",
        ),
        (
            ["--only", "x*"],
            "error: there is no appliance to build in images\n  do: write a definition "
            "(`phantom-image new`), or see what --only says\n",
        ),
    ],
)
def test_names_that_fit_nothing(project: Project, words: list[str], message: str) -> None:
    done = project.run("nightly", *words)
    assert (done.status, done.error) == (24, message)
    assert not project.build.exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--since soon", "argument --since: 'soon' is no time; write 12h, 3d or 2026-01-31"),
        ("--jobs 0", "argument --jobs: '0' is no number of cores from 1 to 9999"),
        (
            "--stage-limit 0",
            "argument --stage-limit: '0' is no number of minutes from 0.001 to 99999",
        ),
        (
            "--store-size 5X",
            "argument --store-size: '5X' is no size; write a number and B, KiB, MiB, GiB or TiB",
        ),
    ],
)
def test_values_that_say_nothing(project: Project, words: str, complaint: str) -> None:
    done = project.run("nightly", *words.split())
    assert done.status == 2
    assert done.err.endswith(f"error: {complaint}\n")


def test_a_dry_run_builds_nothing_and_reports_nothing(project: Project) -> None:
    done = project.succeed("nightly", "--only", "broken*", "--dry-run", "--json").json
    rows = [(each["appliance"], each["site"], each["action"]) for each in done["appliances"]]
    assert rows == [
        ("broken", "nimbus-sandbox", "failed"),
        ("broken-too", "nimbus-sandbox", "failed"),
    ]
    assert not (project.build / "nightly").exists()
    left = [line for line in list_tree(project.store) if "/artifacts/" in line]
    assert left == []
