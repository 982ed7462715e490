"""Images of every shape become one root file system that boots from each layout."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from base_images import Bases
from conversions import Conversions
from guests import debian

from pipeline.disk import fstab
from pipeline.disk.partitions import read_geometry
from pipeline.disk.system import FileSystem, Place
from pipeline.errors import (
    DiskTooSmallError,
    FileSystemError,
    PhantomError,
    StageFailedError,
    UnsafeImageError,
)
from pipeline.guest import kernel_options
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.root import (
    Likely,
    copy_root,
    make_root,
    settle_root,
)
from pipeline.model import GIB, MIB, NoProgress
from pipeline.tools import sfdisk

CONSOLES = "console=tty0 console=ttyS0,115200"


def words_of(configuration: str) -> list[list[str]]:
    """The words of each line that boots Linux in a boot loader's configuration."""
    lines = [line.split() for line in configuration.splitlines()]
    return [words for words in lines if words and words[0] in ("linux", "kernel")]


def test_gpt_with_a_boot_partition_becomes_root_alone(conversions: Conversions) -> None:
    done = conversions.converted("debian-grub.qcow2")
    done.check()
    uuid = done.system.root.uuid
    assert done.kept is None
    mounts = [(line.source, line.mount) for line in fstab.parse(done.read("/etc/fstab"))]
    assert mounts == [(f"UUID={uuid}", "/")]
    (version,) = done.system.kernels
    assert {f"vmlinuz-{version}", f"initrd.img-{version}", "grub"} <= done.names("/boot")
    assert "lost+found" not in done.names("/boot")
    for path in ("/boot/grub/grub.cfg", "/boot/grub/menu.lst"):
        first, *_ = words_of(done.read(path))
        assert first[1] == f"/boot/vmlinuz-{version}"
        assert {f"root=UUID={uuid}", "noresume"} <= set(first)
    assert CONSOLES in done.read("/boot/grub/grub.cfg")
    # Our GRUB must not load the image's own modules. The image's update-grub must write the same
    # options.
    assert "i386-pc" not in done.names("/boot/grub")
    assert f"GRUB_CMDLINE_LINUX='noresume net.ifnames=0 {CONSOLES}'" in done.read(
        "/etc/default/grub.d/99-phantom.cfg"
    )


@pytest.mark.only_soak
def test_root_on_a_logical_volume_becomes_root_alone(conversions: Conversions) -> None:
    done = conversions.converted("lvm.raw")
    done.check()
    assert done.kept is None
    assert done.system.root.place.volume is not None
    lines = [(line.source, line.mount) for line in fstab.parse(done.read("/etc/fstab"))]
    assert lines == [(f"UUID={done.system.root.uuid}", "/")]
    first, *_ = words_of(done.read("/boot/grub/grub.cfg"))
    assert first[2] == f"root=UUID={done.system.root.uuid}"
    assert not [word for word in first if word.startswith(("rd.lvm", "resume="))]


def test_a_layout_of_ours_is_kept_and_its_journal_replayed(
    bases: Bases, conversions: Conversions, tmp_path: Path
) -> None:
    base = bases.path("dirty.raw")
    done = conversions.converted("dirty.raw")
    done.check()
    assert done.kept is not None
    assert (done.kept.layout, done.kept.root_start, done.kept.tail) == ("mbr", MIB, 0)
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(2 * GIB)
    size = (2 * GIB - MIB) // 512
    sfdisk.write_table(disk, done.kept.table.replace("{size}", str(size)))
    (before,), (after,) = read_geometry(base).partitions, read_geometry(disk).partitions
    assert dataclasses.replace(after, size=before.size) == before
    assert after.size == size * 512
    assert "0" in done.names("/var/lib/written")
    # The image's own GRUB keeps its configuration, but Linux uses the serial console.
    configuration = done.read("/boot/grub/grub.cfg")
    assert "### BEGIN /etc/grub.d/10_linux ###" in configuration
    for words in words_of(configuration):
        assert "console=ttyS0,115200" in words
    assert 'GRUB_CMDLINE_LINUX_DEFAULT=""' not in done.read("/etc/default/grub.d/99-phantom.cfg")


def test_a_bare_file_system_gets_what_pygrub_reads(conversions: Conversions) -> None:
    done = conversions.converted("bare-ext3.raw")
    done.check()
    assert done.kept is None
    (root,) = fstab.parse(done.read("/etc/fstab"))
    assert (root.source, root.type) == (f"UUID={done.system.root.uuid}", "ext3")
    for words in words_of(done.read("/boot/grub/menu.lst")):
        assert words[2:3] == [f"root=UUID={done.system.root.uuid}"]


@pytest.mark.only_soak
def test_sysv_init_has_a_login_on_the_serial_console(conversions: Conversions) -> None:
    done = conversions.converted("sysv.raw")
    done.check()
    (line,) = [
        line
        for line in done.read("/etc/inittab").splitlines()
        if "ttyS0" in line and not line.startswith("#")
    ]
    assert line.startswith("S0:2345:respawn:")
    assert len(line.partition("respawn:")[2]) < 128  # sysvinit's limit


