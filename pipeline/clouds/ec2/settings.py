"""The settings of an EC2 site, from its options.

boto3 finds the credentials: by the option `profile`, or else by AWS's usual chain (environment,
AWS_PROFILE, `~/.aws`, the role of a machine or container at Amazon).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.clouds.options import Schema, check_bundle, choice, file_name, flag, site_schema, text
from pipeline.errors import DefinitionError, VolumeTooSmallError
from pipeline.model import GIB, Release, Site, format_size, parse_size

# ---- the tags that prove what is ours

PREFIX = "phantom:"
PIPELINE_TAG, PIPELINE = f"{PREFIX}pipeline", "phantom-image"
APPLIANCE_TAG = f"{PREFIX}appliance"
VERSION_TAG = f"{PREFIX}version"
BUILD_TAG = f"{PREFIX}build"
CONTENT_TAG = f"{PREFIX}sha256"
"""The SHA-256 of the raw disk."""
SITE_TAG = f"{PREFIX}site"
STARTED_TAG = f"{PREFIX}started"
"""Of import tasks: EC2 does not say when they started."""

LONGEST_DESCRIPTION = 255  # characters, of images and of snapshots
MOST_TAGS, LONGEST_TAG_KEY, LONGEST_TAG_VALUE = 50, 128, 256  # EC2 user guide, "Tag restrictions"
_OWN_TAGS = 7  # the six of images above, and Name

LARGEST_VOLUMES = {"gp3": 65536, "gp2": 16384, "standard": 1024}
"""In GiB, by volume type (EBS user guide, "EBS volume types")."""

# ---- the options

_ORGANISATION = (
    "arn:aws[a-z-]*:organizations::[0-9]{12}:"
    "(organization/o-[a-z0-9]{10,32}|ou/o-[a-z0-9]{10,32}/ou-[0-9a-z]{4,32}-[0-9a-z]{8,32})"
)
_REGION: Schema = {
    "type": "string",
    "pattern": "^[a-z]{2,}(-[a-z]+)+-[0-9]+$",
    "errorMessage": "must be the name of a region, such as eu-central-1",
}

_OPTIONS = {
    "region": _REGION
    | {"description": "The region that images are made in, such as eu-central-1."},
    "profile": text(
        "The profile of ~/.aws/config or ~/.aws/credentials whose credentials the site takes. "
        "Without it, the environment and then AWS's other usual places count.",
        minLength=1,
    ),
    "method": choice(
        "How the image gets there: ebs-direct, written straight into a snapshot, only changed "
        "blocks the next time; import, by way of an S3 bucket and the slow import service, for "
        "accounts that forbid the other.",
        "ebs-direct",
        "import",
    ),
    "bucket": text(
        "The S3 bucket, in the site's region, that method import goes through.",
        pattern="^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
    ),
    "import_role": text(
        "The role that the import service works under (method import).",
        pattern="^[A-Za-z0-9+=,.@_-]{1,64}$",
        default="vmimport",
    ),
    "volume_type": choice("The type of the instances' root volume.", *LARGEST_VOLUMES),
    "volume_size": text(
        "The size of the instances' root volume, such as 8GiB, at most 65536GiB; root grows to it "
        "at boot. By default the disk's size, rounded up to GiB.",
        pattern="^[1-9][0-9]{0,4}GiB$",
        errorMessage="must be a whole number of GiB, such as 8GiB",
    ),
    "copy_to": {
        "description": "Further regions that get a copy of every image.",
        "type": "array",
        "uniqueItems": True,
        "items": _REGION,
    },
    "share_with": {
        "description": "Who may start the images beside the account itself: account ids in quotes, "
        "ARNs of organisations or organisational units, or all.",
        "type": "array",
        "uniqueItems": True,
        "items": {
            "type": "string",
            "pattern": f"^([0-9]{{12}}|all|{_ORGANISATION})$",
            "errorMessage": "must be an account's 12 digits in quotes, the ARN of an organisation "
            "or organisational unit, or all",
        },
    },
    "deprecate_after": text(
        "After how many days an image counts as deprecated, such as 730d: it still starts, but "
        "others no longer find it in lists.",
        pattern="^([1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|36[0-4][0-9]|3650)d$",
        errorMessage="must be a number of days from 1d to 3650d (10 years is EC2's limit)",
    ),
    "encrypt": flag("Whether snapshots are encrypted."),
    "kms_key": text(
        "The ARN of the KMS key to encrypt with, by default the account's own for EBS. With "
        "copy_to it must be a multi-region key (mrk-...).",
        pattern="^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$",
        errorMessage="must be the ARN of a KMS key (not of an alias)",
    ),
    "tags": {
        "description": "Tags for images and snapshots, beside those of the pipeline.",
        "type": "object",
        "maxProperties": MOST_TAGS - _OWN_TAGS,
        "propertyNames": {
            "pattern": "^(?![Aa][Ww][Ss]:|[Pp][Hh][Aa][Nn][Tt][Oo][Mm]:).",
            "maxLength": LONGEST_TAG_KEY,
            "errorMessage": f"must have at most {LONGEST_TAG_KEY} characters and begin neither "
            "with aws: (Amazon's) nor with phantom: (the pipeline's)",
        },
        "additionalProperties": {"type": "string", "maxLength": LONGEST_TAG_VALUE},
    },
    "endpoint": text(
        "URL of a service that speaks as EC2 does, in Amazon's place.",
        pattern="^https?://[^/?#]+/?$",
        errorMessage="must be a URL such as https://ec2.example.org:8773",
    ),
    "ca_bundle": file_name("File with the certificates (PEM) that vouch for the endpoint's."),
}
SITE_SCHEMA = site_schema("Options of an EC2 site", _OPTIONS, required=["region"])


@dataclass(frozen=True, kw_only=True)
class Ec2Settings:
    """The options of an EC2 site, with their defaults."""

    site: str
    region: str
    profile: str | None
    method: str
    bucket: str | None
    import_role: str
    volume_type: str
    volume_gib: int | None
    """None: as large as the disk."""
    copy_to: tuple[str, ...]
    share_with: tuple[str, ...]
    deprecate_days: int | None
    encrypt: bool
    kms_key: str | None
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    endpoint: str | None
    verify: bool | str
    emulated: bool = False
    """Whether the service is a sandbox's emulator, on this host."""

    @property
    def regions(self) -> tuple[str, ...]:
        """All regions of the site. Images are made in the first one."""
        return (self.region, *self.copy_to)

    @property
    def tells_volumes(self) -> bool:
        """Whether the service describes volumes as they were ordered; an emulator does not."""
        return not self.emulated

    def find_service(self, region: str) -> str:
        """Who answers, for messages."""
        if self.emulated:
            return f"the EC2 emulator of site {self.site}, on this host,"
        return self.endpoint or f"Amazon ({region})"

    @property
    def public(self) -> bool:
        """Whether everybody may start the images."""
        return "all" in self.share_with

    def find_key(self, region: str) -> str | None:
        """The KMS key for a region: a multi-region key has one ARN per region."""
        if self.kms_key is None:
            return None
        head = self.kms_key.split(":")
        return ":".join((*head[:3], region, *head[4:]))

    def make_encryption(self, region: str) -> dict[str, object]:
        """The parameters by which a call makes snapshots in a region encrypted."""
        if not self.encrypt:
            return {}
        key = self.find_key(region)
        return {"Encrypted": True} | ({} if key is None else {"KmsKeyId": key})

    def make_tags(self, release: Release, content: str) -> dict[str, str]:
        """The tags of an image and its snapshot: the appliance's labels, the site's tags, and the
        tags that prove that they are ours."""
        return {
            "Name": release.name,
            **release.labels,
            **self.tags,
            PIPELINE_TAG: PIPELINE,
            APPLIANCE_TAG: release.appliance,
            VERSION_TAG: release.version,
            BUILD_TAG: release.build,
            CONTENT_TAG: content,
            SITE_TAG: self.site,
        }

    def find_tag_mistake(self, labels: Mapping[str, str]) -> str | None:
        """Why EC2 would refuse an appliance's labels as tags; None when it takes them."""
        together = {**labels, **self.tags}
        if len(together) > MOST_TAGS - _OWN_TAGS:
            return (
                f"labels and the site's tags are {len(together)} together, and "
                f"{MOST_TAGS - _OWN_TAGS} are allowed beside the pipeline's own"
            )
        for key, value in labels.items():
            if len(key) > LONGEST_TAG_KEY or len(value) > LONGEST_TAG_VALUE:
                return (
                    f"the label {key[:40]!r} is too long for a tag ({LONGEST_TAG_KEY} characters, "
                    f"its value {LONGEST_TAG_VALUE})"
                )
            if key.lower().startswith(("aws:", PREFIX)):
                return f"the label {key!r} begins like the tags of Amazon or of the pipeline"
        return None


