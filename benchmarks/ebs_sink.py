"""A stand-in for the EBS direct APIs that takes blocks and discards them as fast as it can.

It checks nothing, so it shows how fast an uploader is when the service never holds it up. It is one
thread in a process of its own; the kernel discards the bodies without copying them (MSG_TRUNC).

.venv/bin/python3 -m benchmarks.ebs_sink     # prints its port; ends when standard input does
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.measure import ROOT

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
STARTED = {"SnapshotId": "snap-0123456789abcdef0", "BlockSize": 524288, "Status": "pending"}


class _Connection:
    """One keep-alive connection: the request's head so far, and how much of its body is to come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.left = 0
        self.answer = b""

    def take(self, spare: bytearray) -> bool:
        """Takes the bytes that have arrived; returns False at the end of the connection."""
        if not self.left:
            received = self.sock.recv(1 << 16)
            if not received:
                return False
            self._take_head(received)
        else:
            # With MSG_TRUNC, TCP discards the bytes without copying them, and returns their number.
            count = self.sock.recv_into(spare, min(self.left, len(spare)), socket.MSG_TRUNC)
            if not count:
                return False
            self.left -= count
        if not self.left and self.answer:
            self.sock.sendall(self.answer)
            self.answer = b""
        return True

    def _take_head(self, received: bytes) -> None:
        self.head += received
        head, found, body = self.head.partition(b"\r\n\r\n")
        if not found:
            return
        self.head = b""
        length = LENGTH.search(head)
        self.left = (int(length[1]) if length else 0) - len(body)
        if head.startswith(b"PUT"):
            self.answer = _make_answer("201 Created", b"")
        elif b"/completion/" in head.partition(b"\r\n")[0]:
            self.answer = _make_answer("202 Accepted", b'{"Status": "completed"}')
        else:
            self.answer = _make_answer("201 Created", json.dumps(STARTED).encode())


def _make_answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def serve() -> None:
    """Serves on a port of the loopback until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    spare = bytearray(1 << 20)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(sock, selectors.EVENT_READ, _Connection(sock))
                continue
            try:
                alive = key.data.take(spare)
            except OSError:
                alive = False
            if not alive:
                selector.unregister(key.fileobj)
                key.data.sock.close()


@contextmanager
def running_sink() -> Iterator[str]:
    """Runs a sink in a process of its own; yields its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ebs_sink"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate()


if __name__ == "__main__":
    serve()
