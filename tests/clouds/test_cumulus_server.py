"""The local Cumulus behaves as the real one was seen to: docs/facts/nimbus.md. Each test checks one
observation, which its first line states, by boto3, or by a bare socket where boto3 cannot ask."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from strict_cumulus import StrictCumulus

from pipeline.clouds.nimbus.settings import CumulusUser

ALICE = CumulusUser(s3id="AKalice", secret="alice/s+cret", canonical_id="a" * 36)
BOB = CumulusUser(s3id="AKbob", secret="bob-secret", canonical_id="b" * 36)
POOR = CumulusUser(s3id="AKpoor", secret="poor-secret", canonical_id="c" * 36)
MONDAY = datetime(2025, 11, 24, 9, 30, tzinfo=UTC)
FRIDAY = datetime(2025, 11, 21, 9, 30, tzinfo=UTC)
KEY = f"VMS/{ALICE.canonical_id}/image.gz"
BODY = b"the bytes of an image"
MD5 = hashlib.md5(BODY).hexdigest()


SESSION = boto3.Session()  # one for all tests, since it caches the models of services


class Service:
    """The server, a clock that the test sets, and clients of the server."""

    def __init__(self, folder: Path) -> None:
        self.now = FRIDAY
        quotas = {POOR.canonical_id: 1000}
        self.server = StrictCumulus(folder, [ALICE, BOB, POOR], quotas=quotas)
        self.server.clock = lambda: self.now.timestamp()

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
    """The status and code of the error that the call must end in."""
    with pytest.raises(ClientError) as caught:
        call(*args, **parameters)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# ---- signatures


def test_version_4(service: Service) -> None:
    """Signature version 4: 500 InternalError to everything."""
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
    """Cumulus takes no anonymous requests (its source): even public objects need a signature."""
    service.put(ACL="public-read")
    connection = service.connect()
    connection.request("GET", f"/Repo/{KEY}")
    assert connection.getresponse().status == 500


def test_wrong_credentials(service: Service) -> None:
    """Wrong secret, unknown id, missing right: 403 AccessDenied."""
    unknown = CumulusUser(s3id="AKnobody", secret="x", canonical_id="n")
    service.put()
    for s3 in (service.s3(secret="wrong"), service.s3(unknown), service.s3(BOB)):
        assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")


def test_bucket_calls_need_the_hook(service: Service) -> None:
    """For requests to the bucket itself, botocore signs `/Repo/` but asks for `/Repo`."""
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
    """`Expect: 100-continue`: 100 at once, even for bad credentials; 403 only after the body."""
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
    """aws-chunked body with a Content-Length: 200; the framing becomes part of the object."""
    framed = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    path = f"/Repo/{KEY}"
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": "5"}
    connection = service.connect()
    connection.request("PUT", path, body=framed, headers=service.sign("PUT", path, headers))
    assert connection.getresponse().status == 200
    assert service.get() == framed


@pytest.mark.parametrize("said", [True, False])
def test_chunked_with_trailer(service: Service, said: bool) -> None:
    """Chunked body with a trailer: the server hangs."""
    path = f"/Repo/{KEY}"
    headers = service.sign("PUT", path, {"x-amz-trailer": "x-amz-checksum-crc32"} if said else {})
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
    """Wrong Content-MD5: 200, not verified; the ETag is the MD5 of the bytes that arrived."""
    wrong = base64.b64encode(hashlib.md5(b"something else").digest()).decode()
    assert service.put(ContentMD5=wrong)["ETag"] == f'"{MD5}"'
    assert service.get() == BODY


def test_multipart(service: Service) -> None:
    """Multipart upload: 403; one PUT for any size."""
    s3 = service.s3()
    create = get_refusal(s3.create_multipart_upload, Bucket="Repo", Key=KEY)
    part = get_refusal(
        s3.upload_part, Bucket="Repo", Key=KEY, PartNumber=1, UploadId="u", Body=BODY
    )
    assert create == part == (403, "AccessDenied")
    assert service.keys() == []


def test_range_and_conditions(service: Service) -> None:
    """Range, If-Match, If-None-Match: ignored; GET returns the whole body with 200."""
    service.put()
    for ignored in ({"Range": "bytes=0-3"}, {"IfMatch": '"0"'}, {"IfNoneMatch": f'"{MD5}"'}):
        reply = service.s3().get_object(Bucket="Repo", Key=KEY, **ignored)
        assert reply["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert reply["Body"].read() == BODY
    service.put(body=b"other", IfNoneMatch="*")
    assert service.get() == b"other"


def test_large_body_comes_back(service: Service) -> None:
    """GET returns the same large body that PUT sent."""
    data = bytes(range(251)) * 20_000
    assert service.put(body=data)["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert service.get() == data


# ---- HEAD


def test_head(service: Service) -> None:
    """HEAD: ETag is the MD5, Content-Length is right, Last-Modified is malformed."""
    service.put()
    reply = service.s3().head_object(Bucket="Repo", Key=KEY)
    assert (reply["ETag"], reply["ContentLength"]) == (f'"{MD5}"', len(BODY))
    assert reply["LastModified"] != FRIDAY


def test_head_on_monday(service: Service) -> None:
    """HEAD: for an object stored on a Monday, boto3's parser raises ValueError."""
    service.now = MONDAY
    service.put()
    with pytest.raises(ValueError, match="2025-11-00T09:30:00"):
        service.s3().head_object(Bucket="Repo", Key=KEY)
    listed = service.s3().list_objects(Bucket="Repo")["Contents"][0]
    assert listed["LastModified"] == MONDAY


