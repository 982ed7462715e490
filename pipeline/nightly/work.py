"""One appliance's part of a night: its builds made and sent, tried again where the network was in
the way, and what came of each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from pipeline.build.builder import Builder
from pipeline.build.delivery import PATIENCE, Delivery
from pipeline.build.launch import find_endless_in
from pipeline.build.plan import Plan
from pipeline.build.run import check_host, write
from pipeline.checks import report
from pipeline.errors import GateError, PhantomError
from pipeline.model import Site
from pipeline.nightly.changes import describe_changes
from pipeline.nightly.memory import bytes_of
from pipeline.nightly.night import Outcome, StageTime, State
from pipeline.nightly.order import OF_THE_NETWORK, Order
from pipeline.nightly.survey import Task, Wanted, make_failure
from pipeline.stages.base import Stage
from pipeline.workspace import Workspace

ENDED = "the night was interrupted"
_FINDINGS = 10  # of the gate that a night tells one by one; the manifest has all


@dataclass(frozen=True, kw_only=True)
class _Try:
    """What one site came to."""

    delivery: Delivery
    tries: int


def work(task: Task, builder: Builder, order: Order, workspace: Workspace) -> list[Outcome]:
    """Builds an appliance and sends it to the sites that want it. Returns what came of each of
    them; errors are in there, too."""
    plan = task.plan
    assert plan is not None
    shown = workspace.progress
    workspace = replace(workspace, progress=lambda title: shown(f"{task.name} {title}"))
    try:
        check_host(plan, workspace)
    except PhantomError as error:
        return [
            replace(
                make_failure(task.name, target.site, error, plan.appliance.version),
                before=_before(task.wanted[target.site.name]),
                reasons=task.wanted[target.site.name].reasons,
            )
            for target in plan.targets
        ]
    tried = _deliver(plan, builder, order, workspace)
    content = _write(plan, tried, builder, order, workspace)
    return [_describe(task, each, builder, content) for each in tried]


def _deliver(plan: Plan, builder: Builder, order: Order, workspace: Workspace) -> list[_Try]:
    """Every site's delivery, ended."""
    ended: dict[str, _Try] = {}
    left = list(plan.targets)
    for number, pause in enumerate([*order.pauses, None], 1):
        deliveries = [
            Delivery(plan, target, builder, workspace, publish=order.publish) for target in left
        ]
        for each in deliveries:
            each.start()
        for each in deliveries:
            _join(each, builder.stopping)
            ended[each.site] = _Try(delivery=each, tries=number)
        left = [each.target for each in deliveries if isinstance(each.error, OF_THE_NETWORK)]
        if not left or pause is None or builder.stopping.wait(pause):
            break
        builder.forget_failed([leaf for target in left for leaf in target.leaves])
    return list(ended.values())


def _join(delivery: Delivery, stopping: Event) -> None:
    """Waits for a delivery; after an interrupt, for the time that it gets to close what it has
    open."""
    while delivery.is_alive() and not stopping.is_set():
        delivery.join(0.2)
    delivery.join(PATIENCE)


def _write(
    plan: Plan, tried: Sequence[_Try], builder: Builder, order: Order, workspace: Workspace
) -> dict[str, Any] | None:
    """Writes the manifest of what was built and sent, and returns it. An error is that of every
    site."""
    deliveries = [each.delivery for each in tried]
    whole = [each for each in deliveries if not each.is_alive() and each.defect is None]
    try:
        written = write(
            plan, whole, builder.results(), workspace, order.site_order, latest=order.publish
        )
    except PhantomError as error:
        for each in tried:
            each.delivery.error = each.delivery.error or error
        return None
    return None if written is None else written[1]


