"""Property: any sparse disk, and any second version of it, comes back identical, whether it was
sent whole or as a delta to the first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ebs_uploads import Uploads, block_of, write_disk
from ec2_server import Ec2Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import examples

from pipeline.clouds.ec2.blocks import BLOCK

MOST = 12  # blocks in a disk

contents = st.sampled_from(
    [b"", b"\1", bytes(BLOCK - 1) + b"\1", bytes(100) + b"x", block_of("a"), block_of("b")]
)
"""Stored zeros, blocks with zeros at one end, and two blocks that both disks may have."""
disks = st.tuples(
    st.dictionaries(st.integers(0, MOST - 1), contents, max_size=MOST),
    st.integers(1, MOST * BLOCK),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Ec2Server]:
    with Ec2Server() as running:
        yield running


@pytest.fixture(scope="module")
def uploads(server: Ec2Server) -> Iterator[Uploads]:
    with tempfile.TemporaryDirectory() as folder:
        yield Uploads(server.endpoint, server.environ, Path(folder), connections=3)


@settings(
    deadline=None,
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=disks, second=disks)
def test_a_disk_comes_back_identical(
    server: Ec2Server,
    uploads: Uploads,
    first: tuple[Mapping[int, bytes], int],
    second: tuple[Mapping[int, bytes], int],
) -> None:
    write(uploads.disk, *first)
    whole = uploads.upload("first")
    assert server.compare(whole.snapshot_id, uploads.disk) == []

    write(uploads.disk, *second)
    delta = uploads.upload("second", parent=uploads.index("first"))
    assert delta.parent_id == whole.snapshot_id
    assert server.compare(delta.snapshot_id, uploads.disk) == []
    again = uploads.upload("second-whole")
    assert server.compare(again.snapshot_id, uploads.disk) == []

    # The service returns what was sent, and only blocks with data were sent.
    listed = dict(uploads.ebs.list_blocks(again.snapshot_id))
    stored = server.content(again.snapshot_id)
    assert set(listed) == set(stored)
    for number, token in listed.items():
        block = uploads.ebs.get_block(again.snapshot_id, number, token)
        assert block == stored[number] != bytes(BLOCK)

    for each in (delta, again, whole):
        uploads.snapshots.delete(each.snapshot_id)
    shutil.rmtree(uploads.folder / "builds")


def write(disk: Path, blocks: Mapping[int, bytes], size: int) -> None:
    write_disk(disk, {n: data for n, data in blocks.items() if n * BLOCK < size}, size)