def test_head_of_bucket(service: Service) -> None:
    """HEAD of the bucket: 400 or 403; neither means anything."""
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
    """List, v1 or v2: all keys in one reply; Marker, StartAfter and Delimiter are ignored."""
    assert service.keys() == five_keys
    assert service.keys(Marker="VMS/a/2", Delimiter="/") == five_keys
    second = service.s3().list_objects_v2(Bucket="Repo", StartAfter="VMS/a/2", Delimiter="/")
    assert [each["Key"] for each in second["Contents"]] == five_keys
    assert second["IsTruncated"] is False


def test_max_keys(service: Service, five_keys: list[str]) -> None:
    """List: cut at MaxKeys with IsTruncated=false."""
    reply = service.s3().list_objects(Bucket="Repo", MaxKeys=2)
    assert [each["Key"] for each in reply["Contents"]] == five_keys[:2]
    assert reply["IsTruncated"] is False


def test_prefix_is_like(service: Service, five_keys: list[str]) -> None:
    """List: Prefix is SQL LIKE (case-insensitive, `_` and `%` are wildcards)."""
    assert service.keys(Prefix="VMS/a/") == ["VMS/a/1", "VMS/a/2", "vms/A/5"]
    assert service.keys(Prefix="VMS/a_b/") == ["VMS/a_b/3", "VMS/axb/4"]
    assert service.keys(Prefix="%/4") == ["VMS/axb/4"]


def test_list_is_of_everybody(service: Service) -> None:
    """List: shows the keys of all users."""
    service.put(f"VMS/{BOB.canonical_id}/x", user=BOB)
    assert service.keys() == [f"VMS/{BOB.canonical_id}/x"]


# ---- deleting


