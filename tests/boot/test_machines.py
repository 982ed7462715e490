"""Whole machines, booted as a Nimbus node boots them, with what real sites do to them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from cli_runs import Hello
from faulty_metadata import Fault
from machines import REPORT, booted, copy_disk, nimbus_machine

from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.disk import ext4
from pipeline.machine.metadata import USER_DATA_PATH
from pipeline.model import NoProgress
from pipeline.store import Store
from pipeline.tools import apt

pytestmark = [pytest.mark.boot, pytest.mark.slow]

ROOT_START = 1 << 20  # bytes before the root file system in the layout `mbr`
FIRST_KEY, SECOND_KEY = "ssh-ed25519 AAAAfirst one@site", "ssh-ed25519 AAAAsecond two@site"

FAULTS = (
    Fault.RESET,
    Fault.UNAVAILABLE,
    Fault.FORBIDDEN,
    Fault.NOT_FOUND,
    Fault.ERROR,
    Fault.HANG,
    Fault.ERROR_PAGE,
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a machine left when it ended."""

    report: Mapping[str, list[str]]
    console: str
    statuses: list[int | None]
    """The statuses of its requests for user-data; None: no answer."""


@pytest.fixture(scope="module")
def first(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A machine whose metadata service fails in many ways before it answers."""
    disk = copy_disk(stored, tmp_path_factory.mktemp("first"))
    service = NimbusMetadata(user_data=REPORT.encode())
    with booted(disk, service, nimbus_machine(), FIRST_KEY, FAULTS) as guest:
        report = guest.wait_for_report()
        guest.wait_for("phantom-user-data: the user-data ended with status")
        asked = [each for each in guest.server.requests if each.path == USER_DATA_PATH]
    disk.unlink()
    return Ended(report=report, console=guest.console, statuses=[each.status for each in asked])


def test_metadata_service_that_fails_first(first: Ended) -> None:
    """The fetcher runs no answer of a service that is still starting, and the user-data once."""
    assert first.statuses == [None, 503, 403, 404, 500, None, 200, 200]
    assert first.report["tries"] == [str(len(FAULTS) + 1)]
    assert first.report["runs"] == ["1"]
    assert "failed_unit" not in first.report
    assert first.report["authorized_key"] == [FIRST_KEY]
    said = re.findall(
        r"phantom-user-data: (try \d+ of 60|the user-data ended [^\r\n]*)", first.console
    )
    assert said == [
        *(f"try {number} of 60" for number in range(1, len(FAULTS) + 1)),
        "the user-data ended with status 0",
    ]


@pytest.mark.only_soak
def test_machine_without_serial_port(disk: Path, first: Ended) -> None:
    """Nimbus's machines have none. Two machines of one image share no host key or machine-id."""
    service = NimbusMetadata(user_data=REPORT.encode())
    with booted(disk, service, nimbus_machine(serial=False), SECOND_KEY) as guest:
        report = guest.wait_for_report()
    assert guest.console == ""
    assert report["tries"] == ["1"]
    assert report["runs"] == ["1"]
    assert "failed_unit" not in report
    assert report["authorized_key"] == [SECOND_KEY]
    assert len(report["host_key"]) == len(first.report["host_key"]) == 3
    assert not {*report["host_key"]} & {*first.report["host_key"]}
    assert report["machine_id"] != first.report["machine_id"]


def test_machine_without_user_data(disk: Path) -> None:
    """A Nimbus server answers with one newline: the fetcher runs nothing, and succeeds."""
    # systemd runs ExecStartPost only after an ExecStart that succeeded.
    drop_in = "[Service]\nExecStartPost=/bin/sh -c 'echo the fetcher succeeded >/dev/console'\n"
    root = ext4.FileSystem(disk, ROOT_START)
    folder = PurePosixPath("/etc/systemd/system/phantom-user-data.service.d")
    root.write(folder / "50-test.conf", drop_in, 0o644)
    with booted(disk, NimbusMetadata(), nimbus_machine()) as guest:
        guest.wait_for("the fetcher succeeded")
        asked = [each.status for each in guest.server.requests if each.path == USER_DATA_PATH]
    assert asked == [200]
    said = re.findall(r"phantom-user-data: ([^\r\n]*)", guest.console)
    assert said == ["there is no user-data: nothing to run"]


UPGRADE = """#!/bin/sh
# Installs the kernel that the test has put on the disk, and starts the machine again.
dpkg -i /var/tmp/kernel.deb >/tmp/dpkg 2>&1
{
    echo "status $?"
    echo "vmlinuz $(readlink -f /vmlinuz)"
    echo "initrd $(readlink -f /initrd.img)"
    echo "old $(readlink -f /vmlinuz.old)"
    echo "kernel $(uname -r)"
    tail -n 20 /tmp/dpkg | sed 's/^/dpkg /'
} >/tmp/report
curl -s --data-binary @/tmp/report "$PHANTOM_METADATA_URL/report"
systemctl reboot
"""


@pytest.mark.only_soak
def test_kernel_upgraded_inside_the_machine(disk: Path, hello: Hello) -> None:
    """After dpkg has installed another kernel, the same disk boots that one."""
    name, package = fetch_kernel(hello)
    debugfs = f"write {package} /var/tmp/kernel.deb"
    subprocess.run(
        ["debugfs", "-w", "-R", debugfs, f"{disk}?offset={ROOT_START}"],
        check=True,
        capture_output=True,
    )
    version = name.removeprefix("linux-image-")
    service = NimbusMetadata(user_data=UPGRADE.encode())
    with booted(disk, service, nimbus_machine()) as guest:
        report = guest.wait_for_report(900)
        assert report["status"] == ["0"], report["dpkg"]
        assert report["kernel"] != [version]
        assert report["vmlinuz"] == [f"/boot/vmlinuz-{version}"]
        assert report["initrd"] == [f"/boot/initrd.img-{version}"]
        assert report["old"] == [f"/boot/vmlinuz-{report['kernel'][0]}"]
        guest.wait_until_off()
    # The cloud kernel has no driver for Nimbus's network card, so only the console shows the boot.
    with booted(disk, NimbusMetadata(), nimbus_machine()) as guest:
        guest.wait_for(f"Linux version {version}")
        guest.wait_for("login: ")


def fetch_kernel(hello: Hello) -> tuple[str, Path]:
    """Name and file of a kernel package that hello-phantom lacks: the small cloud kernel."""
    store = Store(hello.store)
    archive = apt.Archive(apt.find_mirrors("bookworm"), "amd64", store)
    resolution = archive.resolve(["linux-image-cloud-amd64"])
    (kernel,) = (
        each
        for each in resolution.packages
        if re.fullmatch(r"linux-image-[0-9].*-cloud-amd64", each.name)
    )
    alone = apt.Resolution(
        packages=(kernel,),
        installed_bytes=resolution.installed_bytes,
        uris=resolution.uris,
        stanzas=resolution.stanzas,
    )
    folder = archive.download(alone, NoProgress())
    return kernel.name, folder / f"{kernel.sha256}.deb"
