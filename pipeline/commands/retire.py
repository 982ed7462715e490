"""`phantom-image retire`: removes a build's images from its sites."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.build.manifest import publications_of
from pipeline.build.retire import retire
from pipeline.commands import options as shared
from pipeline.commands.output import format_place, print_json, print_line
from pipeline.errors import UsageError
from pipeline.model import Publication

EXAMPLES = ("phantom-image retire web --of 0123456789ab --site hotel",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "sites", "of", "json")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: Namespace) -> None:
    """Says what would be removed, asks, retires a build, and prints what was removed. Raises
    UsageError where nobody can be asked."""
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    workspace = shared.with_signing(shared.open_workspace(options), options)
    content = shared.read_manifest(options, appliance.name, workspace)
    wanted = [each for each in publications_of(content) if each.site in {s.name for s in sites}]
    can_ask = sys.stdin.isatty() and not options.json
    if wanted and not options.yes and not _may_remove(content, wanted, can_ask=can_ask):
        print_line("nothing was removed")
        return
    retired = [vars(each) for each in retire(content, sites, workspace, _tell_shared)]
    if options.json:
        print_json(retired)
        return
    for publication in retired:
        print_line(f"retired {publication['image_id']} at {format_place(publication)}")
    if not retired:
        print_line("nothing to retire: this build is published at none of these sites")


def _tell_shared(publication: Publication, other: str) -> None:
    where = f"{publication.image_id} at {publication.site}"
    print_line(f"{where} stays: {other} has it too", file=sys.stderr)


def _may_remove(
    content: Mapping[str, Any], wanted: Sequence[Publication], *, can_ask: bool
) -> bool:
    """Shows what would be removed and asks the person at the terminal. Raises UsageError where
    nobody is there."""
    about = content["appliance"]
    lines = [f"{each.image_id} at {format_place(vars(each))}: {each.location}" for each in wanted]
    if not can_ask:
        raise UsageError(
            f"this removes the images of {about['name']} {about['version']}, build "
            f"{about['build']}, for good, and nobody is here to be asked",
            detail="\n".join(lines),
            todo="give --yes as well",
        )
    print_line(
        f"{about['name']} {about['version']}, build {about['build']}; this removes for good:"
    )
    for line in lines:
        print_line(f"  {line}")
    try:
        answer = input("remove? [y/N] ")
    except EOFError:
        print_line()
        answer = ""
    return answer.strip().lower() in ("y", "yes")