def test_delete(service: Service) -> None:
    """DELETE: 204, or 404 NoSuchKey for a missing key."""
    service.put()
    reply = service.s3().delete_object(Bucket="Repo", Key=KEY)
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert get_refusal(service.s3().delete_object, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")


def test_bulk_delete(service: Service) -> None:
    """DELETE: bulk delete is 403."""
    service.put()
    bulk = {"Objects": [{"Key": KEY}]}
    assert get_refusal(service.s3().delete_objects, Bucket="Repo", Delete=bulk)[0] == 403
    assert service.keys() == [KEY]


def test_missing_key(service: Service) -> None:
    """Missing key: 404 NoSuchKey."""
    assert get_refusal(service.s3().get_object, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")
    assert get_refusal(service.s3().get_object_acl, Bucket="Repo", Key=KEY) == (404, "NoSuchKey")


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("list_objects", {}),
        ("list_objects_v2", {}),
        ("create_bucket", {}),
        ("delete_bucket", {}),
        ("get_object", {"Key": KEY}),
        ("put_object", {"Key": KEY, "Body": BODY}),
        ("delete_object", {"Key": KEY}),
        ("get_object_acl", {"Key": KEY}),
        ("put_object_acl", {"Key": KEY, "ACL": "public-read"}),
        ("copy_object", {"Key": KEY, "CopySource": {"Bucket": "Repo", "Key": KEY}}),
    ],
)
def test_missing_bucket(service: Service, operation: str, parameters: dict[str, Any]) -> None:
    """Anything in a bucket that does not exist: 404 NoSuchKey."""
    service.put()
    call = getattr(service.s3(), operation)
    assert get_refusal(call, Bucket="Other", **parameters) == (404, "NoSuchKey")


def test_head_and_copy_of_a_missing_bucket(service: Service) -> None:
    """Anything in a bucket that does not exist: 404, also where the reply has no body."""
    s3 = service.s3()
    assert get_refusal(s3.head_object, Bucket="Other", Key=KEY)[0] == 404
    assert get_refusal(s3.head_bucket, Bucket="Other")[0] == 404
    source = {"Bucket": "Other", "Key": KEY}
    copied = get_refusal(s3.copy_object, Bucket="Repo", Key=KEY, CopySource=source)
    assert copied == (404, "NoSuchKey")


def test_put_of_the_bucket(service: Service) -> None:
    """PUT of the bucket: 409 BucketAlreadyExists."""
    for user in (ALICE, BOB):
        refusal = get_refusal(service.s3(user).create_bucket, Bucket="Repo")
        assert refusal == (409, "BucketAlreadyExists")


# ---- ACLs and metadata


def test_acl(service: Service) -> None:
    """ACL `public-read`: others may read; a later PUT without the ACL removes it."""
    service.put(ACL="public-read")
    assert service.get(user=BOB) == BODY
    assert get_refusal(service.s3(BOB).put_object, Bucket="Repo", Key=KEY, Body=b"x")[0] == 403
    assert get_refusal(service.s3(BOB).delete_object, Bucket="Repo", Key=KEY)[0] == 403
    service.put()
    assert get_refusal(service.s3(BOB).get_object, Bucket="Repo", Key=KEY)[0] == 403


def test_acl_subresource(service: Service) -> None:
    """ACL of an object: only its owner may read and set it."""
    service.put()
    assert get_refusal(service.s3(BOB).get_object_acl, Bucket="Repo", Key=KEY)[0] == 403
    assert get_refusal(
        service.s3(BOB).put_object_acl, Bucket="Repo", Key=KEY, ACL="public-read"
    ) == (403, "AccessDenied")
    service.s3().put_object_acl(Bucket="Repo", Key=KEY, ACL="public-read")
    grants = service.s3().get_object_acl(Bucket="Repo", Key=KEY)["Grants"]
    assert [each["Permission"] for each in grants] == ["FULL_CONTROL", "READ"]
    assert service.get(user=BOB) == BODY


def test_a_grant_stays(service: Service) -> None:
    """Another user's GET after the ACL was set back to private: 200; the next PUT ends it."""
    service.put(ACL="public-read")
    service.s3().put_object_acl(Bucket="Repo", Key=KEY, ACL="private")
    assert service.get(user=BOB) == BODY
    service.put()
    assert get_refusal(service.s3(BOB).get_object, Bucket="Repo", Key=KEY)[0] == 403


