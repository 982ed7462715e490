"""What a site's node does with the disk of a machine before it boots it."""

from __future__ import annotations

from pathlib import Path

from pipeline.disk import ext4
from pipeline.disk.superblock import NEW_FEATURES, is_ext_at, superblock_at
from pipeline.errors import GuestCheckError, GuestSilentError
from pipeline.model import Machine
from pipeline.tools import sfdisk


def find_root(disk: Path) -> ext4.FileSystem:
    """The root file system of an image's disk: the whole of it, or partition 1. Raises
    GuestSilentError where there is none."""
    if is_ext_at(disk, 0):
        return ext4.FileSystem(disk, 0)
    starts = sfdisk.partition_starts(disk)
    if 1 not in starts:
        raise GuestSilentError(
            "the disk's partition table has no partition 1, where root is to lie",
            todo="look at the layout of the image",
        )
    return ext4.FileSystem(disk, starts[1])


def edit_as_node(machine: Machine, disk: Path, public_key: str, metadata_url: str) -> None:
    """Writes into the disk's root file system what the site's node writes before it boots it, if it
    writes anything.

    The root file system is found as the node finds it: it tries the file as a partition first.
    Raises GuestSilentError where there is none, and GuestCheckError where old nodes cannot write
    into it.
    """
    if not machine.edits:
        return
    offset = 0 if is_ext_at(disk, 0) else sfdisk.first_partition(disk)
    if offset is None:
        raise GuestSilentError(
            "the disk's partition table lists no partition: a node would find no root file system",
            todo="look at the layout of the image",
        )
    superblock = superblock_at(disk, offset)
    new = sorted(NEW_FEATURES.intersection(superblock.features if superblock else ()))
    if new:
        raise GuestCheckError(
            "the root file system has features with which a node of 2010 does not mount it: "
            f"{', '.join(new)}",
            todo="make it without them, as elements/phantom-debian does",
        )
    root = ext4.FileSystem(disk, offset)
    for edit in machine.edits:
        text = edit.text.format(public_key=public_key, metadata_url=metadata_url)
        root.write(edit.path, text, edit.mode)
