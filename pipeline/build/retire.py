"""The removal of builds from sites: of one that somebody names, or of those that no rule keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.build.lifecycle import State, read_mark, write_mark
from pipeline.build.manifest import (
    FILE,
    publications_of,
    read_manifest,
    without,
    write_manifest,
)
from pipeline.build.prune import Line
from pipeline.build.sites import open_site
from pipeline.clouds import make_cloud
from pipeline.errors import InUseError, PhantomError, SiteUnreachableError
from pipeline.model import Publication, Site
from pipeline.phantom.client import make_client
from pipeline.phantom.named import PhantomService
from pipeline.workspace import Workspace


def retire(
    content: Mapping[str, Any],
    sites: Sequence[Site],
    workspace: Workspace,
    tell_shared: Callable[[Publication, str], None] = lambda *_: None,
) -> Iterator[Publication]:
    """Removes a build's images from these sites and their publications from its manifest. An image
    that something else is published as stays, and `tell_shared` gets what that is. Raises what
    sites do: InUseError, CredentialsError, SiteUnreachableError."""
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
                    tell_shared(publication, shared_with)
                else:
                    cloud.retire(publication)
                with workspace.manifests(name):  # another command may have changed it
                    content = without(read_manifest(folder, build) or content, publication)
                    write_manifest(folder, content, latest=False, sign=workspace.sign)
                    if not content["publications"]:
                        mark = replace(read_mark(folder / build), state=State.DELETED)
                        write_mark(folder / build, mark)
                yield publication


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


# ---- what no rule keeps


@dataclass(frozen=True, kw_only=True)
class Retired:
    """What became of one publication of a build that no rule keeps."""

    appliance: str
    build: str
    publication: Publication
    error: PhantomError | None = None
    """Why the site still has it."""


def retire_lines(
    lines: Sequence[Line],
    sites: Sequence[Site],
    phantoms: Sequence[PhantomService],
    environ: Mapping[str, str],
    workspace: Workspace,
) -> Iterator[Retired]:
    """Retires what lines of `prune` say of publications, one by one. What a Phantom's launch
    configuration names stays, and so does all at a site or a Phantom that does not answer."""
    known = {site.name: site for site in sites}
    away: dict[str, PhantomError] = {}  # sites that did not answer: they are not asked again
    for line in lines:
        content = read_manifest(line.folder.parent, line.build) if line.retires else None
        if content is None:
            continue
        for publication in line.retires:
            error = away.get(publication.site)
            try:
                if error is not None:
                    raise error
                if not publication.sandbox:
                    _check_phantoms(content, publication, phantoms, environ)
                one = {**content, "publications": [vars(publication)]}
                for _ in retire(one, [known[publication.site]], workspace):
                    pass
            except PhantomError as why:
                error = why
                if isinstance(why, SiteUnreachableError):
                    away[publication.site] = why
            yield Retired(
                appliance=line.appliance, build=line.build, publication=publication, error=error
            )


def _check_phantoms(
    content: Mapping[str, Any],
    publication: Publication,
    phantoms: Sequence[PhantomService],
    environ: Mapping[str, str],
) -> None:
    """Raises InUseError where a launch configuration has the image, and what clients of Phantom
    raise where one cannot be asked."""
    for service in phantoms:
        if service.sandbox:
            continue
        name = content["phantom"]["launch_configuration"]["name"]
        found = make_client(service, environ).find_configuration(name)
        params = None if found is None else found.sites.get(publication.site)
        if params is not None and params.image_id == publication.image_id:
            raise InUseError(
                f"a launch configuration of Phantom {service.name} starts machines from it",
                where=publication.site,
                todo="`phantom-image launch-config` gives it a newer build",
            )
