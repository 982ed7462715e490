"""Describes a base image: the results of `pipeline/guest/inspection.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """The location of a file system."""

    partition: int | None = None
    """The partition's number. If `volume` is None too, the file system is the whole disk."""
    volume: str | None = None
    """A logical volume, `group/volume`."""
    start: int | None = None
    """The offset on the disk in bytes; None for a logical volume."""
    size: int
    """Bytes of the partition, disk or volume; its file system may be smaller."""


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """A file system, or other content of a partition or volume."""

    place: Place
    type: str
    """blkid's name: `ext4`, `xfs`, `vfat`, `swap`, `crypto_LUKS`, `LVM2_member`; may be empty."""
    uuid: str = ""
    label: str = ""
    mount: str | None = None
    """Where the image's own fstab mounts it: `/`, `/boot`; None if it does not."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """An entry of the partition table."""

    number: int
    start: int
    size: int
    type: str
    """MBR: two hexadecimal digits; GPT: the type's GUID in upper case."""
    bootable: bool = False
    uuid: str = ""
    """fstab's PARTUUID in lower case; for an MBR such as `9e2a5ac1-01`."""
    name: str = ""
    """GPT: fstab's PARTLABEL."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The partitions and file systems of a disk."""

    disk_bytes: int
    table: str | None
    """`mbr`, `gpt`, or None without a partition table."""
    partitions: tuple[Partition, ...]
    """In the order of their numbers."""
    boot_code: bool
    """Whether the first sector holds a boot loader's code."""
    file_systems: tuple[FileSystem, ...]
    """The content of each partition except extended ones; without a table, that of the whole disk
    if it is recognised."""


@dataclass(frozen=True, kw_only=True)
class System(Geometry):
    """An image with one operating system. Its `file_systems` include logical volumes; the `mount`
    of root is `/`."""

    root_bytes: int
    """The size of the root file system according to its superblock."""
    root_features: tuple[str, ...]
    """The features of an ext file system, in tune2fs' terms."""

    distribution: str
    """`ID` of os-release: `debian`."""
    family: str
    """`debian`, `redhat`, `suse`, `alpine`, `arch`, `gentoo`."""
    release: str
    """`VERSION_ID`, or empty."""
    codename: str
    """`VERSION_CODENAME`, or empty."""
    product: str
    """`PRETTY_NAME`."""
    architecture: str
    """As `uname -m` prints it: `x86_64`."""
    package_manager: str | None
    """`apt`, `dnf`, `yum`, `zypper`, `apk`, `pacman` or None."""
    init: str | None
    """`systemd`, `sysv`, `openrc`; None for an unknown init system."""
    boot_loaders: tuple[str, ...]
    """Those with a configuration: `grub2`, `grub-legacy`, `extlinux`, `systemd-boot`."""
    kernels: tuple[str, ...]
    """The versions with both a file in /boot and modules, the newest last."""
    cloud_init: str | None
    """cloud-init's version; None if it is disabled or not installed."""
    selinux: str | None
    """`enforcing`, `permissive`; None if SELinux is off or not installed."""
    networks: tuple[str, ...]
    """The programs that may configure the network, in this order of preference: `networkd`,
    `ifupdown`, `netplan`, `NetworkManager`, `network-scripts`."""
    clients: tuple[str, ...]
    """Which of `curl` and `wget` are installed."""
    fetcher: bool
    """Whether the user-data fetcher is installed already."""

    @property
    def root(self) -> FileSystem:
        """The root file system."""
        return next(system for system in self.file_systems if system.mount == "/")
