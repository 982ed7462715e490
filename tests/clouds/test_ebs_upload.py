"""Snapshots by the EBS direct APIs, whole and as deltas: what is sent and what is recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ebs_uploads import Uploads, block_of, write_disk
from ec2_server import Ec2Server
from harness import Watched

from pipeline.clouds.ec2.blocks import BLOCK, MAX_CHAIN, find_parent
from pipeline.clouds.ec2.region import Region
from pipeline.clouds.ec2.upload import IDLE_MINUTES
from pipeline.errors import UploadError
from pipeline.model import GIB
from pipeline.tools.aws import Refused


@pytest.fixture
def server() -> Iterator[Ec2Server]:
    with Ec2Server() as running:
        yield running


@pytest.fixture
def uploads(server: Ec2Server, tmp_path: Path) -> Uploads:
    made = Uploads(server.endpoint, server.environ, tmp_path)
    write_disk(made.disk, {n: block_of(f"first {n}") for n in (0, 1, 7, 8, 100, 255)})
    return made


def puts(server: Ec2Server) -> list[int]:
    return sorted(
        each.index
        for each in server.requests
        if each.action == "ebs:PutSnapshotBlock" and each.status == 201 and each.index is not None
    )


# ---- whole uploads


def test_the_blocks_with_data_are_sent_once_each(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    sent = uploads.upload(progress=progress)

    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert puts(server) == [0, 1, 7, 8, 100, 255]
    assert (sent.blocks_sent, sent.blocks_total) == (6, 6)
    assert sent.parent_id is None
    assert progress.steps == [
        f"sends blocks to {sent.snapshot_id}",
        f"completes {sent.snapshot_id}",
        "sent 6 of 6 blocks",
    ]
    assert progress.done[-1] == (6 * BLOCK, 6 * BLOCK)
    snapshot = server.snapshot(sent.snapshot_id)
    assert snapshot.state == "completed"
    assert snapshot.tags == {"phantom:pipeline": "phantom-image", "Name": "hello-phantom"}
    assert snapshot.timeout_minutes == IDLE_MINUTES
    assert not uploads.journal().exists()


def test_zeros_that_the_disk_stores_are_not_sent(server: Ec2Server, uploads: Uploads) -> None:
    write_disk(uploads.disk, {3: b"", 4: b"x", 5: b""})

    assert uploads.upload().blocks_total == 1
    assert puts(server) == [4]


def test_the_last_block_is_padded_with_zeros(server: Ec2Server, uploads: Uploads) -> None:
    write_disk(uploads.disk, {2: block_of("last")}, size=2 * BLOCK + 1000)

    sent = uploads.upload()

    last = block_of("last")[:1000].ljust(BLOCK, b"\0")
    assert server.content(sent.snapshot_id) == {2: last}


def test_a_disk_of_zeros_is_a_snapshot_too(server: Ec2Server, uploads: Uploads) -> None:
    write_disk(uploads.disk, {})

    sent = uploads.upload()

    assert server.content(sent.snapshot_id) == {}
    assert server.snapshot(sent.snapshot_id).state == "completed"


def test_temporary_credentials_are_signed_along(server: Ec2Server, uploads: Uploads) -> None:
    server.use_temporary_credentials()
    with_token = Uploads(server.endpoint, server.environ, uploads.folder)

    assert with_token.upload().blocks_sent == 6


def test_an_encrypted_snapshot_has_its_key(server: Ec2Server, uploads: Uploads) -> None:
    key = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

    snapshot = server.snapshot(uploads.upload(encrypted=True, kms_key=key).snapshot_id)

    assert (snapshot.encrypted, snapshot.kms_key) == (True, key)


def test_a_completed_snapshot_is_not_sent_again(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    first = uploads.upload()
    asked = len(puts(server))

    again = uploads.upload(progress=progress)

    assert again.snapshot_id == first.snapshot_id
    assert (again.blocks_sent, again.blocks_total) == (0, 6)
    assert len(puts(server)) == asked
    assert progress.steps == [f"{first.snapshot_id} has it all"]


def test_a_disk_larger_than_the_volume_is_refused(server: Ec2Server, uploads: Uploads) -> None:
    write_disk(uploads.disk, {}, size=GIB + 1)

    with pytest.raises(UploadError) as caught:
        uploads.upload(content="0" * 64)

    assert str(caught.value) == (
        "disk.raw is larger than a volume of 1 GiB\n  do: ask for a larger volume"
    )
    assert server.snapshots() == []


def test_a_disk_that_changes_while_it_is_sent_is_no_snapshot(
    server: Ec2Server, uploads: Uploads
) -> None:
    def change() -> None:
        with uploads.disk.open("r+b") as opened:
            opened.write(b"changed")

    server.faults.on("ebs:PutSnapshotBlock", change, skip=3)

    with pytest.raises(UploadError) as caught:
        uploads.upload()

    assert str(caught.value) == (
        "disk.raw changed while it was sent\n"
        "  do: run the same command again, and leave the store alone meanwhile"
    )
    assert server.snapshots() == []
    assert not uploads.journal().exists()


def test_a_snapshot_of_another_account_is_not_ours(server: Ec2Server, uploads: Uploads) -> None:
    """A build's index may be from the account that its site had before."""
    snapshot = server.snapshot(uploads.upload().snapshot_id)
    region = Region(uploads.account, uploads.region)
    assert region.state(snapshot.id) == "completed"

    snapshot.owner = "999999999999"
    snapshot.shared_with.add("all")

    assert uploads.snapshots.state(snapshot.id) == "completed"
    assert region.state(snapshot.id) is None


