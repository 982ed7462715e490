"""The server that stands in for Amazon is as strict as docs/facts/ec2.md: one test per fact."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError
from ec2_server import Ec2Server
from ec2_state import BLOCK_BYTES, OTHER_ACCOUNT_ID, Account

A, B, ZEROS = b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES, bytes(BLOCK_BYTES)
REGION, FAR_REGION = "us-east-1", "eu-west-1"
KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd"


@pytest.fixture
def server() -> Iterator[Ec2Server]:
    with Ec2Server() as made:
        yield made


@pytest.fixture
def ebs(server: Ec2Server) -> Any:
    return server.client("ebs")


@pytest.fixture
def ec2(server: Ec2Server) -> Any:
    return server.client("ec2")


def refused(call: Callable[..., Any], **arguments: Any) -> tuple[str, int, str | None]:
    """The code, HTTP status and reason of the refusal that the call must end in."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer: Any = caught.value.response
    return (
        answer["Error"]["Code"],
        answer["ResponseMetadata"]["HTTPStatusCode"],
        answer.get("Reason"),
    )


def make_checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def put(ebs: Any, snapshot_id: str, index: int, data: bytes, **changed: Any) -> None:
    arguments = {
        "SnapshotId": snapshot_id,
        "BlockIndex": index,
        "BlockData": data,
        "DataLength": len(data),
        "Checksum": make_checksum(data),
        "ChecksumAlgorithm": "SHA256",
    }
    ebs.put_snapshot_block(**(arguments | changed))


def wait(server: Ec2Server, snapshot_id: str) -> None:
    ec2 = server.client("ec2", server.snapshot(snapshot_id).region)
    while ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"] == "pending":
        pass


def make_snapshot(
    server: Ec2Server,
    blocks: Mapping[int, bytes] | None = None,
    *,
    region: str = REGION,
    size: int = 1,
    **arguments: Any,
) -> str:
    """Makes a completed snapshot."""
    ebs = server.client("ebs", region)
    snapshot_id: str = ebs.start_snapshot(VolumeSize=size, **arguments)["SnapshotId"]
    for index, data in (blocks or {}).items():
        put(ebs, snapshot_id, index, data)
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=len(blocks or {}))
    wait(server, snapshot_id)
    return snapshot_id


def describe_registration(snapshot_id: str, name: str = "hello", **changed: Any) -> dict[str, Any]:
    ebs = {"SnapshotId": snapshot_id}
    arguments = {
        "Name": name,
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": ebs}],
    }
    return arguments | changed


def make_image(server: Ec2Server, name: str = "hello", **changed: Any) -> str:
    arguments = describe_registration(make_snapshot(server, {0: A}), name, **changed)
    return str(server.client("ec2").register_image(**arguments)["ImageId"])


# --- StartSnapshot ------------------------------------------------------------------------------


def test_start_snapshot_tells_what_it_made(ebs: Any) -> None:
    made = ebs.start_snapshot(VolumeSize=3, Description="d", Tags=[{"Key": "k", "Value": "v"}])
    assert (made["Status"], made["VolumeSize"], made["BlockSize"]) == ("pending", 3, 524_288)
    assert made["Description"] == "d" and made["Tags"] == [{"Key": "k", "Value": "v"}]


@pytest.mark.parametrize("size", [1, 65_536])
def test_volume_size_that_is_allowed(ebs: Any, size: int) -> None:
    assert ebs.start_snapshot(VolumeSize=size)["VolumeSize"] == size


def test_volume_that_is_too_large(ebs: Any) -> None:
    found = refused(ebs.start_snapshot, VolumeSize=65_537)
    assert found == ("ValidationException", 400, "INVALID_VOLUME_SIZE")


@pytest.mark.parametrize(
    "given",
    [
        {"Timeout": 9},
        {"Timeout": 4321},
        {"Tags": [{"Key": f"k{n}", "Value": "v"} for n in range(51)]},
        {"Tags": [{"Key": "aws:k", "Value": "v"}]},
        {"KmsKeyArn": KEY},
        {"Description": "d" * 256},
    ],
)
def test_start_snapshot_refuses(server: Ec2Server, given: Mapping[str, Any]) -> None:
    ebs = server.client("ebs", validates=False)
    code, status, _ = refused(ebs.start_snapshot, VolumeSize=1, **given)
    assert (code, status) == ("ValidationException", 400)


def test_same_token_gives_the_same_snapshot(server: Ec2Server, ebs: Any) -> None:
    first = ebs.start_snapshot(VolumeSize=1, ClientToken="t")
    second = ebs.start_snapshot(VolumeSize=1, ClientToken="t")
    assert first["SnapshotId"] == second["SnapshotId"] and len(server.snapshots()) == 1


def test_same_token_with_other_parameters_is_a_conflict(ebs: Any) -> None:
    ebs.start_snapshot(VolumeSize=1, ClientToken="t")
    found = refused(ebs.start_snapshot, VolumeSize=2, ClientToken="t")
    assert found[:2] == ("ConflictException", 409)


def test_pending_snapshots_have_a_quota(server: Ec2Server, ebs: Any) -> None:
    server.state.pending_limit = 2
    first = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.start_snapshot(VolumeSize=1)
    found = refused(ebs.start_snapshot, VolumeSize=1)
    assert found[:2] == ("ServiceQuotaExceededException", 402)
    server.client("ec2").delete_snapshot(SnapshotId=first)
    ebs.start_snapshot(VolumeSize=1)


def test_idle_snapshot_times_out(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1, Timeout=10)["SnapshotId"]
    server.clock.advance(599)
    put(ebs, snapshot_id, 0, A)
    server.clock.advance(599)
    put(ebs, snapshot_id, 1, A)
    server.clock.advance(601)
    found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=2, data=A)
    assert found == ("ValidationException", 400, "INVALID_SNAPSHOT_ID")
    assert ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"] == "error"


# --- the parent ---------------------------------------------------------------------------------


def test_blocks_never_written_read_as_the_parents(server: Ec2Server) -> None:
    parent = make_snapshot(server, {0: A, 3: A})
    child = make_snapshot(server, {3: B, 4: B}, ParentSnapshotId=parent)
    assert server.content(child) == {0: A, 3: B, 4: B}
    assert server.content(parent) == {0: A, 3: A}


def test_content_stays_when_the_parent_is_deleted(server: Ec2Server, ec2: Any) -> None:
    parent = make_snapshot(server, {0: A})
    child = make_snapshot(server, {1: B}, ParentSnapshotId=parent)
    ec2.delete_snapshot(SnapshotId=parent)
    assert server.content(child) == {0: A, 1: B}


