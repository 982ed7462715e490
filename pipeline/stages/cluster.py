"""The cluster check: boots several guests of an image beside each other, and asks them whether they
work together.

Each guest gets its own user-data, in which placeholders stand for what is known only now, and
reports as in a boot check. Where the definition asks for it, a local Phantom runs beside them: the
guests reach it, and the machines that it starts for them are guests of the same disk on the same
private network.
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from pipeline.clouds import metadata_service
from pipeline.cluster_policy import ADDRESS, OF_PHANTOM, SECRET, fill
from pipeline.disk.untrusted import to_printable
from pipeline.errors import ClusterCheckError, PhantomError, StageFailedError
from pipeline.machine import qemu
from pipeline.machine.accelerator import find_accelerator
from pipeline.machine.fleet import Fleet, Member
from pipeline.machine.local_http import make_socket_name
from pipeline.machine.node import edit_as_node
from pipeline.model import Machine
from pipeline.phantom.machines import Order
from pipeline.phantom.sandbox import run_phantom
from pipeline.phantom.service import Inside
from pipeline.stages.base import Context, LocalFile, Stage, read_unchanged
from pipeline.stages.boot import BOOT_SECONDS, needs_of
from pipeline.stages.guest_report import (
    make_metadata,
    make_report_script,
    output_of,
    parse_report,
    public_key_of,
    status_of,
)
from pipeline.stages.image import data_bytes, unpack_image
from pipeline.store import Artifact
from pipeline.tools import run

# Guests that boot beside each other take the longer, and then start what they are there for.
CLUSTER_SECONDS = {name: 2 * seconds for name, seconds in BOOT_SECONDS.items()}
SITE, IMAGE, INSTANCE_TYPE = "sandbox", "image", "m1.small"
"""What the local Phantom calls its one site, the image that is checked, and its machines."""
_PHANTOM_HOST, _PHANTOM_PORT = 200, 8445  # in the guests' network; the port is the real service's
_PHANTOM_GUESTS = 2  # that memory is kept for: how many there will be, the guests decide
_PAUSE = 0.1  # seconds from one look at the guests to the next
_LAST_LINES = 5  # of what a script has printed


@dataclass(frozen=True, kw_only=True)
class GuestFiles:
    """Guests that are alike."""

    count: int
    user_data: LocalFile | None
    script: LocalFile | None
    """Run in the first of them."""


@dataclass(frozen=True, kw_only=True)
class ClusterCheck(Stage):
    """Boots guests of an image on one private network; its facts are what they reported. Raises
    ClusterCheckError."""

    name: ClassVar[str] = "cluster"
    cores: ClassVar[int] = 2

    machine: Machine
    report: LocalFile
    """What makes a guest report: `boot_report.sh`."""
    guests: Mapping[str, GuestFiles]
    phantom: bool
    """Whether a local Phantom runs beside them."""
    seconds: int | None
    """Time limit; None: what the host's accelerator needs."""

    @property
    def requires(self) -> tuple[str, ...]:
        return (*needs_of(self.machine), "boot from an overlay")

    @property
    def memory(self) -> int:
        """That of all guests, and what their QEMUs take."""
        count = sum(each.count for each in self.guests.values())
        count += _PHANTOM_GUESTS if self.phantom else 0
        return count * (self.machine.memory + qemu.OVERHEAD)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (image,) = inputs
        accelerator = find_accelerator(context.store.folder)
        limit = self.seconds or CLUSTER_SECONDS[accelerator]
        nonce = secrets.token_hex(16)
        context.progress.step("making the machines' disk")
        context.store.check_space(data_bytes(image))
        disk = context.work / "disk.raw"
        unpack_image(image, disk)
        url = f"http://{self.machine.metadata_address}"
        edit_as_node(self.machine, disk, public_key_of(nonce), url)
        qemu.ready_disk(self.machine, disk)
        fleet = Fleet(self.machine, disk, context.work / "guests", accelerator)
        with fleet, _Console(context) as console, ExitStack() as stack:
            guests = _Guests(self, fleet, console, nonce)
            if self.phantom:
                stack.enter_context(guests.phantom(context.work / "phantom"))
            context.progress.step(f"booting ({accelerator})", seconds=limit)
            guests.start()
            return {"accelerator": accelerator, **guests.wait(limit, context)}


