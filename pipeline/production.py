"""One appliance, from its plan to its manifest: what `phantom-image image` does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import host, manifest
from pipeline.build import Builder, Built
from pipeline.clouds import Cloud, clouds
from pipeline.delivery import Delivery, run_side_by_side
from pipeline.errors import PhantomError
from pipeline.manifest import LaunchTemplate
from pipeline.model import (
    Appliance,
    ContentKey,
    Leftover,
    Publication,
    Site,
)
from pipeline.plan import Plan, Target, describe_inputs, make_plan
from pipeline.publish import check_site
from pipeline.reasons import describe, explain
from pipeline.sources.scratch import ScratchRoot
from pipeline.store import write_atomically
from pipeline.tools import dib, namespace
from pipeline.workspace import Workspace

_STAGES = "stages.json"


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

    A site's image is sent as soon as it passed its boot checks, while others are still made. A site
    that fails does not stop the others: the manifest tells of those, and then the first error is
    raised, with the others in it. Raises PhantomError of every kind.
    """
    host.give_memory_back()
    workspace.store.sweep()
    with workspace.store.used():
        plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
        errors = _check_sites(plan, workspace) if publish else {}
        left = [each for each in plan.targets if each.site.name not in errors]
        if not left:
            raise _all_of([errors[site.name] for site in sites])
        plan = replace(plan, targets=tuple(left))
        check_host(plan, workspace)
        with Builder(workspace.store, workspace.progress) as builder:
            deliveries = [Delivery(plan, each, builder, workspace, publish) for each in left]
            try:
                run_side_by_side(deliveries, builder)
            finally:  # what was published is told of, whatever ended the others
                whole = [each for each in deliveries if each.ended and each.defect is None]
                written = _write(plan, whole, builder.results(), workspace)
    errors |= {each.site: each.error for each in deliveries if each.error is not None}
    for defect in filter(None, (each.defect for each in deliveries)):
        raise defect
    if errors or written is None:
        raise _all_of([errors[site.name] for site in sites if site.name in errors], written)
    return Produced(
        appliance=appliance.name,
        build=written.content["appliance"]["build"],
        manifest_path=written.path,
        manifest=written.content,
        stages=_told_stages(plan, builder.results()),
    )


