"""qemu-img, which unpacks disk images of the formats that `disk_formats` has looked at.

It is told the format, and that nothing lies behind the image. Its memory, its time and the size of
what it writes are limited, as OpenStack limits it for images of strangers.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

from pipeline.errors import ImageFormatError
from pipeline.model import GIB, MIB, Progress
from pipeline.tools import run
from pipeline.tools.disk_formats import SECTOR, DiskFormat, called

MEMORY = 4 * GIB
"""Bytes of its address space: each of its threads, up to 64, takes 64 MiB of it for its own heap,
whatever it uses of that."""
SECONDS, BYTES_PER_SECOND = 60, 8 * MIB
"""Of processor time: so many, and one more for each so many bytes of disk. zlib takes a tenth."""

_WITHOUT_PARENT = ("qcow2", "vmdk")  # the formats whose drivers know of a backing file


def convert(
    image: Path, disk: DiskFormat, target: Path, *, where: str, log: Path, progress: Progress
) -> None:
    """Writes the disk in an image as a sparse raw file; nothing is left of it where that fails.

    Raises ImageFormatError for an image that cannot be read whole within the limits, NoSpaceError,
    HostError.
    """
    argv = [
        *("prlimit", f"--as={MEMORY}", "--core=0"),
        *(f"--cpu={SECONDS + disk.bytes // BYTES_PER_SECOND}", f"--fsize={disk.bytes + SECTOR}"),
        *("qemu-img", "convert", "-O", "raw", "-S", "64k", "-t", "unsafe"),
        *(_source(image, disk), str(target)),
    ]
    try:
        run.run(argv, log=log, progress=progress)
        written = target.stat().st_size
        if written != disk.bytes:
            raise ImageFormatError(
                f"was unpacked to {written:,} bytes, and its headers say {disk.bytes:,}",
                where=where,
                todo="fetch it again: it is damaged",
                log=log,
            )
    except run.ToolError as error:
        target.unlink(missing_ok=True)
        raise ImageFormatError(
            f"cannot be read as {called(disk.name)}: {_reason(error)}",
            where=where,
            todo="fetch it again, or convert it with a program that its publisher trusts",
            log=log,
        ) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _source(image: Path, disk: DiskFormat) -> str:
    """The image in QEMU's own words, which leave nothing to be guessed: no format, no other file,
    no meaning of signs in a file's name."""
    words: dict[str, object] = {
        "driver": disk.name,
        "read-only": True,
        "file": {"driver": "file", "filename": str(image.resolve()), "locking": "off"},
    }
    if disk.name in _WITHOUT_PARENT:
        words["backing"] = None
    if disk.name == "vpc":  # and not what cylinders, heads and sectors would make
        words["force_size_calc"] = "current_size"
    return f"json:{json.dumps(words)}"


def _reason(error: run.ToolError) -> str:
    lines = error.output.strip().splitlines()
    if error.status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it took more processor time than a disk of its size may"
    if error.status < 0 or not lines:
        return error.what
    return lines[-1].removeprefix("qemu-img: ")
