"""Hears from QEMU that this host's disk is full, and ends it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
from contextlib import suppress
from typing import Self

from pipeline.machine.local_http import peer_of


class FullDiskWatch:
    """Ends a machine whose disk cannot grow because this host has no space left. QEMU pauses such a
    machine until somebody tells it to go on, so that whoever waits for the machine waits for good.

    `options` are QEMU's options that make it report here, for one QEMU in the `with` block.
    """

    def __init__(self) -> None:
        self.full: str | None = None
        """The id of the QEMU drive that could not grow, once that has happened."""
        name = f"phantom-{secrets.token_hex(16)}"
        self.options = (
            ("-chardev", f"socket,id=events,path={name},abstract=on,tight=on"),
            ("-mon", "chardev=events,mode=control"),
        )
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{name}")
        self._thread = threading.Thread(target=self._listen, name="full disk", daemon=True)

    def __enter__(self) -> Self:
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):  # the block has ended
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    process, user = peer_of(connection)
                    if user == os.geteuid():
                        self._read(connection, process)

    def _read(self, connection: socket.socket, process: int) -> None:
        """Reads what QEMU reports until it ends ("QEMU Machine Protocol Specification")."""
        with suppress(OSError, ValueError), connection.makefile("rwb") as monitor:
            monitor.write(b'{"execute": "qmp_capabilities"}\n')
            monitor.flush()
            for line in monitor:  # the last one is cut where QEMU is killed
                told = json.loads(line)
                failed = told["data"] if told.get("event") == "BLOCK_IO_ERROR" else {}
                if failed.get("nospace"):
                    self.full = str(failed["device"])
                    os.kill(process, signal.SIGKILL)  # it has not ended: it is connected
