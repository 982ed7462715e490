"""What a night lets go at its end, so that a server runs for years."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.build.prune import Line, carry_out, count_bytes, plan_prune
from pipeline.build.retire import Retired, retire_lines
from pipeline.errors import PhantomError
from pipeline.model import Appliance, Site
from pipeline.nightly.night import Kept
from pipeline.nightly.order import Order
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What was let go, and why something was not."""

    kept: tuple[Kept, ...] = ()
    warnings: tuple[str, ...] = ()


def let_go(appliances: Mapping[str, Appliance], order: Order, workspace: Workspace) -> Upkeep:
    """Removes builds as the definitions' `keep` says, from the night's sites and from this host,
    and then what the store has above its limit. Where a site does not let go of a build, or another
    command uses the store, what is concerned stays, and a warning says so."""
    warnings, kept = list[str](), list[Kept]()
    names = [name for name, each in appliances.items() if each.keep is not None]
    try:
        if names:
            kept = _prune(names, appliances, order, workspace, warnings)
        if order.store_bytes is not None:
            workspace.store.evict(order.store_bytes)
    except PhantomError as error:
        warnings.append(f"old builds and artifacts stay: {error.what}")
    return Upkeep(kept=tuple(kept), warnings=tuple(warnings))


def _prune(
    names: list[str],
    appliances: Mapping[str, Appliance],
    order: Order,
    workspace: Workspace,
    warnings: list[str],
) -> list[Kept]:
    sizes: dict[str, int] = {}

    def plan_with(sites: Sequence[Site]) -> list[Line]:
        places = {site.name for site in sites}
        starts = order.find_starts()
        return plan_prune(workspace, lambda name: appliances[name].keep, starts, names, places)

    def plan() -> list[Line]:
        lines = plan_with(())  # what a site still has keeps its build
        for line in lines:
            sizes[f"{line.appliance}/{line.build}"] = 0 if line.keep else count_bytes([line])
        return lines

    sites = order.sites if order.publish else ()
    retired = [
        *retire_lines(plan_with(sites), sites, order.phantoms, os.environ, workspace),
    ]
    for each in retired:
        if each.error is not None:
            where = f"{each.appliance}/{each.build} at {each.publication.site}"
            warnings.append(f"{where} stays: {each.error.what}")
    lines, _ = carry_out(workspace, plan)
    return [*map(_to_kept, filter(lambda each: each.error is None, retired))] + [
        Kept(
            appliance=line.appliance,
            build=line.build,
            action="kept" if line.keep else "removed",
            reason=line.reason,
            bytes=sizes[f"{line.appliance}/{line.build}"],
        )
        for line in lines
    ]


def _to_kept(retired: Retired) -> Kept:
    where = retired.publication
    return Kept(
        appliance=retired.appliance,
        build=retired.build,
        action="retired",
        reason=f"{where.image_id} at {where.site}: no rule of `keep` asks for it",
    )
