"""Debian's kernels: which drivers each of them lacks, and which one serves all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import KernelError
from pipeline.model import Hardware

AUTO = "auto"
"""The definition's word for the smallest kernel that serves all sites of a run."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of Debian, under the name that definitions use."""

    name: str
    package: str
    lacks: frozenset[str] = frozenset()
    """The drivers, of those in `DRIVERS`, that it lacks in every release."""
    lacked_by: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Further drivers that it lacks in one release."""

    def lacking(self, release: str) -> frozenset[str]:
        """The drivers that this kernel lacks in a release."""
        return self.lacks | self.lacked_by.get(release, frozenset())


DRIVERS = frozenset(
    {
        *("ahci", "ata_piix", "mptspi", "nvme", "sym53c8xx", "virtio_blk", "virtio_scsi"),
        *("8139cp", "8139too", "e1000", "e1000e", "ena", "ixgbevf", "ne2k_pci", "pcnet32"),
        *("virtio_net", "xen_blkfront", "xen_netfront"),
    }
)
"""The drivers that `KERNELS` tells about: those of clouds' hardware, named as in `Hardware`."""

KERNELS = (
    Kernel(
        name="cloud",
        package="linux-image-cloud-amd64",
        lacks=frozenset({"mptspi", "sym53c8xx"})
        | {"8139cp", "8139too", "e1000", "e1000e", "ne2k_pci", "pcnet32"},
        lacked_by=dict.fromkeys(("bullseye", "bookworm"), frozenset({"ahci"})),
    ),
    Kernel(name="generic", package="linux-image-amd64"),
)
"""The smallest first, as in the packages of Debian 11 to 14; `tests/unit/test_kernels.py` compares
them."""


def choose_kernel(wanted: str, release: str, sites: Mapping[str, Hardware]) -> str:
    """The kernel for a run: the wanted one, or with `auto` the smallest that serves all sites.

    A driver that is not in `DRIVERS` counts as present: the stage `drivers` looks for it later.
    `sites` has the hardware of each site by its name. Raises KernelError.
    """
    if wanted == AUTO:
        return next(kernel.name for kernel in KERNELS if not _missing(kernel, release, sites))
    (kernel,) = (kernel for kernel in KERNELS if kernel.name == wanted)
    missing = _missing(kernel, release, sites)
    if missing:
        whats = (f"{', '.join(drivers)} (site {site})" for site, drivers in missing.items())
        raise KernelError(
            f"Debian's {kernel.name} kernel has no driver {' and no '.join(whats)}",
            todo=f"write `kernel: {AUTO}`, which takes the smallest kernel that serves all sites "
            "of a run, or `kernel: generic`, which has all drivers",
        )
    return kernel.name


def _missing(kernel: Kernel, release: str, sites: Mapping[str, Hardware]) -> dict[str, list[str]]:
    """The drivers that a kernel lacks for each site that it cannot serve.

    A site's machines may have one of several disks and network cards: the image must serve all.
    """
    lacking = kernel.lacking(release)
    missing = {}
    for site, hardware in sites.items():
        needed = (name.replace("-", "_") for name in (*hardware.disks, *hardware.networks))
        if drivers := [name for name in needed if name in lacking]:
            missing[site] = drivers
    return missing
