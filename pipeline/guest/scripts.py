"""The definition's scripts, run in the image."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pipeline.errors import (
    FileSystemError,
    PhantomError,
    ScriptError,
    ScriptHungError,
    ScriptRebootError,
)
from pipeline.guest.appliance import Guest
from pipeline.guest.files import TEMPORARY, Copy, ImageFiles, full
from pipeline.guest.programs import Ended, reachable, resolving, run_program

_INTERPRETER = re.compile(rb"^#![ \t]*(/[^ \t\r\n]*)(\r?)")


def run_scripts(
    guest: Guest,
    files: ImageFiles,
    scripts: Sequence[Path],
    *,
    seconds: int,
    network: bool = False,
    proxies: Mapping[str, str] | None = None,
) -> None:
    """Runs scripts one after the other as root, in `/`, with nothing to read; what they print is
    shown as it comes. What a script leaves running ends with it.

    `proxies` are environment variables, given only with a network. Raises ScriptError,
    ScriptHungError after `seconds` of one script, ScriptRebootError, FileSystemError.
    """
    if not scripts:
        return
    proxies = proxies if network and proxies else {}
    environment = {name: reachable(value) for name, value in proxies.items()}
    folder = PurePosixPath(f"/{TEMPORARY}{secrets.token_hex(8)}")
    try:
        with resolving(guest, files, network=network):
            for number, script in enumerate(scripts):
                guest.progress.step(f"running {script.name}")
                place = folder / f"{number:02d}" / script.name
                files.make_folder(folder, 0o700)
                files.copy([Copy(target=place, mode=0o700, source=script)])
                _check_interpreter(guest, script)
                _run(guest, files, script, place, seconds=seconds, environment=environment)
    finally:
        if not guest.ended:
            with suppress(FileSystemError):
                files.remove(folder)


def _run(
    guest: Guest,
    files: ImageFiles,
    script: Path,
    place: PurePosixPath,
    *,
    seconds: int,
    environment: Mapping[str, str],
) -> None:
    try:
        ended = run_program(guest, files, [str(place)], seconds=seconds, environment=environment)
    except TimeoutError:
        raise ScriptHungError(
            f"the definition's script {script.name} did not end in the base image within "
            f"{seconds} s",
            todo="look at what it waits for, or set a higher `script_seconds`",
            log=guest.log,
        ) from None
    if ended.status != 0:
        raise _explain(guest, script, ended)


def _explain(guest: Guest, script: Path, ended: Ended) -> PhantomError:
    detail = "\n".join(ended.lines)
    if ended.status is None:
        return ScriptRebootError(
            f"the definition's script {script.name} shut down the machine that it ran in",
            todo="leave reboots out: the image boots only when it is complete",
            log=guest.log,
            detail=detail,
        )
    if any("No space left on device" in line for line in ended.lines):
        error: PhantomError = full()
        error.log, error.detail = guest.log, detail
        return error
    return ScriptError(
        f"the definition's script {script.name} failed in the base image with status "
        f"{ended.status}",
        log=guest.log,
        detail=detail,
    )


def _check_interpreter(guest: Guest, script: Path) -> None:
    """Says so where the program that a script names is not there, which no shell says well."""
    with script.open("rb") as content:
        found = _INTERPRETER.match(content.read(256))
    if found is None:
        return
    if found[2]:
        raise ScriptError(
            f"the definition's script {script.name} has Windows line ends",
            todo="save it with Unix line ends",
        )
    interpreter = found[1].decode("utf-8", "replace")
    if not guest.handle.is_file(interpreter, followsymlinks=True):
        raise ScriptError(
            f"the definition's script {script.name} needs {interpreter}, which the base image "
            "does not have",
            todo="add the package that has it, or write the script for /bin/sh",
        )
