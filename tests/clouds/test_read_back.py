"""What a site holds is read back, whole, and compared with the image of the manifest."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from ec2_kit import DATA, Kit
from ec2_state import BLOCK_BYTES
from harness import NimbusHarness, Watched, make_booted, make_release
from test_ec2_proof import forge

from pipeline.attestations.verification import check_published, published_at
from pipeline.clouds.held import Held
from pipeline.errors import GoneError, RightsError, TamperedError, UsageError
from pipeline.model import BootedImage, Publication

ODD = os.urandom(BLOCK_BYTES + 100) + bytes(3 * BLOCK_BYTES) + b"end" + bytes(2 * BLOCK_BYTES)


def told_of(booted: BootedImage) -> dict[str, Any]:
    """What a manifest says of an image."""
    image = booted.image
    return {
        "site": "virginia",
        "sha256": image.sha256,
        "disk_sha256": image.disk_sha256,
        "disk_bytes": image.disk_bytes,
    }


def verify(kit: Kit, published: Publication, booted: BootedImage) -> str:
    with kit.open() as cloud:
        return check_published(cloud, published, told_of(booted), kit.progress)


@pytest.mark.parametrize("data", [DATA, ODD, bytes(BLOCK_BYTES + 1), b"x"])
def test_a_snapshot_that_holds_the_disk(kit: Kit, data: bytes) -> None:
    kit.booted = kit.make(data)
    published, *_ = kit.publish()
    digest = hashlib.sha256(data).hexdigest()
    said = verify(kit, published, kit.booted)
    assert said == f"every block read back: sha256 {digest}"


def test_a_copy_in_another_region(kit: Kit) -> None:
    home, copy = kit.publish(copy_to=["eu-west-1"])
    assert copy.region == "eu-west-1"
    assert verify(kit, copy, kit.booted) == verify(kit, home, kit.booted)


@pytest.mark.parametrize(
    "other",
    [
        DATA[:-1] + bytes([DATA[-1] ^ 1]),
        DATA + os.urandom(BLOCK_BYTES),
        DATA[:BLOCK_BYTES],
        DATA[BLOCK_BYTES:],
    ],
    ids=["one bit", "a block more", "blocks less", "moved"],
)
def test_another_disk_with_our_tags(kit: Kit, other: bytes) -> None:
    forged = forge(kit, other)
    held = hashlib.sha256(other + bytes(max(0, len(DATA) - len(other)))).hexdigest()
    wanted = kit.booted.image.disk_sha256
    with pytest.raises(TamperedError) as caught:
        verify(kit, forged, kit.booted)
    assert str(caught.value) == (
        f"site virginia: what it has as {forged.image_id} is not the manifest's image: its SHA-256 "
        f"is {held} in place of {wanted}\n"
        "  do: start no machine of it; retire it, and see who may write there"
    )


def test_an_image_that_was_deregistered(kit: Kit) -> None:
    published, *_ = kit.publish()
    with kit.open() as cloud:
        cloud.retire(published)
    with pytest.raises(GoneError) as caught:
        verify(kit, published, kit.booted)
    assert str(caught.value) == (
        f"site virginia: the site no longer has {published.image_id}\n"
        "  do: `phantom-image publish --build` sends the build again"
    )


def test_an_account_that_may_not_read_snapshots(kit: Kit) -> None:
    published, *_ = kit.publish()
    kit.ec2.faults.deny("ebs:ListSnapshotBlocks")
    with pytest.raises(RightsError, match="ebs:ListSnapshotBlocks"):
        verify(kit, published, kit.booted)


def test_the_tag_is_the_digest_that_is_proven(kit: Kit) -> None:
    published, *_ = kit.publish()
    client = kit.ec2.server.client("ec2", "us-east-1")
    (image,) = client.describe_images(ImageIds=[published.image_id])["Images"]
    snapshot_id = published.location.rsplit("/", 1)[1]
    (snapshot,) = client.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    for described in (image, snapshot):
        tags = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
        assert tags["phantom:sha256"] == kit.booted.image.disk_sha256


# ---- Nimbus


def test_an_object_of_cumulus(nimbus: NimbusHarness, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    cloud, release = nimbus.make_nimbus(), make_release(tmp_path, "image.gz")
    booted, progress = make_booted(tmp_path / "image", data, cloud.disk), Watched()
    told = told_of(booted)
    with cloud.open(tmp_path):
        (made,) = cloud.publish(cloud.upload(booted, release, progress), release, progress)
        assert cloud.read_back(made, 0, progress) == Held(sha256=booted.image.sha256, of_disk=False)
        said = check_published(cloud, made, told, progress)
        assert said == f"every byte read back: sha256 {booted.image.sha256}"
        key = made.location.split("/Repo/")[1]
        cloud._opened.put_text(key, data[:-1], public=False)
        with pytest.raises(TamperedError, match=r"^site hotel: what it has as image\.gz is not"):
            check_published(cloud, made, told, progress)
        cloud.retire(made)
        with pytest.raises(GoneError, match=r"^site hotel: the site no longer has image\.gz\n"):
            check_published(cloud, made, told, progress)


def test_a_build_that_is_not_at_the_site(kit: Kit) -> None:
    published, *_ = kit.publish()
    manifest = {"images": [told_of(kit.booted)], "publications": [asdict(published)]}
    assert list(published_at(manifest, "virginia")) == [(published, told_of(kit.booted))]
    with pytest.raises(UsageError) as caught:
        list(published_at(manifest, "hotel"))
    assert str(caught.value) == (
        "this build is not published at site 'hotel'\n  do: it is at virginia"
    )
    nowhere = {**manifest, "publications": [asdict(replace(published, site="sierra"))]}
    with pytest.raises(UsageError, match="it is at sierra"):
        list(published_at(nowhere, "virginia"))
