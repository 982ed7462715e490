"""The values that flow through the pipeline: frozen, and without clock, disk or network.

`definitions/` loads an `Appliance` and its `Site`s, `build/plan.py` turns them into stages, stages
make artifacts, `clouds/` make `Publication`s of booted images, and `build/manifest.py` describes
them all.
Sizes are in bytes and durations in seconds unless a name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NewType, Protocol

from pipeline.cluster_policy import ClusterPolicy
from pipeline.file_copies import Copy, PackageFile, TextFile
from pipeline.waiver import Waiver

ContentKey = NewType("ContentKey", str)
"""What would be built: the SHA-256, in hexadecimal, of everything that decides a stage's output."""

Sha256 = NewType("Sha256", str)
"""The bytes that were built: the SHA-256, in hexadecimal, of a file's content."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
_DECIMAL = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(f"([0-9]{{1,18}}) *({'|'.join([*_UNITS, *_DECIMAL])})")


def parse_size(text: str) -> int:
    """Bytes in a size such as `2GiB`, in units of 1,024, or `2GB`, in units of 1,000.

    Raises ValueError for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size; write a number and B, KiB, MiB, GiB or TiB")
    return int(match[1]) * (_UNITS | _DECIMAL)[match[2]]


def format_size(size: int) -> str:
    """A size for people, with three significant digits: `1.95 GiB`."""
    value, unit = float(size), "B"
    for unit in _UNITS:
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def split_pin(package: str) -> tuple[str, str | None]:
    """The name in `name` or `name=version`, and the version or None."""
    name, equals, version = package.partition("=")
    return name, version if equals else None


COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
"""The components of Debian's archive."""


@dataclass(frozen=True, kw_only=True)
class ScratchSource:
    """A root file system made from packages by diskimage-builder."""

    element: str
    """The operating-system element."""
    release: str
    """The distribution's code name, such as `bookworm`."""
    architecture: str
    """Debian's name for the architecture."""
    components: tuple[str, ...] = ("main",)
    """Those of Debian's archive that packages may come from."""
    network: bool = False
    """Whether hooks and scripts can use the network."""


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
    """Of the file as it is fetched; a URL must have one."""
    format: str | None = None
    """qemu-img's name for the format, if the file does not tell."""
    network: bool = False
    """Whether packages and scripts can use the network while the image is changed."""
    remove_packages: tuple[str, ...] = ()
    script_seconds: int = 3600
    """How long each script may run."""


@dataclass(frozen=True, kw_only=True)
class BuildSecret:
    """What scripts and hooks may read while the image is made, and the image must not hold."""

    name: str
    variable: str | None = None
    """The environment variable that holds it; None: `file` does."""
    file: Path | None = None
    where: str = field(default="", compare=False)
    """`file:line:column` of what says where it is."""


@dataclass(frozen=True, kw_only=True)
class BootCheckPolicy:
    """How the appliance proves that it came up."""

    script: Path | None = None
    """Run in the guest; its exit status decides."""
    seconds: int | None = None
    """Time limit from power-on to report; with None, the host's accelerator decides."""
    cluster: ClusterPolicy | None = None
    """A further check, of several machines."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which builds of an appliance stay when old ones are pruned."""

    last: int = 0
    """Of the newest ones; at least one stays."""
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    """The newest build of each of so many days, weeks and months that have any."""


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """What the launch configuration contains for one site; None: as for all sites."""

    rank: int | None = None
    """Where the site stands among those that have one; all others follow."""
    max_vms: int | None = None


MAX_USER_DATA = 1024
"""Characters of user-data that the database of Phantom's web application holds
(docs/facts/phantom.md)."""


@dataclass(frozen=True, kw_only=True)
class PhantomPolicy:
    """What the launch configuration contains besides the image."""

    instance_type: Mapping[str, str] = field(default_factory=dict)
    """By cloud."""
    max_vms: int = -1
    """Of each site; -1: no limit."""
    rank: int = 1
    """Of the first site; each one that follows has the next."""
    sites: Mapping[str, SitePolicy] = field(default_factory=dict)
    user_data: Path | None = None
    """Default user-data of the machines that Phantom starts."""


