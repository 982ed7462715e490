"""The local Cumulus does what the real one was seen to do, one test per observation: the first
line of each test is the observation. boto3 asks where it can, a bare socket where it would not."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import HmacV1Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ReadTimeoutError,
)

from pipeline.clouds.nimbus.cumulus_server import CumulusServer, CumulusUser, Faults

ALICE = CumulusUser(s3id="AKalice", secret="alice/s+cret", canonical_id="a" * 36)
BOB = CumulusUser(s3id="AKbob", secret="bob-secret", canonical_id="b" * 36)
POOR = CumulusUser(s3id="AKpoor", secret="poor-secret", canonical_id="c" * 36, quota=1000)
MONDAY = datetime(2025, 11, 24, 9, 30, tzinfo=UTC)
FRIDAY = datetime(2025, 11, 21, 9, 30, tzinfo=UTC)
KEY = f"VMS/{ALICE.canonical_id}/image.gz"
BODY = b"the bytes of an image"
MD5 = hashlib.md5(BODY).hexdigest()


SESSION = boto3.Session()  # one for all: it keeps the descriptions of services that it has read


class Service:
    """The server, a clock to set, and clients of it."""

    def __init__(self, folder: Path) -> None:
        self.now = FRIDAY
        self.faults = Faults()
        self.server = CumulusServer(
            folder, [ALICE, BOB, POOR], clock=lambda: self.now.timestamp(), faults=self.faults
        )

    def s3(self, user: CumulusUser = ALICE, secret: str | None = None, **config: Any) -> Any:
        made = SESSION.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.server.port}",
            region_name="us-east-1",
            aws_access_key_id=user.s3id,
            aws_secret_access_key=secret or user.secret,
            config=Config(
                **{
                    "signature_version": "s3",
                    "s3": {"addressing_style": "path"},
                    "request_checksum_calculation": "when_required",
                    "response_checksum_validation": "when_required",
                    "retries": {"total_max_attempts": 1},
                    "read_timeout": 10,
                    **config,
                }
            ),
        )
        made.meta.events.register("before-sign.s3", _reset_auth_path)
        return made

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)

    def sign(self, method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, str]:
        """The headers of a request, signed by botocore."""
        request = AWSRequest(method=method, url=f"http://server{path}", headers=headers or {})
        HmacV1Auth(Credentials(ALICE.s3id, ALICE.secret)).add_auth(request)
        return dict(request.headers.items())

    def put(
        self, key: str = KEY, body: bytes = BODY, user: CumulusUser = ALICE, **more: Any
    ) -> Any:
        return self.s3(user).put_object(Bucket="Repo", Key=key, Body=body, **more)

    def get(self, key: str = KEY, user: CumulusUser = ALICE, **more: Any) -> bytes:
        return bytes(
            self.s3(user).get_object(Bucket="Repo", Key=key, **more)["Body"].read(),
        )

    def keys(self, **parameters: Any) -> list[str]:
        reply = self.s3().list_objects(Bucket="Repo", **parameters)
        return [each["Key"] for each in reply.get("Contents", ())]


def _reset_auth_path(request: Any, **_: object) -> None:
    request.auth_path = None


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "cumulus")
    with made.server:
        yield made


def get_refusal(call: Callable[..., Any], *args: Any, **parameters: Any) -> tuple[int, str]:
    """Status and code of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(*args, **parameters)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# ---- signatures


def test_version_4(service: Service) -> None:
    """Signature version 4: 500 InternalError on everything."""
    s3 = service.s3(signature_version="s3v4")
    assert get_refusal(s3.list_objects, Bucket="Repo") == (500, "InternalError")
    assert get_refusal(s3.put_object, Bucket="Repo", Key=KEY, Body=BODY) == (500, "InternalError")
    assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (500, "InternalError")


def test_version_4_default_retries_send_the_body_again(service: Service) -> None:
    """Signature version 4: boto3's default retries send the whole body again."""
    s3 = service.s3(signature_version="s3v4", retries={"mode": "standard"})
    get_refusal(s3.put_object, Bucket="Repo", Key=KEY, Body=BODY)
    assert [each.body_bytes >= len(BODY) for each in service.server.requests] == [True] * 3


