"""Appliance and sites to a plan: the stages to run, and why each will run or be reused.

Making a plan reads the definition's files, the elements and the archive's index; it builds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from pipeline import definition
from pipeline.clouds import Cloud, clouds
from pipeline.errors import (
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
from pipeline.model import Appliance, Machine, Site, format_size
from pipeline.sources.kernels import choose_kernel
from pipeline.sources.scratch import CopiedFile, ElementTree, ScratchRoot
from pipeline.stages.base import (
    LocalFile,
    Stage,
    digest_of_file,
    digest_of_tree,
    key_of,
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

    @property
    def site(self) -> Site:
        """The site."""
        return self.cloud.site

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages whose artifacts are asked for."""
        return (self.image, self.hash, self.drivers, *self.boots)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one command will do for one appliance."""

    appliance: Appliance
    root: ScratchRoot
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


@dataclass(frozen=True, kw_only=True)
class Step:
    """What will become of one stage, and why."""

    stage: Stage
    action: str
    """`reuse`, `build`, or `skip` where nothing needs it."""
    reasons: tuple[str, ...]


def make_plan(
    appliance: Appliance, sites: Sequence[Site], store: Store, *, keep: bool = True
) -> Plan:
    """The plan for an appliance on these sites. With `keep` false, the store is only read.

    Raises UnknownElementError, UnknownPackageError, MirrorError, ImageNameError, DefinitionError,
    KernelError, DiskTooSmallError, VolumeTooSmallError.
    """
    kinds = clouds()
    made = [kinds[site.cloud](site) for site in sites]
    for cloud in made:
        _check_image_name(appliance, cloud)
        cloud.check_size(_disk_size(appliance, cloud))
    root = _plan_root(appliance, _choose_kernel(appliance, made), store, keep=keep)
    for cloud in made:
        _check_disk_size(appliance, cloud, root.resolution.installed_bytes)
    return Plan(
        appliance=appliance,
        root=root,
        targets=tuple(_plan_target(appliance, cloud, root) for cloud in made),
    )


def _choose_kernel(appliance: Appliance, made: Sequence[Cloud]) -> str:
    try:
        return choose_kernel(
            appliance.kernel,
            appliance.source.release,
            {each.site.name: each.hardware for each in made},
        )
    except KernelError as error:
        raise error.located(definition.locate(appliance.definition, "kernel")) from error


def _plan_root(appliance: Appliance, kernel: str, store: Store, *, keep: bool) -> ScratchRoot:
    source = appliance.source
    elements = _expand(appliance)
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
            CopiedFile(target=file.target, mode=file.mode, content=_local(file.source))
            for file in appliance.files
        ),
        scripts=tuple(_local(script) for script in appliance.scripts),
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
    drivers = CheckDrivers(inputs=(root,), label=site, hardware=cloud.hardware)
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
        report=_local(REPORT),
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


def explain(plan: Plan, store: Store, before: Mapping[str, Any]) -> list[Step]:
    """What will become of each stage of a plan. `before` is `describe` of the build before it."""
    stages = plan.stages
    needed = {stage.key for target in plan.targets for stage in target.leaves}
    stored = {stage.key: store.find(stage.name, stage.key) is not None for stage in stages}
    for stage in reversed(stages):
        if stage.key in needed and not stored[stage.key]:
            needed.update(each.key for each in stage.inputs)
    steps = []
    for stage in stages:
        if stored[stage.key]:
            steps.append(Step(stage=stage, action="reuse", reasons=()))
        elif stage.key in needed:
            reasons = tuple(_reasons(stage, before.get(stage.title)))
            steps.append(Step(stage=stage, action="build", reasons=reasons))
        else:
            steps.append(Step(stage=stage, action="skip", reasons=("nothing needs it",)))
    return steps


def describe(plan: Plan) -> dict[str, Any]:
    """What decides each stage's output, by its title, as JSON can hold it."""
    return {
        stage.title: {
            "key": stage.key,
            "revision": stage.revision,
            "fields": stage.fields(),
            "inputs": {each.title: each.key for each in stage.inputs},
        }
        for stage in plan.stages
    }


def _reasons(stage: Stage, before: Mapping[str, Any] | None) -> Iterator[str]:
    if before is None:
        yield "not built here before"
        return
    if before["key"] == stage.key:
        yield "what was stored is gone or was changed"
        return
    if before["revision"] != stage.revision:
        yield f"the pipeline makes it otherwise: revision {before['revision']} -> {stage.revision}"
    yield from _differences(before["fields"], stage.fields(), "")
    for each in stage.inputs:
        old = before["inputs"].get(each.title)
        if old != each.key:
            was = old[:12] if old else "none"
            yield f"its input {each.title} changed: {was} -> {each.key[:12]}"


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """One sentence for each value that differs, down to the leaves."""
    if old == new:
        return
    old, new = _by_name(old), _by_name(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            inner = f"{where} {name}".strip()
            if name not in old:
                yield f"{_singular(inner)} {_shown(new[name])} is new".replace("  ", " ")
            elif name not in new:
                yield f"{_singular(inner)} is gone"
            else:
                yield from _differences(old[name], new[name], inner)
    else:
        yield f"{_singular(where)} {_shown(old)} -> {_shown(new)}"


def _by_name(value: Any) -> Any:
    """A list of named things as a mapping, so that one more of them is one difference."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(each, str) for each in value):
        return dict.fromkeys(value, "")
    if all(isinstance(each, Mapping) and "name" in each for each in value):
        return {each["name"]: _named(each) for each in value}
    if all(isinstance(each, Mapping) and "target" in each for each in value):
        return {each["target"]: each for each in value}
    return value


def _named(each: Mapping[str, Any]) -> Any:
    """A named thing's one value that tells: a package's version, an element's digest."""
    if "version" in each:
        return f"{each['version']} ({each['sha256'][:8]})"
    if "tree" in each:
        return each["tree"]["digest"]
    return each


def _singular(where: str) -> str:
    field, _, rest = where.partition(" ")
    if rest and field in ("packages", "elements", "files", "scripts", "tools"):
        field = field[:-1]
    return f"{field.replace('_', ' ')} {rest}".rstrip()


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] if is_digest else text


def _expand(appliance: Appliance) -> dict[str, Path]:
    names = [appliance.source.element, _APPLIANCE_ELEMENT, *appliance.elements]
    try:
        return dib.expand(names)
    except UnknownElementError as error:
        for name in appliance.elements:
            if f"{name!r}," in error.what:
                where = definition.locate(appliance.definition, "elements", name)
                raise error.located(where) from error
        raise error.located(definition.locate(appliance.definition)) from error


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


def _local(path: Path) -> LocalFile:
    return LocalFile(digest=digest_of_file(path), path=path)


def _optional(path: Path | None) -> LocalFile | None:
    return None if path is None else _local(path)
