"""PutSnapshotBlock over connections of our own: signs a block, sends it, and reads the answer.

A call through botocore costs more than reading, hashing and sending a block. http.client takes
0.21 ms of a core to send one, urllib3's pool 0.35 ms: with hashing (0.48 ms) that leaves too little
of the millisecond that Amazon's limit, 1,000 blocks a second, gives each block on one core.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.clouds.ec2.blocks import BLOCK
from pipeline.tools.aws import CONNECT_SECONDS, Account, Cut, Refused

ANSWER_SECONDS = 60.0
"""The limit for sending a block, and for the answer to come. A line of 5 Mbit/s needs it when 64
connections share it."""

PUT = "ebs:PutSnapshotBlock"
_PORTS = {"http": 80, "https": 443}


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
        self._context = _make_context(account, parts.scheme)
        self._proxy = _find_proxy(account, url)
        self._proxy_context = _make_context(account, self._proxy.scheme) if self._proxy else None
        self._authorization = _authorize(self._proxy) if self._proxy else {}
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
        if self._proxy_context is None:
            connection = _make_connection(first, self._context)
            connection.set_tunnel(*self._address, headers=self._authorization)
            return connection
        # http.client encrypts once: to the proxy, or to the service behind it.
        from urllib3.connection import HTTPSConnection, ProxyConfig

        twice = HTTPSConnection(
            *first,
            timeout=CONNECT_SECONDS,
            ssl_context=self._context,
            proxy_config=ProxyConfig(self._proxy_context, False, None, None),
        )
        twice.set_tunnel(*self._address, headers=self._authorization, scheme="https")
        return twice


def _make_connection(
    address: tuple[str, int], context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(*address, timeout=CONNECT_SECONDS)
    return http.client.HTTPSConnection(*address, timeout=CONNECT_SECONDS, context=context)


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
        if (answer.headers.get("x-amz-Checksum") or checksum) != checksum:
            raise Refused(PUT, "ValidationException", "the answer has another checksum", status=201)

    def _exchange(
        self, path: str, block: bytearray, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        import urllib3.exceptions as known

        connected = self._http.sock is not None
        try:
            if not connected:
                self._http = self._service.connect()  # urllib3's forgets its tunnel when it breaks
                self._http.connect()
                connected = True
                self._http.sock.settimeout(ANSWER_SECONDS)
            # A service that refuses may answer and hang up before it has read the block.
            with suppress(BrokenPipeError):
                self._http.request("PUT", path, block, headers | self._service.more_headers)
            answer = self._http.getresponse()
            return answer, answer.read()
        except (TimeoutError, known.TimeoutError) as error:
            self._http.close()
            reason = f"{self._service.host} does not answer in time"
            raise TimedOut(reason, connected=connected) from error
        except (OSError, http.client.HTTPException, known.HTTPError) as error:
            self._http.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Cut(f"{self._service.host}: {reason}", connected=connected) from error


@dataclass(frozen=True)
class _Moment:
    """What all signatures of one second share."""

    second: int
    date: str
    scope: str
    key: bytes
    access_key: str
    token: str | None


@dataclass(eq=False)
class Signer:
    """Signature version 4 of PutSnapshotBlock. As the service's model says, the body's checksum is
    signed, and the body is not. botocore's signer gives the same, in 55 µs instead of 4."""

    account: Account
    region: str
    host: str
    _moment: _Moment | None = None

    def sign(self, path: str, checksum: str, now: float | None = None) -> dict[str, str]:
        """The headers of a request. Raises NoCredentials, and Cut where renewing them failed."""
        second = int(time.time() if now is None else now)
        moment = self._moment
        if moment is None or moment.second != second:
            moment = self._moment = self._make_moment(second)
        headers = {  # in the order in which they are signed
            "Host": self.host,
            "X-Amz-Checksum": checksum,
            "X-Amz-Checksum-Algorithm": "SHA256",
            "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD",
            "X-Amz-Data-Length": str(BLOCK),
            "X-Amz-Date": moment.date,
        }
        if moment.token:
            headers["X-Amz-Security-Token"] = moment.token
        lines = "".join([f"{name.lower()}:{value}\n" for name, value in headers.items()])
        signed = ";".join(headers).lower()
        asked = f"PUT\n{path}\n\n{lines}\n{signed}\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(asked.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment.date}\n{moment.scope}\n{digest}"
        signature = hmac.digest(moment.key, text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={moment.access_key}/{moment.scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return headers | {"Content-Length": str(BLOCK), "User-Agent": "phantom-image"}

    def _make_moment(self, second: int) -> _Moment:
        credentials = self.account.credentials()
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        words = [date[:8], self.region, "ebs", "aws4_request"]
        key = f"AWS4{credentials.secret_key}".encode()
        for word in words:
            key = hmac.digest(key, word.encode(), "sha256")
        return _Moment(
            second, date, "/".join(words), key, credentials.access_key, credentials.token
        )


def _make_context(account: Account, scheme: str) -> ssl.SSLContext | None:
    """The certificates that botocore would use: its own, or those that the settings name."""
    from botocore.httpsession import get_cert_path

    if scheme != "https":
        return None
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


def _find_proxy(account: Account, url: str) -> SplitResult | None:
    from botocore.httpsession import ProxyConfiguration
    from botocore.utils import get_environ_proxies

    if account.isolated:
        return None
    # It takes a proxy without a scheme, as many hosts name theirs.
    proxy = ProxyConfiguration(get_environ_proxies(url)).proxy_url_for(url)
    return urlsplit(str(proxy)) if proxy else None


def _authorize(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


def _make_refused(status: int, headers: Message, body: bytes) -> Refused:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
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
