"""The ramdisk that stands in for a Xen site's, and the machine that boots a bare file system.
`tests/boot` boots it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.disk import initramfs
from pipeline.disk.superblock import is_ext_at
from pipeline.errors import DefinitionError, GuestCheckError, HostError
from pipeline.machine import qemu, site_kernel
from pipeline.machine.node import edit_as_node, find_root
from pipeline.model import KIB, MIB, Machine, Sha256, Site
from pipeline.stages.base import LocalFile
from pipeline.stages.boot import BootCheck
from pipeline.tools import sfdisk


def make_site(**options: object) -> Site:
    return Site(name="tango", cloud="nimbus", options=options, where="sites.yaml:3")


def machine_of(**options: object) -> Machine:
    (machine,) = Nimbus(make_site(root="sda1", **options)).machines
    return machine


def make_bare(folder: Path) -> Path:
    disk, tree = folder / "disk.raw", folder / "tree"
    for each in ("root", "var"):
        (tree / each).mkdir(parents=True)
    words = ["mke2fs", "-q", "-t", "ext3", "-d", str(tree), str(disk), "8M"]
    subprocess.run(words, check=True)
    return disk


def words_of(machine: Machine, disk: Path, option: str) -> list[str]:
    command = qemu.command(machine, disk, qemu.Network(metadata_socket="phantom-1"), "tcg")
    return [command[place + 1] for place, word in enumerate(command) if word == option]


def test_boot_command_of_a_xen_site() -> None:
    site = Nimbus(make_site(root="sda1"))
    assert (site.disk.layout, site.disk.suffix) == ("bare", ".raw.gz")
    assert not site.hardware.own_kernel
    assert (site.hardware.disks, site.hardware.networks) == ((), ())
    (machine,) = site.machines
    assert (machine.name, machine.disk_bus) == ("xen", "ide")
    assert machine.kernel is not None
    assert machine.kernel.command_line == "ro root=/dev/sda1"
    disks = Nimbus(make_site(root="hda"))
    assert (disks.disk.layout, disks.machines[0].kernel) == ("mbr", None)
    assert disks.machines[0].edits == machine.edits


def test_ramdisk(tmp_path: Path) -> None:
    """cpio reads it as the kernel does, and it needs nothing from outside."""
    kernel, ramdisk = site_kernel.make(tmp_path)
    assert kernel == site_kernel.find_kernel()
    words = ["cpio", "--quiet", "-itv", "-F", str(ramdisk)]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert initramfs.list_files(ramdisk, tmp_path) == [
        line.split(" -> ")[0].split()[-1] for line in listed.splitlines()
    ]
    assert "bin/sh -> busybox\n" in listed
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["cpio", "--quiet", "-id", "-F", str(ramdisk)], cwd=unpacked, check=True)
    order = (unpacked / "modules/order").read_text().split()
    assert sorted(order) == sorted(
        each.name for each in (unpacked / "modules").iterdir() if each.suffix == ".ko"
    )
    # Each module comes after those that it needs.
    seen: set[str] = set()
    for name in order:
        words = ["modinfo", "-F", "depends", str(unpacked / "modules" / name)]
        needed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found = {each.replace("-", "_") for each in needed.strip().split(",") if each}
        assert found <= seen
        seen.add(name.removesuffix(".ko").replace("-", "_"))
    assert os.access(unpacked / "init", os.X_OK)
    words = [str(unpacked / "bin/busybox"), "sh", "-n", str(unpacked / "init")]
    assert subprocess.run(words, check=False).returncode == 0


def test_machine_with_this_hosts_kernel(tmp_path: Path) -> None:
    """The file becomes the machine's disk without a change."""
    machine, disk = machine_of(), make_bare(tmp_path)
    before = hashlib.sha256(disk.read_bytes()).digest()
    qemu.ready_disk(machine, disk)
    assert hashlib.sha256(disk.read_bytes()).digest() == before
    assert words_of(machine, disk, "-kernel") == [str(site_kernel.find_kernel())]
    assert words_of(machine, disk, "-initrd") == [f"{disk}.ramdisk"]
    assert (tmp_path / "disk.raw.ramdisk").is_file()
    consoles = "console=tty0 console=ttyS0,115200"
    assert words_of(machine, disk, "-append") == [f"ro root=/dev/sda1 {consoles}"]
    mute = replace(machine, serial=False)
    assert words_of(mute, disk, "-append") == ["ro root=/dev/sda1 console=tty0"]
    assert words_of(Nimbus(make_site()).machines[0], disk, "-kernel") == []


