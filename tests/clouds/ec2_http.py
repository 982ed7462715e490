"""The HTTP part of the strict EC2 server: connections, authentication, and how faults apply."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ec2_actions
import ec2_ebs
import ec2_protocol as protocol
import ec2_s3
from ec2_faults import Rule
from ec2_protocol import Answer, Request, ServiceError, Signed
from ec2_state import Account, Ec2State

_UNSIGNED_BODIES = ("ebs:PutSnapshotBlock",)  # "v4-unsigned-body" in botocore's model


@dataclass(frozen=True, kw_only=True)
class LoggedRequest:
    """A request that the server received."""

    time: float
    action: str
    """As IAM writes it: `ebs:PutSnapshotBlock`; for S3 the operation."""
    region: str
    status: int
    """0: no answer was given."""
    code: str | None
    """The error's code."""
    index: int | None
    """The index of the block that was put or read."""
    body_bytes: int
    dry_run: bool


# --- authentication -----------------------------------------------------------------------------

_REFUSALS: Mapping[str, Mapping[str, tuple[str, int, str]]] = {
    "unsigned": {
        "ebs": ("MissingAuthenticationTokenException", 403, "Missing Authentication Token"),
        "ec2": ("AuthFailure", 401, "The request has no signature"),
        "sts": ("MissingAuthenticationToken", 403, "Request is missing Authentication Token"),
        "s3": ("AccessDenied", 403, "Access Denied"),
    },
    "unknown": {
        "ebs": (
            "UnrecognizedClientException",
            403,
            "The security token included in the request is invalid.",
        ),
        "ec2": (
            "AuthFailure",
            401,
            "AWS was not able to validate the provided access credentials",
        ),
        "sts": (
            "InvalidClientTokenId",
            403,
            "The security token included in the request is invalid.",
        ),
        "s3": (
            "InvalidAccessKeyId",
            403,
            "The AWS Access Key Id you provided does not exist in our records.",
        ),
    },
    "wrong": {
        "ebs": (
            "InvalidSignatureException",
            403,
            "The request signature we calculated does not match the signature you provided.",
        ),
        "ec2": (
            "AuthFailure",
            401,
            "AWS was not able to validate the provided access credentials",
        ),
        "sts": (
            "SignatureDoesNotMatch",
            403,
            "The request signature we calculated does not match the signature you provided.",
        ),
        "s3": (
            "SignatureDoesNotMatch",
            403,
            "The request signature we calculated does not match the signature you provided.",
        ),
    },
    "expired": {
        "ebs": (
            "ExpiredTokenException",
            403,
            "The security token included in the request is expired",
        ),
        "ec2": ("RequestExpired", 400, "Request has expired."),
        "sts": ("ExpiredToken", 403, "The security token included in the request is expired"),
        "s3": ("ExpiredToken", 400, "The provided token has expired."),
    },
    "late": {
        "ebs": ("InvalidSignatureException", 403, "Signature expired"),
        "ec2": ("RequestExpired", 400, "Request has expired."),
        "sts": ("SignatureDoesNotMatch", 403, "Signature expired"),
        "s3": ("RequestTimeTooSkewed", 403, "The difference between the times is too large."),
    },
}


def _refusal(kind: str, service: str) -> ServiceError:
    code, status, message = _REFUSALS[kind][service]
    return ServiceError(code, message, status=status)


def _authenticate(state: Ec2State, request: Request, signed: Signed | None, action: str) -> Account:
    """The caller. ServiceError: unknown, expired, wrong signature, or region not enabled."""
    service = action.partition(":")[0]
    if signed is None:
        raise _refusal("unsigned", service)
    account = state.find_account(signed.key)
    if account is None or signed.service != service:
        raise _refusal("unknown", service)
    may_be_unsigned = action in _UNSIGNED_BODIES or service == "s3"
    if not protocol.is_signature_right(
        request, signed, account.secret, may_be_unsigned=may_be_unsigned
    ):
        raise _refusal("wrong", service)
    if account.token != request.header("x-amz-security-token"):
        raise _refusal("unknown", service)
    if not protocol.is_date_right(request, time.time()):
        raise _refusal("late", service)
    if service != "sts" and signed.region not in state.regions:
        raise _refusal("unknown", service)
    with state.lock:
        if account.requests_left is not None:
            if account.requests_left <= 0:
                raise _refusal("expired", service)
            account.requests_left -= 1
    return account


