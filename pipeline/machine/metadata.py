"""A cloud's metadata service on this host, for machines of the boot check and of `boot`.

`MetadataServer` serves one cloud's service, which lies in the cloud's package and answers as
strictly as the real one. A booted guest can hand in its report at the same server.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from pipeline.disk.untrusted import to_number
from pipeline.machine.local_http import LocalHandler, LocalServer

REPORT_PATH = "/report"
REPORT_BYTES = 1 << 20  # a boot report is a few kilobytes; anything larger is not a report
_LONGEST_PATH, _MOST_REQUESTS = 1024, 20_000  # that are recorded: a guest may ask without end
IDLE_SECONDS = 30.0  # a guest that died in the middle of a request must not keep its thread

USER_DATA_PATH = "/latest/user-data"
META_DATA_PATH = "/latest/meta-data/"


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
    """A request, when it came (seconds of the monotonic clock), and the status of its answer; None:
    no answer."""

    time: float
    method: str
    path: str
    status: int | None
    lacked_token: bool = False
    """Whether it asked for data without a token where one is required, whatever it got: a service
    that is late refuses it for another reason."""


class MetadataService(Protocol):
    """One cloud's metadata service. Raises ValueError for user-data that the cloud would refuse."""

    LATE: ClassVar[Answer | None]
    """How it refuses a request while it is not ready for a machine that boots; None: by a reset of
    the connection."""
    LIMIT: ClassVar[int]
    """How long user-data may be: bytes, or characters where it is text."""
    ANY_BYTES: ClassVar[bool]
    """Whether user-data may be any bytes; otherwise it is text."""

    def __init__(self, *, user_data: bytes | None = None, public_key: str | None = None) -> None:
        """`public_key` is the launch's, where the service and not the node hands it out."""

    def lacks_token(self, request: Request) -> bool:
        """Whether the request asks for data without the token that the service requires."""

    def answer(self, request: Request) -> Answer:
        """The answer of the real service."""


def make_html_page(status: int, title: str) -> Answer:
    """Return an error page such as servlet containers and proxies send."""
    page = f"<html>\n<head><title>{status} {title}</title></head>\n<body>{title}</body>\n</html>\n"
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
    # Each entry of a folder, with a slash at the end where it is a folder itself.
    below = (key.removeprefix(name) for key in meta_data if key.startswith(name))
    listed = {"".join(key.partition("/")[:2]) for key in below}
    if not listed and name:
        return None
    return Answer(status=200, body="\n".join(sorted(listed)).encode())


class MetadataHandler(LocalHandler):
    """Answers a guest's requests, and records them."""

    server: MetadataServer
    timeout = IDLE_SECONDS

    def answer(self) -> None:
        try:
            path = urlsplit(self.path).path
        except ValueError:  # such as `//[`
            path = self.path
        name = path.removeprefix(f"{REPORT_PATH}/")
        reports = self.server.takes_reports and path == REPORT_PATH
        if (reports or name in self.server.others) and self.command != "POST":
            self.send(make_html_page(405, "Method Not Allowed"))
        elif reports:
            self.send(self._take_report())
        elif name in self.server.others:
            self.server.service = self.server.others[name]
            self.send(Answer(status=200))
        else:
            headers = {header.lower(): value for header, value in self.headers.items()}
            request = Request(method=self.command, path=path, headers=headers)
            lacked_token = self.server.service.lacks_token(request)
            self.send(self.server.find_answer(request), lacked_token=lacked_token)

    def _take_report(self) -> Answer:
        length = to_number(self.headers.get("Content-Length", ""))
        if length is None:
            return make_html_page(411, "Length Required")
        if length > REPORT_BYTES:
            return make_html_page(413, "Payload Too Large")
        with suppress(OSError):
            body = self.rfile.read(length)
            if len(body) == length:
                self.server.take_report(body)
                return Answer(status=200, body=b"thank you\n")
        return make_html_page(400, "Bad Request")

    def send(self, answer: Answer | None, *, lacked_token: bool = False) -> None:
        """Records the request and sends its answer; None resets the connection."""
        self.record(None if answer is None else answer.status, lacked_token=lacked_token)
        # A body that is not read would be taken for the next request of the connection.
        self.close_connection = answer is None or self.command in ("PUT", "POST")
        with suppress(ConnectionError, TimeoutError):
            if answer is None:
                self._reset()
            else:
                self.send_head(answer, len(answer.body))
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

    def record(self, status: int | None, *, lacked_token: bool) -> None:
        """Adds the request to those of the server."""
        self.server.record(
            RecordedRequest(
                time=time.monotonic(),
                method=self.command,
                path=self.path[:_LONGEST_PATH],
                status=status,
                lacked_token=lacked_token,
            )
        )

    def send_head(self, answer: Answer, length: int) -> None:
        """Sends the status line and the headers, which announce a body of this length."""
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(length))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _reset(self) -> None:
        # Closing with a linger time of 0 makes the kernel send RST and not FIN; the socket is
        # detached because the server's own closing would send the FIN first.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())


class MetadataServer(LocalServer):
    """Serves one metadata service over HTTP for as long as the `with` block lasts.

    User-data and reports may hold secrets, so machines are given a `private` server. The service
    refuses the first `late` requests. With `takes_reports`, a guest may `POST` its boot
    report to `/report`, at most 1 MiB (411 without a length, 413 above the bound), and choose one
    of the services in `others` from then on, by a `POST` to `/report/NAME`. Both are never late.
    """

    handler: ClassVar[type[MetadataHandler]] = MetadataHandler

    def __init__(
        self,
        service: MetadataService,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        private: bool = False,
        socket_name: str | None = None,
        late: int = 0,
        takes_reports: bool = False,
        others: Mapping[str, MetadataService] | None = None,
    ) -> None:
        super().__init__(
            self.handler, host=host, port=port, private=private, socket_name=socket_name
        )
        self.service = service
        self.others = others or {}
        self.takes_reports = takes_reports
        self._late = late
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._report: bytes | None = None
        self._reported = threading.Event()

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The requests so far, reports too, in the order of their answers."""
        return tuple(self._requests)

    def wait_for_report(self, timeout: float) -> bytes | None:
        """Waits at most `timeout` seconds; returns the first report, None when none has come."""
        self._reported.wait(timeout)
        return self._report

    def find_answer(self, request: Request) -> Answer | None:
        """What a request for metadata gets; None: its connection is reset."""
        with self._lock:
            if self._late > 0:
                self._late -= 1
                return self.service.LATE
        return self.service.answer(request)

    def record(self, request: RecordedRequest) -> None:
        """Adds a request to `requests`, unless there are more than any guest needs."""
        if len(self._requests) < _MOST_REQUESTS:
            self._requests.append(request)

    def take_report(self, body: bytes) -> None:
        """Keeps a report; later ones change nothing."""
        with self._lock:
            if self._report is None:
                self._report = body
        self._reported.set()
