"""What a boot check takes, compared with the time in which the same image gets a network."""

from __future__ import annotations

import base64
import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, phantom
from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.machine import qemu
from pipeline.machine.accelerator import find_accelerator
from pipeline.machine.metadata import MetadataServer
from pipeline.machine.node import edit_as_node
from pipeline.model import Machine, Site
from pipeline.stages.guest_report import parse_report

TURNS = 3
IMAGE = "images/hello-phantom"
# Runs the user-data and the check script, and tells how long the script took and how long ago the
# network was there.
_REPORT = """#!/bin/sh
uptime() { cut -d ' ' -f 1 /proc/uptime; }
echo USER_DATA | base64 -d | sh
echo CHECK | base64 -d >/tmp/check
before=$(uptime)
sh /tmp/check >/dev/null 2>&1 </dev/null
online=$(systemctl show --value -p ActiveEnterTimestampMonotonic network-online.target)
echo "$(uptime) $before $online" |
    awk '{ print "check", $1 - $2; print "ago", $1 - $3 / 1000000 }' >/tmp/report
curl -s --data-binary @/tmp/report "$PHANTOM_METADATA_URL/report"
"""


def measure_boot(project: Path) -> Iterator[Figure]:
    """Measures the boot check of hello-phantom, which the project has built for Nimbus."""
    turns = []
    for _ in range(TURNS):
        online, script = _boot_alone(project)
        turns.append((boot_check_seconds(project) - script) / online)
    yield Figure(
        name="boot check without its script / power-on to network-online",
        value=statistics.median(turns),
        unit=" x",
        at_most=1.3,
    )


def boot_check_seconds(project: Path) -> float:
    """How long the boot check of hello-phantom takes, which the project has built for Nimbus."""
    for artifact in (project / "build/store/artifacts").glob("boot-*"):
        shutil.rmtree(artifact)
    stages = phantom(project, "build", "hello-phantom", "--cloud", "nimbus").answer["stages"]
    assert isinstance(stages, list)
    return sum(float(each["seconds"]) for each in stages if each["stage"].startswith("boot"))


def _boot_alone(project: Path) -> tuple[float, float]:
    """The seconds from power-on to network-online, and those that the check script takes."""
    machine = _machine()
    (stored,) = (project / "build/store/artifacts").glob("disk-*/disk.raw")
    script = _REPORT
    for word, file in (("USER_DATA", "user-data.sh"), ("CHECK", "check.sh")):
        packed = base64.b64encode((project / IMAGE / file).read_bytes()).decode()
        script = script.replace(word, packed)
    service = NimbusMetadata(user_data=script.encode())
    with tempfile.TemporaryDirectory(dir=project) as folder:
        disk = Path(folder, "disk.raw")
        subprocess.run(["cp", "--no-preserve=mode", str(stored), str(disk)], check=True)
        edit_as_node(machine, disk, "ssh-ed25519 AAAA me", f"http://{machine.metadata_address}")
        qemu.ready_disk(machine, disk)
        with MetadataServer(service, private=True, takes_reports=True) as server:
            network = qemu.Network(metadata_socket=server.socket_name)
            started = time.monotonic()
            with subprocess.Popen(
                qemu.command(machine, disk, network, find_accelerator(Path(folder))),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            ) as process:
                try:
                    report = server.wait_for_report(900)
                    ended = time.monotonic()
                finally:
                    process.kill()
    assert report is not None, "the machine told nothing"
    told = parse_report(report)
    ago, check = (float(told[name][0]) for name in ("ago", "check"))
    return ended - started - ago, check


def _machine() -> Machine:
    (machine,) = Nimbus(Site(name="site", cloud="nimbus", where="the benchmark")).machines
    return dataclasses.replace(machine, serial=True)
