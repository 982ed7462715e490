"""The settings of a cluster, as the head's and the workers' user-data has them, and what follows
from them: munge's key, slurm.conf, and the workers' user-data."""

from __future__ import annotations

import configparser
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SECRET = re.compile("[0-9a-f]{64}")
_NAME = re.compile("[a-z][a-z0-9-]{0,31}")
_SITE = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # Slurm's nodes have no dots
_NODE = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
_WORD = re.compile("[!-~]+")
_HOUR, _SECOND = "hour", "second"
_MOST_NODES = 250


class SettingsError(Exception):
    """Settings are wrong; one line for people, which shows no secret."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site where workers run."""

    name: str
    image: str
    instance_type: str
    nodes: int
    """How many workers it may have."""
    price: float = 0.0
    """Of a machine, in any unit that is the same for all sites."""
    by_hour: bool = False
    """Whether an hour that has begun is paid as a whole."""
    cpus: int = 1
    memory: int = 0
    """MB of a machine; 0: jobs do not say how much they need."""

    @property
    def node_names(self) -> tuple[str, ...]:
        """Slurm's names of its workers."""
        return tuple(f"{self.name}-{number}" for number in range(1, self.nodes + 1))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster. Times are in seconds."""

    secret: str
    """64 hexadecimal digits that only machines of this cluster have."""
    sites: tuple[Site, ...]
    """The cheapest first; of equal ones the first of the settings."""
    name: str = "batch"
    """What the names of its domains at Phantom begin with."""
    address: str = ""
    """The head's, as workers reach it."""
    share: str = ""
    """The network, such as 10.0.0.0/24, whose machines may mount the head's /home."""
    idle: int = 300
    """How long a worker without jobs is kept, where its site is not paid by the hour."""
    resume: int = 900
    """How long a worker may take until it has joined."""
    pause: int = 1800
    """How long a site is left out whose workers do not come."""

    def find_site(self, node: str) -> Site | None:
        """The site of a worker's name."""
        return next((site for site in self.sites if node in site.node_names), None)

    def domain_of(self, node: str) -> str:
        """The name of the domain whose one machine is this worker."""
        return f"{self.name}.{node}"

    def node_of(self, domain: str) -> str | None:
        """The worker that a domain is for; None where it is not one of this cluster."""
        found = domain.removeprefix(f"{self.name}.")
        return found if found != domain else None


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker has to know."""

    head: str
    node: str
    secret: str
    share: bool = False


def parse_cluster(text: str) -> Cluster:
    """A cluster of the section `cluster` and one section for each site. Raises SettingsError."""
    parser = _parse(text)
    if "cluster" not in parser or len(parser.sections()) < 2:
        raise SettingsError("a section [cluster] and one for each site are needed")
    sites = [_parse_site(name, parser[name]) for name in parser.sections() if name != "cluster"]
    keys = {"secret", "name", "address", "share", "idle", "resume", "pause"}
    told = _take(parser["cluster"], "cluster", keys)
    cluster = Cluster(
        secret=told["secret"],
        name=told.get("name", "batch"),
        address=told.get("address", ""),
        share=told.get("share", ""),
        idle=_seconds(told, "idle", Cluster.idle),
        resume=_seconds(told, "resume", Cluster.resume),
        pause=_seconds(told, "pause", Cluster.pause),
        sites=tuple(sorted(sites, key=lambda site: site.price)),
    )
    _check_secret(cluster.secret)
    if not _NAME.fullmatch(cluster.name):
        raise SettingsError(f"[cluster] name: {cluster.name!r} is not a-z, digits and hyphens")
    _check_address(cluster.address)
    try:
        ipaddress.ip_network(cluster.share or "0.0.0.0/0")
    except ValueError:
        raise SettingsError(f"[cluster] share: {cluster.share!r} is no network") from None
    return cluster


def parse_worker(text: str) -> Worker:
    """A worker's settings, lines `key = value`. Raises SettingsError."""
    parser = _parse("[worker]\n" + text)
    told = _take(parser["worker"], "worker", {"head", "node", "secret", "share"})
    worker = Worker(
        head=told.get("head", ""),
        node=told.get("node", ""),
        secret=told.get("secret", ""),
        share=told.get("share") == "yes",
    )
    _check_secret(worker.secret)
    _check_address(worker.head)
    if not _NODE.fullmatch(worker.node):
        raise SettingsError(f"node: {worker.node!r} is no name of a worker")
    return worker


def make_munge_key(secret: str) -> bytes:
    """munge's key, which all machines of the cluster derive alike."""
    return hmac.digest(bytes.fromhex(secret), b"munge key", "sha512")


