"""A catalog on this host's loopback, to look at it as a web server would show it."""

from __future__ import annotations

import http.server
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.catalog.pages import POLICY
from pipeline.machine.local_http import LocalHandler, LocalServer

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".atom": "application/atom+xml",
}


class CatalogHandler(LocalHandler, http.server.SimpleHTTPRequestHandler):
    """Answers with files of a folder."""

    def answer(self) -> None:
        if self.command not in ("GET", "HEAD"):
            self.send_error(405)
            return
        file = self.send_head()
        if file is not None:
            with file:
                if self.command == "GET":
                    self.copyfile(file, self.wfile)

    def list_directory(self, path: Any) -> None:
        """No folder is listed."""
        self.send_error(404)

    def guess_type(self, path: Any) -> str:
        return _TYPES.get(Path(path).suffix, "application/octet-stream")

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Serves a catalog while the `with` block lasts, and gives its address. Raises OSError where
    the port is taken."""
    handler: Any = partial(CatalogHandler, directory=str(folder))
    with LocalServer(handler, port=port) as server:
        yield f"{server.url}/"
