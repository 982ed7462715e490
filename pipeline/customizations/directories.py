"""`directories`: folders that the image is to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any

from pipeline.customizations.accounts import OWNER, listed, text
from pipeline.customizations.customization import Customization, Report

_Directories = Sequence[Mapping[str, Any]]
MADE_ANEW = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/run", "/var/lock")  # noqa: S108
"""Folders whose content no image keeps."""


def _check(directories: _Directories, report: Report) -> None:
    first: dict[str, int] = {}
    for index, directory in enumerate(directories):
        path = directory["path"].rstrip("/")
        if {".", ".."} & set(path.split("/")):
            report((index, "path"), f"{directory['path']!r} must not hold '.' or '..'")
        elif any(f"{path}/".startswith(f"{place}/") for place in MADE_ANEW):
            report((index, "path"), f"{path!r} is made anew at each boot")
        if first.setdefault(path, index) != index:
            report((index, "path"), f"entry {first[path] + 1} has the same path, {path!r}")


def _merge(parent: _Directories, child: _Directories) -> list[Mapping[str, Any]]:
    ours = {directory["path"].rstrip("/") for directory in child}
    return [*(each for each in parent if each["path"].rstrip("/") not in ours), *child]


def _script(directories: _Directories) -> str:
    return _MAKE + "".join(
        f"make {quote(each['path'])} {each.get('owner', 'root')}:{each.get('group', '')} "
        f"{int(each.get('mode', '0755'), 8):05o}\n"  # chmod keeps setgid for fewer digits
        for each in directories
    )


def _kept(directories: _Directories) -> Iterable[str]:
    return [directory["path"].rstrip("/") for directory in directories]


_MAKE = """\
make() {
    if [ -e "$1" ] && [ ! -d "$1" ]; then
        fail "$1 is in the image, and is no folder"
    fi
    mkdir -p "$1"
    chown "$2" "$1"
    chmod "$3" "$1"
}
"""

CUSTOMIZATION = Customization(
    key="directories",
    schema=listed(
        "Folders to make; one that the image has already gets the owner and mode that are asked "
        "for.",
        {
            "description": "A folder.",
            "type": "object",
            "required": ["path"],
            "additionalProperties": False,
            "properties": {
                "path": text(
                    "Its absolute path.",
                    ["/srv/data"],
                    pattern="^(/[^/\\n]+)+/?$",
                    errorMessage="must be an absolute path",
                ),
                **OWNER,
                "mode": text(
                    "Its mode, in quotes.",
                    ["0755", "2775"],
                    pattern="^[0-7]{3,4}$",
                    default="0755",
                    errorMessage="must be an octal mode such as '0755'",
                ),
            },
        },
        [{"path": "/srv/data", "owner": "web", "mode": "2775"}],
    ),
    check=_check,
    merge=_merge,
    script=_script,
    kept=_kept,
)
