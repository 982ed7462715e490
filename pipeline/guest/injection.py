"""What Phantom needs in a base image: the payload of elements, and what goes with it.

An element's `static/` is its one payload: its hooks install it where an image is made from scratch,
and the same files are copied into base images if `base-image.yaml` lies beside them:

    services: [phantom-user-data]   started at boot, by whichever init system the image has
    runlevel: default               OpenRC's, for these services
    needs: [resize2fs]              programs of the image
    needs_one_of: [curl, wget]

`openrc/` has init scripts for OpenRC, in place of those for SysV init.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ClientError
from pipeline.guest import cloud_init, host_keys, network, services
from pipeline.guest.appliance import Guest
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.system import System
from pipeline.tools import foreign_kernel

DESCRIPTION = "base-image.yaml"

OPTIONS = PurePosixPath("/etc/default/phantom-user-data")
"""The user-data fetcher's."""

_MODULES_CONDITION = """\
# Written by phantom-image. Where the site gives the kernel, the image has no modules for it, and a
# name in modules-load.d that cannot be loaded would fail the service.
[Unit]
ConditionPathIsDirectory=/lib/modules/%v
"""
_INIT_SCRIPTS = f"{services.INIT_SCRIPTS}/"
# Debian's name of the package that has a program, where it is not the program's own.
_PACKAGES = {"resize2fs": "e2fsprogs", "sfdisk": "fdisk", "partx": "util-linux"}


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What an element brings into a base image."""

    name: str
    files: tuple[Copy, ...]
    """As they land in the image."""
    openrc_files: tuple[Copy, ...] = ()
    """In place of init scripts, where OpenRC is."""
    services: tuple[str, ...] = ()
    runlevel: str = "default"
    needs: tuple[str, ...] = ()
    """Programs."""
    needs_one_of: tuple[str, ...] = ()

    def files_for(self, init: str) -> tuple[Copy, ...]:
        """Those that an image with this init system has a use for."""
        if init == "systemd":
            return tuple(each for each in self.files if not _is_script(each))
        others = tuple(each for each in self.files if not _is_unit(each))
        if init != "openrc":
            return others
        return (*(each for each in others if not _is_script(each)), *self.openrc_files)


def read_payload(element: Path) -> Payload | None:
    """The payload of an element's folder; None where it has none for base images."""
    import yaml

    description = element / DESCRIPTION
    if not description.is_file():
        return None
    told = yaml.safe_load(description.read_text()) or {}
    return Payload(
        name=element.name,
        files=_read_tree(element / "static"),
        openrc_files=_read_tree(element / "openrc"),
        services=tuple(told.get("services", ())),
        runlevel=told.get("runlevel", "default"),
        needs=tuple(told.get("needs", ())),
        needs_one_of=tuple(told.get("needs_one_of", ())),
    )


def inject(
    guest: Guest,
    files: ImageFiles,
    system: System,
    payloads: Sequence[Payload],
    *,
    runner: str,
    frequency: str,
) -> None:
    """Puts payloads into the image, and has its init system start their services.

    `runner` (`cloud-init`, `fetcher`) and `frequency` (`boot`, `instance`) are the definition's,
    whose files and scripts find them set; `settle_runner` has the last word. Raises
    InitSystemError, ClientError, FileSystemError, UnsafeImageError.
    """
    init = services.find_init(system)
    programs = services.find_programs(files)
    for payload in payloads:
        _check_needs(programs, payload)
    chosen = cloud_init.choose_runner(system, runner)
    if system.cloud_init is not None and chosen != runner:
        guest.progress.output(
            "cloud-init is turned off: without systemd, the fetcher runs user-data"
        )
    _put_in(files, init, payloads)
    _set_options(files, payloads, chosen, frequency)


