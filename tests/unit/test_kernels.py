"""The choice of a kernel, and whether Debian's kernels have what `sources/kernels.py` says."""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from pipeline.errors import KernelError
from pipeline.model import Hardware, NoProgress
from pipeline.sources.kernels import AUTO, DRIVERS, KERNELS, choose_kernel
from pipeline.store import Store
from pipeline.tools import apt, apt_lists

NIMBUS = Hardware(
    disks=("ata_piix", "virtio_blk"), networks=("8139cp", "virtio_net"), console="ttyS0"
)
EC2 = Hardware(disks=("nvme", "xen-blkfront"), networks=("ena", "xen_netfront"), console="ttyS0")
SATA = Hardware(disks=("ahci",), networks=("virtio_net",), console="ttyS0")


@pytest.mark.parametrize(
    ("wanted", "release", "sites", "chosen"),
    [
        (AUTO, "bookworm", {"a": EC2}, "cloud"),
        (AUTO, "bookworm", {"a": NIMBUS}, "generic"),
        (AUTO, "bookworm", {"a": EC2, "b": NIMBUS}, "generic"),
        (AUTO, "bookworm", {"a": SATA}, "generic"),
        (AUTO, "trixie", {"a": SATA, "b": EC2}, "cloud"),
        (AUTO, "bookworm", {}, "cloud"),
        ("generic", "bookworm", {"a": EC2}, "generic"),
        ("generic", "bookworm", {"a": NIMBUS}, "generic"),
        ("cloud", "bookworm", {"a": EC2}, "cloud"),
    ],
)
def test_chosen_kernel(wanted: str, release: str, sites: dict[str, Hardware], chosen: str) -> None:
    assert choose_kernel(wanted, release, sites) == chosen


def test_a_kernel_that_cannot_serve_all_sites() -> None:
    with pytest.raises(KernelError) as caught:
        choose_kernel("cloud", "bookworm", {"here": NIMBUS, "amazon": EC2, "there": NIMBUS})
    assert caught.value.exit_code == 25
    assert str(caught.value) == (
        "Debian's cloud kernel has no driver 8139cp (site here) and no 8139cp (site there)\n"
        "  do: write `kernel: auto`, which takes the smallest kernel that serves all sites of a "
        "run, or `kernel: generic`, which has all drivers"
    )


def test_missing_drivers_of_kernels_are_known_drivers() -> None:
    for kernel in KERNELS:
        assert kernel.lacks | {name for each in kernel.lacked_by.values() for name in each} <= (
            DRIVERS
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "release",
    [
        "bookworm",
        *(
            pytest.param(name, marks=pytest.mark.only_soak)
            for name in ("bullseye", "trixie", "forky", "sid")
        ),
    ],
)
def test_debian_s_kernels(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for each known driver in the packages that the archive has now."""
    monkeypatch.setenv(apt_lists.CHECK_VALID_UNTIL, "no")
    archive = apt.Archive(apt.find_mirrors(release), "amd64", Store(tmp_path / "store"))
    for kernel in KERNELS:
        drivers = read_drivers(archive, kernel.package)
        assert len(drivers) > 500
        assert DRIVERS - drivers == kernel.lacking(release), kernel.name


def read_drivers(archive: apt.Archive, package: str) -> set[str]:
    """The modules and built-in drivers of the kernel that a package installs."""
    resolution = archive.resolve([package])
    kernel = tuple(
        each
        for each in resolution.packages
        if re.match("linux-(base|image|modules)-[0-9]", each.name)
    )
    folder = archive.download(replace(resolution, packages=kernel), NoProgress())
    found: list[str] = []
    for each in kernel:
        argv = ["dpkg-deb", "--fsys-tarfile", str(folder / f"{each.sha256}.deb")]
        with (
            subprocess.Popen(argv, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as files,
        ):
            for file in files:
                found.append(file.name)
                if file.name.endswith("/modules.builtin"):
                    found += files.extractfile(file).read().decode().splitlines()  # type: ignore[union-attr]
    names = (PurePosixPath(path).name.partition(".ko") for path in found)
    return {name.replace("-", "_") for name, ending, _ in names if ending}
