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
    "debconf": Case(
        value="answers",
        other="other-answers",
        check="debconf-show tzdata | grep -q 'Zones/Asia: Kathmandu' && "
        "debconf-show tzdata | grep -q 'Areas: Asia'",
        other_check="debconf-show tzdata | grep -q 'Zones/Europe: Oslo'",
        files={
            "answers": "# of tzdata\n\ntzdata tzdata/Areas select Asia\n"
            "tzdata tzdata/Zones/Asia select Kathmandu\n",
            "other-answers": "tzdata tzdata/Zones/Europe select Oslo\n",
        },
    ),
    "groups": Case(
        value="[{name: lab, gid: 2100}, {name: helpers, system: true}]",
        other="[{name: lab, gid: 2200}, {name: extra}]",
        check='[ "$(getent group lab)" = "lab:x:2100:ops" ] && '
        '[ "$(getent group helpers | cut -d : -f 3)" -lt 1000 ]',
        other_check='[ "$(getent group lab | cut -d : -f 3)" = 2200 ] && getent group extra',
    ),
    "users": Case(
        value="[{name: ops, uid: 2001, groups: [lab], sudo: true, description: 'Op Erators', "
        "shell: /bin/bash, ssh_authorized_keys: ops.pub, password: {environment: OPS_HASH}}, "
        "{name: web, system: true, home: /srv/web, create_home: true}, "
        "{name: root, ssh_authorized_keys: ops.pub}]",
        other="[{name: ops, groups: [extra], shell: /bin/sh}, "
        "{name: late, sudo: 'ALL=(root) NOPASSWD: /usr/bin/id'}]",
        check='[ "$(getent passwd ops)" = "ops:x:2001:2001:Op Erators:/home/ops:/bin/bash" ] && '
        '[ "$(id -nG ops)" = "ops lab" ] && [ "$(su ops -c "sudo -n id -u")" = 0 ] && '
        "grep -q AAAAC3NzaC1lZDI1NTE5AAAAIOps /home/ops/.ssh/authorized_keys && "
        '[ "$(stat -c "%U %a" /home/ops/.ssh/authorized_keys)" = "ops 600" ] && '
        "getent shadow ops | grep -qF '$y$j9T$' && "
        '[ "$(stat -c %U /srv/web)" = web ] && [ "$(id -u web)" -lt 1000 ]',
        other_check='[ "$(id -nG ops)" = "ops lab extra" ] && '
        '[ "$(getent passwd ops | cut -d : -f 7)" = /bin/sh ] && '
        '[ "$(su late -c "sudo -n id -u")" = 0 ] && ! su late -c "sudo -n true"',
        files={
            "ops.pub": "# who may come in\nssh-ed25519 "
            "AAAAC3NzaC1lZDI1NTE5AAAAIOpsOpsOpsOpsOpsOpsOpsOpsOpsOpsOpsOpsOpsOp ops@lab\n"
        },
    ),
    "directories": Case(
        value="[{path: /srv/data, owner: ops, group: lab, mode: '2775'}, {path: /var/log/mine}]",
        other="[{path: /srv/data, mode: '0700'}]",
        check='[ "$(stat -c "%U:%G %a" /srv/data)" = "ops:lab 2775" ] && [ -d /var/log/mine ]',
        other_check='[ "$(stat -c "%U:%G %a" /srv/data)" = "root:root 700" ]',
    ),
    "files": Case(
        value="[{content: \"it's\\nhere\\n\", to: /etc/app/one, owner: ops, mode: '0640'}, "
        "{from: answers, to: /srv/app/two, group: lab}]",
        other="[{content: '', to: /etc/app/one, owner: late, mode: '4755'}]",
        check='[ "$(cat /etc/app/one)" = "it\'s\nhere" ] && '
        '[ "$(stat -c "%U:%G %a" /etc/app/one)" = "ops:ops 640" ] && '
        '[ "$(stat -c "%U:%G %a" /etc/app)" = "root:root 755" ] && '
        '[ "$(stat -c "%U:%G %a" /srv/app/two)" = "root:lab 644" ]',
        other_check='[ "$(stat -c "%U:%G %a %s" /etc/app/one)" = "late:late 4755 0" ]',
    ),
    "timezone": Case(
        value="Asia/Kathmandu",
        other="America/St_Johns",
        check='[ "$(date -d @0 +%z)" = +0530 ] && [ "$(cat /etc/timezone)" = Asia/Kathmandu ]',
        other_check='[ "$(date -d @0 +%z)" = -0330 ] && '
        '[ "$(timedatectl show -p Timezone --value)" = America/St_Johns ]',
    ),
    "locale": Case(
        value="de_DE.UTF-8",
        other="C.UTF-8",
        check="grep -qx LANG=de_DE.UTF-8 /etc/default/locale && "
        '[ "$(LC_ALL=de_DE.UTF-8 locale thousands_sep)" = . ]',
        other_check="grep -qx LANG=C.UTF-8 /etc/default/locale",
    ),
    "keyboard": Case(
        value="{layout: de, variant: nodeadkeys}",
        other="{layout: fr}",
        check="grep -qx 'XKBLAYOUT=\"de\"' /etc/default/keyboard && "
        "grep -q 'de' /etc/console-setup/cached_setup_keyboard.sh || "
        "systemctl is-active -q keyboard-setup",
        other_check="grep -qx 'XKBLAYOUT=\"fr\"' /etc/default/keyboard",
    ),
    "hostname": Case(
        value="node-a.example.org",
        other="node-b",
        check='[ "$(hostname)" = node-a.example.org ] && getent hosts node-a',
        other_check='[ "$(hostname)" = node-b ] && getent hosts node-b && ! getent hosts node-a',
    ),
    "kernel_options": Case(
        value="{append: [quiet, mitigations=off, loglevel=4]}",
        other="{remove: [quiet, loglevel]}",
        check='grep -qw "quiet mitigations=off loglevel=4" /proc/cmdline',
        other_check="grep -qw mitigations=off /proc/cmdline && "
        '! grep -q "quiet\\|loglevel" /proc/cmdline',
    ),
    "swap": Case(
        value="{size: 100MiB}",
        other="{size: 64MiB}",
        check='[ "$(awk \'$1 == "/swapfile" { print $3 }\' /proc/swaps)" = 102396 ] && '
        '[ "$(stat -c %a /swapfile)" = 600 ]',
        other_check='[ "$(awk \'$1 == "/swapfile" { print $3 }\' /proc/swaps)" = 65532 ]',
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
"""Keys with modules in `pipeline/customizations`, each once, and `files`."""
