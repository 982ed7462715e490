"""Commands that take several appliances: one that fails does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Project, make_project

_BASE = "source: {base_image: {location: base.raw, format: raw}}\ndisk_size: 1GiB\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two definitions that can be planned without a mirror, and one with a mistake."""
    made = make_project(tmp_path / "project")
    for name in ("debian-cloud-base", "hello-base", "hello-phantom", "ubuntu-base"):
        (made.folder / "images" / name / "appliance.yaml").unlink()
    for name in ("one", "two"):
        made.define(name, _BASE, extends=None)
        with (made.folder / "images" / name / "base.raw").open("wb") as file:
            file.truncate(1 << 20)
    made.define("broken", "disk_size: much\n", extends=None)
    return made


def test_all_are_planned_but_those_with_mistakes(project: Project) -> None:
    done = project.run("plan", "--all", "--site", "ec2-sandbox")
    assert done.status == 10
    assert done.out.count("publish ec2-sandbox") == 2
    assert done.error.startswith("error: images/broken/appliance.yaml:4:12: ")
    assert "\nerror: " not in done.error


def test_programs_get_one_value_after_the_other(project: Project) -> None:
    done = project.run("plan", "one", "broken", "two", "one", "--site", "ec2-sandbox", "--json")
    assert done.status == 10
    decoder, left, values = json.JSONDecoder(), done.out.strip(), []
    while left:
        value, end = decoder.raw_decode(left)
        values.append(value)
        left = left[end:].strip()
    assert [each.get("appliance", each.get("error")) for each in values] == [
        "one",
        "DefinitionError",
        "two",
    ]


def test_all_and_a_name_contradict_each_other(project: Project) -> None:
    for command in ("plan", "image", "build", "publish"):
        done = project.run(command, "one", "--all")
        assert (done.status, done.error) == (
            24,
            "error: --all is given beside appliances\n  do: leave one out\n",
        )


def test_all_of_nothing(project: Project) -> None:
    for name in ("one", "two", "broken"):
        (project.folder / "images" / name / "appliance.yaml").unlink()
    done = project.run("plan", "--all")
    assert (done.status, done.error) == (
        24,
        "error: there is no definition in images\n  do: write one (`phantom-image new`)\n",
    )
