"""The end of what a failed program printed: what tells why, without the noise of what ran it."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAST_LINES = 12

_NOISE = re.compile(
    r"declare -[-aAilrx]+ \w+"  # a shell's variables
    r"|(Created symlink|Removed) \"?/etc/systemd/"  # systemctl enable
    r"|Synchronizing state of \S+ with SysV service script"
    r"|Executing: /(usr/)?lib/systemd/systemd-sysv-install"
)
_NOT_OWN = re.compile(
    r"\++ "  # a shell's trace
    r"|dib-run-parts( |$)"
    r"|Unmount /|State already cleaned|(INFO|DEBUG) diskimage_builder\."
    r"|Running hooks from /|\s*$"
)


def is_noise(line: str) -> bool:
    """Whether a line comes from what every program calls, and never tells why it failed."""
    return _NOISE.match(line) is not None


def tail(lines: Iterable[str], *, own: bool = True) -> str:
    """The last lines of an output. Where `own` is false, the program ran others and told of it:
    traces, and what diskimage-builder says of its hooks, are left out too.

    If nothing is left then, the last lines are those that there are.
    """
    printed = [line.rstrip() for line in lines]
    told = [line for line in printed if not is_noise(line) and (own or not _NOT_OWN.match(line))]
    return "\n".join((told or printed)[-LAST_LINES:])
