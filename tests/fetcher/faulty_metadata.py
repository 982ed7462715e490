"""Metadata services with faults that a guest must survive before it gets a proper answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipeline.clouds.ec2.metadata import TOKEN_PATH, Ec2Metadata, make_xhtml_page
from pipeline.machine.metadata import (
    Answer,
    MetadataHandler,
    MetadataServer,
    MetadataService,
    Request,
    make_html_page,
)

DRIP_SECONDS = 0.2  # too quick for a limit on one read; only a limit on the whole answer ends it
DRIP_BYTES = 1 << 20


class Fault(Enum):
    """What one request gets instead of its proper answer."""

    BAD_REQUEST = "400"
    UNAUTHORIZED = "401"  # EC2: the token is missing or stale
    FORBIDDEN = "403"  # Nimbus, with an empty body: it does not know the caller's address yet
    NOT_FOUND = "404"  # Nimbus, with an HTML page: two VMs have the caller's address
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


ANSWERS: Mapping[Fault, Answer | None] = {
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
    Fault.RESET: None,
}
REDIRECTED = Answer(status=200, body=b"#!/bin/sh\necho a redirect was followed and run\n")


@dataclass(frozen=True, kw_only=True)
class Broken(Answer):
    """An answer that never begins or never ends."""

    status: int = 0
    fault: Fault


class FaultyHandler(MetadataHandler):
    def send(self, answer: Answer | None, *, lacked_token: bool = False) -> None:
        if not isinstance(answer, Broken):
            super().send(answer, lacked_token=lacked_token)
            return
        self.close_connection = True
        self.record(None, lacked_token=lacked_token)
        with suppress(ConnectionError, TimeoutError):
            if answer.fault is Fault.HANG:
                self.server.stopping.wait()
            elif answer.fault is Fault.DRIP:
                self.send_head(Answer(status=200), DRIP_BYTES)
                while not self.server.stopping.wait(DRIP_SECONDS):
                    self.wfile.write(b"#")
            else:
                self.send_head(Answer(status=200), 1000)
                self.wfile.write(b"#!/bin/sh\necho a cut body was run\n")


class FaultyServer(MetadataServer):
    """Answers the first requests with faults; None lets one request get its proper answer. Reports
    and choices of a service get no faults."""

    handler = FaultyHandler

    def __init__(
        self, service: MetadataService, faults: Iterable[Fault | None], **options: Any
    ) -> None:
        super().__init__(service, **options)
        self.faults = iter(faults)

    def find_answer(self, request: Request) -> Answer | None:
        with self._lock:
            fault = next(self.faults, None)
        if fault is None:
            redirected = request.path == "/redirected"
            return REDIRECTED if redirected else super().find_answer(request)
        return ANSWERS[fault] if fault in ANSWERS else Broken(fault=fault)


@dataclass(frozen=True, kw_only=True)
class Ec2Version1(Ec2Metadata):
    """An EC2 service that requires no token: as in version 1, it answers without one, but a wrong
    token still gets a 401. A service that knows only version 1 answers the token call with
    `token_status`: 404, 405 or 501."""

    token_status: int | None = None

    def lacks_token(self, request: Request) -> bool:
        return False

    def answer(self, request: Request) -> Answer:
        if request.path == TOKEN_PATH and self.token_status is not None:
            return make_xhtml_page(self.token_status, "No Tokens Here")
        return super().answer(request)


class DisabledEc2(Ec2Version1):
    """An EC2 service that is switched off."""

    def answer(self, request: Request) -> Answer:
        return make_xhtml_page(403, "Forbidden")