def test_parent_that_does_not_exist_or_is_elsewhere(server: Ec2Server, ebs: Any) -> None:
    elsewhere = make_snapshot(server, region=FAR_REGION)
    for parent in ("snap-0123456789abcdef0", elsewhere):
        found = refused(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
        assert found == ("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND")


def test_parent_that_is_not_completed(ebs: Any) -> None:
    parent = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    found = refused(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
    assert found == ("ValidationException", 400, "INVALID_SNAPSHOT_ID")


def test_parent_of_another_account(server: Ec2Server, ebs: Any) -> None:
    shared = server.other_account_snapshot({0: A})
    ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=shared)
    private = server.other_account_snapshot({0: A}, shared=False)
    found = refused(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=private)
    assert found == ("AccessDeniedException", 403, "UNAUTHORIZED_ACCOUNT")


def test_volume_smaller_than_the_parents(server: Ec2Server, ebs: Any) -> None:
    parent = make_snapshot(server, size=2)
    found = refused(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
    assert found == ("ValidationException", 400, "INVALID_VOLUME_SIZE")


@pytest.mark.parametrize("encrypted", [True, False])
def test_parent_together_with_encrypted(server: Ec2Server, ebs: Any, encrypted: bool) -> None:
    parent = make_snapshot(server)
    given = {"VolumeSize": 1, "ParentSnapshotId": parent, "Encrypted": encrypted}
    assert refused(ebs.start_snapshot, **given)[0] == "ValidationException"


def test_encryption_is_inherited(server: Ec2Server, ebs: Any) -> None:
    parent = make_snapshot(server, Encrypted=True, KmsKeyArn=KEY)
    child = ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent)
    assert (child["KmsKeyArn"], child["SseType"]) == (KEY, "sse-kms")


def test_encryption_by_default(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    parent = make_snapshot(server)
    assert not ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]
    server.state.regions[REGION].encryption_by_default = True
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]
    assert ebs.start_snapshot(VolumeSize=1)["SseType"] == "sse-kms"
    found = refused(ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
    assert found[0] == "ValidationException"


# --- PutSnapshotBlock ---------------------------------------------------------------------------


def test_blocks_may_be_put_again(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, snapshot_id, 2047, A)
    put(ebs, snapshot_id, 2047, A)
    put(ebs, snapshot_id, 2047, B)
    assert server.content(snapshot_id) == {2047: B}


@pytest.mark.parametrize(
    ("index", "data", "changed"),
    [
        (2048, A, {}),
        (0, A[:-1], {}),
        (0, A + b"a", {}),
        (0, A, {"DataLength": BLOCK_BYTES - 1}),
        (0, A, {"Checksum": make_checksum(B)}),
        (0, A, {"Checksum": hashlib.sha256(A).hexdigest()}),
    ],
)
def test_put_refuses(
    server: Ec2Server, ebs: Any, index: int, data: bytes, changed: Mapping[str, Any]
) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with pytest.raises(ClientError) as caught:
        put(ebs, snapshot_id, index, data, **changed)
    answer: Any = caught.value.response
    assert (answer["Error"]["Code"], answer["Reason"]) == ("ValidationException", "INVALID_BLOCK")
    assert server.content(snapshot_id) == {}
    assert server.requests[-1].index == index and server.requests[-1].status == 400


def test_put_to_what_is_not_pending(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
    for _ in range(2):  # the first time, the snapshot still shows as pending
        found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)
        assert found == ("ValidationException", 400, "INVALID_SNAPSHOT_ID")
        wait(server, snapshot_id)


def test_put_to_what_does_not_exist(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ec2.delete_snapshot(SnapshotId=snapshot_id)
    found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)
    assert found == ("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND")


def test_many_connections_put_at_once(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    blocks = {index: bytes([index]) * BLOCK_BYTES for index in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: put(ebs, snapshot_id, index, blocks[index]), blocks))
    assert server.content(snapshot_id) == blocks
    assert server.count("ebs:PutSnapshotBlock", ok=True) == 40


# --- CompleteSnapshot ---------------------------------------------------------------------------


def complete(ebs: Any, snapshot_id: str, count: int, digests: list[bytes]) -> Any:
    return ebs.complete_snapshot(
        SnapshotId=snapshot_id,
        ChangedBlocksCount=count,
        Checksum=make_checksum(b"".join(digests)),
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )


def test_complete_wants_the_exact_count_and_checksum(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, snapshot_id, 7, B)
    put(ebs, snapshot_id, 2, A)
    put(ebs, snapshot_id, 2, A)
    a, b = hashlib.sha256(A).digest(), hashlib.sha256(B).digest()
    for count, digests in [(1, [a, b]), (3, [a, b]), (2, [b, a]), (2, [a]), (2, [a, a, b])]:
        with pytest.raises(ClientError, match="ValidationException"):
            complete(ebs, snapshot_id, count, digests)
    assert complete(ebs, snapshot_id, 2, [a, b])["Status"] == "pending"
    wait(server, snapshot_id)
    assert server.snapshot(snapshot_id).state == "completed"
    assert refused(ebs.complete_snapshot, SnapshotId=snapshot_id, ChangedBlocksCount=2)[2] == (
        "INVALID_SNAPSHOT_ID"
    )


def test_checksum_without_its_method_is_refused(ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    given = {"SnapshotId": snapshot_id, "ChangedBlocksCount": 0, "Checksum": make_checksum(b"")}
    assert refused(ebs.complete_snapshot, **given)[0] == "ValidationException"


def test_checksum_is_of_the_written_blocks_without_the_parents(server: Ec2Server, ebs: Any) -> None:
    parent = make_snapshot(server, {0: A})
    snapshot_id = ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent)["SnapshotId"]
    put(ebs, snapshot_id, 1, B)
    complete(ebs, snapshot_id, 1, [hashlib.sha256(B).digest()])


def test_completion_takes_looks(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    server.faults.complete_after(2)
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
    found = [
        ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"] for _ in range(3)
    ]
    assert found == ["pending", "pending", "completed"]


def test_completion_takes_time(server: Ec2Server, ebs: Any) -> None:
    server.faults.complete_after(seconds=60)
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
    assert server.snapshot(snapshot_id).state == "pending"
    server.clock.advance(61)
    assert server.snapshot(snapshot_id).state == "completed"


def test_completion_may_fail(server: Ec2Server, ebs: Any) -> None:
    server.faults.complete_error()
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
    wait(server, snapshot_id)
    assert server.snapshot(snapshot_id).state == "error"


# --- reading blocks -----------------------------------------------------------------------------


def test_blocks_are_listed_in_pages_and_read(server: Ec2Server, ebs: Any) -> None:
    parent = make_snapshot(server, {0: A, 1: A})
    snapshot_id = make_snapshot(server, {1: B, 9: B}, ParentSnapshotId=parent)
    server.set_page_limit(2)
    first = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    second = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, NextToken=first["NextToken"])
    assert first["BlockSize"] == BLOCK_BYTES and "NextToken" not in second
    listed = first["Blocks"] + second["Blocks"]
    assert [each["BlockIndex"] for each in listed] == [0, 1, 9]
    read = [ebs.get_snapshot_block(SnapshotId=snapshot_id, **each) for each in listed]
    assert [each["BlockData"].read() for each in read] == [A, B, B]
    assert read[0]["Checksum"] == make_checksum(A)
    started = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, StartingBlockIndex=2)
    assert [each["BlockIndex"] for each in started["Blocks"]] == [9]


