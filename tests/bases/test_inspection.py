"""What lies on a disk, read on the host, and the systems on it, inspected by libguestfs."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_images import (
    CENTOS,
    DEBIAN,
    PIPE,
    UUIDS,
    Part,
    make_disk,
    make_efi,
    make_ext,
    make_luks,
    make_swap,
)
from soak import examples

from pipeline.disk.fstab import normal
from pipeline.disk.partitions import read_geometry
from pipeline.disk.superblock import superblock_at
from pipeline.disk.system import FileSystem, Place, System
from pipeline.errors import (
    EncryptedError,
    FileSystemError,
    ImageFormatError,
    NoSystemError,
    PhantomError,
    SeveralSystemsError,
    UnknownSystemError,
)
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.inspection import from_facts, inspect_system, to_facts
from pipeline.model import KIB, MIB, NoProgress

AGAIN = "  do: fetch the image again and compare its checksum"
ROOT_GUID, ESP_GUID = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


# ---- on the host


def make_shapes(folder: Path) -> dict[str, Path]:
    """The disks to inspect, by name."""
    fstab = (
        f"# <file system> <mount point>\nUUID={UUIDS[1]} / ext3 defaults 0 1\n"
        f"/dev/hda1 none swap sw 0 0\nLABEL=boot\\040files /boot ext2 defaults 0 2\n"
        "proc /proc proc defaults 0 0\n"
    )
    # Names are bytes: these are Latin-1.
    odd_names = {"usr/bin/caf\udce9": "", "etc/init.d/gr\udcfcn": "", "boot/\udce9": ""}
    boot = {
        "grub/grub.cfg": "linux /vmlinuz-6.1 ro\n",
        **dict.fromkeys(("vmlinuz-6.1", "vmlinuz-caf\udce9"), "kernel"),
    }
    with_boot = {**DEBIAN, "etc/fstab": fstab, **odd_names, "lib/modules/6.1/modules.dep": ""}
    boot_files = make_ext(folder / "b", boot, kind="ext2", uuid=UUIDS[2], label="boot files")
    logical = make_disk(
        folder / "logical.raw",
        "dos",
        [
            Part(make_swap(folder / "swap", UUIDS[3]), 2 * MIB, "82"),
            Part(None, 0),
            Part(boot_files, 8 * MIB),
            Part(make_ext(folder / "r", with_boot, kind="ext3", uuid=UUIDS[1]), 10 * MIB),
        ],
    )
    fstab = f"PARTLABEL=the-root / ext4 rw\nPARTUUID={UUIDS[5]} /boot/efi vfat defaults\n"
    gpt = make_disk(
        folder / "gpt.raw",
        "gpt",
        [
            Part(make_efi(folder / "esp"), 40 * MIB, ESP_GUID, f", uuid={UUIDS[5]}"),
            Part(make_luks(folder / "luks", UUIDS[4]), 2 * MIB, ROOT_GUID),
            Part(
                make_ext(folder / "g", {**CENTOS, "etc/fstab": fstab, "boot/efi/x": ""}),
                8 * MIB,
                ROOT_GUID,
                ', name="the-root"',
            ),
        ],
    )
    debian = make_ext(folder / "bare.raw", {**DEBIAN, "etc/fstab": PIPE}, uuid=UUIDS[6])
    data = make_ext(folder / "data.raw", {"photos/one": "x"}, uuid=UUIDS[7])
    odd = make_ext(folder / "odd.raw", {"etc/os-release": 'ID=odd\nPRETTY_NAME="Odd \x1b[31m 1"\n'})
    damaged = make_ext(folder / "damaged.raw", DEBIAN)
    with damaged.open("r+b") as file:
        file.seek(2048)  # its group descriptors
        file.write(b"\xa5" * 8192)
    for_home = {
        **DEBIAN,
        "etc/fstab": "LABEL=gone /srv ext4 defaults\n/dev/mapper/home /home/ ext4 defaults\n",
        "etc/crypttab": f"# name device\nhome UUID={UUIDS[4]} none luks\n",
    }
    locked = [
        Part(make_ext(folder / "h", for_home, uuid=UUIDS[1]), 8 * MIB),
        Part(folder / "luks", 2 * MIB),
    ]
    two = [Part(debian, 8 * MIB), Part(folder / "g", 8 * MIB)]
    return {
        "logical": logical,
        "gpt": gpt,
        "bare": debian,
        "data": data,
        "odd": odd,
        "damaged": damaged,
        "two": make_disk(folder / "two.raw", "dos", two),
        "locked": make_disk(folder / "locked.raw", "dos", locked),
        "luks": make_disk(
            folder / "luks.raw", "dos", [Part(data, 8 * MIB), Part(folder / "luks", 2 * MIB)]
        ),
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("name", ["logical", "gpt", "two"])
def test_tables_are_read_as_sfdisk_reads_them(shapes: dict[str, Path], name: str) -> None:
    disk = shapes[name]
    geometry = read_geometry(disk)
    told = json.loads(subprocess.check_output(["sfdisk", "--json", disk]))["partitiontable"]
    assert geometry.table == {"dos": "mbr", "gpt": "gpt"}[told["label"]]
    assert geometry.boot_code and geometry.disk_bytes == disk.stat().st_size

    def same_type(kind: str) -> str:
        return f"{int(kind, 16):02x}" if len(kind) < 3 else kind

    assert [
        (each.start // 512, each.size // 512, each.type, each.name) for each in geometry.partitions
    ] == [
        (each["start"], each["size"], same_type(each["type"]), each.get("name", ""))
        for each in told["partitions"]
    ]
    for each in geometry.file_systems:
        assert each.place.start is not None
        words = ["blkid", "-p", "-o", "export", "-O", str(each.place.start)]
        words += ["-S", str(each.place.size), str(disk)]
        lines = subprocess.check_output(words, text=True).splitlines()
        tags = dict(line.split("=", 1) for line in lines if "=" in line)
        assert (each.type, each.uuid) == (tags["TYPE"], tags.get("UUID", "")), tags
        assert each.label == tags.get("LABEL", "").replace("\\ ", " ")


def test_a_bare_file_system(shapes: dict[str, Path]) -> None:
    geometry = read_geometry(shapes["bare"])
    assert (geometry.table, geometry.partitions, geometry.boot_code) == (None, (), False)
    place = Place(start=0, size=8 * MIB)
    assert geometry.file_systems == (FileSystem(place=place, type="ext4", uuid=UUIDS[6]),)
    found = superblock_at(shapes["bare"], 0)
    assert found is not None
    assert found.bytes == 8 * MIB
    assert superblock_at(shapes["bare"], MIB) is None


def test_disk_without_table_or_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for content in (b"", bytes(MIB), random.Random(1).randbytes(MIB)):
        disk.write_bytes(content)
        geometry = read_geometry(disk)
        assert geometry.table is None
        assert (geometry.partitions, geometry.file_systems) == ((), ())


def _patch(at: int, data: bytes) -> Callable[[bytearray], bytearray]:
    def patch(disk: bytearray) -> bytearray:
        disk[at : at + len(data)] = data
        return disk

    return patch


def _with_header(at: int, data: bytes) -> Callable[[bytearray], bytearray]:
    """Changes a GPT header, and makes its checksum right."""

    def patch(disk: bytearray) -> bytearray:
        disk[512 + at : 512 + at + len(data)] = data
        disk[528:532] = bytes(4)
        disk[528:532] = struct.pack("<I", zlib.crc32(disk[512:604]))
        return disk

    return patch


DAMAGED = [
    ("gpt", _patch(520, b"\xff"), "the checksum of the GPT's header is wrong"),
    ("gpt", _patch(512, bytes(512)), "the GPT that the MBR announces is missing"),
    ("gpt", _patch(1024 + 60, b"NAME"), "the checksum of the GPT's entries is wrong"),
    ("gpt", _with_header(80, b"\xff\xff\xff\xff"), "its GPT has 4294967295 entries of 128 bytes"),
    (
        "gpt",
        _with_header(72, struct.pack("<Q", 1 << 60)),
        "the GPT's entries lie behind the image's end",
    ),
    ("gpt", _with_header(84, b"\0\0\0\0"), "its GPT has 128 entries of 0 bytes"),
    ("gpt", _patch(510, b"\0"), "it is a GPT without the protective MBR before it"),
    ("logical", _patch(446, b"\x42"), "the MBR's entries are invalid"),
    ("logical", _patch(446 + 12, b"\x00\x40"), "partitions 1 and 5 overlap"),
    ("logical", _patch(446 + 16 + 8, b"\x01\0\0\0"), "its chain of logical partitions is broken"),
    ("logical", _patch(446 + 4, b"\x05"), "it has two extended partitions"),
]


@pytest.mark.parametrize(("shape", "patch", "how"), DAMAGED)
def test_a_damaged_table(
    shapes: dict[str, Path], tmp_path: Path, shape: str, patch: Any, how: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(patch(bytearray(shapes[shape].read_bytes())))
    with pytest.raises(ImageFormatError) as refused:
        read_geometry(disk)
    assert str(refused.value) == f"{disk}: the image's partition table is damaged: {how}\n{AGAIN}"


@pytest.mark.parametrize(
    ("shape", "size", "what"),
    [
        ("gpt", 48 * MIB, "partition 3 ends at 53 MiB, and the image has 48 MiB"),
        ("two", 15 * MIB, "partition 2 ends at 18 MiB, and the image has 15 MiB"),
        ("logical", 8 * MIB, "the extended partition ends at 29 MiB, and the image has 8 MiB"),
        ("bare", 6 * MIB, "its ext4 file system ends at 8 MiB, and the image has 6 MiB"),
    ],
)
def test_a_truncated_image(
    shapes: dict[str, Path], tmp_path: Path, shape: str, size: int, what: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(shapes[shape].read_bytes()[:size])
    with pytest.raises(ImageFormatError) as refused:
        read_geometry(disk)
    assert str(refused.value) == f"{disk}: the image is truncated: {what}\n{AGAIN}"


@settings(
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(
    shape=st.sampled_from(["logical", "gpt", "bare"]),
    changes=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=12),
    size=st.integers(0, 4 * KIB) | st.integers(0, 80 * MIB),
)
@example(shape="gpt", changes=[], size=520)
def test_damaged_images_give_no_crash(
    shapes: dict[str, Path], tmp_path: Path, shape: str, changes: list[tuple[int, int]], size: int
) -> None:
    disk = tmp_path / "disk"
    if not disk.exists():
        disk.touch()
    start = bytearray(shapes[shape].read_bytes()[: 256 * 1024])
    for at, value in changes:
        start[at] = value
    disk.write_bytes(start)
    os.truncate(disk, size)
    with suppress(ImageFormatError):
        read_geometry(disk)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("/", "/"), ("//", "/"), ("/.", "/"), ("//boot//", "/boot"), ("/a/../b", "/a/../b")],
)
def test_a_mount_point_is_what_the_kernel_takes_it_for(written: str, meant: str) -> None:
    assert normal(written) == meant


# ---- by libguestfs


def make_subvolume(guest: Guest, device: str) -> None:
    """Makes a btrfs whose root is a subvolume, as Fedora's installer does."""
    handle = guest.handle
    handle.mkfs("btrfs", device)
    handle.mount(device, "/")
    for name in ("root", "home"):
        handle.btrfs_subvolume_create(f"/{name}")
    handle.mkdir_p("/root/usr/lib")
    handle.mkdir("/root/etc")
    handle.write("/root/usr/lib/os-release", b"ID=fedora\nVERSION_ID=41\n")
    handle.ln_s("/usr/lib/os-release", "/root/etc/os-release")
    handle.umount_all()


