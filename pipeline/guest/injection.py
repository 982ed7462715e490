"""What Phantom needs in a base image: the payload of elements, and what goes with it."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import PurePosixPath

from pipeline.disk import foreign_kernel
from pipeline.errors import ClientError
from pipeline.guest import cloud_init, host_keys, network, services, sshd
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.payload import Payload

SSH = "phantom-ssh"
"""The element whose payload goes into images that have sshd."""

OPTIONS = PurePosixPath("/etc/default/phantom-user-data")
"""The user-data fetcher's."""

_MODULES_CONDITION = """\
# Written by phantom-image. Where the site gives the kernel, the image has no modules for it, and a
# name in modules-load.d that cannot be loaded would fail the service.
[Unit]
ConditionPathIsDirectory=/lib/modules/%v
"""
# Debian's name of the package that has a program, where it is not the program's own.
_PACKAGES = {"resize2fs": "e2fsprogs", "sfdisk": "fdisk", "partx": "util-linux"}


def inject(
    image: Image,
    payloads: Sequence[Payload],
    *,
    runner: str,
    frequency: str,
    login_user: str = "root",
) -> None:
    """Copies payloads into the image, and has its init system start their services.

    `runner` (`cloud-init`, `fetcher`), `frequency` (`boot`, `instance`) and who logs in with the
    launch's key are the definition's.
    Its files and scripts find them set already; `settle_runner` sets them for good. Raises
    InitSystemError, ClientError, FileSystemError, UnsafeImageError.
    """
    files, init = image.files, image.init  # which refuses an image without an init system
    for payload in filter(_is_for_sshd, payloads):
        sshd.let_in_by_key_only(image, payload)
    payloads = [payload for payload in payloads if not _is_for_sshd(payload)]
    for payload in payloads:
        _check_needs(image.programs, payload)
    chosen = cloud_init.choose_runner(image.system, runner)
    if image.system.cloud_init is not None and chosen != runner:
        image.guest.progress.output(
            "cloud-init is turned off: without systemd, the fetcher runs user-data"
        )
    kept = OPTIONS if files.exists(OPTIONS) else None  # somebody's own
    copies = [copy for payload in payloads for copy in payload.files_for(init)]
    files.copy([copy for copy in copies if copy.target != kept and not _is_masked(files, copy)])
    for payload in payloads:
        for service in payload.services:
            services.enable(image, service, payload.runlevel)
    _set_options(files, payloads, chosen, frequency, login_user)


def settle_runner(
    image: Image,
    payloads: Sequence[Payload],
    *,
    runner: str,
    frequency: str,
    login_user: str = "root",
) -> None:
    """Makes the image boot as every cloud of Phantom's needs it: with DHCP on any card, SSH host
    keys of its own, one runner of user-data, and no module required that a site's kernel may lack.

    Call this after the definition's files and scripts, which may bring cloud-init, another network
    or options of the fetcher; `image.system` is what they left (`inspection.look_again`). Raises
    InitSystemError, FileSystemError, UnsafeImageError.
    """
    init = image.init
    chosen = cloud_init.choose_runner(image.system, runner)
    _set_options(image.files, payloads, chosen, frequency, login_user)
    cloud_init.configure(image, chosen)
    network.configure(image)
    for payload in filter(_is_for_sshd, payloads):
        host_keys.add_maker(image, payload)
    if init == "systemd":
        image.files.write(foreign_kernel.CONDITION, _MODULES_CONDITION)


def _set_options(
    files: ImageFiles, payloads: Sequence[Payload], runner: str, frequency: str, login_user: str
) -> None:
    """Sets the definition's choices in the fetcher's options, if the fetcher is a payload."""
    ours = [copy for payload in payloads for copy in payload.files if copy.target == OPTIONS]
    if not ours:
        return
    text = files.read(OPTIONS) or ours[0].source.read_text()
    leave = "yes" if runner == cloud_init.CLOUD_INIT else "no"
    options = {
        "PHANTOM_USER_DATA_FREQUENCY": frequency,
        "PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT": leave,
        "PHANTOM_LOGIN_USER": login_user,
    }
    for name, value in options.items():
        line = f"{name}={value}"
        text, count = re.subn(rf"(?m)^#? *{name}=.*$", line, text)
        if not count:
            text = f"{text.rstrip()}\n\n{line}\n".lstrip()
    files.write(OPTIONS, text)


def _check_needs(programs: Container[str], payload: Payload) -> None:
    """Raises ClientError."""
    missing = [program for program in payload.needs if program not in programs]
    if missing:
        packages = ", ".join(dict.fromkeys(_PACKAGES.get(program, program) for program in missing))
        raise ClientError(
            f"the base image lacks {' and '.join(missing)}, which {payload.name} needs",
            todo=f"add `packages: [{packages}]` (Debian's names) and `network: true`, or leave the "
            f"element {payload.name} out",
        )
    choice = payload.needs_one_of
    if choice and all(program not in programs for program in choice):
        raise ClientError(
            f"the base image has neither {' nor '.join(choice)}, and {payload.name} needs one",
            todo=f"add `packages: [{choice[0]}]` and `network: true` to the definition",
        )


def _is_for_sshd(payload: Payload) -> bool:
    return payload.name == SSH


def _is_masked(files: ImageFiles, copy: Copy) -> bool:
    return copy.target.parent in services.UNITS and services.is_masked(files, copy.target.name)