def test_block_tokens_are_no_content_hashes_and_expire(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = make_snapshot(server, {0: A, 1: A})
    tokens = [b["BlockToken"] for b in ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"]]
    assert tokens[0] != tokens[1]
    assert make_checksum(A) not in tokens
    given = {"SnapshotId": snapshot_id, "BlockIndex": 0}
    assert (
        refused(ebs.get_snapshot_block, **given, BlockToken=tokens[1])[2] == "INVALID_BLOCK_TOKEN"
    )
    server.clock.advance(7 * 24 * 3600 + 1)
    assert (
        refused(ebs.get_snapshot_block, **given, BlockToken=tokens[0])[2] == "INVALID_BLOCK_TOKEN"
    )


def test_page_token_of_another_snapshot(server: Ec2Server, ebs: Any) -> None:
    one, other = make_snapshot(server, {0: A, 1: A}), make_snapshot(server, {0: A})
    server.set_page_limit(1)
    token = ebs.list_snapshot_blocks(SnapshotId=one)["NextToken"]
    found = refused(ebs.list_snapshot_blocks, SnapshotId=other, NextToken=token)
    assert found[2] == "INVALID_PAGE_TOKEN"


def test_changed_blocks(server: Ec2Server, ebs: Any) -> None:
    parent = make_snapshot(server, {0: A, 1: A})
    child = make_snapshot(server, {1: B, 2: B}, ParentSnapshotId=parent)
    changed = ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=child)
    assert [each["BlockIndex"] for each in changed["ChangedBlocks"]] == [1, 2]
    assert "FirstBlockToken" not in changed["ChangedBlocks"][1]
    unrelated = make_snapshot(server, {0: A})
    given = {"FirstSnapshotId": unrelated, "SecondSnapshotId": child}
    assert refused(ebs.list_changed_blocks, **given)[2] == "UNRELATED_SNAPSHOTS"


def test_pending_snapshots_cannot_be_read(ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    assert refused(ebs.list_snapshot_blocks, SnapshotId=snapshot_id)[0] == "ValidationException"


def test_snapshot_is_compared_with_a_disk(server: Ec2Server, tmp_path: Path) -> None:
    snapshot_id = make_snapshot(server, {0: A, 2: b"x" + ZEROS[1:]})
    disk = tmp_path / "disk"
    disk.write_bytes(A + ZEROS + b"x")
    assert server.compare(snapshot_id, disk) == []
    disk.write_bytes(A + b"y")
    assert server.compare(snapshot_id, disk) == [1, 2]


# --- RegisterImage ------------------------------------------------------------------------------


def test_defaults_are_i386_and_paravirtual(server: Ec2Server, ec2: Any) -> None:
    given = describe_registration(make_snapshot(server))
    del given["Architecture"], given["VirtualizationType"]
    image_id = ec2.register_image(**given)["ImageId"]
    found = ec2.describe_images(ImageIds=[image_id])["Images"][0]
    assert (found["Architecture"], found["VirtualizationType"]) == ("i386", "paravirtual")


def test_registration_is_described_as_given(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(
        server,
        BootMode="uefi-preferred",
        EnaSupport=True,
        SriovNetSupport="simple",
        ImdsSupport="v2.0",
        Description="Says hello",
        TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "k", "Value": "v"}]}],
    )
    found = ec2.describe_images(ImageIds=[image_id])["Images"][0]
    assert found["State"] == "available" and found["OwnerId"] == server.account.id
    assert found["BootMode"] == "uefi-preferred" and found["EnaSupport"] is True
    assert found["SriovNetSupport"] == "simple" and found["ImdsSupport"] == "v2.0"
    assert found["Tags"] == [{"Key": "k", "Value": "v"}]
    assert found["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 1


@pytest.mark.parametrize("name", ["ab", "a" * 129, "a:b", "a*b", "grün"])
def test_names_that_are_malformed(server: Ec2Server, name: str) -> None:
    ec2 = server.client("ec2", validates=False)
    given = describe_registration(make_snapshot(server), name)
    assert refused(ec2.register_image, **given)[0] == "InvalidAMIName.Malformed"


def test_names_that_are_allowed(server: Ec2Server, ec2: Any) -> None:
    for name in ("abc", "a" * 128, "a (b) [c] ./-'@_9"):
        ec2.register_image(**describe_registration(make_snapshot(server), name))


def test_names_are_unique_in_a_region(server: Ec2Server, ec2: Any) -> None:
    make_image(server)
    given = describe_registration(make_snapshot(server))
    assert refused(ec2.register_image, **given)[0] == "InvalidAMIName.Duplicate"
    server.other_account_image("theirs")
    ec2.register_image(**(given | {"Name": "theirs"}))
    far = describe_registration(make_snapshot(server, region=FAR_REGION))
    server.client("ec2", FAR_REGION).register_image(**far)


def test_snapshot_must_be_there_and_completed(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    pending = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    found = refused(ec2.register_image, **describe_registration(pending))
    assert found[0] == "IncorrectState"
    far = make_snapshot(server, region=FAR_REGION)
    found = refused(ec2.register_image, **describe_registration(far))
    assert found[0] == "InvalidSnapshot.NotFound"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"RootDeviceName": "/dev/sda1"}, "InvalidBlockDeviceMapping"),
        ({"RootDeviceName": None}, "MissingParameter"),
        ({"BlockDeviceMappings": None}, "InvalidBlockDeviceMapping"),
        ({"BootMode": "bios"}, "InvalidParameterValue"),
        ({"Architecture": "amd64"}, "InvalidParameterValue"),
        ({"VirtualizationType": "HVM"}, "InvalidParameterValue"),
        ({"ImdsSupport": "v1.0"}, "InvalidParameterValue"),
        ({"TpmSupport": "v2.0"}, "InvalidParameterCombination"),
        ({"EnaSupport": True, "VirtualizationType": None}, "InvalidParameterCombination"),
        (
            {"TagSpecifications": [{"ResourceType": "snapshot", "Tags": []}]},
            "InvalidParameterValue",
        ),
    ],
)
def test_register_image_refuses(
    server: Ec2Server, ec2: Any, changed: dict[str, Any], code: str
) -> None:
    given = describe_registration(make_snapshot(server)) | changed
    given = {name: value for name, value in given.items() if value is not None}
    assert refused(ec2.register_image, **given)[0] == code


