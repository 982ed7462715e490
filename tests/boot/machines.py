"""Machines that tests boot: a site's virtual hardware, a metadata service, and a console."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faulty_metadata import Fault, FaultyServer

from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.machine import accelerator, qemu
from pipeline.machine.metadata import MetadataServer, MetadataService
from pipeline.machine.node import edit_as_node
from pipeline.model import Machine, Site
from pipeline.stages.guest_report import parse_report

# As the boot check has it (pipeline/stages/boot.py).
BOOT_SECONDS = 900.0

REPORT = """#!/bin/sh
# User-data of tests: counts how often it ran on this disk, and reports to the metadata service.
echo run >>/var/tmp/runs
for _ in $(seq 300); do # a key for RSA is made beside everything else
    [ ! -e /etc/ssh/ssh_host_rsa_key.pub ] || break
    sleep 1
done
{
    echo "tries $PHANTOM_USER_DATA_TRIES"
    echo "runs $(grep -c run /var/tmp/runs)"
    echo "kernel $(uname -r)"
    echo "machine_id $(cat /etc/machine-id)"
    for key in /etc/ssh/ssh_host_*_key.pub; do echo "host_key $(cat "$key")"; done
    while read -r line; do echo "authorized_key $line"; done </root/.ssh/authorized_keys
    systemctl list-units --failed --no-legend --plain | while read -r unit _; do
        echo "failed_unit $unit"
    done
} >/tmp/report
curl -s --data-binary @/tmp/report "$PHANTOM_METADATA_URL/report"
"""


def nimbus_machine(*, serial: bool = True) -> Machine:
    """A machine of a Nimbus site on KVM, with a serial port for its console."""
    site = Site(name="site", cloud="nimbus", where="the test")
    (machine,) = Nimbus(site).machines
    return dataclasses.replace(machine, serial=serial)


def copy_disk(stored: Path, folder: Path) -> Path:
    """A fresh copy of an image's disk, as each new machine gets one."""
    disk = folder / "disk.raw"
    words = ["cp", "--sparse=always", "--no-preserve=mode", str(stored), str(disk)]
    subprocess.run(words, check=True)
    return disk


class Guest:
    """A running machine."""

    def __init__(self, process: subprocess.Popen[bytes], server: MetadataServer) -> None:
        self.server = server
        self.console = ""
        self.process = process
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        # Not line by line: no newline follows a prompt.
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            self.console += data.decode(errors="replace")

    def wait_for(self, text: str, seconds: float = BOOT_SECONDS) -> None:
        """Waits until the console shows a text."""
        self._wait(lambda: text in self.console, repr(text), seconds)

    def wait_for_report(self, seconds: float = BOOT_SECONDS) -> dict[str, list[str]]:
        """The first report of the guest."""
        self._wait(lambda: self.server.wait_for_report(0.05) is not None, "a report", seconds)
        report = self.server.wait_for_report(0)
        assert report is not None
        return parse_report(report)

    def wait_until_off(self, seconds: float = BOOT_SECONDS) -> None:
        """Waits until the machine powers off or starts again, which ends QEMU."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.console[-4000:]}") from None

    def _wait(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"off before {what}:\n{self.console[-4000:]}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.console[-4000:]}"
            time.sleep(0.05)


@contextmanager
def booted(
    disk: Path,
    service: MetadataService,
    machine: Machine,
    public_key: str = "ssh-ed25519 AAAA me",
    faults: Iterable[Fault] = (),
) -> Iterator[Guest]:
    """A machine that boots from a disk, after its node's edits; killed at the end of the block."""
    edit_as_node(machine, disk, public_key, f"http://{machine.metadata_address}")
    qemu.ready_disk(machine, disk)
    with FaultyServer(service, faults, private=True, takes_reports=True) as server:
        network = qemu.Network(metadata_socket=server.socket_name)
        command = qemu.command(machine, disk, network, accelerator.find_accelerator())
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        guest = Guest(process, server)
        try:
            yield guest
        finally:
            process.kill()
            process.wait()
            guest._reader.join(10)
            assert process.stdout is not None
            process.stdout.close()
