"""`phantom-image logs`: lists the logs of stages, or prints one."""

from __future__ import annotations

import os
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.build import manifest
from pipeline.build.partial import stages_called
from pipeline.build.plan import make_plan
from pipeline.build.run import read_stages
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.definitions.messages import choose, suggest
from pipeline.definitions.yaml import shown
from pipeline.errors import UsageError
from pipeline.model import ContentKey, format_size
from pipeline.workspace import LATEST, Workspace

EXAMPLES = (
    "phantom-image logs",
    "phantom-image logs web",
    "phantom-image logs web root --follow",
    "phantom-image logs web/latest boot",
)

_DIGITS = "[0-9a-f]{12}"
_BUILD = re.compile(rf"([^/]+)/({_DIGITS}|{LATEST})|{_DIGITS}")

_PAUSE = 0.2  # seconds between two looks at a log that grows


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    text = "an appliance, APPLIANCE/BUILD, or a build's twelve digits (all logs of the store)"
    add("appliance", nargs="?", metavar="BUILD", help=text)
    add("stage", nargs="?", help="print the log of this stage's last run")
    add("-f", "--follow", action="store_true", help="print what is added, until control-c")
    shared.add(parser, "sites", "json")


def run(options: Namespace) -> None:
    """Lists logs, the newest first, or prints one.

    An appliance's logs are those of the stages that it has as it is defined now; a build's are
    those of the stages that made it. A stage that ran again has the log of its last run. Raises
    UsageError for an unknown build or stage and for a stage without a log, and what planning
    raises.
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
    """Title and log of each stage that has one, or of the stages that are asked for."""
    build = _find_build(options, workspace)
    for title, key in _stages(options, workspace) if build is None else _stages_of(options, *build):
        name = title.partition(" ")[0]
        log = workspace.store.log(name, key)
        if log.is_file():
            yield title, log


def _stages(options: Namespace, workspace: Workspace) -> Iterator[tuple[str, ContentKey]]:
    """Title and key of the stages of an appliance as it is defined now."""
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    plan = make_plan(appliance, sites, workspace.store, builds=workspace.build, keep=False)
    stages = plan.stages if options.stage is None else stages_called(plan, options.stage)
    yield from ((stage.title, stage.key) for stage in stages)


def _stages_of(
    options: Namespace, build: str, stages: Mapping[str, Any]
) -> Iterator[tuple[str, ContentKey]]:
    """Title and key of the stages that made a build."""
    word = options.stage
    found = [title for title in stages if word in (None, title, title.partition(" ")[0])]
    if not found:
        names = list(dict.fromkeys(title.partition(" ")[0] for title in stages))
        raise UsageError(
            f"{build} has no stage {word!r}{suggest(word, names)}",
            todo=choose(names, "leave the stage out"),
        )
    yield from ((title, ContentKey(stages[title]["key"])) for title in found)


def _find_build(options: Namespace, workspace: Workspace) -> tuple[str, Mapping[str, Any]] | None:
    """Name and stages of the build that is asked for; None where the word names an appliance.
    Raises UsageError for an unknown build, and for one of which no stages are known."""
    asked = options.appliance
    words = _BUILD.fullmatch(asked)
    if words is None or (options.images / asked).is_dir():
        return None
    if words[1] is None:
        found = sorted(workspace.build.glob(f"*/{asked}/{manifest.FILE}"))
    else:
        path = manifest.find_manifest(workspace.folder(words[1]), words[2])
        found = [path] if records.FILE_NAME.fullmatch(words[1]) and path.is_file() else []
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in found]
    todo = "`phantom-image list` lists the builds"
    if not names:
        raise UsageError(f"there is no build {asked!r}", todo=todo)
    if len(names) > 1:
        raise UsageError(f"several appliances have a build {asked}", todo=choose(names, todo))
    stages = read_stages(workspace, *names[0].split("/"))
    if not stages:
        appliance = found[0].parent.parent.name
        raise UsageError(
            f"nothing is known of the stages that made {names[0]}",
            todo=f"build it again; `phantom-image logs {appliance}` lists the logs of "
            f"{appliance} as it is defined now",
        )
    return names[0], stages


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
    begun = ""  # a line that has not ended yet
    with file:
        while True:
            begun += file.readline()
            if begun.endswith("\n") or (begun and not follow):
                yield begun.rstrip("\n")
                begun = ""
            elif not follow:
                return
            elif not log.is_file() or log.stat().st_ino == os.fstat(file.fileno()).st_ino:
                time.sleep(_PAUSE)
            else:  # the stage runs again
                break
    if begun:
        yield begun
    yield from _lines(log, follow=follow)
