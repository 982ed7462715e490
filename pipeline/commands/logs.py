"""`phantom-image logs`: lists the logs of stages, or prints one."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from pipeline.build.partial import stages_called
from pipeline.build.plan import make_plan
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.definitions.yaml import shown
from pipeline.errors import UsageError
from pipeline.model import format_size
from pipeline.workspace import Workspace

EXAMPLES = (
    "phantom-image logs",
    "phantom-image logs web",
    "phantom-image logs web root --follow",
)

_PAUSE = 0.2  # seconds between two looks at a log that grows


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("appliance", nargs="?", help="name or definition (all logs of the store)")
    add("stage", nargs="?", help="print the log of this stage's last run")
    add("-f", "--follow", action="store_true", help="print what is added, until control-c")
    shared.add(parser, "sites", "json")


def run(options: Namespace) -> None:
    """Lists logs, the newest first, or prints one.

    An appliance's logs are those of the stages that it has as it is defined now. Raises UsageError
    for an unknown stage and for one that has no log, and what planning raises.
    """
    if options.follow and options.stage is None:
        raise UsageError("--follow needs a stage", todo="name the appliance and one of its stages")
    if options.json and options.stage is not None:
        raise UsageError("--json lists logs, and prints none", todo="leave out the stage or --json")
    workspace = shared.open_workspace(options)
    if options.appliance is None:
        logs = [(log.name, log) for log in (workspace.store.folder / "logs").glob("*.log")]
        _list(logs, as_json=options.json)
        return
    logs = list(_logs_of(options, workspace))
    if options.stage is None:
        _list(logs, as_json=options.json)
        return
    if not logs:
        raise UsageError(
            f"stage {options.stage} of {options.appliance} has no log: it has not run, or does not "
            "write one",
            todo=f"`phantom-image logs {options.appliance}` lists those that there are",
        )
    _, newest = max(logs, key=lambda found: found[1].stat().st_mtime_ns)
    for line in _lines(newest, follow=options.follow):
        print_line(line)
        if options.follow:
            sys.stdout.flush()


def _logs_of(options: Namespace, workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """Title and log of each stage of the appliance that has one, or of those that are asked for."""
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build, keep=False)
    stages = plan.stages if options.stage is None else stages_called(plan, options.stage)
    for stage in stages:
        log = workspace.store.log(stage.name, stage.key)
        if log.is_file():
            yield stage.title, log


def _list(logs: list[tuple[str, Path]], *, as_json: bool) -> None:
    found = sorted(
        ((log.stat(), title, log) for title, log in logs),
        key=lambda each: each[0].st_mtime_ns,
        reverse=True,
    )
    if as_json:
        print_json(
            [
                {"stage": title, "log": str(log), "bytes": status.st_size, "time": _time(status)}
                for status, title, log in found
            ]
        )
    elif found:
        rows = [
            (title, _time(status), format_size(status.st_size), shown(log))
            for status, title, log in found
        ]
        print_table(rows, ("stage", "last written", "size", "log"))
    else:
        print_line("there are no logs")


def _time(status: os.stat_result) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))


def _lines(log: Path, *, follow: bool) -> Iterator[str]:
    """The log's lines; with `follow`, those of later runs of the stage, too."""
    try:
        file = log.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"the log cannot be read: {error.strerror}",
            where=shown(log),
            todo="ask who built this, or run the build again",
        ) from error
    with file:
        while True:
            line = file.readline()
            if line:
                yield line.rstrip("\n")
            elif not follow:
                return
            elif not log.is_file() or log.stat().st_ino == os.fstat(file.fileno()).st_ino:
                time.sleep(_PAUSE)
            else:  # the stage runs again
                break
    yield from _lines(log, follow=follow)
