"""A local Cumulus: the server of the sandbox site, which takes what our client sends.

It is as strict as the real server was seen to be (docs/facts/nimbus.md), so that what works here
works there: version-2 signatures only and verified, one PUT per object, Content-MD5 not verified,
metadata lost, ACLs dropped by the next PUT, a Prefix that is an SQL LIKE, the 403 that comes after
the whole body. The tests' `strict_cumulus.py` adds what only other clients ask for.

`cumulus_store.py` keeps the objects.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

from pipeline.clouds.nimbus.cumulus_store import READ, WRITE, Incoming, Store, StoredObject
from pipeline.clouds.nimbus.settings import CumulusUser
from pipeline.disk.untrusted import to_number
from pipeline.machine.local_http import LocalHandler, LocalServer

BLOCK = 1 << 18
LONGEST_FILE_NAME = 255
_AROUND_KEY = 13  # around the quoted key; so names end at 197 bytes (docs/facts/nimbus.md)
_LONGEST_KEY = 239  # bytes; from 240 on the real server drops the connection
_LONGEST_LINE = 1 << 16
_FOREIGN_URI = "cumulus:/"
"""What the real server takes a key to be that starts so: a URI, and none that it knows."""
_SIGNED_SUBRESOURCES = ("acl", "location", "logging", "torrent")
_GRANTS = {
    "public-read": READ,
    "authenticated-read": READ,
    "public-read-write": READ | WRITE,
}
"""What the canned ACLs grant to others."""
OCTETS = {"Content-Type": "binary/octet-stream"}
S3_NAMESPACE = "http://doc.s3.amazonaws.com/2006-03-01"
_STATUS = {
    "AccessDenied": 403,
    "AccountProblem": 403,
    "BucketAlreadyExists": 409,
    "InternalError": 500,
    "InvalidArgument": 400,
    "InvalidURI": 400,
    "NoSuchKey": 404,
}


class S3Error(Exception):
    """An answer that tells of an error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.status = _STATUS[code]


class Dropped(Exception):
    """The connection ends without an answer."""


