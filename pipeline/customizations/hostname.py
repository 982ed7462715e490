"""`hostname`: the machine's name where the cloud gives it none."""

from __future__ import annotations

from pipeline.customizations.customization import Customization


def _script(name: str) -> str:
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    return f"name={name}\nnames='{names}'\n{_SCRIPT}"


# systemd prefers /etc/hostname to what a DHCP server says, so the default must not stand there: a
# unit sets it before the network is up, as DHCP's answer does afterwards.
_SCRIPT = """\
sed -i '/^127\\.0\\.1\\.1[[:space:]]/d' /etc/hosts
echo "127.0.1.1 $names" >>/etc/hosts
if ! command -v systemctl >/dev/null 2>&1; then
    echo "$name" >/etc/hostname
    exit 0
fi
rm -f /etc/hostname
cat >/etc/systemd/system/phantom-hostname.service <<END
[Unit]
Description=Set the host name that the appliance has by default
DefaultDependencies=no
After=systemd-remount-fs.service
Before=sysinit.target network-pre.target cloud-init-local.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
ConditionFileNotEmpty=!/etc/hostname

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo $name >/proc/sys/kernel/hostname'

[Install]
WantedBy=sysinit.target
END
systemctl enable phantom-hostname.service 2>&1
"""

CUSTOMIZATION = Customization(
    key="hostname",
    schema={
        "description": "The machine's name where neither the cloud's DHCP server, nor cloud-init, "
        "nor user-data gives it one.",
        "type": "string",
        "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
        "maxLength": 64,  # what Linux takes
        "errorMessage": "must be a host name: lower-case letters, digits, '-' and '.'",
        "examples": ["web", "node.example.org"],
    },
    script=_script,
)
