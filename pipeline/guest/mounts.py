"""Where images mount their file systems, and where a btrfs keeps a system's root."""

from __future__ import annotations

import posixpath

SUBVOLUMES = ("", "@rootfs", "@", "root", "@root", "@/.snapshots/1/snapshot")
"""Where root is on a btrfs, from what is shown without an option: Debian has @rootfs, Ubuntu and
SUSE @, Fedora root; SUSE's is the default one, too."""

OF_ROOT = ("etc/fstab", "etc/os-release")
"""The files by one of which a subvolume is known to be root."""


def normal(mount: str) -> str:
    """A mount point of an fstab as the kernel takes it: `//` is `/`, and `/boot/` is `/boot`. One
    that is no absolute path, or leads upwards, stays as it is."""
    if not mount.startswith("/") or ".." in mount.split("/"):
        return mount
    return "/" + posixpath.normpath(mount).lstrip("/")
