"""The story of a local Phantom with real guests: publish, launch configuration, domain, machines
that configured themselves and see each other."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from cli_runs import Hello, Project, Running, assert_nothing_runs, make_project
from phantom_kit import tags

from pipeline.phantom.machines import Order, ProcessMachines

# It tells on the console which addresses it has, and what the SSH servers of both machines say.
USER_DATA = r"""#!/bin/bash
exec >/dev/ttyS0 2>&1
while ! ip -4 -o address | grep -q ' 10\.99\.'; do sleep 1; done
mine=$(ip -4 -o address | grep -o '10\.99\.[0-9.]*/24')
for other in 2 3; do
    for try in $(seq 60); do
        exec 3<>"/dev/tcp/10.99.1.$other/22" && read -r -t 5 line <&3 && break
        sleep 2
    done
    echo "CONFIGURED $mine sees $other: $line"
done
"""
SECONDS = 900.0
SITE = "nimbus-sandbox"


class Left(ProcessMachines):
    """The machines that a killed Phantom has left."""

    def command(self, order: Order, folder: Path) -> Sequence[str]:
        raise NotImplementedError


@contextmanager
def machines_ended(folder: Path) -> Iterator[None]:
    """Ends the machines that run in a folder when the block fails: a Phantom that is killed keeps
    them."""
    try:
        yield
    except BaseException:
        Left(folder).adopt([])
        raise


@contextmanager
def phantom(project: Project) -> Iterator[tuple[Running, Any]]:
    """A local Phantom, and a client of it; killed at the end if it runs still."""
    running = project.start("phantom-sandbox")
    try:
        running.wait_until(lambda: "sites: " in running.out, "end point")
        url = re.findall(r"Phantom: (\S+)", running.out)[0]
        file = project.build / ".phantom/credentials"
        said = dict(re.findall(r"(\w+) = (\w+)", file.read_text()))
        yield (
            running,
            boto3.client(
                "autoscaling",
                endpoint_url=url,
                region_name="phantom",
                aws_access_key_id=said["aws_access_key_id"],
                aws_secret_access_key=said["aws_secret_access_key"],
                config=Config(signature_version="v2"),
            ),
        )
    finally:
        if running.process.poll() is None:
            running.kill()


def machines(client: Any, *states: str) -> set[str]:
    """The machines in these states, or in any."""
    groups = client.describe_auto_scaling_groups()["AutoScalingGroups"]
    found = [each for group in groups for each in group["Instances"]]
    return {each["InstanceId"] for each in found if not states or each["LifecycleState"] in states}


def wait(done: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


@pytest.mark.boot
def test_two_guests_configure_themselves_and_see_each_other(hello: Hello, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", hello.store)
    shutil.copytree(hello.project.build / "sites", project.build / "sites")
    (publication,) = hello.manifest["publications"]
    folder = project.build / ".phantom/machines"

    def consoles() -> dict[str, str]:
        logs = folder.glob("*/console.log")
        return {log.parent.name: log.read_text(errors="replace") for log in logs}

    def seen() -> int:
        pattern = r"CONFIGURED 10\.99\.1\.[23]/24 sees [23]: SSH-2\.0"
        return sum(len(set(re.findall(pattern, text))) for text in consoles().values())

    with machines_ended(folder), phantom(project) as (running, client):
        client.create_launch_configuration(
            LaunchConfigurationName=f"hello@{SITE}",
            ImageId=publication["image_id"],
            InstanceType="m1.small",
            UserData=USER_DATA,
        )
        client.create_auto_scaling_group(
            AutoScalingGroupName="hello",
            LaunchConfigurationName=f"hello@{SITE}",
            MinSize=0,
            MaxSize=2,
            AvailabilityZones=[SITE],
            Tags=tags("hello", clouds=f"{SITE}:2", size=2),
        )
        # One that has not started yet would be another one after the next start.
        wait(lambda: len(machines(client, "InService")) == 2, lambda: running.err)
        # It is killed while they boot: their metadata services are gone until it runs again.
        before = machines(client)
    with machines_ended(folder), phantom(project) as (running, client):
        assert machines(client) == before
        wait(lambda: seen() == 4, lambda: f"{running.err}\n{consoles()}")
        assert machines(client) == before
        (base,) = (project.build / ".phantom/bases").iterdir()
        overlays = [path.stat().st_blocks for path in folder.glob("*/disk.qcow2")]
        assert sum(overlays) < (base / "disk.raw").stat().st_blocks
        client.delete_auto_scaling_group(AutoScalingGroupName="hello")
        wait(lambda: not any(folder.iterdir()), lambda: running.err)
        assert running.err == ""
    assert_nothing_runs(project.folder)
