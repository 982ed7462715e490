"""The files to copy for CI servers: they parse, and run commands that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cli import _parser

FOLDER = Path(__file__).parents[2] / "docs/ci"


def read_jenkins() -> list[str]:
    return re.findall(r"^ *sh '([^']*)'$", (FOLDER / "Jenkinsfile").read_text(), re.MULTILINE)


def read_gitlab() -> list[str]:
    job = yaml.safe_load((FOLDER / "gitlab-ci.yml").read_text())["nightly"]
    assert job["artifacts"]["reports"]["junit"] == "report/junit.xml"
    return [*job["script"], *job["after_script"]]


def read_github() -> list[str]:
    told = yaml.safe_load((FOLDER / "github-workflow.yml").read_text())
    assert told[True] == {"schedule": [{"cron": "30 2 * * *"}], "workflow_dispatch": None}  # `on`
    return [step["run"] for step in told["jobs"]["nightly"]["steps"] if "run" in step]


@pytest.mark.parametrize("read", [read_jenkins, read_gitlab, read_github])
def test_commands_of_a_ci_server(read: object, tmp_path: Path) -> None:
    assert callable(read)
    nightly, take = read()
    words = shlex.split(nightly.replace('"$BUILD"', str(tmp_path / "build")))
    assert words[0] == "phantom-image"
    options = _parser().parse_args(words[1:])
    assert (options.build, options.appliance) == (tmp_path / "build", [])
    # The night before, then this one: only its report is taken, with its times.
    night = tmp_path / "build/nightly/20260131T023000Z"
    night.mkdir(parents=True)
    for name in ("index.html", "junit.xml"):
        (night / name).write_text(name)
    (tmp_path / "build/nightly/latest").symlink_to(night.name)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/old").touch()
    environ = {"PATH": "/usr/bin:/bin", "BUILD": str(tmp_path / "build")}
    subprocess.run(["sh", "-euc", take], cwd=tmp_path, env=environ, check=True)
    taken = {path.name: path for path in (tmp_path / "report").iterdir()}
    assert set(taken) == {"index.html", "junit.xml"}
    for name, path in taken.items():
        assert path.stat().st_mtime_ns == (night / name).stat().st_mtime_ns


def test_the_jenkinsfile_is_whole() -> None:
    text = re.sub(r"//.*|'[^'\n]*'", "", (FOLDER / "Jenkinsfile").read_text())
    depth = 0
    for character in re.sub(r"[^{}]", "", text):
        depth += 1 if character == "{" else -1
        assert depth >= 0
    assert depth == 0
    sections = re.findall(r"^    (\w+)", text, re.MULTILINE)
    assert sections == ["agent", "triggers", "options", "environment", "stages", "post"]
