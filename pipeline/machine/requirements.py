"""The programs and files of this host that stages use, and whether they are there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline import resources
from pipeline.errors import HostError
from pipeline.machine import qemu, site_kernel
from pipeline.machine.accelerator import search_path
from pipeline.tools import grub, run

SETUP = "make setup"
"""What mends a checkout."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw."""

    name: str
    ok: bool | None
    """True: it is there; None: it works, but worse than it could; False: it is missing."""
    found: str
    meaning: str
    """What follows from it for builds."""
    mend: str | None = None
    """The command or act that mends it."""


@dataclass(frozen=True)
class Program:
    """A program of the host that stages run."""

    name: str
    package: str
    """The Debian package that has it."""
    purpose: str
    version: tuple[str, ...] = ("--version",)
    """The arguments with which it prints its version."""
    tested: tuple[int, ...] = ()
    """The oldest version that is known to work: Debian 12's."""

    def find(self) -> str | None:
        """Where the program is."""
        return shutil.which(self.name, path=search_path())

    def check(self, _store: Path) -> Finding:
        """Whether the program is there, and its version."""
        finding = partial(Finding, name=self.name, meaning=self.purpose)
        path = self.find()
        if path is None:
            return _not_installed(self)
        try:
            told = run.capture(["sh", "-c", 'exec "$@" 2>&1', "sh", path, *self.version])
        except run.ToolError as error:
            mend = f"sudo apt-get install --reinstall {self.package}"
            return finding(ok=False, found=f"installed, but {error.what}", mend=mend)
        number = re.search(r"(?<![0-9.])[0-9]+(\.[0-9]+)+", told)
        version = number[0] if number else "of an unknown version"
        if number and tuple(map(int, version.split("."))) < self.tested:
            wanted = ".".join(map(str, self.tested))
            meaning = f"{self.purpose}; builds were tested with {wanted} and newer"
            mend = "build on Debian 12 or newer"
            return finding(ok=None, found=version, meaning=meaning, mend=mend)
        return finding(ok=True, found=version)


PROGRAMS = (
    Program("apt-get", "apt", "resolves packages", tested=(2, 6)),
    Program("mmdebstrap", "mmdebstrap", "makes root file systems from packages", tested=(1, 3)),
    Program("setpriv", "util-linux", "ends what a build started with it"),
    Program("mke2fs", "e2fsprogs", "writes file systems", version=("-V",), tested=(1, 47)),
    Program(
        "debugfs",
        "e2fsprogs",
        "reads and edits file systems without mounting them",
        version=("-V",),
        tested=(1, 47),
    ),
    Program("sfdisk", "fdisk", "writes partition tables"),
    Program("fdisk", "fdisk", "finds partitions as Nimbus's nodes do"),
    Program("grub-mkimage", "grub-common", "makes the boot loader"),
    Program("mformat", "mtools", "makes EFI system partitions", tested=(4, 0, 32)),
    Program("zstd", "zstd", "unpacks initramfs, to list an image's drivers, and base images"),
    Program("qemu-img", "qemu-utils", "converts base images, and makes overlays", tested=(7, 2)),
    Program("prlimit", "util-linux", "limits what an image may cost"),
    Program("lz4", "lz4", "unpacks initramfs of other distributions"),
    Program(
        "qemu-system-x86_64", "qemu-system-x86", "boots images as their sites would", tested=(7, 2)
    ),
    Program("curl", "curl", "fetches base images", tested=(7, 88)),
    Program("socat", "socat", "leads from a booted image to its metadata server", version=("-V",)),
    Program(
        "busybox",
        "busybox-static",
        "makes the ramdisk that stands for a Xen site's own",
        version=("--help",),
    ),
)


@dataclass(frozen=True)
class Files:
    """Files of the host that stages use."""

    name: str
    package: str
    """The Debian package that has them."""
    purpose: str
    find: Callable[[], Path | None]
    """Where they are."""

    def check(self, _store: Path) -> Finding:
        """Whether the files are there."""
        path = self.find()
        if path is None:
            return _not_installed(self)
        return Finding(name=self.name, ok=True, found=str(path), meaning=self.purpose)


def _not_installed(part: Program | Files) -> Finding:
    return Finding(
        name=part.name,
        ok=False,
        found="not installed",
        meaning=part.purpose,
        mend=mend_by(f"sudo apt-get install {part.package}"),
    )


def mend_by(command: str) -> str:
    """What installs a part of the host: `command`, and in a checkout the set-up as well."""
    return command if resources.INSTALLED else f"{SETUP}   # or: {command}"


def _find_grub(platform: str) -> Path | None:
    folder = grub.LIBRARY / platform
    return folder if (folder / "kernel.img").is_file() else None


def _find_guestfs() -> Path | None:
    spec = find_spec("guestfs")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _find_firmware() -> Path | None:
    firmware = qemu.find_firmware()
    return None if firmware is None else firmware[0]


FILES = (
    Files(
        "GRUB for BIOS",
        "grub-pc-bin",
        "the boot loader's code, which lands in the image",
        lambda: _find_grub(grub.BIOS),
    ),
    Files(
        "GRUB for UEFI",
        "grub-efi-amd64-bin",
        "the boot loader's code, which lands in images that UEFI boots too",
        lambda: _find_grub(grub.EFI),
    ),
    Files("OVMF", "ovmf", "the firmware with which images boot by UEFI", _find_firmware),
    Files("libguestfs's Python module", "python3-guestfs", "changes base images", _find_guestfs),
    Files(
        "kernel for Xen's boot checks",
        "linux-image-cloud-amd64",
        "stands for the kernel of sites that boot bare file systems",
        site_kernel.find_kernel,
    ),
)

NEEDS = {
    "download": ("curl",),
    "base": ("qemu-img", "zstd", "prlimit"),
    "packages": ("apt-get", "mmdebstrap", "setpriv"),
    "root": ("mke2fs", "debugfs", "setpriv"),
    "root from a base image": ("libguestfs's Python module",),
    "disk": ("sfdisk", "grub-mkimage", "GRUB for BIOS"),
    "disk for UEFI": ("mformat", "GRUB for UEFI"),
    "gate": (),
    "drivers": ("debugfs", "zstd", "lz4"),
    "boot": ("fdisk", "sfdisk", "debugfs", "qemu-system-x86_64", "socat"),
    "boot by UEFI": ("OVMF",),
    "boot from an overlay": ("qemu-img",),
    "boot with a site's kernel": ("busybox", "kernel for Xen's boot checks"),
}
"""What stages need, by the words in their `requires`."""


def require(needs: Iterable[str]) -> None:
    """Checks that the host has what stages need, by their `requires`; takes a few milliseconds.

    Raises HostError with what mends it.
    """
    programs = {program.name: program for program in PROGRAMS}
    files = {entry.name: entry for entry in FILES}
    for name in dict.fromkeys(name for need in needs for name in NEEDS.get(need, ())):
        if name in files:
            finding = files[name].check(Path())
            if finding.ok is False:
                raise HostError(f"{finding.name}: {finding.found}", todo=finding.mend)
            continue
        program = programs[name]
        if program.find() is None:
            raise HostError(
                f"{name} is not installed ({program.purpose})",
                todo=f"{resources.setup_hint()}; or: sudo apt-get install {program.package}",
            )
