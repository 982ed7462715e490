"""A Cumulus with what only tests want: how the real server was seen to answer requests that our
client never makes, a record of requests, quotas, TLS, and uploads that are cut or damaged."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.sax.saxutils import escape

from pipeline.clouds.nimbus.cumulus_server import (
    LONGEST_FILE_NAME,
    OCTETS,
    S3_NAMESPACE,
    CumulusHandler,
    CumulusServer,
    Dropped,
    S3Error,
    file_name_length,
    to_iso,
)
from pipeline.clouds.nimbus.cumulus_store import MD5_OF_NOTHING, Incoming, StoredObject
from pipeline.clouds.nimbus.settings import CumulusUser

_META_SUFFIX = len(".meta")


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A request that the server received, without its headers and so without its signature."""

    method: str
    path: str
    """Includes the query."""
    status: int
    """0: the connection was cut."""
    body_bytes: int


class StrictHandler(CumulusHandler):
    server: StrictCumulus

    def setup(self) -> None:
        super().setup()
        self.body_bytes = 0
        self.damages_copy = False

    def note(self, status: int) -> None:
        self.server.requests.append(
            LoggedRequest(
                method=self.command, path=self.path, status=status, body_bytes=self.body_bytes
            )
        )

    # ---- the body

    def receive(self, incoming: Incoming) -> None:
        sent = self.command == "PUT" and int(self.headers.get("Content-Length") or 0) > 0
        self.damages = sent and self.server.damage_puts > 0
        self.cuts = sent and self.server.cut_puts > 0
        self.server.cut_puts -= self.cuts
        super().receive(incoming)

    def read_body(self, size: int) -> bytes:
        data = super().read_body(size)
        self.body_bytes += len(data)
        if self.cuts and data and self.body_bytes >= self.server.cut_after:
            self._reset()
        if self.damages and data:
            self.server.damage_puts -= 1
            self.damages = False
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def _reset(self) -> None:
        """Resets the connection, as a router does that has lost track of it."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise Dropped

    # ---- requests that only other clients make

    def answer_elsewhere(self, user: CumulusUser, bucket: str) -> None:
        if bucket or self.command != "GET":
            super().answer_elsewhere(user, bucket)
        name = escape(user.s3id)
        self.send_xml(
            f'<ListAllMyBucketsResult xmlns="{S3_NAMESPACE}"><Owner><ID>{name}</ID><DisplayName>'
            f"{name}</DisplayName></Owner><Buckets><Bucket><Name>{self.server.bucket}</Name>"
            f"<CreationDate>{to_iso(0)}</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>"
        )

    def answer_object(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        if self.command == "HEAD":
            self._head(user, key)
        else:
            super().answer_object(user, key, incoming)

    def find_listed(self, parameters: Mapping[str, Sequence[str]]) -> Sequence[StoredObject]:
        limit = parameters.get("max-keys", ["-1"])[-1]
        if not limit.lstrip("-").isdigit():
            raise S3Error("InternalError")
        listed = super().find_listed(parameters)
        return listed if int(limit) < 0 else listed[: int(limit)]

    def find_etag(self, stored: StoredObject) -> str:
        # Above a certain length of name, the real server cannot write the file that keeps the MD5,
        # and answers with the MD5 of nothing: docs/facts/nimbus.md.
        kept = file_name_length(stored.key) + _META_SUFFIX <= LONGEST_FILE_NAME
        return stored.md5 if kept else MD5_OF_NOTHING

    def _head(self, user: CumulusUser, key: str) -> None:
        stored = self.find_readable(user, key)
        modified = time.gmtime(stored.stored)
        # The real server puts the day of the week in place of the day of the month, 00 on Mondays:
        # docs/facts/nimbus.md.
        date = (
            f"{modified.tm_year:04}-{modified.tm_mon:02}-{modified.tm_wday:02}"
            f"T{modified.tm_hour:02}:{modified.tm_min:02}:{modified.tm_sec:02}.000Z"
        )
        self.start(200, stored.size, {"ETag": f'"{stored.md5}"', "Last-Modified": date, **OCTETS})

    def copy(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        if self.server.refuse_copies:
            raise S3Error("InternalError")
        self.damages_copy = self.server.damage_copies
        super().copy(user, key, incoming)

    def keep(self, user: CumulusUser, key: str, incoming: Incoming) -> None:
        quota = self.server.quotas.get(user.canonical_id)
        others = [
            stored.size
            for stored in self.store.list("")
            if stored.owner == user.canonical_id and stored.key != key
        ]
        if quota is not None and sum(others) + incoming.size > quota:
            raise S3Error("AccountProblem")
        if self.damages_copy:
            incoming.md5 = MD5_OF_NOTHING
        super().keep(user, key, incoming)


class StrictCumulus(CumulusServer):
    """`quotas`: by canonical id, how many bytes an account's objects may have in all.
    `tls`: the files of the certificate and of its key."""

    handler: ClassVar[type[CumulusHandler]] = StrictHandler

    def __init__(
        self,
        folder: Path,
        users: Sequence[CumulusUser],
        *,
        quotas: Mapping[str, int] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        super().__init__(folder, users)
        self.requests: list[LoggedRequest] = []
        self.quotas = dict(quotas or {})
        self.cut_puts = 0
        """The number of PUTs to cut after `cut_after` bytes of body."""
        self.cut_after = 0
        self.damage_puts = 0
        """The number of PUTs to store with their first byte changed."""
        self.refuse_copies = False
        self.damage_copies = False
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