def test_machine_with_the_sites_own_kernel(tmp_path: Path) -> None:
    """Such a kernel finds sda1 only as a partition."""
    kernel, ramdisk = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(b"k")
    ramdisk.write_bytes(b"r")
    machine = machine_of(kernel=str(kernel), ramdisk=str(ramdisk))
    assert machine.kernel is not None
    assert machine.kernel.digests == (
        hashlib.sha256(b"k").hexdigest(),
        hashlib.sha256(b"r").hexdigest(),
    )
    disk = make_bare(tmp_path)
    content = disk.read_bytes()
    qemu.ready_disk(machine, disk)
    assert sfdisk.partition_starts(disk) == {1: MIB}
    assert disk.read_bytes()[MIB:] == content
    assert words_of(machine, disk, "-kernel") == [str(kernel)]
    assert words_of(machine, disk, "-initrd") == [str(ramdisk)]
    assert words_of(machine_of(kernel=str(kernel)), disk, "-initrd") == []


def check_of(machine: Machine) -> BootCheck:
    report = LocalFile(digest=Sha256(""), path=Path("report"))
    return BootCheck(machine=machine, report=report, user_data=None, check=None, seconds=None)


def test_the_sites_own_kernel_is_part_of_the_key(tmp_path: Path) -> None:
    """Its path is not."""
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vmlinuz").write_bytes(content)
    checks = [check_of(machine_of(kernel=str(tmp_path / each / "vmlinuz"))) for each in "abc"]
    ours = check_of(machine_of())
    assert checks[0].key == checks[1].key
    assert len({ours.key, *(each.key for each in checks)}) == 3
    assert checks[0].requires == ("boot",)
    assert ours.requires == ("boot", "boot with a site's kernel")


def test_node_edits_a_bare_file_system(tmp_path: Path) -> None:
    machine, disk = machine_of(), make_bare(tmp_path)
    edit_as_node(machine, disk, "ssh-ed25519 AAAA me", "http://10.0.2.100:8080")
    key, url = (edit.path for edit in machine.edits)
    assert find_root(disk).read(key) == "ssh-ed25519 AAAA me\n"
    assert find_root(disk).read(url) == "http://10.0.2.100:8080"
    assert disk.stat().st_size == 8 * MIB
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "metadata_csum,^orphan_file", str(disk)]
    subprocess.run(words, check=True)
    with pytest.raises(GuestCheckError) as caught:
        edit_as_node(machine, disk, "ssh-ed25519 AAAA me", "http://10.0.2.100:8080")
    assert str(caught.value) == (
        "the root file system has features with which a node of 2010 does not mount it: "
        "metadata_csum\n  do: make it without them, as elements/phantom-debian does"
    )


def test_a_superblock_larger_than_its_disk_is_ignored(tmp_path: Path) -> None:
    """The code of a boot loader may contain the magic number by chance."""
    disk = make_bare(tmp_path)
    assert is_ext_at(disk, 0)
    assert not is_ext_at(disk, 4 * KIB)
    os.truncate(disk, 7 * MIB)
    assert not is_ext_at(disk, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel": "k", "ramdisk": "r"},
            "sites.yaml:3: site tango names a kernel and a ramdisk, but boots whole disks, which "
            "have their own\n  do: add `root: sda1`, or take these options out",
        ),
        (
            {"root": "sda1", "ramdisk": "r"},
            "sites.yaml:3: site tango names a ramdisk without the kernel that it belongs to\n"
            "  do: add `kernel: FILE`, or take `ramdisk` out",
        ),
        (
            {"root": "sda1", "kernel": "/nowhere/vmlinuz"},
            "sites.yaml:3: kernel of site tango names /nowhere/vmlinuz, which cannot be read: No "
            "such file or directory\n  do: name the file with the site's kernel, or take the "
            "option out: a kernel of this host is taken then",
        ),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        _ = Nimbus(make_site(**options)).machines
    assert str(caught.value) == message


def test_host_without_kernel_or_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="busybox is not installed"):
        site_kernel.make(tmp_path)
    monkeypatch.setattr(site_kernel, "KERNELS", tmp_path)
    with pytest.raises(HostError, match="there is no kernel in /boot that can be read"):
        site_kernel.make(tmp_path)
