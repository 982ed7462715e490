"""Phantom's HTTP service on this host's loopback: the query calls at `/`, the web API below
`/api/dev`."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import parse_qsl

from pipeline.disk.untrusted import to_number
from pipeline.machine.local_http import LocalHandler, LocalServer
from pipeline.phantom.query import Query
from pipeline.phantom.refusal import Refusal
from pipeline.phantom.signature import Signed, User, find_user
from pipeline.phantom.state import State
from pipeline.phantom.web import BASE, Web, find_web_user

REQUEST_BYTES = 1 << 20
"""A request's body may have this many; user-data of 16 KiB takes 24 of it."""
IDLE_SECONDS = 60.0
_LINGER_SECONDS = 2.0


class PhantomHandler(LocalHandler):
    """Answers the requests of one connection."""

    server: PhantomServer
    timeout = IDLE_SECONDS

    def setup(self) -> None:
        if self.server.address_family == socket.AF_INET:
            # Or an answer in two writes waits for the client's kernel.
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        super().setup()

    def answer(self) -> None:
        try:
            body = self._read_body()
            path, _, query = self.path.partition("?")
            if path == BASE or path.startswith(f"{BASE}/"):
                self._answer_web(path, body)
            elif path == "/" and self.command in ("GET", "POST"):
                self._answer_query(path, query, body)
            else:
                raise Refusal(404, "NotFound", "There is nothing here.")
        except Refusal as refusal:
            self._send(refusal.status, refusal.code, "text/plain", f"{refusal.text}\n".encode())
            if self.close_connection:
                self._linger()

    do_PATCH = do_OPTIONS = answer

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.close_connection = True
            raise Refusal(411, "LengthRequired", "The body has no length.")
        length = to_number(self.headers.get("Content-Length", "0"))
        if length is None or length > REQUEST_BYTES:
            self.close_connection = True
            raise Refusal(
                413, "RequestEntityTooLarge", f"A body has at most {REQUEST_BYTES} bytes."
            )
        return self.rfile.read(length)

    def _linger(self) -> None:
        """Reads what a refused client goes on to send, within bounds: where a connection closes
        with bytes unread, the kernel resets it, and the answer may be lost."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            left = 4 * REQUEST_BYTES
            while left > 0 and (read := self.rfile.read1(1 << 16)):
                left -= len(read)

    def _answer_query(self, path: str, query: str, body: bytes) -> None:
        text = "&".join(filter(None, (query, body.decode("latin-1"))))
        try:
            fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=1000))
        except ValueError as error:
            raise Refusal(400, "InvalidParameterValue", "There are too many fields.") from error
        request = Signed(
            method=self.command,
            host=self.headers.get("Host", ""),
            path=path,
            fields=fields,
            authorization=self.headers.get("Authorization", ""),
        )
        user = find_user(request, self.server.users, self.server.clock())
        answer = self.server.query.answer(user.access_key, fields)
        self._send(200, "OK", "text/xml", answer.encode())

    def _answer_web(self, path: str, body: bytes) -> None:
        user = find_web_user(self.headers.get("Authorization", ""), self.server.users)
        method = "GET" if self.command == "HEAD" else self.command
        reply = self.server.web.answer(user.access_key, method, path.removeprefix(BASE), body)
        sent = b"" if reply.body is None else json.dumps(reply.body).encode()
        # A location is relative to this server.
        headers = {
            name: f"{self.server.url}{value}" if name == "Location" else value
            for name, value in reply.headers.items()
        }
        phrase = HTTPStatus(reply.status).phrase
        self._send(reply.status, phrase, "application/json", sent, headers)

    def _send(
        self,
        status: int,
        phrase: str,
        kind: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status, phrase)
        self.send_header("Content-Type", kind)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="Phantom"')
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Where guests reach a Phantom that nobody else can reach."""

    url: str
    """As guests see it, without a slash at the end."""
    socket_name: str
    """The abstract name of the socket of this host that the URL leads to."""


class PhantomServer(LocalServer):
    """Serves a state for as long as the `with` block lasts.

    `sites` are the names of the sites that it knows. `changed` is called after a request by which
    machines may have to start or end. With `inside`, only guests reach it, and it has no
    port.
    """

    def __init__(
        self,
        state: State,
        users: Sequence[User],
        sites: Collection[str],
        *,
        port: int = 0,
        inside: Inside | None = None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        socket_name = None if inside is None else inside.socket_name
        super().__init__(
            PhantomHandler, port=port, private=inside is not None, socket_name=socket_name
        )
        self._inside = inside
        self.users = {user.access_key: user for user in users}
        self.query = Query(state, sites, changed)
        self.web = Web(state, sites, changed)
        self.clock = clock

    @property
    def url(self) -> str:
        """By which clients reach it, without a slash at the end."""
        return super().url if self._inside is None else self._inside.url
