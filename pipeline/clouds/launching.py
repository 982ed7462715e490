"""Machines that a cloud starts by its own means, without Phantom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class LaunchOrder:
    """Machines that are to start."""

    appliance: str
    version: str
    build: str
    region: str
    data: Mapping[str, object]
    """What the manifest has under `launch_templates`."""
    count: int
    options: Mapping[str, object] = field(default_factory=dict)
    """What the launch adds to it, in the cloud's terms."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A machine that was started."""

    id: str
    state: str
    """In the cloud's words."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launch has done, or with a dry run would do."""

    template: str
    """The name of the launch template."""
    action: str
    """What is done about it: `create`, `change` or `reuse`."""
    machines: Sequence[Started] = ()
