"""`phantom-image show`: a build's manifest."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.build.launch import UNLIMITED, params_of
from pipeline.build.manifest import FILE
from pipeline.commands import options as shared
from pipeline.commands.output import cell, format_place, print_json, print_line, print_table
from pipeline.definitions.yaml import shown
from pipeline.model import format_size

EXAMPLES = ("phantom-image show web", "phantom-image show web --of 0123456789ab --json")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "of", "json")


def run(options: Namespace) -> None:
    """Prints the manifest, or what people want to know of it."""
    workspace = shared.open_workspace(options)
    content = shared.read_manifest(options, options.appliance, workspace)
    if options.json:
        print_json(content, ascii_only=False)
        return
    folder = workspace.folder(options.appliance) / content["appliance"]["build"]
    print_manifest(content, folder / FILE)


def print_manifest(content: Mapping[str, Any], path: Path) -> None:
    """Prints what people want to know of the manifest at this path; images lie beside it."""
    appliance = content["appliance"]
    print_line(f"{appliance['name']} {appliance['version']}, build {appliance['build']}")
    print_line(f"  {appliance['summary']}")
    print_line()
    print_table(list(_rows(content, path)), indent=2)


def _rows(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """What the build has, and where it is."""
    yield "packages", str(len(content["inputs"]["packages"]))
    yield "root", f"sha256 {content['root_filesystem']['sha256']}"
    for image in content["images"]:
        checks = [
            f"booted by {check['machine']} in {check.get('boot_seconds', 0):.0f} s"
            for check in image["boot_checks"]
        ]
        if (cluster := image.get("cluster_check")) is not None:
            count, seconds = len(cluster["guests"]), cluster["seconds"]
            checks.append(f"a cluster of {count} passed in {seconds:.0f} s")
        file = path.parent / image["file"]
        gone = "" if file.is_file() else " (no longer there)"
        size = format_size(image["bytes"])
        lines = [f"{shown(file)}{gone}", ", ".join([size, *checks]), f"sha256 {image['sha256']}"]
        yield "image", cell(lines)
    for publication in content["publications"]:
        place = format_place(publication) + (" (sandbox)" if publication["sandbox"] else "")
        published = f"{publication['image_id']}, {publication['published_at']}"
        yield "published", f"at {place} as {published}"
    yield from _phantom_rows(content["phantom"])
    yield "manifest", shown(path)


def _phantom_rows(section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where Phantom starts machines, in its order."""
    params = params_of(section)
    unknown = " (sandbox, unknown to Phantom)" if section["sandbox"] else ""
    for site in sorted(params, key=lambda name: int(params[name]["rank"])):
        most, size = params[site]["max_vms"], params[site]["instance_type"]
        limit = "any number" if most == UNLIMITED else f"at most {most}"
        yield "phantom", f"rank {params[site]['rank']}: {site}, {limit} of {size}{unknown}"
