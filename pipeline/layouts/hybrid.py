"""A GPT that both BIOS and UEFI boot, with root as partition 1 at the end of the disk.

Partitions have the numbers that are usual in cloud images: 1 for root, 14 for GRUB's core, 15 for
the EFI system partition. The GUIDs of their types come from the UEFI specification (EFI system),
GRUB's manual (BIOS boot) and Linux (file system).
"""

from __future__ import annotations

from pipeline.layouts.layout import SECTOR, BiosBoot, EfiBoot, Layout
from pipeline.model import MIB

_CORE_START, _EFI_START = MIB, 4 * MIB
# Aligned to EBS's blocks, and far enough from the start that the EFI system partition has the
# 65,525 clusters that FAT32 requires.
_ROOT_START = 64 * MIB

_MODULES = (
    *("part_gpt", "ext2", "normal", "linux", "echo", "test", "ls", "cat", "search"),
    *("search_label", "halt", "reboot", "gzio"),
)

LAYOUT = Layout(
    name="hybrid",
    root_start=_ROOT_START,
    tail=MIB,  # the second table takes 33 sectors of it
    table="label: gpt\nlabel-id: {guids[0]}\n"
    "1: start={start}, size={size}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, "
    'uuid={guids[1]}, name="root"\n'
    f"14: start={_CORE_START // SECTOR}, size={(_EFI_START - _CORE_START) // SECTOR}, "
    'type=21686148-6449-6E6F-744E-656564454649, uuid={guids[14]}, name="bios-boot"\n'
    f"15: start={_EFI_START // SECTOR}, size={(_ROOT_START - _EFI_START) // SECTOR}, "
    'type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid={guids[15]}, name="efi"\n',
    bios=BiosBoot(
        core_start=_CORE_START,
        core_room=_EFI_START - _CORE_START,
        prefix="(,gpt1)/boot/grub",
        modules=("biosdisk", *_MODULES),
    ),
    efi=EfiBoot(
        start=_EFI_START,
        size=_ROOT_START - _EFI_START,
        serial=0x5048_4E54,
        prefix="(,gpt1)/boot/grub",
        modules=("fat", "all_video", *_MODULES),
    ),
    tools=("grub", "mtools"),
)
