"""PutSnapshotBlock over connections of our own: signed, sent, and its answer understood.

A call through botocore costs more than reading, hashing and sending a block; urllib3 alone costs a
fifth of the rate. http.client does all that is needed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from pipeline.clouds.ec2.aws import CONNECT_SECONDS, Account, Cut, Refused
from pipeline.clouds.ec2.blocks import BLOCK

ANSWER_SECONDS = 60.0
"""Limit of sending a block, and of waiting for the answer. A line of 5 Mbit/s needs it when 64
connections share it."""

PUT = "ebs:PutSnapshotBlock"
_PORTS = {"http": 80, "https": 443}
_SIGNED = (
    "host;x-amz-checksum;x-amz-checksum-algorithm;x-amz-content-sha256;x-amz-data-length;x-amz-date"
)


class TimedOut(Cut):
    """The answer did not come in time: the service, or the line to it, is overloaded."""


class Service:
    """Where blocks are sent to, and what all connections to it share. Threads may share it."""

    def __init__(self, account: Account, region: str) -> None:
        url = account.client("ebs", region).meta.endpoint_url
        parts = urlsplit(url)
        assert parts.hostname is not None
        usual = _PORTS[parts.scheme]
        self._address = (parts.hostname, parts.port or usual)
        self.host = parts.hostname if self._address[1] == usual else parts.netloc
        self.path = parts.path.rstrip("/")
        self._context = _make_context(account) if parts.scheme == "https" else None
        proxy = _find_proxy(account, url)
        self._proxy = urlsplit(proxy) if proxy else None
        self._proxy_context = (
            _make_context(account)
            if (self._proxy is not None and self._proxy.scheme == "https")
            else None
        )
        self._authorization = (
            _authorize(self._proxy.username, self._proxy.password)
            if (self._proxy is not None and self._proxy.username)
            else {}
        )
        self.signer = Signer(account, region, self.host)
        account.note(PUT)
        # To a proxy, what is asked for in the clear is named whole.
        plain = self._proxy is not None and self._context is None
        self.before = f"http://{parts.netloc}" if plain else ""
        self.more_headers = self._authorization if plain else {}

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is opened when it is first used."""
        if self._proxy is None:
            return _make_connection(self._address, self._context)
        port = self._proxy.port or _PORTS[self._proxy.scheme]
        first = (self._proxy.hostname or "", port)
        if self._context is None:  # it is the proxy that is spoken to
            return _make_connection(first, self._proxy_context)
        connection = (
            _make_connection(first, self._context)
            if self._proxy_context is None
            else _TwiceEncrypted(first, self._proxy_context, self._context)
        )
        connection.set_tunnel(*self._address, headers=self._authorization)
        return connection