@pytest.fixture(scope="module")
def looked(
    shapes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, System | PhantomError]:
    """The result for each disk, all from one launch."""
    folder = tmp_path_factory.mktemp("launch")
    before = {name: disk.read_bytes() for name, disk in shapes.items()}
    found: dict[str, System | PhantomError] = {}
    subvolume = folder / "subvolume.raw"
    with subvolume.open("wb") as file:
        file.truncate(128 * MIB)
    drives = {name: Drive(file=disk, name=name) for name, disk in shapes.items()}
    made = Drive(file=subvolume, name="subvolume", writable=True)
    with launched(
        [*drives.values(), made], store=folder, log=folder / "log", progress=NoProgress()
    ) as guest:
        make_subvolume(guest, made.device)
        found["subvolume"] = inspect_system(guest, read_geometry(subvolume), made)
        for name, disk in shapes.items():
            try:
                found[name] = inspect_system(guest, read_geometry(disk), drives[name])
            except PhantomError as error:
                found[name] = error
            assert guest.handle.mounts() == []
    assert {name: disk.read_bytes() for name, disk in shapes.items()} == before
    return found


@pytest.mark.slow
def test_a_system_on_a_logical_partition(looked: dict[str, Any], shapes: dict[str, Path]) -> None:
    system = looked["logical"]
    assert isinstance(system, System), system
    assert {each.place.partition: each.mount for each in system.file_systems} == {
        1: None,
        5: "/boot",
        6: "/",
    }
    assert (system.distribution, system.family, system.release) == ("debian", "debian", "12")
    assert (system.codename, system.product) == ("bookworm", "Debian GNU/Linux 12 (bookworm)")
    assert (system.architecture, system.package_manager, system.init) == (
        "x86_64",
        "apt",
        "systemd",
    )
    assert (system.boot_loaders, system.kernels) == (("grub2",), ("6.1",))
    assert (system.cloud_init, system.selinux, system.networks) == (None, None, ())
    assert (system.clients, system.fetcher) == (("wget",), False)
    assert system.root_bytes == 8 * MIB and "has_journal" in system.root_features
    assert from_facts(json.loads(json.dumps(to_facts(system)))) == system


