"""One appliance, from its plan to its manifest: what `phantom-image image` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import customizations, records
from pipeline.build import manifest
from pipeline.build.attest import attest
from pipeline.build.builder import Builder, Built
from pipeline.build.delivery import Delivery, check_sites, raise_defects, run_side_by_side
from pipeline.build.explain import describe, explain
from pipeline.build.origin import describe_definition
from pipeline.build.plan import Plan, make_plan
from pipeline.build.release import check_files, keep_true
from pipeline.clouds import Cloud
from pipeline.errors import PhantomError
from pipeline.machine import accelerator, requirements
from pipeline.model import Appliance, ContentKey, Publication, Site
from pipeline.stages.base import read_own
from pipeline.stages.inventory import read_inventory
from pipeline.store import write_atomically
from pipeline.workspace import Workspace

STAGES = "stages.json"
_DESCRIBED = {
    "stages": {str: {"key": str, "revision": int, "fields": {str: object}, "inputs": {str: str}}}
}


@dataclass(frozen=True, kw_only=True)
class Produced:
    """The result of a build."""

    manifest_path: Path
    manifest: Mapping[str, Any]
    stages: tuple[tuple[str, bool, float], ...]
    """Title, whether it was reused, and seconds of each stage that was built or reused."""


def produce(
    appliance: Appliance,
    sites: Sequence[Site],
    workspace: Workspace,
    *,
    publish: bool,
    order: Sequence[str] = (),
) -> Produced:
    """Builds and boots an appliance's images, publishes them unless told not to, and writes the
    manifest. `order` names all known sites as sites.yaml has them, for Phantom.

    Each site's image is sent as soon as it has passed its boot checks, while others are still being
    made. A site that fails does not stop the others: the manifest names what they published, and
    then the first error is raised, with the others in it. Raises PhantomError of every kind.
    """
    accelerator.give_memory_back()
    workspace.store.sweep()
    with workspace.store.used():
        plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
        errors = check_sites([each.cloud for each in plan.targets], workspace) if publish else {}
        left = [each for each in plan.targets if each.site.name not in errors]
        if not left:
            raise join_errors([errors[site.name] for site in sites])
        plan = replace(plan, targets=tuple(left))
        check_host(plan, workspace)
        with Builder(workspace.store, workspace.progress, workspace.failed) as builder:
            deliveries = [
                Delivery(plan, target, builder, workspace, publish=publish) for target in left
            ]
            try:
                run_side_by_side(deliveries, builder)
            finally:  # the manifest names what was published, whatever ended the others
                whole = [each for each in deliveries if not each.is_alive() and not each.defect]
                written = write(plan, whole, builder.results(), workspace, order, latest=publish)
    errors |= {each.site: each.error for each in deliveries if each.error is not None}
    raise_defects(deliveries)
    if errors or written is None:
        raise join_errors([errors[site.name] for site in sites if site.name in errors], written)
    path, content = written
    results = builder.results()
    return Produced(
        manifest_path=path,
        manifest=content,
        stages=tuple(
            (stage.title, results[stage.key].reused, results[stage.key].seconds)
            for stage in plan.stages
            if stage.key in results
        ),
    )


Written = tuple[Path, dict[str, Any]]
"""A manifest's path and content."""