class CumulusHandler(LocalHandler):
    """Answers one request, and closes its connection."""

    server: CumulusServer

    def setup(self) -> None:
        super().setup()
        self.store = self.server.store

    def answer(self) -> None:
        self.close_connection = True
        self.raw_path, _, self.query = self.path.partition("?")
        incoming = self.store.receive()
        try:
            self.receive(incoming)
            self._dispatch(incoming)
        except Dropped:
            self.note(0)
        except S3Error as error:
            self._send_error(error)
        finally:
            if not incoming.file.closed:
                incoming.discard()

    def note(self, status: int) -> None:
        """Called once for each request, with the status of its answer; 0: it was cut."""

    # ---- the body

    def receive(self, incoming: Incoming) -> None:
        """Takes the whole body before anything is judged, as Cumulus does."""
        md5 = hashlib.md5(usedforsecurity=False)
        for data in self._read_chunks() if self._is_chunked() else self._read_whole():
            incoming.size += len(data)
            md5.update(data)
            incoming.file.write(data)
        incoming.md5 = md5.hexdigest()

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def _read_whole(self) -> Iterator[bytes]:
        """A body whose length the headers tell. A PUT must tell it."""
        told = self.headers.get("Content-Length")
        if told is None and self.command != "PUT":
            return
        size = None if told is None else to_number(told)
        if size is None:
            raise Dropped
        yield from self._read(size)

    def _read_chunks(self) -> Iterator[bytes]:
        """A body in chunks. Where a trailer follows them, the real server hangs."""
        hangs = "x-amz-trailer" in self.headers or "trailer" in self.headers
        while not hangs and (size := self._read_size()):
            yield from self._read(size)
            if self._read_line():
                raise Dropped
        if hangs or self._read_line():
            self.server.stopping.wait()
            raise Dropped

    def _read_size(self) -> int:
        match = re.fullmatch(rb"([0-9A-Fa-f]{1,12})[ \t]*(;.*)?", self._read_line())
        if match is None:
            raise Dropped
        return int(match[1], 16)

    def _read_line(self) -> bytes:
        line = self.rfile.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise Dropped
        return line.rstrip(b"\r\n")

    def _read(self, left: int) -> Iterator[bytes]:
        while left > 0:
            data = self.read_body(min(left, BLOCK))
            if not data:
                raise Dropped
            left -= len(data)
            yield data

    def read_body(self, size: int) -> bytes:
        """The next bytes of the body; none where the connection ended."""
        return self.rfile.read(size)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    # ---- who asks

    def _find_user(self) -> CumulusUser:
        """Verifies the version-2 signature. The real server breaks on any other."""
        scheme, _, signed = self.headers.get("Authorization", "").partition(" ")
        s3id, colon, signature = signed.strip().partition(":")
        if scheme != "AWS" or not colon:
            raise S3Error("InternalError")
        user = self.server.users.get(s3id)
        if user is None:
            raise S3Error("AccessDenied")
        digest = hmac.new(user.secret.encode(), self._string_to_sign().encode(), hashlib.sha1)
        expected = base64.b64encode(digest.digest())
        if not hmac.compare_digest(expected, signature.encode()):
            raise S3Error("AccessDenied")
        return user

    def _string_to_sign(self) -> str:
        amz = {
            name.lower(): ",".join(value.strip() for value in self.headers.get_all(name, ()))
            for name in self.headers
            if name.lower().startswith("x-amz-")
        }
        date = "" if "x-amz-date" in amz else self.headers.get("Date", "")
        lines = [
            self.command,
            self.headers.get("Content-MD5", ""),
            self.headers.get("Content-Type", ""),
            date,
            *(f"{name}:{amz[name]}" for name in sorted(amz)),
        ]
        # Only these are signed: so `?uploads`, `?partNumber` and `?delete`, which clients sign
        # too, never match, and multipart and bulk delete end with 403.
        resource = self.raw_path + "".join(
            f"?{name}" for name in _SIGNED_SUBRESOURCES if self._asks_for(name)
        )
        return "\n".join([*lines, resource])

    def _asks_for(self, subresource: str) -> bool:
        return subresource in self.query.split("&")

    # ---- what is asked

    def _dispatch(self, incoming: Incoming) -> None:
        user = self._find_user()
        bucket, _, raw_key = self.raw_path.lstrip("/").partition("/")
        if bucket != self.server.bucket:
            return self.answer_elsewhere(user, bucket)
        key = unquote(raw_key)
        if not key:
            return self._answer_bucket()
        if key.startswith(_FOREIGN_URI):
            raise S3Error("InvalidURI")
        if self._asks_for("acl"):
            return self._acl(user, key)
        return self.answer_object(user, key, incoming)

    def answer_elsewhere(self, user: CumulusUser, bucket: str) -> None:
        """Answers what is asked outside the server's bucket."""
        raise S3Error("NoSuchKey")

    def _answer_bucket(self) -> None:
        """Answers what is asked of the bucket itself."""
        if self.command == "GET":
            self._list()
        elif self.command == "PUT" and not self._asks_for("acl"):
            raise S3Error("BucketAlreadyExists")
        else:
            raise S3Error("InvalidArgument")

    def answer_object(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        """Answers what is asked of an object itself."""
        if self.command == "PUT" and "x-amz-copy-source" in self.headers:
            self.copy(user, key, incoming)
        elif self.command == "PUT":
            self._put(user, key, incoming)
        elif self.command == "DELETE":
            self._check_own(user, self.find(key))
            self.store.delete(key)
            self.send(204, b"", {})
        elif self.command == "GET":
            self._get(user, key)
        else:
            raise S3Error("InvalidArgument")

    def _get(self, user: CumulusUser, key: str) -> None:
        """Sends the whole object, whatever part of it is asked for."""
        self.find_readable(user, key)
        opened = self.store.open(key)
        if opened is None:
            raise S3Error("NoSuchKey")
        stored, file = opened
        with file:
            self.start(200, stored.size, {"ETag": f'"{self.find_etag(stored)}"', **OCTETS})
            shutil.copyfileobj(file, self.wfile, BLOCK)

    def find_etag(self, stored: StoredObject) -> str:
        """What is told of an object's content."""
        return stored.md5

    def find(self, key: str) -> StoredObject:
        """The object of a key. Raises S3Error."""
        stored = self.store.get(key)
        if stored is None:
            raise S3Error("NoSuchKey")
        return stored

    def _check_own(self, user: CumulusUser, stored: StoredObject) -> None:
        if stored.owner != user.canonical_id:
            raise S3Error("AccessDenied")

    def find_readable(self, user: CumulusUser, key: str) -> StoredObject:
        """The object of a key, if the user may read it. Raises S3Error."""
        stored = self.find(key)
        if not stored.public:
            self._check_own(user, stored)
        return stored

    def _put(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        # Cumulus does not look at whose folder the key is in: a new key in another user's works.
        # An object that others may write to is theirs afterwards, and no longer its owner's.
        old = self.store.get(key)
        if old is not None and not old.grants & WRITE:
            self._check_own(user, old)
        self.keep(user, key, incoming)
        self.send(200, b"", {"ETag": f'"{incoming.md5}"'})

    def keep(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        """Stores a body that came whole. Raises S3Error, and Dropped for a key that is too long."""
        if file_name_length(key) > LONGEST_FILE_NAME or len(key.encode()) > _LONGEST_KEY:
            raise Dropped
        grants = _GRANTS.get(self.headers.get("x-amz-acl", ""), 0)
        self.store.put(key, user.canonical_id, incoming, self.server.clock(), grants)

    def copy(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        """Copies an object to a key that is new."""
        source = unquote(self.headers["x-amz-copy-source"].partition("?")[0]).lstrip("/")
        bucket, _, source_key = source.partition("/")
        if bucket != self.server.bucket:
            raise S3Error("NoSuchKey")
        self.find_readable(user, source_key)
        if self.store.get(key) is not None:
            raise S3Error("InvalidArgument")
        opened = self.store.open(source_key)
        if opened is None:
            raise S3Error("NoSuchKey")
        stored, file = opened
        with file:
            shutil.copyfileobj(file, incoming.file, BLOCK)
        incoming.size, incoming.md5 = stored.size, stored.md5
        self.keep(user, key, incoming)
        self.send_xml(
            f"<CopyObjectResult><LastModified>{to_iso(self.server.clock())}</LastModified>"
            f"<ETag>{stored.md5}</ETag></CopyObjectResult>"
        )

    def _acl(self, user: CumulusUser, key: str) -> None:
        stored = self.find(key)
        self._check_own(user, stored)
        if self.command == "PUT":
            if "x-amz-acl" not in self.headers:
                raise S3Error("InvalidArgument")  # grants as XML, which our client never sends
            # A grant stays even where the new ACL is `private`.
            self.store.grant(key, _GRANTS.get(self.headers["x-amz-acl"], 0))
            self.send(200, b"", {})
            return
        if self.command != "GET":
            raise S3Error("InvalidArgument")
        name = escape(user.s3id)
        grants = _grant(name, "FULL_CONTROL")
        if stored.public:
            grants += _grant("CumulusPublicUser", "READ")
        if stored.grants & WRITE:
            grants += _grant("CumulusPublicUser", "WRITE")
        self.send_xml(
            f"<AccessControlPolicy><Owner><ID>{name}</ID><DisplayName>{name}</DisplayName></Owner>"
            f"<AccessControlList>{grants}</AccessControlList></AccessControlPolicy>"
        )

    def _list(self) -> None:
        """All keys in one reply, other users' too; Marker and Delimiter are ignored."""
        contents = "".join(
            f"<Contents><Key>{escape(stored.key)}</Key><LastModified>{to_iso(stored.stored)}"
            f"</LastModified><ETag>&quot;{stored.md5}&quot;</ETag><Size>{stored.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for stored in self.find_listed(parse_qs(self.query, keep_blank_values=True))
        )
        self.send_xml(
            f'<ListBucketResult xmlns="{S3_NAMESPACE}"><Name>{self.server.bucket}</Name>'
            f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )

    def find_listed(self, parameters: Mapping[str, Sequence[str]]) -> Sequence[StoredObject]:
        """The objects that a list shows."""
        return self.store.list(parameters.get("prefix", [""])[-1])

    # ---- the reply

    def start(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        """Sends the status line and the headers."""
        self.note(status)
        self.send_response(status)
        for name, value in {
            "x-amz-request-id": uuid.uuid4().hex,
            "Content-Length": str(size),
            "Connection": "close",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return "cumulus"

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends a whole reply."""
        self.start(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_xml(self, text: str, status: int = 200) -> None:
        """Sends a whole reply of XML."""
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.send(status, body, {"Content-Type": "application/xml"})

    def _send_error(self, error: S3Error) -> None:
        self.send_xml(
            f"<Error><Code>{error.code}</Code><Message>{error.code}</Message>"
            f"<Resource>{escape(self.raw_path)}</Resource></Error>",
            error.status,
        )


def file_name_length(key: str) -> int:
    """How long the name of the real server's file for a key is."""
    return len(quote(key, safe="")) + _AROUND_KEY


def to_iso(seconds: float) -> str:
    """A moment as S3 writes it, from seconds since 1970."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _grant(name: str, permission: str) -> str:
    return (
        '<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:type="CanonicalUser"><ID>{name}</ID><DisplayName>{name}</DisplayName></Grantee>'
        f"<Permission>{permission}</Permission></Grant>"
    )


class CumulusServer(LocalServer):
    """A Cumulus on an ephemeral port of this machine; a context manager that runs and stops it."""

    handler: ClassVar[type[CumulusHandler]] = CumulusHandler
    clock: Callable[[], float] = staticmethod(time.time)
    """Gives the time, in seconds since 1970, at which objects are stored."""

    def __init__(self, folder: Path, users: Sequence[CumulusUser], *, bucket: str = "Repo") -> None:
        self.store = Store(folder)
        self.users = {user.s3id: user for user in users}
        self.bucket = bucket
        super().__init__(self.handler)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.store.close()
