"""One look at Slurm and Phantom, and what follows from it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from phantom_client import AwayError, CredentialsError, Phantom, PhantomError, RefusedError

from batch_cluster import slurm
from batch_cluster.decide import Change, Kept, Memory, Plan, bar_sites, decide, take_out
from batch_cluster.settings import Cluster, make_user_data

STATE = Path("/var/lib/batch-cluster")
_ASKED, _MEMORY = "asked", "memory.json"


def tend(cluster: Cluster, phantom: Phantom, state: Path = STATE) -> int:
    """Looks once. Returns the exit status: 0, or 75 where something has to be tried again. Raises
    SlurmError where Slurm does not answer."""
    # Who asks for a look after this leaves a new file, and so is heard.
    for file in (state / _ASKED).iterdir():
        file.unlink()
    memory = _read_memory(state / _MEMORY)
    nodes = slurm.list_nodes()
    now = time.time()
    status = 0
    domains: dict[str, str] | None = None
    try:
        domains = {
            domain.name: domain.machines[0].id if domain.machines else ""
            for domain in phantom.list_domains()
        }
    except PhantomError as error:
        status = _tell(f"{error}; the next look tries again")
    plan = decide(cluster, nodes, domains, memory, now)
    refused, trouble = _drive(cluster, phantom, plan)
    memory = take_out(cluster, plan.memory, refused, now)
    _write_memory(state / _MEMORY, memory)
    # Their jobs go back to the queue at once, and not only after the time that a worker may take.
    changes = [*plan.changes, Change(nodes=tuple(refused), state="POWER_DOWN_FORCE")]
    for change in [*changes, *bar_sites(cluster, nodes, memory, now)] if refused else changes:
        if change.nodes:
            status = max(status, _apply(change))
    return max(status, trouble)


def _drive(cluster: Cluster, phantom: Phantom, plan: Plan) -> tuple[list[str], int]:
    """Has Phantom start and end machines. The workers that it refuses, and an exit status."""
    refused: list[str] = []
    status = 0
    for domain in plan.stop:
        try:
            _stop(phantom, domain)
            print(f"{domain} goes")
        except PhantomError as error:
            status = _tell(f"{domain} cannot be let go: {error}")
    for node in plan.start:
        try:
            _start(cluster, phantom, node)
            print(f"{cluster.domain_of(node)} comes")
        except (AwayError, CredentialsError) as error:
            return refused, _tell(f"{node} cannot be asked for: {error}")
        except RefusedError as error:
            status = _tell(f"{node}: {error}")
            refused.append(node)
    return refused, status


def _start(cluster: Cluster, phantom: Phantom, node: str) -> None:
    site = cluster.find_site(node)
    if site is None:
        raise RefusedError("there is no such site in the settings", "")
    domain = cluster.domain_of(node)
    launch = f"{domain}@{site.name}"
    parameters = {
        "LaunchConfigurationName": launch,
        "ImageId": site.image,
        "InstanceType": site.instance_type,
        "UserData": make_user_data(cluster, node),
    }
    try:
        phantom.create_launch_configuration(parameters)
    except CredentialsError:
        raise
    except RefusedError:
        # Of an earlier try, perhaps with another image or head; or the parameters are wrong.
        if launch not in phantom.list_launch_configurations():
            raise
        phantom.delete_launch_configuration(launch)
        phantom.create_launch_configuration(parameters)
    phantom.create_domain(domain, launch, [(site.name, 1)], 1)


def _stop(phantom: Phantom, domain: str) -> None:
    for found in phantom.list_domains(domain):  # none, if somebody else was faster
        phantom.resize_domain(domain, 0)
        phantom.delete_domain(domain)
        phantom.delete_launch_configuration(found.launch_configuration)


def _apply(change: Change) -> int:
    """Asks Slurm for a change. A worker's state may have become another one since the look."""
    try:
        slurm.apply(change)
    except slurm.SlurmError as error:
        return _tell(str(error))
    print(f"{','.join(change.nodes)}: {change.state} {change.reason}".rstrip())
    return 0


def _tell(text: str) -> int:
    print(f"batch-cluster: {text}", file=sys.stderr)
    return 75


def _read_memory(path: Path) -> Memory:
    """The memory of the last look; an empty one where there is none, or where it is damaged."""
    try:
        told = json.loads(path.read_text())
        machines = {node: Kept(**kept) for node, kept in told["machines"].items()}
        out = {str(site): float(until) for site, until in told["out"].items()}
        return Memory(looked=float(told["looked"]), machines=machines, out=out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Memory()


def _write_memory(path: Path, memory: Memory) -> None:
    machines = {node: vars(kept) for node, kept in memory.machines.items()}
    told = {"looked": memory.looked, "machines": machines, "out": dict(memory.out)}
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
