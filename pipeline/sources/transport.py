"""Fetches a file from where it is published, by HTTP, HTTPS or S3. curl does the work.

An attempt that fails raises Broken if another one may succeed, and DownloadError if none will. No
message shows the secrets of a URL: its password, its signature.
"""

from __future__ import annotations

import errno
import http
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from pipeline.disk.untrusted import to_number
from pipeline.errors import DownloadError
from pipeline.tools import curl
from pipeline.tools.aws import Cut, NoCredentials, Refused
from pipeline.tools.curl import Answer
from pipeline.tools.s3 import S3Object

SCHEMES = ("http", "https", "s3")
_LATER = (408, 425, 429, 500, 502, 503, 504)  # statuses that may pass
_CHANGED = (412, 416)  # the file does not match the validator, or is shorter
TODO = "see that the location is right and that this host reaches it, then run the command again"
_TRUST = "name the authority that vouches for it by SSL_CERT_FILE, or another location"

# curl's exit statuses; its manual lists them all.
_UNSUPPORTED, _CANNOT_WRITE, _TIMED_OUT, _CANNOT_GO_ON, _TOO_MANY_REDIRECTIONS = 1, 23, 28, 33, 47
_FOR_GOOD = {
    3: ("the location is no URL", "correct it"),
    47: (f"it was redirected more than {curl.REDIRECTS} times", TODO),
    60: ("the certificate of {host} is not valid: {message}", _TRUST),
    77: ("the certificate of {host} cannot be checked: {message}", _TRUST),
}
_FOR_NOW = {
    5: "the name of the proxy for {host} is not known",
    6: "the name {host} is not known",
    7: "{peer} cannot be reached",
    35: "TLS with {host} failed: {message}",
}


class Broken(Exception):
    """An attempt broke off, or never began; `pause` is how many seconds the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause


class Changed(Broken):
    """The server has another file now, or sends files only as a whole."""

    def __init__(self) -> None:
        super().__init__("the file has changed")


def shown(url: str) -> str:
    """A URL without what may be secret: credentials, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a location that is no URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def make_transport(url: str) -> Transport:
    """The transport for a URL. Raises DownloadError for one that has none."""
    with suppress(ValueError):
        parts = urlsplit(url)  # its scheme is in lower case
        if parts.scheme not in SCHEMES:
            what = f"{parts.scheme or 'no'} URL: {', '.join(SCHEMES)} are fetched"
            raise _failed(url, what, "correct the location")
        if parts.scheme == "s3":
            return _S3(url)
        _ = parts.port  # raises ValueError for what is no number
        if parts.hostname and url.isprintable():
            return Transport(url)
    raise _failed(url, *_FOR_GOOD[3])


def _failed(url: str, what: str, todo: str = TODO) -> DownloadError:
    return DownloadError(f"the file cannot be fetched: {what}", where=shown(url), todo=todo)


