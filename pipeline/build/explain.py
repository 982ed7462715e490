"""Which stages of a plan will run, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.build.plan import Plan
from pipeline.build.reasons import Reason, describe_fields, find_differences
from pipeline.stages.base import Stage
from pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a build will do about one stage, and why."""

    stage: Stage
    action: str
    """`reuse`, `build`, or `skip` where nothing needs it."""
    reasons: tuple[Reason, ...]


def explain(plan: Plan, store: Store, before: Mapping[str, Any]) -> list[Step]:
    """What a build will do about each stage. `before` is what `describe` said of the last build."""
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
            reasons = tuple(_reasons(stage, before.get(stage.title), before))
            steps.append(Step(stage=stage, action="build", reasons=reasons))
        else:
            steps.append(Step(stage=stage, action="skip", reasons=(Reason("nothing needs it"),)))
    return steps


def find_changes(plan: Plan, before: Mapping[str, Any]) -> list[str]:
    """What changed since the build that `describe` said this of: each reason once, those of a
    stage's inputs before its own."""
    # A stage that two sites share has the title of the first.
    known = {title: told for title, told in before.items() if _is_description(told)}
    keys = {told["key"] for told in known.values()}
    changed = [stage for stage in plan.stages if stage.key not in keys]
    found: dict[str, None] = {}
    for stage in changed:
        alike = (told for title, told in known.items() if title.partition(" ")[0] == stage.name)
        told = known.get(stage.title) or next(alike, None)
        if told is None:
            found[f"{stage.title} is new"] = None
            continue
        inputs = [
            (_fields(known.get(source.title)), describe_fields(source)) for source in stage.inputs
        ]
        found |= dict.fromkeys(each.text for each in _own_differences(stage, told, inputs))
    return list(found) or ["what it is made of changed"] * bool(changed)


def describe(plan: Plan) -> dict[str, Any]:
    """What decides each stage's output, by the stage's title, as JSON can hold it."""
    return {
        stage.title: {
            "key": stage.key,
            "revision": stage.revision,
            "fields": describe_fields(stage),
            "inputs": {each.title: each.key for each in stage.inputs},
        }
        for stage in plan.stages
    }


def _reasons(
    stage: Stage, before: Any, others: Mapping[str, Any] | None = None
) -> Iterator[Reason]:
    """Why a stage will run. `before` is what was said of it, `others` of all stages."""
    if not _is_description(before):
        yield Reason("not built here before")
        return
    if before["key"] == stage.key:
        yield Reason("what was stored is gone or was changed")
        return
    told = False
    for reason in _differences(stage, before, others or {}):
        told = True
        yield reason
    if not told:
        yield Reason("what it is made of changed", f"{before['key'][:12]} -> {stage.key[:12]}")


def _differences(
    stage: Stage, before: Mapping[str, Any], others: Mapping[str, Any]
) -> Iterator[Reason]:
    inputs = [
        (_fields(others.get(source.title)), describe_fields(source)) for source in stage.inputs
    ]
    yield from _own_differences(stage, before, inputs)
    for source in stage.inputs:
        old = before["inputs"].get(source.title)
        if old is None:
            yield Reason(f"its input {source.title} is new")
        elif old != source.key:
            yield Reason(
                f"its input {source.title} changed", f"{str(old)[:12]} -> {source.key[:12]}"
            )


def _own_differences(
    stage: Stage,
    before: Mapping[str, Any],
    inputs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> Iterator[Reason]:
    """What differs in a stage itself. `inputs` are the fields of its inputs, old and new."""
    if before["revision"] != stage.revision:
        revisions = f"revision {before['revision']} -> {stage.revision}"
        yield Reason(f"this version of phantom-image makes it in another way: {revisions}")
    yield from find_differences(before["fields"], describe_fields(stage), inputs)


def _fields(description: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = description["fields"] if _is_description(description) else {}
    return fields


def _is_description(value: Any) -> bool:
    """Whether a value of a file of ours, which may be damaged, is what `describe` says of a
    stage."""
    kinds = {"key": str, "revision": int, "fields": Mapping, "inputs": Mapping}
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), kind) for name, kind in kinds.items()
    )
