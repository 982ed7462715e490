"""The state of the strict EC2 server: accounts, and each region's snapshots, images and the rest.

The state outlives the HTTP part, so a test can take the network away and bring it back.
"""

from __future__ import annotations

import base64
import os
import secrets
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from ec2_faults import Faults

BLOCK_BYTES = 524_288  # of a snapshot: docs/facts/ec2.md
GIB = 1 << 30
ACCOUNT_ID, OTHER_ACCOUNT_ID = "111122223333", "444455556666"
REGIONS = ("us-east-1", "eu-central-1", "eu-west-1")
DISABLED_REGION = "ap-east-1"
"""A region that exists, but that the account has not enabled."""
PENDING_SNAPSHOTS = 100  # quota: docs/facts/ec2.md
DEFAULT_TIMEOUT_MINUTES = 60
ALL = "all"
_DEFAULT_KEY = "key/aws-ebs"

T = TypeVar("T")
SnapshotState = Literal["pending", "completed", "error"]


class Clock:
    """The time in seconds since 1970; a test may advance it."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@dataclass(kw_only=True)
class Account:
    """An account with one access key."""

    id: str
    key: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    """The session token of temporary credentials."""
    requests_left: int | None = None
    """The number of requests until the credentials expire."""

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{self.id}:user/builder"


class Block(NamedTuple):
    """A stored block: where its bytes are, and their raw SHA-256."""

    slot: int
    digest: bytes


class Blocks:
    """The bytes of all blocks, in a temporary file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._used = 0

    def add(self, data: bytes, digest: bytes) -> Block:
        with self._lock:
            slot = self._used
            self._used += 1
        os.pwrite(self._file.fileno(), data, slot * BLOCK_BYTES)
        return Block(slot, digest)

    def read(self, block: Block) -> bytes:
        return os.pread(self._file.fileno(), BLOCK_BYTES, block.slot * BLOCK_BYTES)


@dataclass(kw_only=True)
class Pending:
    """Work that is due after a number of describe calls, and not before a certain time."""

    looks: int
    until: float
    fails: bool = False

    def is_due(self, now: float) -> bool:
        return self.looks <= 0 and now >= self.until


@dataclass(kw_only=True)
class Snapshot:
    """A snapshot. `inherited` has all of the parent's blocks; `written` takes precedence."""

    id: str
    owner: str
    region: str
    volume_gib: int
    started: float
    description: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    state: SnapshotState = "pending"
    message: str | None = None
    parent_id: str | None = None
    lineage: str
    encrypted: bool = False
    kms_key: str | None = None
    timeout_minutes: int = DEFAULT_TIMEOUT_MINUTES
    last_used: float
    written: dict[int, Block] = field(default_factory=dict)
    inherited: dict[int, Block] = field(default_factory=dict)
    completing: Pending | None = None
    shared_with: set[str] = field(default_factory=set)
    """Account ids, or `ALL`."""
    hidden_until: float = 0
    hidden_times: int = 0

    @property
    def blocks(self) -> dict[int, Block]:
        return self.inherited | self.written

    @property
    def block_count(self) -> int:
        return self.volume_gib * GIB // BLOCK_BYTES

    def is_visible_to(self, account: str) -> bool:
        return account == self.owner or bool({account, ALL} & self.shared_with)


@dataclass(kw_only=True)
class Device:
    """One line of an image's block device mapping."""

    device: str
    snapshot_id: str | None = None
    volume_gib: int | None = None
    volume_type: str = "gp2"
    delete_on_termination: bool = True
    iops: int | None = None
    throughput: int | None = None
    virtual_name: str | None = None


@dataclass(kw_only=True)
class Image:
    """An AMI."""

    id: str
    owner: str
    region: str
    name: str
    created: float
    description: str | None = None
    architecture: str = "i386"
    virtualization: str = "paravirtual"
    boot_mode: str | None = None
    tpm: str | None = None
    imds: str | None = None
    ena: bool | None = None
    sriov: str | None = None
    root_device: str
    mappings: list[Device]
    tags: dict[str, str] = field(default_factory=dict)
    state: str = "available"
    pending: Pending | None = None
    launch_permissions: list[dict[str, str]] = field(default_factory=list)
    deprecation: float | None = None
    protection: str = "disabled"
    source_id: str | None = None
    source_region: str | None = None

    @property
    def is_public(self) -> bool:
        return {"Group": ALL} in self.launch_permissions

    @property
    def snapshot_ids(self) -> list[str]:
        return [each.snapshot_id for each in self.mappings if each.snapshot_id is not None]

    def is_visible_to(self, account: str) -> bool:
        shared = {"UserId": account} in self.launch_permissions
        return account == self.owner or self.is_public or shared


@dataclass(kw_only=True)
class ImportTask:
    """An ImportSnapshot task; `content` is the object's content when the task began."""

    id: str
    owner: str
    description: str | None
    format: str
    bucket: str
    key: str
    content: bytes = field(repr=False)
    tags: dict[str, str]
    encrypted: bool
    kms_key: str | None
    status: str = "active"
    message: str | None = None
    snapshot_id: str | None = None
    pending: Pending | None


@dataclass(kw_only=True)
class Reference:
    """A resource that uses an image: an instance, a launch template or a parameter."""

    image_id: str
    type: str
    arn: str
    owner: str = ACCOUNT_ID


@dataclass(kw_only=True)
class Object:
    """An S3 object."""

    data: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    stored: float = 0.0


@dataclass(kw_only=True)
class Upload:
    """A multipart upload under way."""

    id: str
    key: str
    headers: dict[str, str]
    started: float
    parts: dict[int, bytes] = field(default_factory=dict, repr=False)


