"""Where commands find what is known of vulnerabilities: a file, or a URL that is fetched."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pipeline.definitions.tracker import load_tracker
from pipeline.errors import UsageError
from pipeline.sources.newest import fetch_newest
from pipeline.workspace import Workspace

_URL = re.compile(r"(?i)https?://")


def add_argument(parser: ArgumentParser) -> None:
    """Adds `--tracker`."""
    text = "an export of Debian's security tracker or of OSV, a file or a URL; else "
    text += "`vulnerabilities:` of sites.yaml"
    parser.add_argument("--tracker", metavar="FILE", help=text)


def find_location(options: Namespace) -> str | None:
    """The file or the URL that the command line or sites.yaml names. Raises UsageError for a file
    that is not there."""
    location: str | None = getattr(options, "tracker", None) or load_tracker(options.sites)
    if location is not None and not _URL.match(location) and not Path(location).is_file():
        raise UsageError(
            f"there is no file {location!r}",
            todo="fetch the export of Debian's security tracker, or leave it out",
        )
    return location


def find_file(location: str, workspace: Workspace) -> Path:
    """The file at a location. Raises DownloadError, StoreError."""
    if not _URL.match(location):
        return Path(location)
    progress = workspace.progress("vulnerabilities")
    file = fetch_newest(location, workspace.store, progress)
    progress.finish("as the server has them")
    return file