# ---- deltas


def test_a_delta_sends_what_differs_and_zeros_where_data_were(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    first = uploads.upload()
    asked = len(puts(server))
    write_disk(
        uploads.disk,
        {0: block_of("first 0"), 1: block_of("new"), 7: b"", 100: block_of("first 100"), 9: b"9"},
    )

    sent = uploads.upload("two", progress, parent=uploads.index())

    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert sorted(server.snapshot(sent.snapshot_id).written) == [1, 7, 8, 9, 255]
    assert len(puts(server)) == asked + 5
    assert (sent.blocks_sent, sent.blocks_total, sent.parent_id) == (5, 4, first.snapshot_id)
    assert progress.steps[-1] == (
        f"sent 2 of 4 blocks and 3 of zeros (delta to {first.snapshot_id})"
    )
    assert server.snapshot(sent.snapshot_id).parent_id == first.snapshot_id


def test_a_delta_to_a_delta_is_right_too(server: Ec2Server, uploads: Uploads) -> None:
    uploads.upload()
    for build, before, numbers in (("two", "one", (0, 3)), ("three", "two", (3, 7, 255))):
        write_disk(uploads.disk, {n: block_of(f"{build} {n}") for n in numbers})
        sent = uploads.upload(build, parent=uploads.index(before))
        assert server.compare(sent.snapshot_id, uploads.disk) == []

    index = uploads.index("three")
    assert index is not None and index.chain == 2


def test_a_larger_volume_may_be_a_delta(server: Ec2Server, uploads: Uploads) -> None:
    uploads.upload()
    write_disk(uploads.disk, {1: block_of("first 1"), 3000: b"far"}, size=2 * GIB)

    sent = uploads.upload("two", parent=uploads.index(), volume_gib=2)

    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_an_encrypted_delta_names_neither_encryption_nor_key(
    server: Ec2Server, uploads: Uploads
) -> None:
    uploads.upload(encrypted=True)
    write_disk(uploads.disk, {5: b"5"})

    sent = uploads.upload("two", encrypted=True, parent=uploads.index())

    assert server.snapshot(sent.snapshot_id).parent_id is not None
    assert server.compare(sent.snapshot_id, uploads.disk) == []


@pytest.mark.parametrize("why", ["deleted", "another account's", "encryption by default"])
def test_without_its_parent_everything_is_sent(
    server: Ec2Server, uploads: Uploads, progress: Watched, why: str
) -> None:
    parent = uploads.upload().snapshot_id
    if why == "deleted":
        uploads.snapshots.delete(parent)
    elif why == "another account's":
        server.snapshot(parent).owner = "999999999999"
    else:
        server.state.regions["us-east-1"].encryption_by_default = True
    write_disk(uploads.disk, {0: block_of("first 0"), 1: b"new"})

    sent = uploads.upload("two", progress, parent=uploads.index())

    assert sent.parent_id is None
    assert sorted(server.snapshot(sent.snapshot_id).written) == [0, 1]
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert progress.steps[0].startswith(f"{parent} cannot be the parent (")
    assert progress.steps[0].endswith("); sends everything")
    index = uploads.index("two")
    assert index is not None and (index.parent_id, index.chain) == (None, 0)


# ---- the choice of a parent


def find(uploads: Uploads, *, volume_gib: int = 1, region: str = "us-east-1") -> str | None:
    found = find_parent(
        uploads.folder / "builds",
        "site",
        region,
        volume_gib,
        lambda each: uploads.snapshots.state(each) == "completed",
    )
    return None if found is None else found.snapshot_id


def test_the_newest_usable_snapshot_is_the_parent(server: Ec2Server, uploads: Uploads) -> None:
    assert find(uploads) is None
    first = uploads.upload().snapshot_id
    write_disk(uploads.disk, {5: b"5"})
    second = uploads.upload("two", parent=uploads.index()).snapshot_id

    assert find(uploads) == second
    assert find(uploads, region="eu-west-1") is None
    uploads.snapshots.delete(second)
    assert find(uploads) == first


def test_a_parent_is_not_larger_than_the_volume(server: Ec2Server, uploads: Uploads) -> None:
    sent = uploads.upload(volume_gib=2)

    assert find(uploads) is None
    assert find(uploads, volume_gib=2) == sent.snapshot_id


def test_a_chain_has_an_end(server: Ec2Server, uploads: Uploads) -> None:
    write_disk(uploads.disk, {1: b"0"}, size=2 * BLOCK)
    uploads.upload("0")
    for build in range(1, MAX_CHAIN + 1):
        assert find(uploads) is not None
        write_disk(uploads.disk, {1: str(build).encode()}, size=2 * BLOCK)
        uploads.upload(str(build), parent=uploads.index(str(build - 1)))

    assert find(uploads) is None


def test_a_damaged_index_is_no_parent(server: Ec2Server, uploads: Uploads) -> None:
    uploads.upload()
    file = uploads.records().with_name("site.blocks")
    whole = file.read_bytes()
    assert find(uploads) is not None

    for damaged in (whole[:-10], whole[:200], b"", b"{}\n", whole.replace(b"\n7 ", b"\n6 ")):
        file.write_bytes(damaged)
        assert find(uploads) is None


# ---- after an interruption


def interrupt(server: Ec2Server, uploads: Uploads, *, after: int, **changed: object) -> None:
    """Uploads until the account loses its right after this many blocks."""
    rule = server.faults.deny("ebs:PutSnapshotBlock", skip=after)
    with pytest.raises(Refused):
        uploads.upload(**changed)  # type: ignore[arg-type]
    rule.times = 0
    server.faults.clear()


def test_sent_blocks_are_not_sent_again(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    uploads.connections = 1
    interrupt(server, uploads, after=4)
    begun = server.pending_snapshots()

    sent = uploads.upload(progress=progress)

    assert begun == [sent.snapshot_id]
    assert puts(server) == [0, 1, 7, 8, 100, 255]
    assert sent.blocks_sent == 2
    assert progress.steps[0] == f"goes on with {sent.snapshot_id}"
    assert progress.steps[-1] == "sent 2 of 6 blocks (4 were sent before)"
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert not uploads.journal().exists()


def test_a_cut_line_of_the_journal_costs_one_block(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    interrupt(server, uploads, after=4)
    notes = uploads.journal().read_bytes()
    uploads.journal().write_bytes(notes[:-20])

    sent = uploads.upload()

    assert sent.blocks_sent == 3
    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_rubbish_in_the_journal_is_passed_over(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    interrupt(server, uploads, after=4)
    with uploads.journal().open("ab") as opened:
        opened.write(bytes(4096) + b"\nblock 99999 " + b"0" * 64 + b"\nblock x y\n\xff\xfe")

    sent = uploads.upload()

    assert sent.blocks_sent == 2
    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_a_block_that_is_noted_otherwise_is_sent_again(server: Ec2Server, uploads: Uploads) -> None:
    """The journal may be wrong; the finished snapshot may not."""
    uploads.connections = 1
    interrupt(server, uploads, after=4)
    with uploads.journal().open("ab") as opened:
        opened.write(b"block 1 " + b"a" * 64 + b"\n")

    sent = uploads.upload()

    assert sent.blocks_sent == 3
    assert server.compare(sent.snapshot_id, uploads.disk) == []


@pytest.mark.parametrize("lost", ["error", "deleted"])
def test_a_lost_snapshot_is_sent_anew(
    server: Ec2Server, uploads: Uploads, progress: Watched, lost: str
) -> None:
    uploads.connections = 1
    interrupt(server, uploads, after=4)
    (begun,) = server.pending_snapshots()
    if lost == "deleted":
        uploads.snapshots.delete(begun)
        make_old(uploads.journal())
    else:
        server.clock.advance(IDLE_MINUTES * 60 + 1)

    sent = uploads.upload(progress=progress)

    assert sent.snapshot_id != begun
    assert sent.blocks_sent == 6
    assert [each.id for each in server.snapshots()] == [sent.snapshot_id]
    assert progress.steps[0] == f"{begun} is lost; sends everything anew"


def make_old(journal: Path) -> None:
    """Changes the journal as if the snapshot had been started long ago."""
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(
        "".join(
            f"snapshot {each.split()[1]} 1000\n" if each.startswith("snapshot ") else each
            for each in lines
        )
    )


def test_a_journal_of_other_content_is_not_used(server: Ec2Server, uploads: Uploads) -> None:
    interrupt(server, uploads, after=4)
    (begun,) = server.pending_snapshots()
    write_disk(uploads.disk, {1: b"other"})

    sent = uploads.upload()

    assert [each.id for each in server.snapshots()] == [sent.snapshot_id]
    assert sent.snapshot_id != begun
    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_a_journal_of_another_volume_is_not_used(server: Ec2Server, uploads: Uploads) -> None:
    interrupt(server, uploads, after=4)

    sent = uploads.upload(volume_gib=3)

    (snapshot,) = server.snapshots()
    assert (snapshot.id, snapshot.volume_gib) == (sent.snapshot_id, 3)


def test_a_journal_of_another_region_is_not_used(
    server: Ec2Server, uploads: Uploads, progress: Watched
) -> None:
    interrupt(server, uploads, after=4)
    (begun,) = server.pending_snapshots()
    elsewhere = Uploads(server.endpoint, server.environ, uploads.folder, region="eu-west-1")

    sent = elsewhere.upload(progress=progress)

    assert [each.id for each in server.snapshots("eu-west-1")] == [sent.snapshot_id]
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert progress.steps[0] == (
        f"{begun} was begun in us-east-1; it ends there by itself after 24 hours"
    )


def test_a_journal_of_another_parent_is_not_used(server: Ec2Server, uploads: Uploads) -> None:
    first = uploads.upload("zero").snapshot_id
    write_disk(uploads.disk, {n: block_of(f"new {n}") for n in range(6)})
    second = uploads.upload("again").snapshot_id
    write_disk(uploads.disk, {n: block_of(f"newer {n}") for n in range(6)})
    interrupt(server, uploads, after=4, parent=uploads.index("zero"))

    sent = uploads.upload(parent=uploads.index("again"))

    assert sent.parent_id == second
    assert {each.id for each in server.snapshots()} == {first, second, sent.snapshot_id}
    assert server.compare(sent.snapshot_id, uploads.disk) == []


@pytest.mark.parametrize("state", ["completed", "pending"])
def test_a_snapshot_that_got_everything_is_taken_whatever_is_ordered_now(
    server: Ec2Server, uploads: Uploads, state: str
) -> None:
    """A run was killed while EBS completed its snapshot; parent and tags have changed since."""
    parent = uploads.upload("zero").snapshot_id
    write_disk(uploads.disk, {n: block_of(f"new {n}") for n in range(6)})
    server.faults.deny("ec2:DescribeSnapshots")
    with pytest.raises(Refused):
        uploads.upload(parent=uploads.index("zero"))
    server.faults.clear()
    (waiting,) = {each.id for each in server.snapshots()} - {parent}
    if state == "completed":
        while uploads.snapshots.state(waiting) != "completed":
            pass
    asked = len(puts(server))

    sent = uploads.upload(parent=None, tags={"Name": "another"})

    assert (sent.snapshot_id, sent.parent_id, sent.blocks_sent) == (waiting, parent, 0)
    assert len(puts(server)) == asked
    assert server.compare(waiting, uploads.disk) == []
    index = uploads.index()
    assert index is not None and (index.parent_id, index.chain) == (parent, 1)
    assert sent.blocks_total == index.digests.summary()[0] == 6


@pytest.mark.parametrize("changed", [{"encrypted": True}, {"volume_gib": 2}])
def test_a_snapshot_that_got_everything_is_not_taken_for_another_kind(
    server: Ec2Server, uploads: Uploads, changed: dict[str, object]
) -> None:
    server.faults.deny("ec2:DescribeSnapshots")
    with pytest.raises(Refused):
        uploads.upload()
    server.faults.clear()
    (waiting,) = server.snapshots()

    assert uploads.upload(**changed).snapshot_id != waiting.id  # type: ignore[arg-type]


def test_a_full_upload_goes_on_where_a_parent_was_refused(
    server: Ec2Server, uploads: Uploads
) -> None:
    uploads.connections = 1
    parent = uploads.upload("zero").snapshot_id
    uploads.snapshots.delete(parent)
    write_disk(uploads.disk, {n: block_of(f"new {n}") for n in range(6)})
    interrupt(server, uploads, after=4, parent=uploads.index("zero"))

    sent = uploads.upload(parent=uploads.index("zero"))

    assert (sent.blocks_sent, sent.parent_id) == (2, None)
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    index = uploads.index()
    assert index is not None and index.chain == 0


def test_a_delta_goes_on_as_a_delta(server: Ec2Server, uploads: Uploads) -> None:
    uploads.connections = 1
    parent = uploads.upload("zero").snapshot_id
    write_disk(uploads.disk, {n: block_of(f"new {n}") for n in range(6)})
    interrupt(server, uploads, after=8, parent=uploads.index("zero"))

    sent = uploads.upload(parent=uploads.index("zero"))

    # The delta has 10 blocks: 0 to 5 are new, and the parent's 7, 8, 100 and 255 become zeros.
    assert (sent.blocks_sent, sent.parent_id) == (2, parent)
    assert server.compare(sent.snapshot_id, uploads.disk) == []


def test_an_interrupted_command_leaves_the_journal(
    server: Ec2Server, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C raises KeyboardInterrupt in the main thread while it watches the others."""
    uploads.connections = 1
    stop = threading.Event()
    server.faults.on("ebs:PutSnapshotBlock", stop.set, skip=4)
    server.faults.hang("ebs:PutSnapshotBlock", times=None, skip=5)

    class Interrupting(Watched):
        def advance(self, done: int, total: int | None) -> None:
            if stop.is_set():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploads.upload(progress=Interrupting())
    server.faults.clear()

    sent = uploads.upload()
    assert sent.blocks_sent < 6
    assert server.compare(sent.snapshot_id, uploads.disk) == []
    assert [each.id for each in server.snapshots()] == [sent.snapshot_id]