def test_volume_must_hold_the_snapshot(server: Ec2Server, ec2: Any) -> None:
    given = describe_registration(make_snapshot(server, size=3))
    given["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = 2
    assert refused(ec2.register_image, **given)[0] == "InvalidBlockDeviceMapping"
    given["BlockDeviceMappings"][0]["Ebs"] |= {"VolumeSize": 9, "VolumeType": "gp3"}
    image_id = ec2.register_image(**given)["ImageId"]
    found = ec2.describe_images(ImageIds=[image_id])["Images"][0]["BlockDeviceMappings"][0]["Ebs"]
    assert (found["VolumeSize"], found["VolumeType"]) == (9, "gp3")


def test_encrypted_cannot_be_given_with_a_snapshot(server: Ec2Server, ec2: Any) -> None:
    given = describe_registration(make_snapshot(server))
    given["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] = False
    assert refused(ec2.register_image, **given)[0] == "InvalidBlockDeviceMapping"


# --- the query protocol -------------------------------------------------------------------------


def post(server: Ec2Server, fields: Mapping[str, str]) -> tuple[int, str]:
    """Sends a signed request with these exact fields."""
    body = urlencode(fields)
    request = AWSRequest("POST", f"{server.endpoint}/", data=body)
    request.headers["Content-Type"] = "application/x-www-form-urlencoded"
    credentials = Credentials(server.account.key, server.account.secret)
    SigV4Auth(credentials, "ec2", REGION).add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/", body, dict(request.headers))
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"Action": "DescribeAmis"}, "InvalidAction"),
        ({"Action": "StartInstances", "InstanceId.1": "i-12345678"}, "InvalidAction"),
        ({"Action": "DescribeImages", "Image.1": "ami-1"}, "UnknownParameter"),
        ({"Action": "DescribeImages", "ImageId.2": "ami-12345678"}, "InvalidParameter"),
        ({"Action": "DescribeImages", "MaxResults": "many"}, "InvalidParameterValue"),
        ({"Action": "DescribeImages", "ImageId.1": "image"}, "InvalidAMIID.NotFound"),
        ({"Action": "DescribeSnapshots", "SnapshotId.1": "x"}, "InvalidSnapshotID.Malformed"),
        ({"Action": "DeleteSnapshot"}, "MissingParameter"),
        (
            {"Action": "DescribeImages", "Filter.1.Name": "colour", "Filter.1.Value.1": "red"},
            "InvalidParameterValue",
        ),
        ({"Action": "DescribeImages", "Filter.1.Name": "name"}, "InvalidParameterValue"),
    ],
)
def test_query_is_refused(server: Ec2Server, fields: Mapping[str, str], code: str) -> None:
    status, text = post(server, {**fields, "Version": "2016-11-15"})
    assert status == 400 and f"<Code>{code}</Code>" in text


# --- Describe* ----------------------------------------------------------------------------------


def test_images_are_found_by_filters(server: Ec2Server, ec2: Any) -> None:
    tags = [{"ResourceType": "image", "Tags": [{"Key": "phantom:sha256", "Value": "00ff"}]}]
    first = make_image(server, "hello-1", TagSpecifications=tags)
    second = make_image(server, "hello-2", Description="d")
    snapshot_id = server.image(first).snapshot_ids[0]

    def find(name: str, *values: str) -> set[str]:
        filters = [{"Name": name, "Values": list(values)}]
        found = ec2.describe_images(Owners=["self"], Filters=filters)["Images"]
        return {each["ImageId"] for each in found}

    assert find("name", "hello-1") == {first}
    assert find("name", "hello-*") == {first, second}
    assert find("name", "hello-?") == {first, second}
    assert find("name", "hello-\\*") == set()
    assert find("name", "hello") == set()
    assert find("name", "hello-1", "hello-2") == {first, second}
    assert find("tag:phantom:sha256", "00ff") == {first}
    assert find("tag:phantom:sha256", "00fe") == set()
    assert find("tag-key", "phantom:sha256") == {first}
    assert find("block-device-mapping.snapshot-id", snapshot_id) == {first}
    assert find("state", "pending") == set()
    assert find("image-id", second) == {second}
    assert find("owner-id", server.account.id) == {first, second}


def test_images_of_others(server: Ec2Server, ec2: Any) -> None:
    mine = make_image(server)
    shared = server.other_account_image("shared")
    public = server.other_account_image("public", shared=False, public=True)
    private = server.other_account_image("private", shared=False)

    def find(**given: Any) -> set[str]:
        return {each["ImageId"] for each in ec2.describe_images(**given)["Images"]}

    assert find() == {mine, shared, public}
    assert find(Owners=["self"]) == {mine}
    assert find(Owners=[OTHER_ACCOUNT_ID]) == {shared, public}
    assert refused(ec2.describe_images, ImageIds=[private])[0] == "InvalidAMIID.NotFound"
    assert refused(ec2.deregister_image, ImageId=shared)[:2] == ("AuthFailure", 401)