def _make_connection(
    address: tuple[str, int], context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(*address, timeout=CONNECT_SECONDS)
    return http.client.HTTPSConnection(*address, timeout=CONNECT_SECONDS, context=context)


class _TwiceEncrypted(http.client.HTTPConnection):
    """TLS to a service through a proxy that is spoken to over TLS too. http.client knows only one
    of the two, and a socket of `ssl` can be wrapped in no other."""

    def __init__(
        self, proxy: tuple[str, int], outer: ssl.SSLContext, inner: ssl.SSLContext
    ) -> None:
        super().__init__(*proxy, timeout=CONNECT_SECONDS)
        self._outer = outer
        self._inner = inner
        self._name = ""

    def set_tunnel(
        self, host: str, port: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Names the service behind the proxy."""
        self._name = host
        super().set_tunnel(host, port, headers)

    def connect(self) -> None:
        """Connects to the proxy, through it to the service, and greets that."""
        from urllib3.util.ssltransport import SSLTransport

        plain = socket.create_connection((self.host, self.port), CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._outer.wrap_socket(plain, server_hostname=self.host)
        self._tunnel()  # type: ignore[attr-defined]
        self.sock = SSLTransport(self.sock, self._inner, server_hostname=self._name)


class BlockConnection:
    """One keep-alive connection, for one thread. Made anew after each that broke."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http = service.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def put_block(self, snapshot_id: str, number: int, block: bytearray, digest: bytes) -> None:
        """Writes one block, whose SHA-256 is `digest`, to a pending snapshot. Sent once. Raises
        Refused, Cut, NoCredentials."""
        path = f"{self._service.path}/snapshots/{snapshot_id}/blocks/{number}"
        checksum = base64.b64encode(digest).decode()
        headers = self._service.signer.sign(path, checksum)
        answer, body = self._exchange(self._service.before + path, block, headers)
        if answer.status != 201:
            raise _make_refused(answer.status, answer.headers, body)
        if (answer.getheader("x-amz-Checksum") or checksum) != checksum:
            raise Refused(PUT, "ValidationException", "the answer has another checksum", status=201)

    def _exchange(
        self, path: str, block: bytearray, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connected = self._http.sock is not None
        try:
            if not connected:
                self._http.connect()
                connected = True
                self._http.sock.settimeout(ANSWER_SECONDS)
            # A service that refuses may answer and hang up before it has read the block.
            with suppress(BrokenPipeError):
                self._http.request("PUT", path, block, headers | self._service.more_headers)
            answer = self._http.getresponse()
            return answer, answer.read()
        except TimeoutError as error:
            self._http.close()
            reason = f"{self._service.host} does not answer in time"
            raise TimedOut(reason, connected=connected) from error
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Cut(f"{self._service.host}: {reason}", connected=connected) from error


@dataclass(frozen=True)
class _Moment:
    """What signatures of one second have in common."""

    second: int
    date: str
    scope: str
    key: bytes
    access_key: str
    token: str | None


class Signer:
    """Signature version 4 of PutSnapshotBlock. The body is not signed, but its checksum is; so says
    the service's model. botocore's signer gives the same, in 55 µs instead of 3."""

    def __init__(self, account: Account, region: str, host: str) -> None:
        self._account = account
        self._region = region
        self._host = host
        self._moment: _Moment | None = None

    def sign(self, path: str, checksum: str, now: float | None = None) -> dict[str, str]:
        """The headers of a request. Raises NoCredentials, and Cut where renewing them failed."""
        second = int(time.time() if now is None else now)
        moment = self._moment
        if moment is None or moment.second != second:
            moment = self._moment = self._make_moment(second)
        secret = f"x-amz-security-token:{moment.token}\n" if moment.token else ""
        signed = f"{_SIGNED};x-amz-security-token" if secret else _SIGNED
        asked = (
            f"PUT\n{path}\n\nhost:{self._host}\nx-amz-checksum:{checksum}\n"
            "x-amz-checksum-algorithm:SHA256\nx-amz-content-sha256:UNSIGNED-PAYLOAD\n"
            f"x-amz-data-length:{BLOCK}\nx-amz-date:{moment.date}\n{secret}\n"
            f"{signed}\nUNSIGNED-PAYLOAD"
        )
        digest = hashlib.sha256(asked.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment.date}\n{moment.scope}\n{digest}"
        signature = hmac.digest(moment.key, text.encode(), "sha256").hex()
        headers = {
            "Host": self._host,
            "Content-Length": str(BLOCK),
            "User-Agent": "phantom-image",
            "X-Amz-Checksum": checksum,
            "X-Amz-Checksum-Algorithm": "SHA256",
            "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD",
            "X-Amz-Data-Length": str(BLOCK),
            "X-Amz-Date": moment.date,
            "Authorization": (
                f"AWS4-HMAC-SHA256 Credential={moment.access_key}/{moment.scope}, "
                f"SignedHeaders={signed}, Signature={signature}"
            ),
        }
        if moment.token:
            headers["X-Amz-Security-Token"] = moment.token
        return headers

    def _make_moment(self, second: int) -> _Moment:
        credentials = self._account.credentials()
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        words = [date[:8], self._region, "ebs", "aws4_request"]
        key = f"AWS4{credentials.secret_key}".encode()
        for word in words:
            key = hmac.digest(key, word.encode(), "sha256")
        return _Moment(
            second, date, "/".join(words), key, credentials.access_key, credentials.token
        )


def _make_context(account: Account) -> ssl.SSLContext:
    """As botocore would have it: its own certificates, or those that the settings name."""
    from botocore.httpsession import get_cert_path

    verify = account.verify
    if verify is True:
        named = account.session._session.get_config_variable("ca_bundle")
        verify = named or os.environ.get("REQUESTS_CA_BUNDLE", True)
    if verify is False:
        return ssl._create_unverified_context()  # noqa: S323 (asked for in sites.yaml)
    file = Path(get_cert_path(verify))
    try:
        if file.is_dir():
            return ssl.create_default_context(capath=file)
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise Cut(f"certificates {file}: {error.strerror or error}", connected=False) from error


def _find_proxy(account: Account, url: str) -> str | None:
    from botocore.httpsession import ProxyConfiguration
    from botocore.utils import get_environ_proxies

    if account.isolated:
        return None
    # It takes a proxy without a scheme, as many hosts name theirs.
    proxy = ProxyConfiguration(get_environ_proxies(url)).proxy_url_for(url)
    return str(proxy) if proxy else None


def _authorize(user: str | None, password: str | None) -> dict[str, str]:
    words = f"{unquote(user or '')}:{unquote(password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


def _make_refused(status: int, headers: Message, body: bytes) -> Refused:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    code = headers.get("x-amzn-ErrorType") or told.get("__type") or told.get("code") or str(status)
    message = told.get("Message") or told.get("message") or ""
    reason = told.get("Reason") or told.get("reason")
    return Refused(
        PUT,
        str(code).split(":")[0].split("#")[-1],
        str(message),
        status=status,
        reason=str(reason) if reason else None,
    )
