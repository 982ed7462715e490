"""The values that flow through the pipeline: frozen, and without clock, disk or network.

`definition.py` makes an `Appliance` and its `Site`s, `plan.py` makes stages of them, stages make
artifacts, `clouds/` make `Publication`s of booted images, and `manifest.py` writes it all down.
Sizes are in bytes and durations in seconds unless a name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NewType, Protocol

ContentKey = NewType("ContentKey", str)
"""What would be built: the SHA-256, in hexadecimal, of everything that decides a stage's output."""

Sha256 = NewType("Sha256", str)
"""The bytes that were built: the SHA-256, in hexadecimal, of a file's content."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
_SIZE = re.compile(r"^([0-9]+)\s*(B|KiB|MiB|GiB|TiB)$")


def parse_size(text: str) -> int:
    """Bytes in a size such as `2GiB` (units of 1,024 only, as disks are cut in them).

    Raises ValueError for anything else.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no size; write a number and B, KiB, MiB, GiB or TiB")
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """A size for people, with three digits that matter: `1.95 GiB`."""
    value, unit = float(size), "B"
    for unit in _UNITS:
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


@dataclass(frozen=True, kw_only=True)
class ScratchSource:
    """A root file system made from packages by diskimage-builder."""

    element: str
    """The operating-system element."""
    release: str
    """The distribution's code name, such as `bookworm`."""
    architecture: str
    """Debian's name of the architecture."""


@dataclass(frozen=True, kw_only=True)
class ApplianceBuild:
    """A build of another appliance of the tree."""

    name: str
    build: str = "latest"
    """Its twelve digits, or `latest`."""


@dataclass(frozen=True, kw_only=True)
class BaseImageSource:
    """A root file system from an image that exists, changed by libguestfs."""

    location: Path | str | ApplianceBuild
    """A file of this host, a URL (`http`, `https`, `s3`), or another appliance's build."""
    sha256: Sha256 | None = None
    """Of the file as it is fetched; required of what comes over a network."""
    format: str | None = None
    """qemu-img's name of the format, where it must be told."""
    network: bool = False
    """Whether packages and scripts reach the network while the image is changed."""
    remove_packages: tuple[str, ...] = ()
    script_seconds: int = 3600
    """How long each script may run."""


@dataclass(frozen=True, kw_only=True)
class FileCopy:
    """A file of the definition's folder that lands in the image, owned by root."""

    source: Path
    target: PurePosixPath
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class BootCheckPolicy:
    """How the appliance proves that it came up."""

    script: Path | None = None
    """Run in the guest; its exit status decides."""
    seconds: int | None = None
    """Time limit from power-on to report; None leaves it to the host's accelerator."""


@dataclass(frozen=True, kw_only=True)
class PhantomPolicy:
    """What the launch configuration says beside the image."""

    instance_type: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By cloud."""
    max_vms: int = -1
    """-1: no limit."""
    rank: int = 1
    user_data: Path | None = None
    """Default user-data of the machines that Phantom starts."""


@dataclass(frozen=True, kw_only=True)
class CloudOverride:
    """What an appliance wants otherwise on one cloud."""

    disk_size: int | None = None
    image_name: str | None = None
    """Template of the image's name: `{name}`, `{version}` and `{build}` are filled in."""


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """One definition, checked, with what it extends merged in."""

    name: str
    version: str
    summary: str
    source: ScratchSource | BaseImageSource
    elements: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[FileCopy, ...] = ()
    scripts: tuple[Path, ...] = ()
    disk_size: int = 2 * GIB
    kernel: str = "generic"
    user_data_frequency: str = "boot"
    """`boot`: each boot; `instance`: once per instance."""
    user_data_runner: str = "cloud-init"
    """Who runs user-data on clouds where cloud-init works, in images that have it: `cloud-init`, or
    `fetcher`."""
    clouds: Mapping[str, CloudOverride] = field(default_factory=lambda: MappingProxyType({}))
    boot_check: BootCheckPolicy = BootCheckPolicy()
    phantom: PhantomPolicy = PhantomPolicy()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    definition: Path
    """The file it was read from; relative names in it are relative to its folder."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place to publish to, as `sites.yaml` names it."""

    name: str
    cloud: str
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Checked against the cloud's schema; what they mean is the cloud's own business."""
    where: str
    """File and line for messages, or `built in`."""
    sandbox: bool = False
    """True: the command starts, uses and stops a local server of its own in the site's place."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package as the archive has it."""

    name: str
    version: str
    architecture: str
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file that a site boots."""

    layout: str
    """A module of `layouts/`."""
    format: str
    """qemu-img's name of the format."""
    compression: str | None = None
    """`gzip`, or None."""

    @property
    def suffix(self) -> str:
        """What the file's name ends with: `.raw`, `.raw.gz`."""
        return f".{self.format}" + (".gz" if self.compression == "gzip" else "")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a site's machines have, as drivers of the Linux kernel, in the words of its modules."""

    disks: tuple[str, ...]
    """Root may lie on any of these: each must be in the kernel itself or in the initramfs."""
    networks: tuple[str, ...]
    console: str
    """The device that the machine's console is heard on: `ttyS0`."""
    own_kernel: bool = True
    """Whether the image's own kernel is booted; else the site gives one, whose modules the image
    has not got."""


