"""`phantom-image launch-config`: a build's launch configurations at a Phantom."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.build.launch import params_of
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.phantom.client import Client, make_client
from pipeline.phantom.configurations import (
    CREATE,
    KEEP,
    REPLACE,
    Sending,
    Step,
    check_published,
    check_unused,
    plan_sending,
    send,
)

EXAMPLES = (
    "phantom-image launch-config web --phantom nimbus --dry-run",
    "phantom-image launch-config build/web/latest --phantom local --site nimbus-sandbox",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "manifest", "of", "phantom")
    add = parser.add_argument
    add("--site", action="append", metavar="SITE", help="for this site alone; commas or again")
    add("--dry-run", action="store_true", help="tell what would be done, and send nothing")
    shared.add(parser, "json")


def run(options: Namespace) -> None:
    """Says what will be done, and does it. Raises NotPublishedError, InUseError, and what clients
    of Phantom do."""
    content = shared.read_named_manifest(options)
    section = content["phantom"]
    sites = shared.choose_sites(options, [*params_of(section)])
    service = shared.load_phantom(options)
    check_published(content, sites, sandbox=service.sandbox)
    client = make_client(service, os.environ)
    sending = plan_sending(client, section, sites)
    if not options.json:
        _print(content, client, sending)
        sys.stdout.flush()
    check_unused(client, sending)
    if not options.dry_run:
        for step in send(client, sending):
            if not options.json:
                print_line(f"{_DONE[step.action]} {sending.wanted.name}@{step.site}")
                sys.stdout.flush()
    if options.json:
        print_json(_describe(content, client, sending, dry_run=options.dry_run))
    elif not sending.todo:
        print_line("nothing to do")
    elif options.dry_run:
        print_line("nothing was sent (--dry-run)")


_DONE = {CREATE: "created", REPLACE: "replaced"}


def _print(content: Mapping[str, Any], client: Client, sending: Sending) -> None:
    about, service, name = content["appliance"], client.service, sending.wanted.name
    print_line(
        f"launch configuration {name} at Phantom {service.name} ({service.url}): {about['name']} "
        f"{about['version']}, build {about['build']}"
    )
    print_table([_row(name, step) for step in sending.steps], indent=2)
    for line in _remarks(sending):
        print_line(line)


def _row(name: str, step: Step) -> tuple[str, ...]:
    params = step.params
    what = ", ".join(step.changes) or f"{params.image_id}, {params.instance_type}"
    return step.action, f"{name}@{step.site}", what


def _remarks(sending: Sending) -> Iterator[str]:
    """What changes beyond the sites that are sent."""
    name = sending.wanted.name
    others = [step.site for step in sending.steps if step.action == KEEP]
    if sending.changes_user_data and sending.todo:
        more = f", also at {', '.join(others)}, which is not sent" if others else ""
        yield (
            f"user-data belongs to {name} and not to one of its sites: it changes for the machines "
            f"that start from now on at all sites{more}"
        )
    if sending.domains and sending.todo:
        yield (
            f"in use by {', '.join(sending.domains)}: machines that run stay as they are, those "
            "that start from now on get what is sent"
        )


def _describe(
    content: Mapping[str, Any], client: Client, sending: Sending, *, dry_run: bool
) -> dict[str, Any]:
    wanted = sending.wanted
    return {
        "phantom": client.service.name,
        "url": client.service.url,
        "appliance": content["appliance"]["name"],
        "build": content["appliance"]["build"],
        "launch_configuration": wanted.name,
        "dry_run": dry_run,
        "user_data_changes": sending.changes_user_data and bool(sending.todo),
        "domains": [*sending.domains],
        "sites": [
            {
                "site": step.site,
                "name": f"{wanted.name}@{step.site}",
                "action": step.action,
                "image_id": step.params.image_id,
                "instance_type": step.params.instance_type,
                "changes": [*step.changes],
            }
            for step in sending.steps
        ],
    }
