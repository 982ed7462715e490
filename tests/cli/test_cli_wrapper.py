"""`./phantom-image` and `make`, in a checkout whose set-up has nothing to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import REPOSITORY

ERROR = "error: '5X' is no size; write a number and B, KiB, MiB, GiB or TiB\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the command in it."""
    for name in ("phantom-image", "Makefile"):
        shutil.copy(REPOSITORY / name, tmp_path)
    program = tmp_path / ".venv/bin/phantom-image"
    program.parent.mkdir(parents=True)
    scripts = {
        tmp_path / "setup.sh": "echo set up >>log\n",
        program: f'PYTHONPATH={REPOSITORY} exec {sys.executable} -m pipeline.cli "$@"\n',
    }
    for path, script in scripts.items():
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_the_wrapper_sets_up_and_keeps_the_status(checkout: Path) -> None:
    (checkout / "elsewhere").mkdir()
    (checkout / "elsewhere/linked").symlink_to("../phantom-image")
    for words in (["./phantom-image"], ["elsewhere/linked"]):
        done = run(checkout, *words, "gc", "--size", "5X")
        assert (done.returncode, done.stdout, done.stderr) == (24, "", ERROR)
    assert (checkout / "log").read_text() == "set up\n" * 2
    assert run(checkout, "./phantom-image", "--version").returncode == 0


def test_a_set_up_that_fails_is_the_end(checkout: Path) -> None:
    (checkout / "setup.sh").write_text("#!/bin/sh\necho 'setup: no' >&2\nexit 1\n")
    done = run(checkout, "./phantom-image", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "setup: no\n")


def test_make_tells_the_status_in_a_line_of_its_own(checkout: Path) -> None:
    done = run(checkout, "make", "plan", "IMAGE=no such appliance")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert re.fullmatch(
        r"make(\[\d+\])?: \*\*\* \[Makefile:\d+: plan\] Error 24", done.stderr.splitlines()[-1]
    )
    assert "make is 2 for every error" in run(checkout, "make").stdout