@dataclass(frozen=True, kw_only=True)
class NodeEdit:
    """A file that a site's node writes into the image before it boots.

    `{metadata_url}` and `{public_key}` in the text are filled in by the boot check.
    """

    path: PurePosixPath
    text: str
    mode: int


@dataclass(frozen=True, kw_only=True)
class SiteKernel:
    """A kernel and ramdisk that come from the site, as Xen nodes boot a bare file system."""

    command_line: str
    """As the site writes it: `ro root=/dev/sda1`."""
    kernel: Path | None = field(default=None, metadata={"key": False})
    """The site's own kernel on this host, to try the image with; None: one of this host's."""
    ramdisk: Path | None = field(default=None, metadata={"key": False})
    digests: tuple[Sha256, ...] = ()
    """Of these two files."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The virtual hardware and metadata service of a site, in QEMU's words."""

    name: str
    """Tells the machines of one site apart: `bios`, `uefi`."""
    firmware: str = "bios"
    """`bios` or `uefi`."""
    board: str
    disk_bus: str
    network_card: str
    memory: int
    cpus: int
    metadata: str
    """The kind of metadata service: a class of `metadata_server.py`."""
    metadata_address: str
    """Where the guest reaches it: `ADDRESS:PORT`."""
    network: str
    """The guest's network, holding the metadata address: `10.0.2.0/24`."""
    edits: tuple[NodeEdit, ...] = ()
    spare: int = 0
    """How many bytes its disk is larger than the image."""
    serial: bool = True
    """Whether the machine has a serial port. A node may have none; the check needs it to hear."""
    vendor: str | None = None
    """What the machine's firmware tables (SMBIOS) name as its maker, where guests look at it."""
    kernel: SiteKernel | None = None
    """The kernel that the site boots the image's root file system with; None: the image's own, by
    its boot loader."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """The file that one site boots, as it lies in the store."""

    site: str
    cloud: str
    file: Path
    disk: Disk
    bytes: int
    sha256: Sha256
    md5: str | None
    """Of the file: what S3's look-alikes answer as ETag. None for an image without compression."""
    disk_bytes: int
    disk_sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Release:
    """The build that an image is of, as its publication shall tell."""

    appliance: str
    version: str
    build: str
    name: str
    """The image's name at the site."""
    summary: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    folder: Path
    """The build's own folder, for what a site must remember of it. Those of the appliance's other
    builds lie beside it."""


@dataclass(frozen=True, kw_only=True)
class BootReport:
    """What a guest said of itself when its image was booted as its site would boot it."""

    machine: str
    """The site's machine that it was booted on, by name."""
    passed: bool
    facts: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class BootedImage:
    """An image that passed its boot checks: all that may be handed to `Cloud.upload`.

    Raises ValueError when made without a report, or with one that did not pass.
    """

    image: Image
    reports: tuple[BootReport, ...]

    def __post_init__(self) -> None:
        if not self.reports or not all(report.passed for report in self.reports):
            raise ValueError("an image whose boot check did not pass cannot be published")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One image at one site."""

    site: str
    cloud: str
    region: str | None = None
    """Where a cloud has several."""
    image_id: str
    """What Phantom's launch configuration calls the image."""
    location: str
    """Where the bytes lie, as the cloud writes it; without credentials."""
    sha256: Sha256
    """Of the published file."""
    published_at: str
    """UTC, ISO 8601, seconds."""
    sandbox: bool


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a crash left at a site, and what nothing but `phantom-image clean` removes."""

    site: str
    kind: str
    """Such as `pending snapshot`."""
    id: str
    region: str | None = None
    since: str
    """When it was made: UTC, ISO 8601, seconds."""
    reason: str
    """Why it is one: in words for people."""


class Progress(Protocol):
    """How work tells that it goes on; `cli.py` shows it as a bar or as lines."""

    def step(self, text: str) -> None:
        """Says what is being done now."""

    def advance(self, done: int, total: int | None) -> None:
        """Says how many bytes are done, of how many if that is known."""

    def output(self, line: str) -> None:
        """Passes on a line that a program printed; shown with `-v` only."""


class NoProgress:
    """Progress that nobody watches."""

    def step(self, text: str) -> None: ...

    def advance(self, done: int, total: int | None) -> None: ...

    def output(self, line: str) -> None: ...
