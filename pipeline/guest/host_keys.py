"""SSH host keys, made by each machine at boot.

The base image's own keys are removed, since all machines would share them. The services of the
element phantom-ssh make new ones, unless something makes them that is started at boot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.guest import services, sshd
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.payload import Payload

_MAKERS = re.compile(r"ssh-keygen|sshd-keygen|gen-?keys|host-?keys")
_OWN = ("ssh", "sshd")  # what distributions call sshd's own service
_LATE = {*(f"{service}.service" for service in _OWN), "multi-user.target", "graphical.target"}
_AFTER = """\
# Written by phantom-image. These units make host keys too, if they are started.
[Unit]
After={makers}
"""


def add_maker(image: Image, payload: Payload) -> None:
    """Adds the services if the image has an sshd, unless its host keys are made at boot for sure.

    A unit's presence says little: many disable themselves, or leave the keys to cloud-init on
    clouds where that does not work. So under systemd ours come after all of those, and make the
    keys that are missing then.
    """
    if "sshd" not in image.programs or "ssh-keygen" not in image.programs:
        return
    files, systemd = image.files, image.init == "systemd"
    folders = services.UNITS if systemd else (services.INIT_SCRIPTS,)
    makers = sorted({*_find_makers(files, folders)} - {*payload.services})
    if image.system.cloud_init is None and any(_is_started(image, maker) for maker in makers):
        return
    copies = [copy for copy in payload.files_for(image.init) if copy.target != sshd.DROP_IN]
    files.copy(copies)
    earlier = [f"{maker}.service" for maker in makers if systemd and _can_be_first(files, maker)]
    for service in payload.services:
        unit = services.UNITS[0] / f"{service}.service"
        if systemd and not services.is_masked(files, unit.name):
            files.remove(unit)  # of an earlier build, in the way of what was copied
        if earlier:
            place = services.UNITS[0] / f"{service}.service.d/phantom.conf"
            files.write(place, _AFTER.format(makers=" ".join(earlier)))
        if systemd or files.exists(services.INIT_SCRIPTS / service):
            services.enable(image, service, payload.runlevel)


def _is_started(image: Image, maker: str) -> bool:
    """Whether a maker of keys is started at boot, before sshd. Under systemd only sshd's own unit
    is: others may have conditions."""
    if image.init == "systemd":
        return maker in _OWN and services.find_unit(image.files, f"{maker}.service") is not None
    return services.is_script_enabled(image.files, maker)


def _can_be_first(files: ImageFiles, maker: str) -> bool:
    """Whether a unit can come before ours, which come before sshd: not if it comes after sshd."""
    path = services.find_unit(files, f"{maker}.service")
    if maker in _OWN or path is None:
        return False
    later = re.findall(r"(?m)^After=(.*)$", files.read(path))
    return not _LATE.intersection(unit for line in later for unit in line.split())


def _find_makers(files: ImageFiles, folders: Sequence[PurePosixPath]) -> Iterator[str]:
    """The services of ssh that make keys, without templates: their instances have a target."""
    suffix = ".service" if folders == services.UNITS else ""
    for path in (folder / name for folder in folders for name in files.names(folder)):
        name = path.name.removesuffix(suffix)
        named = "ssh" in name and path.name.endswith(suffix) and not name.endswith("@")
        if named and (_MAKERS.search(name) or _MAKERS.search(files.read(path))):
            yield name