def _deny(service: str, action: str, account: Account) -> ServiceError:
    message = f"User: {account.arn} is not authorized to perform: {action}"
    if service == "ec2":
        return ServiceError(
            "UnauthorizedOperation",
            f"You are not authorized to perform this operation. {message}",
            status=403,
        )
    code = {"ebs": "AccessDeniedException"}.get(service, "AccessDenied")
    return ServiceError(code, message, status=403)


# --- HTTP ---------------------------------------------------------------------------------------


class _Cut(Exception):
    """Raised to end the connection without an answer."""


class HttpServer(ThreadingHTTPServer):
    """Listens on a port of 127.0.0.1 (0: a free one) from `run` to `end`."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        state: Ec2State,
        requests: list[LoggedRequest],
        port: int,
        tls: tuple[Path, Path] | None,
    ) -> None:
        self.state, self.requests = state, requests
        self.ending = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="ec2", daemon=True
        )

    def run(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.ending.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            for each in self._connections:
                with suppress(OSError):
                    _make_resetting(each)
                    each.shutdown(socket.SHUT_RDWR)

    def hold(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def shutdown_request(self, request: Any) -> None:
        """Closes the connection, without an orderly shutdown if it is to be reset."""
        with suppress(OSError):
            if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
                self.close_request(request)
                return
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing about a client that went away."""


