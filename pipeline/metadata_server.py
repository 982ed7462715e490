"""A cloud's metadata service on this host: for the boot check, and for the tests of the fetcher.

`MetadataServer` serves one cloud's service, `NimbusMetadata` or `Ec2Metadata`, which answer as
strictly as the real ones do: what was observed on Nimbus 2.10's own server (facts on Nimbus, "The
metadata server"), and what EC2's documentation says (facts on EC2, "What the guest needs"). A
`Fault` stands for an answer that a guest must survive before it gets a proper one.

A booted guest can hand in its report at the same server: see `MetadataServer.on_report`.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar, Protocol, Self
from urllib.parse import urlsplit

NIMBUS_USER_DATA_CHARACTERS = 30_720  # facts on Nimbus: "at most 30,720 characters"
EC2_USER_DATA_BYTES = 16_384  # facts on EC2: "at most 16 KB, any bytes"
EC2_VERSIONS = (
    *("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01"),
    *("2008-09-01", "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25"),
    *("2014-11-05", "2015-10-20", "2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28"),
    *("2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03", "2021-03-23"),
)
"""What may stand in place of `latest` in a path, as EC2's documentation lists them."""
EC2_TOKEN_SECONDS = 21_600  # facts on EC2: the longest life of a token
REPORT_BYTES = 1 << 20  # a boot report is a few kilobytes; what is bigger is not one
DRIP_SECONDS = 0.2  # quick enough that no time-out between two reads, only one in all, ends it
IDLE_SECONDS = 30.0  # a guest that died in the middle of a request must not keep its thread

TOKEN_PATH = "/latest/api/token"
USER_DATA_PATH = "/latest/user-data"
META_DATA_PATH = "/latest/meta-data/"
IDENTITY_PATH = "/latest/dynamic/instance-identity/"

NIMBUS_META_DATA: Mapping[str, str] = {
    "ami-id": "hello-phantom.gz",
    "ami-launch-index": "0",
    "local-hostname": "vm-1",
    "local-ipv4": "10.0.0.2",
    "public-hostname": "vm-1.example.org",
    "public-ipv4": "10.0.0.2",
}
EC2_META_DATA: Mapping[str, str] = {
    "ami-id": "ami-0123456789abcdef0",
    "ami-launch-index": "0",
    "instance-id": "i-0123456789abcdef0",
    "local-ipv4": "10.0.0.2",
    # cloud-init asks for the card again and again where it is not told.
    "mac": "52:54:00:12:34:56",
    "network/interfaces/macs/52:54:00:12:34:56/device-number": "0",
    "network/interfaces/macs/52:54:00:12:34:56/local-ipv4s": "10.0.0.2",
    "network/interfaces/macs/52:54:00:12:34:56/mac": "52:54:00:12:34:56",
    "placement/availability-zone": "us-east-1a",
}
"""The card is the one that QEMU gives a machine."""
EC2_IDENTITY: Mapping[str, str] = {
    "document": '{"instanceId": "i-0123456789abcdef0", "region": "us-east-1"}'
}


class Fault(Enum):
    """What one request gets in place of its proper answer."""

    BAD_REQUEST = "400"
    UNAUTHORIZED = "401"  # EC2: the token is missing or stale
    FORBIDDEN = "403"  # Nimbus: the caller's address is not known yet, an empty body
    NOT_FOUND = "404"  # Nimbus: two VMs with the caller's address, an HTML page
    ERROR = "500"
    NOT_IMPLEMENTED = "501"
    UNAVAILABLE = "503"  # a service that is still starting
    ERROR_PAGE = "200 with an HTML page"  # as a proxy or a captive portal answers
    REDIRECT = "302 to user-data that must not be run"
    EMPTY = "200 with an empty body"
    HANG = "accepts the connection and never answers"
    DRIP = "one byte after the other, for ever"
    RESET = "the connection is reset"
    TRUNCATED = "a body that ends before its Content-Length"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as the service sees it; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecordedRequest:
    """What was asked, when (seconds of the monotonic clock), and the status; None: no answer."""

    time: float
    method: str
    path: str
    status: int | None
    token: bool = False
    """Whether it came with one of EC2's tokens, valid or not."""
    lacked_token: bool = False
    """Whether it asked for data without a token where one is required, whatever it got: a service
    that is late refuses it for another reason."""


class MetadataService(Protocol):
    """One cloud's metadata service."""

    @property
    def faults(self) -> Iterable[Fault | None]:
        """What the first requests get; None lets one request through to its proper answer."""

    @property
    def requires_token(self) -> bool:
        """Whether data is given only to those who come with a token."""

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""