def _check_sites(plan: Plan, workspace: Workspace) -> dict[str, PhantomError]:
    """Asks every site, before anything is built, whether it will take its image; what is wrong, by
    site, is told at once, since the others go on."""
    errors: dict[str, PhantomError] = {}
    defects: list[Exception] = []

    def check(target: Target) -> None:
        name = target.site.name
        try:
            check_site(target.cloud, workspace.site_folder(name))
        except PhantomError as error:
            errors[name] = error
        except Exception as defect:  # noqa: BLE001 # the main thread raises it
            defects.append(defect)

    # Threads that end with the process: an interrupt need not wait for a network that is gone.
    threads = [threading.Thread(target=check, args=(each,), daemon=True) for each in plan.targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for defect in defects:
        raise defect
    if len(errors) < len(plan.targets):
        for name, error in errors.items():
            workspace.progress(f"publish {name}").step(f"left out: {error.what}")
    return errors


@dataclass(frozen=True, kw_only=True)
class _Written:
    path: Path
    content: dict[str, Any]


def _write(
    plan: Plan,
    deliveries: Sequence[Delivery],
    built: Mapping[ContentKey, Built],
    workspace: Workspace,
) -> _Written | None:
    """Writes the manifest of what was built and published; None where nothing was."""
    entries = [each.entry for each in deliveries if each.entry is not None]
    if not entries:
        return None
    root_sha256 = entries[0].root_sha256
    build = manifest.build_name(plan.appliance, root_sha256, plan.makers)
    folder = workspace.folder(plan.appliance.name)
    sites = {each.site for each in deliveries if each.entry is not None}
    targets = [target for target in plan.targets if target.site.name in sites]
    published = [publication for each in deliveries for publication in each.published]
    with workspace.manifests(plan.appliance.name), workspace.errors():
        before = manifest.read_manifest(folder, build)
        if before is not None:
            known = manifest.publications_of(before)
            published += [each for each in known if each.site not in sites]
        written = manifest.make_manifest(
            appliance=plan.appliance,
            build=build,
            inputs=describe_inputs(plan, built),
            root_sha256=root_sha256,
            images=entries,
            publications=published,
            launch={target.site.name: _launch(plan.appliance, target) for target in targets},
            templates=[
                each for target in targets for each in _templates(plan.appliance, target, published)
            ],
        )
        if before is not None:
            written = manifest.keep_other_sites(written, before)
        path = manifest.write_manifest(folder, written)
        write_atomically(folder / _STAGES, json.dumps(describe(plan)) + "\n")
    return _Written(path=path, content=written)


def _told_stages(
    plan: Plan, built: Mapping[ContentKey, Built]
) -> tuple[tuple[str, bool, float], ...]:
    return tuple(
        (stage.title, built[stage.key].reused, built[stage.key].seconds)
        for stage in plan.stages
        if stage.key in built
    )


def _all_of(errors: Sequence[PhantomError], written: _Written | None = None) -> PhantomError:
    """The first error, with what the others say and what was done all the same. Sites that share a
    stage share its error."""
    first, *others = dict.fromkeys(errors)
    lines = [*filter(None, [first.detail]), *(f"also: {error}" for error in others)]
    published = written.content["publications"] if written is not None else []
    lines += [f"published at {each['site']} as {each['image_id']}" for each in published]
    if written is not None and published:
        lines.append(f"manifest {written.path}")
    first.detail = "\n".join(lines) or None
    return first


def check_host(plan: Plan, workspace: Workspace) -> None:
    """Looks, before anything is built, for what the stages to be run need of the host.

    Raises HostError, SudoError, NoSpaceError.
    """
    steps = explain(plan, workspace.store, {})
    building = {step.stage.name for step in steps if step.action == "build"}
    needs = {each for step in steps if step.action == "build" for each in step.stage.requires}
    host.require(sorted(needs))
    if isinstance(plan.root, ScratchRoot) and plan.root.name in building:
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
    name = found["appliance"]["name"]
    folder = workspace.folder(name)
    for site in sites:
        cloud = clouds()[site.cloud](site)
        mine = [each for each in manifest.publications_of(found) if each.site == site.name]
        if not mine:
            continue
        with opened(cloud, workspace):
            for publication in mine:
                cloud.retire(publication)
                with workspace.manifests(name):  # another command may have written to it meanwhile
                    found = manifest.read_manifest(folder, found["appliance"]["build"]) or found
                    found = manifest.without(found, publication)
                    manifest.write_manifest(folder, found, latest=False)
                retired.append(publication)
    return retired


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What a crash left, and what became of it."""

    leftover: Leftover
    removed: bool
    error: PhantomError | None = None
    """Why it could not be removed."""


def clean(
    sites: Sequence[Site], workspace: Workspace, *, hours: float, remove: bool
) -> list[Cleaned]:
    """What crashes left at these sites: removed only if told to, and only what is older than so
    many hours, since younger things may be at work. Raises what looking for them raises.
    """
    found = []
    for site in sites:
        cloud = clouds()[site.cloud](site)
        with opened(cloud, workspace):
            for each in cloud.find_leftovers():
                age = datetime.now(UTC) - datetime.fromisoformat(each.since)
                if remove and age >= timedelta(hours=hours):
                    found.append(_remove(cloud, each))
                else:
                    found.append(Cleaned(leftover=each, removed=False))
    return found


def _remove(cloud: Cloud, leftover: Leftover) -> Cleaned:
    try:
        cloud.remove_leftover(leftover)
    except PhantomError as error:
        error.located(f"site {leftover.site}")
        return Cleaned(leftover=leftover, removed=False, error=error)
    return Cleaned(leftover=leftover, removed=True)


@contextmanager
def opened(cloud: Cloud, workspace: Workspace) -> Iterator[None]:
    """A site ready for its verbs, that no other command of this host changes meanwhile."""
    name = cloud.site.name
    with workspace.store.lock(f"site-{name}"), cloud.open(workspace.site_folder(name)):
        yield


def read_stages(workspace: Workspace, appliance: str) -> dict[str, Any]:
    """What decided the stages of the appliance's last build, as `describe` tells it."""
    try:
        read = json.loads((workspace.folder(appliance) / _STAGES).read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _launch(appliance: Appliance, target: Target) -> dict[str, object]:
    return {"instance_type": _instance_type(appliance, target), "common": target.cloud.common}


def _instance_type(appliance: Appliance, target: Target) -> str:
    chosen = appliance.phantom.instance_type
    return chosen.get(target.site.cloud, target.cloud.default_instance_type)


def _templates(
    appliance: Appliance, target: Target, published: Sequence[Publication]
) -> Iterator[LaunchTemplate]:
    script = appliance.phantom.user_data
    user_data = None if script is None else script.read_bytes()
    for each in published:
        if each.site != target.site.name:
            continue
        data = target.cloud.launch_data(each, _instance_type(appliance, target), user_data)
        if data is not None:
            yield LaunchTemplate(site=each.site, region=each.region, data=data)
