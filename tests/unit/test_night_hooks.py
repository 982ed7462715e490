"""The user's commands at the end of a night."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from night_values import HOSTILE, make_built, make_night, make_outcome

from pipeline.definitions.nightly import Hooks
from pipeline.nightly import reports
from pipeline.nightly.hooks import has_changed, run_hooks
from pipeline.nightly.night import Night, State
from pipeline.nightly.summary import to_lines

FINE = make_night(1, make_outcome("web"))
FAILED = make_night(2, make_outcome("web", state=State.FAILED, message="no"))
NEW = make_night(3, make_built("web", "hotel", 3))
AWAY = make_night(4, could_not_run=HOSTILE)
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs hooks, after the reports were written."""

    def run_them(night: Night, history: Sequence[Night] = (), **commands: str) -> list[str]:
        paths = reports.write(night, history, tmp_path / "nightly")
        return run_hooks(Hooks(commands=commands, seconds=1), night, history, paths)

    return run_them


@pytest.mark.parametrize(
    ("night", "before", "told"),
    [
        (FINE, FINE, "always"),
        (NEW, FINE, "change always"),
        (FAILED, FINE, "failure change always"),
        (FAILED, FAILED, "failure always"),
        (FINE, FAILED, "change always"),
        (AWAY, FINE, "failure change always"),
        (AWAY, AWAY, "failure always"),
    ],
)
def test_hooks_run_when_they_are_asked_for(
    run: Run, tmp_path: Path, night: Night, before: Night, told: str
) -> None:
    command = f'echo "$PHANTOM_HOOK $PHANTOM_NIGHT_STATE" >>{tmp_path}/told'
    assert run(night, [before], always=command, change=command, failure=command) == []
    lines = (tmp_path / "told").read_text().splitlines()
    assert lines == [f"{when} {night.state}" for when in told.split()]


def test_the_first_night_has_changed_where_something_is_new_or_failed() -> None:
    assert [has_changed(night, ()) for night in (FINE, FAILED, NEW, AWAY)] == [
        *(False, True, True, True),
    ]


def test_a_hook_gets_the_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    assert run(AWAY, always='cat >in; env >env; cp "$PHANTOM_REPORT" got.json') == []
    folder = tmp_path / "nightly" / AWAY.name
    lines = to_lines(AWAY, folder / "index.html")
    shown = "<script>alert('x')</script> & \\x1b[31m red \\u202eabc\\u202c \\ud800 \\ufffe"
    assert (tmp_path / "in").read_text().splitlines() == [
        f"night {AWAY.name}: could not run: {shown}",
        f"report: {folder}/index.html",
    ]
    assert len(lines) == 2
    environ = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    told = {name: value for name, value in environ.items() if name.startswith("PHANTOM_")}
    assert told == {
        "PHANTOM_HOOK": "always",
        "PHANTOM_NIGHT": AWAY.name,
        "PHANTOM_NIGHT_STATE": "could_not_run",
        "PHANTOM_NIGHT_SUMMARY": f"could not run: {shown}",
        "PHANTOM_REPORT": f"{folder}/report.json",
        "PHANTOM_REPORT_HTML": f"{folder}/index.html",
        "PHANTOM_REPORT_JUNIT": f"{folder}/junit.xml",
    }
    assert "AWS_SECRET_ACCESS_KEY" not in environ
    assert json.loads((tmp_path / "got.json").read_text())["name"] == AWAY.name


def test_what_fails_is_a_warning_and_the_others_run(run: Run, tmp_path: Path) -> None:
    warnings = run(
        FAILED,
        failure="echo one; echo two >&2; echo; exit 3",
        change="no-such-program",
        always=f"touch {tmp_path}/ran",
    )
    log = tmp_path / "nightly" / FAILED.name / "hooks.log"
    assert warnings == [
        f"the hook for 'failure' ended with 3: two; its log is {log}",
        "the hook for 'change' ended with 127: /bin/sh: 1: no-such-program: not found; "
        f"its log is {log}",
    ]
    assert (tmp_path / "ran").exists()
    assert log.read_text() == (
        "$ echo one; echo two >&2; echo; exit 3\none\ntwo\n\n"
        "$ no-such-program\n/bin/sh: 1: no-such-program: not found\n"
        f"$ touch {tmp_path}/ran\n"
    )
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_what_hangs_is_ended_with_all_that_it_started(run: Run, tmp_path: Path) -> None:
    command = f"sleep 300 & echo $! >{tmp_path}/pid; echo waiting; sleep 300; true"
    log = tmp_path / "nightly" / FINE.name / "hooks.log"
    assert run(FINE, always=command) == [
        f"the hook for 'always' had not ended after 1 s: waiting; its log is {log}"
    ]
    pid = (tmp_path / "pid").read_text().strip()
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split(") ")[1][0] == "Z"


def test_nobody_waits_for_what_goes_on_in_the_background(run: Run, tmp_path: Path) -> None:
    command = f"sleep 300 & echo $! >{tmp_path}/pid"
    assert run(FINE, always=command) == []
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