def resolve_settings(site: Site) -> Ec2Settings:
    """The settings of a site, without network or credentials.

    Raises DefinitionError, located at the site, for options that contradict each other.
    """
    options: Mapping[str, Any] = site.options  # the schema has checked their types
    size, days, bundle = map(options.get, ("volume_size", "deprecate_after", "ca_bundle"))
    settings = Ec2Settings(
        site=site.name,
        region=options["region"],
        profile=options.get("profile"),
        method=options.get("method", "ebs-direct"),
        bucket=options.get("bucket"),
        import_role=options.get("import_role", "vmimport"),
        volume_type=options.get("volume_type", "gp3"),
        volume_gib=None if size is None else parse_size(size) // GIB,
        copy_to=tuple(options.get("copy_to", ())),
        share_with=tuple(options.get("share_with", ())),
        deprecate_days=None if days is None else int(days.removesuffix("d")),
        encrypt=options.get("encrypt", False),
        kms_key=options.get("kms_key"),
        tags=MappingProxyType(dict(options.get("tags", {}))),
        endpoint=options.get("endpoint", "").rstrip("/") or None,
        verify=bundle is None
        or check_bundle(site, Path(bundle).expanduser(), "endpoint's certificates"),
    )
    wrong = _find_mistake(settings, named=options.get("method"))
    if wrong is not None:
        what, todo = wrong
        raise DefinitionError(f"site {site.name}: {what}", where=site.where, todo=todo)
    return settings