def make_html_page(status: int, title: str) -> Answer:
    """Return an error page such as servlet containers and proxies send."""
    page = f"<html>\n<head><title>{status} {title}</title></head>\n<body>{title}</body>\n</html>\n"
    return Answer(status=status, body=page.encode(), content_type="text/html")


@dataclass(frozen=True, kw_only=True)
class NimbusMetadata:
    """The metadata server of Nimbus 2.10, as it was observed.

    - `/latest/user-data` is 200 and the data plus one newline; without data, 200 and one newline.
      The data is text: what is not Latin-1 becomes `?`, so gzip does not survive.
    - An unknown path is a 404 with an HTML page; so is `/latest/meta-data` without its last slash.
    - There is no instance-id and no token call. How it refuses methods other than GET was not
      observed: 501 here.

    Raises ValueError for user-data that Nimbus would not take at launch.
    """

    requires_token: ClassVar[bool] = False
    LATE: ClassVar[Fault] = Fault.FORBIDDEN
    """What the first requests get where it is not ready for a machine that boots."""
    LIMIT: ClassVar[int] = NIMBUS_USER_DATA_CHARACTERS
    """How long user-data may be."""
    ANY_BYTES: ClassVar[bool] = False
    """Whether user-data is any bytes, and not text alone."""

    user_data: bytes | None = None
    meta_data: Mapping[str, str] = field(default_factory=lambda: NIMBUS_META_DATA)
    faults: Iterable[Fault | None] = ()

    def __post_init__(self) -> None:
        if len(self._find_text()) > NIMBUS_USER_DATA_CHARACTERS:
            raise ValueError(
                f"user-data for Nimbus has at most {NIMBUS_USER_DATA_CHARACTERS} characters"
            )

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""
        if request.method != "GET":
            return make_html_page(501, "Not Implemented")
        if request.path == USER_DATA_PATH:
            text = self._find_text() + "\n"
            return Answer(status=200, body=text.encode("latin-1", errors="replace"))
        found = find_meta_data(self.meta_data, request.path)
        return found or make_html_page(404, "Not Found")

    def _find_text(self) -> str:
        return (self.user_data or b"").decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class Ec2Metadata:
    """EC2's metadata service, version 2, as its documentation describes it.

    - `PUT /latest/api/token` needs `X-aws-ec2-metadata-token-ttl-seconds` from 1 to
      21,600, else 400.
    - Every GET needs a token that lives, else 401. With `tokens_required` false, one without any
      token is answered as in version 1; a wrong token is a 401 all the same.
    - Without user-data, `/latest/user-data` is a 404.
    - The version of an interface may stand in place of `latest`: cloud-init asks for one.
    - `token_status` is how a service that knows only version 1 answers the token call (404, 405 or
      501), after which it wants no tokens; `enabled` false is a disabled service: always 403.

    Raises ValueError for user-data that EC2 would not take at launch.
    """

    LATE: ClassVar[Fault] = Fault.RESET
    """What the first requests get where it is not ready for a machine that boots. Not an error of
    HTTP: cloud-init takes any of these, at the token call, for the word that the service is off,
    and that call is the one which it repeats: so none of them may be an error of HTTP."""
    LIMIT: ClassVar[int] = EC2_USER_DATA_BYTES
    """How long user-data may be."""
    ANY_BYTES: ClassVar[bool] = True
    """Whether user-data is any bytes, and not text alone."""

    user_data: bytes | None = None
    meta_data: Mapping[str, str] = field(default_factory=lambda: EC2_META_DATA)
    faults: Iterable[Fault | None] = ()
    tokens_required: bool = True
    token_status: int | None = None
    enabled: bool = True
    _token_ends: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.user_data or b"") > EC2_USER_DATA_BYTES:
            raise ValueError(f"user-data for EC2 has at most {EC2_USER_DATA_BYTES} bytes")

    @property
    def requires_token(self) -> bool:
        """Whether data is given only to those who come with a token."""
        return self.enabled and self.tokens_required and self.token_status is None

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""
        if not self.enabled:
            return make_xhtml_page(403, "Forbidden")
        if request.path == TOKEN_PATH:
            return self._answer_token(request)
        if request.method != "GET":
            return make_xhtml_page(405, "Method Not Allowed")
        if not self._is_allowed(request):
            return make_xhtml_page(401, "Unauthorized")
        version, _, rest = request.path.removeprefix("/").partition("/")
        path = f"/latest/{rest}" if version in EC2_VERSIONS else request.path
        if path == USER_DATA_PATH and self.user_data is not None:
            return Answer(status=200, body=self.user_data, content_type="application/octet-stream")
        for each in (path, f"{path}/"):  # folders are listed without their slash too
            found = find_meta_data(self.meta_data, each)
            found = found or find_meta_data(EC2_IDENTITY, each, IDENTITY_PATH)
            if found is not None:
                return found
        return make_xhtml_page(404, "Not Found")

    def _answer_token(self, request: Request) -> Answer:
        if self.token_status is not None:
            return make_xhtml_page(self.token_status, "No Tokens Here")
        if request.method != "PUT":
            return make_xhtml_page(405, "Method Not Allowed")
        seconds = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not (seconds.isascii() and seconds.isdigit()):
            return make_xhtml_page(400, "Bad Request")
        if not 1 <= int(seconds) <= EC2_TOKEN_SECONDS:
            return make_xhtml_page(400, "Bad Request")
        token = secrets.token_urlsafe(40) + "=="
        self._token_ends[token] = time.monotonic() + int(seconds)
        return Answer(status=200, body=token.encode())

    def _is_allowed(self, request: Request) -> bool:
        token = request.headers.get("x-aws-ec2-metadata-token")
        if token is None:
            return not self.requires_token
        return time.monotonic() < self._token_ends.get(token, 0)


