"""`phantom-image prune`: removes old builds, as definitions' `keep` says."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.build.prune import Line, carry_out, count_bytes, find_starts, plan_prune
from pipeline.build.retire import Retired, retire_lines
from pipeline.commands import options as shared
from pipeline.commands.output import format_place, print_error, print_json, print_line, print_table
from pipeline.definitions.appliance import list_appliances, load_appliance
from pipeline.definitions.phantoms import load_phantoms
from pipeline.errors import PhantomError, UsageError
from pipeline.model import Appliance, Keep, Site, format_size

EXAMPLES = ("phantom-image prune", "phantom-image prune web --yes")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    parser.add_argument(
        "appliance", nargs="*", metavar="APPLIANCE", help="appliances (all that have builds)"
    )
    parser.add_argument("--yes", action="store_true", help="remove; without it, only tell")


def run(options: Namespace) -> int | None:
    """Tells of each build whether it stays and why, and with `--yes` removes those that do not.
    Raises UsageError for an appliance without builds, and the first error of what could not be
    retired; with --json, returns that one's exit status."""
    workspace = shared.with_signing(shared.open_workspace(options), options)
    for name in options.appliance:
        if not list(workspace.build.glob(f"{name}/*/manifest.json")):
            raise UsageError(
                f"there is no build of {name!r}", todo="`phantom-image list` lists the builds"
            )
    definitions = _load_definitions(options)
    starts, sites = find_starts(options.images), shared.load_known_sites(options)

    def plan(sites: Sequence[Site]) -> list[Line]:
        names = {site.name for site in sites}
        return plan_prune(
            workspace, lambda name: _rule(definitions, name), starts, options.appliance, names
        )

    lines, retired = plan(sites), list[Retired]()
    if options.yes:
        phantoms = [*load_phantoms(options.sites).values()]
        retired = [*retire_lines(lines, sites, phantoms, os.environ, workspace)]
        # What a site still has keeps its build.
        lines, freed = carry_out(workspace, lambda: plan(()))
    else:
        freed = count_bytes(lines)
    if options.json:
        told = {"retired": [*map(_describe, retired)], "builds": [*map(_row, lines)]}
        print_json({"removed": options.yes, "freed_bytes": freed, **told})
    else:
        _print(lines, freed, removed=options.yes)
        _print_retired(retired)
    failed = next((each.error for each in retired if each.error is not None), None)
    if failed is None:
        return None
    if not options.json:
        raise failed
    print_error(failed)  # standard output has its one value already
    return failed.exit_code


def _describe(retired: Retired) -> dict[str, Any]:
    return {
        "appliance": retired.appliance,
        "build": retired.build,
        "site": retired.publication.site,
        "image_id": retired.publication.image_id,
        "error": None if retired.error is None else retired.error.what,
    }


def _print_retired(retired: Sequence[Retired]) -> None:
    for each in retired:
        what = f"{each.publication.image_id} at {format_place(vars(each.publication))}"
        if each.error is None:
            print_line(f"retired {what}")
        else:
            print_line(f"{what} stays: {each.error.what}", file=sys.stderr)


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
