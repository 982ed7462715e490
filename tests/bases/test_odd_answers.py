"""Servers whose headers make no sense: a download succeeds, or fails with an error for people."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.errors import DownloadError
from pipeline.sources.transport import Broken, Transport
from pipeline.tools.curl import Answer

BODY = b"content"
DIGITS = b"9" * 5000


@contextmanager
def answering(head: bytes, *, endless: bool = False) -> Iterator[str]:
    """The URL of a server that answers each request so; with `endless`, headers follow for ever."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    connection.sendall(head)
                    while endless:
                        connection.sendall(b"X-More: and more\r\n" * 1000)
                    connection.sendall(b"\r\n\r\n" + BODY)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/image"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def fetch(url: str, folder: Path, start: int = 0) -> Answer | Exception:
    target = folder / "target"
    target.write_bytes(b"c" * start)
    try:
        return Transport(url).fetch(target, start, '"tag"', 1 << 30, lambda _: None)
    except (Broken, DownloadError) as error:
        return error


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + DIGITS,
        b"HTTP/1.1 200 OK\r\nContent-Length: -7",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nETag: \x01\xff\r\nLast-Modified: " + DIGITS,
        b"HTTP/1.1 503 Later\r\nRetry-After: \xb2",
        b"HTTP/1.1 503 Later\r\nRetry-After: " + DIGITS,
        b"HTTP/1.1 503 Later\r\nRetry-After: Thu, 26 Nov 2026 06:00:00 GMT",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1",
        b"HTTP/1.1 302 Found\r\nLocation: http://exam\xe2\x84\x80ple/",
        b"HTTP/1.1 999 What",
        b"{" * 10_000,
        b"HTTP/1.1 200 OK\r\n\r\n{" + b"[" * 10_000,
    ],
    ids=lambda head: head[:60].decode("latin-1").replace("\r\n", " "),
)
def test_headers_that_make_no_sense(tmp_path: Path, head: bytes) -> None:
    with answering(head) as url:
        told = fetch(url, tmp_path)
        if isinstance(told, Answer):
            assert told.status == 200
            assert told.total in (None, 7) and told.validator is None
        elif isinstance(told, Broken):
            assert 0 <= told.pause < float("inf")


@pytest.mark.parametrize("total", [b"\xb2", DIGITS, b"*", b""])
def test_ranges_that_make_no_sense(tmp_path: Path, total: bytes) -> None:
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 7\r\nContent-Range: bytes 3-9/" + total
    with answering(head) as url:
        told = fetch(url, tmp_path, start=3)
        assert not isinstance(told, Answer) or told.total is None


def test_headers_without_end(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering(b"HTTP/1.1 200 OK\r\n", endless=True) as url:
        told = fetch(url, tmp_path)
    assert isinstance(told, Broken | DownloadError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
