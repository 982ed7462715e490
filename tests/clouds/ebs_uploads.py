"""Uploads to the strict server, for the tests of the EBS direct APIs.

Run as a program, it does one upload in a process of its own, which a test can kill:
ENDPOINT KEY SECRET DISK RECORDS
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import sparse
from pipeline.clouds.ec2.blocks import BLOCK, BlockIndex, index_file
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import journal_file
from pipeline.clouds.ec2.upload import SnapshotOrder, UploadedSnapshot, upload_snapshot
from pipeline.model import GIB, NoProgress, Progress
from pipeline.tools.aws import Account, Refused
from pipeline.tools.aws_session import make_session

REGION = "us-east-1"


class Snapshots:
    """The snapshots of one region, read and deleted by the calls that the EC2 cloud makes."""

    def __init__(self, account: Account, region: str) -> None:
        self._account = account
        self._region = region

    def state(self, snapshot_id: str) -> str | None:
        try:
            reply = self._account.call(
                "ec2", self._region, "DescribeSnapshots", SnapshotIds=[snapshot_id]
            )
        except Refused as refused:
            if refused.code != "InvalidSnapshot.NotFound":
                raise
            return None
        return str(reply["Snapshots"][0]["State"])

    def delete(self, snapshot_id: str) -> None:
        try:
            self._account.call("ec2", self._region, "DeleteSnapshot", SnapshotId=snapshot_id)
        except Refused as refused:
            if refused.code != "InvalidSnapshot.NotFound":
                raise


def short_pause(_seconds: float) -> None:
    """Sleeps for a moment; the uploader counts the pause that it asked for."""
    time.sleep(0.001)


@dataclass
class Uploads:
    """One account's uploads of one disk, whose blocks tests change."""

    endpoint: str
    environ: Mapping[str, str]
    folder: Path
    connections: int = 8
    region: str = REGION
    pause: Callable[[float], None] = short_pause
    account: Account = field(init=False)
    snapshots: Snapshots = field(init=False)

    def __post_init__(self) -> None:
        session = make_session(environ=dict(self.environ))
        self.account = Account(session, endpoint=self.endpoint, isolated=True)
        self.snapshots = Snapshots(self.account, self.region)

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def ebs(self) -> Ebs:
        return Ebs(self.account, self.region, self.connections)

    def records(self, build: str = "one") -> Path:
        folder = self.folder / "builds" / build
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "site"

    def journal(self, build: str = "one") -> Path:
        return journal_file(self.records(build))

    def index(self, build: str = "one") -> BlockIndex | None:
        return BlockIndex.read(index_file(self.records(build)))

    def order(self, build: str = "one", **changed: Any) -> SnapshotOrder:
        order = SnapshotOrder(
            disk=self.disk,
            volume_gib=1,
            description="hello-phantom",
            tags={"phantom:pipeline": "phantom-image", "Name": "hello-phantom"},
            encrypted=False,
            kms_key=None,
            parent=None,
            records=self.records(build),
            content=sparse.digest(self.disk),  # differs whenever the disk differs
        )
        return replace(order, **changed)

    def upload(
        self, build: str = "one", progress: Progress | None = None, **changed: Any
    ) -> UploadedSnapshot:
        order = self.order(build, **changed)
        return upload_snapshot(
            self.ebs, order, self.snapshots, progress or NoProgress(), pause=self.pause
        )


def write_disk(disk: Path, blocks: Mapping[int, bytes], size: int = GIB // 8) -> None:
    """Writes a new sparse disk with these blocks, each filled up with stored zeros."""
    disk.unlink(missing_ok=True)
    with disk.open("wb") as opened:
        opened.truncate(size)
        for number, data in blocks.items():
            opened.seek(number * BLOCK)
            opened.write(data.ljust(BLOCK, b"\0")[: size - number * BLOCK])


def block_of(text: str) -> bytes:
    """A block that is unique to this text."""
    return hashlib.sha256(text.encode()).digest() * (BLOCK // 32)


def main(endpoint: str, key: str, secret: str, disk: str, records: str) -> None:
    """Does one upload, with real pauses."""
    environ = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    uploads = Uploads(endpoint, environ, Path(disk).parent, connections=4)
    order = replace(uploads.order(), records=Path(records))
    print(upload_snapshot(uploads.ebs, order, uploads.snapshots, NoProgress()).snapshot_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
