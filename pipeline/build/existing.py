"""A build that was made and booted, sent to its sites and to further ones: what `phantom-image
publish --build` does. Nothing is resolved anew, so a later update of the archive changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, NoReturn

from pipeline import sparse
from pipeline.build import launch, manifest
from pipeline.build.attest import attest_images, check_attested
from pipeline.build.builder import Builder
from pipeline.build.delivery import (
    Delivery,
    Sending,
    check_sites,
    raise_defects,
    run_side_by_side,
)
from pipeline.build.explain import describe, explain
from pipeline.build.gate import find_error
from pipeline.build.plan import Plan, file_name, plan_targets
from pipeline.build.reasons import describe_machine
from pipeline.build.release import check_files
from pipeline.build.run import (
    Produced,
    add_stages,
    check_host,
    describe_launch,
    instance_type,
    join_errors,
    make_templates,
    read_stages,
)
from pipeline.clouds import Cloud, make_cloud
from pipeline.errors import StoreError, UsageError
from pipeline.machine import accelerator
from pipeline.model import (
    Appliance,
    BootedImage,
    BootReport,
    ContentKey,
    Image,
    Release,
    Sha256,
    Site,
)
from pipeline.sources import BaseFile
from pipeline.sparse import CHUNK
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class _Stored(Stage):
    """A stage of an earlier run: known by its key alone, and never run again."""

    stored: ContentKey

    @cached_property
    def key(self) -> ContentKey:
        return self.stored

    def run(self, inputs: Sequence[Artifact], context: Context) -> NoReturn:
        raise StoreError(
            f"the stage {self.name} of this build was damaged, and cannot be made again alone",
            where=str(context.store.folder),
            todo="`phantom-image image` builds the appliance as it is now",
        )


@dataclass(frozen=True, kw_only=True)
class _StoredRoot(_Stored):
    """The root file system of an earlier run."""

    name: ClassVar[str] = "root"


@dataclass(frozen=True, kw_only=True)
class _StoredContents(_Stored):
    """What a base image's root file system holds, of an earlier run."""

    name: ClassVar[str] = "contents"


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The source of a build that is there."""

    from_base_image: bool
    root: Stage
    contents: Stage | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says of them."""
    base: BaseFile | None = None

    def plan_contents(self, images: Sequence[Stage]) -> Stage | None:
        return self.contents

    def describe_inputs(self, contents: Artifact | None) -> dict[str, Any]:
        return dict(self.inputs)


class _Resending(Sending):
    """One site's image as it lies in the build's folder, sent to a site that it was booted for."""

    def __init__(
        self,
        appliance: Appliance,
        cloud: Cloud,
        told: Mapping[str, Any],
        release: Release,
        stopping: Event,
        workspace: Workspace,
    ) -> None:
        super().__init__(cloud, stopping, workspace, self._resend)
        self._told = told
        self._release = release
        self._appliance = appliance

    def _resend(self) -> None:
        folder = self._release.folder
        before = manifest.read_manifest(folder.parent, self._release.build)
        known = [] if before is None else manifest.publications_of(before)
        self.published = tuple(each for each in known if each.site == self.site)
        error = None if before is None else find_error(before["checks"], self._appliance)
        if error is not None:
            error.where = f"site {self.site}"
            raise error
        image = _read_image(folder / self._told["file"], self._told, self.cloud)
        reports = tuple(
            BootReport(machine=check["machine"], passed=check.get("passed") is True, facts=check)
            for check in self._told["boot_checks"]
        )
        self._send(image, self._release, lambda: BootedImage(image=image, reports=reports))


def publish_build(
    appliance: Appliance,
    content: Mapping[str, Any],
    sites: Sequence[Site],
    workspace: Workspace,
    *,
    order: Sequence[str] = (),
) -> Produced:
    """Publishes the build with this manifest, and notes in it what sites now have. The definition
    only gives what a manifest lacks, such as the names of images at a further site.

    A site that the build was booted for gets the file in the build's folder. For another one, an
    image is made of the stored root file system, and booted as that site boots it. A site that
    fails stops no other. Raises UsageError, StoreError, TamperedError or GoneError where the
    build's documents are not what its manifest says, and what publishing raises.
    """
    accelerator.give_memory_back()
    workspace.store.sweep()
    about = content["appliance"]
    check_attested(workspace.folder(about["name"]) / about["build"], content)
    kept = {name: about[name] for name in ("version", "summary", "labels")}
    appliance = replace(appliance, **kept)
    clouds = [make_cloud(site) for site in sites]
    with workspace.store.used():
        plan, releases = _plan(appliance, content, clouds, workspace)
        errors = check_sites(clouds, workspace)
        left = [cloud for cloud in clouds if cloud.site.name not in errors]
        if not left:
            raise join_errors([errors[site.name] for site in sites])
        with Builder(workspace.store, workspace.progress) as builder:
            sendings = [*_make_sendings(left, plan, releases, builder, workspace)]
            try:
                run_side_by_side(sendings, builder)
            finally:  # the manifest names what was published, whatever ended the others
                whole = [each for each in sendings if not each.is_alive() and not each.defect]
                written = _write(appliance, content, whole, workspace, order, plan)
    errors |= {each.site: each.error for each in sendings if each.error is not None}
    raise_defects(sendings)
    if errors:
        raise join_errors([errors[site.name] for site in sites if site.name in errors], written)
    results = builder.results()
    return Produced(
        manifest_path=written[0],
        manifest=written[1],
        stages=tuple(
            (stage.title, results[stage.key].reused, results[stage.key].seconds)
            for stage in plan.stages
            if stage.key in results
        ),
    )


