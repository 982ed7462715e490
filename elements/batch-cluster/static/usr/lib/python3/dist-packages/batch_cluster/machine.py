"""Makes this machine the head or a worker of a cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from batch_cluster.settings import Cluster, Worker, make_munge_key, make_slurm_conf
from batch_cluster.tend import STATE

SETTINGS = Path("/etc/batch-cluster/settings")
_MUNGE_KEY = Path("/etc/munge/munge.key")
_FACTS = Path("/run/phantom/user-data.env")
_EXPORTS = Path("/etc/exports.d/batch-cluster.exports")
_TRIES, _PAUSE = 180, 5.0
"""How long a worker waits for its head: it may boot more slowly, or be away."""


class MachineError(Exception):
    """This machine cannot become what it is to be; one line for people."""


def make_head(cluster: Cluster, text: str) -> None:
    """Starts the head; `text` are its settings. Safe to repeat, at each boot. Raises MachineError,
    OSError."""
    known = settle_address(cluster)
    write(SETTINGS, text.encode(), 0o600)
    _close_user_data()
    _trust(cluster.secret)
    host = socket.gethostname().partition(".")[0]
    if host == "localhost":
        host = f"{cluster.name}-head"
        _set_host_name(host)
    _name_host(known.address, host)
    write(Path("/etc/slurm/slurm.conf"), make_slurm_conf(known, host).encode(), 0o644)
    asked = STATE / "asked"
    asked.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.chown(asked, "slurm", "slurm")
    if cluster.share:
        # Not by address of each worker: one has to have /home before its first job.
        line = f"/home {cluster.share}(rw,sync,no_subtree_check)\n"
        write(_EXPORTS, line.encode(), 0o644)
        _run("systemctl", "enable", "--now", "--quiet", "nfs-server.service")
        _run("exportfs", "-ra")
    _run("systemctl", "enable", "--quiet", "slurmctld.service", *_TENDING)
    _run("systemctl", "restart", "slurmctld.service")
    _run("systemctl", "start", *_TENDING)


def make_worker(worker: Worker) -> None:
    """Joins the cluster. Raises MachineError, OSError."""
    _close_user_data()
    _trust(worker.secret)
    # For jobs that ask for it: slurmd is told the name.
    _set_host_name(worker.node)
    _name_host("127.0.1.1", worker.node)
    if worker.share and not os.path.ismount("/home"):
        _mount(worker.head)
    options = f'SLURMD_OPTIONS="-b --conf-server {worker.head} -N {worker.node}"\n'
    write(Path("/etc/default/slurmd"), options.encode(), 0o644)
    # The head may not be there yet.
    again = (
        b"[Unit]\nConditionPathExists=\nStartLimitIntervalSec=0\n[Service]\nRestart=on-failure\n"
    )
    write(Path("/etc/systemd/system/slurmd.service.d/batch-cluster.conf"), again, 0o644)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "restart", "--no-block", "slurmd.service")


def settle_address(cluster: Cluster) -> Cluster:
    """The cluster with the head's address: what the settings say, else that by which this machine
    reaches other networks. Raises MachineError."""
    if cluster.address:
        return cluster
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            raise MachineError("say `address`: this machine has no route to the world") from None
        return replace(cluster, address=asked.getsockname()[0])


def write(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that is whole at any time, and never readable by more than `mode` says."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
    new.replace(path)


_TENDING = ("batch-cluster-tend.timer", "batch-cluster-tend.path")


def _trust(secret: str) -> None:
    """Gives munge the cluster's key."""
    key = make_munge_key(secret)
    if not _MUNGE_KEY.exists() or _MUNGE_KEY.read_bytes() != key:
        write(_MUNGE_KEY, key, 0o400)
        shutil.chown(_MUNGE_KEY, "munge", "munge")
        _run("systemctl", "restart", "munge.service")


def _close_user_data() -> None:
    """Lets root alone ask the metadata service, since user-data has the cluster's secret and
    perhaps Phantom's credentials, and jobs are other users' programs."""
    try:
        facts = dict(line.partition("=")[::2] for line in _FACTS.read_text().splitlines())
        host = urlsplit(facts["PHANTOM_METADATA_URL"].strip("'\"")).hostname
        address = socket.gethostbyname(host or "")
    except (OSError, KeyError, ValueError):
        return  # no metadata service gave the user-data
    rule = ("uidrange", "1-4294967294", "to", address, "prohibit")
    subprocess.run(["ip", "rule", "del", *rule], capture_output=True, check=False)
    _run("ip", "rule", "add", "priority", "100", *rule)


def _set_host_name(host: str) -> None:
    socket.sethostname(host)
    write(Path("/etc/hostname"), f"{host}\n".encode(), 0o644)


def _name_host(address: str, host: str) -> None:
    """Lets programs look up this machine's own name."""
    hosts = Path("/etc/hosts")
    lines = [
        line for line in hosts.read_text().splitlines() if not line.endswith(" # batch-cluster")
    ]
    lines.append(f"{address} {host} # batch-cluster")
    write(hosts, "".join(f"{line}\n" for line in lines).encode(), 0o644)


def _mount(head: str) -> None:
    for _ in range(_TRIES):
        done = subprocess.run(
            ["mount", "-t", "nfs4", "-o", "hard,noatime", f"{head}:/home", "/home"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        time.sleep(_PAUSE)
    raise MachineError(f"{head} does not share /home: {done.stderr.strip()[:200]}")


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[-200:]
        raise MachineError(f"{' '.join(words)} failed: {said or done.returncode}")