def settle_runner(
    files: ImageFiles,
    system: System,
    payloads: Sequence[Payload],
    *,
    runner: str,
    frequency: str,
) -> None:
    """Has the image, which is as it stays otherwise, boot as every cloud of Phantom's needs it:
    with DHCP on any card, SSH host keys of its own, one runner of user-data, and no module wanted
    that a site's own kernel lacks.

    After the definition's files and scripts, which may bring cloud-init or another network, and
    options of the fetcher's; `system` is what they left (`inspection.look_again`). Raises
    InitSystemError, FileSystemError, UnsafeImageError.
    """
    init = services.find_init(system)
    programs = services.find_programs(files)
    chosen = cloud_init.choose_runner(system, runner)
    _set_options(files, payloads, chosen, frequency)
    cloud_init.configure(files, system, chosen)
    network.configure(files, system, programs)
    host_keys.add_maker(files, system, programs, init)
    if init == "systemd":
        files.write(foreign_kernel.CONDITION, _MODULES_CONDITION)


def _put_in(files: ImageFiles, init: str, payloads: Sequence[Payload]) -> None:
    kept = OPTIONS if files.exists(OPTIONS) else None  # somebody's own
    files.copy(
        [
            each
            for payload in payloads
            for each in payload.files_for(init)
            if each.target != kept and not _is_masked(files, each)
        ]
    )
    for payload in payloads:
        for service in payload.services:
            services.enable(files, init, service, payload.runlevel)


def _set_options(
    files: ImageFiles, payloads: Sequence[Payload], runner: str, frequency: str
) -> None:
    """Sets what the definition says in the fetcher's options, if the fetcher is put in."""
    ours = [each for payload in payloads for each in payload.files if each.target == OPTIONS]
    if not ours:
        return
    text = (files.read(OPTIONS) or ours[0].source.read_bytes()).decode("utf-8", "replace")
    text = _set_option(text, "FREQUENCY", frequency)
    leave = "yes" if runner == cloud_init.CLOUD_INIT else "no"
    files.write(OPTIONS, _set_option(text, "LEAVE_TO_CLOUD_INIT", leave))


def _set_option(text: str, name: str, value: str) -> str:
    """The fetcher's options with one set, and all others as they are."""
    line = f"PHANTOM_USER_DATA_{name}={value}"
    pattern = rf"(?m)^#? *PHANTOM_USER_DATA_{name}=.*$"
    if re.search(pattern, text):
        return re.sub(pattern, line, text)
    return f"{text.rstrip()}\n\n{line}\n".lstrip()


def _check_needs(programs: Container[str], payload: Payload) -> None:
    """Raises ClientError."""
    missing = [each for each in payload.needs if each not in programs]
    if missing:
        packages = ", ".join(dict.fromkeys(_PACKAGES.get(each, each) for each in missing))
        raise ClientError(
            f"the base image lacks {' and '.join(missing)}, which {payload.name} needs",
            todo=f"add `packages: [{packages}]` (Debian's names) and `network: true`, or leave the "
            f"element {payload.name} out",
        )
    choice = payload.needs_one_of
    if choice and all(each not in programs for each in choice):
        raise ClientError(
            f"the base image has neither {' nor '.join(choice)}, and {payload.name} needs one",
            todo=f"add `packages: [{choice[0]}]` and `network: true` to the definition",
        )


def _is_script(copy: Copy) -> bool:
    return str(copy.target).startswith(_INIT_SCRIPTS)


def _is_unit(copy: Copy) -> bool:
    return "/systemd/system/" in str(copy.target)


def _is_masked(files: ImageFiles, copy: Copy) -> bool:
    return copy.target.parent in services.UNITS and services.is_masked(files, copy.target.name)


def _read_tree(folder: Path) -> tuple[Copy, ...]:
    """A folder's files as they land in the image, whatever their modes are in the checkout."""
    return tuple(
        Copy(
            target=PurePosixPath("/", path.relative_to(folder)),
            mode=0o755 if path.read_bytes().startswith(b"#!") else 0o644,
            source=path,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
