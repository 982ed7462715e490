"""A tag is no proof of content: only our own records are, or blocks that were read back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ec2_kit import DATA, Kit
from ec2_state import BLOCK_BYTES
from harness import Watched

from pipeline.errors import NameTakenError, RightsError
from pipeline.model import BootedImage, Publication

READING = ("ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock")
IMPORT = {"method": "import", "bucket": "example-images"}
FURTHER = {"copy_to": ["eu-west-1"]}


def move(kit: Kit, name: str = "elsewhere") -> None:
    """Goes to another build host, which has no records."""
    kit.release = dataclasses.replace(kit.release, folder=kit.folder / name / "build")


def retag(kit: Kit, described: str, region: str = "us-east-1") -> None:
    """Gives something the tag of the kit's own image."""
    tag = {"Key": "phantom:sha256", "Value": kit.booted.image.disk_sha256}
    kit.ec2.server.client("ec2", region).create_tags(Resources=[described], Tags=[tag])


def forge(kit: Kit, data: bytes, *, name: str | None = None, **options: Any) -> Publication:
    """An image of other bytes, made by another host, with the tags of the kit's own image."""
    other = Kit(kit.ec2, kit.folder)
    other.booted = other.make(data)
    folder = kit.folder / "forged" / "build"
    other.release = dataclasses.replace(kit.release, name=name or kit.release.name, folder=folder)
    made = other.upload(**options)
    for described in (made.image_id, made.location.rsplit("/", 1)[1]):
        retag(kit, described, options.get("region", "us-east-1"))
    return made


def sent(kit: Kit) -> int:
    return kit.ec2.server.count("ebs:PutSnapshotBlock")


def reads(kit: Kit) -> int:
    return sum(kit.ec2.server.count(action) for action in READING)


def holds(kit: Kit, made: Publication, booted: BootedImage) -> bool:
    return kit.ec2.server.compare(made.location.rsplit("/", 1)[1], booted.image.file) == []


OTHER = {
    "one block differs": DATA[:-1] + bytes([DATA[-1] ^ 1]),
    "a block more": DATA + os.urandom(BLOCK_BYTES),
    "a block less": DATA[:BLOCK_BYTES],
}


@pytest.mark.parametrize("other", OTHER)
def test_a_snapshot_with_our_tags_and_other_blocks_is_not_used(kit: Kit, other: str) -> None:
    forged = forge(kit, OTHER[other], name="another name")
    before = sent(kit)
    made = kit.upload()
    assert holds(kit, made, kit.booted)
    assert sent(kit) > before
    assert made.location.rsplit("/", 1)[1] != forged.location.rsplit("/", 1)[1]
    assert any("is not proven to have these bytes" in step for step in kit.progress.steps)


@pytest.mark.parametrize("action", READING)
def test_a_snapshot_that_cannot_be_read_is_sent_again(kit: Kit, action: str) -> None:
    kit.ec2.faults.deny("ec2:RegisterImage")
    with pytest.raises(RightsError, match="RegisterImage"):
        kit.upload()
    kit.ec2.faults.clear()
    move(kit)
    kit.ec2.faults.deny(action)
    made = kit.upload()
    assert kit.ec2.server.count("ebs:StartSnapshot") == 2
    assert holds(kit, made, kit.booted)


def test_what_records_name_is_not_read(kit: Kit) -> None:
    made = kit.upload()
    with kit.open() as cloud:
        assert cloud.find(kit.booted.image, kit.release) == made
    newer = dataclasses.replace(
        kit.release, name="hello-2", folder=kit.release.folder.with_name("newer")
    )
    with kit.open() as cloud:
        cloud.upload(kit.booted, newer, kit.progress)
    assert reads(kit) == 0
    assert kit.ec2.server.count("ebs:StartSnapshot") == 1


def test_what_was_read_once_is_not_read_again(kit: Kit) -> None:
    made = kit.upload()
    move(kit)
    for _ in range(2):
        with kit.open() as cloud:
            assert cloud.find(kit.booted.image, kit.release) == made
    assert kit.ec2.server.count("ebs:ListSnapshotBlocks") == 1


@pytest.mark.parametrize("other", OTHER)
def test_an_image_with_our_tags_and_other_blocks_is_not_published(kit: Kit, other: str) -> None:
    forged = forge(kit, OTHER[other])
    before = sent(kit)
    with kit.open() as cloud:
        assert cloud.find(kit.booted.image, kit.release) is None
        with pytest.raises(NameTakenError) as caught:
            cloud.upload(kit.booted, kit.release, kit.progress)
    number = {"one block differs": 2, "a block more": 3, "a block less": 2}[other]
    snapshot_id = forged.location.rsplit("/", 1)[1]
    assert str(caught.value) == (
        f"site virginia: {forged.image_id} in us-east-1 has the name 'hello-1.2.0-4f2a9c01' and "
        f"our tags, which are no proof of its content: block {number} of {snapshot_id} is not the "
        "disk's\n"
        "  do: retire it (`phantom-image retire`) or deregister it, then run the same command "
        "again: it sends the image anew. If it is right, allow ebs:ListSnapshotBlocks and "
        "ebs:GetSnapshotBlock, by which it is compared"
    )
    assert sent(kit) == before


