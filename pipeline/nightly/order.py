"""What a night is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pipeline.build.executor import Executor
from pipeline.build.plan import Plan
from pipeline.errors import DownloadError, MirrorError, SiteUnreachableError
from pipeline.model import GIB, Appliance, Site
from pipeline.phantom.named import PhantomService
from pipeline.tools.snapshot import Snapshot

STAGE_SECONDS = 7200.0
"""How long a stage may take: eight times the slowest measured, an update of a large base image's
packages without KVM."""
STORE_BYTES = 20 * GIB
"""How much of the store stays after a night, as with `phantom-image gc`."""
PAUSES = (30.0, 120.0)
"""Seconds before the second and the third try of what the network was in the way of."""

OF_THE_NETWORK = (DownloadError, MirrorError, SiteUnreachableError)
"""The errors that another try may not meet again."""

MakePlan: TypeAlias = Callable[[Appliance, Sequence[Site], Snapshot], Plan]
"""Makes an appliance's plan for some sites."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a night is asked for."""

    names: tuple[str, ...]
    """Of the appliances."""
    sites: tuple[Site, ...]
    load: Callable[[str], Appliance]
    """Loads the definition of that name. Raises PhantomError."""
    make_plan: MakePlan
    site_order: tuple[str, ...] = ()
    """All known sites, as sites.yaml has them."""
    publish: bool = True
    force: bool = False
    """Whether what is unchanged is built all the same."""
    since: float | None = None
    """Appliances that were built after that moment, in seconds since 1970, are left alone."""
    jobs: int | None = None
    """How many cores stages keep busy; None: all."""
    stage_seconds: float = STAGE_SECONDS
    store_bytes: int | None = STORE_BYTES
    """None: the store may grow."""
    pauses: tuple[float, ...] = PAUSES
    find_starts: Callable[[], Mapping[str, str]] = dict
    """Finds the builds that definitions start from, each with the definition's name."""
    phantoms: tuple[PhantomService, ...] = ()
    """Whose launch configurations let a publication stay."""
    executor: Executor | None = field(default=None, compare=False)
    """What runs the stages; None: this host."""
