"""Commands on a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte
from cli_runs import LIMIT


class Terminal:
    """A command that runs on a terminal of its own; killed at the end of the block."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        columns: int = 80,
        lines: int = 24,
    ) -> None:
        self._main, side = pty.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(side, termios.TIOCSWINSZ, size)
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.text = b""
        """All that came, as it came."""
        kept = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            cwd=cwd,
            env={"TERM": "xterm-256color", **kept},
            stdin=side,
            stdout=side,
            stderr=side,
        )
        os.close(side)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    @property
    def rows(self) -> list[str]:
        """What stands on the screen now, without empty rows."""
        return [row.rstrip() for row in self._screen.display if row.strip()]

    def type(self, text: str) -> None:
        """Types a text."""
        os.write(self._main, text.encode())

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float = LIMIT) -> None:
        """Reads on until something stands on the screen."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"no {what}:\n{self.printed}"
            assert self._read(), f"ended before {what}:\n{self.printed}"

    def wait_for(self, words: str, seconds: float = LIMIT) -> None:
        """Waits until a text stands on the screen."""
        self.wait_until(lambda: any(words in row for row in self.rows), repr(words), seconds)

    def end(self, seconds: float = LIMIT) -> int:
        """Waits for the command to end; returns its status."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, f"still running:\n{self.printed}"
        return self.process.wait(30)

    @property
    def printed(self) -> str:
        """All that came, as text."""
        return self.text.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> bool:
        """Takes what has come meanwhile; whether more may come."""
        ready, _, _ = select.select([self._main], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self._main, 1 << 16)
        except OSError:  # how Linux reports that nobody has the terminal open any more
            return False
        self.text += data
        self._stream.feed(data)
        return bool(data)
