"""Guests of one disk beside each other: each on an overlay of its own, with a metadata service of
its own, and all on one private network."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.files import make_folder
from pipeline.machine import qemu
from pipeline.machine.metadata import MetadataServer, MetadataService
from pipeline.machine.private_network import PrivateNetwork, choose_group, choose_mac, choose_number
from pipeline.machine.running_guest import RunningGuest
from pipeline.model import Machine
from pipeline.tools import run

NETWORK = ipaddress.IPv4Network("10.99.0.0/24")
"""The private network."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A guest that runs."""

    name: str
    log: Path
    """What it prints on its console."""
    heard: RunningGuest
    server: MetadataServer
    process: run.Process
    stack: ExitStack


class Fleet:
    """Guests that end with the `with` block, with this process, and with the thread that starts
    them (`tools/run.py`). `base` is their disk, as `qemu.ready_disk` has made it; what they write
    goes below `folder`, which no other fleet uses.
    """

    def __init__(self, machine: Machine, base: Path, folder: Path, accelerator: str) -> None:
        self._machine = machine
        self._base = base
        self._folder = folder
        self._accelerator = accelerator
        self._group = choose_group(str(folder.absolute()))
        self._numbers: dict[str, int] = {}
        self._leases: dict[str, str] = {}
        self._members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._network = PrivateNetwork(self._group, NETWORK, self._leases)

    def __enter__(self) -> Self:
        """Raises OSError."""
        self._network.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._members):
            self.end(name)
        self._network.__exit__()

    def reserve(self, names: Iterable[str]) -> dict[str, str]:
        """The addresses that guests of these names have, or will have."""
        with self._lock:
            for name in names:
                if name not in self._numbers:
                    self._numbers[name] = choose_number(self._numbers.values())
                self._leases[choose_mac(name)] = str(NETWORK[self._numbers[name]])
            return {name: str(NETWORK[number]) for name, number in self._numbers.items()}

    def start(
        self,
        name: str,
        service: MetadataService,
        *,
        log: Path,
        output: Callable[[str], None],
        services: tuple[tuple[str, str], ...] = (),
    ) -> Member:
        """Starts a guest, whose report its metadata server takes. `log` gets what it prints on its
        console, `output` each line of it; `services` are those of `qemu.Network`. Raises
        StageFailedError where the network is full, ToolError, HostError, OSError."""
        self.reserve([name])
        overlay = self._folder / name / "disk.qcow2"
        make_folder(overlay.parent)
        qemu.make_overlay(self._base, overlay)
        with ExitStack() as stack:
            server = MetadataServer(service, private=True, takes_reports=True)
            stack.enter_context(server)
            network = qemu.Network(
                metadata_socket=server.socket_name,
                services=services,
                private=(self._group.netdev, choose_mac(name)),
            )
            argv = qemu.command(self._machine, overlay, network, self._accelerator, format="qcow2")
            process = stack.enter_context(run.start(argv))
            member = Member(
                name=name,
                log=log,
                heard=RunningGuest(process, log, output),
                server=server,
                process=process,
                stack=stack.pop_all(),
            )
        self._members[name] = member
        return member

    def is_running(self, name: str) -> bool:
        """Whether a guest was started, and has not ended."""
        member = self._members.get(name)
        return member is not None and member.process.poll() is None

    def end(self, name: str) -> None:
        """Ends a guest, which may have ended before, and removes its disk; its address is free."""
        member = self._members.pop(name, None)
        if member is None:
            return
        member.heard.end()
        member.stack.close()
        with suppress(OSError):
            (self._folder / name / "disk.qcow2").unlink()
        with self._lock:
            self._leases.pop(choose_mac(name), None)
            self._numbers.pop(name, None)
