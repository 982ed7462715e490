"""A server that stands in for Amazon in tests: EC2, EBS direct, STS and a little S3 on one port.

It is as strict as docs/facts/ec2.md and botocore's models; `test_ec2_server.py` has one test for
each fact. It has several regions (the signature's scope names one) and two accounts, and verifies
version-4 signatures.

    with Ec2Server() as server:
        ebs = server.client("ebs", "us-east-1")        # boto3, without its own retries
        server.faults.throttle("ebs:PutSnapshotBlock", times=3, skip=10)
        ...
        assert server.content(snapshot_id) == {0: block}   # with the parents' blocks
        assert server.count("ebs:PutSnapshotBlock") == 14
        assert not server.costs().pending_snapshots

- `endpoint`, `account` (`key`, `secret`), `environ`: what a client needs.
- `faults` (ec2_faults.Faults): deny, refuse, throttle, fail, quota, reset, hang, slow, on,
  not_found_for, complete_after, complete_error, wrong_checksum, damage, import_error, clear.
- `requests`, `count(action, ok=...)`: the requests, in the order of their answers.
- `clock.advance(seconds)`: moves the clock on (idle snapshots time out, block tokens expire).
- `expire_credentials`, `renew_credentials`, `forbid_public`, `add_bucket`, `add_role`,
  `run_instance`, `use_image`, `other_account_image`, `other_account_snapshot`, `set_page_limit`.
- `blackout(seconds)`, `stop()`, `start()`: take the network away, and bring it back on the same
  port.
- `content`, `compare(snapshot_id, disk)`, `snapshot`, `image`, `snapshots`, `images`,
  `pending_snapshots`, `costs`: what the service holds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import boto3
import botocore.session
from botocore.config import Config
from ec2_call import make_block
from ec2_http import HttpServer, LoggedRequest
from ec2_state import (
    ALL,
    BLOCK_BYTES,
    OTHER_ACCOUNT_ID,
    Account,
    Bucket,
    Clock,
    Device,
    Ec2State,
    Image,
    Object,
    Reference,
    Snapshot,
    Upload,
    make_id,
)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Unused resources that go on costing money."""

    pending_snapshots: Sequence[str]
    unused_snapshots: Sequence[str]
    """Snapshots without an image, including those in `error`."""
    objects: Sequence[str]
    """bucket/key"""
    uploads: Sequence[str]
    """bucket/key of multipart uploads under way."""

    def __bool__(self) -> bool:
        return any((self.pending_snapshots, self.unused_snapshots, self.objects, self.uploads))


