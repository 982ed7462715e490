"""A kernel and ramdisk that stand for those of a Xen site.

The kernel is this host's own, the one that libguestfs boots, and the ramdisk is made of BusyBox and
of that kernel's modules. None of these modules is in the image, and that is the point.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.disk import initramfs
from pipeline.disk.kernel import dependencies_of
from pipeline.disk.untrusted import version_order
from pipeline.errors import HostError
from pipeline.resources import setup_hint
from pipeline.tools import run

KERNELS, MODULES = Path("/boot"), Path("/lib/modules")
INIT = Path(__file__).with_name("ramdisk_init.sh")

# The modules for the boot check's machine; some kernels have them built in.
_DRIVERS = (
    *("ata_piix", "sd_mod", "ext4", "crc32c_generic", "virtio_pci", "virtio_net"),
    "af_packet",  # DHCP clients ask by it
)
_OPTIONAL = {"crc32c_generic", "af_packet"}  # new kernels have these under other names, or built in
_SETUP = setup_hint()


def find_kernel() -> Path | None:
    """The newest kernel of this host that can be read and has its modules; None without one."""
    kernels = sorted(KERNELS.glob("vmlinuz-*"), key=lambda kernel: version_order(kernel.name))
    for kernel in reversed(kernels):
        if _modules_of(kernel).joinpath("modules.dep").is_file() and os.access(kernel, os.R_OK):
            return kernel
    return None


def make(work: Path) -> tuple[Path, Path]:
    """The kernel, and a ramdisk for it, which is written to the folder `work`; takes a fraction of
    a second. Raises HostError where the host lacks something."""
    kernel, program = find_kernel(), shutil.which("busybox")
    if kernel is None:
        raise HostError("there is no kernel in /boot that can be read, with modules", todo=_SETUP)
    if program is None:
        raise HostError("busybox is not installed", todo=_SETUP)
    busybox = Path(program).resolve()
    entries = [
        initramfs.Entry("init", INIT.read_bytes(), 0o755),
        *(
            initramfs.Entry(path.lstrip("/"), Path(path).read_bytes(), 0o755)
            for path in _libraries(busybox)
        ),
        initramfs.Entry("bin/busybox", busybox.read_bytes(), 0o755),
        initramfs.Entry("bin/sh", b"busybox", 0o777, link=True),
        *_modules(_modules_of(kernel), work),
    ]
    ramdisk = work / "ramdisk"
    initramfs.write(ramdisk, entries)
    return kernel, ramdisk


def _modules_of(kernel: Path) -> Path:
    return MODULES / kernel.name.removeprefix("vmlinuz-")


def _modules(folder: Path, work: Path) -> Iterator[initramfs.Entry]:
    """The drivers as files that can be loaded one after the other, and their order."""
    files = dependencies_of((folder / "modules.dep").read_text())
    built_in = {
        PurePosixPath(line).name.removesuffix(".ko").replace("-", "_")
        for line in (folder / "modules.builtin").read_text().splitlines()
    }
    order: dict[str, None] = {}
    for driver in _DRIVERS:
        if driver in files:
            # The last one is needed first.
            order.update(dict.fromkeys([*reversed(files[driver][1:]), files[driver][0]]))
        elif driver not in built_in and driver not in _OPTIONAL:
            raise HostError(
                f"this host's kernel {folder.name} has no {driver}, which the boot check's machine "
                "needs",
                todo="install linux-image-cloud-amd64 or linux-image-amd64",
            )
    names = []
    for file in order:
        name = re.sub(r"\.(gz|xz|zst)$", "", PurePosixPath(file).name)
        names.append(name)
        yield initramfs.Entry(f"modules/{name}", initramfs.unpack(folder / file, work))
    yield initramfs.Entry("modules/order", "".join(f"{name}\n" for name in names).encode())


def _libraries(program: Path) -> list[str]:
    """The libraries that a program is linked with; none where it is linked statically."""
    try:
        told = run.capture(["ldd", str(program)])
    except run.ToolError:  # "not a dynamic executable"
        return []
    return re.findall(r"(/\S+) \(0x", told)