# ---- without a whole system: several small file systems in one launch


def ext(folder: Path, name: str, *words: str, size: str = "64M") -> Path:
    """An ext file system with the content of a folder."""
    made = folder / f"{name}.raw"
    options = ["-q", "-F", *words, "-d", str(folder / name), str(made), size]
    subprocess.run(["mke2fs", *options], check=True)
    return made


def whole(disk: Path, kind: str, mount: str | None) -> FileSystem:
    """A file system that takes a whole disk."""
    place = Place(start=0, size=disk.stat().st_size)
    words = ["blkid", "-o", "value", "-s", "UUID", str(disk)]
    uuid = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return FileSystem(place=place, type=kind, uuid=uuid, mount=mount)


@contextmanager
def failing(guest: Guest) -> Iterator[pytest.ExceptionInfo[PhantomError]]:
    """A block that must fail and leave nothing mounted."""
    with pytest.raises(PhantomError) as caught:
        yield caught
    guest.handle.umount_all()
    assert "phantom-from" not in guest.handle.debug("sh", ["cat /proc/mounts"])


def test_files_are_copied_whole_and_never_past_the_image(tmp_path: Path) -> None:
    for name in ("tree/etc", "tree/home", "linked/etc", "broken"):
        (tmp_path / name).mkdir(parents=True)
    tree = tmp_path / "tree"
    (tree / "etc/fstab").write_text("LABEL=r // btrfs subvol=@ 0 0\n")
    (tree / ".snapshots").symlink_to("/dev")
    (tree / "one").write_text("content")
    (tree / "two").hardlink_to(tree / "one")
    (tree / "one").chmod(0o4751)
    (tree / "home/hidden").write_text("by a mount")
    (tmp_path / "linked/home").symlink_to("etc")
    (tmp_path / "linked/bulk").write_bytes(b"x" * 4 * MIB)
    with (tmp_path / "linked/sparse").open("wb") as file:
        file.truncate(40 * MIB)
    (tmp_path / "broken/file").write_text("content" * 100000)
    foreign = tmp_path / "foreign.raw"
    with foreign.open("wb") as file:
        file.truncate(128 * MIB)
    words = ["mkfs.btrfs", "-q", "-L", "r", "--rootdir", str(tree), str(foreign)]
    subprocess.run(words, check=True)
    linked = ext(tmp_path, "linked")
    broken = ext(tmp_path, "broken")
    for command in ("set_inode_field <2> block[0] 0", "set_super_value state 2"):
        words = ["debugfs", "-w", "-R", command, str(broken)]
        subprocess.run(words, capture_output=True, check=True)
    working = tmp_path / "working.raw"
    with working.open("wb") as file:
        file.truncate(200 * MIB)
    files = {"root": working, "foreign": foreign, "linked": linked, "broken": broken}
    drives = [Drive(file=file, name=name, writable=name == "root") for name, file in files.items()]
    at = {drive.name: drive for drive in drives}
    root = at["root"]
    with launched(drives, store=tmp_path, log=tmp_path / "log", progress=NoProgress()) as guest:
        room = 200 * MIB
        volume = Place(volume="disk/guestfs/linked", size=64 * MIB)
        home = FileSystem(place=volume, type="ext4", mount="//home/")

        # A link in the place of a mount point would lead a copy elsewhere.
        system = debian(file_systems=(whole(linked, "ext4", "/"), home), root_bytes=64 * MIB)
        with failing(guest) as caught:
            settle_root(guest, system, None, working=root, base=at["linked"], room=room)
        assert isinstance(caught.value, UnsafeImageError)
        assert str(caught.value) == (
            "the image's fstab mounts something at /home, and /home is a link to etc\n"
            "  do: name the mount point in the base's fstab by the folder that it leads to"
        )

        # A file system that e2fsck cannot repair without a loss.
        system = debian(file_systems=(whole(broken, "ext4", "/"),), root_bytes=64 * MIB)
        with failing(guest) as caught:
            likely = Likely(place=system.root.place, bytes=64 * MIB)
            drive = at["broken"]
            settle_root(guest, system, likely, working=drive, base=drive, room=64 * MIB)
        assert isinstance(caught.value, FileSystemError)
        assert caught.value.what == (
            "the image's root file system is damaged, and e2fsck cannot repair it without a loss"
        )

        # A file system that is larger than the requested disk.
        system = dataclasses.replace(
            system,
            root_bytes=GIB,
            file_systems=(FileSystem(place=Place(start=0, size=GIB), type="ext4", mount="/"),),
        )
        with failing(guest) as caught:
            settle_root(guest, system, None, working=root, base=at["linked"], room=room)
        assert isinstance(caught.value, DiskTooSmallError)
        assert str(caught.value) == (
            "the image's root file system of 1 GiB does not fit on the disk\n"
            "  do: set disk_size to 1089MiB or more"
        )

        # A root of another type is copied file by file; another file system hides its /home.
        system = debian(file_systems=(whole(foreign, "btrfs", "/"), home), root_bytes=128 * MIB)
        likely = Likely(place=Place(start=0, size=MIB), bytes=MIB)  # a wrong guess
        settle_root(guest, system, likely, working=root, base=at["foreign"], room=room)
        mounted = guest.handle.mounts()[0]
        assert guest.handle.vfs_type(mounted) == "ext4"
        assert guest.handle.vfs_uuid(mounted) == system.root.uuid
        one, two = guest.handle.statns("/one"), guest.handle.statns("/two")
        assert one["st_ino"] == two["st_ino"]
        assert one["st_mode"] == 0o104751
        assert guest.handle.readlink("/.snapshots") == "/dev"
        assert sorted(guest.handle.ls("/home")) == ["bulk", "etc", "home", "sparse"]
        assert guest.handle.statns("/home/sparse")["st_blocks"] == 0

        # Root has no room for the file system that is to be moved into it.
        free = guest.handle.statvfs("/")["bavail"] * 4096
        guest.handle.fallocate64("/filler", free - MIB)
        guest.handle.umount_all()
        place = Place(start=0, size=200 * MIB)
        system = debian(
            file_systems=(
                FileSystem(place=place, type="ext4", mount="/"),
                dataclasses.replace(home, mount="/srv/more"),
            ),
            root_bytes=200 * MIB,
        )
        with failing(guest) as caught:
            likely = Likely(place=place, bytes=200 * MIB)
            settle_root(guest, system, likely, working=root, base=root, room=room)
        assert isinstance(caught.value, FileSystemError)
        assert re.fullmatch(
            "the root file system has no room for the image's /srv/more, which takes 4.* MiB: "
            r".* are free\n  do: set disk_size to 2[67][0-9]MiB or more",
            str(caught.value),
        )


