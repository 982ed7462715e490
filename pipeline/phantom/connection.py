"""A Phantom's HTTP: requests of limited time, and answers of limited size."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import DefinitionError, PhantomServiceError, SiteUnreachableError
from pipeline.phantom.named import PhantomService
from pipeline.phantom.refusal import Refusal

if TYPE_CHECKING:
    import urllib3

CONNECT_SECONDS = 10
_MOST_BYTES = 32 << 20  # of an answer: a thousand machines have a few hundred thousand
_CHUNK = 1 << 16
_LONGEST = 200  # characters of a service's own words that help
_AWAY = (502, 503, 504)  # how proxies answer for a service that is away
_AGAIN = "run the same command again: it goes on where it was"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a Phantom answered."""

    status: int
    reason: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_page(self) -> bool:
        """Whether it is an HTML page."""
        start = self.body.lstrip()[:15].lower()
        return start.startswith((b"<!doctype html", b"<html"))

    @property
    def words(self) -> str:
        """What it says, in one short line: of a page its title, or else its text."""
        text = self.body[:_CHUNK].decode("utf-8", "replace")
        if self.is_page:
            title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
            text = re.sub(r"<[^>]*>", " ", title[1] if title else text)
        line = " ".join(text.split())
        return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


class Connection:
    """How a Phantom is asked. Nothing is kept open between two requests: a Phantom that was started
    anew in between is no fault. `hidden` are secrets, which no error shows."""

    def __init__(self, service: PhantomService, hidden: tuple[str, ...] = ()) -> None:
        self.service = service
        self._hidden = [secret for secret in hidden if secret]
        self._pool: urllib3.PoolManager | None = None

    @property
    def where(self) -> str:
        """The Phantom, as messages name it."""
        return f"Phantom {self.service.name}"

    def hide(self, text: str) -> str:
        """A text without secrets: an answer may repeat what it was asked."""
        for secret in self._hidden:
            text = text.replace(secret, "***")
        return text

    def send(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str]
    ) -> Answer:
        """The answer to one request, sent once. Raises SiteUnreachableError, and
        PhantomServiceError for a redirection and for an answer without end."""
        import urllib3.exceptions as known

        limit = self.service.seconds
        deadline = time.monotonic() + limit
        if self._pool is None:
            self._pool = self._make_pool()
        try:
            response = self._pool.request(
                method,
                f"{self.service.url}{path}",
                body=body,
                headers={"User-Agent": "phantom-image", "Connection": "close", **headers},
                timeout=_timeout(limit),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                data = self._read(response, deadline)
            finally:
                response.close()
        except known.NewConnectionError as error:
            raise self._make_unreachable(_reason(error)) from error
        except (known.ConnectTimeoutError, known.ReadTimeoutError, TimeoutError) as error:
            raise self._make_unreachable(f"nothing came within {limit} seconds") from error
        except known.HTTPError as error:
            raise self._make_unreachable(_reason(error)) from error
        found = Answer(
            status=response.status,
            reason=str(response.reason or ""),
            body=data,
            headers=dict(response.headers),
        )
        return self._checked(found)

    def _read(self, response: Any, deadline: float) -> bytes:
        data = b""
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > _MOST_BYTES:
                raise self.make_foreign(f"an answer of more than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        return data

    def _checked(self, found: Answer) -> Answer:
        if found.status in _AWAY:
            raise self._make_unreachable(f"{found.status} {self.hide(found.words or found.reason)}")
        place = found.headers.get("Location")
        # 302 with its own location is how the web API says that a name exists.
        if 300 <= found.status < 400 and not (found.status == 302 and "/api/dev/" in (place or "")):
            raise self.make_foreign(f"a redirection to {self.hide(place or 'nowhere')}")
        return found

    def check_no_page(self, found: Answer) -> None:
        """Raises PhantomServiceError for an HTML page."""
        if found.is_page:
            raise self.make_foreign(f"an HTML page ({self.hide(found.words)!r})")

    def make_refusal(self, found: Answer) -> Refusal:
        """What an answer with a status of 400 or more says."""
        text = self.hide(found.words) or "no reason is told"
        return Refusal(found.status, found.reason or "error", text)

    def make_foreign(self, what: str) -> PhantomServiceError:
        """The error of an answer that is no Phantom's."""
        service = self.service
        return PhantomServiceError(
            f"{service.url} answers with {what}, which is nothing that Phantom's {service.api} API "
            "says",
            where=self.where,
            todo="compare `url` and `api` of this Phantom in sites.yaml; something else may answer "
            f"there, such as a proxy or a page to log in. Then {_AGAIN}",
        )

    def _make_unreachable(self, why: str) -> SiteUnreachableError:
        return SiteUnreachableError(
            f"{self.service.url} does not answer: {why}",
            where=self.where,
            todo=f"see whether this Phantom runs, and this host's network and proxy; then {_AGAIN}",
        )

    def _make_pool(self) -> urllib3.PoolManager:
        import urllib3

        bundle = self.service.ca_bundle
        if bundle is not None and not bundle.is_file():
            raise DefinitionError(
                f"ca_bundle of Phantom {self.service.name} names {bundle}, which is no file",
                where=self.service.where,
                todo="name the file that holds the service's certificates",
            )
        proxy = self._find_proxy()
        certificates = None if bundle is None else str(bundle)
        if proxy is None:
            return urllib3.PoolManager(ca_certs=certificates)
        return urllib3.ProxyManager(proxy, ca_certs=certificates)

    def _find_proxy(self) -> str | None:
        """The proxy of this host's environment; none leads to a local Phantom."""
        parts = urlsplit(self.service.url)
        host = parts.hostname or ""
        if self.service.sandbox or proxy_bypass(host):
            return None
        proxy = getproxies().get(parts.scheme)
        return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _timeout(seconds: int) -> urllib3.Timeout:
    import urllib3

    return urllib3.Timeout(connect=min(CONNECT_SECONDS, seconds), read=seconds)


def _reason(error: BaseException) -> str:
    """The innermost of what urllib3 and the kernel say, in a few words."""
    cause = error
    while (inner := _find_inner(cause)) is not None:
        cause = inner
    text = " ".join((getattr(cause, "strerror", None) or str(cause)).split())
    text = re.sub(r"^.*: (\[Errno -?\d+\] )?|^\[Errno -?\d+\] | \(_ssl\.c:\d+\)$", "", text)
    return text.rstrip(".") or type(cause).__name__


def _find_inner(error: BaseException) -> BaseException | None:
    candidates = (getattr(error, "reason", None), *error.args)
    return next((inner for inner in candidates if isinstance(inner, BaseException)), None)
