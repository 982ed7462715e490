"""Bare file systems, as Nimbus's Xen nodes boot them: with a kernel that is not the image's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cli_runs import Hello
from machines import copy_disk

from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.errors import GuestSilentError, KernelError
from pipeline.layouts import LAYOUTS
from pipeline.machine import site_kernel
from pipeline.machine.node import find_root
from pipeline.model import GIB, ContentKey, NoProgress, Site
from pipeline.stages.base import Context, LocalFile, digest_of_file
from pipeline.stages.boot import BootCheck
from pipeline.stages.disk import DISK, AssembleDisk
from pipeline.stages.drivers import CheckDrivers
from pipeline.stages.guest_report import REPORT
from pipeline.store import Artifact, Store
from pipeline.tools import apt

pytestmark = [pytest.mark.boot, pytest.mark.slow]

IMAGE = Path(__file__).resolve().parents[2] / "images/hello-phantom"
XEN = Nimbus(Site(name="tango", cloud="nimbus", options={"root": "sda1"}, where="the test"))
SIZE = 2 * GIB
FSTAB = PurePosixPath("/etc/fstab")


def make_context(folder: Path) -> Context:
    out, work = folder / "out", folder / "work"
    for each in (out, work):
        each.mkdir(parents=True)
    return Context(
        out=out, work=work, log=folder / "log", store=Store(folder), progress=NoProgress()
    )


def local(path: Path) -> LocalFile:
    return LocalFile(digest=digest_of_file(path), path=path)


@pytest.fixture(scope="module")
def root(hello: Hello) -> Artifact:
    """hello-phantom's root file system, built for other sites."""
    return Artifact(
        stage="root", key=ContentKey("r"), folder=hello.artifact("root"), facts={"sha256": "0" * 64}
    )


