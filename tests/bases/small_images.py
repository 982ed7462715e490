"""Disks of a few MiB that look like systems: enough to inspect, not to boot."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import sparse
from pipeline.model import MIB
from pipeline.tools import fat, sfdisk

UUIDS = [f"f11e5000-0000-4000-8000-{number:012x}" for number in range(8)]
_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62)  # for x86_64
PIPE = "pipe"
"""Stands for a file that is a pipe."""

Tree = Mapping[str, str | bytes]
"""The files of a file system, texts or bytes by path; `-> TARGET` is a symbolic link."""

DEBIAN: Tree = {
    "etc/os-release": "-> ../usr/lib/os-release",
    "usr/lib/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
    'VERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    "bin/sh": "-> dash",
    "bin/dash": _ELF,
    "sbin/init": "-> /lib/systemd/systemd",
    "lib/systemd/systemd": _ELF,
    "usr/bin/apt-get": _ELF,
    "usr/bin/wget": _ELF,
}

CENTOS: Tree = {
    "etc/redhat-release": "CentOS release 5.11 (Final)\n",
    "bin/sh": b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 3),
    "sbin/init": b"\x7fELF",
    "etc/rc.d/rc3.d/S10network": "-> ../init.d/network",
    "etc/rc.d/init.d/network": "#!/bin/sh\n",
    "etc/sysconfig/network-scripts/ifup": "#!/bin/sh\n",
    "usr/bin/yum": "#!/usr/bin/python\n",
    "usr/bin/curl": b"\x7fELF",
    "boot/grub/menu.lst": "title CentOS\nkernel /vmlinuz-2.6.18-398.el5 ro root=/dev/sda1\n",
    "boot/vmlinuz-2.6.18-398.el5": "kernel",
    "boot/vmlinuz-2.6.18-1024.el5": "kernel",
    "boot/vmlinuz-2.6.18-9.el5": "kernel without modules",
    "lib/modules/2.6.18-398.el5/modules.dep": "",
    "lib/modules/2.6.18-1024.el5/modules.dep": "",
    "etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n",
    "etc/selinux/targeted/policy/policy.21": "policy",
}


@dataclass(frozen=True)
class Part:
    """A partition and its content."""

    file: Path | None
    size: int
    type: str = "83"
    extra: str = ""


def make_ext(
    file: Path, tree: Tree, *, kind: str = "ext4", uuid: str = UUIDS[0], label: str = ""
) -> Path:
    """An ext file system of 8 MiB that holds a tree."""
    folder = file.with_suffix(".tree")
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == PIPE:
            os.mkfifo(path)
        elif isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["mke2fs", "-q", "-F", "-t", kind, "-U", uuid, "-L", label, "-d", str(folder)]
    subprocess.run([*words, str(file), "8M"], check=True)
    return file


def make_swap(file: Path, uuid: str) -> Path:
    with file.open("wb") as made:
        made.truncate(2 * MIB)
    subprocess.run(["mkswap", "-q", "-U", uuid, str(file)], check=True, capture_output=True)
    return file


def make_luks(file: Path, uuid: str) -> Path:
    """The first sector of a LUKS device; inspection reads no more."""
    with file.open("wb") as made:
        made.truncate(2 * MIB)
        made.write(b"LUKS\xba\xbe\0\1")
        made.seek(168)
        made.write(uuid.encode())
    return file


def make_efi(file: Path) -> Path:
    """An EFI system partition with systemd-boot's configuration."""
    loader = file.with_suffix(".conf")
    loader.write_text("timeout 1\n")
    target = PurePosixPath("/loader/loader.conf")
    fat.make(file, 40 * MIB, {target: loader}, label="EFI", serial=0x1234_ABCD, start=MIB)
    return file


def make_disk(file: Path, label: str, parts: Sequence[Part], *, head: str = "") -> Path:
    """A disk with a partition table and boot code; partitions start at 1 MiB, one after another. A
    part without a file is an extended partition, which holds those that follow."""
    lines, start, number = [f"label: {label}", head], MIB, 1
    end = MIB + sum(part.size + 2 * MIB for part in parts)
    places = []
    for part in parts:
        if part.file is None:
            lines.append(f"{number}: start={start // 512}, size={(end - start) // 512}, type=f")
            start, number = start + MIB, 5
            continue
        lines.append(
            f"{number}: start={start // 512}, size={part.size // 512}, type={part.type}{part.extra}"
        )
        places.append((start, part.file))
        start, number = start + part.size + MIB, number + 1
    with file.open("wb") as made:
        made.truncate(end + 2 * MIB)
    sfdisk.write_table(file, "\n".join(lines) + "\n")
    with file.open("r+b") as made:
        made.write(b"\xeb\x63\x90")  # a jump: all boot code begins with one
        for start, part_file in places:
            sparse.copy_into(part_file, made.fileno(), start)
    return file
