"""Uploads by the EBS direct APIs when the service or the network fails, or a right is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ebs_uploads import Uploads, block_of, write_disk
from ec2_server import Ec2Server
from harness import Watched

from pipeline.clouds.ec2 import connection
from pipeline.clouds.ec2.transfer import Pace
from pipeline.clouds.ec2.upload import upload_snapshot
from pipeline.errors import NoSpaceError, StoreError, UploadError
from pipeline.tools.aws import Cut, NoCredentials, Refused
from pipeline.tools.aws_session import make_session

PUT, START, COMPLETE = "ebs:PutSnapshotBlock", "ebs:StartSnapshot", "ebs:CompleteSnapshot"
BLOCKS = 24


@pytest.fixture
def server() -> Iterator[Ec2Server]:
    with Ec2Server() as running:
        yield running
        running.faults.clear()


@pytest.fixture
def uploads(server: Ec2Server, tmp_path: Path) -> Uploads:
    made = Uploads(server.endpoint, server.environ, tmp_path)
    write_disk(made.disk, {n: block_of(f"first {n}") for n in range(0, 2 * BLOCKS, 2)})
    return made


def check(server: Ec2Server, uploads: Uploads, progress: Watched | None = None) -> None:
    """Uploads, and checks that one completed snapshot has the right content."""
    sent = uploads.upload(progress=progress)
    assert sent.blocks_total == BLOCKS
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    (snapshot,) = server.snapshots()
    assert (snapshot.id, snapshot.state) == (sent.snapshot_id, "completed")
    assert not uploads.journal().exists()


# ---- faults that pass


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda faults: faults.throttle(PUT, times=40), id="a burst of throttling"),
        pytest.param(
            lambda faults: faults.throttle(PUT, times=9, code="ThrottlingException"),
            id="throttling by its other name",
        ),
        pytest.param(
            lambda faults: faults.refuse(
                PUT,
                "ServiceQuotaExceededException",
                status=402,
                reason="DEPENDENCY_REQUEST_THROTTLED",
                times=3,
            ),
            id="a quota that is throttling by its reason",
        ),
        pytest.param(lambda faults: faults.fail(PUT, times=10, skip=3), id="500"),
        pytest.param(lambda faults: faults.fail(PUT, times=10, status=503), id="503"),
        pytest.param(lambda faults: faults.reset(PUT, times=10, skip=3), id="resets"),
        pytest.param(
            lambda faults: faults.reset(PUT, times=10, after=True), id="resets after the effect"
        ),
        pytest.param(
            lambda faults: faults.refuse(
                PUT, "ValidationException", reason="CONFLICTING_BLOCK_UPDATE", times=4
            ),
            id="a block that is still being written",
        ),
        pytest.param(lambda faults: faults.wrong_checksum(), id="bytes changed on the way"),
        pytest.param(lambda faults: faults.damage(), id="a block stored otherwise than sent"),
        pytest.param(lambda faults: faults.not_found_for(times=30), id="not found for a while"),
        pytest.param(lambda faults: faults.complete_after(30), id="slow completion"),
        pytest.param(lambda faults: faults.throttle(START, times=3), id="start throttled"),
        pytest.param(lambda faults: faults.reset(START, times=3), id="start reset"),
        pytest.param(lambda faults: faults.reset(START, times=3, after=True), id="start not heard"),
        pytest.param(lambda faults: faults.fail(COMPLETE, times=3), id="completion fails"),
        pytest.param(lambda faults: faults.reset(COMPLETE, times=3), id="completion reset"),
        pytest.param(
            lambda faults: faults.reset(COMPLETE, times=1, after=True), id="completion not heard"
        ),
    ],
)
def test_transient_faults_are_survived(
    server: Ec2Server, uploads: Uploads, harm: Callable[[object], None]
) -> None:
    harm(server.faults)

    check(server, uploads)


def test_a_snapshot_may_be_unknown_until_it_is_completed(
    server: Ec2Server, uploads: Uploads
) -> None:
    server.faults.refuse(COMPLETE, "ResourceNotFoundException", status=404, times=3)

    check(server, uploads)


def test_a_time_out_passes(
    server: Ec2Server, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    server.faults.hang(PUT, times=5, skip=4)

    check(server, uploads)


def test_the_network_is_gone_for_a_while(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    server.faults.on(PUT, lambda: server.blackout(1.5), skip=9)
    uploads.pause = lambda seconds: time.sleep(min(seconds, 0.05))

    check(server, uploads, progress)

    told = [each for each in progress.steps if "tries again" in each]
    assert told and told[0].startswith("cut (127.0.0.1:")
    assert progress.steps.index(told[0]) < progress.steps.index("goes on")


# ---- faults that do not


def test_connections_that_break_now_and_then_are_not_told(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    for skip in range(0, BLOCKS, 4):
        server.faults.reset(PUT, times=1, skip=skip)

    check(server, uploads, progress)

    assert len(progress.steps) == 3


def test_the_network_is_gone_for_good(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    server.faults.on(PUT, server.blackout, skip=9)

    with pytest.raises(Cut) as caught:
        uploads.upload(progress=progress)

    assert not caught.value.connected
    server.start()
    check(server, uploads)
    assert server.count(START) == 1


def test_throttling_for_good_ends_it(server: Ec2Server, uploads: Uploads) -> None:
    server.faults.throttle(PUT, times=None, skip=5)

    with pytest.raises(Refused) as caught:
        uploads.upload()

    assert caught.value.code == "RequestThrottledException"
    server.faults.clear()
    check(server, uploads)
    assert server.count(START) == 1


@pytest.mark.parametrize("action", [START, PUT, COMPLETE])
def test_a_missing_right_is_never_asked_for_twice(
    server: Ec2Server, uploads: Uploads, action: str
) -> None:
    uploads.connections = 1
    server.faults.deny(action)

    with pytest.raises(Refused) as caught:
        uploads.upload()

    assert caught.value.denied
    assert caught.value.action == action
    assert server.count(action) == 1
    # The uploader deletes an empty snapshot and keeps one that has blocks.
    assert len(server.snapshots()) == (action == COMPLETE)
    server.faults.clear()
    check(server, uploads)


def test_a_quota_ends_it(server: Ec2Server, uploads: Uploads) -> None:
    server.faults.quota(START)

    with pytest.raises(Refused) as caught:
        uploads.upload()

    assert caught.value.code == "ServiceQuotaExceededException"
    assert server.count(START) == 1
    server.faults.clear()
    check(server, uploads)


def test_expired_credentials_end_it_at_once(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    server.expire_credentials(after=9)

    with pytest.raises(Refused) as caught:
        uploads.upload()

    assert caught.value.expired
    assert server.count(PUT, ok=False) == 1
    server.renew_credentials()
    check(server, uploads)
    assert server.count(START) == 1


def test_without_credentials_nothing_is_asked_for(server: Ec2Server, uploads: Uploads) -> None:
    uploads.account.session = make_session(environ={})

    with pytest.raises(NoCredentials):
        uploads.upload()

    assert server.requests == []


def test_bytes_that_always_change_on_the_way_end_it(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    server.faults.wrong_checksum(1000)

    with pytest.raises(UploadError) as caught:
        uploads.upload()

    (pending,) = server.pending_snapshots()
    assert str(caught.value) == (
        f"block 0 of disk.raw arrived damaged at {pending} twice: "
        "The checksum is not the data's\n"
        "  do: run the same command again: it goes on where it was; if the same is said again, "
        "look for a fault of this host's memory, or of a proxy on the way"
    )
    assert server.count(PUT) == 2
    server.faults.wrong_checksum(0)
    check(server, uploads)


def test_a_snapshot_that_ends_in_error_is_deleted(server: Ec2Server, uploads: Uploads) -> None:
    server.faults.complete_error()

    with pytest.raises(UploadError) as caught:
        uploads.upload()

    message = str(caught.value)
    assert message.startswith("EBS could not complete snap-")
    assert message.endswith(
        ": it is in error, and was deleted\n"
        "  do: run the same command again: it sends everything anew"
    )
    assert server.snapshots() == []
    check(server, uploads)


def test_a_snapshot_that_others_write_to_is_not_completed(
    server: Ec2Server, uploads: Uploads
) -> None:
    """We send the count and checksum of our own blocks, and EBS compares them."""

    def write() -> None:
        (snapshot_id,) = server.pending_snapshots()
        snapshot = server.snapshot(snapshot_id)
        snapshot.written[1] = snapshot.written[0]

    server.faults.on(COMPLETE, write)

    with pytest.raises(UploadError) as caught:
        uploads.upload()

    message = str(caught.value)
    assert message.startswith("EBS did not complete snap-")
    assert message.endswith(
        f": ChangedBlocksCount is {BLOCKS}, and {BLOCKS + 1} blocks were written\n"
        "  do: run the same command again: it sends everything anew"
    )
    assert server.snapshots() == []
    check(server, uploads)


def test_a_block_that_the_service_lost_is_not_completed(
    server: Ec2Server, uploads: Uploads
) -> None:
    def lose() -> None:
        (snapshot_id,) = server.pending_snapshots()
        del server.snapshot(snapshot_id).written[4]

    server.faults.on(COMPLETE, lose)

    with pytest.raises(UploadError, match="EBS did not complete"):
        uploads.upload()

    assert server.snapshots() == []
    check(server, uploads)


def test_a_snapshot_that_others_delete_is_told(server: Ec2Server, uploads: Uploads) -> None:
    def delete() -> None:
        (snapshot_id,) = server.pending_snapshots()
        uploads.snapshots.delete(snapshot_id)

    server.faults.on(PUT, delete, skip=5)

    with pytest.raises(UploadError) as caught:
        uploads.upload()

    message = str(caught.value)
    assert message.endswith(
        " was deleted while it was written\n"
        "  do: find out who deletes pending snapshots, and run the same command again"
    )
    assert server.snapshots() == []
    check(server, uploads)


def test_a_token_that_was_used_otherwise_is_not_used_again(
    server: Ec2Server, uploads: Uploads
) -> None:
    """This happens with a journal that was copied from another build."""
    server.faults.fail(START, times=None)
    with pytest.raises(Refused):
        uploads.upload()
    server.faults.clear()
    token = uploads.journal().read_text().split('"token": "')[1].split('"')[0]
    uploads.ebs.start(token, {"VolumeSize": 7})

    sent = uploads.upload()

    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_a_missing_right_is_told_though_there_is_a_parent(
    server: Ec2Server, uploads: Uploads
) -> None:
    uploads.upload()
    write_disk(uploads.disk, {0: b"new"})
    before = server.count(START)
    server.faults.deny(START)

    with pytest.raises(Refused) as caught:
        uploads.upload("two", parent=uploads.index())

    assert caught.value.denied
    assert server.count(START) == before + 1


@pytest.mark.parametrize("reason", ["UNAUTHORIZED_ACCOUNT", "DEPENDENCY_ACCESS_DENIED"])
def test_a_parent_that_may_not_be_used_is_left_out(
    server: Ec2Server, uploads: Uploads, reason: str
) -> None:
    uploads.upload()
    write_disk(uploads.disk, {0: b"new"})
    server.faults.refuse(START, "AccessDeniedException", status=403, reason=reason)

    sent = uploads.upload("two", parent=uploads.index())

    assert sent.parent_id is None
    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_a_snapshot_that_takes_long_is_waited_for_again(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    server.faults.complete_after(100_000)
    for _ in range(2):  # the second upload waits for the same snapshot
        with pytest.raises(UploadError) as caught:
            uploads.upload(progress=progress)
        assert "is still not completed after 60 minutes" in str(caught.value)
        (snapshot,) = server.snapshots()
        assert uploads.journal().exists()
    puts = server.count(PUT)
    assert f"{snapshot.id} is pending" in progress.lines

    assert snapshot.completing is not None
    snapshot.completing.looks = 0
    server.faults.complete_after(0)
    check(server, uploads)
    assert server.count(PUT) == puts == BLOCKS


def test_a_snapshot_that_vanishes_while_it_is_completed_is_told(
    server: Ec2Server, uploads: Uploads
) -> None:
    def delete() -> None:
        (snapshot,) = server.snapshots()
        uploads.snapshots.delete(snapshot.id)

    server.faults.complete_after(100_000)
    server.faults.on("ec2:DescribeSnapshots", delete, skip=3)

    with pytest.raises(UploadError, match="was deleted while it was written"):
        uploads.upload()

    assert not uploads.journal().exists()


# ---- a file system that is full or refuses to write


@pytest.mark.parametrize("record", ["site.journal.new", "site.blocks.new"])
def test_a_full_file_system_is_told(server: Ec2Server, uploads: Uploads, record: str) -> None:
    full = uploads.records().with_name(record)
    full.symlink_to("/dev/full")

    with pytest.raises(NoSpaceError) as caught:
        uploads.upload()

    assert str(caught.value) == (
        f"{full.parent}: no space for the record of the upload\n"
        "  do: free some space there, then run the same command again: it goes on where it was"
    )
    full.unlink()
    check(server, uploads)
    assert (server.count(START), server.count(PUT)) == (1, BLOCKS)


def fill(file: Path) -> None:
    """From now on, writes to the file, where this process has it open, find no space left."""
    with open("/dev/full", "wb") as full:
        for each in Path("/proc/self/fd").iterdir():
            if each.is_symlink() and os.path.realpath(each) == str(file):
                os.dup2(full.fileno(), int(each.name))


def test_a_journal_that_cannot_grow_is_told(server: Ec2Server, uploads: Uploads) -> None:
    server.faults.on(PUT, lambda: fill(uploads.journal()), skip=3)

    with pytest.raises(NoSpaceError, match="no space for the record of the upload"):
        uploads.upload()

    check(server, uploads)
    assert server.count(START) == 1


def test_what_came_first_is_not_hidden_by_the_journal(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    server.faults.on(PUT, lambda: fill(uploads.journal()), skip=2)
    server.faults.deny(PUT, skip=2)

    with pytest.raises(Refused) as caught:
        uploads.upload()

    assert caught.value.denied


def test_an_interrupt_is_not_hidden_by_the_journal(server: Ec2Server, uploads: Uploads) -> None:
    class Interrupting(Watched):
        def advance(self, done: int, total: int | None) -> None:
            fill(uploads.journal())
            raise KeyboardInterrupt

    server.faults.slow(PUT, 0.3)  # so that some puts are under way

    with pytest.raises(KeyboardInterrupt):
        uploads.upload(progress=Interrupting())

    server.faults.clear()
    check(server, uploads)


def test_a_journal_that_cannot_be_made_is_told(server: Ec2Server, uploads: Uploads) -> None:
    uploads.journal().mkdir()

    with pytest.raises(StoreError) as caught:
        uploads.upload()

    assert str(caught.value).startswith(
        f"{uploads.journal()}: the record of the upload cannot be written: Is a directory\n"
    )
    assert server.snapshots() == []


def test_a_disk_that_is_gone_is_told(server: Ec2Server, uploads: Uploads) -> None:
    order = uploads.order()
    uploads.disk.unlink()

    with pytest.raises(StoreError) as caught:
        upload_snapshot(uploads.ebs, order, uploads.snapshots, Watched())

    assert str(caught.value).startswith(
        f"{uploads.disk}: the disk cannot be read: No such file or directory\n  do: see that"
    )
    assert server.requests == []


# ---- the pace


def test_a_throttled_queue_slows_down_as_one() -> None:
    pace = Pace(64)
    for _ in range(64):  # all 64 were under way when the service refused the first
        pace.shrink(0)
    assert pace.window == 32
    pace.shrink(pace.turns)
    assert pace.window == 16
    for _ in range(20):
        pace.shrink(pace.turns)
    assert pace.window == 1


def test_a_queue_that_goes_well_is_as_wide_as_before() -> None:
    pace = Pace(8)
    for _ in range(5):
        pace.shrink(pace.turns)
    for _ in range(1 + 2 + 3 + 4 + 5 + 6):
        assert pace.enter() is not None
        pace.leave(well=True)
    assert pace.window == 7
    for _ in range(100):
        pace.enter()
        pace.leave(well=True)
    assert pace.window == 8


def test_no_more_requests_are_under_way_than_the_window_has() -> None:
    pace = Pace(4)
    turns = [pace.enter() for _ in range(5)]
    assert turns == [0, 0, 0, 0, None]
    pace.shrink(0)
    for _ in range(2):
        pace.leave(well=False)
    assert pace.enter() is None  # two requests are still under way
    pace.leave(well=True)
    assert pace.enter() == 1


def test_throttling_costs_few_requests(server: Ec2Server, uploads: Uploads) -> None:
    """While the service is overloaded, the threads do not all keep repeating their requests."""
    uploads.connections = 64
    write_disk(uploads.disk, {n: block_of(str(n)) for n in range(128)})
    rule = server.faults.throttle(PUT, times=None)
    opened = 0.0

    def pause(seconds: float) -> None:
        nonlocal opened
        time.sleep(0.001)
        opened += seconds
        if opened > 200:
            rule.times = 0

    uploads.pause = pause
    uploads.upload()

    assert server.count(PUT, ok=False) < 64 + 64
