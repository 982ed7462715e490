"""What only EC2 has: options, names, registration, copies, sharing, retirement, leftovers."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ec2_kit import ACCOUNT, DATA, SECOND, Kit
from ec2_state import OTHER_ACCOUNT_ID
from harness import make_release
from test_contract import make_appliance

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.sandbox_site import resolve_sandbox_settings
from pipeline.clouds.ec2.settings import SITE_SCHEMA, resolve_settings
from pipeline.errors import (
    DefinitionError,
    ImageNameError,
    InUseError,
    NameTakenError,
    PhantomError,
    RightsError,
    UploadError,
    UsageError,
    VolumeTooSmallError,
)
from pipeline.model import GIB, MIB, Publication, Sha256, Site

KEY = "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
ORGANISATION = "arn:aws:organizations::111122223333:organization/o-abcdefghij"
UNIT = "arn:aws:organizations::111122223333:ou/o-abcdefghij/ou-ab12-cdefgh34"
SITE = Site(name="virginia", cloud="ec2", options={"region": "us-east-1"}, where="sites.yaml:3:3")


PUBLICATION = Publication(
    site="virginia",
    cloud="ec2",
    image_id="ami-1",
    location="ec2://111122223333/us-east-1/ami-1/snap-1",
    sha256=Sha256(""),
    published_at="2026-01-01T00:00:00Z",
    sandbox=False,
)


def make_cloud(**options: object) -> Ec2:
    return Ec2(replace(SITE, options={"region": "us-east-1", **options}))


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"region": "eu-central-1"},
        {"region": "us-gov-west-1", "method": "import", "bucket": "example-images"},
        {"region": "us-east-1", "share_with": ["all", ACCOUNT, ORGANISATION, UNIT]},
        {"region": "us-east-1", "deprecate_after": "3650d", "volume_size": "8GiB"},
        {"region": "us-east-1", "encrypt": True, "kms_key": KEY, "tags": {"team": "images"}},
        {"region": "us-east-1", "endpoint": "https://ec2.example.org:8773", "ca_bundle": "ca.pem"},
    ],
)
def test_good_options(options: dict[str, object]) -> None:
    jsonschema.Draft202012Validator(SITE_SCHEMA).validate(options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"region": "Frankfurt"},
        {"region": "us-east-1", "volume_size": "8GB"},
        {"region": "us-east-1", "volume_size": "0GiB"},
        {"region": "us-east-1", "deprecate_after": "3651d"},
        {"region": "us-east-1", "deprecate_after": "0d"},
        {"region": "us-east-1", "deprecate_after": "2y"},
        {"region": "us-east-1", "share_with": ["everybody"]},
        {"region": "us-east-1", "share_with": ["12345678901"]},
        {"region": "us-east-1", "share_with": [111122223333]},
        {"region": "us-east-1", "tags": {"aws:x": "y"}},
        {"region": "us-east-1", "tags": {"AWS:x": "y"}},
        {"region": "us-east-1", "tags": {"phantom:sha256": "y"}},
        {"region": "us-east-1", "tags": {"x": "y" * 257}},
        {"region": "us-east-1", "tags": {str(each): "y" for each in range(44)}},
        {"region": "us-east-1", "kms_key": "alias/images"},
        {"region": "us-east-1", "endpoint": "ec2.example.org"},
        {"region": "us-east-1", "copy_to": ["eu-west-1", "eu-west-1"]},
        {"region": "us-east-1", "access_key": "AKIA"},
    ],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SITE_SCHEMA).validate(options)


@pytest.mark.parametrize(
    ("options", "what", "todo"),
    [
        (
            {"method": "import"},
            "method import needs a bucket",
            "name an S3 bucket of the region with `bucket`",
        ),
        (
            {"volume_size": "65537GiB"},
            "volumes of type gp3 have at most 65536GiB",
            "make `volume_size` smaller, or take another `volume_type`",
        ),
        (
            {"volume_size": "1025GiB", "volume_type": "standard"},
            "volumes of type standard have at most 1024GiB",
            "make `volume_size` smaller, or take another `volume_type`",
        ),
        (
            {"copy_to": ["eu-west-1", "us-east-1"]},
            "copy_to holds the site's own region, us-east-1",
            "leave it out there: images are made in it",
        ),
        (
            {"kms_key": KEY},
            "kms_key is given, and encrypt is not",
            "add `encrypt: true`, or leave the key out",
        ),
        (
            {"encrypt": True, "share_with": ["all"]},
            "an encrypted image cannot be shared with all",
            "leave out `encrypt`, or name accounts in `share_with`",
        ),
        (
            {"encrypt": True, "share_with": [ACCOUNT]},
            "an image that is encrypted with the account's own key for EBS cannot be shared",
            "name a key with `kms_key` that those of `share_with` may use, or leave out one",
        ),
        (
            {"encrypt": True, "kms_key": KEY.replace("us-east-1", "eu-west-1")},
            "kms_key is a key of eu-west-1, and the site's region is us-east-1",
            "name a key of the site's region",
        ),
        (
            {"encrypt": True, "kms_key": KEY.replace("mrk-", ""), "copy_to": ["eu-west-1"]},
            "kms_key is a key of one region, and copy_to names others",
            "name a multi-region key (mrk-...) that has a replica in each region",
        ),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], what: str, todo: str) -> None:
    cloud = make_cloud(**options)
    with pytest.raises(DefinitionError) as caught:
        cloud.check_size(GIB)  # at plan time, before a build
    assert str(caught.value) == f"sites.yaml:3:3: site virginia: {what}\n  do: {todo}"
    with pytest.raises(DefinitionError), cloud.open(Path()):
        pass


def test_ca_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        resolve_settings(make_cloud(ca_bundle=str(tmp_path / "none.pem")).site)
    assert str(caught.value) == (
        f"sites.yaml:3:3: ca_bundle of site virginia names {tmp_path}/none.pem, which is no file\n"
        "  do: name the file that holds the endpoint's certificates"
    )


def test_disk_larger_than_the_volume() -> None:
    cloud = make_cloud(volume_size="8GiB")
    cloud.check_size(8 * GIB)
    with pytest.raises(VolumeTooSmallError) as caught:
        cloud.check_size(8 * GIB + 1)
    assert str(caught.value) == (
        "sites.yaml:3:3: the disk has 8 GiB, and the volumes of site virginia only 8 GiB\n"
        "  do: raise `volume_size` of the site to 9GiB or leave it out, or make `disk_size` of the "
        "appliance smaller"
    )
    assert caught.value.exit_code == 41


def test_sandbox_needs_no_options_and_takes_no_endpoint() -> None:
    settings = resolve_sandbox_settings(
        replace(SITE, options={"endpoint": "https://ec2.amazonaws.com"}, sandbox=True)
    )
    assert (settings.region, settings.endpoint, settings.method) == (
        "us-east-1",
        None,
        "ebs-direct",
    )


# ---- names, hardware, launch data


@pytest.mark.parametrize("name", ["{name}-{version}", "a(b)[c] d./-'@_9", "x" * 128])
def test_good_names(name: str) -> None:
    assert make_cloud().image_name(make_appliance("ec2", name), "4f2a9c01")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ab", "it has 2 characters, and must have from 3 to 128"),
        ("x" * 129, "it has 129 characters, and must have from 3 to 128"),
        ("grüße", "it may hold letters, digits, spaces and ()[]./-'@_ only"),
        ("a+b:c", "it may hold letters, digits, spaces and ()[]./-'@_ only"),
        ("abc\n", "it may hold letters, digits, spaces and ()[]./-'@_ only"),
    ],
)
def test_bad_names(name: str, wrong: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        make_cloud().image_name(make_appliance("ec2", name), "4f2a9c01")
    assert str(caught.value) == (
        f"images/hello-phantom/appliance.yaml: EC2 refuses the image name {name!r}: {wrong}\n"
        "  do: change `clouds: ec2: image_name:` (or name and version) of the appliance"
    )


@pytest.mark.parametrize("template", ["{name:{foo}}", "{name:{}}", "{name:{0}}", "{name", "{x}"])
def test_templates_that_cannot_be_filled_in(template: str) -> None:
    with pytest.raises(ImageNameError) as caught:
        make_cloud().image_name(make_appliance("ec2", template), "4f2a9c01")
    assert repr(template) in caught.value.what


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (
            {str(each): "x" for each in range(43)},
            "labels and the site's tags are 44 together, and 43 are allowed beside the pipeline's "
            "own",
        ),
        (
            {"k" * 129: "x"},
            f"the label {'k' * 40!r} is too long for a tag (128 characters, its value 256)",
        ),
        ({"aws:x": "y"}, "the label 'aws:x' begins like the tags of Amazon or of the pipeline"),
        (
            {"phantom:build": "y"},
            "the label 'phantom:build' begins like the tags of Amazon or of the pipeline",
        ),
    ],
)
def test_labels_that_cannot_be_tags(labels: dict[str, str], wrong: str) -> None:
    appliance = replace(make_appliance("ec2"), labels=labels)
    with pytest.raises(DefinitionError) as caught:
        make_cloud(tags={"team": "images"}).image_name(appliance, "4f2a9c01")
    assert str(caught.value) == (
        f"images/hello-phantom/appliance.yaml: the labels cannot be tags at site virginia: {wrong}"
        "\n  do: change `labels` of the appliance, or `tags` of the site"
    )


def test_both_firmwares_are_checked_with_tokens_and_a_larger_disk() -> None:
    cloud = make_cloud()
    assert [(each.name, each.firmware) for each in cloud.machines] == [
        ("bios", "bios"),
        ("uefi", "uefi"),
    ]
    for machine in cloud.machines:
        assert (machine.disk_bus, machine.metadata) == ("nvme", "ec2")
        assert machine.metadata_address == "169.254.169.254:80"
        assert machine.spare == GIB
    assert {"nvme", "xen_blkfront"} == set(cloud.hardware.disks)
    assert {"ena", "xen_netfront"} == set(cloud.hardware.networks)
    assert (cloud.disk.layout, cloud.disk.suffix) == ("hybrid", ".raw")


def test_common_only_when_shared_with_all() -> None:
    assert make_cloud(share_with=["all"]).common
    assert not make_cloud(share_with=[ACCOUNT]).common
    assert not make_cloud().common


def test_launch_template_data() -> None:
    data = make_cloud().launch_data(PUBLICATION, "t3.small", b"#!/bin/sh\n\xff")
    assert data == {
        "ImageId": "ami-1",
        "InstanceType": "t3.small",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "UserData": base64.b64encode(b"#!/bin/sh\n\xff").decode(),
    }
    assert "UserData" not in make_cloud().launch_data(PUBLICATION, "t3.small", None)
    most = bytes(range(256)) * 64
    told = make_cloud().launch_data(PUBLICATION, "t3.small", most)["UserData"]
    assert base64.b64decode(str(told)) == most and len(most) == 16_384
    with pytest.raises(ValueError, match="16385 bytes"):
        make_cloud().launch_data(PUBLICATION, "t3.small", bytes(16385))


def test_launch_template_data_is_what_botocore_takes() -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.shape_for("RequestLaunchTemplateData")
    data = make_cloud().launch_data(PUBLICATION, "t3.small", b"x")
    assert not ParamValidator().validate(dict(data), shape).has_errors()


# ---- registration


def test_registered_as_the_facts_say(kit: Kit) -> None:
    made = kit.upload(volume_size="8GiB", tags={"team": "images"})
    (image,) = kit.ec2.server.images()
    (snapshot,) = kit.ec2.server.snapshots()
    assert made.image_id == image.id
    assert made.location == f"ec2://{ACCOUNT}/us-east-1/{image.id}/{snapshot.id}"
    assert made.region == "us-east-1"
    assert (image.architecture, image.virtualization) == ("x86_64", "hvm")
    assert (image.boot_mode, image.imds, image.sriov, image.ena) == (
        "uefi-preferred",
        "v2.0",
        "simple",
        True,
    )
    assert image.tpm is None
    (device,) = image.mappings
    assert (device.device, image.root_device) == ("/dev/xvda", "/dev/xvda")
    assert (device.snapshot_id, device.volume_gib, device.volume_type) == (snapshot.id, 8, "gp3")
    assert device.delete_on_termination is True
    assert snapshot.volume_gib == 1
    expected = {
        "Name": "hello-1.2.0-4f2a9c01",
        "os": "debian",
        "team": "images",
        "phantom:pipeline": "phantom-image",
        "phantom:appliance": "hello-phantom",
        "phantom:version": "1.2.0",
        "phantom:build": "4f2a9c01",
        "phantom:sha256": kit.booted.image.disk_sha256,
        "phantom:site": "virginia",
    }
    assert image.tags == expected
    assert snapshot.tags == expected
    assert kit.ec2.server.compare(snapshot.id, kit.booted.image.file) == []


def test_second_build_sends_only_what_changed(kit: Kit) -> None:
    kit.upload()
    before = kit.ec2.server.count("ebs:PutSnapshotBlock", ok=True)
    changed = kit.make(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    release = make_release(kit.folder, "hello-1.2.1-5f2a9c01")
    with kit.open() as cloud:
        made = cloud.upload(changed, release, kit.progress)
    assert kit.ec2.server.count("ebs:PutSnapshotBlock", ok=True) - before == 1
    snapshot_id = made.location.rsplit("/", 1)[1]
    assert kit.ec2.server.snapshot(snapshot_id).parent_id
    assert kit.ec2.server.compare(snapshot_id, changed.image.file) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda server, snapshot: server.client("ec2").delete_tags(
            Resources=[snapshot.id], Tags=[{"Key": "phantom:pipeline"}]
        ),
        lambda server, snapshot: setattr(snapshot, "encrypted", True),
        lambda server, snapshot: setattr(snapshot, "owner", OTHER_ACCOUNT_ID),
    ],
    ids=["not ours", "encrypted", "another's"],
)
def test_parent_that_must_not_be_one(kit: Kit, spoil: Callable[[Any, Any], object]) -> None:
    kit.upload()
    (snapshot,) = kit.ec2.server.snapshots()
    spoil(kit.ec2.server, snapshot)
    changed = kit.make(DATA[::-1])
    release = make_release(kit.folder, "hello-1.2.1-5f2a9c01")
    with kit.open() as cloud:
        made = cloud.upload(changed, release, kit.progress)
    snapshot_id = made.location.rsplit("/", 1)[1]
    assert kit.ec2.server.snapshot(snapshot_id).parent_id is None
    assert kit.ec2.server.compare(snapshot_id, changed.image.file) == []


def test_completed_snapshot_is_only_registered(kit: Kit) -> None:
    kit.ec2.faults.refuse("ec2:RegisterImage", "InternalFailure", times=1)
    with pytest.raises(PhantomError):
        kit.upload()
    before = kit.ec2.server.count("ebs:PutSnapshotBlock")
    made = kit.upload()
    assert kit.ec2.server.count("ebs:PutSnapshotBlock") == before
    assert kit.ec2.server.count("ebs:StartSnapshot") == 1
    assert len(kit.ec2.server.images()) == 1
    assert made.location.endswith(kit.ec2.server.snapshots()[0].id)


def test_lost_records_are_no_loss(kit: Kit, tmp_path: Path) -> None:
    """On another build host, the tags alone show that the snapshot exists."""
    kit.ec2.faults.deny("ec2:RegisterImage")
    with pytest.raises(PhantomError):
        kit.upload()
    kit.ec2.faults.clear()
    kit.release = dataclasses.replace(kit.release, folder=tmp_path / "elsewhere" / "build")
    kit.upload()
    assert kit.ec2.server.count("ebs:StartSnapshot") == 1
    assert not kit.ec2.server.costs()


def test_same_content_under_another_name_shares_the_snapshot(kit: Kit) -> None:
    first = kit.upload()
    second_release = make_release(kit.folder, "hello-1.3.0-4f2a9c01")
    with kit.open() as cloud:
        second = cloud.upload(kit.booted, second_release, kit.progress)
        assert second.image_id != first.image_id
        assert len(kit.ec2.server.snapshots()) == 1
        cloud.retire(first)
        assert len(kit.ec2.server.snapshots()) == 1
        cloud.retire(second)
    assert not kit.ec2.server.snapshots() and not kit.ec2.server.images()


def test_registration_whose_answer_was_lost_makes_no_second_image(kit: Kit) -> None:
    kit.ec2.faults.reset("ec2:RegisterImage", after=True)
    made = kit.upload()
    assert [each.id for each in kit.ec2.server.images()] == [made.image_id]
    assert kit.ec2.server.count("ec2:RegisterImage") == 2


def test_two_commands_make_one_image(kit: Kit) -> None:
    """Another host registers the image between our look for the name and our registration."""
    other = Kit(kit.ec2, kit.folder)
    other.booted = kit.booted
    other.release = dataclasses.replace(kit.release, folder=kit.folder / "other" / "build")
    kit.ec2.faults.on("ec2:RegisterImage", lambda: other.upload(), times=1)
    made = kit.upload()
    assert [each.id for each in kit.ec2.server.images()] == [made.image_id]
    assert not kit.ec2.server.costs()


def test_snapshot_of_a_lost_race_goes(kit: Kit) -> None:
    """Another host made its own snapshot of the same bytes and took the name first."""
    other = Kit(kit.ec2, kit.folder)
    other.booted = kit.booted
    other.release = dataclasses.replace(kit.release, folder=kit.folder / "other" / "build")

    def lose() -> None:
        (mine,) = kit.ec2.server.snapshots()
        tags = [{"Key": "phantom:sha256"}]  # so that the other host does not find and share it
        kit.ec2.server.client("ec2").delete_tags(Resources=[mine.id], Tags=tags)
        other.upload()

    kit.ec2.faults.on("ec2:RegisterImage", lose, times=1)
    made = kit.upload()
    assert [each.id for each in kit.ec2.server.images()] == [made.image_id]
    assert len(kit.ec2.server.snapshots()) == 1


def test_image_that_is_not_shown_yet_is_waited_for(kit: Kit) -> None:
    """EC2 reports the name as taken before it shows the image."""
    other = Kit(kit.ec2, kit.folder)
    other.booted = kit.booted
    other.release = dataclasses.replace(kit.release, folder=kit.folder / "other" / "build")
    kit.ec2.faults.refuse("ec2:RegisterImage", "InvalidAMIName.Duplicate")
    kit.ec2.faults.on("ec2:DescribeImages", lambda: other.upload(), skip=3)
    made = kit.upload()
    assert [each.id for each in kit.ec2.server.images()] == [made.image_id]


# ---- two sites that share an account


@contextmanager
def open_as(kit: Kit, name: str, **options: Any) -> Iterator[Ec2]:
    site = replace(kit.ec2.make_site(**options), name=name)
    cloud = Ec2(site, environ=kit.ec2.environ, pause=lambda _: None)
    with cloud.open(kit.folder / name):
        yield cloud


def test_another_sites_image_is_not_taken_over(kit: Kit) -> None:
    made = kit.upload()
    with open_as(kit, "public", share_with=["all"]) as cloud:
        assert cloud.find(kit.booted.image, kit.release) is None
        with pytest.raises(NameTakenError) as caught:
            cloud.upload(kit.booted, kit.release, kit.progress)
        with pytest.raises(UsageError) as refused:
            cloud.retire(made)
    assert str(caught.value) == (
        f"site public: {made.image_id} in us-east-1 has the name 'hello-1.2.0-4f2a9c01' already, "
        "and is of site virginia\n"
        "  do: put something that differs into `image_name` (`clouds: ec2: image_name:`) of the "
        "appliances, or make virginia and public one site"
    )
    assert "its tags say that it is of site virginia" in refused.value.what
    (image,) = kit.ec2.server.images()
    assert image.launch_permissions == [] and image.tags["phantom:site"] == "virginia"
    assert len(kit.ec2.server.snapshots()) == 1


def test_another_sites_image_in_a_further_region_is_not_taken_over(kit: Kit) -> None:
    with open_as(kit, "ireland", region="eu-west-1") as cloud:
        cloud.upload(kit.booted, kit.release, kit.progress)
    with pytest.raises(NameTakenError) as caught:
        kit.publish(copy_to=["eu-west-1"], share_with=[SECOND])
    assert "in eu-west-1 has the name" in caught.value.what
    assert caught.value.what.endswith("is of site ireland")
    (theirs,) = kit.ec2.server.images("eu-west-1")
    assert theirs.launch_permissions == [] and theirs.tags["phantom:site"] == "ireland"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"encrypt": True}, "unencrypted"),
        ({"volume_type": "gp2"}, "with a volume of type gp3"),
        ({"volume_size": "9GiB"}, "with a volume of 8 GiB"),
    ],
)
def test_other_options_of_the_volume_are_told(
    kit: Kit, options: dict[str, Any], wrong: str
) -> None:
    made = kit.upload(volume_size="8GiB")
    with kit.open(**{"volume_size": "8GiB", **options}) as cloud:
        assert cloud.find(kit.booted.image, kit.release) is None
    with pytest.raises(NameTakenError) as caught:
        kit.upload(**{"volume_size": "8GiB", **options})
    assert str(caught.value) == (
        f"site virginia: {made.image_id} in us-east-1 has the same bytes, and was made {wrong}, "
        "which site virginia does not ask for any more\n"
        "  do: retire it first (`phantom-image retire`), or give the site its old options back"
    )


def test_another_key_is_told(kit: Kit) -> None:
    regions = ["eu-west-1"]
    here, there = kit.publish(encrypt=True, kms_key=KEY, copy_to=regions)
    assert kit.publish(encrypt=True, kms_key=KEY, copy_to=regions) == (here, there)
    with pytest.raises(NameTakenError) as caught:
        kit.publish(encrypt=True, kms_key=KEY.replace("1234abcd", "5678abcd"), copy_to=regions)
    assert f"was made with the key {KEY}" in caught.value.what


def test_unencrypted_copy_is_told(kit: Kit) -> None:
    _, there = kit.publish(encrypt=True, copy_to=["eu-west-1"])
    kit.ec2.server.snapshot(there.location.rsplit("/", 1)[1]).encrypted = False
    with pytest.raises(NameTakenError) as caught:
        kit.publish(encrypt=True, copy_to=["eu-west-1"])
    assert "in eu-west-1 has the same bytes, and was made unencrypted" in caught.value.what


def test_encryption_by_default_is_no_other_option(kit: Kit) -> None:
    made = kit.upload()
    for each in kit.ec2.server.snapshots():
        each.encrypted = True
    assert kit.publish() == (made,)
    assert any("is encrypted, as the account's default may be" in e for e in kit.progress.lines)


def test_disabled_image_is_told(kit: Kit) -> None:
    made = kit.upload()
    kit.ec2.server.image(made.image_id).state = "disabled"
    with pytest.raises(UploadError) as caught:
        kit.publish()
    assert "is disabled" in caught.value.what and "retire it" in (caught.value.todo or "")


def test_name_taken_by_an_image_of_others(kit: Kit) -> None:
    ebs = kit.ec2.server.client("ebs")
    snapshot = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    kit.ec2.server.snapshot(snapshot).state = "completed"
    theirs = kit.ec2.server.client("ec2").register_image(
        Name=kit.release.name,
        Architecture="x86_64",
        VirtualizationType="hvm",
        RootDeviceName="/dev/xvda",
        BlockDeviceMappings=[
            {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}},
        ],
    )["ImageId"]
    with pytest.raises(NameTakenError) as caught:
        kit.upload()
    assert str(caught.value) == (
        f"site virginia: {theirs} in us-east-1 has the name 'hello-1.2.0-4f2a9c01' already, and is "
        "not of this pipeline\n"
        "  do: rename or deregister it, raise the appliance's version, or put {build} into "
        "`clouds: ec2: image_name:`"
    )
    assert caught.value.exit_code == 38
    assert [each.id for each in kit.ec2.server.snapshots()] == [snapshot]


def test_name_of_an_image_that_others_share_with_us_is_free(kit: Kit) -> None:
    kit.ec2.server.other_account_image(kit.release.name, public=True)
    assert kit.upload().image_id


def test_encryption_with_a_key(kit: Kit) -> None:
    published = kit.publish(encrypt=True, kms_key=KEY, copy_to=["eu-west-1"])
    here, there = (kit.ec2.server.snapshot(each.location.rsplit("/", 1)[1]) for each in published)
    assert (here.encrypted, here.kms_key) == (True, KEY)
    assert (there.encrypted, there.kms_key) == (True, KEY.replace("us-east-1", "eu-west-1"))


# ---- copies, sharing, deprecation


def test_copies_in_further_regions(kit: Kit) -> None:
    kit.ec2.faults.complete_after(3)
    regions = ["eu-west-1", "eu-central-1"]
    published = kit.publish(copy_to=regions)
    assert [each.region for each in published] == ["us-east-1", "eu-west-1", "eu-central-1"]
    for each in published:
        image = kit.ec2.server.image(each.image_id)
        assert (image.region, image.name) == (each.region, kit.release.name)
        snapshot = kit.ec2.server.snapshot(each.location.rsplit("/", 1)[1])
        assert snapshot.id in image.snapshot_ids
        assert image.tags == snapshot.tags
        assert image.tags["phantom:sha256"] == kit.booted.image.disk_sha256
    assert kit.publish(copy_to=regions) == published
    assert kit.ec2.server.count("ec2:CopyImage") == 2


def test_copy_whose_answer_was_lost_is_found(kit: Kit) -> None:
    kit.ec2.faults.reset("ec2:CopyImage", after=True)
    kit.publish(copy_to=["eu-west-1"])
    assert len(kit.ec2.server.images("eu-west-1")) == 1


def test_copy_that_is_removed_again_and_again(kit: Kit) -> None:
    for _ in range(5):
        published = kit.publish(copy_to=["eu-west-1"])
        assert [e.id for e in kit.ec2.server.images("eu-west-1")] == [published[1].image_id]
        with kit.open(copy_to=["eu-west-1"]) as cloud:
            cloud.retire(published[1])
    assert not list(kit.release.folder.glob("*.copy"))


def test_copy_that_was_removed_is_made_again(kit: Kit) -> None:
    first = kit.publish(copy_to=["eu-west-1"])
    with kit.open(copy_to=["eu-west-1"]) as cloud:
        cloud.retire(first[1])
    second = kit.publish(copy_to=["eu-west-1"])
    assert second[0] == first[0]
    assert second[1].image_id != first[1].image_id
    assert [each.id for each in kit.ec2.server.images("eu-west-1")] == [second[1].image_id]


def test_a_region_that_fails_does_not_stop_the_others(kit: Kit) -> None:
    kit.ec2.faults.deny("ec2:CopyImage", region="eu-west-1")
    with pytest.raises(PhantomError) as caught:
        kit.publish(copy_to=["eu-west-1", "eu-central-1"])
    assert "ec2:CopyImage in eu-west-1" in caught.value.what
    (copy,) = kit.ec2.server.images("eu-central-1")
    (here,) = kit.ec2.server.images("us-east-1")
    assert [each.image_id for each in caught.value.published] == [here.id, copy.id]
    kit.ec2.faults.clear()
    assert len(kit.publish(copy_to=["eu-west-1", "eu-central-1"])) == 3
    assert len(kit.ec2.server.images("eu-central-1")) == 1


def test_all_regions_that_fail_are_told(kit: Kit) -> None:
    kit.ec2.faults.deny("ec2:CopyImage", region="eu-west-1")
    kit.ec2.faults.deny("ec2:ModifyImageAttribute", region="eu-central-1")
    with pytest.raises(PhantomError) as caught:
        kit.publish(copy_to=["eu-west-1", "eu-central-1"], share_with=[SECOND])
    assert "ec2:CopyImage in eu-west-1" in caught.value.what
    assert "also: site virginia: the account may not call ec2:ModifyImageAttribute in" in (
        caught.value.detail or ""
    )
    # The copy exists, although it is not shared.
    assert [each.region for each in caught.value.published] == ["us-east-1", "eu-central-1"]


def test_name_taken_in_a_further_region(kit: Kit) -> None:
    with kit.open(region="eu-west-1") as cloud:
        cloud.upload(kit.make(DATA[::-1]), kit.release, kit.progress)
    with pytest.raises(NameTakenError) as caught:
        kit.publish(copy_to=["eu-west-1"])
    assert "in eu-west-1 has the name" in caught.value.what


def test_sharing_with_accounts_and_organisations(kit: Kit) -> None:
    published = kit.publish(
        share_with=[SECOND, ORGANISATION, UNIT], copy_to=["eu-west-1"], deprecate_after="30d"
    )
    for each in published:
        image = kit.ec2.server.image(each.image_id)
        assert image.launch_permissions == [
            {"UserId": SECOND},
            {"OrganizationArn": ORGANISATION},
            {"OrganizationalUnitArn": UNIT},
        ]
        assert kit.ec2.server.snapshot(image.snapshot_ids[0]).shared_with == {SECOND}
        assert image.deprecation is not None
        assert abs(image.deprecation - image.created - 30 * 86400) <= 60
    again = kit.publish(
        share_with=[SECOND, ORGANISATION, UNIT], copy_to=["eu-west-1"], deprecate_after="30d"
    )
    assert again == published
    assert kit.ec2.server.count("ec2:EnableImageDeprecation") == 2


def test_deprecation_that_has_passed(kit: Kit) -> None:
    """Publishes an image again after its deprecation date: EC2 refuses a time in the past."""
    made = kit.upload()
    kit.ec2.server.clock.advance(40 * 86400)
    now = datetime.fromtimestamp(kit.ec2.server.clock.now(), UTC)
    cloud = Ec2(
        kit.ec2.make_site(deprecate_after="30d"),
        environ=kit.ec2.environ,
        clock=lambda: now,
        pause=lambda _: None,
    )
    image = kit.ec2.server.image(made.image_id)
    with cloud.open(kit.folder):
        cloud.publish(made, kit.release, kit.progress)
        assert image.deprecation is not None
        assert 0 < image.deprecation - now.timestamp() <= 300
        kit.ec2.server.clock.advance(600)
        now += timedelta(seconds=600)
        cloud.publish(made, kit.release, kit.progress)
    assert kit.ec2.server.count("ec2:EnableImageDeprecation") == 1


def test_sharing_with_all(kit: Kit) -> None:
    (made,) = kit.publish(share_with=["all"])
    image = kit.ec2.server.image(made.image_id)
    assert image.launch_permissions == [{"Group": "all"}]
    assert kit.ec2.server.snapshot(image.snapshot_ids[0]).shared_with == {"all"}


def test_image_that_fails_is_told(kit: Kit) -> None:
    kit.ec2.faults.complete_error()
    with pytest.raises(UploadError) as caught:
        kit.upload()
    assert "snap-" in caught.value.what and caught.value.where == "site virginia"
    assert kit.upload().image_id
    assert not kit.ec2.server.costs()


# ---- retirement, listing


def test_retire_takes_image_and_snapshot_in_its_region_only(kit: Kit) -> None:
    here, there = kit.publish(copy_to=["eu-west-1"])
    with kit.open(copy_to=["eu-west-1"]) as cloud:
        cloud.retire(there)
        assert [each.location for each in cloud.list()] == [here.location]
        assert not kit.ec2.server.snapshots("eu-west-1")
        cloud.retire(here)
        cloud.retire(here)
        assert cloud.list() == []
    assert not kit.ec2.server.snapshots()


def test_retire_goes_on_where_it_was_killed(kit: Kit) -> None:
    made = kit.upload()
    kit.ec2.server.client("ec2").deregister_image(ImageId=made.image_id)
    assert kit.ec2.server.snapshots()
    with kit.open() as cloud:
        cloud.retire(made)
    assert not kit.ec2.server.snapshots()


@pytest.mark.parametrize("fallback", [False, True])
def test_retire_of_what_is_in_use(kit: Kit, fallback: bool) -> None:
    made = kit.upload()
    arn = kit.ec2.server.run_instance(made.image_id)
    if fallback:
        kit.ec2.faults.refuse("ec2:DescribeImageReferences", "InvalidAction", times=None)
    user = arn.rpartition("/")[2] if fallback else arn
    with kit.open() as cloud, pytest.raises(InUseError) as caught:
        cloud.retire(made)
    assert str(caught.value) == (
        f"site virginia: {made.image_id} in us-east-1 is used by {user}\n"
        "  do: let them use another image, or end them, then run the same command again"
    )
    assert caught.value.exit_code == 42
    assert len(kit.ec2.server.images()) == len(kit.ec2.server.snapshots()) == 1


def test_launch_templates_that_cannot_be_seen_stop_a_retirement(kit: Kit) -> None:
    made = kit.upload()
    kit.ec2.faults.deny("ec2:DescribeLaunchTemplateVersions")
    with kit.open() as cloud, pytest.raises(RightsError):
        cloud.retire(made)
    assert len(kit.ec2.server.images()) == len(kit.ec2.server.snapshots()) == 1


def test_retire_of_a_protected_image(kit: Kit) -> None:
    made = kit.upload()
    kit.ec2.server.client("ec2").enable_image_deregistration_protection(ImageId=made.image_id)
    with kit.open() as cloud, pytest.raises(InUseError) as caught:
        cloud.retire(made)
    assert "protected" in caught.value.what and "protection" in (caught.value.todo or "")


@pytest.mark.parametrize("what", ["image", "snapshot"])
def test_retire_of_what_is_not_ours(kit: Kit, what: str) -> None:
    made = kit.upload()
    described = made.image_id if what == "image" else made.location.rsplit("/", 1)[1]
    tags = [{"Key": "phantom:pipeline"}]
    kit.ec2.server.client("ec2").delete_tags(Resources=[described], Tags=tags)
    with kit.open() as cloud, pytest.raises(UsageError) as caught:
        cloud.retire(made)
    assert str(caught.value) == (
        f"site virginia: {made.location} is no image of site virginia: its tags do not say that we "
        "made it\n"
        "  do: name a site and account that the publication belongs to"
    )
    assert len(kit.ec2.server.images()) == len(kit.ec2.server.snapshots()) == 1


@pytest.mark.parametrize(
    "location",
    [
        "ec2://999999999999/us-east-1/{image}/{snapshot}",
        "ec2://111122223333/us-east-1/{image}",
        "cumulus://a/b/c",
        "ec2://111122223333/us-east-1/ami-0123/{snapshot}",
    ],
)
def test_retire_of_another_location(kit: Kit, location: str) -> None:
    made = kit.upload()
    snapshot = made.location.rsplit("/", 1)[1]
    bad = replace(made, location=location.format(image=made.image_id, snapshot=snapshot))
    with kit.open() as cloud, pytest.raises(UsageError):
        cloud.retire(bad)
    assert len(kit.ec2.server.images()) == 1


def test_list_has_our_sites_images_only(kit: Kit) -> None:
    made = kit.upload()
    other = Ec2(
        replace(kit.ec2.make_site(), name="another"),
        environ=kit.ec2.environ,
        pause=lambda _: None,
    )
    with other.open(kit.folder):
        assert other.list() == []
    with kit.open() as cloud:
        (listed,) = cloud.list()
    assert listed == made


def test_pages_are_all_read(kit: Kit) -> None:
    kit.ec2.server.set_page_limit(5)
    with kit.open() as cloud:
        for number in range(7):
            release = make_release(kit.folder, f"hello-{number}")
            cloud.upload(kit.booted, release, kit.progress)
        assert len(cloud.list()) == 7


# ---- leftovers


def test_leftovers_are_found_and_removed(kit: Kit) -> None:
    kit.publish(copy_to=["eu-west-1"])
    tags = [
        {"Key": "phantom:pipeline", "Value": "phantom-image"},
        {"Key": "phantom:site", "Value": "virginia"},
    ]
    pending = kit.ec2.server.client("ebs").start_snapshot(VolumeSize=1, Tags=tags)["SnapshotId"]
    foreign = kit.ec2.server.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
    elsewhere = kit.ec2.server.client("ebs", "eu-west-1")
    unused = elsewhere.start_snapshot(VolumeSize=1, Tags=tags)["SnapshotId"]
    elsewhere.complete_snapshot(SnapshotId=unused, ChangedBlocksCount=0)
    kit.ec2.server.snapshot(unused).state = "completed"
    with kit.open(copy_to=["eu-west-1"]) as cloud:
        found = cloud.find_leftovers()
        assert [(each.kind, each.id, each.region) for each in found] == [
            ("pending snapshot", pending, "us-east-1"),
            ("unused snapshot", unused, "eu-west-1"),
        ]
        assert all(each.since.endswith("Z") and len(each.since) == 20 for each in found)
        assert all(each.reason and each.site == "virginia" for each in found)
        for each in found:
            cloud.remove_leftover(each)
            cloud.remove_leftover(each)
        assert cloud.find_leftovers() == []
        with pytest.raises(UsageError):
            cloud.remove_leftover(replace(found[0], id=foreign))
        used = kit.ec2.server.images()[0].snapshot_ids[0]
        with pytest.raises(UsageError):
            cloud.remove_leftover(replace(found[1], id=used, region="us-east-1"))
    assert foreign in kit.ec2.server.pending_snapshots()
    assert len(kit.ec2.server.images()) == 2


def test_copy_that_failed_is_a_leftover(kit: Kit) -> None:
    kit.upload()
    kit.ec2.faults.complete_error()
    with pytest.raises(PhantomError) as caught:
        kit.publish(copy_to=["eu-west-1"])
    assert "eu-west-1" in caught.value.what
    with kit.open(copy_to=["eu-west-1"]) as cloud:
        for each in cloud.find_leftovers():
            cloud.remove_leftover(each)
    assert not kit.ec2.server.images("eu-west-1") and not kit.ec2.server.snapshots("eu-west-1")
    assert len(kit.publish(copy_to=["eu-west-1"])) == 2


def test_copy_that_failed_is_made_again(kit: Kit) -> None:
    kit.upload()
    kit.ec2.faults.complete_error(2)
    for _ in range(2):
        with pytest.raises(PhantomError):
            kit.publish(copy_to=["eu-west-1"])
    published = kit.publish(copy_to=["eu-west-1"])
    assert [each.id for each in kit.ec2.server.images("eu-west-1")] == [published[1].image_id]
    assert not kit.ec2.server.costs()


def test_a_size_in_whole_mib_is_enough_for_any_disk(kit: Kit) -> None:
    assert kit.booted.image.disk_bytes % MIB
    made = kit.upload()
    assert kit.ec2.server.image(made.image_id).mappings[0].volume_gib == 1


def test_no_thread_is_left(kit: Kit) -> None:
    before = threading.active_count()
    kit.publish(copy_to=["eu-west-1"])
    # The cloud joins its threads; the server's own threads end with their connections.
    names = [each.name for each in threading.enumerate() if "ThreadPoolExecutor" in each.name]
    assert not names and before > 0
