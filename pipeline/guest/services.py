"""Services of the image: which of them its init system starts.

Programs of the image such as systemctl, insserv and rc-update are not run: an image is not trusted,
and may be of another architecture. What they would write is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.errors import InitSystemError
from pipeline.guest.files import ImageFiles
from pipeline.guest.system import System

UNITS = tuple(
    PurePosixPath(folder)
    for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
)
"""Where systemd looks for units, in its order."""
INIT_SCRIPTS = PurePosixPath("/etc/init.d")
RUNLEVELS = PurePosixPath("/etc/runlevels")

_PROGRAMS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BOOT = "S"  # the run level of what a boot does before any other
_FIRST, _LAST = 1, 99
# insserv's own record of the order, which startpar goes by: a script that is not in it is not
# started, whatever links it has.
_RECORDS = {_BOOT: ".depend.boot"}
_RECORD = ".depend.start"


def find_init(system: System) -> str:
    """The init system: `systemd`, `sysv` or `openrc`. Raises InitSystemError."""
    if system.init is None:
        raise InitSystemError(
            "the base image has no init system that is known, so that nothing in it would fetch "
            "user-data at boot",
            todo="take a base image with systemd, SysV init or OpenRC",
        )
    return system.init


def find_programs(files: ImageFiles) -> dict[str, PurePosixPath]:
    """The image's programs by name, each where its root would find it."""
    found: dict[str, PurePosixPath] = {}
    for folder in _PROGRAMS:
        for name in files.names(PurePosixPath(folder)):
            found.setdefault(name, PurePosixPath(folder, name))
    return found


def find_unit(files: ImageFiles, unit: str) -> PurePosixPath | None:
    """The file of a systemd unit that is there and not masked."""
    if is_masked(files, unit):
        return None
    places = (folder / unit for folder in UNITS)
    return next((each for each in places if files.exists(each)), None)


def is_masked(files: ImageFiles, unit: str) -> bool:
    """Whether the image's owner wants that systemd never starts a unit."""
    return files.read_link(UNITS[0] / unit) == "/dev/null"


def enable(files: ImageFiles, init: str, service: str, runlevel: str) -> None:
    """Has the init system start a service at boot, whose unit or init script is in the image.

    `runlevel` is OpenRC's; the others find theirs in unit or script. A unit that is masked stays
    so.
    """
    if init == "systemd":
        enable_unit(files, f"{service}.service")
    elif init == "openrc":
        files.link(RUNLEVELS / runlevel / service, str(INIT_SCRIPTS / service))
    else:
        _enable_script(files, service)


def disable_script(files: ImageFiles, service: str) -> None:
    """Has neither SysV init nor OpenRC start a service."""
    for level in files.names(RUNLEVELS):
        files.remove(RUNLEVELS / level / service)
    for level in "S2345":
        folder = _find_level(files, level)
        for name in [] if folder is None else files.names(folder):
            if re.fullmatch(rf"S\d\d{re.escape(service)}", name):
                assert folder is not None
                files.remove(folder / name)


# ---- systemd


def enable_unit(files: ImageFiles, unit: str) -> None:
    """Makes the links that `systemctl enable` makes. Nothing where the unit is not or is masked."""
    path = find_unit(files, unit)
    if path is None:
        return
    text = (files.read(path) or b"").decode("utf-8", "replace")
    for key, folder in (("WantedBy", "wants"), ("RequiredBy", "requires")):
        for target in re.findall(rf"(?m)^{key}=(.*)$", text):
            for each in target.split():
                files.link(UNITS[0] / f"{each}.{folder}" / unit, str(path))


# ---- SysV


def read_header(script: str) -> dict[str, list[str]]:
    """The words of each key of an init script's LSB header; empty where it has none."""
    header = re.search(r"(?ms)^### BEGIN INIT INFO$(.*?)^### END INIT INFO$", script)
    lines = re.findall(r"(?m)^#\s*([A-Za-z-]+):(.*)$", header[1]) if header else []
    return {key: value.split() for key, value in lines}


def _enable_script(files: ImageFiles, service: str) -> None:
    script = (files.read(INIT_SCRIPTS / service) or b"").decode("utf-8", "replace")
    header = read_header(script)
    levels = header.get("Default-Start", [])
    early = levels == [_BOOT]
    if early and _find_level(files, _BOOT) is None:  # Red Hat's boot is one script
        levels = ["2", "3", "4", "5"]
    disable_script(files, service)
    for level in levels:
        folder = _find_level(files, level)
        if folder is not None:
            number = _find_number(files, folder, header, early=early)
            target = "../init.d/" if folder.parent != INIT_SCRIPTS else "../"
            files.link(folder / f"S{number:02}{service}", f"{target}{service}")
    for record in {_RECORDS.get(level, _RECORD) for level in levels}:
        _record(files, INIT_SCRIPTS / record, service, header)


def _find_level(files: ImageFiles, level: str) -> PurePosixPath | None:
    folders = (f"/etc/rc{level}.d", f"/etc/rc.d/rc{level}.d", f"/etc/init.d/rc{level}.d")
    return next((each for each in map(PurePosixPath, folders) if files.is_folder(each)), None)


def _find_number(
    files: ImageFiles, folder: PurePosixPath, header: dict[str, list[str]], *, early: bool
) -> int:
    """The place in a run level's order: before and after what the header says, else the last."""
    links = [each for each in map(_LINK.fullmatch, files.names(folder)) if each is not None]

    def numbers(key: str) -> Iterator[int]:
        for link in links:
            if link[2].removesuffix(".sh") in header.get(key, []):
                yield int(link[1])

    if "X-Start-Before" in header:
        return max(_FIRST, min(numbers("X-Start-Before"), default=_LAST) - 1)
    return min(_LAST, max(numbers("Required-Start"), default=0 if early else _LAST) + 1)


_LINK = re.compile(r"S(\d\d)(.+)")


def _record(
    files: ImageFiles, record: PurePosixPath, service: str, header: dict[str, list[str]]
) -> None:
    """Notes a script in insserv's record, as insserv would. Nothing where there is none."""
    content = files.read(record)
    if not content:
        return
    lines = [line for line in content.decode("utf-8", "replace").splitlines() if line]
    targets = next((line.partition("=")[2].split() for line in lines if "TARGETS" in line), [])
    others = [each for each in targets if each != service]

    def named(key: str) -> list[str]:
        return [each for each in others if each.removesuffix(".sh") in header.get(key, [])]

    last = "$all" in header.get("Should-Start", [])
    kept = [line for line in lines if not line.startswith((f"{service}:", "TARGETS"))]
    needs = {line.partition(":")[0]: line.partition(":")[2].split() for line in kept if ":" in line}
    needs[service] = others if last else named("Required-Start")
    for each in named("X-Start-Before"):
        needs[each] = [*dict.fromkeys([*needs.get(each, []), service])]
    made = [f"TARGETS = {' '.join([*others, service])}"]
    made += [line for line in kept if ":" not in line]
    made += [f"{name}: {' '.join(needed)}" for name, needed in needs.items() if needed]
    files.write(record, "".join(f"{line}\n" for line in made))
