"""Appliance and sites to a plan: the stages to run, and why each will run or be reused.

Making a plan reads the definition's files, the elements and the archive's index; it builds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from pipeline import definition, manifest
from pipeline.build import Built
from pipeline.clouds import Cloud, clouds
from pipeline.errors import (
    BaseNotBuiltError,
    ChecksumError,
    DefinitionError,
    DiskTooSmallError,
    HostError,
    ImageNameError,
    KernelError,
    UnknownElementError,
    UnknownPackageError,
    UsageError,
)
from pipeline.layouts import LAYOUTS
from pipeline.layouts.layout import Layout
from pipeline.model import (
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    ContentKey,
    Machine,
    ScratchSource,
    Sha256,
    Site,
    format_size,
)
from pipeline.sources import base_image, scratch
from pipeline.sources.base_disk import look, stamp_of
from pipeline.sources.base_image import (
    BaseFile,
    BaseRoot,
    Contents,
    find_base_file,
    plan_base_root,
)
from pipeline.sources.kernels import choose_kernel
from pipeline.sources.scratch import CopiedFile, ElementTree, ScratchRoot
from pipeline.stages.base import (
    LocalFile,
    Stage,
    digest_of_tree,
    key_of,
    local_file,
    to_json,
)
from pipeline.stages.boot import REPORT, BootCheck
from pipeline.stages.disk import AssembleDisk
from pipeline.stages.drivers import CheckDrivers
from pipeline.stages.image import CompressImage, HashDisk
from pipeline.store import Store
from pipeline.tools import apt, dib, fat, grub, run

EPOCH = 1_704_067_200
"""2024-01-01: no file of an image is younger, unless SOURCE_DATE_EPOCH says another time. A build's
own time would make two builds of the same inputs differ."""

_SIMPLEST = ("bare", "mbr", "hybrid")
"""Layouts, in the order in which a build's images are taken as base images."""

