"""Packages that draw keys, ids and certificates while they are installed, in real builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cli_runs import Project, digests, make_project
from machines import booted, copy_disk, nimbus_machine

from pipeline.clouds.nimbus.metadata import NimbusMetadata

pytestmark = [
    pytest.mark.boot,
    pytest.mark.slow,
    pytest.mark.only_soak,
]

PACKAGES = "ssl-cert, munge, open-iscsi, nvme-cli, bind9, postfix, rabbitmq-server, dropbear-bin"
FILES = {
    "/etc/ssl/private/ssl-cert-snakeoil.key": "640 root:ssl-cert",
    "/etc/ssl/certs/ssl-cert-snakeoil.pem": "644 root:root",
    "/etc/munge/munge.key": "600 munge:munge",
    "/etc/iscsi/initiatorname.iscsi": "600 root:root",
    "/etc/nvme/hostnqn": "644 root:root",
    "/etc/nvme/hostid": "644 root:root",
    "/etc/bind/rndc.key": "640 bind:bind",
    "/var/lib/rabbitmq/.erlang.cookie": "400 rabbitmq:rabbitmq",
}
REPORT = """#!/bin/sh
# User-data: tells what this machine made for itself.
{
    for file in FILES; do
        for try in $(seq 60); do [ -e "$file" ] || sleep 1; done
        echo "made $file $(stat -c '%a %U:%G' "$file") $(sha256sum <"$file" | cut -c 1-64)"
    done
    systemctl list-units --failed --no-legend --plain | while read -r unit _; do
        echo "failed_unit $unit"
    done
    echo "myhostname $(postconf -h myhostname)"
    munge -n | unmunge | sed -n 's/^STATUS: */munge /p'
    openssl verify -CAfile /etc/ssl/certs/ssl-cert-snakeoil.pem \\
        /etc/ssl/certs/ssl-cert-snakeoil.pem | sed 's/^/certificate /'
} >/tmp/report
curl -s --data-binary @/tmp/report "$PHANTOM_METADATA_URL/report"
""".replace("FILES", " ".join(FILES))


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    """Two builds of one definition, in two stores, on hosts of different names."""
    made = []
    for number in (1, 2):
        project = make_project(tmp_path_factory.mktemp(f"build{number}"))
        project.define("twins", f"packages: [{PACKAGES}]\nboot_check: {{}}\n")
        done = project.run_by(
            ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"builder{number}.lan"],
            *("build", "twins", "--cloud", "nimbus"),
        )
        assert done.status == 0, done.err
        made.append(project)
    return made


def test_two_builds_are_the_same(projects: list[Project]) -> None:
    first, second = (project.manifest("twins") for project in projects)
    assert digests(first) == digests(second)
    made = first["root_filesystem"]["identities"]["made_at_boot"]
    assert {file for maker in made for file in maker["files"]} >= {*FILES}
    assert first["root_filesystem"]["identities"]["shared"] == []


def test_no_build_host_is_named(projects: list[Project]) -> None:
    (root,) = projects[0].artifacts("root")
    found = subprocess.run(
        ["grep", "-c", "-a", "-F", "builder1", str(root / "root.ext4")],
        capture_output=True,
        check=False,
    )
    assert found.stdout.strip() == b"0"


def test_two_machines_differ(projects: list[Project], tmp_path: Path) -> None:
    (stored,) = projects[0].artifacts("disk")
    reports = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = copy_disk(stored / "disk.raw", folder)
        service = NimbusMetadata(user_data=REPORT.encode())
        with booted(disk, service, nimbus_machine()) as guest:
            reports.append(guest.wait_for_report())
        os.unlink(disk)
    for report in reports:
        assert "failed_unit" not in report
        made = dict(line.rsplit(" ", 1)[0].split(" ", 1) for line in report["made"])
        assert made == FILES
        assert report["munge"] == ["Success (0)"]
        assert report["certificate"] == ["/etc/ssl/certs/ssl-cert-snakeoil.pem: OK"]
        assert not report["myhostname"][0].startswith(("builder", "vm"))
    drawn = [{line.rsplit(" ", 1)[1] for line in report["made"]} for report in reports]
    assert len(drawn[0]) == len(drawn[1]) == len(FILES)
    assert not drawn[0] & drawn[1]
