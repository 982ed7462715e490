"""`phantom-image prune`: removes old builds from this host, as definitions' `keep` says."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from pipeline.build.prune import Line, carry_out, count_bytes, find_starts, plan_prune
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.definitions.appliance import list_appliances, load_appliance
from pipeline.errors import PhantomError, UsageError
from pipeline.model import Appliance, Keep, format_size

EXAMPLES = ("phantom-image prune", "phantom-image prune web --yes")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    parser.add_argument(
        "appliance", nargs="*", metavar="APPLIANCE", help="appliances (all that have builds)"
    )
    parser.add_argument("--yes", action="store_true", help="remove; without it, only tell")


def run(options: Namespace) -> None:
    """Tells of each build whether it stays and why, and with `--yes` removes those that do not.
    Raises UsageError for an appliance without builds."""
    workspace = shared.open_workspace(options)
    for name in options.appliance:
        if not list(workspace.build.glob(f"{name}/*/manifest.json")):
            raise UsageError(
                f"there is no build of {name!r}", todo="`phantom-image list` lists the builds"
            )
    definitions = _load_definitions(options)
    starts = find_starts(options.images)

    def plan() -> list[Line]:
        return plan_prune(
            workspace, lambda name: _rule(definitions, name), starts, options.appliance
        )

    if options.yes:
        lines, freed = carry_out(workspace, plan)
    else:
        lines = plan()
        freed = count_bytes(lines)
    if options.json:
        print_json({"removed": options.yes, "freed_bytes": freed, "builds": [*map(_row, lines)]})
    else:
        _print(lines, freed, removed=options.yes)


def _load_definitions(options: Namespace) -> dict[str, Appliance]:
    """The definitions that can be read. One that cannot lets all builds of its appliance stay."""
    loaded = {}
    for name in list_appliances(options.images):
        try:
            loaded[name] = load_appliance(name, options.images)
        except PhantomError as error:
            told = f"warning: {error.where or name}: {error.what}; all builds of {name} stay"
            print_line(told, file=sys.stderr)
    return loaded


def _rule(definitions: Mapping[str, Appliance], name: str) -> Keep | None:
    definition = definitions.get(name)
    return None if definition is None else definition.keep


def _row(line: Line) -> dict[str, Any]:
    return {
        "appliance": line.appliance,
        "build": line.build,
        "keep": line.keep,
        "reason": line.reason,
        "artifacts": [artifact.folder.name for artifact in line.artifacts],
    }


def _print(lines: list[Line], freed: int, *, removed: bool) -> None:
    word = "removed" if removed else "would go"
    if lines:
        rows = [
            (line.appliance, line.build, "stays" if line.keep else word, line.reason)
            for line in lines
        ]
        print_table(rows, ("appliance", "build", "what", "why"))
    count = sum(not line.keep for line in lines)
    if not count:
        print_line("nothing to remove" if lines else "there are no builds")
    elif removed:
        print_line(f"removed {count} builds, freed {format_size(freed)}")
    else:
        print_line(f"{count} builds would go, and free {format_size(freed)}; --yes removes them")
