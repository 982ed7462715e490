"""SELinux labels of what was changed in the image."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.disk.os_release import parse_assignments
from pipeline.guest.image import Image
from pipeline.guest.programs import run_program

_CONFIG = PurePosixPath("/etc/selinux/config")
_AT_BOOT = PurePosixPath("/.autorelabel")
_SECONDS = 600  # a system of a hundred thousand files takes half a minute
_OURS = "x86_64"  # whose programs libguestfs's appliance can run


def relabel(image: Image) -> None:
    """Gives every file the label of the image's own policy. If that cannot be done here, the image
    does it at its first boot. Nothing happens if SELinux is off or not installed."""
    if image.system.selinux is None:
        return
    image.guest.progress.step("setting SELinux labels")
    if not _label(image):
        image.guest.progress.output(
            "SELinux labels cannot be set here: the image sets them at first boot"
        )
        image.files.write(_AT_BOOT, "")


def _label(image: Image) -> bool:
    policy = parse_assignments(image.files.read(_CONFIG)).get("SELINUXTYPE", "targeted")
    contexts = PurePosixPath("/etc/selinux", policy, "contexts/files/file_contexts")
    setfiles = image.programs.get("setfiles")
    if setfiles is None or image.system.architecture != _OURS or not image.files.exists(contexts):
        return False
    # -F sets whole contexts, also of files that were copied in without one. -m would leave out what
    # /proc/mounts does not list as labelled, and the appliance's own kernel labels nothing.
    skipped = [word for folder in ("/proc", "/sys", "/dev", "/run") for word in ("-e", folder)]
    words = [str(setfiles), "-F", *skipped, str(contexts), "/"]
    return run_program(image, words, seconds=_SECONDS).status == 0
