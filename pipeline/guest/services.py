"""Services of the image: which of them its init system starts.

This module writes what systemctl, insserv and rc-update would write. These programs of the image
are not run: an image is not trusted, and may be for another architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pipeline.disk.untrusted import lines_of
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image

UNITS = tuple(PurePosixPath(folder, "systemd/system") for folder in ("/etc", "/usr/lib", "/lib"))
"""Where systemd looks for units, in its order."""
INIT_SCRIPTS = PurePosixPath("/etc/init.d")
RUNLEVELS = PurePosixPath("/etc/runlevels")

_BOOT = "S"  # the run level of what a boot does before any other
_FIRST, _LAST = 1, 99
_LINK = re.compile(r"S([0-9]{2})(.+)")
# insserv's own record of the order, which startpar goes by: a script that is not in it is not
# started, whatever links it has.
_EARLY_RECORD, _RECORD = INIT_SCRIPTS / ".depend.boot", INIT_SCRIPTS / ".depend.start"


def find_unit(files: ImageFiles, unit: str) -> PurePosixPath | None:
    """The file of a systemd unit; None if there is none, or the unit is masked."""
    if is_masked(files, unit):
        return None
    return next(filter(files.exists, (folder / unit for folder in UNITS)), None)


def is_masked(files: ImageFiles, unit: str) -> bool:
    """Whether the image's owner has masked a unit, so that systemd never starts it."""
    return files.read_link(UNITS[0] / unit) == PurePosixPath("/dev/null")


def enable(image: Image, service: str, runlevel: str) -> None:
    """Has the init system start a service at boot, whose unit or init script is in the image.

    `runlevel` is for OpenRC; for the others, unit or script says it. A masked unit stays masked.
    """
    if image.init == "systemd":
        enable_unit(image.files, f"{service}.service")
    elif image.init == "openrc":
        image.files.link(RUNLEVELS / runlevel / service, str(INIT_SCRIPTS / service))
    else:
        _enable_script(image.files, service)


def disable_script(files: ImageFiles, service: str) -> None:
    """Keeps SysV init and OpenRC from starting a service."""
    for level in files.names(RUNLEVELS):
        files.remove(RUNLEVELS / level / service)
    folders = [*filter(None, (_find_level(files, level) for level in "S2345"))]
    for path in [folder / name for folder in folders for name in files.names(folder)]:
        if re.fullmatch(rf"S[0-9]{{2}}{re.escape(service)}", path.name):
            files.remove(path)


def is_script_enabled(files: ImageFiles, service: str) -> bool:
    """Whether SysV init or OpenRC starts a service at boot."""
    if any(files.exists(RUNLEVELS / level / service) for level in files.names(RUNLEVELS)):
        return True
    folders = filter(None, (_find_level(files, level) for level in "S2345"))
    return any(
        re.fullmatch(rf"S\d\d{re.escape(service)}", name)
        for folder in folders
        for name in files.names(folder)
    )


# ---- systemd


def enable_unit(files: ImageFiles, unit: str) -> None:
    """Makes the links that `systemctl enable` makes, unless the unit is absent or masked."""
    path = find_unit(files, unit)
    if path is None:
        return
    text = files.read(path)
    for key, folder in (("WantedBy", "wants"), ("RequiredBy", "requires")):
        for target in re.findall(rf"(?m)^{key}=(.*)$", text):
            for wanting in target.split():
                files.link(UNITS[0] / f"{wanting}.{folder}" / unit, str(path))


# ---- SysV


def read_header(script: str) -> dict[str, list[str]]:
    """The words of each key of an init script's LSB header; empty if it has no header."""
    lines = [*lines_of(script)]
    try:
        start = lines.index("### BEGIN INIT INFO")
        header = lines[start : lines.index("### END INIT INFO", start)]
    except ValueError:
        return {}
    matches = (re.match(r"#[ \t]*([A-Za-z-]+):(.*)", line) for line in header)
    return {match[1]: match[2].split() for match in matches if match is not None}


def _enable_script(files: ImageFiles, service: str) -> None:
    script = files.read(INIT_SCRIPTS / service)
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
    for record in {_EARLY_RECORD if level == _BOOT else _RECORD for level in levels}:
        _record(files, record, service, header)


def _find_level(files: ImageFiles, level: str) -> PurePosixPath | None:
    folders = (f"/etc/rc{level}.d", f"/etc/rc.d/rc{level}.d", f"/etc/init.d/rc{level}.d")
    return next(filter(files.is_folder, map(PurePosixPath, folders)), None)


def _find_number(
    files: ImageFiles, folder: PurePosixPath, header: dict[str, list[str]], *, early: bool
) -> int:
    """The place in a run level's order: before and after what the header says, else the last."""
    links = [*filter(None, map(_LINK.fullmatch, files.names(folder)))]

    def numbers(key: str) -> Iterator[int]:
        for link in links:
            if link[2].removesuffix(".sh") in header.get(key, []):
                yield int(link[1])

    if "X-Start-Before" in header:
        return max(_FIRST, min(numbers("X-Start-Before"), default=_LAST) - 1)
    return min(_LAST, max(numbers("Required-Start"), default=0 if early else _LAST) + 1)


def _record(
    files: ImageFiles, record: PurePosixPath, service: str, header: dict[str, list[str]]
) -> None:
    """Adds a script to insserv's record, if there is one, as insserv would."""
    content = files.read(record)
    if not content:
        return
    lines = [line for line in content.splitlines() if line]
    targets = next((line.partition("=")[2].split() for line in lines if "TARGETS" in line), [])
    others = [script for script in targets if script != service]

    def named(key: str) -> list[str]:
        return [script for script in others if script.removesuffix(".sh") in header.get(key, [])]

    last = "$all" in header.get("Should-Start", [])
    kept = [line for line in lines if not line.startswith((f"{service}:", "TARGETS"))]
    needs = {line.partition(":")[0]: line.partition(":")[2].split() for line in kept if ":" in line}
    needs[service] = others if last else named("Required-Start")
    for script in named("X-Start-Before"):
        needs[script] = [*dict.fromkeys([*needs.get(script, []), service])]
    made = [f"TARGETS = {' '.join([*others, service])}"]
    made += [line for line in kept if ":" not in line]
    made += [f"{name}: {' '.join(needed)}" for name, needed in needs.items() if needed]
    files.write(record, "".join(f"{line}\n" for line in made))
