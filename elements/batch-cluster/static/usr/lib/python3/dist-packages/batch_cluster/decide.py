"""What is to happen, by what Slurm and Phantom say of the workers: functions of values alone.

Slurm decides which workers are to run. Each worker is a domain of one machine at Phantom, so
Phantom replaces a machine that dies by one with the same name, and letting a worker go ends its
machine and no other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from batch_cluster.settings import Cluster

HOUR = 3600.0
MARGIN = 240.0
"""Seconds before the end of a paid hour in which an idle worker is let go: several looks fit in."""
MARK = "batch-cluster:"
"""What our reasons in Slurm begin with, so that an administrator's are told from them."""
REBOOTED = "Node unexpectedly rebooted"
"""Slurm's reason for a node that comes back on another machine."""
LATE = "ResumeTimeout reached"
"""Slurm's reason for a node that did not come in time."""
_OFF = {"POWERED_DOWN", "POWERING_DOWN"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A worker as Slurm sees it."""

    name: str
    states: frozenset[str]
    """Such as IDLE, CLOUD, POWERED_DOWN."""
    reason: str = ""
    since: float = 0.0
    """When the reason was given, in seconds since 1970."""

    @property
    def is_wanted(self) -> bool:
        """Whether Slurm wants a machine for it, or uses one."""
        return "POWERING_UP" in self.states or not self.states & _OFF

    @property
    def is_late(self) -> bool:
        """Whether it did not come in time; it stays DOWN until somebody says otherwise."""
        return "DOWN" in self.states and not self.is_wanted and self.reason.startswith(LATE)

    @property
    def is_idle(self) -> bool:
        """Whether it is up and has no job. Slurm too lets a drained worker go that has none."""
        return self.states - {"DRAIN"} == {"IDLE", "CLOUD"}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A worker's machine."""

    machine: str
    """Its id at Phantom; empty until there is one."""
    since: float
    """When it was first seen; at most one look after it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What has to be known from one look to the next. Without it nothing breaks: hours count from
    now, and sites get another chance."""

    looked: float = 0.0
    machines: Mapping[str, Kept] = field(default_factory=dict)
    out: Mapping[str, float] = field(default_factory=dict)
    """The sites that are left out, and until when."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of workers' state that Slurm is asked for."""

    nodes: tuple[str, ...]
    state: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done at Phantom and in Slurm, and the memory afterwards."""

    start: tuple[str, ...]
    """Workers that get a domain."""
    stop: tuple[str, ...]
    """Domains that go."""
    changes: tuple[Change, ...]
    memory: Memory


def decide(
    cluster: Cluster,
    nodes: Sequence[Node],
    domains: Mapping[str, str] | None,
    memory: Memory,
    now: float,
) -> Plan:
    """What is to happen. `domains` are those at Phantom, each with the id of its machine, which is
    empty where it has none; None where Phantom is away."""
    # Where Phantom was away, no machine was asked for, and the site is not to blame.
    blamed = [node.name for node in nodes if node.is_late and node.name in memory.machines]
    lost = find_lost(cluster, nodes, now)
    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    ending: tuple[str, ...] = ()
    if domains is not None:
        wanted = [node.name for node in nodes if node.is_wanted and node.name not in lost]
        start = tuple(node for node in wanted if cluster.domain_of(node) not in domains)
        stop = find_needless(cluster, wanted, domains)
        memory = note_machines(cluster, wanted, domains, memory, now)
        ending = find_ending_hours(cluster, nodes, memory, now)
    memory = take_out(cluster, memory, [*blamed, *lost], now)
    changes = (
        Change(nodes=(*lost, *ending), state="POWER_DOWN"),
        Change(nodes=find_returned(nodes), state="RESUME"),
        *bar_sites(cluster, nodes, memory, now),
    )
    used = tuple(change for change in changes if change.nodes)
    return Plan(start=start, stop=stop, changes=used, memory=memory)


def find_needless(
    cluster: Cluster, wanted: Collection[str], domains: Collection[str]
) -> tuple[str, ...]:
    """The cluster's domains whose worker Slurm does not want or does not know."""
    found = ((domain, cluster.node_of(domain)) for domain in domains)
    return tuple(domain for domain, node in found if node is not None and node not in wanted)


def find_returned(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Workers that came back on another machine, and wait for someone to say that this is well."""
    return tuple(
        node.name
        for node in nodes
        if "DOWN" in node.states and node.is_wanted and node.reason.startswith(REBOOTED)
    )


def find_lost(cluster: Cluster, nodes: Sequence[Node], now: float) -> tuple[str, ...]:
    """Workers whose machine died and for which Phantom has brought no other in the time that a
    worker may take."""
    return tuple(
        node.name
        for node in nodes
        if {"DOWN", "NOT_RESPONDING"} <= node.states
        and node.is_wanted
        and "POWERING_UP" not in node.states
        and now - node.since > cluster.resume
    )


def find_ending_hours(
    cluster: Cluster, nodes: Sequence[Node], memory: Memory, now: float
) -> tuple[str, ...]:
    """Idle workers whose paid hour is nearly over."""
    ending = []
    for node in nodes:
        site, kept = cluster.find_site(node.name), memory.machines.get(node.name)
        if site is None or kept is None or not site.by_hour or not node.is_idle:
            continue
        if HOUR - (now - kept.since) % HOUR <= MARGIN:
            ending.append(node.name)
    return tuple(ending)


def note_machines(
    cluster: Cluster,
    wanted: Sequence[str],
    domains: Mapping[str, str],
    memory: Memory,
    now: float,
) -> Memory:
    """The memory with the machines that there are now."""
    machines: dict[str, Kept] = {}
    for node in wanted:
        machine, kept = domains.get(cluster.domain_of(node)), memory.machines.get(node)
        if machine is None:
            continue
        if kept is None:
            kept = Kept(machine=machine, since=now)
        elif kept.machine and kept.machine != machine:  # it died since the last look
            kept = Kept(machine=machine, since=memory.looked)
        machines[node] = replace(kept, machine=machine)
    return replace(memory, looked=now, machines=machines)


def take_out(cluster: Cluster, memory: Memory, failed: Collection[str], now: float) -> Memory:
    """The memory in which the sites of workers that failed are out for a while."""
    sites = {site.name for node in failed if (site := cluster.find_site(node))}
    still = {site: until for site, until in memory.out.items() if until > now}
    return replace(memory, out=still | dict.fromkeys(sites, now + cluster.pause))


def bar_sites(
    cluster: Cluster, nodes: Sequence[Node], memory: Memory, now: float
) -> tuple[Change, ...]:
    """Drains workers without a machine at the sites that are out, since Slurm by itself tries such
    a site again for each job; and undrains those of sites that get another chance."""
    drain, undrain = [], []
    for node in nodes:
        site = cluster.find_site(node.name)
        out = site is not None and memory.out.get(site.name, 0.0) > now
        barred = "DRAIN" in node.states and node.reason.startswith(MARK)
        if out and not node.is_wanted and "DRAIN" not in node.states:
            drain.append(node.name)
        elif not out and (barred or node.is_late):
            undrain.append(node.name)
    return (
        Change(nodes=tuple(drain), state="DRAIN", reason=f"{MARK} the site's machines do not come"),
        Change(nodes=tuple(undrain), state="RESUME"),
    )