class Transport:
    """Fetches from a web server, through the proxies that the environment names."""

    server = "the server"
    condition = "If-Range"

    def __init__(self, url: str) -> None:
        self.url = url

    def fetch(
        self,
        target: Path,
        start: int,
        validator: str | None,
        most: int,
        watch: Callable[[Answer], None],
    ) -> Answer:
        """Appends the file's bytes from `start` on to `target`, if it still is the file of the
        validator; `most` and `watch` are as for `curl.fetch`, but answers without a part of the
        file are not watched. Raises Broken, DownloadError, OSError."""
        right = 206 if start else 200
        condition = (f"{self.condition}: {validator}",) if start else ()
        answer = curl.fetch(
            self.address(),
            target,
            start=start,
            headers=("Accept-Encoding: identity", *condition),
            most=most,
            watch=lambda answer: watch(answer if answer.status == right else Answer()),
        )
        if answer.exit_status == 0 and answer.status == right:
            return answer
        if answer.exit_status == _CANNOT_GO_ON or (start and answer.status in (200, *_CHANGED)):
            raise Changed
        raise self.explain(answer)

    def address(self) -> str:
        """The URL as servers want it: blanks and letters other than ASCII's are escaped."""
        parts = urlsplit(self.url)
        path, query = (quote(part, safe="!#$%&'()*+,/:;=?@[]~") for part in parts[2:4])
        return parts._replace(path=path, query=query, fragment="").geturl()

    def explain(self, answer: Answer) -> Exception:
        """The error for an answer that did not come, or brings no file, or broke off."""
        last = answer.told.get("url_effective") or ""
        if answer.exit_status == _UNSUPPORTED and 300 <= answer.status < 400:
            before = str(answer.told.get("scheme")).lower()
            return _failed(
                self.url,
                f"it is redirected from {before} to {shown(last)}, which is not followed",
                "name a location that leads to https alone, or the one at its end",
            )
        if answer.status not in (0, 200, 206) and answer.exit_status != _TOO_MANY_REDIRECTIONS:
            return self.refused(answer)
        if answer.exit_status == 0 and answer.status:
            return _failed(self.url, f"{self.server} sends other bytes than were asked for")
        if answer.exit_status == _CANNOT_WRITE:  # curl does not say why
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._broken(answer, _host(last) or _host(self.url))

    def refused(self, answer: Answer) -> Exception:
        """The error for an answer that brings no file."""
        reason = f"{self.server} says {_phrase(answer.status)}"
        if answer.status in _LATER:
            pause = to_number(answer.headers.get("retry-after", ""))  # a date counts as none
            return Broken(reason, float(pause or 0))
        return _failed(self.url, reason)

    def _broken(self, answer: Answer, host: str) -> Exception:
        message, status = answer.told.get("errormsg") or "", answer.exit_status
        connected = re.search(r"connect to (\S+) port", message)  # the server, or its proxy
        words = {
            "host": host,
            "peer": connected[1] if connected else host,
            "message": message.removeprefix("SSL certificate problem: ").rpartition("::")[2],
        }
        if status in _FOR_GOOD:
            what, todo = _FOR_GOOD[status]
            return _failed(self.url, what.format(**words), todo)
        if status in _FOR_NOW:
            return Broken(_FOR_NOW[status].format(**words))
        if answer.told.get("http_connect", 0) >= 300:
            return Broken(f"the proxy for {host} says {_phrase(answer.told['http_connect'])}")
        if status == _TIMED_OUT:
            slow = "the server sends next to nothing"
            return Broken(slow if answer.status else f"{host} does not answer in time")
        return Broken("curl was killed" if status < 0 else f"{host} broke the connection")


def _host(url: str) -> str:
    with suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def _phrase(status: int) -> str:
    with suppress(ValueError):
        return f"{status} {http.HTTPStatus(status).phrase}"
    return str(status)


class _S3(Transport):
    """Fetches from S3, by URLs that boto3 signs."""

    server = "S3"
    condition = "If-Match"  # S3 does not document If-Range

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = urlsplit(url)
        if not parts.netloc or not parts.path.strip("/"):
            raise _failed(url, "it names no object", "write it as s3://BUCKET/KEY")
        self._object = S3Object(parts.netloc, parts.path.lstrip("/"))

    def address(self) -> str:
        try:
            return self._object.sign()
        except (Cut, NoCredentials) as error:
            raise self._explain_call(error) from error

    def refused(self, answer: Answer) -> Exception:
        error = super().refused(answer)
        if isinstance(error, Broken):
            return error
        try:
            self._object.check()
        except (Cut, NoCredentials, Refused) as told:
            return self._explain_call(told)
        return Broken(f"S3 says {_phrase(answer.status)}")  # to a URL for another region

    def _explain_call(self, error: Cut | NoCredentials | Refused) -> Exception:
        if isinstance(error, Cut):
            return Broken("S3 broke the connection" if error.connected else "S3 cannot be reached")
        if isinstance(error, NoCredentials):
            return _failed(
                self.url,
                "there are no credentials for S3, or they have expired",
                "give credentials as to the AWS command line, such as by AWS_PROFILE",
            )
        todo = "let these credentials read the object (s3:GetObject)" if error.denied else TODO
        return _failed(self.url, f"S3 says {error.code}", todo)