_Releases = Mapping[str, tuple[Mapping[str, Any], Release]]
"""By the names of sites that a build was booted for: what its manifest says of the image, and the
release."""


def _plan(
    appliance: Appliance,
    content: Mapping[str, Any],
    clouds: Sequence[Cloud],
    workspace: Workspace,
) -> tuple[Plan, _Releases]:
    """What is made for sites that the build was not booted for, and what the others get."""
    about = content["appliance"]
    stages = read_stages(workspace, about["name"], about["build"])
    releases = {}
    for cloud in clouds:
        told = _find_booted(cloud, content, stages)
        if told is not None:
            release = _make_release(appliance, told, cloud, workspace, about["build"])
            releases[cloud.site.name] = told, release
    further = [cloud for cloud in clouds if cloud.site.name not in releases]
    return _plan_further(appliance, content, further, stages, workspace), releases


def _make_sendings(
    clouds: Sequence[Cloud],
    plan: Plan,
    releases: _Releases,
    builder: Builder,
    workspace: Workspace,
) -> Iterator[Sending]:
    for cloud in clouds:
        if cloud.site.name in releases:
            told, release = releases[cloud.site.name]
            yield _Resending(plan.appliance, cloud, told, release, builder.stopping, workspace)
    for target in plan.targets:
        if target.cloud in clouds:
            yield Delivery(plan, target, builder, workspace, publish=True)


# ---- sites that the build was booted for


