"""What will become of each stage of a plan, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.plan import Plan
from pipeline.stages.base import Stage
from pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class Step:
    """What will become of one stage, and why."""

    stage: Stage
    action: str
    """`reuse`, `build`, or `skip` where nothing needs it."""
    reasons: tuple[str, ...]


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
