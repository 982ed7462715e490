"""`phantom-image catalog`: static pages and feeds of all appliances, from their manifests."""

from __future__ import annotations

import re
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.catalog.make import Made, make_catalog
from pipeline.catalog.pages import Site
from pipeline.catalog.read import find_named, find_sources
from pipeline.catalog.write import Target
from pipeline.commands import options as shared
from pipeline.commands import tracker
from pipeline.commands.output import print_json, print_line
from pipeline.definitions.yaml import shown
from pipeline.errors import UsageError
from pipeline.records import digest
from pipeline.workspace import CATALOG, Workspace

EXAMPLES = (
    "phantom-image catalog --output /var/www/appliances --url https://images.example.org",
    "phantom-image catalog --serve --port 8000",
    "phantom-image catalog build/web/latest --output web-alone",
)
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[\w.~%/-]*)?", re.ASCII)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    text = "manifests, or builds' folders (all builds of this host)"
    add("manifests", nargs="*", type=Path, metavar="MANIFEST", help=text)
    add("--output", type=Path, metavar="FOLDER", help="the catalog's folder (build/catalog)")
    tracker.add_argument(parser)
    add("--title", type=_title, default="Appliances", metavar="TEXT", help="(Appliances)")
    text = "where the catalog will be on the web, for links in feeds"
    add("--url", type=_url, metavar="URL", help=text)
    text = "leave out manifests that cannot be used; the catalog stays as it is otherwise"
    add("--skip-broken", action="store_true", help=text)
    text = "show the catalog at an address of this host, until control-c"
    add("--serve", action="store_true", help=text)
    add("--port", type=shared.port, default=0, help="the address's port (a free one)")
    shared.add(parser, "json")


def _title(text: str) -> str:
    if not text.strip() or len(text) > 200 or not text.isprintable():
        raise ArgumentTypeError("it must be one line of at most 200 characters")
    return text


def _url(text: str) -> str:
    if not _URL.fullmatch(text):
        raise ArgumentTypeError(f"{text[:80]!r} is no address such as https://images.example.org")
    return text.rstrip("/")


def run(options: Namespace) -> None:
    """Writes the catalog, prints what was written, and shows it if asked to."""
    if options.json and options.serve:
        raise UsageError("--serve is given beside --json", todo="leave one out")
    made = _make(options)
    if options.json:
        print_json(made)
        return
    print_line(
        f"{_count(made['appliances'], 'appliance')}, {_count(made['builds'], 'build')}: "
        f"{_count(made['written'], 'file')} written, {made['removed']:,} removed"
    )
    print_line(shown(Path(made["output"]) / "index.html"))
    if options.serve:
        _serve(Path(made["output"]), options.port)


def _make(options: Namespace) -> dict[str, Any]:
    """Makes the catalog, and tells what was done."""
    shared.load_site_order(options)  # whose file is checked with it
    location = tracker.find_location(options)
    with shared.open_shown_workspace(options, uses_store=False) as workspace:
        folder = Path(options.output or workspace.build / CATALOG).absolute()
        site = Site(title=options.title, url=options.url)
        made = write_catalog(
            workspace,
            folder,
            site,
            named=options.manifests,
            known=None if location is None else tracker.find_file(location, workspace),
            skip_broken=options.skip_broken,
        )
    for error in made.skipped:
        print_line(f"left out: {error.where}: {error.what}", file=sys.stderr)
    return {
        "output": str(folder),
        "appliances": made.appliances,
        "builds": made.builds,
        "written": made.written,
        "removed": made.removed,
        "skipped": [str(error.where) for error in made.skipped],
    }


def write_catalog(
    workspace: Workspace,
    folder: Path,
    site: Site,
    *,
    named: Sequence[Path] = (),
    known: Path | None = None,
    skip_broken: bool = False,
) -> Made:
    """Makes a catalog of the manifests that are named, or else of all builds of this host, while no
    other command makes the same one. `known` is the file that tells of vulnerabilities. Raises
    CatalogManifestsError, CatalogFolderError."""
    target = Target(folder)
    waiting = "another command makes this catalog; waiting for it"
    progress = workspace.progress("catalog")
    key = digest(str(target.folder))
    with workspace.store.lock(f"catalog-{key}", lambda: progress.step(waiting)):
        sources = find_named(named) if named else find_sources(workspace.build)
        made = make_catalog(
            sources, target, site, tracker=known, skip_broken=skip_broken, step=progress.step
        )
    progress.finish("done")
    return made


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _serve(folder: Path, port: int) -> None:
    """Serves the catalog until the command is interrupted. Raises UsageError for a port that is
    taken."""
    from pipeline.catalog.serve import serving

    try:
        with serving(folder, port) as url:
            print_line(url)
            sys.stdout.flush()
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    except OSError as error:
        raise UsageError(
            f"port {port} cannot be used: {error.strerror}",
            todo="name another one with --port, or leave it out for a free one",
        ) from error