@pytest.fixture(scope="module")
def image(root: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    context = make_context(tmp_path_factory.mktemp("bare"))
    stage = AssembleDisk(layout=LAYOUTS[XEN.disk.layout], size=SIZE, tools={})
    facts = stage.run([root], context)
    yield Artifact(stage="disk", key=ContentKey("d"), folder=context.out, facts=facts)
    (context.out / DISK).unlink()


def boot(image: Artifact, folder: Path) -> Mapping[str, Any]:
    context = make_context(folder)
    stage = BootCheck(
        machine=XEN.machines[0],
        report=local(REPORT),
        user_data=local(IMAGE / "user-data.sh"),
        check=local(IMAGE / "check.sh"),
        seconds=900,
    )
    try:
        return stage.run([image], context)
    finally:
        (context.work / "disk.raw").unlink()


def test_image_on_a_kernel_of_the_site(root: Artifact, image: Artifact, tmp_path: Path) -> None:
    """Root grows to its disk and has the node's key, and nothing fails for lack of a module."""
    checked = CheckDrivers(hardware=XEN.hardware).run([root], make_context(tmp_path / "drivers"))
    assert checked == {"kernel": None, "pygrub": "/vmlinuz"}
    facts = boot(image, tmp_path / "check")
    kernel = site_kernel.find_kernel()
    assert kernel is not None
    assert facts["kernel"] == kernel.name.removeprefix("vmlinuz-")
    assert f"vmlinuz-{facts['kernel']}" not in find_root(image.file(DISK)).names(
        PurePosixPath("/boot")
    )
    assert (facts["failed_units"], facts["fetcher_tries"]) == ([], 2)
    assert facts["root_bytes"] > SIZE - GIB // 4
    assert facts["user_data"] == {
        "present": "run",
        "late": "run after 2 tries",
        "absent": "nothing run",
    }


def test_image_whose_root_needs_a_module(root: Artifact, image: Artifact, tmp_path: Path) -> None:
    """The stage `drivers` finds it before the boot; the boot check, if only a mount shows it."""
    folder = tmp_path / "image"
    folder.mkdir()
    disk = copy_disk(image.file(DISK), folder)
    find_root(disk).write(FSTAB, "LABEL=phantom-root / xfs defaults 0 1\n", 0o644)
    disk.rename(folder / "root.ext4")
    wrong = Artifact(stage="root", key=ContentKey("w"), folder=folder, facts={})
    stage = CheckDrivers(label="tango", hardware=XEN.hardware)
    with pytest.raises(KernelError) as caught:
        stage.run([wrong], make_context(tmp_path / "drivers"))
    assert str(caught.value) == (
        "the image cannot boot with the kernel of tango: /etc/fstab says that root is xfs, and "
        "only ext3 and ext4 can be counted on\n  do: correct the image's /etc/fstab"
    )
    # The first inode is among the reserved ones, which only the kernel checks.
    (folder / "root.ext4").rename(folder / DISK)
    words = ["debugfs", "-w", "-R", "ssv first_ino 5", str(folder / DISK)]
    subprocess.run(words, check=True, capture_output=True)
    with pytest.raises(GuestSilentError) as silent:
        boot(
            Artifact(stage="disk", key=ContentKey("o"), folder=folder, facts=image.facts),
            tmp_path / "check",
        )
    assert silent.value.detail is not None
    assert (
        "ramdisk: error: /dev/sda1 does not hold an ext3 or ext4 file system" in silent.value.detail
    )
    (folder / DISK).unlink()


# ---- pygrub, with which other Xen sites boot the same images

XEN_PACKAGE = "xen-utils-4.17"  # Debian 12's
PYGRUB = "usr/lib/xen-4.17"


@pytest.fixture(scope="module")
def pygrub(hello: Hello, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Debian's own pygrub, unpacked but not installed."""
    folder = tmp_path_factory.mktemp("xen")
    archive = apt.Archive(apt.find_mirrors("bookworm"), "amd64", Store(hello.store))
    resolution = archive.resolve([XEN_PACKAGE])
    wanted = tuple(
        each
        for each in resolution.packages
        if each.name == XEN_PACKAGE or each.name.startswith("libxen")
    )
    alone = apt.Resolution(
        packages=wanted,
        installed_bytes=resolution.installed_bytes,
        uris=resolution.uris,
        stanzas=resolution.stanzas,
    )
    packages = archive.download(alone, NoProgress())
    for each in wanted:
        package = packages / f"{each.sha256}.deb"
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder / PYGRUB


def boot_by_pygrub(pygrub: Path, disk: Path, folder: Path) -> tuple[bytes, bytes, str]:
    """The kernel and the ramdisk that pygrub takes out of a disk, and the command line."""
    folder.mkdir(exist_ok=True)
    libraries = pygrub / "lib/x86_64-linux-gnu"
    path = f"{libraries}:{pygrub.parents[0] / 'x86_64-linux-gnu'}"
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": path,
        "PYTHONPATH": str(pygrub / "lib/python"),
        "XEN_FSIMAGE_FSDIR": str(libraries / "xenfsimage"),
    }
    words = ["/usr/bin/python3", "-W", "ignore", str(pygrub / "bin/pygrub"), "-q", "--output=-"]
    words += ["--output-format=simple", f"--output-directory={folder}", str(disk)]
    told = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = dict(line.split(" ", 1) for line in told.stdout.splitlines() if line)
    return Path(found["kernel"]).read_bytes(), Path(found["ramdisk"]).read_bytes(), found["args"]


def test_pygrub_boots_bare_and_whole_disks(
    pygrub: Path, image: Artifact, stored: Path, tmp_path: Path
) -> None:
    root = find_root(image.file(DISK))
    expected = []
    for name in ("vmlinuz", "initrd.img"):
        linked = root.read_link(PurePosixPath("/", name))
        assert linked is not None
        assert root.copy_out(linked, tmp_path / name)
        expected.append((tmp_path / name).read_bytes())
    for disk in (image.file(DISK), stored):
        kernel, ramdisk, words = boot_by_pygrub(pygrub, disk, tmp_path / "out")
        assert [kernel, ramdisk] == expected
        assert words == "root=LABEL=phantom-root ro console=tty0 console=ttyS0,115200"
