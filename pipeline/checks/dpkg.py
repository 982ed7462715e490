"""The database of Debian's packages in an image: which files belong to a package, and what was in
them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.disk.contents import Contents
from pipeline.disk.untrusted import lines_of, to_printable
from pipeline.tools.leave_out import Rule, is_left_out, read_rules

_INFO = "/var/lib/dpkg/info"
_WHOLE = ("installed", "not-installed", "config-files")
_NOT_NEEDED = [
    f"path-exclude=/usr/share/{folder}/*"
    for folder in ("doc", "doc-base", "man", "info", "lintian", "locale", "help", "gnome/help")
]
_MD5 = re.compile(r"([0-9a-f]{32})  (.+)")


@dataclass(frozen=True, kw_only=True)
class Dpkg:
    """What dpkg knows. Paths have no links on the way, as `Contents.files` has them."""

    states: dict[str, str]
    """Of each package, with its architecture where dpkg needs that: `install ok installed`."""
    owners: dict[str, str]
    """The package of each file and folder."""
    digests: dict[str, str]
    """The MD5 of each file whose content no configuration changes."""
    left_out: list[Rule]

    def is_left_out(self, path: str) -> bool:
        """Whether an image may be without a file: dpkg's settings say so, or it is documentation,
        which no package may need (Debian Policy 12.3)."""
        return is_left_out(path, self.left_out)


def read_dpkg(contents: Contents) -> Dpkg | None:
    """The database of an image; None where it has none."""
    status = contents.text("/var/lib/dpkg/status")
    if not status:
        return None
    states, changeable = _read_status(status)
    diversions = _read_diversions(contents)
    owners: dict[str, str] = {}
    digests: dict[str, str] = {}

    def place(path: str, package: str) -> str:
        target, taker = diversions.get(path, (path, ""))
        return contents.locate(path if taker == package.partition(":")[0] else target)

    info = contents.find(_INFO)
    for file in () if info is None else contents.inside(info):
        package, _, kind = file.name.rpartition(".")
        if kind == "list":
            for path in lines_of(contents.text(file.path)):
                owners.setdefault(place(path, package), package)
        elif kind == "md5sums":
            for line in lines_of(contents.text(file.path)):
                match = _MD5.fullmatch(line)
                if match is not None and f"/{match[2]}" not in changeable:
                    digests[place(f"/{match[2]}", package)] = match[1]
    return Dpkg(states=states, owners=owners, digests=digests, left_out=_read_left_out(contents))


def _read_status(text: str) -> tuple[dict[str, str], set[str]]:
    """The state of each package, and the files that are configuration."""
    states, changeable, name, is_conffile = {}, set(), "", False
    for line in lines_of(text):
        if is_conffile and line.startswith(" "):
            changeable.add(line.split(" ")[1])
            continue
        key, _, value = line.partition(": ")
        is_conffile = line.startswith("Conffiles:")
        if key == "Package":
            name = to_printable(value)
        elif key == "Status":
            states[name] = to_printable(value)
    return states, changeable


def broken(state: str) -> bool:
    """Whether a package in that state is neither whole nor gone."""
    words = state.split(" ")
    return len(words) != 3 or words[1] != "ok" or words[2] not in _WHOLE


def _read_diversions(contents: Contents) -> dict[str, tuple[str, str]]:
    """Of each path whose file lies elsewhere, because another package took its place: where, and
    the other package, whose own file is not moved."""
    lines = [*lines_of(contents.text("/var/lib/dpkg/diversions"))]
    triples = zip(lines[0::3], lines[1::3], lines[2::3], strict=False)
    return {path: (target, package) for path, target, package in triples}


def _read_left_out(contents: Contents) -> list[Rule]:
    folder = contents.find("/etc/dpkg/dpkg.cfg.d")
    names = [] if folder is None else [file.path for file in contents.inside(folder)]
    lines = (
        line for path in ("/etc/dpkg/dpkg.cfg", *names) for line in lines_of(contents.text(path))
    )
    options = (re.sub(r"^\s*(path-\w+)[= ]\s*", r"\1=", line).rstrip() for line in lines)
    return read_rules([*_NOT_NEEDED, *options])
