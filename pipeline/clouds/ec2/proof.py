"""What proves that a snapshot, or an image, holds a disk.

Tags prove nothing of content: whoever may write tags can give ours to any snapshot. A record of
ours beside the builds proves it - the index of an upload (`blocks.py`), or a note of what an import
or a copy made - and else the snapshot's blocks do, read back and compared with the disk.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline import records
from pipeline.clouds.ec2.blocks import (
    ZEROS,
    BlockIndex,
    find_blocks,
    index_file,
    merge,
    read_block,
    reading,
)
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.region import Described, Region, get_snapshots
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.tokens import written
from pipeline.errors import NameTakenError
from pipeline.files import make_folder, write_atomically
from pipeline.model import Progress, Release, Sha256
from pipeline.tools.aws import Refused, retrying

T = TypeVar("T")

CONNECTIONS = 16  # of the client's pool

_FORMAT = 1
_SHAPE = {"format": int, "content": str, "ids": [str]}
_DENIED = "the account may not read snapshots"


class Proofs:
    """What is known of the snapshots and images of one disk at one site."""

    def __init__(
        self, session: Session, release: Release, content: Sha256, disk: Path | None
    ) -> None:
        """`disk` is the file to compare with, where there is one."""
        self._session = session
        self._release = release
        self._content = content
        self._disk = disk

    # ---- records

    def note(self, region: str, *ids: str) -> None:
        """Notes that these snapshots or images of a region hold the disk, beside the build unless
        an emulator will have forgotten them. Raises NoSpaceError, StoreError."""
        self._session.proven.update(ids)
        if self._session.settings.emulated:
            return
        file = self._file(self._release.folder, region)
        known = self._read(file)
        if set(ids) <= set(known):
            return
        with written(file):
            make_folder(file.parent)
            said = {"format": _FORMAT, "content": self._content, "ids": sorted({*known, *ids})}
            write_atomically(file, json.dumps(said) + "\n")

    def is_noted(self, region: str, ids: Sequence[str]) -> bool:
        """Whether a record of one of the appliance's builds names one of these, or this session has
        proven it."""
        return not self._session.proven.isdisjoint(ids) or any(
            described in ids for described in self._find_noted(region)
        )

    def _find_noted(self, region: str) -> Iterator[str]:
        builds = self._release.folder.parent
        site = glob.escape(self._session.site.name)
        for file in builds.glob(f"*/{site}.{region}.made"):
            yield from self._read(file)
        for file in builds.glob(f"*/{index_file(Path(site)).name}"):
            index = BlockIndex.read(file)
            if index is not None and (index.region, index.content) == (region, self._content):
                yield index.snapshot_id

    def _file(self, folder: Path, region: str) -> Path:
        return folder / f"{self._session.site.name}.{region}.made"

    def _read(self, file: Path) -> list[str]:
        said = records.read(file, _SHAPE)
        if said is None or (said["format"], said["content"]) != (_FORMAT, self._content):
            return []
        return list(said["ids"])

    # ---- proofs

    def is_proven(self, region: Region, snapshot_id: str) -> bool:
        """Whether a completed snapshot holds the disk, by a record or by its blocks. Raises
        Refused, Cut, NoCredentials, StoreError."""
        return self._find_fault(region, [snapshot_id]) is None

    def check_image(self, region: Region, image: Described) -> None:
        """Raises NameTakenError for an image that is not proven to hold the disk, though its tags
        say so."""
        image_id, snapshots = str(image["ImageId"]), get_snapshots(image)
        if image_id in self._session.made or self.is_noted(region.name, [image_id]):
            return
        fault = self._find_fault(region, snapshots)
        if fault is not None:
            raise NameTakenError(
                f"{image_id} in {region.name} has the name {self._release.name!r} and our tags, "
                f"which are no proof of its content: {fault}",
                todo="retire it (`phantom-image retire`) or deregister it, then run the same "
                "command again: it sends the image anew. If it is right, allow "
                "ebs:ListSnapshotBlocks and ebs:GetSnapshotBlock, by which it is compared",
            )
        self.note(region.name, image_id)

    def _find_fault(self, region: Region, snapshots: Sequence[str]) -> str | None:
        """Why a snapshot is not proven; None for one that is."""
        if not snapshots:
            return "it has no snapshot"
        snapshot_id = snapshots[0]
        if self.is_noted(region.name, snapshots):
            return None
        if self._disk is None:
            return f"no record of this host names {snapshot_id}"
        session = self._session
        session.progress.step(f"comparing {snapshot_id}, which no record of this host names")
        ebs = Ebs(session.account, region.name)
        try:
            number = find_difference(ebs, snapshot_id, self._disk, session.progress, session.pause)
        except Refused as refused:
            if refused.expired or refused.unknown_credentials:
                raise
            denied = _DENIED if refused.denied else f"it cannot be read ({refused.code})"
            return f"{denied}, and no record of this host names it"
        if number is not None:
            return f"block {number} of {snapshot_id} is not the disk's"
        self.note(region.name, snapshot_id)
        return None


def find_difference(
    ebs: Ebs,
    snapshot_id: str,
    disk: Path,
    progress: Progress,
    pause: Callable[[float], None],
    *,
    connections: int = CONNECTIONS,
) -> int | None:
    """Reads a snapshot back and compares every block that it has, or should have, with a disk. The
    number of the first that differs; None where none does. Raises Refused, Cut, NoCredentials,
    StoreError."""

    def ask(call: Callable[[], T]) -> T:
        return retrying(call, progress=progress, pause=pause)

    tokens = dict(ask(lambda: list(ebs.list_blocks(snapshot_id))))
    with reading(disk), disk.open("rb") as opened:
        descriptor = opened.fileno()

        def differs(number: int) -> bool:
            wanted = bytearray(len(ZEROS))
            read_block(descriptor, number, wanted)
            token = tokens.get(number)
            if token is None:
                return wanted != ZEROS
            return wanted != ask(partial(ebs.get_block, snapshot_id, number, token))

        numbers = list(merge(iter(sorted(tokens)), find_blocks(descriptor)))
        total = len(numbers) * len(ZEROS)
        with ThreadPoolExecutor(connections) as pool:
            results = zip(numbers, pool.map(differs, numbers), strict=True)
            for done, (number, wrong) in enumerate(results, 1):
                if wrong:
                    pool.shutdown(cancel_futures=True)
                    return number
                progress.advance(done * len(ZEROS), total)
    return None