class Ec2Server:
    """Runs inside `with`, or from `start` to `stop`. `state` may be that of another server.

    `tls`: the files of a certificate and its key; with them, the endpoint is https.
    """

    def __init__(
        self, *, state: Ec2State | None = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.state = state or Ec2State()
        self.faults = self.state.faults
        self.requests: list[LoggedRequest] = []
        self.port = 0
        self._tls = tls
        self._http: HttpServer | None = None
        self._switch = threading.RLock()
        self._timers: list[threading.Timer] = []

    # ---- running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        self.stop()

    def start(self) -> None:
        """Listens, on a free port the first time and on the same port afterwards."""
        with self._switch:
            if self._http is None:
                self._http = HttpServer(self.state, self.requests, self.port, self._tls)
                self.port = int(self._http.server_address[1])
                self._http.run()

    def stop(self) -> None:
        """Stops listening and cuts all connections. The state stays."""
        with self._switch:
            if self._http is not None:
                self._http.end()
                self._http = None

    def blackout(self, seconds: float | None = None) -> None:
        """Takes the network away for this many real seconds, or for good. A rule may call this."""
        self.stop()
        if seconds is not None:
            timer = threading.Timer(seconds, self.start)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    # ---- clients

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def account(self) -> Account:
        return self.state.account

    @property
    def clock(self) -> Clock:
        return self.state.clock

    @property
    def environ(self) -> Mapping[str, str]:
        """The caller's credentials as environment variables."""
        return _make_environ(self.account)

    def client(
        self,
        service: str,
        region: str = "us-east-1",
        *,
        account: Account | None = None,
        validates: bool = True,
    ) -> Any:
        """A boto3 client without retries. `validates`: whether the client checks parameters."""
        caller = account or self.account
        config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=30,
            parameter_validation=validates,
        )
        session = botocore.session.get_session()
        session.register_component("data_loader", _loader())
        return boto3.Session(botocore_session=session).client(
            service,
            region,
            aws_access_key_id=caller.key,
            aws_secret_access_key=caller.secret,
            aws_session_token=caller.token,
            endpoint_url=self.endpoint,
            config=config,
            verify=str(self._tls[0]) if self._tls else None,
        )

    # ---- settings of the service

    def expire_credentials(self, after: int = 0) -> None:
        """Expires the caller's credentials, now or after this many more requests."""
        with self.state.lock:
            self.account.requests_left = after

    def renew_credentials(self) -> None:
        with self.state.lock:
            self.account.requests_left = None

    def use_temporary_credentials(self, token: str = "session-token") -> None:
        with self.state.lock:
            self.account.token = token

    def forbid_public(self, region: str | None = None) -> None:
        """Turns on block-public-access for images and snapshots."""
        for name in self.state.regions if region is None else [region]:
            self.state.regions[name].image_block_public = True
            self.state.regions[name].snapshot_block_public = "block-all-sharing"

    def set_page_limit(self, limit: int | None) -> None:
        self.state.page_limit = limit

    def add_bucket(
        self, name: str, region: str = "us-east-1", *, owner: str | None = None
    ) -> Bucket:
        with self.state.lock:
            bucket = Bucket(name=name, region=region, owner=owner or self.account.id)
            return self.state.buckets.setdefault(name, bucket)

    def add_role(self, name: str = "vmimport") -> None:
        self.state.roles.add(name)

    def use_image(
        self, image_id: str, type: str = "ec2:LaunchTemplate", *, region: str = "us-east-1"
    ) -> str:
        """Adds a resource of the caller's that uses the image; returns its ARN."""
        service, _, kind = type.partition(":")
        name = make_id({"Instance": "i", "LaunchTemplate": "lt"}.get(kind, "used"))
        arn = f"arn:aws:{service}:{region}:{self.account.id}:{kind.lower()}/{name}"
        reference = Reference(image_id=image_id, type=type, arn=arn, owner=self.account.id)
        with self.state.lock:
            self.state.regions[region].references.append(reference)
        return arn

    def run_instance(self, image_id: str, region: str = "us-east-1") -> str:
        """Adds a running instance of the image; returns its ARN."""
        return self.use_image(image_id, "ec2:Instance", region=region)

    def other_account_snapshot(
        self,
        blocks: Mapping[int, bytes] | None = None,
        *,
        region: str = "us-east-1",
        volume_gib: int = 1,
        shared: bool = True,
    ) -> str:
        """Adds a completed snapshot of another account, which may share it with the caller."""
        with self.state.lock:
            snapshot = self.state.add_snapshot(region, OTHER_ACCOUNT_ID, volume_gib)
            snapshot.state = "completed"
            for index, data in (blocks or {}).items():
                snapshot.written[index] = make_block(self.state, data)
            if shared:
                snapshot.shared_with.add(self.account.id)
            return snapshot.id

    def other_account_image(
        self, name: str, *, region: str = "us-east-1", shared: bool = True, public: bool = False
    ) -> str:
        """Adds an image of another account: shared with the caller, public or neither."""
        with self.state.lock:
            snapshot_id = self.other_account_snapshot(region=region, shared=shared)
            image = Image(
                id=make_id("ami"),
                owner=OTHER_ACCOUNT_ID,
                region=region,
                name=name,
                created=self.clock.now(),
                architecture="x86_64",
                virtualization="hvm",
                root_device="/dev/xvda",
                mappings=[Device(device="/dev/xvda", snapshot_id=snapshot_id, volume_gib=1)],
            )
            if shared:
                image.launch_permissions.append({"UserId": self.account.id})
            if public:
                image.launch_permissions.append({"Group": ALL})
            self.state.regions[region].images[image.id] = image
            return image.id

    # ---- what the service holds

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot of any region. KeyError: no region has it."""
        with self.state.lock:
            found = {each.id: each for each in self.state.all_snapshots()}[snapshot_id]
            self.state.settle(found)
            return found

    def image(self, image_id: str) -> Image:
        """An image of any region. KeyError: no region has it."""
        with self.state.lock:
            return {each.id: each for each in self.state.all_images()}[image_id]

    def snapshots(self, region: str | None = None) -> list[Snapshot]:
        """The caller's snapshots."""
        with self.state.lock:
            found = [
                each
                for each in self.state.all_snapshots()
                if each.owner == self.account.id and region in (None, each.region)
            ]
            for each in found:
                self.state.settle(each)
            return found

    def images(self, region: str | None = None) -> list[Image]:
        """The caller's images."""
        with self.state.lock:
            return [
                each
                for each in self.state.all_images()
                if each.owner == self.account.id and region in (None, each.region)
            ]

    def content(self, snapshot_id: str) -> dict[int, bytes]:
        """Every block written to the snapshot or an ancestor, by index."""
        with self.state.lock:
            blocks = self.snapshot(snapshot_id).blocks
            return {index: self.state.blocks.read(blocks[index]) for index in sorted(blocks)}

    def compare(self, snapshot_id: str, disk: Path) -> list[int]:
        """The indexes of the blocks where the snapshot's volume differs from the disk."""
        snapshot, wrong, zeros = self.snapshot(snapshot_id), [], bytes(BLOCK_BYTES)
        blocks = snapshot.blocks
        count = max(math.ceil(disk.stat().st_size / BLOCK_BYTES), max(blocks, default=-1) + 1)
        with disk.open("rb") as file:
            for index in range(count):
                data = file.read(BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")
                stored = self.state.blocks.read(blocks[index]) if index in blocks else zeros
                if data != stored:
                    wrong.append(index)
        return wrong

    def pending_snapshots(self) -> list[str]:
        return [each.id for each in self.snapshots() if each.state == "pending"]

    def costs(self) -> Costs:
        with self.state.lock:
            used = {snapshot for image in self.images() for snapshot in image.snapshot_ids}
            mine = [each for each in self.state.buckets.values() if each.owner == self.account.id]
            return Costs(
                pending_snapshots=self.pending_snapshots(),
                unused_snapshots=[
                    each.id
                    for each in self.snapshots()
                    if each.state != "pending" and each.id not in used
                ],
                objects=[f"{each.name}/{key}" for each in mine for key in each.objects],
                uploads=[
                    f"{each.name}/{upload.key}" for each in mine for upload in each.uploads.values()
                ],
            )

    def count(self, action: str, *, ok: bool | None = None) -> int:
        """Counts an action's requests; with `ok`, only those that succeeded or that failed."""
        return sum(
            each.action == action and ok in (None, 200 <= each.status < 300)
            for each in list(self.requests)
        )


@cache
def _loader() -> Any:
    """One loader for all clients: it caches the models, and EC2's takes long to read."""
    return botocore.session.get_session().get_component("data_loader")


def _make_environ(account: Account) -> dict[str, str]:
    environ = {"AWS_ACCESS_KEY_ID": account.key, "AWS_SECRET_ACCESS_KEY": account.secret}
    return environ if account.token is None else environ | {"AWS_SESSION_TOKEN": account.token}


__all__ = ["Bucket", "Costs", "Ec2Server", "Image", "LoggedRequest", "Object", "Snapshot", "Upload"]
