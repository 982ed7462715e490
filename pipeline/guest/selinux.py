"""SELinux labels of what was changed in the image."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline.guest.appliance import Guest
from pipeline.guest.files import ImageFiles
from pipeline.guest.programs import run_program
from pipeline.guest.services import find_programs
from pipeline.guest.system import System

_CONFIG = PurePosixPath("/etc/selinux/config")
_AT_BOOT = PurePosixPath("/.autorelabel")
_SECONDS = 600  # a system of a hundred thousand files takes half a minute
_OURS = "x86_64"  # whose programs libguestfs's appliance can run


def relabel(guest: Guest, files: ImageFiles, system: System) -> None:
    """Gives every file the label that the image's own policy says. Where that cannot be done here,
    the image is told to do it when it boots. Nothing where SELinux is off or not there."""
    if system.selinux is None:
        return
    guest.progress.step("setting SELinux labels")
    if not _label(guest, files, system):
        guest.progress.output(
            "SELinux labels cannot be set here: the image sets them at first boot"
        )
        files.write(_AT_BOOT, "")


def _label(guest: Guest, files: ImageFiles, system: System) -> bool:
    config = (files.read(_CONFIG) or b"").decode("utf-8", "replace")
    policy = re.search(r"(?m)^\s*SELINUXTYPE\s*=\s*([A-Za-z0-9._-]+)", config)
    name = policy[1] if policy is not None else "targeted"
    contexts = PurePosixPath("/etc/selinux", name, "contexts/files/file_contexts")
    setfiles = find_programs(files).get("setfiles")
    if setfiles is None or not files.exists(contexts) or system.architecture != _OURS:
        return False
    # -F: whole contexts, of what was copied in with none too. -m would leave out file systems that
    # its /proc/mounts does not list as labelled, and the appliance's own kernel labels nothing.
    skipped = [word for folder in ("/proc", "/sys", "/dev", "/run") for word in ("-e", folder)]
    words = [str(setfiles), "-F", *skipped, str(contexts), "/"]
    return run_program(guest, files, words, seconds=_SECONDS).status == 0