def test_no_signature(service: Service) -> None:
    """Cumulus has no anonymous requests (its source): public objects need a signature too."""
    service.put(ACL="public-read")
    connection = service.connect()
    connection.request("GET", f"/Repo/{KEY}")
    assert connection.getresponse().status == 500


def test_wrong_credentials(service: Service) -> None:
    """Wrong secret, unknown id, no right: 403 AccessDenied."""
    unknown = CumulusUser(s3id="AKnobody", secret="x", canonical_id="n")
    service.put()
    for s3 in (service.s3(secret="wrong"), service.s3(unknown), service.s3(BOB)):
        assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")


def test_bucket_calls_need_the_hook(service: Service) -> None:
    """For calls on the bucket itself botocore signs `/Repo/` and requests `/Repo`."""
    s3 = service.s3()
    s3.meta.events.unregister("before-sign.s3", _reset_auth_path)
    assert get_refusal(s3.list_objects, Bucket="Repo") == (403, "AccessDenied")
    assert service.keys() == []


@pytest.mark.parametrize("name", ["with space.gz", "ü.gz", "a+b%2F&c=d.gz", "tilde~'().gz"])
def test_signature_of_odd_names(service: Service, name: str) -> None:
    """The signature covers the path as it was requested."""
    service.put(f"VMS/{name}")
    assert service.get(f"VMS/{name}") == BODY
    assert service.keys() == [f"VMS/{name}"]


def test_expect_continue(service: Service) -> None:
    """`Expect: 100-continue`: 100 at once even for bad credentials; the 403 after the body."""
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as wire:
        wire.sendall(
            f"PUT /Repo/{KEY} HTTP/1.1\r\nHost: x\r\nAuthorization: AWS nobody:AAAA\r\n"
            "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert wire.recv(100).startswith(b"HTTP/1.1 100 ")
        wire.sendall(b"123456789")
        wire.settimeout(0.3)
        with pytest.raises(TimeoutError):
            wire.recv(100)
        wire.settimeout(10)
        wire.sendall(b"0")
        assert wire.recv(100).startswith(b"HTTP/1.1 403 ")


# ---- bodies


def test_aws_chunked(service: Service) -> None:
    """aws-chunked body with Content-Length: 200, and the framing is stored in the object."""
    framed = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    path = f"/Repo/{KEY}"
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "5"}
    connection = service.connect()
    connection.request("PUT", path, body=framed, headers=service.sign("PUT", path, headers))
    assert connection.getresponse().status == 200
    assert service.get() == framed


def test_chunked_with_trailer(service: Service) -> None:
    """Chunked with a trailer: the server hangs."""
    path = f"/Repo/{KEY}"
    headers = service.sign("PUT", path, {"x-amz-trailer": "x-amz-checksum-crc32"})
    connection = service.connect()
    connection.putrequest("PUT", path)
    for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n")
    connection.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        connection.getresponse()


def test_content_md5(service: Service) -> None:
    """Content-MD5 wrong: 200, not verified; the returned ETag is the md5 of the bytes received."""
    wrong = base64.b64encode(hashlib.md5(b"something else").digest()).decode()
    assert service.put(ContentMD5=wrong)["ETag"] == f'"{MD5}"'
    assert service.get() == BODY


def test_multipart(service: Service) -> None:
    """Multipart upload: 403, a single PUT only, whatever the size."""
    s3 = service.s3()
    create = get_refusal(s3.create_multipart_upload, Bucket="Repo", Key=KEY)
    part = get_refusal(
        s3.upload_part, Bucket="Repo", Key=KEY, PartNumber=1, UploadId="u", Body=BODY
    )
    assert create == part == (403, "AccessDenied")
    assert service.keys() == []


