"""What a base image is: the values that `inspection.py` finds and that all others go by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a file system lies."""

    partition: int | None = None
    """The partition's number; None with no `volume`: the file system is the whole disk."""
    volume: str | None = None
    """A logical volume, `group/volume`."""
    start: int | None = None
    """Offset on the disk in bytes; None for a logical volume."""
    size: int
    """Bytes of partition, disk or volume; the file system on it may be smaller."""


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """A file system, or what else fills a partition or a volume."""

    place: Place
    type: str
    """In the words of blkid: `ext4`, `xfs`, `vfat`, `swap`, `crypto_LUKS`, `LVM2_member`; empty
    where nothing is recognised."""
    uuid: str = ""
    label: str = ""
    mount: str | None = None
    """Where the image's own fstab mounts it: `/`, `/boot`; None: nowhere."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A line of the partition table."""

    number: int
    start: int
    size: int
    type: str
    """MBR: two hexadecimal digits; GPT: the type's GUID, in capitals."""
    bootable: bool = False
    uuid: str = ""
    """What fstab calls PARTUUID, in small letters; of an MBR `9e2a5ac1-01`."""
    name: str = ""
    """GPT: what fstab calls PARTLABEL."""


@dataclass(frozen=True, kw_only=True)
class System:
    """An image with one operating system."""

    disk_bytes: int
    table: str | None
    """`mbr`, `gpt`, or None for a bare file system."""
    partitions: tuple[Partition, ...]
    """In the order of their numbers."""
    boot_code: bool
    """Whether the first sector holds a boot loader's code."""
    file_systems: tuple[FileSystem, ...]
    """All of them; root is the one whose `mount` is `/`."""
    root_bytes: int
    """Of the root file system itself, by its superblock."""
    root_features: tuple[str, ...]
    """Of an ext file system, in the words of tune2fs."""

    distribution: str
    """`ID` of os-release: `debian`."""
    family: str
    """`debian`, `redhat`, `suse`, `alpine`, `arch`, `gentoo`."""
    release: str
    """`VERSION_ID`; empty where there is none."""
    codename: str
    """`VERSION_CODENAME`; empty where there is none."""
    product: str
    """`PRETTY_NAME`."""
    architecture: str
    """In the words of `uname -m`: `x86_64`."""
    package_manager: str | None
    """`apt`, `dnf`, `yum`, `zypper`, `apk`, `pacman`; None where there is none."""
    init: str | None
    """`systemd`, `sysv`, `openrc`; None where none is known."""
    boot_loaders: tuple[str, ...]
    """`grub2`, `grub-legacy`, `extlinux`, `systemd-boot`; those whose configuration is there."""
    kernels: tuple[str, ...]
    """Versions that have both an image in /boot and modules, the newest last."""
    cloud_init: str | None
    """Its version; None where it is not installed or disabled."""
    selinux: str | None
    """`enforcing`, `permissive`; None where it is off or not installed."""
    networks: tuple[str, ...]
    """What could bring the network up: `networkd`, `ifupdown`, `netplan`, `NetworkManager`,
    `network-scripts`, in this order of preference where several are enabled."""
    clients: tuple[str, ...]
    """`curl`, `wget`: those that the image has."""
    fetcher: bool
    """Whether the user-data fetcher is in it already."""

    @property
    def root(self) -> FileSystem:
        """The root file system."""
        return next(each for each in self.file_systems if each.mount == "/")
