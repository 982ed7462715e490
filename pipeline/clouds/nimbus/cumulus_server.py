"""A local Cumulus: the server of the sandbox site, and what the tests measure the client by.

It is as strict as the real server was seen to be, faults included, so that what works here works
there: version-2 signatures only and verified, one PUT per object, Range and conditions ignored,
Content-MD5 not verified, metadata lost, ACLs dropped by the next PUT, a Prefix that is an SQL LIKE,
HEAD's broken date, the 403 that comes after the whole body. One test per fact is in
`tests/clouds/test_cumulus_server.py`.

Bodies go straight to a file, and a file becomes an object when all of it is there. Objects and
their index (SQLite) stay in the folder, which several servers may share.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import secrets
import shutil
import socket
import sqlite3
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

_BLOCK = 1 << 18
_LONGEST_FILE_NAME = 255
_AROUND_KEY = 13  # what the real server puts around the quoted key: names end at 197, see the facts
_META_SUFFIX = len(".meta")
_MD5_OF_NOTHING = hashlib.md5(usedforsecurity=False).hexdigest()
_SIGNED_SUBRESOURCES = ("acl", "location", "logging", "torrent")
_READABLE_BY_OTHERS = ("public-read", "public-read-write", "authenticated-read")
_S3_NAMESPACE = "http://doc.s3.amazonaws.com/2006-03-01"
_STATUS = {
    "AccessDenied": 403,
    "AccountProblem": 403,
    "InternalError": 500,
    "InvalidArgument": 400,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NotImplemented": 501,
}


@dataclass(frozen=True, kw_only=True)
class CumulusUser:
    """An account of the server."""

    s3id: str
    secret: str = field(repr=False)
    canonical_id: str
    quota: int | None = None
    """Bytes that all objects of the account may have together."""


@dataclass(kw_only=True)
class Faults:
    """What shall go wrong, for tests. Counters go down as it happens."""

    cut_puts: int = 0
    """So many PUTs lose their connection after `cut_after` bytes of body."""
    cut_after: int = 0
    damage_puts: int = 0
    """So many PUTs are stored with their first byte changed."""


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A request that the server had; without headers, so without signatures."""

    method: str
    path: str
    """With its query."""
    status: int
    """0: cut."""
    body_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Object:
    key: str
    owner: str
    file: str
    size: int
    md5: str
    stored: float
    public: bool


