"""`phantom-image nightly --install` and `--show`: what runs the nightly every night."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pipeline.commands import options as shared
from pipeline.commands.output import print_line, print_lines
from pipeline.definitions.nightly import load_nightly
from pipeline.definitions.tracker import load_tracker
from pipeline.errors import UsageError
from pipeline.nightly.install import TIME, USER, Nightly, describe, install
from pipeline.nightly.order import STAGE_SECONDS, STORE_BYTES
from pipeline.workspace import STORE


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments that install a nightly with what else the command line says."""
    group = parser.add_argument_group("a server that does so every night")
    text = "have systemd, or else cron, run it every night with these options; as root"
    group.add_argument("--install", action="store_true", help=text)
    group.add_argument("--show", action="store_true", help="print what --install would write")
    group.add_argument("--user", help=f"as whom it runs ({USER}, who is made if need be)")
    group.add_argument("--time", metavar="HH:MM", help=f"when it runs ({TIME})")


def run_install(options: Namespace) -> bool:
    """Does what the options say of an installation; False where they say nothing. Raises
    InstallError, UsageError."""
    if not (options.install or options.show):
        for name in ("user", "time"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name} has no effect without --install or --show",
                    todo="add one of them, or leave it out",
                )
        return False
    for name in ("force", "since", "dry_run", "json"):
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is nothing for every night", todo="leave it out"
            )
    nightly = _make_nightly(options)
    if options.show:
        for line in describe(nightly):
            print_line(line)
    else:
        print_lines(install(nightly))
    return True


def _make_nightly(options: Namespace) -> Nightly:
    workspace = shared.open_workspace(options)
    images, sites = _absolute(options.images), _absolute(options.sites)
    places = [*("--images", images), *("--build", workspace.build)]
    places += ("--sites", sites) if sites.exists() else ()
    store = shared.store_folder(options)
    catalog = load_nightly(options.sites).catalog
    tracker = Path(load_tracker(options.sites) or os.devnull)
    return Nightly(
        command=(
            str(Path(sys.executable).with_name("phantom-image")),
            *map(str, places),
            "nightly",
            *_to_words(options),
        ),
        project=Path.cwd(),
        build=workspace.build,
        store=None if store == workspace.build / STORE else store,
        catalog=None if catalog is None else catalog.folder,
        readable=tuple(
            path for path in (images, sites, tracker) if path.is_file() or path.is_dir()
        ),
        user=options.user or USER,
        time=options.time or TIME,
    )


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # a link to the newest checkout stays one


def _to_words(options: Namespace) -> list[str]:
    """The options of the nightly itself, as words."""
    words = []
    for name in ("only", "cloud", "site"):
        for value in getattr(options, name) or ():
            words += [f"--{name}", value]
    words += ["--all-sites"] if options.all_sites else []
    words += ["--no-publish"] if options.no_publish else []
    words += ["--jobs", str(options.jobs)] if options.jobs else []
    if options.stage_limit != STAGE_SECONDS:
        words += ["--stage-limit", f"{options.stage_limit / 60:g}"]
    if options.store_size != STORE_BYTES:
        words += ["--store-size", "all" if options.store_size is None else f"{options.store_size}B"]
    return [*words, *(["--verbose"] if options.verbose else []), *options.appliance]
