"""`phantom-image image`: builds, boots and publishes an appliance."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.build.launch import find_endless_in
from pipeline.build.run import Produced, produce
from pipeline.commands import options as shared
from pipeline.commands.output import cell, format_place, print_json, print_line, print_table
from pipeline.definitions.yaml import shown
from pipeline.model import format_size

EXAMPLES = (
    "phantom-image image web --cloud nimbus,ec2",
    "phantom-image image web --site hotel --json",
    "phantom-image image --all --all-sites",
)

_SHOWN = 6  # files that all machines share


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliances", "sites", "verbose", "json")


def run(options: Namespace) -> int | None:
    """Builds, boots and publishes."""
    return shared.run_for_each(options, lambda own: produce_image(own, publish=True))


def produce_image(options: Namespace, *, publish: bool, failed: Path | None = None) -> None:
    """Builds and boots, publishes if asked to, and prints a summary. The folder `failed` gets what
    failed stages leave."""
    load_sites = shared.load_sites_to_publish_to if publish else shared.load_sites
    appliance, sites = shared.load_appliance(options), load_sites(options)
    order = shared.load_site_order(options)
    started = time.monotonic()
    with shared.open_shown_workspace(options, signs=True, failed=failed) as workspace:
        produced = produce(appliance, sites, workspace, publish=publish, order=order)
    print_produced(options, produced, time.monotonic() - started)


def print_produced(options: Namespace, produced: Produced, seconds: float) -> None:
    """Prints a summary of what was made and published in so many seconds."""
    warning = find_endless_in(produced.manifest["phantom"])
    if warning is not None:
        print_line(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print_json(_summary(produced))
    else:
        _print_summary(produced, seconds)


def _summary(produced: Produced) -> dict[str, Any]:
    appliance = produced.manifest["appliance"]
    return {
        "appliance": appliance["name"],
        "build": appliance["build"],
        "manifest": str(produced.manifest_path),
        "stages": [
            {"stage": title, "reused": reused, "seconds": round(seconds, 3)}
            for title, reused, seconds in produced.stages
        ],
        "images": produced.manifest["images"],
        "publications": produced.manifest["publications"],
        "identities": produced.manifest["root_filesystem"].get("identities"),
        "checks": produced.manifest["checks"],
    }


def _print_summary(produced: Produced, seconds: float) -> None:
    appliance = produced.manifest["appliance"]
    print_line(f"{appliance['name']} {appliance['version']}, build {appliance['build']}")
    rows = [
        (title, "reused" if reused else f"{took:.1f} s") for title, reused, took in produced.stages
    ]
    if rows:
        print_table(rows, indent=2)
        print_line()
    print_table(list(_result_rows(produced)), indent=2)
    print_line(f"done in {seconds:.1f} s")


def _result_rows(produced: Produced) -> Iterator[tuple[str, str]]:
    """What was made, and where it is."""
    for image in produced.manifest["images"]:
        lines = [shown(produced.manifest_path.parent / image["file"])]
        lines.append(f"{format_size(image['bytes'])}, sha256 {image['sha256']}")
        if image["compression"] is not None:
            unpacked = format_size(image["disk_bytes"])
            lines.append(f"unpacked {unpacked}, sha256 {image['disk_sha256']}")
        yield "image", cell(lines)
    for publication in produced.manifest["publications"]:
        sandbox = " (a sandbox: a local server that has ended)" if publication["sandbox"] else ""
        place = format_place(publication)
        yield "published", f"at {place} as {publication['image_id']}{sandbox}"
    yield from _identity_rows(produced.manifest["root_filesystem"].get("identities"))
    yield from gate_rows(produced.manifest["checks"])
    yield "manifest", shown(produced.manifest_path)


def gate_rows(told: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What the image has that others should not boot, and what it has so on purpose."""
    for each in () if told is None else told["findings"]:
        line = f"{each['rule']}: {each['path']}: {each['detail']}"
        yield each["severity"], cell([line, f"do: {each['todo']}"])
    if told is not None and told["waived"]:
        lines = (f"{each['rule']}: {each['path']}: {each['reason']}" for each in told["waived"])
        yield "waived", cell(lines)


def _identity_rows(identities: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What each machine makes for itself, and what all of them share."""
    if identities is None:
        return
    files = [file for maker in identities["made_at_boot"] for file in maker["files"]]
    if files:
        yield "made at boot", cell(files)
    told = [f"{each['file']}: {each['what']}" for each in identities["shared"]]
    if len(told) > _SHOWN:
        told[_SHOWN:] = [f"and {len(told) - _SHOWN} more, which the manifest lists"]
    if told:
        yield "warning", cell(["all machines share what packages made:", *told])
