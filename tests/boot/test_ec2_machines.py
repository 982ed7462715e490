"""The boot check of EC2's machines: one disk by BIOS and by UEFI, from NVMe, tokens required."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from cli_runs import Hello

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.errors import GuestCheckError
from pipeline.layouts import LAYOUTS
from pipeline.machine.node import find_root
from pipeline.model import GIB, MIB, ContentKey, Machine, NoProgress, Site
from pipeline.stages.base import Context, LocalFile, digest_of_file
from pipeline.stages.boot import BootCheck
from pipeline.stages.disk import DISK, AssembleDisk
from pipeline.stages.drivers import CheckDrivers
from pipeline.stages.guest_report import REPORT
from pipeline.store import Artifact, Store

pytestmark = [pytest.mark.boot, pytest.mark.slow]

IMAGE = Path(__file__).resolve().parents[2] / "images/hello-phantom"
EC2 = Ec2(Site(name="amazon", cloud="ec2", where="the test"))
MACHINES = {machine.name: machine for machine in EC2.machines}
SIZE = 2 * GIB
FETCHER = PurePosixPath("/usr/lib/phantom/fetch-user-data")
OPTIONS = PurePosixPath("/etc/default/phantom-user-data")


def make_context(folder: Path) -> Context:
    out, work = folder / "out", folder / "work"
    for each in (out, work):
        each.mkdir(parents=True)
    return Context(
        out=out, work=work, log=folder / "log", store=Store(folder), progress=NoProgress()
    )


def local(path: Path) -> LocalFile:
    return LocalFile(digest=digest_of_file(path), path=path)


@pytest.fixture(scope="module")
def root(hello: Hello) -> Artifact:
    """hello-phantom's root file system, built for Nimbus."""
    return Artifact(
        stage="root", key=ContentKey("r"), folder=hello.artifact("root"), facts={"sha256": "0" * 64}
    )


@pytest.fixture(scope="module")
def image(root: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """The same root file system on EC2's disk."""
    context = make_context(tmp_path_factory.mktemp("hybrid"))
    stage = AssembleDisk(layout=LAYOUTS[EC2.disk.layout], size=SIZE, tools={})
    facts = stage.run([root], context)
    yield Artifact(stage="disk", key=ContentKey("d"), folder=context.out, facts=facts)
    (context.out / DISK).unlink()


def boot(
    image: Artifact, machine: Machine, folder: Path, *, login_user: str = "root"
) -> Mapping[str, Any]:
    """The facts of a boot check with hello-phantom's own scripts."""
    context = make_context(folder)
    stage = BootCheck(
        machine=machine,
        report=local(REPORT),
        login_user=login_user,
        user_data=local(IMAGE / "user-data.sh"),
        check=local(IMAGE / "check.sh"),
        seconds=900,
    )
    disk = context.work / "disk.raw"
    try:
        facts = stage.run([image], context)
        check_table(disk, SIZE + machine.spare)
        return facts
    finally:
        disk.unlink()


def check_table(disk: Path, size: int) -> None:
    """Checks that the machine moved the backup GPT to the disk's end, and gave root the room."""
    words = ["sfdisk", "--verify", str(disk)]
    verified = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "No errors detected." in verified.stdout
    assert verified.stderr == ""
    told = subprocess.run(["sfdisk", "--json", str(disk)], capture_output=True, check=True).stdout
    root, *others = json.loads(told)["partitiontable"]["partitions"]
    assert size - 2 * MIB < (root["start"] + root["size"]) * 512 < size
    assert [each["size"] * 512 for each in others] == [3 * MIB, 60 * MIB]


def digest_of_code(image: Artifact) -> str:
    """The digest of what lies before root: it changes if a machine writes to the image itself."""
    with image.file(DISK).open("rb") as file:
        return hashlib.sha256(os.pread(file.fileno(), LAYOUTS["hybrid"].root_start, 0)).hexdigest()


def test_the_kernel_has_the_drivers(root: Artifact, tmp_path: Path) -> None:
    facts = CheckDrivers(hardware=EC2.hardware).run([root], make_context(tmp_path / "drivers"))
    assert facts["disks"] == {"nvme": "initramfs", "xen_blkfront": "initramfs"}
    assert facts["networks"] == {"ena": "modules", "xen_netfront": "modules"}


def set_login(image: Artifact, user: str) -> None:
    """Lets another user log in with the launch's key, as the image's options say."""
    root = find_root(image.file(DISK))
    text = root.read(OPTIONS)
    assert "\nPHANTOM_LOGIN_USER=root\n" in text
    root.write(OPTIONS, text.replace("LOGIN_USER=root", f"LOGIN_USER={user}"), 0o644)


@pytest.mark.parametrize(
    ("name", "user"),
    [pytest.param("bios", "root", marks=pytest.mark.only_soak), ("uefi", "ops")],
)
def test_machine(image: Artifact, tmp_path: Path, name: str, user: str) -> None:
    """Root grows over the backup GPT, which is not at the disk's end; all user-data cases work; and
    the key of the launch lets root in, or a user whom the image lacks."""
    before = digest_of_code(image)
    if user != "root":
        set_login(image, user)
    facts = boot(image, MACHINES[name], tmp_path / "check", login_user=user)
    assert facts["firmware"] == name
    assert facts["disk_driver"] == "nvme"
    assert facts["network_driver"] == "virtio_net"
    assert facts["root_bytes"] > SIZE + MACHINES[name].spare - GIB // 4
    assert facts["failed_units"] == []
    assert facts["fetcher_protocol"] == "imdsv2"
    assert facts["fetcher_tries"] == 2
    assert facts["user_data"] == {
        "present": "run",
        "late": "run after 2 tries",
        "absent": "nothing run",
        "gzip": "unpacked and run",
        "binary": "kept and not run",
        "largest": "run, all of its 16384 bytes",
    }
    assert digest_of_code(image) == before


WITHOUT_TOKEN = """#!/bin/sh
# A fetcher as many images have one, of the time before tokens.
set -e
PHANTOM_METADATA_URL=http://169.254.169.254
export PHANTOM_METADATA_URL
until curl -s -f -o /tmp/user-data "$PHANTOM_METADATA_URL/latest/user-data"; do sleep 1; done
exec sh /tmp/user-data
"""


@pytest.mark.only_soak
def test_image_whose_fetcher_uses_no_token(image: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    copied = ["cp", "--sparse=always", str(image.file(DISK)), str(folder / DISK)]
    subprocess.run(copied, check=True)
    find_root(folder / DISK).write(FETCHER, WITHOUT_TOKEN, 0o755)
    other = Artifact(stage="disk", key=ContentKey("o"), folder=folder, facts=image.facts)
    with pytest.raises(GuestCheckError) as caught:
        boot(other, MACHINES["bios"], tmp_path / "check")
    assert str(caught.value) == (
        "the guest asked for /latest/user-data without a token, and its site requires one\n"
        "  do: take the user-data fetcher of the element phantom-user-data, with curl, or let what "
        "else asks for metadata get a token first\n"
        f"  log: {tmp_path}/check/log"
    )
    (folder / DISK).unlink()