@pytest.mark.slow
def test_an_old_system_beside_others(looked: dict[str, Any]) -> None:
    system = looked["gpt"]
    assert isinstance(system, System), system
    assert {each.place.partition: each.mount for each in system.file_systems} == {
        1: "/boot/efi",
        2: None,
        3: "/",
    }
    assert (system.distribution, system.family, system.release) == ("centos", "redhat", "5.11")
    assert (system.architecture, system.package_manager, system.init) == ("i686", "yum", "sysv")
    assert system.kernels == ("2.6.18-398.el5", "2.6.18-1024.el5")
    assert system.boot_loaders == ("grub-legacy", "systemd-boot")
    assert (system.selinux, system.networks) == ("enforcing", ("network-scripts",))
    assert system.clients == ("curl",)


@pytest.mark.slow
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(looked: dict[str, Any]) -> None:
    system = looked["bare"]
    assert isinstance(system, System), system
    assert system.root == replace(system.file_systems[0], mount="/")


@pytest.mark.slow
def test_a_system_in_a_subvolume(looked: dict[str, Any]) -> None:
    system = looked["subvolume"]
    assert isinstance(system, System), system
    assert (system.distribution, system.release) == ("fedora", "41")
    assert (system.root.type, system.root_bytes) == ("btrfs", 128 * MIB)


