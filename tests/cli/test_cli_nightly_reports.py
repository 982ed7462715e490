"""What a night prints and leaves, and the commands that get its report."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
from cli_runs import Project, make_project
from terminals import Terminal

SITES = """\
sites: {}
nightly:
  hooks:
    failure: cat >told
    always: echo oh no; exit 4
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose only definition is wrong, so that a night is over at once."""
    made = make_project(tmp_path / "project")
    for path in sorted((made.folder / "images").iterdir()):
        path.rename(tmp_path / path.name)
    made.define("web", "disk_size: much\n", extends=None)
    made.write("sites.yaml", SITES)
    return made


def test_a_night_in_a_log_and_what_its_hooks_get(project: Project) -> None:
    done = project.run("nightly")
    assert done.status == 71
    folder = project.build / "nightly"
    page = (folder / "latest").resolve() / "index.html"
    lines = done.out.splitlines()
    assert re.fullmatch(
        rf"night {page.parent.name}: 1 failed \(1 appliance at 1 site\) in [0-9.]+ s", lines[0]
    )
    assert lines[1].startswith("failed   web at nimbus-sandbox: ")
    assert "images/web/appliance.yaml:4:12: " in lines[1]
    assert lines[-2].startswith("store: ")
    assert lines[-1] == f"report: {page}"
    assert (project.folder / "told").read_text().splitlines() == lines
    assert (
        f"warning: the hook for 'always' ended with 4: oh no; its log is {page.parent}/hooks.log\n"
    ) in done.err
    assert "\x1b" not in done.out + done.err
    schema = project.succeed("schema", "report").json
    report = json.loads((page.parent / "report.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(report)
    done = project.run("nightly", "--json")
    assert done.status == 71
    assert done.json["counts"]["failed"] == 1
    assert done.error.startswith("error: 1 of 1 failed or were skipped: web\n  do: ")


@pytest.mark.parametrize("colours", [True, False])
def test_a_night_on_a_terminal(project: Project, colours: bool) -> None:
    argv = [sys.executable, "-m", "pipeline.cli", "nightly"]
    env = project.env(**({} if colours else {"NO_COLOR": "1"}))
    with Terminal(argv, cwd=project.folder, env=env, columns=300, lines=50) as terminal:
        assert terminal.end() == 71
        rows = terminal.rows
    at = next(number for number, row in enumerate(rows) if row.startswith("night "))
    assert rows[at + 1].split() == ["what", "appliance", "sites", "time", "why"]
    assert rows[at + 2].split()[:3] == ["failed", "web", "nimbus-sandbox"]
    assert ("\x1b[1;31mfailed\x1b[0m" in terminal.printed) is colours


def test_a_mistake_in_hooks_is_found_before_the_night(project: Project) -> None:
    project.write("sites.yaml", "sites: {}\nnightly: {hooks: {failed: x}}\n")
    done = project.run("nightly")
    assert (done.status, done.error) == (
        10,
        "error: sites.yaml:2:19: unknown key 'failed' in 'nightly.hooks'; did you mean "
        "'failure'?\n  do: correct it; sites.example.yaml shows what the file can say\n",
    )
    assert not (project.build / "nightly").exists()


def test_hooks_run_where_no_report_can_be_written(project: Project) -> None:
    """What keeps a file from being written stands for a full disk."""
    project.run("nightly")
    folder = project.build / "nightly"
    (folder / "index.html").unlink()
    (folder / "index.html").mkdir()
    (folder / "index.html/x").touch()
    (project.folder / "told").unlink()
    done = project.run("nightly")
    assert done.status == 19, done.err
    assert "the folder of builds cannot be written to" in done.error
    told = (project.folder / "told").read_text()
    assert f"\nwarning: the report could not be written: {folder}/.index.html" in told


def test_what_would_run_every_night_is_shown(project: Project) -> None:
    words = ["nightly", "--show", "web", "--site", "a,b", "--jobs", "3", "--time", "01:05"]
    shown = project.succeed(*words, "--stage-limit", "90", "--store-size", "3GiB").out
    folder = project.folder
    program = Path(sys.executable).with_name("phantom-image")
    command = (
        f"{program} --images {folder}/images --build {folder}/build --sites {folder}/sites.yaml "
        "nightly --site a,b --jobs 3 --stage-limit 90 --store-size 3221225472B web"
    )
    lines = shown.splitlines()
    assert f"ExecStart={command}" in lines
    assert "OnCalendar=*-*-* 01:05:00" in lines
    assert [line for line in lines if line.startswith("5 1 * * * phantom-image cd ")]
    assert not any("PHANTOM_STORE" in line for line in lines)
    elsewhere = project.succeed("nightly", "--show", PHANTOM_STORE="/srv/store").out
    assert 'Environment="PHANTOM_STORE=/srv/store"\n' in elsewhere
    assert list(folder.rglob("nightly")) == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--time", "01:05"],
            24,
            "--time has no effect without --install or --show\n  do: add one of them, or leave it "
            "out\n",
        ),
        (["--show", "--force"], 24, "--force is nothing for every night\n  do: leave it out\n"),
        (["--show", "--time", "1:5"], 74, "'1:5' is no time of day\n  do: write it as 02:30\n"),
    ],
)
def test_mistakes_of_an_installation(
    project: Project, words: list[str], status: int, message: str
) -> None:
    done = project.run("nightly", *words)
    assert (done.status, done.error) == (status, f"error: {message}")
