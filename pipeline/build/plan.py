"""Appliance and sites to a plan: the stages to run, and why each will run or be reused.

Making a plan reads the definition's files, the elements and the archive's index; it builds nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path

from pipeline import checks, records
from pipeline.build import manifest
from pipeline.clouds import Cloud, make_cloud
from pipeline.cluster_policy import ClusterPolicy
from pipeline.errors import BaseNotBuiltError, HostError, ImageNameError
from pipeline.layouts import LAYOUTS
from pipeline.model import Appliance, ApplianceBuild, Disk, Machine, Sha256, Site
from pipeline.sources import BaseFile, Request, Source, plan_source
from pipeline.sources.base_disk import stamp_of
from pipeline.sources.epoch import read_epoch
from pipeline.stages.base import LocalFile, Stage, key_of, local_file, own_file, to_json
from pipeline.stages.boot import BootCheck
from pipeline.stages.cluster import ClusterCheck, GuestFiles
from pipeline.stages.disk import TOOL_VERSIONS, AssembleDisk
from pipeline.stages.drivers import CheckDrivers
from pipeline.stages.gate import CheckContents
from pipeline.stages.guest_report import REPORT
from pipeline.stages.image import CompressImage, HashDisk
from pipeline.stages.inventory import ListSoftware
from pipeline.store import Store
from pipeline.tools import run
from pipeline.tools.apt_pins import Pins
from pipeline.tools.snapshot import Snapshot

NO_BUILD = "0" * 12
"""Stands for the name of a build that is not made yet."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is made for one site."""

    cloud: Cloud
    image: Stage
    """Its artifact is what `describe_image` reads: a compressed disk, or the disk itself."""
    hash: Stage
    boots: tuple[BootCheck, ...]
    """One for each of the site's machines, in its order."""
    drivers: Stage
    inventory: Stage
    """Lists the software in the root file system: the same for all targets."""
    cluster: ClusterCheck | None = None
    """On the first machine, where the definition asks for it."""
    gate: Stage
    """Looks for what no image that others boot should have."""
    contents: Stage | None = None
    """Describes a base image's root file system, whose content is known only once it is made."""

    @property
    def site(self) -> Site:
        return self.cloud.site

    @property
    def checks(self) -> tuple[Stage, ...]:
        """The stages that boot the image."""
        return self.boots if self.cluster is None else (*self.boots, self.cluster)

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages whose artifacts the manifest needs."""
        contents = () if self.contents is None else (self.contents,)
        return (
            *contents,
            self.image,
            self.hash,
            self.inventory,
            self.gate,
            self.drivers,
            *self.checks,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one command will do for one appliance."""

    appliance: Appliance
    source: Source
    targets: tuple[Target, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, inputs before those that need them."""
        seen: dict[str, Stage] = {}
        for target in self.targets:
            for leaf in target.leaves:
                for stage in _with_inputs(leaf):
                    seen.setdefault(stage.key, stage)
        return tuple(seen.values())

    @property
    def makers(self) -> Mapping[str, object]:
        """The layouts, and the revisions and tools of the stages that make images of root file
        systems: the same for every choice of sites, so that a build has one name."""
        return {
            "layouts": {name: key_of(to_json(layout)) for name, layout in LAYOUTS.items()},
            AssembleDisk.name: [
                AssembleDisk.revision,
                {name: _version_or_none(name) for name in sorted(TOOL_VERSIONS)},
            ],
            CompressImage.name: [CompressImage.revision, _image_tools()],
        }


def make_plan(
    appliance: Appliance,
    sites: Sequence[Site],
    store: Store,
    *,
    builds: Path,
    keep: bool = True,
    snapshot: Snapshot | None = None,
    pins: Pins | None = None,
) -> Plan:
    """The plan for an appliance on these sites. `builds` is the folder of all appliances' builds.
    With `keep` false, the store is only read. Plans with one `snapshot` see every archive at the
    same moment. With `pins`, a root file system from scratch gets these packages.

    Raises UnknownElementError, UnknownPackageError, MirrorError, ImageNameError, DefinitionError,
    KernelError, DiskTooSmallError, VolumeTooSmallError, ChecksumError, BaseNotBuiltError.
    """
    made = [make_cloud(site) for site in sites]
    _check_names(appliance, made)
    for cloud in made:
        cloud.check_size(appliance.disk_size_on(cloud.site.cloud))
    source = plan_source(
        Request(
            appliance=appliance,
            clouds=made,
            store=store,
            keep=keep,
            pins=pins,
            find_build=partial(_find_build, builds),
            snapshot=snapshot or Snapshot(kept=False),
        )
    )
    targets = plan_targets(appliance, made, source)
    contents = source.plan_contents([target.image for target in targets])
    return Plan(
        appliance=appliance,
        source=source,
        targets=tuple(replace(target, contents=contents) for target in targets),
    )


_OF_BUILD = {
    "appliance": {"build": records.FILE_NAME},
    "images": [{"layout": str, "site": str, "file": records.FILE_NAME, "sha256": str}],
}
"""What a base image needs of a manifest."""


def file_name(name: str, disk: Disk) -> str:
    """What an image of this name is called in its build's folder."""
    return name.replace("/", "_") + (disk.suffix if disk.compression is None else "")


def _check_names(appliance: Appliance, clouds: Sequence[Cloud]) -> None:
    """Checks that sites take the names of their images, and that different images have different
    ones. Raises ImageNameError."""
    images: dict[str, tuple[Disk, int, str]] = {}
    for cloud in clouds:
        site = cloud.site
        try:
            name = cloud.image_name(appliance, NO_BUILD)
        except ImageNameError as error:
            error.where = appliance.positions.find("clouds", site.cloud, "image_name")
            raise
        file = file_name(name, cloud.disk)
        size = appliance.disk_size_on(site.cloud)
        disk, other_size, other = images.setdefault(file, (cloud.disk, size, site.name))
        if (disk, other_size) != (cloud.disk, size):
            raise ImageNameError(
                f"the images of sites {other} and {site.name} differ and would have one name",
                where=appliance.positions.find("clouds", site.cloud, "image_name"),
                todo=f"give `clouds: {site.cloud}: image_name:` a name of its own",
            )


def _find_build(builds: Path, wanted: ApplianceBuild) -> BaseFile:
    """An image of another appliance's build: that with the simplest layout, since all of them have
    the same root file system. Raises BaseNotBuiltError."""
    folder = builds / wanted.name
    built = manifest.read_manifest(folder, wanted.build, _OF_BUILD)
    if built is not None:
        build = built["appliance"]["build"]
        known = [image for image in built["images"] if image["layout"] in LAYOUTS]
        for image in sorted(
            known, key=lambda image: (LAYOUTS[image["layout"]].around, image["site"])
        ):
            path = folder / build / image["file"]
            if path.is_file():
                sha256 = Sha256(image["sha256"])
                return BaseFile(path=path, sha256=sha256, stamp=stamp_of(path), build=build)
    missing = "no build" if wanted.build == "latest" else f"no build {wanted.build}"
    raise BaseNotBuiltError(
        f"there is {missing} of {wanted.name} in {folder}",
        todo=f"build it first: `phantom-image build {wanted.name}`",
    )


def plan_targets(appliance: Appliance, clouds: Sequence[Cloud], source: Source) -> list[Target]:
    """What is made for each site of a root file system."""
    return [_plan_target(appliance, cloud, source) for cloud in clouds]


def _plan_target(appliance: Appliance, cloud: Cloud, source: Source) -> Target:
    root, wanted, site = source.root, cloud.disk, cloud.site.name
    layout = LAYOUTS[wanted.layout]
    disk = AssembleDisk(
        inputs=(root,),
        label=wanted.layout,
        layout=layout,
        size=appliance.disk_size_on(cloud.site.cloud),
        tools={name: TOOL_VERSIONS[name]() for name in layout.tools},
    )
    image: Stage = disk
    if wanted.compression is not None:
        image = CompressImage(
            inputs=(disk,),
            label=f"{wanted.layout} {wanted.format} {wanted.compression}",
            tools=_image_tools(),
        )
    drivers = CheckDrivers(
        inputs=(root,), label=site, hardware=cloud.hardware, base_image=source.from_base_image
    )
    boots = [_plan_boot(appliance, site, machine, image, drivers) for machine in cloud.machines]
    return Target(
        cloud=cloud,
        image=image,
        hash=HashDisk(inputs=(disk,), after=() if image is disk else (image,), label=wanted.layout),
        boots=tuple(boots),
        drivers=drivers,
        cluster=_plan_cluster(appliance.boot_check.cluster, site, boots[0]),
        inventory=ListSoftware(inputs=(root,), after=(image,), epoch=read_epoch()),
        gate=_plan_gate(root, image),
    )


def _plan_gate(root: Stage, image: Stage) -> CheckContents:
    rules = tuple(checks.RULES)
    return CheckContents(inputs=(root,), after=(image,), rules=rules, host_name=platform.node())


def _plan_boot(
    appliance: Appliance, site: str, machine: Machine, image: Stage, drivers: Stage
) -> BootCheck:
    return BootCheck(
        inputs=(image,),
        after=(drivers,),
        label=f"{site} {machine.name}",
        machine=machine,
        report=local_file(REPORT),
        login_user=appliance.login_user,
        user_data=_optional(appliance.phantom.user_data),
        check=_optional(appliance.boot_check.script),
        seconds=appliance.boot_check.seconds,
    )


def _plan_cluster(policy: ClusterPolicy | None, site: str, boot: BootCheck) -> ClusterCheck | None:
    """The check of several guests on the machine of a boot check, which it follows."""
    if policy is None:
        return None
    return ClusterCheck(
        inputs=boot.inputs,
        after=(boot,),
        label=site,
        machine=boot.machine,
        report=boot.report,
        guests={
            guest.name: GuestFiles(
                count=guest.count,
                user_data=_optional(guest.user_data),
                script=_optional(guest.script),
            )
            for guest in policy.guests
        },
        phantom=policy.phantom,
        seconds=policy.seconds,
    )


def _image_tools() -> dict[str, str]:
    return {"isal": version_of("isal")}


def _version_or_none(tool: str) -> str:
    """A tool's version; empty where this host does not have it."""
    try:
        return TOOL_VERSIONS[tool]()
    except (HostError, run.ToolError):
        return ""


def _with_inputs(stage: Stage) -> Iterator[Stage]:
    for source in stage.inputs:
        yield from _with_inputs(source)
    yield stage


def _optional(path: Path | None) -> LocalFile | None:
    return None if path is None else own_file(path)
