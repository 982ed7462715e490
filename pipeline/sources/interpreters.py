"""The interpreters of a definition's scripts: one that the image lacks is told of before the build.

The kernel says of such a script only that there is no such file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.errors import DefinitionError
from pipeline.model import Appliance
from pipeline.realfile import open_file

# Debian's packages that have a program, the one to ask for first.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bash": ("bash",),
    "busybox": ("busybox", "busybox-static"),
    "dash": ("dash",),
    "expect": ("expect",),
    "fish": ("fish",),
    "gawk": ("gawk",),
    "guile": ("guile-3.0", "guile-2.2"),
    "ksh": ("ksh", "ksh93u+m", "mksh"),
    "lua": ("lua5.4", "lua5.3", "lua5.1"),
    "make": ("make",),
    "mawk": ("mawk",),
    "mksh": ("mksh",),
    "node": ("nodejs",),
    "nodejs": ("nodejs",),
    "perl": ("perl-base",),
    "php": ("php-cli", "php8.2-cli", "php8.4-cli"),
    "pwsh": ("powershell",),
    "python": ("python-is-python3",),
    "python2": ("python2", "python2-minimal"),
    "python3": ("python3-minimal", "python3"),
    "Rscript": ("r-base-core",),
    "ruby": ("ruby",),
    "sh": ("dash",),
    "tclsh": ("tcl", "tcl8.6"),
    "tcsh": ("tcsh",),
    "zsh": ("zsh",),
}
_FOLDERS = ("/bin", "/usr/bin")
_SHEBANG = re.compile(rb"#![ \t]{0,40}(\S{1,255})(?:[ \t]{1,40}([^\r\n]{0,255}))?")
_MOST = 1 << 20  # bytes of a script that are read


def check_interpreters(appliance: Appliance, packages: Collection[str]) -> None:
    """Raises DefinitionError for a script whose interpreter is in none of the image's packages, nor
    among the definition's files. A script before it that mentions the interpreter may bring it."""
    brought = {file.target for file in appliance.files}
    earlier = b""
    for place, script in _scripts(appliance):
        content = _read(script)
        program = _find_interpreter(content)
        if (
            program is not None
            and str(program.parent) in _FOLDERS
            and program.name in _PACKAGES
            and not any(package in packages for package in _PACKAGES[program.name])
            and program not in brought
            and program.name.encode() not in earlier
        ):
            raise DefinitionError(
                f"{script.name} begins with #! for {program}, which is not in the image",
                where=place,
                todo=f"add {_PACKAGES[program.name][0]} to `packages`, or write the script for "
                "/bin/sh",
            )
        earlier += content


def _scripts(appliance: Appliance) -> Iterator[tuple[str, Path]]:
    """The scripts in the order in which they run, with where the definition names them."""
    positions, policy = appliance.positions, appliance.phantom
    named = {
        PurePosixPath(keys[1]).name: where
        for keys, where in positions.places.items()
        if len(keys) == 2 and keys[0] == "scripts" and isinstance(keys[1], str)
    }
    for script in appliance.scripts:
        yield named.get(script.name, positions.find("scripts")), script
    if policy.user_data is not None:
        yield positions.find("phantom", "user_data"), policy.user_data
    if appliance.boot_check.script is not None:
        yield positions.find("boot_check", "script"), appliance.boot_check.script
    for guest in appliance.boot_check.cluster.guests if appliance.boot_check.cluster else ():
        for script in filter(None, (guest.user_data, guest.script)):
            yield positions.find("boot_check", "cluster", "guests"), script


def _read(script: Path) -> bytes:
    try:
        with open_file(script) as content:
            return content.read(_MOST)
    except OSError:
        return b""


def _find_interpreter(content: bytes) -> PurePosixPath | None:
    """The program that runs a script: with `#!/usr/bin/env python3` it is /usr/bin/python3."""
    match = _SHEBANG.match(content)
    if match is None:
        return None
    program = PurePosixPath(match[1].decode(errors="replace"))
    if program.name != "env":
        return program
    words = (match[2] or b"").decode(errors="replace").split()
    named = next((word for word in words if not word.startswith("-") and "=" not in word), None)
    return None if named is None or "/" in named else PurePosixPath("/usr/bin", named)
