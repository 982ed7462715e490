"""What a night lets go at its end, so that a server runs for years."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.build.prune import Line, carry_out, count_bytes, plan_prune
from pipeline.errors import PhantomError
from pipeline.model import Appliance
from pipeline.nightly.night import Kept
from pipeline.nightly.order import Order
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What was let go, and why something was not."""

    kept: tuple[Kept, ...] = ()
    warnings: tuple[str, ...] = ()


def let_go(appliances: Mapping[str, Appliance], order: Order, workspace: Workspace) -> Upkeep:
    """Removes builds as the definitions' `keep` says, and then what the store has above its limit.
    Where another command uses the store, nothing goes, and a warning says so."""
    warnings, kept = [], list[Kept]()
    names = [name for name, each in appliances.items() if each.keep is not None]
    try:
        if names:
            kept = _prune(names, appliances, order, workspace)
        if order.store_bytes is not None:
            workspace.store.evict(order.store_bytes)
    except PhantomError as error:
        warnings.append(f"old builds and artifacts stay: {error.what}")
    return Upkeep(kept=tuple(kept), warnings=tuple(warnings))


def _prune(
    names: list[str], appliances: Mapping[str, Appliance], order: Order, workspace: Workspace
) -> list[Kept]:
    sizes: dict[str, int] = {}

    def plan() -> list[Line]:
        lines = plan_prune(
            workspace, lambda name: appliances[name].keep, order.find_starts(), names
        )
        for line in lines:
            sizes[f"{line.appliance}/{line.build}"] = 0 if line.keep else count_bytes([line])
        return lines

    lines, _ = carry_out(workspace, plan)
    return [
        Kept(
            appliance=line.appliance,
            build=line.build,
            action="kept" if line.keep else "removed",
            reason=line.reason,
            bytes=sizes[f"{line.appliance}/{line.build}"],
        )
        for line in lines
    ]
