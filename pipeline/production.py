"""One appliance, from its plan to its manifest: what `phantom-image image` does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import host, manifest
from pipeline.build import Builder, Built
from pipeline.clouds import clouds
from pipeline.errors import NoSpaceError, PhantomError, StoreError
from pipeline.manifest import ManifestImage
from pipeline.model import (
    Appliance,
    BootedImage,
    BootReport,
    ContentKey,
    Image,
    Progress,
    Publication,
    Sha256,
    Site,
)
from pipeline.plan import Plan, Target, describe, explain, make_plan
from pipeline.publish import check_site, publish_image
from pipeline.stages.image import IMAGE
from pipeline.store import Store, write_atomically
from pipeline.tools import dib, namespace

_STAGES = "stages.json"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where things are kept, and how work tells that it goes on."""

    build: Path
    """Manifests and images, by appliance and build."""
    store: Store
    progress: Callable[[str], Progress]

    def folder(self, appliance: str) -> Path:
        """Where an appliance's builds lie."""
        return self.build / appliance

    def sandbox(self, site: str) -> Path:
        """Where a sandbox site keeps its objects."""
        return self.build / "sandbox" / site


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What came of it."""

    appliance: str
    build: str
    manifest_path: Path
    manifest: Mapping[str, Any]
    stages: tuple[tuple[str, bool, float], ...]
    """Title, whether it was reused, and seconds of each stage that was looked at."""


def produce(
    appliance: Appliance, sites: Sequence[Site], workspace: Workspace, *, publish: bool
) -> Produced:
    """Builds and boots an appliance's images, publishes them unless told not to, and writes the
    manifest.

    A site that fails does not keep the others from being published: the manifest tells of those,
    and then the first error is raised, with the others in it. Raises PhantomError of every kind.
    """
    workspace.store.sweep()
    with workspace.store.used():
        plan = make_plan(appliance, sites, workspace.store)
        if publish:
            for target in plan.targets:
                check_site(target.cloud, workspace.sandbox(target.site.name))
        check_host(plan, workspace)
        built = _build(plan, workspace)
        folder = workspace.folder(appliance.name)
        build = _build_name(plan, built)
        before = manifest.read_manifest(folder, build)
        known = manifest.publications_of(before) if before is not None else []
        if publish and _remove_damaged(plan, built, known, workspace):
            built = {**built, **_build(plan, workspace)}
        entries = [_entry(target, built, build, plan) for target in plan.targets]
        with _errors(workspace.build):
            for entry in entries:
                _link(entry.image.file, folder / build / entry.name)
        published, errors = known, list[PhantomError]()
        if publish:
            published, errors = _publish(plan, entries, known, workspace)
        written = _make_manifest(plan, built, build, entries, published)
        if before is not None:
            written = manifest.keep_other_sites(written, before)
        with _errors(workspace.build):
            path = manifest.write_manifest(folder, written)
            write_atomically(folder / _STAGES, json.dumps(describe(plan)) + "\n")
    if errors:
        raise _all_of(errors)
    return Produced(
        appliance=appliance.name,
        build=build,
        manifest_path=path,
        manifest=written,
        stages=tuple(
            (stage.title, built[stage.key].reused, built[stage.key].seconds)
            for stage in plan.stages
            if stage.key in built
        ),
    )


def _build_name(plan: Plan, built: Mapping[ContentKey, Built]) -> str:
    makers = {
        stage.name: [stage.revision, stage.fields()["tools"]]
        for stage in plan.stages
        if "tools" in stage.fields()
    }
    return manifest.build_name(plan.appliance, _root_sha256(plan, built), makers)


def _root_sha256(plan: Plan, built: Mapping[ContentKey, Built]) -> Sha256:
    return Sha256(built[plan.targets[0].image.key].artifact.facts["root_sha256"])


def _remove_damaged(
    plan: Plan,
    built: Mapping[ContentKey, Built],
    known: Sequence[Publication],
    workspace: Workspace,
) -> bool:
    """Removes images of earlier runs that are to be sent now and are not as they were stored;
    whether there was one."""
    sent = {(each.site, each.sha256) for each in known}
    damaged = False
    for target in plan.targets:
        image = built[target.image.key]
        if not image.reused or (target.site.name, image.artifact.facts["sha256"]) in sent:
            continue
        if not image.artifact.check():
            workspace.store.remove(image.artifact)
            damaged = True
    return damaged


def _make_manifest(
    plan: Plan,
    built: Mapping[ContentKey, Built],
    build: str,
    entries: Sequence[ManifestImage],
    published: Sequence[Publication],
) -> dict[str, Any]:
    return manifest.make_manifest(
        appliance=plan.appliance,
        build=build,
        packages=plan.root.packages,
        elements={each.name: each.tree.digest for each in plan.root.elements},
        root_sha256=_root_sha256(plan, built),
        images=entries,
        publications=published,
        launch={target.site.name: _launch(plan.appliance, target) for target in plan.targets},
    )


def _all_of(errors: Sequence[PhantomError]) -> PhantomError:
    """The first error, with what the others say."""
    first, *others = errors
    if others:
        first.detail = "\n".join([*filter(None, [first.detail]), *(f"also: {e}" for e in others)])
    return first


def check_host(plan: Plan, workspace: Workspace) -> None:
    """Looks, before anything is built, for what the stages to be run need of the host.

    Raises HostError, SudoError, NoSpaceError.
    """
    steps = explain(plan, workspace.store, {})
    building = {step.stage.name for step in steps if step.action == "build"}
    host.require(sorted(building))
    if plan.root.name in building:
        namespace.check_root()
        host.require_namespaces()
        dib.check_folders([workspace.store.folder])


def retire(
    found: Mapping[str, Any], sites: Sequence[Site], workspace: Workspace
) -> list[Publication]:
    """Removes a build's images from these sites, and writes each removal into its manifest.

    Raises what the sites raise.
    """
    retired = []
    for site in sites:
        cloud = clouds()[site.cloud](site)
        for publication in manifest.publications_of(found):
            if publication.site != site.name:
                continue
            with (
                workspace.store.lock(f"site-{site.name}"),
                cloud.open(workspace.sandbox(site.name)),
            ):
                cloud.retire(publication)
            found = manifest.without_site(found, site.name)
            folder = workspace.folder(found["appliance"]["name"])
            manifest.write_manifest(folder, found, latest=False)
            retired.append(publication)
    return retired


def read_stages(workspace: Workspace, appliance: str) -> dict[str, Any]:
    """What decided the stages of the appliance's last build, as `describe` tells it."""
    try:
        read = json.loads((workspace.folder(appliance) / _STAGES).read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _build(plan: Plan, workspace: Workspace) -> Mapping[ContentKey, Built]:
    """What the targets need, by key; with the stages before it that had to run."""
    builder = Builder(workspace.store, workspace.progress)
    leaves = [
        stage for target in plan.targets for stage in (target.image, target.hash, target.boot)
    ]
    builder.build(leaves)
    return builder.results()


def _image(target: Target, built: Mapping[ContentKey, Built]) -> Image:
    made = built[target.image.key].artifact
    return Image(
        site=target.site.name,
        cloud=target.site.cloud,
        file=made.file(IMAGE),
        disk=target.cloud.disk,
        bytes=made.facts["bytes"],
        sha256=Sha256(made.facts["sha256"]),
        md5=made.facts["md5"],
        disk_bytes=made.facts["disk_bytes"],
        disk_sha256=Sha256(built[target.hash.key].artifact.facts["sha256"]),
    )


def _entry(
    target: Target, built: Mapping[ContentKey, Built], build: str, plan: Plan
) -> ManifestImage:
    return ManifestImage(
        name=target.cloud.image_name(plan.appliance, build),
        image=_image(target, built),
        report=BootReport(passed=True, facts=built[target.boot.key].artifact.facts),
    )


def _publish(
    plan: Plan, entries: Sequence[ManifestImage], known: Sequence[Publication], workspace: Workspace
) -> tuple[list[Publication], list[PhantomError]]:
    """The publications of all sites, those of earlier runs among them, and what went wrong."""
    published = {each.site: each for each in known}
    errors = []
    for target, entry in zip(plan.targets, entries, strict=True):
        assert entry.report is not None
        try:
            published[target.site.name] = publish_image(
                target.cloud,
                BootedImage(image=entry.image, report=entry.report),
                name=entry.name,
                summary=plan.appliance.summary,
                known=known,
                store=workspace.store,
                sandbox=workspace.sandbox(target.site.name),
                progress=workspace.progress(f"publish {target.site.name}"),
            )
        except PhantomError as error:
            errors.append(error)
    return list(published.values()), errors


def _launch(appliance: Appliance, target: Target) -> dict[str, object]:
    cloud = target.cloud
    kind = appliance.phantom.instance_type.get(target.site.cloud, cloud.default_instance_type)
    return {"instance_type": kind, "common": cloud.common}


def _link(stored: Path, named: Path) -> None:
    """Gives a stored file its name in the build's folder, without a second copy where it can be."""
    named.parent.mkdir(parents=True, exist_ok=True)
    if named.exists() and (named.samefile(stored) or _is_copy(named, stored)):
        return
    temporary = named.with_name(f".{named.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(stored, temporary)
    except OSError:  # the store is on another file system
        try:
            shutil.copy2(stored, temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.rename(named)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    """Turns what the file system says of the folder of builds into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                "no space for images and manifests",
                where=str(folder),
                todo="free some space there, or name a folder with more by --build, then run the "
                "same command again: what is built is kept",
            ) from error
        raise StoreError(
            f"the folder of builds cannot be written to: {error.strerror}",
            where=str(error.filename or folder),
            todo="let --build name a folder that this user may write to",
        ) from error


def _is_copy(named: Path, stored: Path) -> bool:
    one, other = named.stat(), stored.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
