"""`phantom-image list`: the builds on this host, or the images that sites have."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.build import manifest
from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line, print_table
from pipeline.errors import ManifestError
from pipeline.model import format_size
from pipeline.workspace import Workspace

EXAMPLES = ("phantom-image list", "phantom-image list --site hotel --json")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "json")
    parser.add_argument("--site", action="append", metavar="SITE", help="list this site's images")


def run(options: Namespace) -> None:
    """Prints a table of builds, the newest first, or of the images at the sites that the options
    name."""
    workspace = shared.open_workspace(options)
    if options.site:
        rows, cells = list(_images(options, workspace)), _image_cells
    else:
        rows, cells = sorted(_builds(workspace), key=_age, reverse=True), _build_cells
    if options.json:
        print_json(rows)
    elif rows:
        print_table([list(cells(row).values()) for row in rows], list(cells(rows[0])))
    else:
        print_line("nothing to list")


def _images(options: Namespace, workspace: Workspace) -> Iterator[dict[str, Any]]:
    for site in shared.load_sites(options):
        with open_site(make_cloud(site), workspace) as cloud:
            for image in cloud.list():
                yield {"site": image.site, "image_id": image.image_id, "location": image.location}


def _builds(workspace: Workspace) -> Iterator[dict[str, Any]]:
    for path in sorted(workspace.build.glob("*/*/manifest.json")):
        folder, build = path.parent.parent, path.parent.name
        if build == "latest":
            continue
        try:
            content = manifest.load_manifest(path)
        except ManifestError as error:
            print_line(f"left out: {error.where}: {error.what}", file=sys.stderr)
            continue
        except OSError:  # gone, or not for us
            continue
        latest = folder / "latest"
        files = {image["file"]: image["bytes"] for image in content["images"]}
        yield {
            "appliance": content["appliance"]["name"],
            "version": content["appliance"]["version"],
            "build": content["appliance"]["build"],
            "date": _date(path),
            "bytes": sum(files.values()),
            "latest": latest.is_symlink() and latest.readlink() == Path(build),
            "sites": sorted({each["site"] for each in content["publications"]}),
        }


def _date(manifest: Path) -> str:
    """When a manifest was last written: UTC, ISO 8601, seconds."""
    written = datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
    return f"{written:%Y-%m-%dT%H:%M:%SZ}"


def _age(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["date"], row["appliance"], row["build"]


def _image_cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}


def _build_cells(row: Mapping[str, Any]) -> dict[str, str]:
    local = datetime.fromisoformat(row["date"]).astimezone()
    return {
        "appliance": row["appliance"],
        "version": row["version"],
        "build": row["build"],
        "date": f"{local:%Y-%m-%d %H:%M}",
        "size": format_size(row["bytes"]),
        "latest": "*" if row["latest"] else "",
        "sites": ", ".join(row["sites"]),
    }