@pytest.mark.parametrize("later", [False, True])
def test_public_read_write(service: Service, later: bool) -> None:
    """Another user overwrites an object with the ACL public-read-write: 200; the first owner can
    then neither read (403) nor delete it."""
    if later:
        service.put()
        service.s3().put_object_acl(Bucket="Repo", Key=KEY, ACL="public-read-write")
    else:
        service.put(ACL="public-read-write")
    service.put(body=b"bob's", user=BOB)
    assert service.get(user=BOB) == b"bob's"
    s3 = service.s3()
    assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")
    assert get_refusal(s3.delete_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")
    assert get_refusal(s3.put_object, Bucket="Repo", Key=KEY, Body=BODY) == (403, "AccessDenied")


def test_metadata(service: Service) -> None:
    """User metadata, Content-Type, tags: accepted and lost."""
    service.put(Metadata={"sha256": "abc"}, ContentType="text/plain", Tagging="a=b")
    reply = service.s3().head_object(Bucket="Repo", Key=KEY)
    assert (reply["Metadata"], reply["ContentType"]) == ({}, "binary/octet-stream")
    assert "TagCount" not in reply


# ---- copies, cuts, concurrent uploads


def test_copy(service: Service) -> None:
    """Copy: works to a new key; over an existing key it is 400, and the target stays."""
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
    """Upload cut halfway: the old object of that name stays; a new one does not appear."""
    service.put()
    for key in (KEY, "VMS/new"):
        send_half(service, key).close()
    wait_for(lambda: len(service.server.requests) == 3)
    assert service.get() == BODY
    assert service.keys() == [KEY]
    wait_for(lambda: len(list(service.server.store.files.iterdir())) == 1)


def test_cut_by_the_server(service: Service) -> None:
    """A fault for tests: a number of PUTs lose their connection after a number of bytes."""
    service.server.cut_puts, service.server.cut_after = 1, 400_000
    with pytest.raises((ConnectionClosedError, ReadTimeoutError)):
        service.put(body=bytes(1_000_000))
    assert service.keys() == []
    assert service.server.requests[0].status == 0
    assert 400_000 <= service.server.requests[0].body_bytes < 1_000_000
    service.put(body=bytes(1_000_000))


def test_server_killed(tmp_path: Path) -> None:
    """Server killed during an upload: the old object stays; a new one does not appear."""
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
    """The next start removes what a crash left: files without a key, keys without a good file."""
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
        # The server removes the request's own, empty body file after its answer.
        wait_for(lambda: len(list(second.server.store.files.iterdir())) == 1)


def test_two_servers_of_one_folder(tmp_path: Path) -> None:
    """A second server leaves the first one's upload alone, and serves the object it becomes."""
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
    """Two uploads to one name at once: 200 to both; the last to finish replaces the other whole."""
    slow = send_half(service, KEY)
    quick = threading.Thread(target=service.put)
    quick.start()
    quick.join()
    assert service.get() == BODY
    slow.send(b"x" * 500_000)
    assert slow.getresponse().status == 200
    assert service.get() == b"x" * 1_000_000


def test_objects_survive_a_restart(tmp_path: Path) -> None:
    """Objects, owners and ACLs survive a restart."""
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
    """Name length: from 193 bytes on, GET's ETag is wrong (canonical id of 36 characters)."""
    key = f"VMS/{ALICE.canonical_id}/{'n' * length}"
    assert service.put(key)["ETag"] == f'"{MD5}"'
    reply = service.s3().get_object(Bucket="Repo", Key=key)
    assert reply["Body"].read() == BODY
    assert (reply["ETag"] == f'"{MD5}"') is right
    assert service.s3().head_object(Bucket="Repo", Key=key)["ETag"] == f'"{MD5}"'


@pytest.mark.parametrize(
    "key",
    [
        f"VMS/{ALICE.canonical_id}/{'n' * 198}",  # the longest name has 197 bytes
        f"VMS/{ALICE.canonical_id}/{'n' * (240 - 41)}",
        "k" * 240,
        "k" * 256,
    ],
)
def test_too_long_key(service: Service, key: str) -> None:
    """PUT of a key of 240 to 256 bytes: drops the connection."""
    with pytest.raises(ConnectionClosedError):
        service.s3().put_object(Bucket="Repo", Key=key, Body=BODY)
    assert service.keys() == []


def send(service: Service, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """The whole answer to a request that is signed, and otherwise sent as it is given."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [
        f"{name}: {value}" for name, value in {**service.sign(method, path), **headers}.items()
    ]
    answer = b""
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as wire:
        wire.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        with suppress(ConnectionResetError):
            while data := wire.recv(4096):
                answer += data
    return answer


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "-1"}, {"Content-Length": "\u00b2"}])
def test_put_without_a_length(service: Service, headers: dict[str, str]) -> None:
    """PUT without a length: drops the connection."""
    assert send(service, "PUT", f"/Repo/{KEY}", headers, b"") == b""
    assert service.keys() == []


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize("chunks", [b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", b"0\r\n\r\n"])
def test_chunked(service: Service, chunks: bytes) -> None:
    """Chunked transfer encoding: 200; stores the body."""
    body = b"hello world" if chunks[:1] == b"5" else b""
    answer = send(service, "PUT", f"/Repo/{KEY}", CHUNKED, chunks)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert hashlib.md5(body).hexdigest().encode() in answer
    assert service.get() == body


@pytest.mark.parametrize("chunks", [b"5\r\nhel", b"x\r\n", b"5\r\nhello6\r\n", b"-1\r\n", b""])
def test_chunks_that_are_none(service: Service, chunks: bytes) -> None:
    """A body that ends too early, or is none, is not stored."""
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=10) as wire:
        lines = [f"{name}: {value}" for name, value in service.sign("PUT", f"/Repo/{KEY}").items()]
        head = [
            f"PUT /Repo/{KEY} HTTP/1.1",
            "Host: x",
            *lines,
            "Transfer-Encoding: chunked",
            "",
            "",
        ]
        wire.sendall("\r\n".join(head).encode() + chunks)
        wire.shutdown(socket.SHUT_WR)
        assert wire.recv(4096) == b""
    assert service.keys() == []


def test_a_key_that_is_a_uri(service: Service) -> None:
    """Key `cumulus:/`: 400 InvalidURI."""
    s3 = service.s3()
    put = get_refusal(s3.put_object, Bucket="Repo", Key="cumulus:/", Body=BODY)
    assert put == (400, "InvalidURI")
    assert get_refusal(s3.get_object, Bucket="Repo", Key="cumulus:/") == (400, "InvalidURI")


def test_quota(service: Service) -> None:
    """Quota exceeded: 403 AccountProblem, after the whole body."""
    service.put("VMS/poor", bytes(900), POOR)
    refusal = get_refusal(
        service.s3(POOR).put_object, Bucket="Repo", Key="VMS/more", Body=bytes(101)
    )
    assert refusal == (403, "AccountProblem")
    assert service.server.requests[-1].body_bytes == 101
    service.put("VMS/poor", bytes(1000), POOR)  # the replaced object does not count


def test_another_users_folder(service: Service) -> None:
    """New key in another user's folder: 200 (!), and that user can then not touch it."""
    service.put(KEY, user=BOB)
    s3 = service.s3(ALICE)
    assert get_refusal(s3.get_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")
    assert get_refusal(s3.put_object, Bucket="Repo", Key=KEY, Body=b"") == (403, "AccessDenied")
    assert get_refusal(s3.delete_object, Bucket="Repo", Key=KEY) == (403, "AccessDenied")


def test_secrets_are_not_shown(service: Service) -> None:
    """Neither the server's records nor its reprs hold a secret or a signature."""
    service.put()
    shown = repr(service.server.requests) + repr(service.server.users)
    assert ALICE.secret not in shown and "AWS " not in shown
