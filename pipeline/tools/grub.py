"""GRUB, put in front of a partition without `grub-install`: no root rights and no loop device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import HostError
from pipeline.tools import run

_LIBRARY = Path("/usr/lib/grub")


def version() -> str:
    """The version of the host's GRUB, whose code lands in the image."""
    return run.capture(["grub-mkimage", "--version"]).split()[-1]


def make_bios_loader(
    prefix: str, modules: Sequence[str], work: Path, log: Path
) -> tuple[bytes, bytes]:
    """The code of an MBR's first 440 bytes, and the image that lies behind it from sector 1 on.

    `prefix` is where GRUB finds `grub.cfg`. Raises HostError, ToolError.
    """
    folder = _LIBRARY / "i386-pc"
    if not (folder / "boot.img").is_file():
        raise HostError("GRUB for BIOS is not installed", todo="`make setup` installs it")
    core = work / "core.img"
    run.run(["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", str(core), *modules], log=log)
    # boot.img reads its successor from sector 1, and that the rest from sector 2, as they are made.
    return (folder / "boot.img").read_bytes()[:440], core.read_bytes()