def test_range_and_conditions(service: Service) -> None:
    """Range, If-Match, If-None-Match: ignored; GET gives the whole body with 200."""
    service.put()
    for ignored in ({"Range": "bytes=0-3"}, {"IfMatch": '"0"'}, {"IfNoneMatch": f'"{MD5}"'}):
        reply = service.s3().get_object(Bucket="Repo", Key=KEY, **ignored)
        assert reply["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert reply["Body"].read() == BODY
    service.put(body=b"other", IfNoneMatch="*")
    assert service.get() == b"other"


def test_large_body_comes_back(service: Service) -> None:
    """GET streams what PUT took."""
    data = bytes(range(251)) * 20_000
    assert service.put(body=data)["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert service.get() == data


# ---- HEAD


def test_head(service: Service) -> None:
    """HEAD: ETag = md5, Content-Length right; Last-Modified malformed."""
    service.put()
    reply = service.s3().head_object(Bucket="Repo", Key=KEY)
    assert (reply["ETag"], reply["ContentLength"]) == (f'"{MD5}"', len(BODY))
    assert reply["LastModified"] != FRIDAY


def test_head_on_monday(service: Service) -> None:
    """HEAD: for an object stored on a Monday boto3's parser raises ValueError."""
    service.now = MONDAY
    service.put()
    with pytest.raises(ValueError, match="2025-11-00T09:30:00"):
        service.s3().head_object(Bucket="Repo", Key=KEY)
    listed = service.s3().list_objects(Bucket="Repo")["Contents"][0]
    assert listed["LastModified"] == MONDAY


def test_head_of_bucket(service: Service) -> None:
    """HEAD of the bucket: 400 or 403, says nothing."""
    assert get_refusal(service.s3().head_bucket, Bucket="Repo")[0] == 400
    assert get_refusal(service.s3(secret="wrong").head_bucket, Bucket="Repo")[0] == 403


def test_head_of_missing_key(service: Service) -> None:
    """Missing key: 404."""
    assert get_refusal(service.s3().head_object, Bucket="Repo", Key=KEY)[0] == 404


# ---- lists


@pytest.fixture
def five_keys(service: Service) -> list[str]:
    keys = ["VMS/a/1", "VMS/a/2", "VMS/a_b/3", "VMS/axb/4", "vms/A/5"]
    for key in keys:
        service.put(key)
    return keys


def test_list_is_one_reply(service: Service, five_keys: list[str]) -> None:
    """List, v1 or v2: all keys in one reply; Marker, StartAfter, Delimiter ignored."""
    assert service.keys() == five_keys
    assert service.keys(Marker="VMS/a/2", Delimiter="/") == five_keys
    second = service.s3().list_objects_v2(Bucket="Repo", StartAfter="VMS/a/2", Delimiter="/")
    assert [each["Key"] for each in second["Contents"]] == five_keys
    assert second["IsTruncated"] is False


def test_max_keys(service: Service, five_keys: list[str]) -> None:
    """List: MaxKeys cuts with IsTruncated=false."""
    reply = service.s3().list_objects(Bucket="Repo", MaxKeys=2)
    assert [each["Key"] for each in reply["Contents"]] == five_keys[:2]
    assert reply["IsTruncated"] is False


def test_prefix_is_like(service: Service, five_keys: list[str]) -> None:
    """List: Prefix is an SQL LIKE (case-insensitive, `_` and `%` are wildcards)."""
    assert service.keys(Prefix="VMS/a/") == ["VMS/a/1", "VMS/a/2", "vms/A/5"]
    assert service.keys(Prefix="VMS/a_b/") == ["VMS/a_b/3", "VMS/axb/4"]
    assert service.keys(Prefix="%/4") == ["VMS/axb/4"]


def test_list_is_of_everybody(service: Service) -> None:
    """The list shows the keys of all users."""
    service.put(f"VMS/{BOB.canonical_id}/x", user=BOB)
    assert service.keys() == [f"VMS/{BOB.canonical_id}/x"]


# ---- deleting


def test_delete(service: Service) -> None:
    """DELETE: 204; missing key 404 NoSuchKey."""
    service.put()
    reply = service.s3().delete_object(Bucket="Repo", Key=KEY)
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert get_refusal(service.s3().delete_object, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")


def test_bulk_delete(service: Service) -> None:
    """DELETE: bulk delete 403."""
    service.put()
    bulk = {"Objects": [{"Key": KEY}]}
    assert get_refusal(service.s3().delete_objects, Bucket="Repo", Delete=bulk)[0] == 403
    assert service.keys() == [KEY]


def test_missing_key(service: Service) -> None:
    """Missing key: 404 NoSuchKey."""
    assert get_refusal(service.s3().get_object, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")
    assert get_refusal(service.s3().get_object_acl, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")


def test_missing_bucket(service: Service) -> None:
    """Another bucket: 404 NoSuchBucket."""
    assert get_refusal(service.s3().list_objects, Bucket="Other") == (404, "NoSuchBucket")


# ---- ACLs and metadata


def test_acl(service: Service) -> None:
    """ACL `public-read`: others may read; a later PUT without it drops it."""
    service.put(ACL="public-read")
    assert service.get(user=BOB) == BODY
    assert get_refusal(service.s3(BOB).put_object, Bucket="Repo", Key=KEY, Body=b"x")[0] == 403
    assert get_refusal(service.s3(BOB).delete_object, Bucket="Repo", Key=KEY)[0] == 403
    service.put()
    assert get_refusal(service.s3(BOB).get_object, Bucket="Repo", Key=KEY)[0] == 403


def test_acl_subresource(service: Service) -> None:
    """The ACL of an object: its owner may see and set it, nobody else."""
    service.put()
    assert get_refusal(service.s3(BOB).get_object_acl, Bucket="Repo", Key=KEY)[0] == 403
    assert get_refusal(
        service.s3(BOB).put_object_acl, Bucket="Repo", Key=KEY, ACL="public-read"
    ) == (403, "AccessDenied")
    service.s3().put_object_acl(Bucket="Repo", Key=KEY, ACL="public-read")
    grants = service.s3().get_object_acl(Bucket="Repo", Key=KEY)["Grants"]
    assert [each["Permission"] for each in grants] == ["FULL_CONTROL", "READ"]
    assert service.get(user=BOB) == BODY
    service.s3().put_object_acl(Bucket="Repo", Key=KEY, ACL="private")
    assert get_refusal(service.s3(BOB).get_object, Bucket="Repo", Key=KEY)[0] == 403


def test_metadata(service: Service) -> None:
    """User metadata, Content-Type, tags: accepted and lost."""
    service.put(Metadata={"sha256": "abc"}, ContentType="text/plain", Tagging="a=b")
    reply = service.s3().head_object(Bucket="Repo", Key=KEY)
    assert (reply["Metadata"], reply["ContentType"]) == ({}, "binary/octet-stream")
    assert "TagCount" not in reply


# ---- copies, cuts, several at once


def test_copy(service: Service) -> None:
    """Copy: to a new key works; over an existing key 400, target kept."""
    service.put()
    source = {"Bucket": "Repo", "Key": KEY}
    service.s3().copy_object(Bucket="Repo", Key="VMS/new", CopySource=source)
    assert service.get("VMS/new") == BODY
    service.put("VMS/old", b"old")
    refusal = get_refusal(service.s3().copy_object, Bucket="Repo", Key="VMS/old", CopySource=source)
    assert refusal[0] == 400
    assert service.get("VMS/old") == b"old"
    assert get_refusal(
        service.s3(BOB).copy_object, Bucket="Repo", Key="VMS/bob", CopySource=source
    ) == (403, "AccessDenied")


def send_half(service: Service, key: str, size: int = 1_000_000) -> http.client.HTTPConnection:
    path = f"/Repo/{key}"
    connection = service.connect()
    connection.putrequest("PUT", path)
    for name, value in {**service.sign("PUT", path), "Content-Length": str(size)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"x" * (size // 2))
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_cut_by_the_client(service: Service) -> None:
    """Upload cut half way: the old object of that name is kept, a new one is absent."""
    service.put()
    for key in (KEY, "VMS/new"):
        send_half(service, key).close()
    wait_for(lambda: len(service.server.requests) == 3)
    assert service.get() == BODY
    assert service.keys() == [KEY]
    wait_for(lambda: len(list(service.server.store.files.iterdir())) == 1)


def test_cut_by_the_server(service: Service) -> None:
    """Fault of the tests: the connection breaks after so many bytes, so many times."""
    service.faults.cut_puts, service.faults.cut_after = 1, 400_000
    with pytest.raises((ConnectionClosedError, ReadTimeoutError)):
        service.put(body=bytes(1_000_000))
    assert service.keys() == []
    assert service.server.requests[0].status == 0
    assert 400_000 <= service.server.requests[0].body_bytes < 1_000_000
    service.put(body=bytes(1_000_000))


def test_server_killed(tmp_path: Path) -> None:
    """Server killed during an upload: the old object is kept, a new one is absent."""
    first = Service(tmp_path)
    with first.server:
        first.put()
        halves = [send_half(first, KEY), send_half(first, "VMS/new")]
        wait_for(lambda: len(list(first.server.store.files.iterdir())) == 3)
    second = Service(tmp_path)
    with second.server:
        assert second.get() == BODY
        assert second.keys() == [KEY]
    for half in halves:
        half.close()


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    """What a crash left is gone at the next start: files without a key, keys without their file."""
    first = Service(tmp_path)
    with first.server:
        first.put()
        first.put("VMS/lost")
        first.put("VMS/short")
        store = first.server.store
        for key, action in (("VMS/lost", Path.unlink), ("VMS/short", lambda p: p.write_bytes(b""))):
            found = store.get(key)
            assert found is not None
            action(store.files / found.file)
        (store.files / "leftover").write_bytes(b"half")
    second = Service(tmp_path)
    with second.server:
        assert second.keys() == [KEY]
        # The request's own, empty body goes after its answer.
        wait_for(lambda: len(list(second.server.store.files.iterdir())) == 1)


def test_two_servers_of_one_folder(tmp_path: Path) -> None:
    """A second server leaves alone what the first is receiving, and sees what it has."""
    first = Service(tmp_path)
    with first.server:
        connection = send_half(first, KEY)
        wait_for(lambda: len(list(first.server.store.files.iterdir())) == 1)
        second = Service(tmp_path)
        with second.server:
            connection.send(b"x" * 500_000)
            assert connection.getresponse().status == 200
            assert second.get() == b"x" * 1_000_000


def test_two_uploads_at_once(service: Service) -> None:
    """Two uploads of one name at once: both 200; the one that finishes last wins whole."""
    slow = send_half(service, KEY)
    quick = threading.Thread(target=service.put)
    quick.start()
    quick.join()
    assert service.get() == BODY
    slow.send(b"x" * 500_000)
    assert slow.getresponse().status == 200
    assert service.get() == b"x" * 1_000_000


def test_objects_survive_a_restart(tmp_path: Path) -> None:
    """Objects, owners and ACLs stay in the folder."""
    first = Service(tmp_path)
    with first.server:
        first.put(ACL="public-read")
    second = Service(tmp_path)
    with second.server:
        assert second.get(user=BOB) == BODY
        assert get_refusal(second.s3(BOB).delete_object, Bucket="Repo", Key=KEY)[0] == 403


# ---- limits


@pytest.mark.parametrize(("length", "right"), [(192, True), (193, False), (197, False)])
def test_long_names(service: Service, length: int, right: bool) -> None:
    """Name length: from 193 up GET's ETag is wrong (canonical id of 36 characters)."""
    key = f"VMS/{ALICE.canonical_id}/{'n' * length}"
    assert service.put(key)["ETag"] == f'"{MD5}"'
    reply = service.s3().get_object(Bucket="Repo", Key=key)
    assert reply["Body"].read() == BODY
    assert (reply["ETag"] == f'"{MD5}"') is right
    assert service.s3().head_object(Bucket="Repo", Key=key)["ETag"] == f'"{MD5}"'


def test_too_long_name(service: Service) -> None:
    """Name length: at most 197 bytes with a 36-character canonical id."""
    key = f"VMS/{ALICE.canonical_id}/{'n' * 198}"
    assert get_refusal(service.s3().put_object, Bucket="Repo", Key=key, Body=BODY)[0] == 500
    assert service.keys() == []


def test_quota(service: Service) -> None:
    """Quota exceeded: 403 AccountProblem, after the whole body."""
    service.put("VMS/poor", bytes(900), POOR)
    refusal = get_refusal(
        service.s3(POOR).put_object, Bucket="Repo", Key="VMS/more", Body=bytes(101)
    )
    assert refusal == (403, "AccountProblem")
    assert service.server.requests[-1].body_bytes == 101
    service.put("VMS/poor", bytes(1000), POOR)  # what is replaced does not count


def test_another_users_folder(service: Service) -> None:
    """New key in another user's folder: 200 (!), and its owner can then not touch it."""
    service.put(KEY, user=BOB)
    s3 = service.s3(ALICE)
    assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")
    assert get_refusal(s3.put_object, Bucket="Repo", Key=KEY, Body=b"") == (403, "AccessDenied")
    assert get_refusal(s3.delete_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")


def test_secrets_are_not_shown(service: Service) -> None:
    """What the server remembers and shows of itself holds no secret and no signature."""
    service.put()
    shown = repr(service.server.requests) + repr(service.server.users)
    assert ALICE.secret not in shown and "AWS " not in shown