def make_user_data(cluster: Cluster, node: str) -> str:
    """The user-data of a worker."""
    share = "share = yes\n" if cluster.share else ""
    return (
        "#!/bin/sh\nset -eu\nbatch-cluster worker <<END\n"
        f"head = {cluster.address}\nnode = {node}\nsecret = {cluster.secret}\n{share}END\n"
    )


def make_slurm_conf(cluster: Cluster, host: str) -> str:
    """The text of slurm.conf; `host` is the head's host name."""
    names = ",".join(_nodes(site) for site in cluster.sites)
    lines = [
        "# Written by batch-cluster from the user-data.",
        f"ClusterName={cluster.name}",
        f"SlurmctldHost={host}({cluster.address})",
        *_FIXED,
        f"SuspendTime={cluster.idle}",
        f"ResumeTimeout={cluster.resume}",
        *(_describe_nodes(site, weight) for weight, site in enumerate(cluster.sites, 1)),
        f"PartitionName=batch Nodes={names} Default=YES State=UP",
        *map(_describe_partition, cluster.sites),
    ]
    return "\n".join(lines) + "\n"


_FIXED = """\
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# A worker whose machine was replaced comes back as DOWN, and its jobs go back to the queue.
ReturnToService=1
SlurmctldParameters=enable_configless,idle_on_node_suspend,power_save_interval=5
TreeWidth=65533
SlurmdTimeout=180
ResumeProgram=/usr/lib/batch-cluster/changed
SuspendProgram=/usr/lib/batch-cluster/changed
ResumeFailProgram=/usr/lib/batch-cluster/changed
ResumeRate=60
SuspendRate=60
SuspendTimeout=30""".splitlines()


def _nodes(site: Site) -> str:
    return f"{site.name}-[1-{site.nodes}]"


def _describe_nodes(site: Site, weight: int) -> str:
    memory = f" RealMemory={site.memory}" if site.memory else ""
    return f"NodeName={_nodes(site)} CPUs={site.cpus}{memory} Weight={weight} State=CLOUD"


def _describe_partition(site: Site) -> str:
    # The hour's end is not Slurm's notion: `batch-cluster tend` powers such workers down.
    kept = " SuspendTime=INFINITE" if site.by_hour else ""
    return f"PartitionName={site.name} Nodes={_nodes(site)}{kept} State=UP"


def _parse_site(name: str, section: Mapping[str, str]) -> Site:
    if not _SITE.fullmatch(name) or name == "batch":
        raise SettingsError(f"[{name}]: a site's name is letters, digits, - and _, and not batch")
    keys = {"image", "instance_type", "nodes", "price", "paid_by", "cpus", "memory"}
    told = _take(section, name, keys)
    for key in ("image", "instance_type", "nodes"):
        if not _WORD.fullmatch(told.get(key, "")):
            raise SettingsError(f"[{name}] {key} is missing or is no word")
    if told.get("paid_by", _SECOND) not in (_HOUR, _SECOND):
        raise SettingsError(f"[{name}] paid_by is {_HOUR} or {_SECOND}")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", told.get("price", "0")):
        raise SettingsError(f"[{name}] price is a number such as 0.05")
    return Site(
        name=name,
        image=told["image"],
        instance_type=told["instance_type"],
        nodes=_number(told["nodes"], f"[{name}] nodes", 1, _MOST_NODES),
        price=float(told.get("price", "0")),
        by_hour=told.get("paid_by") == _HOUR,
        cpus=_number(told.get("cpus", "1"), f"[{name}] cpus", 1, 1024),
        memory=_number(told.get("memory", "0"), f"[{name}] memory", 0, 1 << 24),
    )


def _parse(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise SettingsError("not sections of lines `key = value`, each once") from None
    return parser


def _take(section: Mapping[str, str], name: str, keys: Iterable[str]) -> dict[str, str]:
    told = dict(section)
    unknown = sorted(told.keys() - set(keys))
    if unknown:
        raise SettingsError(f"[{name}]: unknown: {', '.join(unknown)}")
    if "secret" in keys and "secret" not in told:
        raise SettingsError(f"[{name}] secret is missing: 64 hexadecimal digits")
    return told


def _check_secret(secret: str) -> None:
    if not _SECRET.fullmatch(secret):
        raise SettingsError("the secret is not 64 hexadecimal digits in small letters")


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address or "127.0.0.1")
    except ValueError:
        raise SettingsError(f"{address[:80]!r} is no IP address") from None


def _seconds(told: Mapping[str, str], key: str, default: int) -> int:
    return _number(told.get(key, str(default)), f"[cluster] {key}", 1, 86_400)


def _number(text: str, what: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,8}", text) or not least <= int(text) <= most:
        raise SettingsError(f"{what} is a number from {least} to {most}")
    return int(text)