@dataclass(frozen=True, kw_only=True)
class CloudOverride:
    """What an appliance overrides for one cloud."""

    disk_size: int | None = None
    image_name: str | None = None
    """Template of the image's name: `{name}`, `{version}` and `{build}` are filled in."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Where the values of a definition stand, for messages about them."""

    file: str = ""
    """The definition, as messages name it."""
    places: Mapping[tuple[str | int, ...], str] = field(default_factory=dict)
    """`file:line:column` of each value, by the keys and indexes that lead to it. A text in a list
    has a second entry, with the text in place of its index."""

    def find(self, *keys: str | int) -> str:
        """`file:line:column` of a value, as in `find("elements", "phantom-user-data")`, in the
        definition or else in one that it extends; the definition's file where none has it."""
        return self.places.get(keys, self.file)


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """One definition, checked, with what it extends merged in."""

    name: str
    version: str
    summary: str
    source: ScratchSource | BaseImageSource
    elements: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    package_files: tuple[PackageFile, ...] = ()
    """Those of its packages that are files."""
    without_packages: tuple[str, ...] = ()
    """Packages that the image is not to have."""
    files: tuple[Copy, ...] = ()
    scripts: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for elements' hooks and for scripts, from scratch."""
    build_secrets: tuple[BuildSecret, ...] = ()
    build_certificates: tuple[TextFile, ...] = ()
    """What programs trust while the image is made, each file in PEM form."""
    customizations: Mapping[str, Any] = field(default_factory=dict)
    """The values of the keys that `customizations/` has modules for."""
    disk_size: int = 2 * GIB
    kernel: str = "generic"
    user_data_frequency: str = "boot"
    """`boot`: each boot; `instance`: once per instance."""
    user_data_runner: str = "cloud-init"
    """What runs user-data on clouds where cloud-init works, in images that have it: `cloud-init` or
    `fetcher`."""
    login_user: str = "root"
    """Who logs in with the key of the launch."""
    clouds: Mapping[str, CloudOverride] = field(default_factory=dict)
    boot_check: BootCheckPolicy = BootCheckPolicy()
    phantom: PhantomPolicy = PhantomPolicy()
    labels: Mapping[str, str] = field(default_factory=dict)
    keep: Keep | None = None
    """None: all builds stay."""
    waive: tuple[Waiver, ...] = ()
    definition: Path
    """The file that it was read from. Relative names in it are relative to that file's folder."""
    extended: tuple[Path, ...] = field(default=(), compare=False)
    """The files of the definitions that it extends, the nearest first."""
    positions: Positions = field(default=Positions(), compare=False, repr=False)

    def disk_size_on(self, cloud: str) -> int:
        """Bytes of the disk on sites of that cloud."""
        override = self.clouds.get(cloud)
        return (override and override.disk_size) or self.disk_size


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place to publish to, as `sites.yaml` names it."""

    name: str
    cloud: str
    options: Mapping[str, object] = field(default_factory=dict)
    """Checked against the cloud's schema; only the cloud interprets them."""
    where: str
    """File and line for messages, or `built in`."""
    sandbox: bool = False
    """True: the command starts, uses and stops a local server in the site's place."""


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
    """A site's hardware, as names of modules of the Linux kernel."""

    disks: tuple[str, ...]
    """Root may be on any of these disks: each driver must be in the kernel or in the initramfs."""
    networks: tuple[str, ...]
    console: str
    """The device of the machine's console: `ttyS0`."""
    own_kernel: bool = True
    """Whether the image's own kernel is booted. Otherwise the site has a kernel, whose modules the
    image lacks."""


@dataclass(frozen=True, kw_only=True)
class NodeEdit:
    """A file that a site's node writes into the image before it boots.

    The boot check fills in `{metadata_url}` and `{public_key}` in the text.
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
    """A copy of the site's own kernel on this host, for the boot check; None: one of this
    host's."""
    ramdisk: Path | None = field(default=None, metadata={"key": False})
    digests: tuple[Sha256, ...] = ()
    """Of these two files."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The virtual hardware and metadata service of a site, in QEMU's terms."""

    name: str
    """Distinguishes the machines of one site: `bios`, `uefi`."""
    firmware: str = "bios"
    """`bios` or `uefi`."""
    board: str
    disk_bus: str
    network_card: str
    memory: int
    cpus: int
    metadata: str
    """The cloud whose metadata service it has."""
    metadata_address: str
    """Where the guest reaches it: `ADDRESS:PORT`."""
    network: str
    """The guest's network, holding the metadata address: `10.0.2.0/24`."""
    edits: tuple[NodeEdit, ...] = ()
    spare: int = 0
    """How many bytes larger than the image its disk is."""
    serial: bool = True
    """Whether the machine has a serial port. A node may lack one; the check needs it to read the
    console."""
    vendor: str | None = None
    """The maker in the machine's firmware tables (SMBIOS), if guests look at it."""
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
    """The build of an image, as its publication describes it."""

    appliance: str
    version: str
    build: str
    name: str
    """The image's name at the site."""
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict)
    folder: Path
    """The build's own folder, for a site's records. Its siblings are the folders of the appliance's
    other builds."""


@dataclass(frozen=True, kw_only=True)
class BootReport:
    """What a guest reported when its image was booted as its site would boot it."""

    machine: str
    """The name of the site's machine that it was booted on."""
    passed: bool
    facts: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class BootedImage:
    """An image that passed its boot checks: `Cloud.upload` takes nothing else.

    Raises ValueError without a report, and for a report that did not pass.
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
    """On clouds that have regions."""
    image_id: str
    """The image's id in Phantom's launch configuration."""
    location: str
    """Where the image is, in the cloud's notation; without credentials."""
    sha256: Sha256
    """Of the published file."""
    published_at: str
    """UTC, ISO 8601, seconds."""
    sandbox: bool


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What publishing an image at a site would do."""

    action: str
    """`reuse`: it is there; `copy`: the site has its bytes under another name; `send`; `refuse`:
    the site or we would refuse it; `unknown`: the site could not be asked."""
    bytes: int | None
    """To be sent, at most; None where that is not known."""
    detail: str
    """For people."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a crash left at a site, and only `phantom-image clean` removes."""

    site: str
    kind: str
    """Such as `pending snapshot`."""
    id: str
    region: str | None = None
    since: str
    """When it was made: UTC, ISO 8601, seconds."""
    reason: str
    """Why it is a leftover, for people."""


class Progress(Protocol):
    """How work reports its progress; `progress.py` shows it as a bar or as lines."""

    def step(self, text: str, *, seconds: float | None = None) -> None:
        """Says what is being done now, and how many seconds it may take at most."""

    def finish(self, text: str) -> None:
        """Says that the work is done, and how it ended."""

    def fail(self, text: str) -> None:
        """Says that the work has ended without a result."""

    def advance(self, done: int, total: int | None) -> None:
        """Says how many bytes are done, of how many if that is known."""

    def output(self, line: str) -> None:
        """Passes on a line that a program printed; shown with `-v` only."""


class NoProgress:
    """Progress that nobody watches."""

    def step(self, text: str, *, seconds: float | None = None) -> None: ...

    def finish(self, text: str) -> None: ...

    def fail(self, text: str) -> None: ...

    def advance(self, done: int, total: int | None) -> None: ...

    def output(self, line: str) -> None: ...
