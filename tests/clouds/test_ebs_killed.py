"""Uploads that are killed with `kill -9` at any point and run again.

The server says when a request has arrived, or has taken effect and is not yet answered; the test
kills the uploading process then. So every test reaches its point whatever the timing.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ebs_uploads
import pytest
from ebs_uploads import REGION, Uploads, block_of, write_disk
from ec2_server import Ec2Server
from soak import examples

BLOCKS = 60
PUT = "ebs:PutSnapshotBlock"


@pytest.fixture
def server() -> Iterator[Ec2Server]:
    with Ec2Server() as running:
        yield running
        running.faults.clear()


@pytest.fixture
def uploads(server: Ec2Server, tmp_path: Path) -> Uploads:
    made = Uploads(server.endpoint, server.environ, tmp_path)
    write_disk(made.disk, {3 * n: block_of(f"first {n}") for n in range(BLOCKS)})
    return made


def run_until_killed(
    server: Ec2Server,
    uploads: Uploads,
    action: str,
    *,
    skip: int = 0,
    answered: bool = False,
    how: signal.Signals = signal.SIGKILL,
) -> None:
    """Uploads in a process of its own, and kills it at the request after `skip` others: before the
    request takes effect, or, with `answered`, after that and before its answer."""
    reached = threading.Event()
    if answered:
        server.faults.slow(action, 2, times=1, skip=skip)
        before = server.count(action)
    server.faults.on(action, reached.set, skip=skip)
    if not answered:
        server.faults.hang(action, times=None, skip=skip)
    server.faults.slow(PUT, 0.02)  # so that the journal notes blocks before the kill
    argv = [
        *("env", "--default-signal=INT"),  # a shell may ignore SIGINT for background jobs
        sys.executable,
        ebs_uploads.__file__,
        server.endpoint,
        server.account.key,
        server.account.secret,
        str(uploads.disk),
        str(uploads.records()),
    ]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(argv, env=environ, stderr=subprocess.DEVNULL) as process:
        while not reached.wait(0.05):
            assert process.poll() is None, "it ended before it was to be killed"
        if answered:
            deadline = time.monotonic() + 1
            while server.count(action) == before and time.monotonic() < deadline:
                time.sleep(0.01)
        process.send_signal(how)
        assert process.wait(timeout=30) == -how  # it does not wait for answers
    server.faults.clear()


def run_again(server: Ec2Server, uploads: Uploads) -> None:
    """Repeats the upload, and checks that it leaves one snapshot with the right content."""
    sent = uploads.upload()
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert sent.blocks_total == BLOCKS
    assert server.pending_snapshots() == []
    (snapshot,) = server.snapshots(REGION)
    assert (snapshot.id, snapshot.state) == (sent.snapshot_id, "completed")
    assert [each.name for each in uploads.records().parent.iterdir()] == ["site.blocks"]
    index = uploads.index()
    assert index is not None and index.snapshot_id == sent.snapshot_id


@pytest.mark.slow
@pytest.mark.soak
def test_killed_at_random_points(server: Ec2Server, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for point in range(examples(5)):
        skip = chance.randrange(BLOCKS)
        print(f"seed {seed}, point {point}: killed at put {skip}")  # shown if the test fails
        folder = tmp_path / str(point)
        folder.mkdir()
        uploads = Uploads(server.endpoint, server.environ, folder)
        write_disk(uploads.disk, {3 * n: block_of(f"{point} {n}") for n in range(BLOCKS)})
        # Some of the uploads are killed a second time.
        run_until_killed(server, uploads, PUT, skip=skip)
        if skip < BLOCKS // 2 and chance.random() < 0.5:
            run_until_killed(server, uploads, PUT, skip=chance.randrange(BLOCKS // 4))
        run_again(server, uploads)
        for each in server.snapshots(REGION):
            uploads.snapshots.delete(each.id)


@pytest.mark.parametrize("answered", [False, True], ids=["not started", "start not noted"])
def test_killed_at_its_start(server: Ec2Server, uploads: Uploads, answered: bool) -> None:
    run_until_killed(server, uploads, "ebs:StartSnapshot", answered=answered)
    assert len(server.snapshots()) == answered

    run_again(server, uploads)


@pytest.mark.parametrize("answered", [False, True], ids=["not completed", "completion not noted"])
def test_killed_at_its_end(server: Ec2Server, uploads: Uploads, answered: bool) -> None:
    run_until_killed(server, uploads, "ebs:CompleteSnapshot", answered=answered)
    puts = server.count(PUT)

    run_again(server, uploads)

    assert server.count(PUT) == puts == BLOCKS


def test_killed_before_its_index_is_written(server: Ec2Server, uploads: Uploads) -> None:
    run_until_killed(server, uploads, "ec2:DescribeSnapshots", answered=True)
    puts = server.count(PUT)

    run_again(server, uploads)

    assert server.count(PUT) == puts == BLOCKS


def test_interrupted_by_a_person(server: Ec2Server, uploads: Uploads) -> None:
    run_until_killed(server, uploads, PUT, skip=BLOCKS // 2, how=signal.SIGINT)
    puts = server.count(PUT, ok=True)
    assert puts >= BLOCKS // 2

    run_again(server, uploads)

    assert server.count(PUT, ok=True) < puts + BLOCKS  # it went on and did not start over


def test_killed_before_its_journal_is_removed(server: Ec2Server, uploads: Uploads) -> None:
    run_until_killed(server, uploads, "ebs:CompleteSnapshot")
    journal = uploads.journal().read_bytes()
    run_again(server, uploads)
    uploads.journal().write_bytes(journal)

    run_again(server, uploads)

    assert server.count("ebs:StartSnapshot") == 1
