"""`phantom-image vulnerabilities`: what is known to be open in a build's packages."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from pipeline.attestations.vulnerabilities import (
    find_open,
    find_worse,
    list_components,
    read_tracker,
)
from pipeline.build.manifest import load_manifest
from pipeline.commands import options as shared
from pipeline.commands import tracker
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.definitions.tracker import SEVERITIES
from pipeline.errors import GateError, UsageError

EXAMPLES = (
    "phantom-image vulnerabilities web --tracker debian-tracker.json",
    "phantom-image vulnerabilities build/web/latest --fail-above medium --json",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    shared.add(parser, "manifest", "of")
    tracker.add_argument(parser)
    text = f"fail where one is worse than this: {', '.join(SEVERITIES)}"
    add("--fail-above", choices=SEVERITIES, metavar="SEVERITY", help=text)
    shared.add(parser, "json")


def run(options: Namespace) -> int | None:
    """Lists them, the worst first. Raises UsageError, GateError for one that is too bad; with
    --json, returns that one's exit status."""
    shared.load_site_order(options)  # whose file is checked with it
    location = tracker.find_location(options)
    if location is None:
        raise UsageError(
            "nothing says what is vulnerable",
            todo="name the export of Debian's security tracker by --tracker, or as "
            "`vulnerabilities:` in sites.yaml",
        )
    path = shared.find_named_manifest(options)
    with shared.reading(path) as real:
        listed = list_components(load_manifest(real), real.parent)
    with shared.open_shown_workspace(options, uses_store=False) as workspace:
        known = read_tracker(tracker.find_file(location, workspace))
    found = find_open(listed, known)
    bad = find_worse(found, options.fail_above)
    if options.json:
        print_json([asdict(each) for each in found])
        return GateError.exit_code if bad else None
    rows = [
        (each.severity, each.issue, f"{each.source} {each.version}", each.fixed or "not fixed yet")
        for each in found
    ]
    print_table(rows)
    if bad:
        raise GateError(
            f"{len(bad)} of {len(found)} open vulnerabilities are worse than {options.fail_above}",
            where=str(path),
            todo="build again where the archive has corrections, or leave the packages out",
        )
    print_line(f"{len(found)} open" if found else "none is known to be open")
    return None
