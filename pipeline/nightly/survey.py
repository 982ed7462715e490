"""What a night has to do: each appliance planned, and compared with what its sites have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.build import manifest
from pipeline.build.explain import explain, find_changes
from pipeline.build.plan import Plan, Target
from pipeline.build.run import STAGES, read_stages
from pipeline.errors import (
    DiskTooSmallError,
    ImageNameError,
    KernelError,
    PhantomError,
    VolumeTooSmallError,
)
from pipeline.model import Appliance, ApplianceBuild, BaseImageSource, Sha256, Site
from pipeline.nightly.memory import Memory
from pipeline.nightly.night import Outcome, State
from pipeline.nightly.order import Order
from pipeline.stages.base import Stage
from pipeline.tools.snapshot import Snapshot
from pipeline.workspace import Workspace

_OF_SITES = (KernelError, ImageNameError, DiskTooSmallError, VolumeTooSmallError)
"""Errors of a plan that one site may have and others not."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A build that a site has."""

    build: str
    content: Mapping[str, Any]
    """Its manifest."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Why a site gets an appliance's build."""

    before: Known | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a night does about one appliance."""

    name: str
    appliance: Appliance | None = None
    plan: Plan | None = None
    """For the sites that get something; None where there is none."""
    missing: tuple[Stage, ...] = ()
    """The plan's stages that will be made."""
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    """By site."""
    outcomes: tuple[Outcome, ...] = ()
    """Of the sites that get nothing."""
    error: PhantomError | None = None
    """Why there is no plan at all."""
    base: str | None = None
    """The appliance that it is made of, where the plan waits for that."""


def find_base(appliance: Appliance) -> str | None:
    """The appliance whose latest build this one is made of."""
    source = appliance.source
    if isinstance(source, BaseImageSource) and isinstance(source.location, ApplianceBuild):
        return source.location.name if source.location.build == manifest.LATEST else None
    return None


def survey(
    appliance: Appliance,
    order: Order,
    workspace: Workspace,
    memory: Memory,
    snapshot: Snapshot,
) -> Task:
    """What a night does about an appliance. What cannot be planned is in the task, not raised."""
    try:
        plan, errors = _plan(appliance, order, snapshot)
    except PhantomError as error:
        return fail(appliance.name, order, error, appliance)
    outcomes = [
        make_failure(appliance.name, site, errors[site.name], appliance.version)
        for site in order.sites
        if site.name in errors
    ]
    wanted: dict[str, Wanted] = {}
    history = _History(workspace, appliance.name)
    makers, targets = plan.makers, []
    for target in plan.targets:
        known = history.find(target.site.name, publish=order.publish)
        reasons = _find_reasons(plan, target, known, makers, workspace)
        if memory.has_changed(appliance.name, target.site):
            reasons = [*reasons, f"sites.yaml says something else of {target.site.name}"]
        if known is not None and not reasons and not order.force:
            memory.note_site(appliance.name, target.site)
            outcomes.append(_unchanged(appliance, target.site, known))
        else:
            reasons = reasons or ["--force builds what is unchanged"]
            wanted[target.site.name] = Wanted(before=known, reasons=tuple(reasons))
            targets.append(target)
    task = Task(name=appliance.name, appliance=appliance, outcomes=tuple(outcomes), wanted=wanted)
    if not targets:
        return task
    plan = replace(plan, targets=tuple(targets))
    steps = explain(plan, workspace.store, {})
    missing = tuple(step.stage for step in steps if step.action == "build")
    return replace(task, plan=plan, missing=missing)


def fail(name: str, order: Order, error: PhantomError, appliance: Appliance | None = None) -> Task:
    """The task of an appliance that has no plan."""
    version = appliance.version if appliance else ""
    outcomes = tuple(make_failure(name, site, error, version) for site in order.sites)
    return Task(name=name, appliance=appliance, outcomes=outcomes, error=error)


