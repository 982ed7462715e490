"""One good case of each key that customizes the image, as a definition has it and as the booted
machine shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Case:
    """A key's value in an image from scratch, and `other` in a base image that was made of it."""

    value: str
    """YAML in flow style."""
    other: str
    check: str
    """A shell command that succeeds in the machine made from scratch."""
    other_check: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Text files that the values name."""


CASES: dict[str, Case] = {
    "timezone": Case(
        value="Asia/Kathmandu",
        other="America/St_Johns",
        check='[ "$(date -d @0 +%z)" = +0530 ] && [ "$(cat /etc/timezone)" = Asia/Kathmandu ]',
        other_check='[ "$(date -d @0 +%z)" = -0330 ] && '
        '[ "$(timedatectl show -p Timezone --value)" = America/St_Johns ]',
    ),
    "services": Case(
        value="{disabled: [e2scrub_reap], masked: [apt-daily.timer, fstrim.timer]}",
        other="{enabled: [e2scrub_reap, fstrim.timer]}",
        check='[ "$(systemctl is-enabled e2scrub_reap)" = disabled ] && '
        '[ "$(systemctl is-enabled fstrim.timer)" = masked ]',
        other_check='[ "$(systemctl is-enabled e2scrub_reap)" = enabled ] && '
        '[ "$(systemctl is-active fstrim.timer)" = active ] && '
        '[ "$(systemctl is-enabled apt-daily.timer)" = masked ]',
    ),
}
"""Keys with modules in `pipeline/customizations`, each once."""