def _find_booted(
    cloud: Cloud, content: Mapping[str, Any], stages: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """What the manifest says of the image that was booted on the site's machines, as they are now;
    None where there is none."""
    disk, site = cloud.disk, cloud.site.name
    for image in content["images"]:
        same = (disk.layout, disk.format, disk.compression) == tuple(
            image[name] for name in ("layout", "format", "compression")
        )
        passed = {each["machine"] for each in image["boot_checks"] if each.get("passed") is True}
        if image["site"] != site or not same:
            continue
        checks = {machine.name: f"boot {site} {machine.name}" for machine in cloud.machines}
        if all(
            machine.name in passed
            and stages.get(checks[machine.name], {}).get("fields", {}).get("machine")
            == describe_machine(machine)
            for machine in cloud.machines
        ):
            found: Mapping[str, Any] = image
            return found
    return None


def _make_release(
    appliance: Appliance,
    told: Mapping[str, Any],
    cloud: Cloud,
    workspace: Workspace,
    build: str,
) -> Release:
    """The build as its publication at the site describes it. Raises UsageError where the
    definition now gives the image another name."""
    name = cloud.image_name(appliance, build)
    if file_name(name, cloud.disk) != told["file"]:
        site = cloud.site
        raise UsageError(
            f"build {build} has the image {told['file']} for site {site.name}, and the definition "
            f"now calls it {file_name(name, cloud.disk)}",
            where=appliance.positions.find("clouds", site.cloud, "image_name"),
            todo="give the definition its old template of names, or publish with `phantom-image "
            "image` what it makes now",
        )
    return Release(
        appliance=appliance.name,
        version=appliance.version,
        build=build,
        name=name,
        summary=appliance.summary,
        labels=appliance.labels,
        folder=workspace.folder(appliance.name) / build,
    )


def _read_image(file: Path, told: Mapping[str, Any], cloud: Cloud) -> Image:
    """The image in a build's folder, after reading every byte of it. Raises StoreError where it is
    not the one that was booted."""
    todo = "`phantom-image image` builds the appliance as it is now"
    try:
        size = file.stat().st_size
        compressed = told["compression"] is not None
        sha256, md5 = _digest(file) if compressed else (sparse.sha256(file), None)
    except OSError as error:
        raise StoreError(
            f"the build's image cannot be read: {error.strerror}", where=str(file), todo=todo
        ) from error
    if (size, sha256) != (told["bytes"], told["sha256"]):
        raise StoreError(
            "this is no longer the image that was booted: its bytes have changed",
            where=str(file),
            todo=todo,
        )
    return Image(
        site=cloud.site.name,
        cloud=cloud.site.cloud,
        file=file,
        disk=cloud.disk,
        bytes=size,
        sha256=sha256,
        md5=md5,
        disk_bytes=told["disk_bytes"],
        disk_sha256=Sha256(told["disk_sha256"]),
    )


def _digest(file: Path) -> tuple[Sha256, str]:
    """The SHA-256 and the MD5 of a file, which is read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return Sha256(sha256.hexdigest()), md5.hexdigest()


# ---- further sites


def _plan_further(
    appliance: Appliance,
    content: Mapping[str, Any],
    clouds: Sequence[Cloud],
    stages: Mapping[str, Any],
    workspace: Workspace,
) -> Plan:
    """What makes and boots the build's images for sites that it was not booted for. Raises
    UsageError where that would be another build, or where the store lacks what it starts from."""
    build, names = content["appliance"]["build"], ", ".join(each.site.name for each in clouds)
    what = f"build {build} was not booted as its site boots it: {names}"
    todo = "`phantom-image image` builds the appliance as it is now, for these sites too"
    if not clouds:
        nothing = _Known(from_base_image=False, root=_StoredRoot(stored=ContentKey("")))
        return Plan(appliance=appliance, source=nothing, targets=())
    if "root" not in stages:
        raise UsageError(f"{what}; what it is made of is not known any more", todo=todo)
    contents = stages.get("contents")
    drivers = [told["fields"] for title, told in stages.items() if title.startswith("drivers ")]
    source = _Known(
        from_base_image=any(fields.get("base_image") for fields in drivers),
        root=_StoredRoot(stored=ContentKey(stages["root"]["key"])),
        contents=contents and _StoredContents(stored=ContentKey(contents["key"])),
        inputs=content["inputs"],
    )
    for cloud in clouds:
        cloud.check_size(appliance.disk_size_on(cloud.site.cloud))
    plan = Plan(
        appliance=appliance,
        source=source,
        targets=tuple(
            replace(target, contents=source.contents)
            for target in plan_targets(appliance, clouds, source)
        ),
    )
    root_sha256 = Sha256(content["root_filesystem"]["sha256"])
    if manifest.build_name(appliance, root_sha256, plan.makers) != build:
        raise UsageError(
            f"{what}; the definition, or a program that makes disks, has changed since, so its "
            "image would be that of another build",
            todo=todo,
        )
    steps = explain(plan, workspace.store, {})
    gone = [each.stage for each in steps if each.action == "build"]
    if lost := [stage.name for stage in gone if isinstance(stage, _Stored)]:
        raise UsageError(f"{what}; the store no longer has its {', '.join(lost)}", todo=todo)
    check_host(plan, workspace)
    return plan


# ---- the manifest


def _write(
    appliance: Appliance,
    content: Mapping[str, Any],
    sendings: Sequence[Sending],
    workspace: Workspace,
    order: Sequence[str],
    plan: Plan,
) -> tuple[Path, dict[str, Any]]:
    """Notes what sites have in the build's manifest, and makes it the latest one."""
    build, folder = content["appliance"]["build"], workspace.folder(appliance.name)
    entries = [each.entry for each in sendings if isinstance(each, Delivery) and each.entry]
    with workspace.manifests(appliance.name), workspace.errors():
        check_files(folder / build, entries)
        before = manifest.read_manifest(folder, build) or dict(content)
        sites = {each.site for each in sendings}
        published = [each for each in manifest.publications_of(before) if each.site not in sites]
        published += [publication for each in sendings for publication in each.published]
        sized = [(each.cloud, _find_size(appliance, before, each.cloud)) for each in sendings]
        section = launch.make_section(
            appliance,
            sorted(published, key=lambda publication: publication.site),
            describe_launch(sized),
            order=order,
            before=before["phantom"],
        )
        # The build's own: the definition may say something else by now.
        configuration = before["phantom"]["launch_configuration"]
        own = {name: configuration[name] for name in ("user_data", "contextualization_method")}
        section = launch.complete(
            {**section["launch_configuration"], **own}, sandbox=section["sandbox"]
        )
        script = own["user_data"]
        templates = make_templates(sized, published, None if script is None else script.encode())
        written = manifest.with_publications(before, entries, published, section, templates)
        if entries:
            written = attest_images(folder / build, written, workspace)
        path = manifest.write_manifest(folder, written, sign=workspace.sign)
        if plan.targets:
            add_stages(path.parent, describe(plan))
        return path, written


def _find_size(appliance: Appliance, before: Mapping[str, Any], cloud: Cloud) -> str:
    """The instance type of the build at a site: the manifest's, or that of the definition."""
    known = launch.params_of(before["phantom"]).get(cloud.site.name, {})
    return str(known.get("instance_type") or instance_type(appliance, cloud))