def write(
    plan: Plan,
    deliveries: Sequence[Delivery],
    built: Mapping[ContentKey, Built],
    workspace: Workspace,
    order: Sequence[str],
    *,
    latest: bool,
) -> Written | None:
    """Writes the manifest of what was built and published; None where nothing was. With `latest`,
    others find a published build as the latest one."""
    entries = [each.entry for each in deliveries if each.entry is not None]
    if not entries:
        return None
    root_sha256 = entries[0].root_sha256
    build = manifest.build_name(plan.appliance, root_sha256, plan.makers)
    folder = workspace.folder(plan.appliance.name)
    sites = {each.site for each in deliveries if each.entry is not None}
    clouds = [target.cloud for target in plan.targets if target.site.name in sites]
    sized = [(cloud, instance_type(plan.appliance, cloud)) for cloud in clouds]
    published = [publication for each in deliveries for publication in each.published]
    contents = plan.targets[0].contents
    described = None if contents is None else built[contents.key].artifact
    with workspace.manifests(plan.appliance.name), workspace.errors():
        check_files(folder / build, entries)
        before = manifest.read_manifest(folder, build)
        if before is not None:
            known = manifest.publications_of(before)
            published += [each for each in known if each.site not in sites]
            before["images"] = keep_true(folder / build, before["images"], entries)
        script = plan.appliance.phantom.user_data
        inputs = {
            "definition": describe_definition(plan.appliance),
            "customizations": customizations.describe(plan.appliance.customizations),
            **plan.source.describe_inputs(described),
            **({"python": entries[0].python} if entries[0].python else {}),
        }
        inventory = read_inventory(built[plan.targets[0].inventory.key].artifact)
        written = manifest.make_manifest(
            appliance=plan.appliance,
            build=build,
            inputs=inputs,
            root_sha256=root_sha256,
            images=entries,
            publications=published,
            checks=next((each.verdict.describe() for each in deliveries if each.verdict), None),
            launch=describe_launch(sized),
            templates=make_templates(
                sized, published, None if script is None else read_own(script)
            ),
            order=order,
            before=before,
        )
        written = attest(folder / build, written, inventory, workspace)
        path = manifest.write_manifest(folder, written, latest=latest, sign=workspace.sign)
        stages = describe(plan)
        _write_stages(folder, stages)
        add_stages(path.parent, stages)
    return path, written


def add_stages(folder: Path, stages: Mapping[str, Any]) -> None:
    """Notes in a build's folder what `describe` said of its stages, beside those of the runs that
    made the build for other sites."""
    _write_stages(folder, {**_read_stages(folder), **stages})


def _write_stages(folder: Path, stages: Mapping[str, Any]) -> None:
    write_atomically(folder / STAGES, json.dumps(records.seal({"stages": stages})) + "\n")


def _read_stages(folder: Path) -> dict[str, Any]:
    told = records.read(folder / STAGES, _DESCRIBED, sealed=True)
    return {} if told is None else dict(told["stages"])


def join_errors(errors: Sequence[PhantomError], written: Written | None = None) -> PhantomError:
    """The first error, with the others and what was published in its detail. Sites that share a
    stage share its error."""
    first, *others = dict.fromkeys(errors)
    lines = [*filter(None, [first.detail]), *(f"also: {error}" for error in others)]
    if written is not None and (published := written[1]["publications"]):
        lines += [f"published at {each['site']} as {each['image_id']}" for each in published]
        lines.append(f"manifest {written[0]}")
    first.detail = "\n".join(lines) or None
    return first


def check_host(plan: Plan, workspace: Workspace) -> None:
    """Checks, before anything is built, that the host has what the stages that will run need.

    Raises HostError, SudoError, NoSpaceError.
    """
    steps = explain(plan, workspace.store, {})
    stages = [step.stage for step in steps if step.action == "build"]
    requirements.require(sorted({need for stage in stages for need in stage.requires}))
    for stage in stages:
        stage.check_host(workspace.store)


def read_stages(workspace: Workspace, appliance: str, build: str = "") -> dict[str, Any]:
    """What `describe` said of the appliance's last build, or of the `build` of that name; empty
    where nothing is known of it."""
    return _read_stages(workspace.folder(appliance) / build)


def instance_type(appliance: Appliance, cloud: Cloud) -> str:
    """The instance type that Phantom starts at a site."""
    return appliance.phantom.instance_type.get(cloud.site.cloud, cloud.default_instance_type)


def describe_launch(sized: Sequence[tuple[Cloud, str]]) -> dict[str, dict[str, object]]:
    """What Phantom needs besides images, by site. `sized` has the sites, each with its instance
    type."""
    return {
        cloud.site.name: {"instance_type": size, "common": cloud.common} for cloud, size in sized
    }


def make_templates(
    sized: Sequence[tuple[Cloud, str]], published: Sequence[Publication], user_data: bytes | None
) -> Iterator[dict[str, Any]]:
    """What starts the published images without Phantom. `sized` has the sites, each with its
    instance type."""
    for cloud, size in sized:
        for publication in published:
            if publication.site == cloud.site.name:
                data = cloud.launch_data(publication, size, user_data)
                if data is not None:
                    yield {"site": publication.site, "region": publication.region, "data": data}
