"""`timezone`: the zone of the machine's clock."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote

from pipeline.customizations.customization import Customization


def _packages(zone: str) -> Iterable[str]:
    return ["tzdata"]


def _script(zone: str) -> str:
    return f"""\
zone={quote(zone)}
[ -d /usr/share/zoneinfo ] || fail 'the image lacks the time zones; add the package tzdata'
[ -f "/usr/share/zoneinfo/$zone" ] ||
    fail "the image's time zones do not have $zone"
ln -snf "/usr/share/zoneinfo/$zone" /etc/localtime
if [ -e /etc/debian_version ] || [ -e /etc/timezone ]; then
    echo "$zone" >/etc/timezone
fi
"""


CUSTOMIZATION = Customization(
    key="timezone",
    schema={
        "description": "The machine's time zone, by its name in the time zone database.",
        "type": "string",
        "pattern": "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}$",
        "maxLength": 64,
        "errorMessage": "must be the name of a time zone, such as Europe/Berlin or UTC",
        "default": "UTC",
        "examples": ["Europe/Berlin", "UTC"],
    },
    packages=_packages,
    script=_script,
)
