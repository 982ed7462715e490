"""Reads os-release, which names a system's distribution."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.disk.untrusted import lines_of, to_printable

PATHS = tuple(map(PurePosixPath, ("/etc/os-release", "/usr/lib/os-release")))

FAMILIES = {
    "debian": ("debian", "ubuntu", "devuan", "raspbian", "linuxmint", "kali"),
    "redhat": (
        *("rhel", "fedora", "centos", "rocky", "almalinux", "amzn", "ol", "scientific"),
        *("eurolinux", "virtuozzo", "cloudlinux"),
    ),
    "suse": ("suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles", "sled"),
    "alpine": ("alpine",),
    "arch": ("arch", "archarm", "manjaro"),
    "gentoo": ("gentoo",),
}
_LONGEST_VALUE = 200


@dataclass(frozen=True, kw_only=True)
class Release:
    """The distribution and version of a system."""

    id: str
    like: tuple[str, ...] = ()
    version: str = ""
    codename: str = ""
    product: str = ""

    @property
    def family(self) -> str | None:
        """The key of `FAMILIES`; None if the distribution is unknown."""
        names = (self.id, *self.like)
        return next(
            (family for name in names for family, ids in FAMILIES.items() if name in ids), None
        )


def read_os_release(read: Callable[[PurePosixPath], str]) -> Release | None:
    """The release in a system's os-release, if there is one; `read` returns a file's content."""
    return next(filter(None, (parse_os_release(read(path)) for path in PATHS)), None)


def parse_os_release(text: str) -> Release | None:
    """The release in an os-release file; None if the file has no ID."""
    fields = parse_assignments(text)
    if "ID" not in fields:
        return None
    return Release(
        id=fields["ID"].lower(),
        like=tuple(fields.get("ID_LIKE", "").lower().split()),
        version=fields.get("VERSION_ID", ""),
        codename=fields.get("VERSION_CODENAME", ""),
        product=fields.get("PRETTY_NAME") or fields.get("NAME") or fields["ID"],
    )


def parse_assignments(text: str) -> dict[str, str]:
    """The variables that a file such as os-release assigns in shell syntax. Their values are made
    printable and cut at 200 characters."""
    fields = {}
    for line in lines_of(text):
        match = re.match(r"[ \t]*([A-Za-z_]+)=(.*)", line)
        if match is not None:
            value = match[2].strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            fields[match[1]] = to_printable(re.sub(r"\\(.)", r"\1", value))[:_LONGEST_VALUE]
    return fields
