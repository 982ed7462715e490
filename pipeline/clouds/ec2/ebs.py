"""The EBS direct APIs, which write and read snapshots block by block.

Blocks are sent over connections of our own (`connection.py`), everything else through boto3.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping

from pipeline.clouds.ec2.connection import BlockConnection, Service
from pipeline.tools.aws import Account, Cut, translated

CONNECTIONS = 64
"""One connection makes about 10 puts a second, and an account may make 1,000."""


class Ebs:
    """The EBS direct APIs of one region. All calls are sent once; they raise Refused, Cut and
    NoCredentials. Threads may share it."""

    def __init__(self, account: Account, region: str, connections: int = CONNECTIONS) -> None:
        self.region = region
        self.connections = connections
        self._account = account
        self._service: Service | None = None
        self._lock = threading.Lock()

    def start(self, token: str, parameters: Mapping[str, object]) -> str:
        """Starts a snapshot and returns its id; the same one again for the same token."""
        reply = self._account.call(
            "ebs", self.region, "StartSnapshot", ClientToken=token, **parameters
        )
        return str(reply["SnapshotId"])

    def connect(self) -> BlockConnection:
        """A connection that blocks are written over, by one thread at a time."""
        with self._lock:
            if self._service is None:
                self._service = Service(self._account, self.region)
        return BlockConnection(self._service)

    def complete(self, snapshot_id: str, count: int, checksum: str) -> None:
        """Tells EBS that `count` blocks were written, with the checksum of their digests in order.
        EBS completes the snapshot afterwards, in its own time."""
        digests = (
            {
                "Checksum": checksum,
                "ChecksumAlgorithm": "SHA256",
                "ChecksumAggregationMethod": "LINEAR",
            }
            if count
            else {}  # without blocks there is no checksum
        )
        self._account.call(
            "ebs",
            self.region,
            "CompleteSnapshot",
            SnapshotId=snapshot_id,
            ChangedBlocksCount=count,
            **digests,
        )

    def list_blocks(self, snapshot_id: str) -> Iterator[tuple[int, str]]:
        """Number and token of each block that a snapshot has, in order."""
        pages = self._account.pages(
            "ebs", self.region, "ListSnapshotBlocks", "Blocks", SnapshotId=snapshot_id
        )
        return ((int(block["BlockIndex"]), str(block["BlockToken"])) for block in pages)

    def get_block(self, snapshot_id: str, number: int, token: str) -> bytes:
        """One block of a snapshot. Raises Cut too when its checksum does not match."""
        reply = self._account.call(
            "ebs",
            self.region,
            "GetSnapshotBlock",
            SnapshotId=snapshot_id,
            BlockIndex=number,
            BlockToken=token,
        )
        with translated("ebs:GetSnapshotBlock"):
            block = bytes(reply["BlockData"].read())
        if base64.b64encode(hashlib.sha256(block).digest()).decode() != reply["Checksum"]:
            raise Cut(f"block {number} of {snapshot_id} came damaged", connected=True)
        return block
