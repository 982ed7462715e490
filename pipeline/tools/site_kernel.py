"""A kernel and ramdisk that stand for those of a Xen site.

The kernel is this host's own, the one that libguestfs boots, and the ramdisk is made of BusyBox and
of that kernel's modules. None of these modules is in the image, and that is the point.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import HostError
from pipeline.tools import initramfs, run
from pipeline.tools.kernel import dependencies_of, order_of_version

KERNELS, MODULES = Path("/boot"), Path("/lib/modules")
INIT = Path(__file__).with_name("ramdisk_init.sh")

# What the boot check's machine has, in the words of modules; some are in the kernel itself.
_DRIVERS = (
    *("ata_piix", "sd_mod", "ext4", "crc32c_generic", "virtio_pci", "virtio_net"),
    "af_packet",  # DHCP clients ask by it
)
_OPTIONAL = {"crc32c_generic", "af_packet"}  # new kernels have these under other names, or built in
_SETUP = "`make setup` installs what is missing"


def find_kernel() -> Path | None:
    """The newest kernel of this host that can be read and has its modules; None without one."""
    found = sorted(KERNELS.glob("vmlinuz-*"), key=lambda each: order_of_version(each.name))
    for kernel in reversed(found):
        if _modules_of(kernel).joinpath("modules.dep").is_file() and _is_readable(kernel):
            return kernel
    return None


def find_busybox() -> Path | None:
    """BusyBox on this host."""
    found = shutil.which("busybox")
    return None if found is None else Path(found).resolve()


def make(work: Path) -> tuple[Path, Path]:
    """The kernel, and a ramdisk for it, which is written to the folder `work`; takes a fraction of
    a second. Raises HostError where the host lacks something."""
    kernel, busybox = find_kernel(), find_busybox()
    if kernel is None:
        raise HostError("there is no kernel in /boot that can be read, with modules", todo=_SETUP)
    if busybox is None:
        raise HostError("busybox is not installed", todo=_SETUP)
    entries = [
        initramfs.Entry("init", INIT.read_bytes(), 0o755),
        *(
            initramfs.Entry(str(path).lstrip("/"), path.read_bytes(), 0o755)
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


def _is_readable(file: Path) -> bool:
    try:
        with file.open("rb"):
            return True
    except OSError:
        return False


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


def _libraries(program: Path) -> Sequence[Path]:
    """What a program is linked with; nothing where it is linked statically."""
    try:
        told = run.capture(["ldd", str(program)])
    except run.ToolError:  # "not a dynamic executable"
        return ()
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", told)]