def _describe(task: Task, tried: _Try, builder: Builder, content: dict[str, Any] | None) -> Outcome:
    delivery, plan = tried.delivery, task.plan
    assert plan is not None
    site, wanted = delivery.target.site, task.wanted[delivery.site]
    stages = replace(plan, targets=(delivery.target,)).stages
    results = builder.results()
    built = [(stage, results[stage.key]) for stage in stages if stage.key in results]
    made = [each for _, each in built if not each.reused]
    root = results.get(plan.source.root.key)
    outcome = Outcome(
        appliance=task.name,
        version=plan.appliance.version,
        site=site.name,
        cloud=site.cloud,
        state=State.SKIPPED,
        before=_before(wanted),
        build=_before(wanted),
        reasons=wanted.reasons,
        tries=tried.tries,
        seconds=delivery.seconds,
        stages=tuple(
            StageTime(title=stage.title, reused=each.reused, seconds=each.seconds)
            for stage, each in built
        ),
        bytes_built=sum(bytes_of(each.artifact) for each in made),
        bytes_saved=sum(bytes_of(each.artifact) for _, each in built if each.reused),
        root_bytes=None if root is None else root.artifact.facts.get("bytes"),
    )
    well = not delivery.is_alive() and delivery.defect is None and delivery.error is None
    if well and content is not None and site.name in {each["site"] for each in content["images"]}:
        return _with_image(outcome, delivery, content, wanted, reused=not made)
    if builder.stopping.is_set():
        return replace(outcome, because=ENDED)
    if delivery.defect is not None:
        return _with_defect(outcome, delivery.defect)
    return _with_error(outcome, delivery, builder, stages)


def _before(wanted: Wanted) -> str | None:
    return None if wanted.before is None else wanted.before.build


def make_defect(task: Task, site: Site, defect: BaseException) -> Outcome:
    """The outcome where this program has a mistake, which must not end the night."""
    outcome = Outcome(appliance=task.name, site=site.name, cloud=site.cloud, state=State.FAILED)
    return _with_defect(outcome, defect)


def _with_defect(outcome: Outcome, defect: BaseException | None) -> Outcome:
    return replace(
        outcome,
        state=State.FAILED,
        message=f"a mistake of this program: {defect!r}",
        error=type(defect).__name__,
        exit_status=1,
    )


def _with_error(
    outcome: Outcome, delivery: Delivery, builder: Builder, stages: Sequence[Stage]
) -> Outcome:
    error = delivery.error
    assert error is not None
    failed = builder.find_failed(stages)
    told = make_failure(outcome.appliance, delivery.target.site, error)
    return replace(
        outcome,
        state=State.FAILED,
        stage=failed.title if failed is not None else None,
        message=told.message,
        todo=told.todo,
        error=told.error,
        exit_status=told.exit_status,
        log=told.log,
        warnings=_describe_findings(delivery),
    )


def _with_image(
    outcome: Outcome,
    delivery: Delivery,
    content: dict[str, Any],
    wanted: Wanted,
    *,
    reused: bool,
) -> Outcome:
    assert delivery.entry is not None
    image, build = delivery.entry.image, content["appliance"]["build"]
    state, because = (State.REUSED if reused else State.BUILT), None
    if build == outcome.before:
        state, because = State.UNCHANGED, f"unchanged since build {build}; made and checked again"
    known = wanted.before
    boots = [each.facts.get("boot_seconds") for each in delivery.entry.reports]
    return replace(
        outcome,
        state=state,
        because=because,
        build=build,
        image_id=delivery.published[0].image_id if delivery.published else None,
        image_bytes=image.bytes,
        boot_seconds=max((each for each in boots if isinstance(each, float)), default=None),
        bytes_sent=delivery.sent_bytes,
        bytes_saved=outcome.bytes_saved
        + (image.bytes if delivery.published and not delivery.sent_bytes else 0),
        changes=describe_changes(known.content, content) if known is not None else (),
        warnings=(
            *filter(None, [find_endless_in(content["phantom"])]),
            *_describe_findings(delivery),
        ),
    )


def _describe_findings(delivery: Delivery) -> tuple[str, ...]:
    """What the gate found, in lines, without what the delivery's own error tells."""
    counted = [] if delivery.verdict is None else [*delivery.verdict.counted]
    if isinstance(delivery.error, GateError):
        del counted[0]
    lines = [f"the gate: {report.say(finding)}" for finding in counted[:_FINDINGS]]
    if len(counted) > _FINDINGS:
        lines.append(f"the gate: and {len(counted) - _FINDINGS:,} more, which the manifest has")
    return tuple(lines)
