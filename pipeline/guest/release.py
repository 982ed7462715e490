"""Which distribution a system is, by its own files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline.disk.os_release import Release, parse_assignments, read_os_release
from pipeline.disk.tree import Tree
from pipeline.disk.untrusted import to_printable

# The files of systems that are older than os-release: path, `ID`, and what the name begins with.
_OLD_FILES = (
    ("/etc/redhat-release", "", ""),
    ("/etc/SuSE-release", "suse", ""),
    ("/etc/debian_version", "debian", "Debian GNU/Linux "),
    ("/etc/alpine-release", "alpine", "Alpine Linux "),
    ("/etc/gentoo-release", "gentoo", ""),
    ("/etc/arch-release", "arch", "Arch Linux"),
)


def read_release(tree: Tree) -> Release | None:
    """What the system says that it is; None where it says nothing."""
    return read_os_release(tree.read) or _read_old_ubuntu(tree) or _read_old_release(tree)


def _read_old_ubuntu(tree: Tree) -> Release | None:
    fields = parse_assignments(tree.read(PurePosixPath("/etc/lsb-release")))
    if fields.get("DISTRIB_ID") != "Ubuntu":
        return None
    version = fields.get("DISTRIB_RELEASE", "")
    return Release(
        id="ubuntu",
        version=version,
        codename=fields.get("DISTRIB_CODENAME", ""),
        product=fields.get("DISTRIB_DESCRIPTION", f"Ubuntu {version}"),
    )


def _read_old_release(tree: Tree) -> Release | None:
    for path, name, title in _OLD_FILES:
        if not tree.exists(PurePosixPath(path)):
            continue
        lines = tree.read(PurePosixPath(path)).splitlines()
        line = to_printable(lines[0])[:200] if lines else ""
        if not name:  # CentOS release 6.10 (Final), Red Hat Enterprise Linux Server release ...
            name = "rhel" if line.startswith("Red Hat") else line.split(" ")[0].lower()
        number = re.search(r"[0-9]+(\.[0-9]+)*", line)
        return Release(
            id=name, version=number[0] if number else "", product=f"{title}{line}".strip()
        )
    return None
