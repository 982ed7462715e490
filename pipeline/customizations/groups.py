"""`groups`: groups that the image is to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from pipeline.customizations.accounts import NAME, NUMBER, listed, repeated
from pipeline.customizations.customization import Customization, Report, merge_named

_Groups = Sequence[Mapping[str, Any]]


def _check(groups: _Groups, report: Report) -> None:
    repeated(groups, report, by=("name", "gid"))


def _script(groups: _Groups) -> str:
    return _ADD + "".join(map(_add, groups))


def _add(group: Mapping[str, Any]) -> str:
    words = ["add", group["name"], str(group.get("gid", ""))]
    if group.get("system"):
        words.append("--system")
    return f"{' '.join(map(quote, words))}\n"


# A group that is there already keeps its number, unless another one is asked for.
_ADD = """\
need groupadd passwd
# add NAME GID [--system]
add() {
    name=$1 gid=$2
    shift 2
    if getent group "$name" >/dev/null; then
        if [ -n "$gid" ] && [ "$(getent group "$name" | cut -d : -f 3)" != "$gid" ]; then
            groupmod --gid "$gid" "$name"
        fi
    else
        groupadd ${gid:+--gid "$gid"} "$@" "$name"
    fi
}
"""

CUSTOMIZATION = Customization(
    key="groups",
    schema=listed(
        "Groups to add. One that the image has already gets the number that is asked for.",
        {
            "description": "A group.",
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"description": "The group's name.", "examples": ["web"], **NAME},
                "gid": {"description": "Its number.", "examples": [2000], **NUMBER},
                "system": {
                    "description": "Whether its number is one of those of the system, below 1000.",
                    "type": "boolean",
                    "default": False,
                    "examples": [True],
                },
            },
        },
        [{"name": "web", "gid": 2000}],
    ),
    check=_check,
    merge=merge_named,
    script=_script,
)
