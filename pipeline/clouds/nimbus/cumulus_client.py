"""Cumulus, the image repository of Nimbus, through boto3: all that is known of boto3 is here.

The client is set up as Cumulus needs it (signature version 2, path-style, no checksums of newer
S3s, nothing repeated by botocore), and its many exceptions become two: `Refused` and `Cut`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from pipeline.clouds.nimbus.settings import NimbusSettings

CONNECT_SECONDS = 10
READ_SECONDS = 120  # Cumulus answers an upload at once: it takes the md5 while bytes come in
REPORT_BYTES = 1 << 20  # progress is told this often: a call per read would cost more than reading


class Refused(Exception):
    """The server answered, and not with success."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class Cut(Exception):
    """No answer came: no connection, or one that broke. `connected` says which."""

    def __init__(self, reason: str, *, connected: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.connected = connected


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as the server lists it."""

    key: str
    size: int
    md5: str
    modified: datetime | None


class CumulusClient:
    """The few requests that work on Cumulus. Each is sent once."""

    def __init__(self, settings: NimbusSettings) -> None:
        self._bucket = settings.bucket
        self._s3 = _make_s3(settings)

    def list(self, prefix: str) -> list[StoredObject]:
        """The objects whose keys really start with `prefix`: the server takes it for an SQL LIKE,
        so more may come back. One reply holds all; Marker and MaxKeys must not be used."""
        with _translated():
            reply = self._s3.list_objects(Bucket=self._bucket, Prefix=prefix)
        return [
            StoredObject(
                key=each["Key"],
                size=int(each["Size"]),
                md5=str(each.get("ETag", "")).strip('"'),
                modified=each.get("LastModified"),
            )
            for each in reply.get("Contents", ())
            if each["Key"].startswith(prefix)
        ]

    def put(self, key: str, body: BinaryIO | WatchedFile, size: int, *, public: bool) -> str:
        """Sends an object in one request and returns the md5 that the server took of it. `public`
        must be said every time: a put without it takes the right to read away."""
        acl = {"ACL": "public-read"} if public else {}
        with _translated():
            reply = self._s3.put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentLength=size, **acl
            )
        return str(reply.get("ETag", "")).strip('"')

    def make_public(self, key: str) -> None:
        """Lets everybody read an object of our own."""
        with _translated():
            self._s3.put_object_acl(Bucket=self._bucket, Key=key, ACL="public-read")

    def is_own(self, key: str) -> bool:
        """Whether an object belongs to this account, or to nobody as it is gone: only to its owner
        the ACL of an object is told."""
        try:
            with _translated():
                self._s3.get_object_acl(Bucket=self._bucket, Key=key)
        except Refused as refused:
            if refused.status not in (403, 404):
                raise
            return refused.status == 404
        return True

    def delete(self, key: str) -> bool:
        """Removes an object; False when there was none."""
        try:
            with _translated():
                self._s3.delete_object(Bucket=self._bucket, Key=key)
        except Refused as refused:
            if refused.status == 404 and refused.code != "NoSuchBucket":
                return False
            raise
        return True


class WatchedFile:
    """A file being sent; tells how far reading has come, so that memory stays bounded and
    progress is known."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        done = self._file.tell()
        if done - self._told >= REPORT_BYTES or (not data and done != self._told):
            self._told = done
            self._advance(done)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._told = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _make_s3(settings: NimbusSettings) -> Any:  # boto3 has no types, and makes its methods at run
    # Imported here: half a second that `--help` and an unchanged build need not spend.
    import boto3
    import botocore.session
    from botocore.config import Config

    if settings.verify is False:
        # Asked for in sites.yaml, where its danger is told; a warning per request helps nobody.
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    config = Config(
        signature_version="s3",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        ignore_configured_endpoint_urls=True,
        # A proxy of the environment leads out of this machine, where no sandbox is.
        proxies={} if settings.sandbox else None,
    )
    # A profile of some AWS account, set in the environment, has no business here.
    core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    s3 = boto3.Session(botocore_session=core).client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name="us-east-1",  # some region must be said; no request carries it
        aws_access_key_id=settings.credentials.s3id,
        aws_secret_access_key=settings.credentials.secret,
        verify=settings.verify,
        config=config,
    )
    s3.meta.events.register("before-sign.s3", _sign_what_is_requested)
    return s3


def _sign_what_is_requested(request: Any, **_: object) -> None:
    """For calls on the bucket itself botocore signs `/Repo/` and requests `/Repo`."""
    request.auth_path = None


@contextmanager
def _translated() -> Iterator[None]:
    from botocore import exceptions, parsers

    try:
        yield
    except exceptions.ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise Refused(status, str(error.response.get("Error", {}).get("Code", ""))) from None
    except (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError) as error:
        raise Cut(_reason(error), connected=False) from None
    except exceptions.SSLError as error:
        raise Cut(f"no secure connection: {_reason(error)}", connected=False) from None
    except exceptions.ProxyConnectionError as error:
        raise Cut(f"the proxy does not answer: {_reason(error)}", connected=False) from None
    except exceptions.HTTPClientError as error:
        raise Cut(_reason(error), connected=True) from None
    except parsers.ResponseParserError:
        raise Refused(0, "an answer that is not S3's") from None


def _reason(error: BaseException) -> str:
    """The innermost of what botocore, urllib3 and the kernel say, in a few words."""
    cause: BaseException = getattr(error, "kwargs", {}).get("error") or error
    while (inner := _find_inner(cause)) is not None:
        cause = inner
    text = " ".join((getattr(cause, "strerror", None) or str(cause)).split())
    text = re.sub(r"^.*: (\[Errno -?\d+\] )?|^\[Errno -?\d+\] | \(_ssl\.c:\d+\)$", "", text)
    return text.rstrip(".") or type(cause).__name__


def _find_inner(error: BaseException) -> BaseException | None:
    candidates = (getattr(error, "reason", None), *error.args)
    return next((each for each in candidates if isinstance(each, BaseException)), None)
