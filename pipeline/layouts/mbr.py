"""An MBR with root as its first and only partition, booted by a BIOS.

A Nimbus node mounts the first partition that `fdisk -lu` lists to write into it, whatever its boot
flag, so nothing may come before root (facts of Nimbus 2.10's image editing).
"""

from __future__ import annotations

from pipeline.layouts.layout import SECTOR, BiosBoot, Layout
from pipeline.model import MIB

LAYOUT = Layout(
    name="mbr",
    root_start=MIB,
    table="label: dos\nlabel-id: 0x{identifier}\nstart={start}, size={size}, type=83, bootable\n",
    bios=BiosBoot(
        core_start=SECTOR,
        core_room=MIB - SECTOR,
        prefix="(,msdos1)/boot/grub",
        modules=("biosdisk", "part_msdos", "ext2", "normal", "linux", "echo", "test", "ls", "cat")
        + ("search", "search_label", "halt", "reboot", "gzio"),
    ),
    tools=("grub",),
)
