"""`phantom-image phantom-sandbox`: a local Phantom in the foreground."""

from __future__ import annotations

import sys
import threading
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.clouds import make_cloud
from pipeline.commands import options as shared
from pipeline.commands.output import print_line
from pipeline.errors import UsageError
from pipeline.machine import requirements
from pipeline.machine.accelerator import find_accelerator
from pipeline.phantom.guests import Guests, GuestSite
from pipeline.phantom.local import FOLDER
from pipeline.phantom.sandbox import run_phantom
from pipeline.stages.boot import BootCheck

EXAMPLES = (
    "phantom-image phantom-sandbox",
    "phantom-image phantom-sandbox --port 8445 --site nimbus-sandbox",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "sites")
    parser.add_argument(
        "--port",
        type=shared.port,
        default=0,
        help="the port of 127.0.0.1 to listen on (a free one)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where it keeps its state and machines (build/.phantom)"
    )


def run(options: Namespace) -> None:
    """Runs a Phantom until it is interrupted. Raises UsageError without a sandbox site, HostError
    where the host lacks what guests need, and what `run_phantom` does."""
    known = shared.load_sites(options)
    sites = [site for site in known if site.sandbox]
    if not sites:
        names = [site.name for site in known]
        raise UsageError(
            "a local Phantom starts machines at sandbox sites, and there is none among "
            f"{', '.join(names)}",
            todo="add one to sites.yaml (`sandbox: true`), or name one by --site nimbus-sandbox",
        )
    requirements.require((BootCheck.name, "boot from an overlay"))
    workspace = shared.open_workspace(options)
    folder = options.folder or workspace.build / FOLDER
    guest_sites = {
        site.name: GuestSite(cloud=make_cloud(site), folder=workspace.site_folder(site.name))
        for site in sites
    }
    store = workspace.store
    guests = Guests(folder, guest_sites, cache(lambda: find_accelerator(store.folder)))
    tell = _tell
    with run_phantom(folder, guest_sites, guests, port=options.port, tell=tell) as phantom:
        print_line(f"Phantom: {phantom.url}")
        print_line(f"credentials: {phantom.credentials}")
        print_line(f"sites: {', '.join(guest_sites)}")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    print_line("Phantom has ended, and its machines with it; domains stay", file=sys.stderr)


def _tell(line: str) -> None:
    for each in line.split("\n"):
        print_line(each, file=sys.stderr)
