"""The user's commands at the end of a night: mail, chat, whatever takes the report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.definitions.nightly import ALWAYS, CHANGE, FAILURE, Hooks
from pipeline.errors import PhantomError
from pipeline.nightly.night import Night, NightState, State
from pipeline.nightly.reports import Paths
from pipeline.nightly.summary import headline, shorten, to_lines
from pipeline.terminal import escape
from pipeline.tools import run

LOG = "hooks.log"
"""What hooks printed, in the night's folder."""
_END = 4096  # bytes
_GRACE = 5  # seconds that a hook which was asked to end has for it
_ENDED_LATE = (124, 137)  # what `timeout` ends with where it had to end the command, or to kill it


def run_hooks(hooks: Hooks, night: Night, history: Sequence[Night], paths: Paths) -> list[str]:
    """Runs the hooks that a night asks for, one after the other. Returns a warning for each that
    fails: none changes what came of the night. `history` are the nights before, newest last."""
    return [
        warning
        for when in _find_asked(night, history)
        if when in hooks.commands and (warning := _run(when, hooks, night, paths)) is not None
    ]


def _find_asked(night: Night, history: Sequence[Night]) -> Iterator[str]:
    if night.state is not NightState.WELL:
        yield FAILURE
    if has_changed(night, history):
        yield CHANGE
    yield ALWAYS


def has_changed(night: Night, history: Sequence[Night]) -> bool:
    """Whether a site has a new build, or what failed is not what failed the night before."""
    if any(each.state in (State.BUILT, State.REUSED) for each in night.outcomes):
        return True
    return _find_bad(night) != (_find_bad(history[-1]) if history else (None, set()))


def _find_bad(night: Night) -> tuple[str | None, set[tuple[str, str]]]:
    bad = (State.FAILED, State.SKIPPED)
    found = {(each.appliance, each.site) for each in night.outcomes if each.state in bad}
    return night.could_not_run, found


def _run(when: str, hooks: Hooks, night: Night, paths: Paths) -> str | None:
    command = hooks.commands[when]
    log, begun = _begin_log(paths.report.with_name(LOG), command)
    try:
        run.capture(
            # timeout ends what the command has started, too; what goes on in the background holds
            # no pipe of ours.
            ["timeout", f"--kill-after={_GRACE}", str(hooks.seconds), "/bin/sh", "-c"]
            + ['exec >>"$0" 2>&1; exec /bin/sh -c "$1"', str(log), command],
            env=_environment(when, night, paths),
            input="".join(f"{escape(line)}\n" for line in to_lines(night, paths.page)),
        )
    except run.ToolError as error:
        late = error.status in _ENDED_LATE
        how = f"had not ended after {hooks.seconds} s" if late else f"ended with {error.status}"
        said = _read_end(log, begun)
        return f"the hook for {when!r} {how}{f': {said}' if said else ''}; its log is {log}"
    except PhantomError as error:
        return f"the hook for {when!r}: {error.what}"
    return None


def _begin_log(log: Path, command: str) -> tuple[Path, int]:
    """Where a hook's output goes, and its size so far: nowhere, if the disk is full."""
    try:
        with run.open_log(log) as written:
            written.write(f"$ {command}\n")
        return log, log.stat().st_size
    except OSError:
        return Path(os.devnull), 0


def _read_end(log: Path, begun: int) -> str:
    """The last line that a hook printed behind a place in the log."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begun, size - _END))
        lines = file.read().decode(errors="replace").split("\n")
    return shorten(next((line for line in reversed(lines) if line.strip()), ""))


def _environment(when: str, night: Night, paths: Paths) -> dict[str, str]:
    return {
        "PHANTOM_HOOK": when,
        "PHANTOM_NIGHT": night.name,
        "PHANTOM_NIGHT_STATE": night.state,
        "PHANTOM_NIGHT_SUMMARY": shorten(escape(headline(night))),
        "PHANTOM_REPORT": str(paths.report),
        "PHANTOM_REPORT_HTML": str(paths.page),
        "PHANTOM_REPORT_JUNIT": str(paths.junit),
    }