class _Console:
    """The logs of a check: one with the lines of all guests, and each guest's console as it is."""

    def __init__(self, context: Context) -> None:
        self._log, self._output = context.log, context.progress.output
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for earlier in self._log.parent.glob(f"{self._log.stem}-*.log"):
            earlier.unlink(missing_ok=True)
        self._file = run.open_log(self._log)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()

    def find_log(self, guest: str) -> Path:
        """Where a guest's console goes."""
        return self._log.with_name(f"{self._log.stem}-{guest}.log")

    def note(self, who: str, line: str) -> None:
        """Adds a line to the log of all."""
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{who} | {line}\n")
                self._file.flush()
        self._output(f"{who} | {line}")


class _Guests:
    """The guests of one check: the definition's, and those that a local Phantom orders."""

    def __init__(self, check: ClusterCheck, fleet: Fleet, console: _Console, nonce: str) -> None:
        self._check = check
        self._fleet = fleet
        self._console = console
        self._nonce = nonce
        self._values = {SECRET: secrets.token_hex(32)}
        self._services: tuple[tuple[str, str], ...] = ()
        self._files: dict[str, GuestFiles] = {}
        self._members: dict[str, Member] = {}
        self._ordered = 0
        for name, files in sorted(check.guests.items()):
            alike = replace(files, script=None)
            numbered = [f"{name}.{number}" for number in range(1, files.count + 1)]
            names = [name] if files.count == 1 else numbered
            self._files |= {names[0]: files, **dict.fromkeys(names[1:], alike)}
            self._values[f"{ADDRESS}{name}"] = fleet.reserve([names[0]])[names[0]]

    def start(self) -> None:
        """Starts the guests of the definition."""
        for name, files in self._files.items():
            data, script = files.user_data, files.script
            text = None if data is None else fill(read_unchanged(data).decode(), self._values)
            report = make_report_script(
                self._check.report,
                nonce=self._nonce,
                metadata_url=f"http://{self._check.machine.metadata_address}",
                user_data=None if text is None else text.encode(),
                check=None if script is None else read_unchanged(script),
            )
            self._members[name] = self._start(name, report)

    def _start(self, name: str, user_data: bytes | None) -> Member:
        service, key = metadata_service(self._check.machine.metadata), public_key_of(self._nonce)
        metadata = (
            service(public_key=key)
            if user_data is None
            else make_metadata(service, user_data, public_key=key)
        )
        return self._fleet.start(
            name,
            metadata,
            log=self._console.find_log(name),
            output=partial(self._console.note, name),
            services=self._services,
        )

    def wait(self, limit: int, context: Context) -> dict[str, Any]:
        """What the definition's guests have reported. Raises ClusterCheckError, NoSpaceError."""
        started, told = time.monotonic(), dict[str, dict[str, Any]]()
        while len(told) < len(self._members):
            context.store.check_space()
            late = time.monotonic() - started > limit
            for name in [name for name in self._members if name not in told]:
                report = self._look(name, limit if late else None)
                if report is not None:
                    seconds = round(time.monotonic() - started, 1)
                    told[name] = {"seconds": seconds, "printed": self._judge(name, report)}
                    self._console.note(name, f"(has reported after {seconds} s)")
            time.sleep(_PAUSE)
        addresses = self._fleet.reserve(())
        return {
            "seconds": max(each["seconds"] for each in told.values()),
            "guests": [
                {"name": name, "address": addresses[name], **told[name]} for name in self._members
            ],
            "started_by_phantom": self._ordered if self._check.phantom else None,
        }

    def _look(self, name: str, late: int | None) -> bytes | None:
        """A guest's report; None where it may still come. Raises ClusterCheckError, also where it
        is `late`, after so many seconds."""
        member = self._members[name]
        try:
            report = member.heard.look(member.server, 0)
            if report is None and late is not None:
                what = f"the machine did not report within {late} s"
                raise member.heard.error(member.server, what)
        except PhantomError as error:
            raise ClusterCheckError(
                f"guest {name}: {error.what}", todo=error.todo, log=member.log, detail=error.detail
            ) from error
        return report

    def _judge(self, name: str, report: bytes) -> str | None:
        """The last lines that a guest's check script has printed; None where it has none. Raises
        ClusterCheckError."""
        facts, files = parse_report(report), self._files[name]
        if facts.get("nonce") != [self._nonce]:
            raise self._fail(name, "the report is of another machine", "see its console")
        parts = {"user_data": files.user_data, "check": files.script}
        for part, file in parts.items():
            if file is None:
                continue
            if f"{part}_status" not in facts:
                todo = "see in the log what disturbs the script that reports, the user-data"
                raise self._fail(name, f"its report is damaged: it has no {part}_status", todo)
            if (status := status_of(facts, part)) != 0:
                what = "user-data" if part == "user_data" else "check script"
                raise self._fail(
                    name,
                    f"its {what} {file.path.name} ended with status {status}",
                    "correct it, or the image",
                    output_of(facts, part),
                )
        printed = [to_printable(line) for line in output_of(facts, "check").splitlines()]
        return None if files.script is None else self._hide("\n".join(printed[-_LAST_LINES:]))

    def _fail(self, name: str, what: str, todo: str, printed: str = "") -> ClusterCheckError:
        member = self._members[name]
        lines = [*printed.splitlines(), "the end of its console:", member.heard.last_lines]
        detail = self._hide("\n".join(lines))
        return ClusterCheckError(f"guest {name}: {what}", todo=todo, log=member.log, detail=detail)

    def _hide(self, text: str) -> str:
        """A text without the check's secrets."""
        for name in (SECRET, "phantom_secret_key"):
            text = text.replace(self._values.get(name, "\0"), "***")
        return text

    # ---- those of a local Phantom

    @contextmanager
    def phantom(self, folder: Path) -> Iterator[None]:
        """Runs a local Phantom that the guests reach, and that starts further ones."""
        network = ipaddress.IPv4Network(self._check.machine.network)
        place = f"{network[_PHANTOM_HOST]}:{_PHANTOM_PORT}"
        inside = Inside(url=f"http://{place}", socket_name=make_socket_name())
        self._services = ((place, inside.socket_name),)
        ordered = _Ordered(self._order, self._fleet)
        with run_phantom(folder, [SITE], ordered, inside=inside, tell=self._tell) as running:
            values = (running.url, running.user.access_key, running.user.secret_key)
            self._values |= zip(OF_PHANTOM, (*values, SITE, IMAGE, INSTANCE_TYPE), strict=True)
            yield

    def _tell(self, text: str) -> None:
        for line in text.split("\n"):
            self._console.note("phantom", line)

    def _order(self, order: Order) -> None:
        if order.image_id != IMAGE:
            raise StageFailedError(f"the site {SITE} has no image {order.image_id[:100]!r}")
        data = order.user_data
        self._start(order.machine, None if data is None else data.encode())
        self._ordered += 1


@dataclass(frozen=True)
class _Ordered:
    """The machines of a local Phantom: guests that end with the check, so that none is left."""

    begin: Callable[[Order], None]
    fleet: Fleet

    def start(self, order: Order) -> None:
        self.begin(order)

    def alive(self, machine: str) -> bool:
        return self.fleet.is_running(machine)

    def end(self, machine: str) -> None:
        self.fleet.end(machine)

    def adopt(self, machines: Collection[str]) -> None:
        """There never are any."""