def _find_mistake(settings: Ec2Settings, *, named: str | None) -> tuple[str, str] | None:
    """Options that contradict each other, and what to do; None when there are none."""
    accounts = [account for account in settings.share_with if account != "all"]
    if named == "import" and settings.bucket is None:
        return "method import needs a bucket", "name an S3 bucket of the region with `bucket`"
    largest = LARGEST_VOLUMES[settings.volume_type]
    if settings.volume_gib is not None and settings.volume_gib > largest:
        return (
            f"volumes of type {settings.volume_type} have at most {largest}GiB",
            "make `volume_size` smaller, or take another `volume_type`",
        )
    if settings.region in settings.copy_to:
        return (
            f"copy_to holds the site's own region, {settings.region}",
            "leave it out there: images are made in it",
        )
    if settings.kms_key is not None and not settings.encrypt:
        return "kms_key is given, and encrypt is not", "add `encrypt: true`, or leave the key out"
    if settings.public and settings.encrypt:
        return (
            "an encrypted image cannot be shared with all",
            "leave out `encrypt`, or name accounts in `share_with`",
        )
    if accounts and settings.encrypt and settings.kms_key is None:
        return (
            "an image that is encrypted with the account's own key for EBS cannot be shared",
            "name a key with `kms_key` that those of `share_with` may use, or leave out one",
        )
    if settings.kms_key is not None:
        region = settings.kms_key.split(":")[3]
        if region != settings.region:
            return (
                f"kms_key is a key of {region}, and the site's region is {settings.region}",
                "name a key of the site's region",
            )
        if settings.copy_to and ":key/mrk-" not in settings.kms_key:
            return (
                "kms_key is a key of one region, and copy_to names others",
                "name a multi-region key (mrk-...) that has a replica in each region",
            )
    return None


def describe_release(release: Release) -> str:
    """The description of images and snapshots. EC2 takes ASCII only."""
    return release.summary.encode("ascii", "replace").decode()[:LONGEST_DESCRIPTION]


def find_volume_gib(settings: Ec2Settings, disk_size: int, site: Site) -> int:
    """The size of the root volume, in GiB. Raises VolumeTooSmallError."""
    needed = max(1, -(-disk_size // GIB))
    if settings.volume_gib is None:
        return needed
    if settings.volume_gib * GIB < disk_size:
        raise VolumeTooSmallError(
            f"the disk has {format_size(disk_size)}, and the volumes of site {site.name} only "
            f"{settings.volume_gib} GiB",
            where=site.where,
            todo=f"raise `volume_size` of the site to {needed}GiB or leave it out, or make "
            "`disk_size` of the appliance smaller",
        )
    return settings.volume_gib
