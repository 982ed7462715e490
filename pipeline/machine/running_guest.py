"""A machine that runs on this host, heard on its serial port while it boots."""

from __future__ import annotations

import codecs
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import (
    GuestCheckError,
    GuestNetworkError,
    GuestSilentError,
    GuestUserDataError,
    PhantomError,
)
from pipeline.machine.metadata import USER_DATA_PATH, MetadataServer
from pipeline.tools import run

_CONSOLE_LINES, _CONSOLE_KEPT = 25, 100_000  # lines that are shown, and characters that are kept
_LAST_WORDS = 2.0  # seconds from a machine's end to the last line that it has printed
_USER_DATA = USER_DATA_PATH.removeprefix("/latest")  # cloud-init asks for a dated version

HOPELESS = re.compile(
    r"Kernel panic|ramdisk: error: |No bootable device|Boot failed|BdsDxe: failed to load"
    # GRUB goes on without a module, a font, a list or a translation.
    r"|error: (file (?!\S{1,300}\.(?:mod|pf2|lst|mo)\b).{1,300} not found|unknown filesystem)"
    r"|Minimal BASH-like line editing|grub rescue>|ALERT! .* does not exist"
    r"|\(initramfs\)|You are in emergency mode"
)
"""What a console says when waiting longer is of no use."""
_GAVE_UP = re.compile(r"phantom-user-data: error: ")
_CAME_UP = re.compile(r"login: |Reached target .*[Mm]ulti-[Uu]ser|phantom-user-data: ")


class RunningGuest:
    """A running machine, heard on its serial port."""

    def __init__(self, process: run.Process, log: Path, output: Callable[[str], None]) -> None:
        """`log` gets all that the machine prints, `output` each line of it."""
        self._process = process
        self._log = log
        self._output = output
        self._text = ""
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def end(self) -> None:
        """Ends the machine, and hears it out."""
        self._process.kill()  # the disk is thrown away: nothing has to be shut down
        self._reader.join(_LAST_WORDS)

    def wait(self, server: MetadataServer, limit: int, watch: Callable[[], None]) -> bytes:
        """The guest's report. Raises what `look` and `watch` raise, and the error that fits what
        was heard where none came within `limit` seconds."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            watch()
            report = self.look(server, 0.1)
            if report is not None:
                return report
        raise self.error(server, f"the machine did not report within {limit} s")

    def look(self, server: MetadataServer, seconds: float) -> bytes | None:
        """The guest's report, waited for as long; None where it may still come. Raises the error
        that fits what was heard in place of it."""
        report = server.wait_for_report(seconds)
        lacking = next((asked.path for asked in server.requests if asked.lacked_token), None)
        if lacking is not None:
            raise GuestCheckError(
                f"the guest asked for {lacking} without a token, and its site requires one",
                todo="take the user-data fetcher of the element phantom-user-data, with curl, "
                "or let what else asks for metadata get a token first",
                log=self._log,
            )
        if report is not None:
            return report
        if self._process.poll() is not None:
            self._reader.join(_LAST_WORDS)
            raise self.error(server, "the machine stopped before it reported")
        if HOPELESS.search(self._text) or _GAVE_UP.search(self._text):
            time.sleep(1)  # what it says next tells more
            raise self.error(server, "the machine said on its console that it failed")
        return None

    @property
    def last_lines(self) -> str:
        """The end of what its console shows."""
        lines = [line.rstrip() for line in self._text.splitlines() if line.strip()]
        return "\n".join(lines[-_CONSOLE_LINES:])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        # A serial port brings a few bytes at a time, and escape sequences in parts.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ended, line = "", ""
        with run.open_log(self._log) as log:
            while data := os.read(self._process.stdout.fileno(), 1 << 16):
                log.buffer.write(data)
                log.flush()
                *lines, line = (line + decoder.decode(data)).split("\n")
                for text in map(plain, lines):
                    ended = f"{ended[-_CONSOLE_KEPT:]}{text}\n"
                    self._output(text)
                line = line[-_CONSOLE_KEPT:]  # a guest may never end a line
                self._text = ended + plain(line)

    def error(self, server: MetadataServer, what: str) -> PhantomError:
        """The error that fits what was heard of a machine that failed in this way."""
        end = self.last_lines
        answered = (request.path for request in server.requests if request.status == 200)
        kind: type[PhantomError] = GuestSilentError
        if any(path.endswith(_USER_DATA) for path in answered):
            kind, what = GuestUserDataError, f"the guest got its user-data, but {what}"
            todo = "look at what follows phantom-user-data on the console"
        elif _CAME_UP.search(self._text):
            kind = GuestNetworkError
            what = f"the guest booted without reaching the metadata service: {what}"
            todo = (
                "see that the image has a driver for the site's network card, asks for an "
                "address by DHCP, and has the user-data fetcher (element phantom-user-data)"
            )
        else:
            what, end = f"the guest did not boot: {what}", end or "(nothing on the console)"
            todo = "look at the end of the console; `phantom-image boot` starts the same machine"
        return kind(what, todo=todo, log=self._log, detail=end)


def plain(text: str) -> str:
    """Console text without colours and cursor movements."""
    sequences = r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[a-z]"
    return re.sub(rf"{sequences}|[\x00-\x08\x0b-\x1f]", "", text)