def make_xhtml_page(status: int, title: str) -> Answer:
    """Return an error page in the form of EC2's."""
    page = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n'
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"\n'
        '         "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n'
        f" <head>\n  <title>{status} - {title}</title>\n </head>\n"
        f" <body>\n  <h1>{status} - {title}</h1>\n </body>\n</html>\n"
    )
    return Answer(status=status, body=page.encode(), content_type="text/html")


def find_meta_data(
    meta_data: Mapping[str, str], path: str, top: str = META_DATA_PATH
) -> Answer | None:
    """Return the listing or the one value that `path` names, None where there is none."""
    if not path.startswith(top):
        return None
    name = path.removeprefix(top)
    if name in meta_data:
        return Answer(status=200, body=meta_data[name].encode())
    if name and not name.endswith("/"):
        return None
    # What lies in a folder: with a slash where it is one itself.
    below = (each.removeprefix(name) for each in meta_data if each.startswith(name))
    listed = {"".join(each.partition("/")[:2]) for each in below}
    if not listed and name:
        return None
    return Answer(status=200, body="\n".join(sorted(listed)).encode())


FAULT_ANSWERS: Mapping[Fault, Answer] = {
    Fault.BAD_REQUEST: make_html_page(400, "Bad Request"),
    Fault.UNAUTHORIZED: make_html_page(401, "Unauthorized"),
    Fault.FORBIDDEN: Answer(status=403),
    Fault.NOT_FOUND: make_html_page(404, "Not Found"),
    Fault.ERROR: make_html_page(500, "Internal Server Error"),
    Fault.NOT_IMPLEMENTED: make_html_page(501, "Not Implemented"),
    Fault.UNAVAILABLE: make_html_page(503, "Service Unavailable"),
    Fault.ERROR_PAGE: make_html_page(200, "Please log in"),
    Fault.REDIRECT: Answer(status=302, headers={"Location": "/redirected"}),
    Fault.EMPTY: Answer(status=200),
}
REDIRECTED = Answer(status=200, body=b"#!/bin/sh\necho a redirect was followed and run\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], owner: MetadataServer) -> None:
        self.owner = owner
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own method asks DNS for the name of the address, which can take seconds.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    _lacked_token = False

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `MetadataServer.requests` is the record."""

    def _answer(self) -> None:
        owner = self.server.owner
        path = urlsplit(self.path).path
        self._lacked_token = False  # one handler answers all requests of a connection
        if owner.on_report is not None and path == owner.report_path:
            self._send(self._take_report())
            return
        if owner._is_choice(path):
            chosen = self.command == "POST"
            if chosen:
                owner._choose(path)
            self._send(Answer(status=200) if chosen else make_html_page(405, "Method Not Allowed"))
            return
        asks = self.command == "GET" and path != TOKEN_PATH
        self._lacked_token = asks and owner.service.requires_token and not self._has_token()
        fault = owner._take_fault()
        if fault is None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(method=self.command, path=path, headers=headers)
            redirected = path == FAULT_ANSWERS[Fault.REDIRECT].headers["Location"]
            self._send(REDIRECTED if redirected else owner.service.answer(request))
        elif fault in FAULT_ANSWERS:
            self._send(FAULT_ANSWERS[fault])
        else:
            self._break(fault)

    def _take_report(self) -> Answer:
        if self.command != "POST":
            return make_html_page(405, "Method Not Allowed")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return make_html_page(411, "Length Required")
        if int(length) > REPORT_BYTES:
            return make_html_page(413, "Payload Too Large")
        with suppress(OSError):
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self.server.owner._take_report(body)
                return Answer(status=200, body=b"thank you\n")
        return make_html_page(400, "Bad Request")

    def _send(self, answer: Answer) -> None:
        self._record(answer.status)
        # A body that nobody reads would be taken for the next request of the connection.
        self.close_connection = self.command in ("PUT", "POST")
        with suppress(ConnectionError, TimeoutError):
            self._send_head(answer, len(answer.body))
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    def _send_head(self, answer: Answer, length: int) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(length))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _break(self, fault: Fault) -> None:
        self._record(None)
        self.close_connection = True
        with suppress(ConnectionError, TimeoutError):
            if fault is Fault.HANG:
                self.server.owner._stopping.wait()
            elif fault is Fault.DRIP:
                self._drip()
            elif fault is Fault.TRUNCATED:
                self._send_head(Answer(status=200), 1000)
                self.wfile.write(b"#!/bin/sh\necho a cut body was run\n")
            elif fault is Fault.RESET:
                # Closing with a linger time of nought makes the kernel send RST and not FIN;
                # detached, because the server's own closing would send the FIN first.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())

    def _drip(self) -> None:
        self._send_head(Answer(status=200), REPORT_BYTES)
        while not self.server.owner._stopping.wait(DRIP_SECONDS):
            self.wfile.write(b"#")

    def _record(self, status: int | None) -> None:
        entry = RecordedRequest(
            time=time.monotonic(),
            method=self.command,
            path=self.path,
            status=status,
            token=self._has_token(),
            lacked_token=self._lacked_token,
        )
        self.server.owner._record(entry)

    def _has_token(self) -> bool:
        return "X-aws-ec2-metadata-token" in self.headers


class MetadataServer:
    """Serves one metadata service over HTTP for as long as the `with` block lasts.

    `host` and `port` are where it listens: by default this host's loopback, on a free port, so that
    only local programs, QEMU's user network among them, reach it. Raises OSError where that address
    is taken.

    `on_report` lets a guest `POST` its boot report to `report_path`, at most 1 MiB (411 without a
    length, 413 above the bound); it is called in the server's thread. Without it that path is
    answered as the cloud would answer it. Reports meet no faults.

    `others` are services that a guest can have in this one's place from then on, by a `POST` to
    `report_path/NAME`.
    """

    def __init__(
        self,
        service: MetadataService,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_report: Callable[[bytes], None] | None = None,
        report_path: str = "/report",
        others: Mapping[str, MetadataService] | None = None,
    ) -> None:
        self.service = service
        self.others = others or {}
        self.on_report = on_report
        self.report_path = report_path
        self._address = (host, port)
        self._faults = iter(service.faults)
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._report: bytes | None = None
        self._reported = threading.Event()
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self._address, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            name="metadata-server",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def port(self) -> int:
        """The TCP port that it listens on. Raises RuntimeError outside the `with` block."""
        if self._server is None:
            raise RuntimeError("the metadata server was not started: use it in a `with` statement")
        return self._server.server_port

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at the end, as Nimbus writes it into an image."""
        return f"http://{self._address[0]}:{self.port}"

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """Every request so far, reports too, in the order of their answers."""
        with self._lock:
            return tuple(self._requests)

    def wait_for_report(self, timeout: float) -> bytes | None:
        """Wait at most `timeout` seconds; return the first report, None when none has come."""
        self._reported.wait(timeout)
        with self._lock:
            return self._report

    def _is_choice(self, path: str) -> bool:
        return path.startswith(f"{self.report_path}/") and path.rsplit("/", 1)[1] in self.others

    def _choose(self, path: str) -> None:
        with self._lock:
            self.service = self.others[path.rsplit("/", 1)[1]]
            self._faults = iter(self.service.faults)

    def _record(self, entry: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(entry)

    def _take_fault(self) -> Fault | None:
        with self._lock:
            return next(self._faults, None)

    def _take_report(self, body: bytes) -> None:
        with self._lock:
            if self._report is None:
                self._report = body
        if self.on_report is not None:
            self.on_report(body)
        self._reported.set()


SERVICES: Mapping[str, type[NimbusMetadata] | type[Ec2Metadata]] = {
    "nimbus": NimbusMetadata,
    "ec2": Ec2Metadata,
}
"""The metadata services by the name of their kind."""
