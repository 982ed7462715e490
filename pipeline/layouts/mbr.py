"""An MBR with root as its first and only partition, booted by a BIOS.

To write into an image, a Nimbus node mounts the first partition that `fdisk -lu` lists, whatever
its boot flag, so root must be first (docs/facts/nimbus.md).
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
