"""How a file comes from where it is published, from any of its bytes on: HTTP, HTTPS, S3.

An attempt ends well, as `Broken`, which may go well later, or as a DownloadError, which will not.
What a URL holds besides its place (a password, a signature) is in no message.
"""

from __future__ import annotations

import base64
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from pipeline.errors import DownloadError
from pipeline.model import KIB

SCHEMES = ("http", "https", "s3")
CONNECT_SECONDS, READ_SECONDS = 10, 30
CHUNK = 64 * KIB  # at most this is lost when a connection breaks
_REDIRECTS = 5
_LATER = (408, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
_TODO = "see that the location is right and that this host reaches it, then run the command again"


class Broken(Exception):
    """An attempt broke off, or never began; `pause` is how many seconds the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause


class Changed(Broken):
    """The file is no longer the one of which a part is there."""

    def __init__(self) -> None:
        super().__init__("the file has changed")


@dataclass(frozen=True, kw_only=True)
class Body:
    """What a server sends."""

    start: int
    """The first byte that comes; 0 where the server does not go on, or the file has changed."""
    total: int | None
    """Bytes of the whole file."""
    validator: str | None
    """What to go on by: as long as it is the same, so is the file."""
    chunks: Callable[[], Iterator[bytes]]
    """The bytes, until the sender ends; raises Broken."""
    close: Callable[[], None]
    """Ends it."""
    stop: Callable[[], None]
    """Ends it from another thread than the one that waits for bytes."""
    whole_at_end: bool
    """Whether an end that comes too early is noticed, though `total` is not known."""


class Transport(Protocol):
    """One way by which files come."""

    def open(self, start: int, validator: str | None) -> Body:
        """Asks for a file from a byte on, if it still is the one of the validator; else for all of
        it. Raises Broken, DownloadError."""


def make_transport(url: str) -> Transport:
    """The transport for a URL. Raises DownloadError for one that has none."""
    scheme = _split(url)[0]
    if scheme == "s3":
        return _S3(url)
    if scheme in SCHEMES:
        return _Http(url)
    raise _failed(
        url, f"{scheme or 'no'} URL: {', '.join(SCHEMES)} are fetched", "correct the location"
    )


def shown(url: str) -> str:
    """A URL without what may be secret: credentials, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a location that is no URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _split(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise DownloadError(
            "the location is no URL", where=shown(url), todo="correct it"
        ) from error
    return parts.scheme.lower(), parts.hostname or ""


def _failed(url: str, what: str, todo: str = _TODO) -> DownloadError:
    return DownloadError(f"the base image cannot be fetched: {what}", where=shown(url), todo=todo)


# ---- HTTP


class _Http:
    """HTTP and HTTPS by urllib3, through the proxies that the environment names."""

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self, start: int, validator: str | None) -> Body:
        headers = {"Accept-Encoding": "identity", "User-Agent": "phantom-image"}
        if start and validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        answer = self._follow(headers)
        try:
            return self._read_answer(answer, start)
        except BaseException:
            answer.close()
            raise

    def _follow(self, headers: Mapping[str, str]) -> Any:
        """The answer that redirections lead to."""
        url = self._url
        for _ in range(_REDIRECTS + 1):
            answer = self._ask(url, {**headers, **_authorization(self._url, url)})
            target = answer.get_redirect_location()
            if not target:
                return answer
            answer.close()
            url = self._redirected(url, urljoin(url, target))
        raise _failed(self._url, f"it was redirected more than {_REDIRECTS} times")

    def _redirected(self, url: str, target: str) -> str:
        """Where a redirection leads, if it may."""
        scheme, _ = _split(target)
        before, _ = _split(url)
        if scheme not in ("http", "https") or (before == "https" and scheme == "http"):
            raise _failed(
                self._url,
                f"it is redirected from {before} to {shown(target)}, which is not followed",
                "name a location that leads to https alone, or the one at its end",
            )
        return target

    def _ask(self, url: str, headers: Mapping[str, str]) -> Any:
        import urllib3

        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        with self._told(url):
            return _make_pool(url).request(
                "GET",
                _without_credentials(url),
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )

    def _read_answer(self, answer: Any, start: int) -> Body:
        status = answer.status
        if status == 416:  # the file ends before: it is another one
            raise Changed
        if status in _LATER:
            raise Broken(f"the server says {_status(answer)}", _retry_after(answer))
        if status not in (200, 206):
            raise _failed(self._url, f"the server says {_status(answer)}")
        first, total = _read_range(answer, start) if status == 206 else (0, _read_length(answer))
        if status == 206 and first != start:
            raise _failed(self._url, "the server sends other bytes than were asked for")

        def chunks() -> Iterator[bytes]:
            with self._told(self._url):
                while chunk := answer.read1(CHUNK, decode_content=False):
                    yield chunk

        return Body(
            start=first,
            total=total,
            validator=_read_validator(answer),
            chunks=chunks,
            close=answer.close,
            stop=lambda: _stop(answer),
            whole_at_end=total is not None or answer.chunked,
        )

    @contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Turns what urllib3 raises into Broken and DownloadError, in words of our own: its own
        hold the whole URL."""
        import urllib3.exceptions as known

        host = _split(url)[1]
        try:
            yield
        except known.ProxyError as error:
            raise Broken(f"the proxy for {host} {_reason(error)}") from error
        except known.SSLError as error:
            cause = _find(error, ssl.SSLCertVerificationError)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise _failed(
                    self._url,
                    f"the certificate of {host} is not valid: {cause.verify_message}",
                    "name the authority that vouches for it by SSL_CERT_FILE, or another location",
                ) from error
            raise Broken(f"TLS with {host} failed: {_tls_reason(error)}") from error
        except known.NameResolutionError as error:
            raise Broken(f"the name {host} is not known") from error
        except (known.LocationParseError, known.LocationValueError, UnicodeError) as error:
            raise _failed(self._url, "the location is no URL", "correct it") from error
        except (known.HTTPError, OSError) as error:
            raise Broken(f"{host} {_reason(error)}") from error


def _make_pool(url: str) -> Any:
    """Connections to a server, or to the proxy that the environment names for it."""
    import urllib3

    scheme, host = _split(url)
    proxies: Mapping[str, str] = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager()
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    parts = urlsplit(proxy)
    headers = {}
    if parts.username:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=words)
    try:
        return urllib3.ProxyManager(_without_credentials(proxy), proxy_headers=headers)
    except urllib3.exceptions.HTTPError as error:
        raise _failed(
            url, f"the proxy for {scheme} is none that speaks HTTP", "correct the proxy's setting"
        ) from error


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _authorization(first: str, url: str) -> dict[str, str]:
    """The credentials that a URL holds, for its own server alone and no other it leads to."""
    own, parts = urlsplit(first), urlsplit(url)
    if not own.username or (own.scheme, own.hostname, own.port) != (
        parts.scheme,
        parts.hostname,
        parts.port,
    ):
        return {}
    words = f"{unquote(own.username)}:{unquote(own.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


def _status(answer: Any) -> str:
    import http

    with suppress(ValueError):
        return f"{answer.status} {http.HTTPStatus(answer.status).phrase}"
    return str(answer.status)


def _read_range(answer: Any, start: int) -> tuple[int, int | None]:
    """The first byte of a part, and the bytes of the whole."""
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    part, _, total = rest.partition("/")
    first = part.partition("-")[0]
    if unit.lower() != "bytes" or not first.isdigit():
        return -1, None
    return int(first), int(total) if total.isdigit() else None


def _read_length(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and not answer.chunked else None


def _read_validator(answer: Any) -> str | None:
    """A strong ETag, or the time of the last change; RFC 9110, 13.1.5."""
    tag: str | None = answer.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    changed: str | None = answer.headers.get("Last-Modified")
    return changed


def _retry_after(answer: Any) -> float:
    words = answer.headers.get("Retry-After", "")
    return float(words) if words.isdigit() else 0.0


def _stop(answer: Any) -> None:
    """Ends an answer that another thread may be reading."""
    with suppress(OSError, ValueError, RuntimeError, AttributeError):
        answer.shutdown()


def _find(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The exception of a kind among those that led to another, or that it holds."""
    seen: list[BaseException] = [error]
    for each in seen:
        if isinstance(each, kind):
            return each
        more = (*each.args, each.__cause__, each.__context__)
        seen += [one for one in more if isinstance(one, BaseException) and one not in seen]
    return None


def _reason(error: BaseException) -> str:
    """What broke, in a few words."""
    import urllib3.exceptions as known

    if _find(error, known.NameResolutionError) is not None:
        return "is not known by its name"
    if _find(error, ConnectionRefusedError) is not None:
        return "refuses the connection"
    if isinstance(error, known.NewConnectionError):  # which urllib3 counts as a time-out
        cause = _find(error, OSError)
        reason = cause.strerror if isinstance(cause, OSError) else None
        return f"cannot be reached: {reason or 'no connection'}"
    if _find(error, known.TimeoutError) is not None or _find(error, TimeoutError) is not None:
        return "does not answer in time"
    return "broke the connection"


def _tls_reason(error: BaseException) -> str:
    cause = _find(error, ssl.SSLError)
    reason = cause.reason if isinstance(cause, ssl.SSLError) else None
    return (reason or "the connection ended").replace("_", " ").lower()


# ---- S3


class _S3:
    """An object of S3, or of what looks like it, by boto3 with the usual credentials."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        self._bucket, self._key = parts.netloc, parts.path.lstrip("/")
        if not self._bucket or not self._key:
            raise _failed(url, "it names no object", "write it as s3://BUCKET/KEY")
        self._client: Any = None

    def open(self, start: int, validator: str | None) -> Body:
        words: dict[str, str] = {"Bucket": self._bucket, "Key": self._key}
        if start and validator:
            words |= {"Range": f"bytes={start}-", "IfMatch": validator}
        with self._told():
            answer = self._get_client().get_object(**words)
        part = answer.get("ContentRange", "")
        first = int(part.split()[1].partition("-")[0]) if part else 0
        length = int(answer["ContentLength"])
        body = answer["Body"]

        def chunks() -> Iterator[bytes]:
            with self._told():
                yield from body.iter_chunks(CHUNK)

        if first != (start if part else 0):
            raise _failed(self._url, "S3 sends other bytes than were asked for")
        return Body(
            start=first,
            total=first + length,
            validator=answer.get("ETag"),
            chunks=chunks,
            close=body.close,
            stop=lambda: _stop(body._raw_stream),
            whole_at_end=True,
        )

    def _get_client(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            session = boto3.Session()
            self._client = session.client(
                "s3",
                region_name=session.region_name or "us-east-1",  # S3 tells where a bucket is
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"total_max_attempts": 1},
                    response_checksum_validation="when_required",  # the whole is checked
                ),
            )
        return self._client

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what botocore raises into Broken and DownloadError."""
        from pipeline.clouds.ec2.aws import Cut, NoCredentials, Refused, is_transient, translated

        try:
            with translated("s3:GetObject"):
                yield
        except Cut as error:
            raise Broken(_cut_reason(error.connected)) from error
        except NoCredentials as error:
            raise _failed(
                self._url,
                "there are no credentials for S3, or they have expired",
                "give credentials as to the AWS command line, such as by AWS_PROFILE",
            ) from error
        except Refused as error:
            if error.status in (412, 416):
                raise Changed from error
            if is_transient(error):
                raise Broken(f"S3 says {error.code}") from error
            todo = "let these credentials read the object (s3:GetObject)" if error.denied else _TODO
            raise _failed(self._url, f"S3 says {error.code}", todo) from error


def _cut_reason(connected: bool) -> str:
    return "S3 broke the connection" if connected else "S3 cannot be reached"
