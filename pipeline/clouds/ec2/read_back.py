"""Reads a snapshot back, whole, and computes the digest of the disk that it holds: neither tags nor
records of this host are believed."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from pipeline.clouds.ec2.blocks import ZEROS
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.proof import CONNECTIONS
from pipeline.clouds.ec2.region import get_snapshots
from pipeline.clouds.ec2.session import Session
from pipeline.model import Progress, Publication, Sha256
from pipeline.tools.aws import Refused, retrying

T = TypeVar("T")


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


_GONE = ("InvalidSnapshot.NotFound", "ResourceNotFoundException")
_AHEAD = 4 * CONNECTIONS  # blocks that are asked for before they are needed


def read_disk(
    session: Session, publication: Publication, disk_bytes: int, progress: Progress
) -> Sha256 | None:
    """The SHA-256 of the first `disk_bytes` of what machines of a published image would start from;
    None where the image, or its snapshot, is gone. A byte beyond them that is not zero makes it
    another disk's. Raises UsageError for what is no image of EC2, Refused, Cut, NoCredentials."""
    where = session.parse_location(publication)
    region = session.region(where.region)
    image = region.describe_image(where.image)
    if image is None:
        return None
    snapshot_id, *_ = get_snapshots(image) or [where.snapshot]
    progress.step(f"reading {snapshot_id} back")
    try:
        return _digest(
            Ebs(session.account, region.name), snapshot_id, disk_bytes, session, progress
        )
    except Refused as refused:
        if refused.code not in _GONE:
            raise
        return None


def _digest(
    ebs: Ebs, snapshot_id: str, disk_bytes: int, session: Session, progress: Progress
) -> Sha256:
    def ask(call: Callable[[], T]) -> T:
        return retrying(call, progress=progress, pause=session.pause)

    tokens = dict(ask(lambda: list(ebs.list_blocks(snapshot_id))))
    hashed, at = hashlib.sha256(), 0
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        calls = (
            (number, partial(ask, partial(ebs.get_block, snapshot_id, number, token)))
            for number, token in sorted(tokens.items())
        )
        try:
            for number, block in _in_order(pool, calls):
                start = number * len(ZEROS)
                _add_zeros(hashed, min(start, disk_bytes) - at)
                kept = max(0, min(len(block), disk_bytes - start))
                hashed.update(block[:kept])
                hashed.update(block[kept:].rstrip(b"\0"))
                at = max(at, min(start + len(block), disk_bytes))
                progress.advance(at, disk_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
    _add_zeros(hashed, disk_bytes - at)
    return Sha256(hashed.hexdigest())


def _in_order(
    pool: ThreadPoolExecutor, calls: Iterator[tuple[int, Callable[[], bytes]]]
) -> Iterator[tuple[int, bytes]]:
    """The results of calls, some of which run ahead."""
    waiting: deque[tuple[int, Future[bytes]]] = deque()
    for number, call in calls:
        waiting.append((number, pool.submit(call)))
        if len(waiting) >= _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _add_zeros(hashed: _Hash, count: int) -> None:
    for left in range(count, 0, -len(ZEROS)):
        hashed.update(ZEROS[: min(left, len(ZEROS))])
