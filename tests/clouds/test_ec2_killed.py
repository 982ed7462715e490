"""After kill -9 at any call, the same command again leaves everything exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ec2_kit import Kit

_PUBLISH = """
import json, sys
from harness import Watched, make_release
from pathlib import Path
from pipeline.clouds.ec2.cloud import Ec2
from pipeline.model import *

folder, disk, sha256, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
site = Site(name="virginia", cloud="ec2", options=json.loads(options), where="sites.yaml:3:3")
size = disk.stat().st_size
image = Image(site="virginia", cloud="ec2", file=disk, disk=Disk(layout="hybrid", format="raw"),
              bytes=size, sha256=sha256, md5=None, disk_bytes=size, disk_sha256=sha256)
booted = BootedImage(image=image, reports=(BootReport(machine="bios", passed=True, facts={}),))
release = make_release(folder, "hello-1.2.0-4f2a9c01")
cloud = Ec2(site, pause=lambda _: None)
with cloud.open(folder):
    made = cloud.upload(booted, release, Watched())
    print(len(cloud.publish(made, release, Watched())))
"""

OPTIONS = {"copy_to": ["eu-west-1"], "share_with": ["222233334444"], "deprecate_after": "30d"}


def start(kit: Kit) -> subprocess.Popen[str]:
    image = kit.booted.image
    options = {"region": "us-east-1", "endpoint": kit.ec2.server.endpoint, **OPTIONS}
    here = Path(__file__).parent
    words = [str(kit.folder), str(image.file), image.disk_sha256, json.dumps(options)]
    return subprocess.Popen(
        [sys.executable, "-c", _PUBLISH, *words],
        env={
            **os.environ,
            **kit.ec2.environ,
            "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)]),
        },
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("action", "skip"),
    [
        ("ebs:StartSnapshot", 0),
        ("ebs:PutSnapshotBlock", 1),
        ("ebs:CompleteSnapshot", 0),
        ("ec2:DescribeSnapshots", 1),
        ("ec2:RegisterImage", 0),
        ("ec2:CopyImage", 0),
        ("ec2:ModifyImageAttribute", 0),
        ("ec2:EnableImageDeprecation", 1),
    ],
)
def test_killed_while_the_service_answers(kit: Kit, action: str, skip: int) -> None:
    """The killed run's last request still takes effect, although the run got no answer."""
    with start(kit) as process:
        rule = kit.ec2.faults.on(action, process.kill, skip=skip)
        assert process.wait() == -9
        assert rule.taken == 1
    kit.ec2.faults.clear()
    with start(kit) as process:
        assert process.communicate()[0] == "2\n"
        assert process.returncode == 0
    server = kit.ec2.server
    assert len(server.images("us-east-1")) == len(server.images("eu-west-1")) == 1
    assert len(server.snapshots()) == 2
    assert not server.costs()
    for image in server.images():
        assert image.launch_permissions == [{"UserId": "222233334444"}]
        assert image.deprecation
    (here,) = server.snapshots("us-east-1")
    assert server.compare(here.id, kit.booted.image.file) == []
