"""A build made once more in an empty store from what its manifest names, and compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.build.compare import find_root, opened_file
from pipeline.build.explain import find_changes
from pipeline.build.origin import describe_definition
from pipeline.build.partial import build_stages, stages_without_boot
from pipeline.build.plan import Plan, Target, make_plan
from pipeline.build.release import Artifacts, find_root_sha256, make_image
from pipeline.build.run import read_stages
from pipeline.disk.ext4_reader import Reader
from pipeline.disk.tree_diff import Entry, compare_trees
from pipeline.errors import InputsDifferError
from pipeline.machine import accelerator
from pipeline.model import Appliance, Package, Site
from pipeline.sources.scratch import ROOT
from pipeline.store import Store
from pipeline.tools import diffoscope
from pipeline.tools.apt_pins import Pins
from pipeline.tools.namespace import remove_tree
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Digest:
    """One digest of the manifest, and what was made."""

    what: str
    """`root file system`, `disk` or `image`."""
    site: str | None
    """Whose disk or image; None for the root file system."""
    expected: str
    found: str

    @property
    def same(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A file that differs."""

    path: str
    """Absolute, in the image."""
    how: tuple[str, ...]
    """Lines."""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of it."""

    digests: tuple[Digest, ...]
    difference: Difference | None = None
    """The first one, where the root file systems differ and the old one is there."""
    reasons: tuple[str, ...] = ()
    """What else than the inputs is not as it was: versions of programs, for example."""

    @property
    def same(self) -> bool:
        """Whether every byte is the same."""
        return all(digest.same for digest in self.digests)


def reproduce(
    content: Mapping[str, Any], appliance: Appliance, sites: Sequence[Site], workspace: Workspace
) -> Reproduction:
    """Builds the images of a manifest for these of its sites, without booting them.

    Raises InputsDifferError, UnknownPackageError where the archive lacks packages, and what
    planning and building raise.
    """
    _check_definition(content, appliance)
    accelerator.give_memory_back()
    workspace.store.sweep()
    with workspace.store.used(), workspace.store.temporary("reproduce") as folder:
        empty = replace(workspace, store=Store(folder / "store", remove_tree))
        with empty.store.used():
            pins = _read_pins(content)
            plan = make_plan(appliance, sites, empty.store, builds=workspace.build, pins=pins)
            if not plan.source.from_base_image:
                _check_elements(content, plan)
            contents = [each.contents for each in plan.targets if each.contents is not None]
            builder = build_stages([*stages_without_boot(plan), *contents], empty)
            made = {key: built.artifact for key, built in builder.results().items()}
            digests = tuple(_compare(content, plan.targets, made))
            if all(digest.same for digest in digests):
                return Reproduction(digests=digests)
            name, build = content["appliance"]["name"], content["appliance"]["build"]
            before = read_stages(workspace, name, build)
            old = find_root(name, content, workspace)
            difference = None
            if old is not None and not digests[0].same:
                root = made[plan.source.root.key].file(ROOT)
                difference = _first_difference(old, root, empty, folder)
            return Reproduction(
                digests=digests,
                difference=difference,
                reasons=tuple(find_changes(plan, before)),
            )


# ---- the inputs


def _check_definition(content: Mapping[str, Any], appliance: Appliance) -> None:
    """Raises InputsDifferError where the definition is not the manifest's."""
    told, now = content["inputs"]["definition"], describe_definition(appliance)
    if told["digest"] in (None, now["digest"]):
        return
    at = "" if told["commit"] is None else f" of commit {told['commit'][:12]}"
    todo = (
        "take the definition that the build was made from"
        if told["commit"] is None or told["dirty"]
        else f"`git checkout {told['commit'][:12]}`, and run the same command there"
    )
    raise InputsDifferError(
        f"the definition is not the one{at} that {_name(content)} was made from",
        where=str(appliance.positions.file or appliance.definition),
        todo=todo,
    )


def _check_elements(content: Mapping[str, Any], plan: Plan) -> None:
    """Raises InputsDifferError where an element is not the manifest's."""
    told = {each["name"]: each["digest"] for each in content["inputs"]["elements"]}
    now = {each["name"]: each["digest"] for each in plan.source.describe_inputs(None)["elements"]}
    others = sorted(name for name in told.keys() | now.keys() if told.get(name) != now.get(name))
    if others:
        raise InputsDifferError(
            f"elements are not those that {_name(content)} was made from: {', '.join(others)}",
            todo="take the commit of the elements that the build was made from",
        )


def _read_pins(content: Mapping[str, Any]) -> Pins | None:
    """The packages of a root file system from scratch; those of others are in the base image, or as
    its own package manager finds them."""
    inputs = content["inputs"]
    if "scratch" not in inputs["source"]:
        return None
    return Pins(
        packages=tuple(Package(**package) for package in inputs["packages"]),
        left_out=tuple(inputs.get("left_out_packages", ())),
    )


def _name(content: Mapping[str, Any]) -> str:
    return f"{content['appliance']['name']}/{content['appliance']['build']}"


# ---- what was made


def _compare(
    content: Mapping[str, Any], targets: Sequence[Target], made: Artifacts
) -> Iterator[Digest]:
    root = content["root_filesystem"]["sha256"]
    found = find_root_sha256(targets[0], made)
    yield Digest(what="root file system", site=None, expected=root, found=found)
    images = {image["site"]: image for image in content["images"]}
    for target in targets:
        told, image = images[target.site.name], make_image(target, made)
        site = target.site.name
        yield Digest(what="disk", site=site, expected=told["disk_sha256"], found=image.disk_sha256)
        if told["sha256"] != told["disk_sha256"]:
            yield Digest(what="image", site=site, expected=told["sha256"], found=image.sha256)


def _first_difference(
    before: Path, now: Path, workspace: Workspace, folder: Path
) -> Difference | None:
    """The first file that differs between two root file systems; None where only times or the
    places of blocks do. `folder` has room for it."""
    progress = workspace.progress("reproduce")
    progress.step("looking for the first file that differs")
    with opened_file(before, workspace.store, progress) as old, Reader(now) as new:
        change = next(compare_trees(old, new), None)
        found = None if change is None else Difference(path=change.path, how=())
        if change is not None and change.content:
            files = folder / "before", folder / "now"
            for reader, file in zip((old, new), files, strict=True):
                _extract(reader, change.path, file)
            found = Difference(path=change.path, how=tuple(diffoscope.compare(*files, folder)))
        elif change is not None:
            sides = (("before", change.old), ("now", change.new))
            how = tuple(f"{when}: {_describe(entry)}" for when, entry in sides)
            found = Difference(path=change.path, how=how)
    progress.finish("compared")
    return found


def _describe(entry: Entry | None) -> str:
    if entry is None:
        return "not there"
    target = "" if entry.target is None else f" to {entry.target}"
    return f"{entry.kind} {entry.mode:04o} {entry.uid}:{entry.gid}, {entry.size} bytes{target}"


def _extract(reader: Reader, path: str, target: Path) -> None:
    inode = reader.find(path.lstrip("/"))
    with target.open("wb") as file:
        for part in reader.content(inode) if inode is not None else ():
            file.write(part)


def find_sites(content: Mapping[str, Any], known: Sequence[Site]) -> tuple[Site, ...]:
    """The known sites that a manifest has images of. Raises InputsDifferError without any."""
    named = {image["site"] for image in content["images"]}
    found = tuple(site for site in known if site.name in named)
    if not found:
        raise InputsDifferError(
            f"none of the sites of {_name(content)} is known here: {', '.join(sorted(named))}",
            todo="let --sites name the file that describes them",
        )
    return found
