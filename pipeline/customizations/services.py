"""`services`: which services start by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from pipeline.customizations.customization import Customization, Report, Schema

_STATES = ("enabled", "disabled", "masked")
_Services = Mapping[str, Sequence[str]]


def _check(value: _Services, report: Report) -> None:
    first: dict[str, str] = {}
    for state in _STATES:
        for index, name in enumerate(value.get(state, ())):
            other = first.setdefault(_unit(name), state)
            if other != state:
                report((state, index), f"{name!r} is among the {other} services too")


def _unit(name: str) -> str:
    """The unit that a name means, as systemctl reads it."""
    return name if "." in name else f"{name}.service"


def _merge(parent: _Services, child: _Services) -> dict[str, list[str]]:
    """What the child says of a service replaces what its parent says."""
    ours = {_unit(name) for names in child.values() for name in names}
    merged = {
        state: [name for name in parent.get(state, ()) if _unit(name) not in ours]
        + [*child.get(state, ())]
        for state in _STATES
    }
    return {state: names for state, names in merged.items() if names}


def _script(value: _Services) -> str:
    lines = [_FUNCTIONS]
    for state in _STATES:
        lines += [f"{state} {quote(name)}\n" for name in value.get(state, ())]
    return "".join(lines)


# systemctl runs without systemd here: it makes and removes links, as it does for an image.
_FUNCTIONS = """\
know() {
    case $1 in
        *.*) unit=$1 ;;
        *) unit=$1.service ;;
    esac
    systemctl list-unit-files --no-legend --no-pager "$unit" 2>/dev/null | grep -q . ||
        [ -e "/etc/init.d/${1%.service}" ] ||
        fail "the image has no service $1; packages bring services, and files can"
}
enabled() {
    if command -v systemctl >/dev/null 2>&1; then
        know "$1"
        systemctl unmask "$unit" 2>&1 || :
        systemctl enable "$unit" 2>&1 || fail "the service $1 cannot be enabled"
    else
        of_sysv "$1" defaults on
    fi
}
disabled() {
    if command -v systemctl >/dev/null 2>&1; then
        know "$1"
        systemctl disable "$unit" 2>&1 || fail "the service $1 cannot be disabled"
    else
        of_sysv "$1" 'defaults-disabled' off
    fi
}
masked() {
    if command -v systemctl >/dev/null 2>&1; then
        unit=$1
        case $1 in *.*) ;; *) unit=$1.service ;; esac
        systemctl mask "$unit" 2>&1 || fail "the service $1 cannot be masked"
    else
        of_sysv "$1" 'defaults-disabled' off
    fi
}
# of_sysv NAME WORD-OF-UPDATE-RC.D WORD-OF-CHKCONFIG
of_sysv() {
    [ -e "/etc/init.d/$1" ] || fail "the image has no service $1"
    if command -v update-rc.d >/dev/null 2>&1; then
        update-rc.d -f "$1" remove && update-rc.d "$1" "$2"
    elif command -v chkconfig >/dev/null 2>&1; then
        chkconfig --add "$1" && chkconfig "$1" "$3"
    else
        fail "services need systemd, update-rc.d or chkconfig in the image"
    fi
}
"""


def _names(what: str) -> Schema:
    return {
        "description": f"Services that are {what}, by their names for systemctl.",
        "type": "array",
        "uniqueItems": True,
        "items": {
            "description": "A service, or another unit with its ending.",
            "type": "string",
            "pattern": "^[A-Za-z0-9_][A-Za-z0-9:_.@\\\\-]*$",
            "maxLength": 255,
            "errorMessage": "must be the name of a service, such as nginx or backup.timer",
            "examples": ["nginx", "backup.timer"],
        },
        "examples": [["nginx"]],
    }


_SCHEMA: dict[str, Any] = {
    "description": "Which services start by themselves; a package decides for those not named.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "enabled": _names("started at boot"),
        "disabled": _names("not started at boot"),
        "masked": _names("never started, whatever asks for them"),
    },
    "examples": [{"enabled": ["nginx"], "masked": ["apt-daily.timer"]}],
}

CUSTOMIZATION = Customization(
    key="services", schema=_SCHEMA, check=_check, merge=_merge, script=_script
)