_LATEST = (1 << 32) - 1  # what fits into an inode's time
_APPLIANCE_ELEMENT = "phantom-appliance"
_KEPT_OUT = ("DIB_NO_TMPFS", "DIB_RELEASE")  # decided here, whatever the user's environment says
_TOOL_VERSIONS = {"grub": grub.version, "mtools": fat.version}  # those that a layout names


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is made for one site."""

    cloud: Cloud
    image: Stage
    """Its artifact is what `describe_image` tells of: a compressed disk, or the disk itself."""
    hash: Stage
    boots: tuple[BootCheck, ...]
    """One for each of the site's machines, in its order."""
    drivers: Stage
    contents: Contents | None = None
    """What a base image's root file system holds: known only when it is made."""

    @property
    def site(self) -> Site:
        """The site."""
        return self.cloud.site

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages whose artifacts are asked for."""
        contents = () if self.contents is None else (self.contents,)
        return (*contents, self.image, self.hash, self.drivers, *self.boots)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one command will do for one appliance."""

    appliance: Appliance
    root: ScratchRoot | BaseRoot
    base: BaseFile | None
    """The base image, where it lies on this host already."""
    targets: tuple[Target, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, inputs before those that need them."""
        seen: dict[str, Stage] = {}
        for target in self.targets:
            for stage in target.leaves:
                for each in (*_inputs(stage), stage):
                    seen.setdefault(each.key, each)
        return tuple(seen.values())

    @property
    def makers(self) -> Mapping[str, object]:
        """Revisions and tools of what makes images of root file systems, and the layouts: the same
        for all choices of sites, so that a build has one name whichever of them it goes to first.
        """
        return {
            "layouts": {name: key_of(to_json(layout)) for name, layout in LAYOUTS.items()},
            AssembleDisk.name: [
                AssembleDisk.revision,
                {name: _version_or_none(name) for name in sorted(_TOOL_VERSIONS)},
            ],
            CompressImage.name: [CompressImage.revision, _image_tools()],
        }


def make_plan(
    appliance: Appliance, sites: Sequence[Site], store: Store, *, builds: Path, keep: bool = True
) -> Plan:
    """The plan for an appliance on these sites. `builds` is the folder of all appliances' builds.
    With `keep` false, the store is only read.

    Raises UnknownElementError, UnknownPackageError, MirrorError, ImageNameError, DefinitionError,
    KernelError, DiskTooSmallError, VolumeTooSmallError, ChecksumError, BaseNotBuiltError.
    """
    kinds = clouds()
    made = [kinds[site.cloud](site) for site in sites]
    for cloud in made:
        _check_image_name(appliance, cloud)
        cloud.check_size(_disk_size(appliance, cloud))
    if isinstance(appliance.source, BaseImageSource):
        return _plan_from_base(appliance, appliance.source, made, store, builds, keep=keep)
    return _plan_from_scratch(appliance, appliance.source, made, store, keep=keep)


def describe_inputs(plan: Plan, built: Mapping[ContentKey, Built]) -> dict[str, Any]:
    """What a manifest says of what the image was made of."""
    source, contents = plan.appliance.source, plan.targets[0].contents
    if isinstance(source, BaseImageSource):
        assert isinstance(plan.root, BaseRoot) and contents is not None
        artifact = built[contents.key].artifact
        return base_image.describe_inputs(source, plan.base, plan.root, artifact)
    assert isinstance(plan.root, ScratchRoot)
    return scratch.describe_inputs(source, plan.root)


def _plan_from_scratch(
    appliance: Appliance, source: ScratchSource, made: Sequence[Cloud], store: Store, *, keep: bool
) -> Plan:
    kernel = _choose_kernel(appliance, source, made)
    root = _plan_scratch_root(appliance, source, kernel, store, keep=keep)
    for cloud in made:
        _check_disk_size(appliance, cloud, root.resolution.installed_bytes)
    return Plan(
        appliance=appliance,
        root=root,
        base=None,
        targets=tuple(_plan_target(appliance, cloud, root) for cloud in made),
    )


def _choose_kernel(appliance: Appliance, source: ScratchSource, made: Sequence[Cloud]) -> str:
    try:
        return choose_kernel(
            appliance.kernel,
            source.release,
            {each.site.name: each.hardware for each in made if each.hardware.own_kernel},
        )
    except KernelError as error:
        raise error.located(definition.locate(appliance.definition, "kernel")) from error


def _plan_from_base(
    appliance: Appliance,
    source: BaseImageSource,
    made: Sequence[Cloud],
    store: Store,
    builds: Path,
    *,
    keep: bool,
) -> Plan:
    try:
        base = _find_base(source, store, builds, keep=keep)
        root = plan_base_root(
            appliance, source, base, disk_size=_smallest_disk(appliance), store=store
        )
    except (DefinitionError, ChecksumError, BaseNotBuiltError) as error:
        where = definition.locate(appliance.definition, "source", "base_image", "location")
        raise error.located(where) from error
    except UnknownElementError as error:
        raise error.located(_where_of_element(appliance, error.what)) from error
    targets = [_plan_target(appliance, cloud, root) for cloud in made]
    contents = Contents(inputs=(root,), after=tuple(each.image for each in targets))
    return Plan(
        appliance=appliance,
        root=root,
        base=base,
        targets=tuple(replace(each, contents=contents) for each in targets),
    )


def _find_base(
    source: BaseImageSource, store: Store, builds: Path, *, keep: bool
) -> BaseFile | None:
    """The base image, where it lies on this host already."""
    location = source.location
    if isinstance(location, Path):
        found = find_base_file(location, store, keep=keep)
        look(found.path, str(found.path), source.format)  # its headers, before anything is built
        return found
    return _find_build(location, builds) if isinstance(location, ApplianceBuild) else None


def _find_build(wanted: ApplianceBuild, builds: Path) -> BaseFile:
    """An image of another appliance's build: that with the simplest layout, since all of them have
    the same root file system. Raises BaseNotBuiltError."""
    folder = builds / wanted.name
    found = manifest.read_manifest(folder, wanted.build)
    if found is not None:
        build = found["appliance"]["build"]
        for image in sorted(found["images"], key=_simplicity):
            path = folder / build / image["file"]
            if path.is_file():
                sha256 = Sha256(image["sha256"])
                return BaseFile(path=path, sha256=sha256, stamp=stamp_of(path), build=build)
    missing = "no build" if wanted.build == "latest" else f"no build {wanted.build}"
    raise BaseNotBuiltError(
        f"there is {missing} of {wanted.name} in {folder}",
        todo=f"build it first: `make image IMAGE={wanted.name}`",
    )


def _simplicity(image: Mapping[str, Any]) -> tuple[int, str]:
    return _SIMPLEST.index(image["layout"]), image["site"]


def _smallest_disk(appliance: Appliance) -> int:
    """The smallest that the definition asks for: the same whatever sites are chosen."""
    sizes = (each.disk_size for each in appliance.clouds.values())
    return min([appliance.disk_size, *filter(None, sizes)])


def _plan_scratch_root(
    appliance: Appliance, source: ScratchSource, kernel: str, store: Store, *, keep: bool
) -> ScratchRoot:
    elements = _expand(appliance, source)
    given = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("DIB_") and name not in _KEPT_OUT
    }
    environment = {
        **given,
        "ARCH": source.architecture,
        "DIB_PYTHON_VERSION": "3",
        "DIB_RELEASE": source.release,
        "PHANTOM_KERNEL": kernel,
    }
    asked = dib.packages(elements, environment)
    requested = sorted({*asked, *appliance.packages})
    mirrors = apt.find_mirrors(source.release)
    archive = apt.Archive(mirrors, source.architecture, store)
    try:
        resolution = archive.resolve(requested, keep=keep)
    except UnknownPackageError as error:
        raise error.located(_asker(appliance, asked, error.what)) from error
    return ScratchRoot(
        release=source.release,
        architecture=source.architecture,
        kernel=kernel,
        user_data_frequency=appliance.user_data_frequency,
        elements=tuple(
            ElementTree(name=name, tree=LocalFile(digest=digest_of_tree(folder), path=folder))
            for name, folder in elements.items()
        ),
        requested=tuple(requested),
        packages=resolution.packages,
        apt_sources=mirrors.image_sources(),
        files=tuple(
            CopiedFile(target=file.target, mode=file.mode, content=local_file(file.source))
            for file in appliance.files
        ),
        scripts=tuple(local_file(script) for script in appliance.scripts),
        environment={name: key_of(value) for name, value in given.items()},
        tools={
            "diskimage-builder": dib.version(),
            "mmdebstrap": run.capture(["mmdebstrap", "--version"]).split()[-1],
            "e2fsprogs": _e2fsprogs(),
        },
        epoch=_epoch(),
        resolution=resolution,
        archive=archive,
        store=store,
        given=given,
    )


def _check_image_name(appliance: Appliance, cloud: Cloud) -> None:
    try:
        cloud.image_name(appliance, "0" * 12)
    except ImageNameError as error:
        kind = cloud.site.cloud
        error.where = definition.locate(appliance.definition, "clouds", kind, "image_name")
        raise


def _check_disk_size(appliance: Appliance, cloud: Cloud, installed: int) -> None:
    """Finds a disk that is much too small before a build; the last word has the stage `disk`.

    Documentation, which is left out, is never a third of what packages say that they take.
    """
    size = _disk_size(appliance, cloud)
    if size < installed * 2 // 3:
        raise DiskTooSmallError(
            f"the disk of {format_size(size)} is too small: the packages alone take about "
            f"{format_size(installed)}",
            where=definition.locate(appliance.definition, "disk_size"),
            todo="ask for a larger disk_size, or for fewer packages",
        )


def _disk_size(appliance: Appliance, cloud: Cloud) -> int:
    override = appliance.clouds.get(cloud.site.cloud)
    return (override and override.disk_size) or appliance.disk_size


def _epoch() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH") or str(EPOCH)
    if not text.isdecimal() or int(text) > _LATEST:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}", todo="set it to seconds since 1970, or unset it"
        )
    return int(text)


def _plan_target(appliance: Appliance, cloud: Cloud, root: Stage) -> Target:
    wanted, site = cloud.disk, cloud.site.name
    layout = LAYOUTS[wanted.layout]
    disk = AssembleDisk(
        inputs=(root,),
        label=wanted.layout,
        layout=layout,
        size=_disk_size(appliance, cloud),
        tools=_disk_tools(layout),
    )
    image: Stage = disk
    if wanted.compression is not None:
        image = CompressImage(
            inputs=(disk,),
            label=f"{wanted.layout} {wanted.format} {wanted.compression}",
            tools=_image_tools(),
        )
    drivers = CheckDrivers(
        inputs=(root,),
        label=site,
        hardware=cloud.hardware,
        base_image=isinstance(appliance.source, BaseImageSource),
    )
    return Target(
        cloud=cloud,
        image=image,
        hash=HashDisk(inputs=(disk,), after=() if image is disk else (image,), label=wanted.layout),
        boots=tuple(
            _plan_boot(appliance, site, machine, image, drivers) for machine in cloud.machines
        ),
        drivers=drivers,
    )


def _plan_boot(
    appliance: Appliance, site: str, machine: Machine, image: Stage, drivers: Stage
) -> BootCheck:
    return BootCheck(
        inputs=(image,),
        after=(drivers,),
        label=f"{site} {machine.name}",
        machine=machine,
        report=local_file(REPORT),
        user_data=_optional(appliance.phantom.user_data),
        check=_optional(appliance.boot_check.script),
        seconds=appliance.boot_check.seconds,
    )


def _disk_tools(layout: Layout) -> dict[str, str]:
    return {name: _TOOL_VERSIONS[name]() for name in layout.tools}


def _image_tools() -> dict[str, str]:
    return {"isal": version_of("isal")}


def _version_or_none(tool: str) -> str:
    """A tool's version; nothing where this host has not got it."""
    try:
        return _TOOL_VERSIONS[tool]()
    except (HostError, run.ToolError):
        return ""


def _expand(appliance: Appliance, source: ScratchSource) -> dict[str, Path]:
    names = [source.element, _APPLIANCE_ELEMENT, *appliance.elements]
    try:
        return dib.expand(names)
    except UnknownElementError as error:
        raise error.located(_where_of_element(appliance, error.what)) from error


def _where_of_element(appliance: Appliance, what: str) -> str:
    """Where the definition names the element that a message complains of."""
    for name in appliance.elements:
        if f"element {name!r}" in what:
            return definition.locate(appliance.definition, "elements", name)
    return definition.locate(appliance.definition)


def _asker(appliance: Appliance, asked: Mapping[str, str], what: str) -> str:
    """Who asks for the package that a message complains of."""
    for name in appliance.packages:
        if name in what.replace(",", " ").split():
            return definition.locate(appliance.definition, "packages", name)
    for name, element in asked.items():
        if name in what.replace(",", " ").split():
            return f"element {element}"
    return definition.locate(appliance.definition)


def _e2fsprogs() -> str:
    return run.capture(["dpkg-query", "--show", "--showformat=${Version}", "e2fsprogs"])


def _inputs(stage: Stage) -> Iterator[Stage]:
    for each in stage.inputs:
        yield from _inputs(each)
        yield each


def _optional(path: Path | None) -> LocalFile | None:
    return None if path is None else local_file(path)
