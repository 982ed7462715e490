"""`phantom-image reproduce`: makes a build once more from what its manifest names, and compares."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

from pipeline.build.reproduce import Reproduction, find_sites, reproduce
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_lines, print_table
from pipeline.errors import NotReproducedError

EXAMPLES = (
    "phantom-image reproduce hello-phantom",
    "phantom-image reproduce build/web/0123456789ab --json",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "manifest", "of", "verbose", "json")


def run(options: Namespace) -> None:
    """Builds, without booting, in a store of its own that is removed afterwards. Raises
    NotReproducedError where a byte differs."""
    content = shared.read_named_manifest(options)
    options.appliance = content["appliance"]["name"]
    appliance, sites = shared.load_appliance(options), shared.load_known_sites(options)
    with shared.open_shown_workspace(options) as workspace:
        made = reproduce(content, appliance, find_sites(content, sites), workspace)
    name = f"{options.appliance}/{content['appliance']['build']}"
    if options.json:
        print_json({"build": name, **_describe(made)})
    else:
        _print(name, made)
    if made.same:
        return
    raise NotReproducedError(
        f"{name} was made once more, and {_count(made)} of {len(made.digests)} digests differ",
        todo=_todo(content, made),
    )


def _todo(content: dict[str, Any], made: Reproduction) -> str | None:
    if not content["inputs"]["repeatable"]:
        return "expect no more of it: its manifest says that this build is not repeatable"
    if made.reasons:
        return "use the program and the tools that made it: see above what differs"
    return None if made.difference is None else f"see what made {made.difference.path}"


def _count(made: Reproduction) -> int:
    return sum(not digest.same for digest in made.digests)


def _describe(made: Reproduction) -> dict[str, Any]:
    first = made.difference
    return {
        "reproduced": made.same,
        "digests": [
            {
                "what": each.what,
                "site": each.site,
                "expected": each.expected,
                "found": each.found,
                "same": each.same,
            }
            for each in made.digests
        ],
        "difference": None if first is None else {"path": first.path, "lines": [*first.how]},
        "reasons": [*made.reasons],
    }


def _print(name: str, made: Reproduction) -> None:
    print_line(name)
    print_table([*_rows(made)], indent=2)
    if made.reasons:
        print_line("not as it was:")
        print_lines(f"  {reason}" for reason in made.reasons)
    if made.difference is not None:
        print_line(f"the first file that differs: {made.difference.path}")
        print_lines(f"  | {line}" for line in made.difference.how)


def _rows(made: Reproduction) -> Iterator[tuple[str, str, str]]:
    for each in made.digests:
        what = each.what if each.site is None else f"{each.what} of {each.site}"
        if each.same:
            yield what, "the same", f"sha256 {each.expected}"
        else:
            yield what, "differs", f"sha256 {each.expected} -> {each.found}"
