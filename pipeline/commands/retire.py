"""`phantom-image retire`: removes a build's images from its sites."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.build.lifecycle import State, read_mark, write_mark
from pipeline.build.manifest import (
    FILE,
    publications_of,
    read_manifest,
    without,
    write_manifest,
)
from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.commands import options as shared
from pipeline.commands.output import format_place, print_json, print_line
from pipeline.errors import UsageError
from pipeline.model import Publication, Site
from pipeline.workspace import Workspace

EXAMPLES = ("phantom-image retire web --of 0123456789ab --site hotel",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "sites", "of", "json")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: Namespace) -> None:
    """Says what would be removed, asks, retires a build, and prints what was removed. Raises
    UsageError where nobody can be asked."""
    appliance, sites = shared.load_appliance(options), shared.load_sites(options)
    workspace = shared.with_signing(shared.open_workspace(options), options)
    content = shared.read_manifest(options, appliance.name, workspace)
    wanted = [each for each in publications_of(content) if each.site in {s.name for s in sites}]
    can_ask = sys.stdin.isatty() and not options.json
    if wanted and not options.yes and not _may_remove(content, wanted, can_ask=can_ask):
        print_line("nothing was removed")
        return
    retired = [vars(publication) for publication in _retire(content, sites, workspace)]
    if options.json:
        print_json(retired)
        return
    for publication in retired:
        print_line(f"retired {publication['image_id']} at {format_place(publication)}")
    if not retired:
        print_line("nothing to retire: this build is published at none of these sites")


def _may_remove(
    content: Mapping[str, Any], wanted: Sequence[Publication], *, can_ask: bool
) -> bool:
    """Shows what would be removed and asks the person at the terminal. Raises UsageError where
    nobody is there."""
    about = content["appliance"]
    lines = [f"{each.image_id} at {format_place(vars(each))}: {each.location}" for each in wanted]
    if not can_ask:
        raise UsageError(
            f"this removes the images of {about['name']} {about['version']}, build "
            f"{about['build']}, for good, and nobody is here to be asked",
            detail="\n".join(lines),
            todo="give --yes as well",
        )
    print_line(
        f"{about['name']} {about['version']}, build {about['build']}; this removes for good:"
    )
    for line in lines:
        print_line(f"  {line}")
    try:
        answer = input("remove? [y/N] ")
    except EOFError:
        print_line()
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def _find_shared(publication: Publication, name: str, build: str, workspace: Workspace) -> str:
    """What else of the appliance is published as the same image: another site, or another build;
    empty where nothing is. Then the image stays, and only the manifest forgets it."""
    folder = workspace.folder(name)
    for path in sorted(folder.glob(f"*/{FILE}")):
        other = read_manifest(folder, path.parent.name) if not path.parent.is_symlink() else None
        for each in publications_of(other) if other is not None else ():
            if each.location != publication.location or each.sandbox != publication.sandbox:
                continue
            if path.parent.name != build:
                return f"build {path.parent.name}"
            if each.site != publication.site:
                return f"site {each.site}"
    return ""


def _retire(
    content: Mapping[str, Any], sites: Sequence[Site], workspace: Workspace
) -> Iterator[Publication]:
    """Removes a build's images from these sites and their publications from its manifest."""
    name, build = content["appliance"]["name"], content["appliance"]["build"]
    folder = workspace.folder(name)
    for site in sites:
        publications = [each for each in publications_of(content) if each.site == site.name]
        if not publications:
            continue
        with open_site(make_cloud(site), workspace) as cloud:
            for publication in publications:
                shared_with = _find_shared(publication, name, build, workspace)
                if shared_with:
                    where = f"{publication.image_id} at {publication.site}"
                    print_line(f"{where} stays: {shared_with} has it too", file=sys.stderr)
                else:
                    cloud.retire(publication)
                with workspace.manifests(name):  # another command may have changed it
                    content = without(read_manifest(folder, build) or content, publication)
                    write_manifest(folder, content, latest=False, sign=workspace.sign)
                    if not content["publications"]:
                        mark = replace(read_mark(folder / build), state=State.DELETED)
                        write_mark(folder / build, mark)
                yield publication