class _S3Error(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.status = _STATUS[code]


class _CutBody(Exception):
    """The body ended before its Content-Length."""


@dataclass
class _Incoming:
    """A body on its way; its lock keeps other servers of the folder from clearing it away."""

    path: Path
    file: BinaryIO
    size: int = 0
    md5: str = _MD5_OF_NOTHING

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()


class _Store:
    """The objects of one bucket: files of random names, and the index that gives them keys."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "objects"
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            folder / "index.sqlite", isolation_level=None, timeout=30, check_same_thread=False
        )
        with self._transaction():
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS object (key TEXT PRIMARY KEY, owner TEXT, file TEXT,"
                " size INTEGER, md5 TEXT, stored REAL, public INTEGER)"
            )
            self._clear()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _clear(self) -> None:
        """Forgets objects whose file a crash took or cut, and removes files that one left over."""
        known = set()
        for each in self._select(""):
            path = self.files / each.file
            if path.exists() and path.stat().st_size == each.size:
                known.add(each.file)
            else:
                self._db.execute("DELETE FROM object WHERE key = ?", (each.key,))
        for path in self.files.iterdir():
            if path.name not in known and not _is_locked(path):
                path.unlink(missing_ok=True)

    def _select(self, where: str, *values: object) -> list[_Object]:
        rows = self._db.execute(
            f"SELECT key, owner, file, size, md5, stored, public FROM object {where}", values
        ).fetchall()
        return [
            _Object(key=k, owner=o, file=f, size=s, md5=m, stored=t, public=bool(p))
            for k, o, f, s, m, t, p in rows
        ]

    def get(self, key: str) -> _Object | None:
        with self._transaction():
            return next(iter(self._select("WHERE key = ?", key)), None)

    def open(self, key: str) -> tuple[_Object, BinaryIO] | None:
        with self._transaction():
            found = next(iter(self._select("WHERE key = ?", key)), None)
            return None if found is None else (found, (self.files / found.file).open("rb"))

    def list(self, prefix: str, limit: int) -> list[_Object]:
        with self._transaction():
            return self._select(
                "WHERE key LIKE ? ORDER BY key LIMIT ?",
                f"{prefix}%",
                limit,
            )

    def used(self, owner: str) -> int:
        with self._transaction():
            return sum(each.size for each in self._select("WHERE owner = ?", owner))

    def receive(self) -> _Incoming:
        with self._transaction():
            path = self.files / secrets.token_hex(16)
            file = path.open("w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            return _Incoming(path, file)

    def put(self, key: str, owner: str, incoming: _Incoming, stored: float, public: bool) -> None:
        """Gives a body its key, in the place of what had it."""
        incoming.file.flush()
        with self._transaction():
            old = self._select("WHERE key = ?", key)
            self._db.execute(
                "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, owner, incoming.path.name, incoming.size, incoming.md5, stored, public),
            )
        incoming.file.close()
        for each in old:
            (self.files / each.file).unlink(missing_ok=True)

    def set_public(self, key: str, public: bool) -> None:
        with self._transaction():
            self._db.execute("UPDATE object SET public = ? WHERE key = ?", (public, key))

    def delete(self, key: str) -> None:
        with self._transaction():
            old = self._select("WHERE key = ?", key)
            self._db.execute("DELETE FROM object WHERE key = ?", (key,))
        for each in old:
            (self.files / each.file).unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


class CumulusServer:
    """A Cumulus on an ephemeral port of this machine; a context manager that runs and stops it.

    `clock` gives the time, in seconds since 1970, at which objects are stored. `tls` is the file
    with the certificate and the one with its key.
    """

    def __init__(
        self,
        folder: Path,
        users: Sequence[CumulusUser],
        *,
        bucket: str = "Repo",
        clock: Callable[[], float] = time.time,
        faults: Faults | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.users = {user.s3id: user for user in users}
        self.bucket = bucket
        self.clock = clock
        self.faults = faults or Faults()
        self.requests: list[LoggedRequest] = []
        self.stopping = threading.Event()
        self.store = _Store(folder)
        self._http = _HttpServer(self)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name="cumulus", daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self.store.close()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True  # a request that hangs, as some do on the real server, must not hold us

    def __init__(self, cumulus: CumulusServer) -> None:
        self.cumulus = cumulus
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or a command that ended: nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    # With 1.1 the base class answers `Expect: 100-continue` before anything is looked at, which
    # is what Cumulus does.
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def setup(self) -> None:
        super().setup()
        self.cumulus = self.server.cumulus
        self.store = self.cumulus.store
        self.body_bytes = 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are in `CumulusServer.requests`."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = True
        self.raw_path, _, self.query = self.path.partition("?")
        incoming = self.store.receive()
        try:
            self._receive(incoming)
            self._dispatch(incoming)
        except _CutBody:
            self._log(0)
        except _S3Error as error:
            self._send_error(error)
        finally:
            if not incoming.file.closed:
                incoming.discard()

    # ---- the body

    def _receive(self, incoming: _Incoming) -> None:
        """Takes the whole body before anything is judged, as Cumulus does."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            if "x-amz-trailer" in self.headers or "trailer" in self.headers:
                self.cumulus.stopping.wait()
                raise _CutBody
            raise _S3Error("NotImplemented")  # how the real server takes it was not observed
        md5 = hashlib.md5(usedforsecurity=False)
        left = int(self.headers.get("Content-Length") or 0)
        cut_at = self._find_cut(left)
        damage = self.command == "PUT" and left > 0 and self.cumulus.faults.damage_puts > 0
        while left > 0:
            data = self.rfile.read(min(left, _BLOCK))
            if not data:
                raise _CutBody
            left -= len(data)
            self.body_bytes += len(data)
            if cut_at is not None and self.body_bytes >= cut_at:
                self._cut()
            if damage:
                self.cumulus.faults.damage_puts -= 1
                data, damage = bytes([data[0] ^ 1]) + data[1:], False
            md5.update(data)
            incoming.file.write(data)
        incoming.size, incoming.md5 = self.body_bytes, md5.hexdigest()

    def _find_cut(self, size: int) -> int | None:
        faults = self.cumulus.faults
        if self.command != "PUT" or size == 0 or faults.cut_puts == 0:
            return None
        faults.cut_puts -= 1
        return faults.cut_after

    def _cut(self) -> None:
        """Ends the connection with a reset, as a router that forgot it does."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise _CutBody

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    # ---- who asks

    def _find_user(self) -> CumulusUser:
        """Verifies the version-2 signature. Anything else than one breaks the real server."""
        scheme, _, signed = self.headers.get("Authorization", "").partition(" ")
        s3id, colon, signature = signed.strip().partition(":")
        if scheme != "AWS" or not colon:
            raise _S3Error("InternalError")
        user = self.cumulus.users.get(s3id)
        if user is None:
            raise _S3Error("AccessDenied")
        digest = hmac.new(user.secret.encode(), self._string_to_sign().encode(), hashlib.sha1)
        expected = base64.b64encode(digest.digest())
        if not hmac.compare_digest(expected, signature.encode()):
            raise _S3Error("AccessDenied")
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

    def _dispatch(self, incoming: _Incoming) -> None:
        user = self._find_user()
        bucket, _, raw_key = self.raw_path.lstrip("/").partition("/")
        key = unquote(raw_key)
        if not bucket and self.command == "GET":
            return self._list_buckets(user)
        if bucket != self.cumulus.bucket:
            raise _S3Error("NoSuchBucket")
        if not key:
            if self.command == "GET":
                return self._list()
            raise _S3Error("InvalidArgument")
        if self._asks_for("acl"):
            return self._acl(user, key)
        verbs: Mapping[str, Callable[[CumulusUser, str], None]] = {
            "GET": self._get,
            "HEAD": self._head,
            "DELETE": self._delete,
        }
        if self.command == "PUT" and "x-amz-copy-source" in self.headers:
            return self._copy(user, key, incoming)
        if self.command == "PUT":
            return self._put(user, key, incoming)
        if self.command in verbs:
            return verbs[self.command](user, key)
        raise _S3Error("InvalidArgument")

    def _find(self, key: str) -> _Object:
        found = self.store.get(key)
        if found is None:
            raise _S3Error("NoSuchKey")
        return found

    def _check_readable(self, user: CumulusUser, found: _Object) -> None:
        if found.owner != user.canonical_id and not found.public:
            raise _S3Error("AccessDenied")

    def _check_own(self, user: CumulusUser, found: _Object) -> None:
        if found.owner != user.canonical_id:
            raise _S3Error("AccessDenied")

    def _get(self, user: CumulusUser, key: str) -> None:
        self._check_readable(user, self._find(key))
        opened = self.store.open(key)
        if opened is None:
            raise _S3Error("NoSuchKey")
        found, file = opened
        # From some length on the real server cannot write the file that keeps the md5, and takes
        # that of nothing.
        etag = _MD5_OF_NOTHING if _file_name(key) + _META_SUFFIX > _LONGEST_FILE_NAME else found.md5
        with file:
            self._start(200, found.size, {"ETag": f'"{etag}"', **_OCTETS})
            shutil.copyfileobj(file, self.wfile, _BLOCK)

    def _head(self, user: CumulusUser, key: str) -> None:
        found = self._find(key)
        self._check_readable(user, found)
        modified = time.gmtime(found.stored)
        # The day of the week stands where the day of the month belongs: 00 on Mondays.
        date = (
            f"{modified.tm_year:04}-{modified.tm_mon:02}-{modified.tm_wday:02}"
            f"T{modified.tm_hour:02}:{modified.tm_min:02}:{modified.tm_sec:02}.000Z"
        )
        self._start(200, found.size, {"ETag": f'"{found.md5}"', "Last-Modified": date, **_OCTETS})

    def _put(self, user: CumulusUser, key: str, incoming: _Incoming) -> None:
        # Nothing looks at whose folder the key is in: a new key in another user's works.
        old = self.store.get(key)
        if old is not None:
            self._check_own(user, old)
        self._check_quota(user, incoming.size, 0 if old is None else old.size)
        self._store(user, key, incoming)
        self._send(200, b"", {"ETag": f'"{incoming.md5}"'})

    def _copy(self, user: CumulusUser, key: str, incoming: _Incoming) -> None:
        source = unquote(self.headers["x-amz-copy-source"].partition("?")[0]).lstrip("/")
        bucket, _, source_key = source.partition("/")
        if bucket != self.cumulus.bucket:
            raise _S3Error("NoSuchBucket")
        self._check_readable(user, self._find(source_key))
        if self.store.get(key) is not None:
            raise _S3Error("InvalidArgument")
        opened = self.store.open(source_key)
        if opened is None:
            raise _S3Error("NoSuchKey")
        found, file = opened
        self._check_quota(user, found.size, 0)
        with file:
            shutil.copyfileobj(file, incoming.file, _BLOCK)
        incoming.size, incoming.md5 = found.size, found.md5
        self._store(user, key, incoming)
        self._send_xml(
            f"<CopyObjectResult><LastModified>{_iso(self.cumulus.clock())}</LastModified>"
            f"<ETag>{found.md5}</ETag></CopyObjectResult>"
        )

    def _check_quota(self, user: CumulusUser, size: int, replaced: int) -> None:
        if user.quota is not None and self.store.used(user.canonical_id) - replaced + size > (
            user.quota
        ):
            raise _S3Error("AccountProblem")

    def _store(self, user: CumulusUser, key: str, incoming: _Incoming) -> None:
        if _file_name(key) > _LONGEST_FILE_NAME:
            raise _S3Error("InternalError")
        public = self.headers.get("x-amz-acl") in _READABLE_BY_OTHERS
        self.store.put(key, user.canonical_id, incoming, self.cumulus.clock(), public)

    def _delete(self, user: CumulusUser, key: str) -> None:
        self._check_own(user, self._find(key))
        self.store.delete(key)
        self._send(204, b"", {})

    def _acl(self, user: CumulusUser, key: str) -> None:
        found = self._find(key)
        self._check_own(user, found)
        if self.command == "PUT":
            if "x-amz-acl" not in self.headers:
                raise _S3Error("InvalidArgument")  # grants as XML: nobody here needs them
            self.store.set_public(key, self.headers["x-amz-acl"] in _READABLE_BY_OTHERS)
            self._send(200, b"", {})
            return
        if self.command != "GET":
            raise _S3Error("InvalidArgument")
        name = escape(user.s3id)
        grants = _grant(name, "FULL_CONTROL")
        if found.public:
            grants += _grant("CumulusPublicUser", "READ")
        self._send_xml(
            f"<AccessControlPolicy><Owner><ID>{name}</ID><DisplayName>{name}</DisplayName></Owner>"
            f"<AccessControlList>{grants}</AccessControlList></AccessControlPolicy>"
        )

    def _list(self) -> None:
        """All keys in one reply, other users' too; of the parameters only two do anything."""
        wanted = dict(parse_qsl(self.query, keep_blank_values=True))
        limit = wanted.get("max-keys", "-1")
        if not limit.lstrip("-").isdigit():
            raise _S3Error("InternalError")
        contents = "".join(
            f"<Contents><Key>{escape(each.key)}</Key><LastModified>{_iso(each.stored)}"
            f"</LastModified><ETag>&quot;{each.md5}&quot;</ETag><Size>{each.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for each in self.store.list(wanted.get("prefix", ""), int(limit))
        )
        self._send_xml(
            f'<ListBucketResult xmlns="{_S3_NAMESPACE}"><Name>{self.cumulus.bucket}</Name>'
            f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )

    def _list_buckets(self, user: CumulusUser) -> None:
        name = escape(user.s3id)
        self._send_xml(
            f'<ListAllMyBucketsResult xmlns="{_S3_NAMESPACE}"><Owner><ID>{name}</ID><DisplayName>'
            f"{name}</DisplayName></Owner><Buckets><Bucket><Name>{self.cumulus.bucket}</Name>"
            f"<CreationDate>{_iso(0)}</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>"
        )

    # ---- the reply

    def _log(self, status: int) -> None:
        self.cumulus.requests.append(
            LoggedRequest(
                method=self.command, path=self.path, status=status, body_bytes=self.body_bytes
            )
        )

    def _start(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self._log(status)
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

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._start(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_xml(self, text: str, status: int = 200) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self._send(status, body, {"Content-Type": "application/xml"})

    def _send_error(self, error: _S3Error) -> None:
        self._send_xml(
            f"<Error><Code>{error.code}</Code><Message>{error.code}</Message>"
            f"<Resource>{escape(self.raw_path)}</Resource></Error>",
            error.status,
        )


_OCTETS = {"Content-Type": "binary/octet-stream"}


def _file_name(key: str) -> int:
    """How long the name of the real server's file for a key is."""
    return len(quote(key, safe="")) + _AROUND_KEY


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _grant(name: str, permission: str) -> str:
    return (
        '<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:type="CanonicalUser"><ID>{name}</ID><DisplayName>{name}</DisplayName></Grantee>'
        f"<Permission>{permission}</Permission></Grant>"
    )
