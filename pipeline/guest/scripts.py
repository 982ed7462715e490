"""The definition's scripts, run in the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath

from pipeline.customizations.customization import Step
from pipeline.customizations.python import WHEELS
from pipeline.errors import (
    CustomizationError,
    FileSystemError,
    PhantomError,
    ScriptError,
    ScriptHungError,
    ScriptRebootError,
)
from pipeline.guest.appliance import Guest
from pipeline.guest.files import Copy, full, temporary_name
from pipeline.guest.image import Image
from pipeline.guest.programs import Ended, resolving, run_program
from pipeline.guest.secret_files import showing_secrets
from pipeline.tools import script_line

_INTERPRETER = re.compile(rb"^#![ \t]*(/[^ \t\r\n]*)(\r?)")


def run_scripts(
    image: Image,
    scripts: Sequence[Path],
    *,
    places: Sequence[str] = (),
    seconds: int,
    network: bool = False,
    proxies: Mapping[str, str] | None = None,
    secrets: Mapping[str, bytes] | None = None,
) -> None:
    """Runs scripts one after the other as root, in `/`, with nothing to read; what they print is
    shown as it comes. What a script leaves running ends with it.

    `places` names, for messages, where each script is on this host. `proxies` are environment
    variables, given only with a network. `secrets` are files of /run/secrets, in the appliance's
    memory alone, and hidden in what scripts print. Raises ScriptError, ScriptHungError after
    `seconds` of one script, ScriptRebootError, FileSystemError.
    """
    if not scripts:
        return
    guest, files = image.guest, image.files
    environment = proxies if network and proxies else {}
    folder = PurePosixPath("/", temporary_name())
    try:
        with (
            resolving(image) if network else nullcontext(),
            showing_secrets(image, secrets or {}) as shown,
        ):
            for number, script in enumerate(scripts):
                guest.progress.step(f"running {script.name}", seconds=seconds)
                place = folder / f"{number:02d}" / script.name
                files.make_folder(folder, 0o700)
                files.copy([Copy(target=place, mode=0o700, source=script)])
                _check_interpreter(guest, script)
                with _placed(places[number] if places else script.name, place):
                    _run(
                        image,
                        script,
                        place,
                        seconds=seconds,
                        environment=environment,
                        secrets=shown,
                    )
    finally:
        if not guest.ended:
            with suppress(FileSystemError):
                files.remove(folder)


@contextmanager
def _placed(name: str, place: PurePosixPath) -> Iterator[None]:
    """Names the script, which ran at a place in the image, by its `name` on this host: before the
    number of the line where it failed, and in what it printed."""
    try:
        yield
    except ScriptError as error:
        if error.where is not None:
            error.where = f"{name}:{error.where}"
        error.detail = error.detail and error.detail.replace(str(place), name)
        raise


def run_steps(image: Image, steps: Sequence[Step], wheels: Path | None = None) -> None:
    """Runs what customizes the image, in order. The step `python` installs the files of the folder
    `wheels`. Raises CustomizationError, FileSystemError."""
    place, folder = (PurePosixPath("/", temporary_name()) for _ in range(2))
    if wheels is not None:
        image.files.make_folder(folder, 0o700)
        image.files.copy(
            [Copy(target=folder / file.name, mode=0o600, source=file) for file in wheels.iterdir()]
        )
    for step in steps:
        image.guest.progress.step(f"applying '{step.name}'")
        image.files.write(place, f"{WHEELS}={folder}\n{step.script}", 0o700)
        try:
            ended = run_program(image, ["/bin/sh", str(place)], seconds=step.seconds)
        except TimeoutError:
            ended = Ended(status=None, output=f"it did not end within {step.seconds} s")
        if ended.status != 0:
            raise CustomizationError.make(
                step.name, where=step.where, log=image.guest.log, detail=ended.output
            )
        image.files.remove(place)
    if wheels is not None:
        image.files.remove(folder)


def _run(
    image: Image,
    script: Path,
    place: PurePosixPath,
    *,
    seconds: int,
    environment: Mapping[str, str],
    secrets: PurePosixPath | None,
) -> None:
    note, aid = (place.parent.with_suffix(end) for end in (".failed", ".tell-line"))
    image.files.write(aid, script_line.make_environment(note), 0o600)
    environment = {**environment, "BASH_ENV": str(aid)}
    try:
        ended = run_program(
            image, [str(place)], seconds=seconds, environment=environment, secrets=secrets
        )
    except TimeoutError:
        raise ScriptHungError(
            f"the definition's script {script.name} did not end in the base image within "
            f"{seconds} s",
            todo="look at what it waits for, or set a higher `script_seconds`",
            log=image.guest.log,
        ) from None
    if ended.status != 0:
        error = _explain(image.guest, script, ended)
        if isinstance(error, ScriptError):
            status, printed = ended.status or 0, ended.output.splitlines()
            line = script_line.read_note(image.files.read_to_edit(note), status)
            number = script_line.find_printed(printed, re.escape(str(place)), status)
            if line is not None:
                error.what += f": {line.command}"
                number = line.number
            error.where = None if number is None else str(number)
        raise error


def _explain(guest: Guest, script: Path, ended: Ended) -> PhantomError:
    if ended.status is None:
        return ScriptRebootError(
            f"the definition's script {script.name} shut down the machine that it ran in",
            todo="leave reboots out: the image boots only when it is complete",
            log=guest.log,
            detail=ended.output,
        )
    if "No space left on device" in ended.output:
        error = full()
        error.log, error.detail = guest.log, ended.output
        return error
    return ScriptError(
        f"the definition's script {script.name} failed in the base image with status "
        f"{ended.status}",
        log=guest.log,
        detail=ended.output,
    )


def _check_interpreter(guest: Guest, script: Path) -> None:
    """Raises ScriptError if the image lacks a script's interpreter: shells report that badly."""
    with script.open("rb") as content:
        match = _INTERPRETER.match(content.read(256))
    if match is None:
        return
    if match[2]:
        raise ScriptError(
            f"the definition's script {script.name} has Windows line ends",
            todo="save it with Unix line ends",
        )
    interpreter = match[1].decode("utf-8", "replace")
    if not guest.handle.is_file(interpreter, followsymlinks=True):
        raise ScriptError(
            f"the definition's script {script.name} needs {interpreter}, which the base image "
            "does not have",
            todo="add the package that has it, or write the script for /bin/sh",
        )
