"""A web server for one file, with faults that tests choose; it answers S3's GetObject too."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class HttpFile:
    """The file, and how it is served. A change takes effect with the next request."""

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """How many bytes the next answers have before they are cut, one number per answer."""
    longest: int | None = None
    """The most bytes in an answer to a range request."""
    chunked: bool = False
    statuses: list[int] = field(default_factory=list)
    """The statuses of the next answers."""
    redirect: str | None = None
    region: str | None = None
    """The bucket's region; requests that are signed for another get a 301 that names it."""
    silence: float = 0.0
    """Seconds before an answer."""
    pause: float = 0.0
    """Seconds between two pieces of 64 KiB."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""
    sent: int = 0
    """Bytes of the file that were sent, in all answers."""
    url: str = ""

    @property
    def ranges_asked(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]


@contextmanager
def serving(file: HttpFile, tls: ssl.SSLContext | None = None) -> Iterator[HttpFile]:
    """Serves a file at `file.url` while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, file)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        scheme = "http" if tls is None else "https"
        file.url = f"{scheme}://127.0.0.1:{server.server_port}/images/base.img"
        try:
            yield file
        finally:
            server.shutdown()
            thread.join()


def _answer(handler: BaseHTTPRequestHandler, file: HttpFile) -> None:
    headers = {name.lower(): value for name, value in handler.headers.items()}
    file.requests.append((handler.path, headers))
    handler.close_connection = True
    time.sleep(file.silence)
    status = file.statuses.pop(0) if file.statuses else 302 if file.redirect else 200
    if status != 200:
        handler.send_response(status)
        if status == 302 and file.redirect is not None:
            handler.send_header("Location", file.redirect)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    if file.region is not None and not _is_signed_for(file.region, handler.path, headers):
        handler.send_response(301)
        handler.send_header("x-amz-bucket-region", file.region)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    start = _start(headers, file)
    if start is None:
        handler.send_response(412)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    size = len(file.content)
    end = min(size, start + file.longest) if start and file.longest else size
    body = file.content[start:end]
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
    if file.etag is not None:
        handler.send_header("ETag", file.etag)
    if file.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    else:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    _send(handler, file, body[: file.cut_after.pop(0)] if file.cut_after else body)


def _is_signed_for(region: str, path: str, headers: dict[str, str]) -> bool:
    return f"%2F{region}%2F" in path or f"/{region}/" in headers.get("authorization", "")


def _start(headers: dict[str, str], file: HttpFile) -> int | None:
    """The offset at which an answer starts; None: the condition `If-Match` does not hold."""
    if headers.get("if-match", file.etag) != file.etag:
        return None
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if match is None or not file.ranges or headers.get("if-range", file.etag) != file.etag:
        return 0
    return int(match[1])


def _send(handler: BaseHTTPRequestHandler, file: HttpFile, body: bytes) -> None:
    try:
        for offset in range(0, len(body), 65_536):
            piece = body[offset : offset + 65_536]
            head = b"%x\r\n" % len(piece) if file.chunked else b""
            handler.wfile.write(head + piece + (b"\r\n" if file.chunked else b""))
            file.sent += len(piece)
            time.sleep(file.pause)
        if file.chunked and len(body) == len(file.content):
            handler.wfile.write(b"0\r\n\r\n")
    except OSError:  # the client has gone
        pass
