"""The maker of SSH host keys at boot.

A base's own keys are removed, since all machines would share them. Where neither the image's sshd
nor cloud-init makes new ones, this does. The element phantom-debian has its own, for images from
scratch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from pipeline.guest import services
from pipeline.guest.files import ImageFiles
from pipeline.guest.system import System

SERVICE = "phantom-ssh-host-keys"

_UNIT = """\
[Unit]
Description=Make this machine's own SSH host keys
# Where cloud-init or the distribution makes them, they are there by then.
After=cloud-init.service cloud-init-network.service sshd-keygen.target sshd-keygen.service
# Not before their sockets: these come before all that multi-user.target wants.
Before=ssh.service sshd.service
ConditionPathExists=!/etc/ssh/ssh_host_rsa_key

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={keygen} -A

[Install]
WantedBy=multi-user.target
"""

_SCRIPT = """\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          phantom-ssh-host-keys
# Required-Start:    $remote_fs
# Required-Stop:
# X-Start-Before:    ssh sshd
# Default-Start:     2 3 4 5
# Default-Stop:
# Short-Description: Make this machine's own SSH host keys
### END INIT INFO

case ${{1-}} in
    start)
        [ -e /etc/ssh/ssh_host_rsa_key ] || {keygen} -A
        ;;
    stop | restart | force-reload | status) ;;
    *)
        echo "usage: $0 start" >&2
        exit 2
        ;;
esac
"""

_OPENRC = """\
#!/sbin/openrc-run

description="Make this machine's own SSH host keys"

depend() {{
    use localmount
    before ssh sshd
}}

start() {{
    [ ! -e /etc/ssh/ssh_host_rsa_key ] || return 0
    ebegin "Making SSH host keys"
    {keygen} -A
    eend $?
}}
"""

_MAKERS = re.compile(rb"ssh-keygen|sshd-keygen|gen-?keys|host-?keys")


def add_maker(
    files: ImageFiles, system: System, programs: Mapping[str, PurePosixPath], init: str
) -> None:
    """Puts the maker in where an sshd is and nothing makes its host keys. `programs` are those of
    the image.

    Beside cloud-init no other maker is relied on: that of Red Hat leaves it to cloud-init, also
    where that does not work.
    """
    keygen = programs.get("ssh-keygen")
    if keygen is None or "sshd" not in programs:
        return
    if system.cloud_init is None and _has_maker(files, init):
        return
    if init == "systemd":
        files.write(services.UNITS[0] / f"{SERVICE}.service", _UNIT.format(keygen=keygen))
    else:
        script = _OPENRC if init == "openrc" else _SCRIPT
        files.write(services.INIT_SCRIPTS / SERVICE, script.format(keygen=keygen), 0o755)
    services.enable(files, init, SERVICE, "default")


def _has_maker(files: ImageFiles, init: str) -> bool:
    """Whether a service that belongs to sshd makes keys."""
    folders = services.UNITS if init == "systemd" else (services.INIT_SCRIPTS,)
    for folder in folders:
        for name in files.names(folder):
            if "ssh" not in name or (init == "systemd" and not name.endswith(".service")):
                continue
            if _MAKERS.search(name.encode()) or _MAKERS.search(files.read(folder / name) or b""):
                return True
    return False