def make_failure(name: str, site: Site, error: PhantomError, version: str = "") -> Outcome:
    """The outcome of an appliance that failed at a site."""
    return Outcome(
        appliance=name,
        version=version,
        site=site.name,
        cloud=site.cloud,
        state=State.FAILED,
        message=f"{error.where}: {error.what}" if error.where else error.what,
        todo=error.todo,
        error=type(error).__name__,
        exit_status=error.exit_code,
        log=None if error.log is None else str(error.log),
    )


def _plan(
    appliance: Appliance, order: Order, snapshot: Snapshot
) -> tuple[Plan, dict[str, PhantomError]]:
    """The plan for the sites that can have one, and the errors of the others by name. Raises
    PhantomError where none can."""
    try:
        return order.make_plan(appliance, order.sites, snapshot), {}
    except _OF_SITES:
        errors: dict[str, PhantomError] = {}
        for site in order.sites:
            try:
                order.make_plan(appliance, [site], snapshot)
            except _OF_SITES as error:
                errors[site.name] = error
        left = [site for site in order.sites if site.name not in errors]
        if not left or not errors:
            raise
    return order.make_plan(appliance, left, snapshot), errors


class _History:
    """The builds of an appliance, the one that counts first: where sites have builds, the one that
    was published last, and then those made later before those made earlier."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._folder = workspace.folder(name)
        self._read: dict[str, Known | None] = {}

    def find(self, site: str, *, publish: bool) -> Known | None:
        """The build that a site has; without `publish`, the last one that was made for it."""
        for build in self._builds(publish=publish):
            known = self._known(build)
            if known is not None:
                listed = known.content["publications" if publish else "images"]
                if any(each["site"] == site for each in listed):
                    return known
        return None

    def _builds(self, *, publish: bool) -> Iterator[str]:
        latest = self._folder / manifest.LATEST
        first = latest.readlink().name if publish and latest.is_symlink() else None
        if first is not None:
            yield first
        stages = self._folder.glob(f"*/{STAGES}")
        made = [path for path in stages if path.parent.name not in (manifest.LATEST, first)]
        for path in sorted(made, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            yield path.parent.name

    def _known(self, build: str) -> Known | None:
        if build not in self._read:
            content = manifest.read_manifest(self._folder, build)
            self._read[build] = None if content is None else Known(build=build, content=content)
        return self._read[build]


def _find_reasons(
    plan: Plan,
    target: Target,
    known: Known | None,
    makers: Mapping[str, object],
    workspace: Workspace,
) -> list[str]:
    """Why a site does not have what the plan makes; empty where it does."""
    if known is None:
        return [f"{target.site.name} has no build of it"]
    before = read_stages(workspace, plan.appliance.name, known.build)
    found = find_changes(replace(plan, targets=(target,)), before)
    sha256 = Sha256(known.content["root_filesystem"]["sha256"])
    if not found and manifest.build_name(plan.appliance, sha256, makers) != known.build:
        found = ["the definition says something else of the appliance or of how it is launched"]
    return found


def _unchanged(appliance: Appliance, site: Site, known: Known) -> Outcome:
    images = [each for each in known.content["images"] if each["site"] == site.name]
    published = [each for each in known.content["publications"] if each["site"] == site.name]
    return Outcome(
        appliance=appliance.name,
        version=appliance.version,
        site=site.name,
        cloud=site.cloud,
        state=State.UNCHANGED,
        build=known.build,
        before=known.build,
        because=f"unchanged since build {known.build}",
        image_id=published[0]["image_id"] if published else None,
        image_bytes=images[0]["bytes"] if images else None,
    )


def check_bases(appliances: Sequence[Appliance]) -> dict[str, list[str]]:
    """The appliances that are made of each other in a circle, by name, each with its circle."""
    bases = {each.name: find_base(each) for each in appliances}
    circles = {}
    for name in bases:
        way: list[str] = []
        at: str | None = name
        while at is not None and at not in way:
            way.append(at)
            at = bases.get(at)
        if at == name:
            circles[name] = [*way, name]
    return circles
