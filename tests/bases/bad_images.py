"""Base images of a few MiB, each with one fault. They hold enough of a system to be inspected
and refused; none boots."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from small_images import DEBIAN, UUIDS, Part, Tree, make_disk, make_ext, make_luks

from pipeline import sparse
from pipeline.model import KIB, MIB

_SIZE = 8 * MIB
_BLOCK = 1024  # mke2fs's choice for a file system of this size
_START = MIB  # where the first partition begins
_AARCH64 = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 183)


def _one_root(folder: Path, tree: Tree) -> Path:
    """An MBR disk with one partition that holds a tree."""
    root = make_ext(folder / "root", tree)
    return make_disk(folder / "bad.raw", "dos", [Part(root, _SIZE)])


def _without(*names: str, **more: str) -> Callable[[Path], Path]:
    tree = {name: content for name, content in DEBIAN.items() if name not in names}
    return lambda folder: _one_root(folder, {**tree, **more})


def _unknown(folder: Path) -> Path:
    release = 'ID=plan10\nVERSION_ID="10"\nPRETTY_NAME="Plan 10 from User Space"\n'
    tree = {name: content for name, content in DEBIAN.items() if name != "usr/bin/apt-get"}
    return _one_root(folder, {**tree, "usr/lib/os-release": release})


def _other_processor(folder: Path) -> Path:
    """The ELF headers of its programs name another processor."""
    tree = {
        name: _AARCH64 if isinstance(content, bytes) else content
        for name, content in DEBIAN.items()
    }
    return _one_root(folder, tree)


def _no_system(folder: Path) -> Path:
    """A file system with files but no system."""
    return make_ext(folder / "bad.raw", {"README": "holiday\n"})


def _two_systems(folder: Path) -> Path:
    parts = [
        Part(make_ext(folder / f"root{number}", DEBIAN, uuid=UUIDS[number]), _SIZE)
        for number in (1, 2)
    ]
    return make_disk(folder / "bad.raw", "dos", parts)


def _encrypted(folder: Path) -> Path:
    boot = make_ext(folder / "boot", {"grub/grub.cfg": ""})
    locked = make_luks(folder / "locked", UUIDS[1])
    return make_disk(folder / "bad.raw", "dos", [Part(boot, _SIZE), Part(locked, 2 * MIB)])


def _full(folder: Path) -> Path:
    """No block of the root file system is free, not even for root's processes."""
    root = make_ext(folder / "root", DEBIAN)
    subprocess.run(["tune2fs", "-m", "0", root], check=True, capture_output=True)
    filler = folder / "filler"
    for number in range(8):  # a file's block map takes blocks too, so one filler is not enough
        shown = subprocess.run(["dumpe2fs", "-h", root], check=True, capture_output=True, text=True)
        free = next(int(line.split()[2]) for line in shown.stdout.splitlines() if "Free b" in line)
        if free == 0:
            break
        filler.write_bytes(b"\x55" * _BLOCK * max(1, free - free // 64))
        command = f"write {filler} /var-filler-{number}"
        subprocess.run(["debugfs", "-w", "-R", command, root], check=True, capture_output=True)
    assert free == 0
    return make_disk(folder / "bad.raw", "dos", [Part(root, _SIZE)])


def _damaged(folder: Path) -> Path:
    """The inode tables are overwritten, as by a failing disk."""
    disk = _one_root(folder, DEBIAN)
    shown = subprocess.run(
        ["dumpe2fs", f"{disk}?offset={_START}"], check=True, capture_output=True, text=True
    )
    lines = [line.strip() for line in shown.stdout.splitlines()]
    tables = [line.split()[3] for line in lines if line.startswith("Inode table at")]
    assert tables
    with disk.open("r+b") as file:
        for table in tables:
            place = _START + _BLOCK * int(table.split("-")[0])
            sparse.write_at(file.fileno(), b"\xa5" * 64 * KIB, place)
    return disk


def _truncated(folder: Path) -> Path:
    """An image that a broken download has cut short."""
    disk = _one_root(folder, DEBIAN)
    os.truncate(disk, 5 * MIB)
    return disk


def _text(folder: Path) -> Path:
    (folder / "bad.raw").write_bytes(b"This is not an image.\n" * 1000)
    return folder / "bad.raw"


def _huge(folder: Path) -> Path:
    """An empty disk of 16 TiB."""
    words = ["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "bad.qcow2"), "16T"]
    subprocess.run(words, check=True)
    return folder / "bad.qcow2"


BAD_IMAGES: Mapping[str, Callable[[Path], Path]] = {
    "damaged": _damaged,
    "encrypted": _encrypted,
    "full": _full,
    "huge": _huge,
    "no client": _without("usr/bin/wget"),
    "no init": _without("sbin/init", "lib/systemd/systemd"),
    "no package manager": _without("usr/bin/apt-get"),
    "no system": _no_system,
    "other processor": _other_processor,
    "text": _text,
    "truncated": _truncated,
    "two systems": _two_systems,
    "unknown distribution": _unknown,
}


def make_bad_image(name: str, folder: Path) -> Path:
    """One of `BAD_IMAGES`, in a new folder; tests must not write to it."""
    folder.mkdir()
    image = BAD_IMAGES[name](folder)
    image.chmod(0o444)
    return image
