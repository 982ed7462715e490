"""curl, which fetches a file by HTTP or HTTPS.

URL and headers go to curl's standard input, since they may hold a password or a signature: every
user of this host can read the arguments of its programs.
"""

from __future__ import annotations

import json
import os
import re
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from pipeline.model import KIB
from pipeline.tools import run

CONNECT_SECONDS = 10
SLOW_SECONDS, SLOW_SPEED = 30, KIB
"""curl gives up on a server that sends fewer bytes a second than this, for so many seconds."""
REDIRECTS = 5
_MOST_DIGITS, _LONGEST_VALIDATOR = 18, KIB
_MOST_PRINTED = 512 * KIB  # of headers, for six answers; servers send a few kilobytes
_TOO_LONG = 56  # as curl itself ends for headers that are too long
_TICK = 100  # milliseconds
_TRUST = ("CURL_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE")
"""The variables that say whose certificates to trust."""
_COMMAND = (
    *("curl", "--disable", "--config", "-", "--silent", "--fail", "--no-buffer"),
    *("--globoff", "--path-as-is", "--http1.1", "--user-agent", "phantom-image"),
    *("--dump-header", "-", "--suppress-connect-headers", "--write-out", "\n%{json}"),
    *("--location", "--max-redirs", str(REDIRECTS), "--proto", "=http,https"),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered, and how curl ended."""

    status: int = 0
    """HTTP's; 0 where no answer came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By their names in lower case."""
    exit_status: int = 0
    """curl's; negative if a signal ended it."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What curl says at its end, by the names of its `--write-out`."""

    @property
    def total(self) -> int | None:
        """Bytes of the whole file."""
        if self.status == 206:
            total = self.headers.get("content-range", "").rpartition("/")[2]
        else:
            total = "" if self.chunked else self.headers.get("content-length", "")
        is_number = total.isascii() and total.isdigit() and len(total) <= _MOST_DIGITS
        return int(total) if is_number else None

    @property
    def chunked(self) -> bool:
        """Whether the body has an end of its own."""
        return "transfer-encoding" in self.headers

    @property
    def validator(self) -> str | None:
        """A strong ETag, or the time of the last change (RFC 9110, 13.1.5): while it stays the
        same, so does the file."""
        tag = self.headers.get("etag")
        if tag is None or tag.startswith("W/"):
            tag = self.headers.get("last-modified")
        is_sound = tag is not None and tag.isascii() and tag.isprintable()
        return tag if is_sound and len(tag or "") <= _LONGEST_VALIDATOR else None


def fetch(
    url: str,
    target: Path,
    *,
    start: int,
    headers: tuple[str, ...],
    most: int,
    watch: Callable[[Answer], None],
) -> Answer:
    """Appends a file's bytes from `start` on to `target`, or writes it anew where `start` is 0.

    A body that is announced to be larger than `most` bytes is refused. `watch` is called several
    times a second with what the server has answered so far; what it raises ends curl.
    """
    secure = url.lower().startswith("https:")
    argv = [
        *(*_COMMAND, "--proto-redir", "=https" if secure else "=http,https"),
        *("--connect-timeout", str(CONNECT_SECONDS), "--max-filesize", str(max(1, most))),
        *("--speed-time", str(SLOW_SECONDS), "--speed-limit", str(SLOW_SPEED)),
        *("--continue-at", str(start), "--output", str(target)),
    ]
    authorities = os.environ.get("SSL_CERT_FILE")
    if authorities:  # of which curl itself takes no notice beside an SSL_CERT_DIR
        argv += ["--cacert", authorities]
    config = "".join(_option("header", header) for header in headers) + _option("url", url)
    environment = {f"{scheme}_proxy": proxy for scheme, proxy in getproxies().items()}
    environment |= {name: os.environ[name] for name in _TRUST if name in os.environ}
    printed = ""
    with run.start(argv, env=environment, input=config) as process:
        for text in _follow(process):
            printed += text
            if len(printed) > _MOST_PRINTED:
                return Answer(exit_status=_TOO_LONG, told={"url_effective": url})
            watch(_read_answer(printed, 0))
        status = process.wait()
    run.check_started(argv, status)
    return _read_answer(printed, status)


def _option(name: str, value: str) -> str:
    """A line of curl's configuration."""
    if not value.isprintable():
        raise ValueError(f"a control character in the {name}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name} = "{escaped}"\n'


def _follow(process: run.Process) -> Iterator[str]:
    """What a program prints until it ends, as it comes; "" where nothing came for a moment."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    poller = select.poll()
    poller.register(output, select.POLLIN)
    while True:
        if not poller.poll(_TICK):
            yield ""
        elif printed := os.read(output, 64 * KIB):
            yield printed.decode("latin-1")
        else:
            return


def _read_answer(printed: str, exit_status: int) -> Answer:
    """The last answer whose headers are complete; before it are those that redirected."""
    told: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        told = json.loads("{" + printed.rpartition("\n{")[2])
    blocks = printed.replace("\r\n", "\n").split("\n\n")[:-1]
    for block in reversed(blocks):
        status = re.match(r"\n?HTTP/[\d.]+ (\d{3})", block)
        if status is not None:
            pairs = (line.partition(":") for line in block.lstrip().split("\n")[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            return Answer(
                status=int(status[1]), headers=headers, exit_status=exit_status, told=told
            )
    return Answer(exit_status=exit_status, told=told)