@dataclass(kw_only=True)
class Bucket:
    name: str
    region: str
    owner: str = ACCOUNT_ID
    objects: dict[str, Object] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)


@dataclass(kw_only=True)
class Template:
    """A launch template with the data of its versions, the first of which is its default."""

    id: str
    owner: str
    name: str
    created: float
    tags: dict[str, str]
    versions: list[dict[str, Any]]


@dataclass(kw_only=True)
class Instance:
    """A machine that RunInstances has started."""

    id: str
    reservation: str
    data: dict[str, Any]
    """The launch's, over its template's."""
    tags: dict[str, str]
    state: str = "pending"


@dataclass(kw_only=True)
class Region:
    name: str
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    deregistered: set[str] = field(default_factory=set)
    imports: dict[str, ImportTask] = field(default_factory=dict)
    references: list[Reference] = field(default_factory=list)
    templates: dict[str, Template] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    image_block_public: bool = False
    snapshot_block_public: str = "unblocked"
    encryption_by_default: bool = False

    @property
    def default_key(self) -> str:
        """The region's key `aws/ebs`. A snapshot that it encrypts cannot be shared."""
        return f"arn:aws:kms:{self.name}:{ACCOUNT_ID}:{_DEFAULT_KEY}"


def is_default_key(key: str | None) -> bool:
    return key is not None and key.endswith(_DEFAULT_KEY)


class Ec2State:
    """The whole state. Hold `lock` to read or change it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clock = Clock()
        self.faults = Faults()
        self.blocks = Blocks()
        self.account = Account(id=ACCOUNT_ID, key="AKIAEXAMPLEBUILDER", secret="s3cr3t/+of=ec2")
        self.other = Account(id=OTHER_ACCOUNT_ID, key="AKIAEXAMPLEOTHER", secret="other/secret")
        self.regions = {name: Region(name=name) for name in REGIONS}
        self.buckets: dict[str, Bucket] = {}
        self.roles: set[str] = set()
        """IAM roles that ImportSnapshot may assume."""
        self.pending_limit = PENDING_SNAPSHOTS
        self.page_limit: int | None = None
        """The largest page of any list, even if the request allows more."""
        self.dry_run_finds = True
        """Whether a dry run looks up its ids before it answers that it would have succeeded."""
        self.start_tokens: dict[tuple[str, str], tuple[dict[str, object], str]] = {}
        self.ec2_tokens: dict[tuple[str, str, str], tuple[dict[str, object], str]] = {}
        self.block_tokens: dict[str, tuple[str, int, float]] = {}
        self.page_tokens: dict[str, tuple[str, int]] = {}

    def find_account(self, key: str) -> Account | None:
        return next((each for each in (self.account, self.other) if each.key == key), None)

    def all_snapshots(self) -> Iterator[Snapshot]:
        for region in self.regions.values():
            yield from region.snapshots.values()

    def all_images(self) -> Iterator[Image]:
        for region in self.regions.values():
            yield from region.images.values()

    # ---- what happens over time

    def make_pending(self) -> Pending:
        faults = self.faults
        until = self.clock.now() + faults.seconds_until_completed
        return Pending(looks=faults.describes_until_completed, until=until)

    def settle(self, snapshot: Snapshot) -> None:
        """Completes the snapshot if due; fails it if it was idle for longer than its Timeout."""
        now = self.clock.now()
        if snapshot.state != "pending":
            return
        if snapshot.completing is None:
            if now - snapshot.last_used > snapshot.timeout_minutes * 60:
                snapshot.state, snapshot.message = "error", "The snapshot timed out"
        elif snapshot.completing.is_due(now):
            failed = snapshot.completing.fails
            snapshot.state = "error" if failed else "completed"
            snapshot.message = "The snapshot could not be completed" if failed else None

    def is_hidden(self, snapshot: Snapshot) -> bool:
        """Whether the service does not show the snapshot yet; counts this call."""
        if snapshot.hidden_times > 0:
            snapshot.hidden_times -= 1
            return True
        return self.clock.now() < snapshot.hidden_until

    # ---- making

    def add_snapshot(
        self, region: str, owner: str, volume_gib: int, *, parent: Snapshot | None = None
    ) -> Snapshot:
        now = self.clock.now()
        snapshot = Snapshot(
            id=make_id("snap"),
            owner=owner,
            region=region,
            volume_gib=volume_gib,
            started=now,
            last_used=now,
            parent_id=None if parent is None else parent.id,
            lineage=make_id("vol") if parent is None else parent.lineage,
            inherited={} if parent is None else parent.blocks,
            encrypted=parent is not None and parent.encrypted,
            kms_key=None if parent is None else parent.kms_key,
        )
        self.regions[region].snapshots[snapshot.id] = snapshot
        return snapshot

    # ---- pages

    def take_page(
        self, what: str, items: list[T], token: str | None, limit: int | None, start: int = 0
    ) -> tuple[list[T], str | None]:
        """A page of a list, and the token of the next page; `what` identifies the request.

        `start`: where the first page begins.
        LookupError: the token does not belong to this request.
        """
        if token is not None:
            known, start = self.page_tokens[token]
            if known != what:
                raise LookupError(token)
        limits = [each for each in (limit, self.page_limit) if each is not None]
        end = start + min(limits) if limits else len(items)
        if end >= len(items):
            return items[start:], None
        following = make_token()
        self.page_tokens[following] = (what, end)
        return items[start:end], following


def make_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(9)[:17]}"


def make_token() -> str:
    return base64.b64encode(secrets.token_bytes(33)).decode()