def test_snapshots_are_found_by_filters_and_owner(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    tags = [{"Key": "phantom:build", "Value": "4f2a"}]
    pending = ebs.start_snapshot(VolumeSize=1, Tags=tags)["SnapshotId"]
    completed = make_snapshot(server)
    theirs = server.other_account_snapshot()
    server.other_account_snapshot(shared=False)

    def find(*filters: tuple[str, str], **given: Any) -> set[str]:
        made = [{"Name": name, "Values": [value]} for name, value in filters]
        found = ec2.describe_snapshots(Filters=made, **given)["Snapshots"]
        return {each["SnapshotId"] for each in found}

    assert find() == {pending, completed, theirs}
    assert find(OwnerIds=["self"]) == {pending, completed}
    assert find(("status", "pending")) == {pending}
    assert find(("status", "pending"), ("tag:phantom:build", "x")) == set()
    assert find(("tag:phantom:build", "4f2a")) == {pending}
    assert find(("tag-key", "phantom:build")) == {pending}
    assert find(("owner-id", OTHER_ACCOUNT_ID)) == {theirs}


def test_lists_come_in_pages(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    made = {ebs.start_snapshot(VolumeSize=1)["SnapshotId"] for _ in range(7)}
    first = ec2.describe_snapshots(OwnerIds=["self"], MaxResults=5)
    token = first["NextToken"]
    second = ec2.describe_snapshots(OwnerIds=["self"], MaxResults=5, NextToken=token)
    assert (len(first["Snapshots"]), len(second["Snapshots"])) == (5, 2)
    assert {s["SnapshotId"] for s in first["Snapshots"] + second["Snapshots"]} == made
    assert refused(ec2.describe_snapshots, MaxResults=4)[0] == "InvalidParameterValue"
    found = refused(ec2.describe_snapshots, MaxResults=5, NextToken=token)
    assert found[0] == "InvalidParameterValue"
    given = {"SnapshotIds": sorted(made), "MaxResults": 5}
    assert refused(ec2.describe_snapshots, **given)[0] == "InvalidParameterCombination"
    server.set_page_limit(3)
    pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"])
    assert {s["SnapshotId"] for page in pages for s in page["Snapshots"]} == made


def test_regions(server: Ec2Server, ec2: Any) -> None:
    names = {each["RegionName"] for each in ec2.describe_regions()["Regions"]}
    assert names == {"us-east-1", "eu-central-1", "eu-west-1"}
    every = ec2.describe_regions(AllRegions=True)["Regions"]
    assert {each["OptInStatus"] for each in every} == {"opt-in-not-required", "not-opted-in"}
    found = refused(ec2.describe_regions, RegionNames=["mars-north-1"])
    assert found[0] == "InvalidParameterValue"
    disabled = server.client("ec2", "ap-east-1")
    assert refused(disabled.describe_regions)[:2] == ("AuthFailure", 401)


def test_regions_know_nothing_of_each_other(server: Ec2Server) -> None:
    make_image(server)
    far = server.client("ec2", FAR_REGION)
    assert far.describe_images()["Images"] == [] and far.describe_snapshots()["Snapshots"] == []


# --- tags ---------------------------------------------------------------------------------------


def test_tags_are_made_and_removed(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    snapshot_id = server.image(image_id).snapshot_ids[0]
    resources = [image_id, snapshot_id]
    tags = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    ec2.create_tags(Resources=resources, Tags=tags)
    ec2.delete_tags(Resources=resources, Tags=[{"Key": "a"}, {"Key": "b", "Value": "other"}])
    assert server.image(image_id).tags == server.snapshot(snapshot_id).tags == {"b": "2"}
    many = [{"Key": f"k{n}", "Value": ""} for n in range(50)]
    found = refused(ec2.create_tags, Resources=resources, Tags=many)
    assert found[0] == "TagLimitExceeded"
    reserved = [{"Key": "aws:k", "Value": "v"}]
    found = refused(ec2.create_tags, Resources=resources, Tags=reserved)
    assert found[0] == "InvalidParameterValue"


# --- deletion -----------------------------------------------------------------------------------


def test_snapshot_in_use_cannot_be_deleted(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    snapshot_id = server.image(image_id).snapshot_ids[0]
    assert refused(ec2.delete_snapshot, SnapshotId=snapshot_id)[0] == "InvalidSnapshot.InUse"
    ec2.deregister_image(ImageId=image_id)
    assert server.costs().unused_snapshots == [snapshot_id]
    ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert refused(ec2.delete_snapshot, SnapshotId=snapshot_id)[0] == "InvalidSnapshot.NotFound"
    assert not server.costs()


def test_deregistered_image_is_gone(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    ec2.deregister_image(ImageId=image_id)
    assert refused(ec2.describe_images, ImageIds=[image_id])[0] == "InvalidAMIID.NotFound"
    assert refused(ec2.deregister_image, ImageId=image_id)[0] == "InvalidAMIID.Unavailable"


def test_deregistration_with_snapshots(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    snapshot_id = server.image(image_id).snapshot_ids[0]
    also = ec2.register_image(**describe_registration(snapshot_id, "also"))["ImageId"]
    given = {"DeleteAssociatedSnapshots": True}
    first = ec2.deregister_image(ImageId=image_id, **given)["DeleteSnapshotResults"]
    assert first == [{"SnapshotId": snapshot_id, "ReturnCode": "skipped"}]
    second = ec2.deregister_image(ImageId=also, **given)["DeleteSnapshotResults"]
    assert second == [{"SnapshotId": snapshot_id, "ReturnCode": "success"}]
    assert server.snapshots() == []


def test_protected_image_stays(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    ec2.enable_image_deregistration_protection(ImageId=image_id)
    assert refused(ec2.deregister_image, ImageId=image_id)[0] == "OperationNotPermitted"
    ec2.disable_image_deregistration_protection(ImageId=image_id)
    ec2.deregister_image(ImageId=image_id)


# --- CopyImage ----------------------------------------------------------------------------------


def test_copy_is_pending_at_first(server: Ec2Server) -> None:
    tags = [{"ResourceType": "image", "Tags": [{"Key": "k", "Value": "v"}]}]
    image_id = make_image(server, TagSpecifications=tags)
    far = server.client("ec2", FAR_REGION)
    given = {"Name": "hello", "SourceImageId": image_id, "SourceRegion": REGION}
    copy_id = far.copy_image(**given, ClientToken="t", CopyImageTags=True)["ImageId"]
    assert far.copy_image(**given, ClientToken="t", CopyImageTags=True)["ImageId"] == copy_id
    found = refused(far.copy_image, **given, ClientToken="t")
    assert found[0] == "IdempotentParameterMismatch"
    first = far.describe_images(ImageIds=[copy_id])["Images"][0]
    assert first["State"] == "pending"
    assert "SnapshotId" not in first["BlockDeviceMappings"][0]["Ebs"]
    second = far.describe_images(ImageIds=[copy_id])["Images"][0]
    assert second["State"] == "available" and second["Tags"] == tags[0]["Tags"]
    assert second["SourceImageId"] == image_id
    snapshot_id = second["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    assert server.content(snapshot_id) == {0: A}
    assert server.snapshot(snapshot_id).tags == {}  # CopyImageTags is for the image alone


def test_copy_refuses(server: Ec2Server) -> None:
    image_id = make_image(server)
    far = server.client("ec2", FAR_REGION)
    given = {"Name": "hello", "SourceImageId": image_id, "SourceRegion": REGION}
    assert refused(far.copy_image, **(given | {"SourceRegion": "mars-north-1"}))[0] == (
        "InvalidParameterValue"
    )
    assert refused(far.copy_image, **(given | {"SourceRegion": FAR_REGION}))[0] == (
        "InvalidAMIID.NotFound"
    )
    assert refused(far.copy_image, **given, KmsKeyId=KEY)[0] == "InvalidParameterDependency"
    far.copy_image(**given)
    assert refused(far.copy_image, **given)[0] == "InvalidAMIName.Duplicate"


def test_copy_may_be_encrypted_or_fail(server: Ec2Server) -> None:
    image_id = make_image(server)
    far = server.client("ec2", FAR_REGION)
    given = {"SourceImageId": image_id, "SourceRegion": REGION}
    server.faults.complete_after(0)
    copy_id = far.copy_image(Name="one", **given, Encrypted=True, KmsKeyId=KEY)["ImageId"]
    assert server.snapshot(server.image(copy_id).snapshot_ids[0]).kms_key == KEY
    server.faults.complete_error()
    copy_id = far.copy_image(Name="two", **given)["ImageId"]
    assert far.describe_images(ImageIds=[copy_id])["Images"][0]["State"] == "failed"


# --- sharing ------------------------------------------------------------------------------------


def test_launch_permissions(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    organization = "arn:aws:organizations::111122223333:organization/o-abcdefghij"
    add = [{"UserId": OTHER_ACCOUNT_ID}, {"OrganizationArn": organization}, {"Group": "all"}]
    ec2.modify_image_attribute(ImageId=image_id, LaunchPermission={"Add": add})
    remove = [{"UserId": OTHER_ACCOUNT_ID}]
    ec2.modify_image_attribute(ImageId=image_id, LaunchPermission={"Remove": remove})
    found = ec2.describe_image_attribute(ImageId=image_id, Attribute="launchPermission")
    assert found["LaunchPermissions"] == add[1:]
    assert ec2.describe_images(ImageIds=[image_id])["Images"][0]["Public"] is True
    for bad in ({"UserId": "12345"}, {"OrganizationArn": "o-1"}):
        given = {"ImageId": image_id, "LaunchPermission": {"Add": [bad]}}
        assert refused(ec2.modify_image_attribute, **given)[0] == "InvalidAMIAttributeItemValue"


def test_snapshot_has_its_own_permissions(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    snapshot_id = server.image(image_id).snapshot_ids[0]
    other = server.client("ec2", account=server.state.other)
    add = [{"UserId": OTHER_ACCOUNT_ID}]
    ec2.modify_image_attribute(ImageId=image_id, LaunchPermission={"Add": add})
    assert len(other.describe_images(ImageIds=[image_id])["Images"]) == 1
    given = {"SnapshotIds": [snapshot_id]}
    assert refused(other.describe_snapshots, **given)[0] == "InvalidSnapshot.NotFound"
    ec2.modify_snapshot_attribute(SnapshotId=snapshot_id, CreateVolumePermission={"Add": add})
    assert len(other.describe_snapshots(**given)["Snapshots"]) == 1
    found = ec2.describe_snapshot_attribute(
        SnapshotId=snapshot_id, Attribute="createVolumePermission"
    )
    assert found["CreateVolumePermissions"] == add


def test_block_public_access_forbids_public_images(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    snapshot_id = server.image(image_id).snapshot_ids[0]
    state = ec2.get_image_block_public_access_state()
    assert state["ImageBlockPublicAccessState"] == "unblocked"
    server.forbid_public()
    state = ec2.get_image_block_public_access_state()
    assert state["ImageBlockPublicAccessState"] == "block-new-sharing"
    assert ec2.get_snapshot_block_public_access_state()["State"] == "block-all-sharing"
    add = {"Add": [{"Group": "all"}]}
    given = {"ImageId": image_id, "LaunchPermission": add}
    assert refused(ec2.modify_image_attribute, **given)[0] == "OperationNotPermitted"
    given = {"SnapshotId": snapshot_id, "CreateVolumePermission": add}
    assert refused(ec2.modify_snapshot_attribute, **given)[0] == "OperationNotPermitted"


def test_default_key_cannot_be_shared(server: Ec2Server, ec2: Any) -> None:
    add = {"Add": [{"UserId": OTHER_ACCOUNT_ID}]}
    by_default = make_snapshot(server, Encrypted=True)
    given = {"SnapshotId": by_default, "CreateVolumePermission": add}
    assert refused(ec2.modify_snapshot_attribute, **given)[0] == "OperationNotPermitted"
    by_key = make_snapshot(server, Encrypted=True, KmsKeyArn=KEY)
    ec2.modify_snapshot_attribute(SnapshotId=by_key, CreateVolumePermission=add)


def test_deprecation_is_at_most_ten_years_away(server: Ec2Server, ec2: Any) -> None:
    image_id, now = make_image(server), datetime.now(UTC)
    ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=now + timedelta(days=3640))
    assert "DeprecationTime" in ec2.describe_images(ImageIds=[image_id])["Images"][0]
    for days in (3700, -1):
        given = {"ImageId": image_id, "DeprecateAt": now + timedelta(days=days)}
        assert refused(ec2.enable_image_deprecation, **given)[0] == "InvalidParameterValue"
    everybody = {"Add": [{"Group": "all"}]}
    ec2.modify_image_attribute(ImageId=image_id, LaunchPermission=everybody)
    given = {"ImageId": image_id, "DeprecateAt": now + timedelta(days=900)}
    assert refused(ec2.enable_image_deprecation, **given)[0] == "InvalidParameterValue"


def test_references(server: Ec2Server, ec2: Any) -> None:
    image_id = make_image(server)
    given = {"ImageIds": [image_id], "IncludeAllResourceTypes": True}
    assert ec2.describe_image_references(**given)["ImageReferences"] == []
    arn = server.run_instance(image_id)
    template = server.use_image(image_id)
    found = ec2.describe_image_references(**given)["ImageReferences"]
    assert [each["Arn"] for each in found] == [arn, template]
    assert refused(ec2.describe_image_references, ImageIds=[image_id])[0] == (
        "InvalidParameterCombination"
    )
    filters = [{"Name": "image-id", "Values": [image_id]}]
    instances = ec2.describe_instances(Filters=filters)["Reservations"][0]["Instances"]
    assert instances[0]["ImageId"] == image_id and arn.endswith(instances[0]["InstanceId"])


# --- rights, dry runs, credentials --------------------------------------------------------------


def test_dry_run_changes_nothing(server: Ec2Server, ec2: Any) -> None:
    snapshot_id = make_snapshot(server)
    given = describe_registration(snapshot_id)
    assert refused(ec2.register_image, DryRun=True, **given)[:2] == ("DryRunOperation", 412)
    assert refused(ec2.delete_snapshot, DryRun=True, SnapshotId=snapshot_id)[0] == "DryRunOperation"
    assert refused(ec2.describe_images, DryRun=True)[0] == "DryRunOperation"
    assert server.images() == [] and len(server.snapshots()) == 1
    server.faults.deny("ec2:RegisterImage")
    found = refused(ec2.register_image, DryRun=True, **given)
    assert found[:2] == ("UnauthorizedOperation", 403)


def test_dry_run_may_look_ids_up_or_not(server: Ec2Server, ec2: Any) -> None:
    given = {"SnapshotId": "snap-0123456789abcdef0", "DryRun": True}
    assert refused(ec2.delete_snapshot, **given)[0] == "InvalidSnapshot.NotFound"
    server.state.dry_run_finds = False
    assert refused(ec2.delete_snapshot, **given)[0] == "DryRunOperation"


def test_tags_at_registration_need_a_right_of_their_own(server: Ec2Server, ec2: Any) -> None:
    server.faults.deny("ec2:CreateTags")
    tags = [{"ResourceType": "image", "Tags": [{"Key": "k", "Value": "v"}]}]
    given = describe_registration(make_snapshot(server))
    found = refused(ec2.register_image, TagSpecifications=tags, **given)
    assert found[0] == "UnauthorizedOperation"
    ec2.register_image(**given)


def test_denied_rights_as_each_service_says_it(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    server.add_bucket("images")
    for action in ("ebs:StartSnapshot", "ec2:DescribeImages", "s3:PutObject"):
        server.faults.deny(action)
    assert refused(ebs.start_snapshot, VolumeSize=1)[:2] == ("AccessDeniedException", 403)
    assert refused(ec2.describe_images)[:2] == ("UnauthorizedOperation", 403)
    s3 = server.client("s3")
    given = {"Bucket": "images", "Key": "k"}
    assert refused(s3.put_object, **given)[:2] == ("AccessDenied", 403)
    assert refused(s3.create_multipart_upload, **given)[:2] == ("AccessDenied", 403)


def test_right_denied_in_one_region(server: Ec2Server, ec2: Any) -> None:
    server.faults.deny("ec2:DescribeImages", FAR_REGION)
    ec2.describe_images()
    assert refused(server.client("ec2", FAR_REGION).describe_images)[0] == "UnauthorizedOperation"


CALLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ebs": ("start_snapshot", {"VolumeSize": 1}),
    "ec2": ("describe_images", {}),
    "sts": ("get_caller_identity", {}),
    "s3": ("list_objects_v2", {"Bucket": "images"}),
}


def ask(server: Ec2Server, service: str, account: Account) -> Callable[[], Any]:
    server.add_bucket("images")
    name, given = CALLS[service]
    client = server.client(service, account=account)
    return lambda: getattr(client, name)(**given)


@pytest.mark.parametrize(
    ("service", "unknown", "wrong", "expired"),
    [
        (
            "ebs",
            ("UnrecognizedClientException", 403),
            ("InvalidSignatureException", 403),
            ("ExpiredTokenException", 403),
        ),
        ("ec2", ("AuthFailure", 401), ("AuthFailure", 401), ("RequestExpired", 400)),
        (
            "sts",
            ("InvalidClientTokenId", 403),
            ("SignatureDoesNotMatch", 403),
            ("ExpiredToken", 403),
        ),
        (
            "s3",
            ("InvalidAccessKeyId", 403),
            ("SignatureDoesNotMatch", 403),
            ("ExpiredToken", 400),
        ),
    ],
)
def test_credentials_are_verified(
    server: Ec2Server,
    service: str,
    unknown: tuple[str, int],
    wrong: tuple[str, int],
    expired: tuple[str, int],
) -> None:
    mine = server.account
    stranger = Account(id=mine.id, key="AKIAUNKNOWN", secret=mine.secret)
    forger = Account(id=mine.id, key=mine.key, secret="wr0ng")
    ask(server, service, mine)()
    assert refused(ask(server, service, stranger))[:2] == unknown
    assert refused(ask(server, service, forger))[:2] == wrong
    server.expire_credentials(after=1)
    ask(server, service, mine)()
    assert refused(ask(server, service, mine))[:2] == expired
    server.renew_credentials()
    ask(server, service, mine)()


def test_temporary_credentials_need_their_token(server: Ec2Server) -> None:
    without = Account(id=server.account.id, key=server.account.key, secret=server.account.secret)
    server.use_temporary_credentials()
    server.client("ec2").describe_images()
    assert refused(ask(server, "ec2", without))[0] == "AuthFailure"
    assert server.environ["AWS_SESSION_TOKEN"] == server.account.token


def test_unsigned_requests(server: Ec2Server) -> None:
    for path, status in [("/snapshots", 403), ("/", 401), ("/images/key", 403)]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        method = "GET" if path.startswith("/images") else "POST"
        connection.request(method, path, b"Action=DescribeImages")
        assert connection.getresponse().status == status
        connection.close()


def test_late_requests(server: Ec2Server, monkeypatch: pytest.MonkeyPatch) -> None:
    early = datetime.now(UTC) - timedelta(minutes=6)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: early)
    assert refused(ask(server, "ec2", server.account))[:2] == ("RequestExpired", 400)
    assert refused(ask(server, "ebs", server.account))[:2] == ("InvalidSignatureException", 403)


def test_body_that_changed_on_the_way_is_refused(server: Ec2Server, ebs: Any) -> None:
    def change_size(request: Any, **_: object) -> None:
        request.body = request.body.replace(b"1", b"2")

    def change_block(request: Any, **_: object) -> None:
        request.body = B

    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.meta.events.register("before-send.ebs.StartSnapshot", change_size)
    assert refused(ebs.start_snapshot, VolumeSize=1)[0] == "InvalidSignatureException"
    # The signature does not cover a block's bytes, but it does cover their checksum.
    ebs.meta.events.register("before-send.ebs.PutSnapshotBlock", change_block)
    found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)
    assert found[2] == "INVALID_BLOCK"


def test_caller_identity(server: Ec2Server) -> None:
    found = server.client("sts").get_caller_identity()
    assert found["Account"] == server.account.id and found["Arn"] == server.account.arn


# --- faults -------------------------------------------------------------------------------------


def test_throttling_comes_and_goes(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    server.faults.throttle("ebs:StartSnapshot", 2, skip=1)
    server.faults.throttle("ec2:DescribeImages")
    ebs.start_snapshot(VolumeSize=1)
    for _ in range(2):
        found = refused(ebs.start_snapshot, VolumeSize=1)
        assert found == ("RequestThrottledException", 400, "ACCOUNT_THROTTLED")
    ebs.start_snapshot(VolumeSize=1)
    assert refused(ec2.describe_images)[:2] == ("RequestLimitExceeded", 503)
    server.faults.throttle("ebs:*", code="ThrottlingException")
    assert refused(ebs.start_snapshot, VolumeSize=1) == ("ThrottlingException", 400, None)
    server.faults.quota("ebs:StartSnapshot")
    found = refused(ebs.start_snapshot, VolumeSize=1)
    assert found == ("ServiceQuotaExceededException", 402, "DEPENDENCY_SERVICE_QUOTA_EXCEEDED")


def test_internal_errors(server: Ec2Server, ebs: Any) -> None:
    server.faults.fail("ebs:StartSnapshot")
    server.faults.fail("ebs:StartSnapshot", status=503)
    with pytest.raises(ClientError):
        ebs.start_snapshot(VolumeSize=1)
    assert [each.status for each in server.requests] == [500]
    with pytest.raises(ClientError):
        ebs.start_snapshot(VolumeSize=1)
    ebs.start_snapshot(VolumeSize=1)
    assert [each.status for each in server.requests] == [500, 503, 201]


def test_reset_before_and_after_the_effect(server: Ec2Server, ebs: Any) -> None:
    server.faults.reset("ebs:StartSnapshot")
    with pytest.raises(ConnectionClosedError):
        ebs.start_snapshot(VolumeSize=1)
    assert server.pending_snapshots() == []
    server.faults.reset("ebs:StartSnapshot", after=True)
    with pytest.raises(ConnectionClosedError):
        ebs.start_snapshot(VolumeSize=1)
    assert len(server.pending_snapshots()) == 1
    assert [each.status for each in server.requests] == [0, 0]


def test_hanging_requests_end_with_the_server(server: Ec2Server, ebs: Any) -> None:
    server.faults.hang("ebs:StartSnapshot")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ebs.start_snapshot, VolumeSize=1)
        with pytest.raises(TimeoutError):
            asked.result(0.2)
        server.stop()
        with pytest.raises(ConnectionClosedError):
            asked.result(10)
    assert server.pending_snapshots() == []


def test_snapshot_is_not_found_for_a_while(server: Ec2Server, ebs: Any, ec2: Any) -> None:
    server.faults.not_found_for(times=2)
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)
    assert found == ("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND")
    found = refused(ec2.describe_snapshots, SnapshotIds=[snapshot_id])
    assert found[0] == "InvalidSnapshot.NotFound"
    put(ebs, snapshot_id, 0, A)
    server.faults.not_found_for(seconds=120)
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    assert refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)[1] == 404
    server.clock.advance(121)
    put(ebs, snapshot_id, 0, A)


def test_puts_may_be_damaged(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    server.faults.wrong_checksum()
    found = refused(put, ebs=ebs, snapshot_id=snapshot_id, index=0, data=A)
    assert found[2] == "INVALID_BLOCK"
    server.faults.damage()
    put(ebs, snapshot_id, 0, A)
    assert server.content(snapshot_id)[0] != A


def test_rule_may_call_the_test(server: Ec2Server, ebs: Any) -> None:
    called: list[float] = []
    server.faults.on("ebs:StartSnapshot", lambda: called.append(time.time()), skip=1)
    for _ in range(3):
        ebs.start_snapshot(VolumeSize=1)
    assert len(called) == 1


def test_network_goes_and_comes_back_with_the_state(server: Ec2Server, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    server.stop()
    with pytest.raises(EndpointConnectionError):
        put(ebs, snapshot_id, 0, A)
    server.start()
    put(ebs, snapshot_id, 0, A)
    server.faults.on("ebs:PutSnapshotBlock", lambda: server.blackout(0.5))
    with pytest.raises(ConnectionClosedError):
        put(ebs, snapshot_id, 1, A)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            put(ebs, snapshot_id, 1, A)
            break
        except EndpointConnectionError:
            time.sleep(0.05)
    assert server.content(snapshot_id) == {0: A, 1: A}


def test_stop_cuts_what_is_connected(server: Ec2Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /snapshots HTTP/1.1\r\n")
        client.settimeout(10)
        time.sleep(0.1)
        server.stop()
        with suppress(ConnectionError):
            assert client.recv(1) == b""


# --- S3 and ImportSnapshot ----------------------------------------------------------------------


def make_import(server: Ec2Server, data: bytes = A + ZEROS + b"x") -> dict[str, Any]:
    server.add_bucket("images")
    server.add_role()
    server.client("s3").put_object(Bucket="images", Key="disk.raw", Body=data)
    where = {"S3Bucket": "images", "S3Key": "disk.raw"}
    return {"DiskContainer": {"Format": "RAW", "UserBucket": where}}


def test_import_reads_the_object(server: Ec2Server, ec2: Any) -> None:
    given = make_import(server)
    tags = [{"ResourceType": "import-snapshot-task", "Tags": [{"Key": "k", "Value": "v"}]}]
    task = ec2.import_snapshot(**given, ClientToken="t", TagSpecifications=tags)
    again = ec2.import_snapshot(**given, ClientToken="t", TagSpecifications=tags)
    assert again["ImportTaskId"] == task["ImportTaskId"]
    ids = {"ImportTaskIds": [task["ImportTaskId"]]}
    first = ec2.describe_import_snapshot_tasks(**ids)["ImportSnapshotTasks"][0]
    assert first["SnapshotTaskDetail"]["Status"] == "active"
    second = ec2.describe_import_snapshot_tasks(**ids)["ImportSnapshotTasks"][0]
    assert second["SnapshotTaskDetail"]["Status"] == "completed"
    snapshot = server.snapshot(second["SnapshotTaskDetail"]["SnapshotId"])
    assert server.content(snapshot.id) == {0: A, 2: b"x" + ZEROS[1:]}
    assert snapshot.tags == {} and snapshot.state == "completed"  # the task alone is tagged


def test_import_without_its_role(server: Ec2Server, ec2: Any) -> None:
    given = make_import(server)
    server.state.roles.clear()
    with pytest.raises(ClientError) as caught:
        ec2.import_snapshot(**given)
    assert caught.value.response["Error"] == {
        "Code": "InvalidParameter",
        "Message": "The service role vmimport provided does not exist or does not have sufficient"
        " permissions",
    }
    server.add_role("other")
    ec2.import_snapshot(**given, RoleName="other")


def test_import_refuses_and_fails(server: Ec2Server, ec2: Any) -> None:
    given = make_import(server)
    far = server.client("ec2", FAR_REGION)
    assert refused(far.import_snapshot, **given)[0] == "InvalidParameter"
    container = given["DiskContainer"] | {"Format": "QCOW2"}
    assert refused(ec2.import_snapshot, DiskContainer=container)[0] == "InvalidParameter"
    server.client("s3").delete_object(Bucket="images", Key="disk.raw")
    assert refused(ec2.import_snapshot, **given)[0] == "InvalidParameter"
    server.faults.import_error()
    server.faults.complete_after(0)
    task = ec2.import_snapshot(**make_import(server))
    ids = {"ImportTaskIds": [task["ImportTaskId"]]}
    found = ec2.describe_import_snapshot_tasks(**ids)["ImportSnapshotTasks"][0]
    assert found["SnapshotTaskDetail"]["Status"] == "deleted"
    assert "Disk validation failed" in found["SnapshotTaskDetail"]["StatusMessage"]


def test_import_may_be_cancelled(server: Ec2Server, ec2: Any) -> None:
    task_id = ec2.import_snapshot(**make_import(server))["ImportTaskId"]
    ec2.cancel_import_task(ImportTaskId=task_id)
    assert refused(ec2.cancel_import_task, ImportTaskId=task_id)[0] == "IncorrectState"
    assert server.snapshots() == []


def test_objects(server: Ec2Server, tmp_path: Path) -> None:
    server.add_bucket("images")
    s3 = server.client("s3")
    where = {"Bucket": "images", "Key": "a b/c"}
    s3.put_object(**where, Body=b"data", Metadata={"build": "4f2a"}, Tagging="k=v")
    head = s3.head_object(**where)
    assert (head["ContentLength"], head["Metadata"]) == (4, {"build": "4f2a"})
    assert s3.get_object(**where)["Body"].read() == b"data"
    assert s3.get_object(**where, Range="bytes=1-2")["Body"].read() == b"at"
    assert s3.get_object_tagging(**where)["TagSet"] == [{"Key": "k", "Value": "v"}]
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="images", Prefix="a")["Contents"]] == [
        "a b/c"
    ]
    assert server.costs().objects == ["images/a b/c"]
    s3.delete_object(**where)
    assert refused(s3.get_object, **where)[0] == "NoSuchKey"
    assert refused(s3.head_bucket, Bucket="nothing")[1] == 404
    assert not server.costs()


def test_multipart_uploads(server: Ec2Server, tmp_path: Path) -> None:
    server.add_bucket("images")
    s3, disk = server.client("s3"), tmp_path / "disk"
    disk.write_bytes(bytes(range(256)) * 4096 * 20)  # 20 MiB: boto3 sends it in parts
    s3.upload_file(str(disk), "images", "disk")
    assert server.count("s3:UploadPart") == 3
    assert server.state.buckets["images"].objects["disk"].data == disk.read_bytes()
    s3.delete_object(Bucket="images", Key="disk")
    upload = s3.create_multipart_upload(Bucket="images", Key="left")["UploadId"]
    assert server.costs().uploads == ["images/left"]
    listed = s3.list_multipart_uploads(Bucket="images")["Uploads"]
    assert [each["UploadId"] for each in listed] == [upload]
    s3.abort_multipart_upload(Bucket="images", Key="left", UploadId=upload)
    assert not server.costs()


def test_https(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -out {certificate}"
    subprocess.run([*command.split(), "-keyout", key], check=True, capture_output=True)
    with Ec2Server(tls=(certificate, key)) as server:
        assert server.content(make_snapshot(server, {0: A})) == {0: A}
        server.add_bucket("images")  # over https, boto3 sends objects in chunks
        server.client("s3").put_object(Bucket="images", Key="k", Body=B)
        assert server.state.buckets["images"].objects["k"].data == B