def _make_resetting(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpServer

    def setup(self) -> None:
        super().setup()
        self.server.hold(self.connection)

    def finish(self) -> None:
        self.server.forget(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: `Ec2Server.requests` has the requests."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        self.state = self.server.state
        self.action, self.region, self.dry_run = "", "", False
        self.index: int | None = None
        self.code: str | None = None
        try:
            request = self._receive()
            answer = self._answer(request)
        except (_Cut, ConnectionError):
            self._log(0, 0)
            self.close_connection = True
            with suppress(OSError):
                _make_resetting(self.connection)
            return
        self._log(answer.status, len(request.body))
        self._send(answer)

    def _receive(self) -> Request:
        path, _, query = self.path.partition("?")
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b"".join(iter(self._receive_chunk, b""))
        else:
            body = self._receive_exactly(int(self.headers.get("Content-Length") or 0))
        return Request(method=self.command, path=path, query=query, headers=self.headers, body=body)

    def _receive_exactly(self, length: int) -> bytes:
        data = self.rfile.read(length) if length else b""
        if len(data) != length:
            raise _Cut
        return data

    def _receive_chunk(self) -> bytes:
        """Reads one chunk of the transfer encoding; the last chunk is empty."""
        head = self.rfile.readline()
        if not head.strip():
            raise _Cut
        data = self._receive_exactly(int(head.partition(b";")[0], 16))
        self.rfile.readline()
        return data

    def _log(self, status: int, body_bytes: int) -> None:
        self.server.requests.append(
            LoggedRequest(
                time=time.time(),
                action=self.action,
                region=self.region,
                status=status,
                code=self.code,
                index=self.index,
                body_bytes=body_bytes,
                dry_run=self.dry_run,
            )
        )

    def _send(self, answer: Answer) -> None:
        body = answer.body
        lines = [f"HTTP/1.1 {answer.status} {'OK' if answer.status < 300 else 'Error'}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if "Content-Length" not in answer.headers:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join((*lines, "", "")).encode()
        self.wfile.write(head if self.command == "HEAD" else head + body)

    def _answer(self, request: Request) -> Answer:
        request_id = str(uuid.uuid4())
        signed = protocol.read_signature(request)
        service = signed.service if signed else _guess_service(request)
        self.region = signed.region if signed else ""
        if service not in ("ebs", "ec2", "sts", "s3"):
            service = _guess_service(request)
        try:
            return self._perform(request, signed, service, request_id)
        except ServiceError as error:
            self.code = error.code
            return protocol.write_error(service, error, request_id)

    def _perform(
        self, request: Request, signed: Signed | None, service: str, request_id: str
    ) -> Answer:
        operation, names, fields = self._find_operation(request, service)
        self.action = f"{service}:{operation}"
        account = _authenticate(self.state, request, signed, self.action)
        after = self._apply(self.state.faults.take(names, self.region), account, service)
        answer = {
            "ebs": self._perform_ebs,
            "ec2": self._perform_ec2,
            "sts": self._perform_sts,
            "s3": self._perform_s3,
        }[service](operation, account, fields, request, request_id)
        if after:
            raise _Cut
        return answer

    def _find_operation(
        self, request: Request, service: str
    ) -> tuple[str, list[str], dict[str, str]]:
        """The operation, the names by which rules may match it, and the fields of path or form."""
        if service == "ebs":
            found = protocol.find_ebs_action(request)
            if found is None:
                raise ServiceError("UnknownOperationException", "There is no such path", status=404)
            index = found[1].get("blockIndex", "")
            self.index = int(index) if index.isdigit() else None
            return found[0], [f"ebs:{found[0]}"], found[1]
        if service == "s3":
            operation, right = ec2_s3.find_operation(request)
            return operation, [f"s3:{operation}", right], {}
        fields = protocol.parse_form(request.body)
        action = fields.get("Action", "")
        known = protocol.service_model(service).operation_names
        if action not in known:
            raise ServiceError("InvalidAction", f"The action {action} is not valid")
        self.dry_run = fields.get("DryRun") == "true"
        return action, [f"{service}:{action}"], fields

    def _apply(self, rules: Sequence[Rule], account: Account, service: str) -> bool:
        """Applies the rules; returns whether to cut the connection after the request."""
        after = False
        for rule in rules:
            if rule.seconds:
                self.server.ending.wait(rule.seconds)
            if rule.call is not None:
                rule.call()
                if self.server.ending.is_set():
                    raise _Cut
            if rule.cut == "hang":
                released = self.state.faults.released
                while not (released.is_set() or self.server.ending.is_set()):
                    released.wait(0.05)
                raise _Cut
            if rule.cut == "before":
                raise _Cut
            after = after or rule.cut == "after"
            if rule.denies:
                raise _deny(service, self.action, account)
            if rule.error is not None:
                raise rule.error
        return after

    def _perform_ebs(
        self,
        action: str,
        account: Account,
        fields: dict[str, str],
        request: Request,
        request_id: str,
    ) -> Answer:
        values = protocol.parse_ebs_request(action, fields, request)
        if action == "PutSnapshotBlock":
            _ = request.body_digest  # hashes before it takes the lock
        with self.state.lock:
            call = ec2_ebs.EbsCall(
                state=self.state,
                region=self.state.regions[self.region],
                account=account,
                values=values,
                request=request,
            )
            return ec2_ebs.ACTIONS[action](call)

    def _perform_ec2(
        self,
        action: str,
        account: Account,
        fields: dict[str, str],
        request: Request,
        request_id: str,
    ) -> Answer:
        values = protocol.parse_ec2_query(action, fields)
        with self.state.lock:
            call = ec2_actions.Call(
                action=action,
                state=self.state,
                region=self.state.regions[self.region],
                account=account,
                values={k: v for k, v in values.items() if k != "DryRun"},
                dry_run=self.dry_run,
            )
            return protocol.write_ec2_answer(action, ec2_actions.perform(call), request_id)

    def _perform_sts(
        self,
        action: str,
        account: Account,
        fields: dict[str, str],
        request: Request,
        request_id: str,
    ) -> Answer:
        if action != "GetCallerIdentity":
            raise ServiceError("InvalidAction", f"{action} is not served here")
        values = {"UserId": "AIDAEXAMPLEBUILDER", "Account": account.id, "Arn": account.arn}
        return protocol.write_sts_answer(action, values, request_id)

    def _perform_s3(
        self,
        action: str,
        account: Account,
        fields: dict[str, str],
        request: Request,
        request_id: str,
    ) -> Answer:
        with self.state.lock:
            return ec2_s3.perform(self.state, action, account.id, self.region, request)


def _guess_service(request: Request) -> str:
    """The service that an unsigned request is probably for."""
    if request.path.startswith("/snapshots"):
        return "ebs"
    return "ec2" if request.method == "POST" and request.path == "/" else "s3"
