"""Converts disk images to raw by qemu-img, after `formats` has checked their headers.

We tell qemu-img the format, and that there is no backing file. As OpenStack does for untrusted
images, we limit qemu-img's memory, processor time and output.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pipeline.disk.containers import SECTOR
from pipeline.disk.formats import DiskFormat, to_user_name
from pipeline.errors import ImageFormatError
from pipeline.model import GIB, MIB, Progress
from pipeline.tools import run

MEMORY = 4 * GIB
"""Bytes of qemu-img's address space: up to 64 threads reserve 64 MiB each for their heaps."""
SECONDS, BYTES_PER_SECOND = 60, 8 * MIB
"""The limit of processor time: a minute, plus a second for each 8 MiB of disk, ten times what zlib
needs."""

_LIMITS = ("prlimit", f"--as={MEMORY}", "--core=0")
_WITHOUT_PARENT = ("qcow2", "vmdk")  # the formats whose drivers support backing files


def data_bytes(image: Path, disk: DiskFormat) -> int:
    """About how many bytes of a disk an image holds; 0 if qemu-img cannot tell."""
    argv = [*_LIMITS, "--cpu=60", "qemu-img", "measure", "--output=json", "-O", "qcow2"]
    try:
        told = run.capture([*argv, source_options(image, disk)], timeout=2 * SECONDS)
        return int(json.loads(told)["required"])
    except (run.ToolError, ValueError, KeyError, TypeError):  # converting it says why
        return 0


def convert(
    image: Path,
    disk: DiskFormat,
    target: Path,
    *,
    where: str,
    log: Path,
    progress: Progress,
    watch: Callable[[], None] | None = None,
) -> None:
    """Writes the disk in an image as a sparse raw file, which it removes when it fails. `watch` is
    called now and then; what it raises ends the work.

    Raises ImageFormatError for an image that qemu-img cannot read within the limits, NoSpaceError,
    HostError.
    """
    argv = [
        *_LIMITS,
        *(f"--cpu={SECONDS + disk.bytes // BYTES_PER_SECOND}", f"--fsize={disk.bytes + SECTOR}"),
        *("qemu-img", "convert", "-O", "raw", "-S", "64k", "-t", "unsafe"),
        *(source_options(image, disk), str(target)),
    ]
    with ExitStack() as on_failure:
        on_failure.callback(target.unlink, missing_ok=True)
        try:
            run.run(argv, log=log, progress=progress, watch=watch)
        except run.ToolError as error:
            raise ImageFormatError(
                f"cannot be read as {to_user_name(disk.name)}: {_reason(error)}",
                where=where,
                todo="fetch it again, or convert it with a program that its publisher trusts",
                log=log,
            ) from error
        written = target.stat().st_size
        if written != disk.bytes:
            raise ImageFormatError(
                f"was unpacked to {written:,} bytes, and its headers say {disk.bytes:,}",
                where=where,
                todo="fetch it again: it is damaged",
                log=log,
            )
        on_failure.pop_all()


def source_options(image: Path, disk: DiskFormat) -> str:
    """The image as QEMU's block options. They fix format, file and backing file, so QEMU guesses
    nothing and gives no meaning to characters in the file's name."""
    options: dict[str, object] = {
        "driver": disk.name,
        "read-only": True,
        "file": {"driver": "file", "filename": str(image.resolve()), "locking": "off"},
    }
    if disk.name in _WITHOUT_PARENT:
        options["backing"] = None
    if disk.name == "vpc":  # else QEMU computes the size from cylinders, heads and sectors
        options["force_size_calc"] = "current_size"
    return f"json:{json.dumps(options)}"


def _reason(error: run.ToolError) -> str:
    lines = error.output.strip().splitlines()
    if error.status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it took more processor time than a disk of its size may"
    if error.status < 0 or not lines:
        return error.what
    return lines[-1].removeprefix("qemu-img: ")
