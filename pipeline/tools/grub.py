"""GRUB, put on a disk without `grub-install`: no root rights and no loop device."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pipeline.errors import HostError, StageFailedError
from pipeline.resources import setup_hint
from pipeline.tools import run

LIBRARY = Path("/usr/lib/grub")
BIOS, EFI = "i386-pc", "x86_64-efi"
"""GRUB's names of platforms: folders of `LIBRARY`."""

_SECTOR = 512
_BOOT_CODE = 440  # bytes of an MBR before its own data
# Where GRUB stores which sector it reads next: boot.img has the number of the core's first sector,
# and that sector has a list whose only entry is the rest of the core. Both are 64 bits,
# little-endian (GRUB's include/grub/i386/pc/boot.h and grub-core/boot/i386/pc/diskboot.S).
_KERNEL_SECTOR, _BLOCK_LIST = 0x5C, _SECTOR - 12


@cache
def version() -> str:
    """The version of the host's GRUB, whose code lands in the image."""
    return run.capture(["grub-mkimage", "--version"]).split()[-1]


def make_bios_loader(
    prefix: str, modules: Sequence[str], sector: int, work: Path, log: Path
) -> tuple[bytes, bytes]:
    """The first 440 bytes of an MBR, and the core that this code loads from `sector` on.

    `prefix` is the folder of `grub.cfg` in GRUB's words. Raises HostError, ToolError.
    """
    core = bytearray(_make_image(BIOS, prefix, modules, work / "core.img", log).read_bytes())
    boot = bytearray((LIBRARY / BIOS / "boot.img").read_bytes()[:_BOOT_CODE])
    (rest,) = struct.unpack_from("<Q", core, _BLOCK_LIST)
    if struct.unpack_from("<Q", boot, _KERNEL_SECTOR) != (1,) or rest != 2:
        raise StageFailedError(
            "this GRUB keeps the place of its core elsewhere than GRUB 2 does",
            todo="build on a release of Debian that ARCHITECTURE.md names",
        )
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, sector)
    struct.pack_into("<Q", core, _BLOCK_LIST, sector + 1)
    return bytes(boot), bytes(core)


def make_efi_program(prefix: str, modules: Sequence[str], work: Path, log: Path) -> Path:
    """GRUB as a UEFI program for 64-bit x86, in `work`. Raises HostError, ToolError."""
    return _make_image(EFI, prefix, modules, work / "BOOTX64.EFI", log)


def _make_image(platform: str, prefix: str, modules: Sequence[str], image: Path, log: Path) -> Path:
    if not (LIBRARY / platform / "kernel.img").is_file():
        raise HostError(f"GRUB for {platform} is not installed", todo=setup_hint("it"))
    run.run(["grub-mkimage", "-O", platform, "-p", prefix, "-o", str(image), *modules], log=log)
    return image