@pytest.mark.slow
def test_unusable_systems_are_refused(looked: dict[str, Any]) -> None:
    families = "debian, redhat, suse, alpine, arch, gentoo"
    expected: dict[str, tuple[type[PhantomError], str]] = {
        "data": (
            NoSystemError,
            "the image holds no operating system: there is ext4 on the whole disk\n"
            "  do: name an image of a machine's whole disk, or of its root file system",
        ),
        "odd": (
            UnknownSystemError,
            "the image's distribution is not known: Odd ?[31m 1\n"
            f"  do: choose an image of a distribution of these families: {families}",
        ),
        "two": (
            SeveralSystemsError,
            "the image holds several operating systems: Debian GNU/Linux 12 (bookworm) on "
            "partition 1 and CentOS release 5.11 (Final) on partition 2\n"
            "  do: choose a base image with one, or copy the partition that you want to a disk of "
            "its own",
        ),
        "locked": (
            EncryptedError,
            "the image's /home is encrypted: LUKS on partition 2\n"
            "  do: decrypt it, or choose another base image: nobody is there to enter a key",
        ),
        "luks": (
            EncryptedError,
            "the image's root is encrypted: LUKS on partition 2\n"
            "  do: decrypt it, or choose another base image: nobody is there to enter a key",
        ),
    }
    for name, (kind, message) in expected.items():
        assert type(looked[name]) is kind
        assert str(looked[name]) == message
    assert type(looked["damaged"]) is FileSystemError
    assert re.fullmatch(
        "the ext4 file system on the whole disk cannot be mounted: .+\n  do: repair the image's "
        "file systems with their own program, or choose another base image",
        str(looked["damaged"]),
    )