def test_copying_ends_when_all_is_to_end(tmp_path: Path) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    with base.open("wb") as file:
        for start in (0, 2 * MIB):  # two pieces of work, with a hole between them
            file.seek(start)
            file.write(b"x" * MIB)
    likely = Likely(place=Place(start=0, size=3 * MIB), bytes=3 * MIB)
    make_root(root, 3 * MIB, likely)
    stop = threading.Event()
    stop.set()
    with pytest.raises(StageFailedError) as caught:
        copy_root(base, root, likely, stop=stop)
    assert str(caught.value) == "was interrupted\n  do: run the same command again"
    assert root.read_bytes()[MIB:] == bytes(2 * MIB)


def test_fstab_keeps_mounts_from_outside_the_image() -> None:
    text = """# a comment
LABEL=root / xfs defaults,prjquota 0 0
UUID=1 /boot ext4 defaults 0 2
UUID=2-3 /boot/efi vfat umask=0077 0 1
/dev/mapper/vg-swap none swap sw 0 0
/swapfile none swap sw 0 0
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
tmpfs /tmp tmpfs nosuid 0 0
server:/export /mnt nfs ro 0 0
/dev/pts /chroot/dev/pts none bind 0 0

UUID=4 /data ext4 _netdev 0 0
"""
    assert (
        fstab.rewrite(text, uuid="u", type="ext4", keep_efi=False)
        == """# a comment
UUID=u / ext4 errors=remount-ro 0 1
/swapfile none swap sw 0 0
tmpfs /tmp tmpfs nosuid 0 0
server:/export /mnt nfs ro 0 0
/dev/pts /chroot/dev/pts none bind 0 0

UUID=4 /data ext4 _netdev 0 0
"""
    )
    kept = fstab.rewrite(text, uuid="u", type="ext4", keep_efi=True)
    assert "UUID=2-3 /boot/efi vfat umask=0077,nofail,x-systemd.device-timeout=5s 0 0\n" in kept
    assert fstab.rewrite("", uuid="u", type="ext3", keep_efi=True) == (
        "UUID=u / ext3 errors=remount-ro 0 1\n"
    )


@pytest.mark.parametrize(
    ("options", "followed"),
    [
        ("root=/dev/sda1 ro quiet", f"root=UUID=u ro quiet {CONSOLES}"),
        ("root=PARTUUID=12-01 ro console=ttyS0", "root=UUID=u ro console=ttyS0"),
        ("root=LABEL=x console=tty1", "root=LABEL=x console=tty1 console=ttyS0,115200"),
        ("$kernelopts $tuned", f"$kernelopts $tuned {CONSOLES}"),
    ],
)
def test_options_follow_the_disk(options: str, followed: str) -> None:
    assert kernel_options.follow(options, "u") == followed
    text = f"menuentry x {{\n\tlinux\t/boot/vmlinuz {options}\n\tinitrd /initrd\n}}\n"
    expected = f"menuentry x {{\n\tlinux\t/boot/vmlinuz {followed}\n\tinitrd /initrd\n}}\n"
    assert kernel_options.follow_lines(text, kernel_options.GRUB_LINE, "u") == expected
