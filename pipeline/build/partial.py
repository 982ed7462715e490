"""Some stages of a plan, with what they need: for whoever works on one step of an appliance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.build.builder import Builder, Built
from pipeline.build.gate import judge
from pipeline.build.plan import Plan, make_plan
from pipeline.definitions.messages import choose, suggest
from pipeline.errors import UsageError
from pipeline.machine import accelerator, requirements
from pipeline.model import Appliance, Site
from pipeline.stages.base import Stage
from pipeline.stages.gate import CheckContents
from pipeline.store import Store
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some stages of a plan, built."""

    ends: tuple[tuple[Stage, Built], ...]
    """The stages that were asked for."""
    stages: tuple[tuple[str, bool, float], ...]
    """Title, whether it was reused, and seconds of each stage that was built or reused."""
    checks: Mapping[str, Any] | None
    """What the gate found, as the manifest has it; None where it did not look."""


def build_part(
    appliance: Appliance,
    sites: Sequence[Site],
    workspace: Workspace,
    choose_ends: Callable[[Plan], Sequence[Stage]],
) -> Part:
    """Builds the stages that `choose_ends` takes of the plan, and those that they need. All stay in
    the store, and a whole build reuses them; nothing is written elsewhere. Raises what building
    raises."""
    accelerator.give_memory_back()
    workspace.store.sweep()
    with workspace.store.used():
        plan = make_plan(appliance, sites, workspace.store, builds=workspace.build)
        ends = choose_ends(plan)
        builder = build_stages(ends, workspace)
        results = builder.results()
        built = [results[stage.key] for stage in ends]
    return Part(
        ends=tuple(zip(ends, built, strict=True)),
        stages=tuple(
            (stage.title, results[stage.key].reused, results[stage.key].seconds)
            for stage in plan.stages
            if stage.key in results
        ),
        checks=_find_checks(appliance, ends, built),
    )


def _find_checks(
    appliance: Appliance, stages: Sequence[Stage], built: Sequence[Built]
) -> Mapping[str, Any] | None:
    for stage, each in zip(stages, built, strict=True):
        if isinstance(stage, CheckContents):
            return judge(appliance, each.artifact.facts).describe()
    return None


def build_stages(stages: Sequence[Stage], workspace: Workspace) -> Builder:
    """Builds stages and what they need, after a look at the host. Raises HostError, SudoError,
    NoSpaceError, and what building raises."""
    for stage in (missing := find_missing(stages, workspace.store)):
        stage.check_host(workspace.store)
    requirements.require(sorted({need for stage in missing for need in stage.requires}))
    builder = Builder(workspace.store, workspace.progress, workspace.failed)
    builder.build(stages)
    return builder


def stages_called(plan: Plan, word: str) -> list[Stage]:
    """The stages of that name, of all sites, or the one of that title. Raises UsageError."""
    found = [stage for stage in plan.stages if word in (stage.name, stage.title)]
    if not found:
        names = list(dict.fromkeys(stage.name for stage in plan.stages))
        raise UsageError(
            f"{plan.appliance.name} has no stage {word!r}{suggest(word, names)}",
            todo=choose(names, "`phantom-image plan` lists the stages"),
        )
    return found


def stages_without_boot(plan: Plan) -> list[Stage]:
    """What is made of the images before they are booted."""
    leaves = [stage for each in plan.targets for stage in each.leaves if stage not in each.checks]
    return list({stage.key: stage for stage in leaves}.values())


def find_missing(stages: Sequence[Stage], store: Store) -> list[Stage]:
    """The stages that have to run until these stages' artifacts are there, in their order."""
    missing: dict[str, Stage] = {}
    for stage in stages:
        if store.find(stage.name, stage.key) is None:
            before = find_missing((*stage.after, *stage.inputs), store)
            missing.update({each.key: each for each in (*before, stage)})
    return list(missing.values())
