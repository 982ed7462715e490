"""`phantom-image clean`: what crashes left at sites."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.commands import options as shared
from pipeline.commands.output import format_place, print_json, print_line
from pipeline.errors import PhantomError, located
from pipeline.model import Site
from pipeline.workspace import Workspace

_HOURS = 24.0  # a later command continues a killed upload within this time

EXAMPLES = ("phantom-image clean --site amazon --remove",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    add = parser.add_argument
    age = f"keep younger ones: a command may still use them ({_HOURS:g})"
    add("--site", action="append", metavar="SITE", required=True, help="this site; commas or again")
    add("--remove", action="store_true", help="remove the leftovers")
    add("--older-than", type=shared.hours, default=_HOURS, metavar="HOURS", help=age)


def run(options: Namespace) -> None:
    """Prints what crashes left, and removes it if asked to. Raises the first error of a removal."""
    sites, workspace = shared.load_sites(options), shared.open_workspace(options)
    errors: list[PhantomError] = []
    leftovers = list(_clean(sites, workspace, options, errors))
    if not options.json:
        _print(leftovers, options)
    elif not errors:
        print_json(leftovers)
    if errors:
        raise errors[0]


def _clean(
    sites: Sequence[Site], workspace: Workspace, options: Namespace, errors: list[PhantomError]
) -> Iterator[dict[str, Any]]:
    """The leftovers at these sites, and whether each was removed. Younger ones than the options say
    may belong to a command that runs, and stay. Adds the errors of removals to `errors`."""
    for site in sites:
        with open_site(make_cloud(site), workspace) as cloud:
            for leftover in cloud.find_leftovers():
                age = datetime.now(UTC) - datetime.fromisoformat(leftover.since)
                removed = False
                if options.remove and age >= timedelta(hours=options.older_than):
                    try:
                        with located(f"site {leftover.site}"):
                            cloud.remove_leftover(leftover)
                        removed = True
                    except PhantomError as error:
                        errors.append(error)
                yield {**vars(leftover), "removed": removed}


def _print(leftovers: Sequence[Mapping[str, Any]], options: Namespace) -> None:
    for left in leftovers:
        action, place = "removed" if left["removed"] else "left", format_place(left)
        origin = f"since {left['since']}: {left['reason']}"
        print_line(f"{action:8} {place}  {left['kind']}  {left['id']}  {origin}")
    kept = sum(not left["removed"] for left in leftovers)
    if not leftovers:
        print_line("nothing was left behind")
    elif kept and not options.remove:
        print_line(f"{kept} found; --remove removes what is older than {options.older_than:g} h")
