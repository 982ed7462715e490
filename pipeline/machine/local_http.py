"""HTTP servers of this process, on threads: they stand in for a cloud's services."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class LocalHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection; prints nothing. Subclasses define `answer`."""

    # Version 1.1 has the base class answer `Expect: 100-continue`, as real servers do.
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Answers one request, whatever its method."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Standard error belongs to the command's own messages."""


class LocalServer(ThreadingHTTPServer):
    """Serves for as long as the `with` block lasts: on this host's loopback and a free port unless
    told otherwise. Raises OSError where the address is taken.

    A `private` server listens on a socket of this host's kernel instead, and answers only this
    user's programs; on the loopback it would answer everybody's. Its name is made up unless
    `socket_name` tells it.
    """

    daemon_threads = True  # a request that never ends must not hold up the command
    request_queue_size = 64

    def __init__(
        self,
        handler: type[LocalHandler],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        private: bool = False,
        socket_name: str | None = None,
    ) -> None:
        self._private = private
        if private:
            self.address_family = socket.AF_UNIX
        # An abstract name (unix(7)): no file is left behind by whatever ends this process.
        name = f"\0{socket_name or make_socket_name()}"
        super().__init__(
            name if private else (host, port),  # type: ignore[arg-type]
            handler,
            bind_and_activate=False,
        )
        self.stopping = threading.Event()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name=type(self).__name__, daemon=True
        )

    @property
    def port(self) -> int:
        """The TCP port that it listens on; 0 before the `with` block, unless one was asked for."""
        return int(self.server_address[1])

    @property
    def socket_name(self) -> str:
        """The abstract name of a private server's socket, without the NUL in front."""
        assert self._private
        address = self.socket.getsockname()
        return str(address.decode() if isinstance(address, bytes) else address).lstrip("\0")

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at the end."""
        return f"http://{self.server_address[0]!s}:{self.port}"

    def __enter__(self) -> Self:
        try:
            self.server_bind()
            self.server_activate()
        except OSError:
            self.server_close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def server_bind(self) -> None:
        # HTTPServer's own method asks DNS for the name of the address, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is to be answered: one from another user is closed."""
        return not self._private or peer_of(request)[1] in (0, os.geteuid())

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints a traceback only where the server itself is at fault, not where the client went
        away or the command ended."""
        if not (self.stopping.is_set() or isinstance(sys.exception(), OSError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def make_socket_name() -> str:
    """A name for a private server that nobody guesses."""
    return f"phantom-{secrets.token_hex(16)}"


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The process at the other end of a connection on this host, and its user."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process, user, _ = struct.unpack("3i", credentials)
    return process, user
