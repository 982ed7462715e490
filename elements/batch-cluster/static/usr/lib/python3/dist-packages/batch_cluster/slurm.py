"""What Slurm says of its nodes, and how their state is changed."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime

from batch_cluster.decide import Change, Node

SECONDS = 30.0
_REASON = re.compile(r" Reason=(.*?) \[[^\]@]*@([0-9T:-]+)\]\s*$")


class SlurmError(Exception):
    """Slurm's controller does not answer, or refuses; one line for people."""


def list_nodes() -> list[Node]:
    """The cluster's workers. Raises SlurmError."""
    return parse_nodes(_scontrol("--oneliner", "show", "nodes"))


def apply(change: Change) -> None:
    """Asks Slurm for a change. Raises SlurmError."""
    reason = [f"Reason={change.reason}"] if change.reason else []
    words = [f"NodeName={','.join(change.nodes)}", f"State={change.state}", *reason]
    _scontrol("update", *words)


def parse_nodes(text: str) -> list[Node]:
    """The nodes of what `scontrol --oneliner show nodes` prints."""
    return [_parse(line) for line in text.splitlines() if line.startswith("NodeName=")]


def _parse(line: str) -> Node:
    name = re.match(r"NodeName=(\S+)", line)
    states, reason = re.search(r" State=(\S+)", line), _REASON.search(line)
    if name is None or states is None:
        raise SlurmError(f"scontrol prints a node that cannot be read: {line[:200]!r}")
    return Node(
        name=name[1],
        states=frozenset(states[1].replace("*", "+NOT_RESPONDING").split("+")),
        reason=reason[1] if reason else "",
        # In the time of this machine, as scontrol shows it.
        since=datetime.fromisoformat(reason[2]).timestamp() if reason else 0.0,
    )


def _scontrol(*words: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"scontrol {words[0]}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise SlurmError(f"scontrol {' '.join(words)[:80]}: {said or done.returncode}")
    return done.stdout