def test_an_image_that_cannot_be_read_needs_a_record(kit: Kit) -> None:
    made = kit.upload()
    kit.ec2.faults.deny("ebs:ListSnapshotBlocks")
    with kit.open() as cloud:
        assert cloud.find(kit.booted.image, kit.release) == made
    move(kit)
    with pytest.raises(NameTakenError, match="the account may not read snapshots, and no record"):
        kit.upload()


# ---- copies


def test_a_copy_with_our_tags_and_other_blocks_is_not_published(kit: Kit) -> None:
    forged = forge(kit, OTHER["one block differs"], region="eu-west-1")
    with pytest.raises(NameTakenError) as caught:
        kit.publish(**FURTHER)
    assert f"{forged.image_id} in eu-west-1 has the name" in caught.value.what
    assert "block 2 of" in caught.value.what
    assert [each.region for each in caught.value.published] == ["us-east-1"]


def test_a_copy_without_a_record_is_compared(kit: Kit) -> None:
    published = kit.publish(**FURTHER)
    assert kit.publish(**FURTHER) == published
    assert reads(kit) == 0
    move(kit)
    assert kit.publish(**FURTHER) == published
    assert kit.ec2.server.count("ebs:ListSnapshotBlocks") == 2  # of the image, and of its copy
    assert kit.ec2.server.count("ec2:CopyImage") == 1


def test_a_copy_whose_record_was_not_written_is_found_by_its_token(kit: Kit) -> None:
    """As after `kill -9` between CopyImage's answer and the record."""
    kit.ec2.faults.on(
        "ec2:CopyImage", lambda: kit.ec2.faults.deny("ec2:DescribeImages", region="eu-west-1")
    )
    with pytest.raises(RightsError, match="DescribeImages"):
        kit.publish(**FURTHER)
    kit.ec2.faults.clear()
    (record,) = kit.release.folder.glob("*.eu-west-1.made")
    record.unlink()
    kit.ec2.faults.deny("ebs:ListSnapshotBlocks")
    published = kit.publish(**FURTHER)
    assert [each.id for each in kit.ec2.server.images("eu-west-1")] == [published[1].image_id]
    assert kit.ec2.server.count("ec2:CopyImage") == 2
    assert record.is_file()


# ---- by the import service


@pytest.fixture
def importing(kit: Kit) -> Kit:
    kit.ec2.server.add_bucket("example-images")
    kit.ec2.server.add_role()
    return kit


def _object_key(kit: Kit) -> str:
    image = kit.booted.image
    return f"phantom-image/virginia/{kit.release.build}/{image.disk_sha256}.raw"


def test_an_object_that_another_put_there_is_sent_again(importing: Kit) -> None:
    """It has the right name, the right size and the metadata that ours once had."""
    kit = importing
    kit.ec2.server.client("s3").put_object(
        Bucket="example-images",
        Key=_object_key(kit),
        Body=OTHER["one block differs"],
        Metadata={"sha256": kit.booted.image.disk_sha256},
    )
    assert holds(kit, kit.upload(**IMPORT), kit.booted)


@pytest.mark.parametrize("replaced", [False, True])
def test_an_object_that_this_host_sent_is_used_unless_replaced(
    importing: Kit, replaced: bool
) -> None:
    class Interrupted(Watched):
        def step(self, text: str, *, seconds: float | None = None) -> None:
            if text.startswith("EC2 imports"):
                raise KeyboardInterrupt

    kit = importing
    kit.progress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        kit.upload(**IMPORT)
    kit.progress = Watched()
    if replaced:
        body = OTHER["one block differs"]
        kit.ec2.server.client("s3").put_object(
            Bucket="example-images", Key=_object_key(kit), Body=body
        )
    before = kit.ec2.server.count("s3:PutObject")
    assert holds(kit, kit.upload(**IMPORT), kit.booted)
    assert kit.ec2.server.count("s3:PutObject") - before == (1 if replaced else 0)
    assert not list(kit.release.folder.glob("*.object"))


def test_an_imported_image_is_known_by_its_record(importing: Kit) -> None:
    """Accounts that import may not read snapshots."""
    kit = importing
    for action in READING:
        kit.ec2.faults.deny(action)
    made = kit.upload(**IMPORT)
    with kit.open(**IMPORT) as cloud:
        assert cloud.find(kit.booted.image, kit.release) == made
    assert reads(kit) == 0


# ---- damaged records


@pytest.mark.parametrize("text", ["", "null", "[]", '{"format": 1}', '{"format": 2}', "\xff"])
def test_a_damaged_record_counts_as_none(kit: Kit, text: str) -> None:
    made = kit.upload()
    with kit.open() as cloud:
        cloud.find(kit.booted.image, kit.release)
    for record in (*kit.release.folder.glob("*.made"), *kit.release.folder.glob("*.blocks")):
        record.write_text(text, "latin-1")
    (kit.release.folder / "virginia.us-east-1.made").write_text(text, "latin-1")
    with kit.open() as cloud:
        assert cloud.find(kit.booted.image, kit.release) == made
    assert kit.ec2.server.count("ebs:ListSnapshotBlocks") == 1


def test_a_record_of_other_content_proves_nothing(kit: Kit, tmp_path: Path) -> None:
    made = kit.upload()
    move(kit)
    said = {"format": 1, "content": "0" * 64, "ids": [made.image_id]}
    file = kit.release.folder / "virginia.us-east-1.made"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(said))
    with kit.open() as cloud:
        cloud.find(kit.booted.image, kit.release)
    assert reads(kit) > 0
