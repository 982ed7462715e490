"""`phantom-image launch`: machines of EC2 without Phantom, on the strict server and on the emulator
of the sandbox."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from client_kit import BUILD, HOTEL, Desk, desk, make
from ec2_server import Ec2Server
from ec2_state import Instance, Template

from pipeline.build.manifest import publications_of
from pipeline.build.schema_terms import closed
from pipeline.build.schemas import output_schemas
from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.sandbox import Rehearsal, Rehearsals
from pipeline.errors import InUseError
from pipeline.model import PhantomPolicy, Publication, Sha256, Site

__all__ = ["desk"]
ROOT = Path(__file__).parents[2]
SITE = "amazon"
LAUNCH = ("launch", "web", "--site", SITE)
NAME = f"web-{BUILD}-{SITE}"
DATA = {
    "InstanceType": "t3.micro",
    "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    "UserData": base64.b64encode(b"#!/bin/sh\n").decode(),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    with Ec2Server() as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def image(server: Ec2Server, desk: Desk) -> str:
    """An image at the site `amazon`, of which the manifest tells."""
    snapshot = server.snapshot(server.other_account_snapshot())
    snapshot.owner = server.account.id
    made = server.client("ec2").register_image(
        Name="web",
        Architecture="x86_64",
        VirtualizationType="hvm",
        RootDeviceName="/dev/xvda",
        BlockDeviceMappings=[
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {"SnapshotId": snapshot.id, "VolumeSize": 1},
            }
        ],
    )
    image_id = str(made["ImageId"])
    publish(desk, image_id)
    (desk.folder / "sites.yaml").write_text(
        f"sites: {{{SITE}: {{cloud: ec2, region: us-east-1, endpoint: '{server.endpoint}', "
        "tags: {team: images}}}\n"
    )
    return image_id


def publish(desk: Desk, image_id: str, **more: Any) -> None:
    publication = Publication(
        site=more.get("site", SITE),
        cloud="ec2",
        region="us-east-1",
        image_id=image_id,
        location=f"ec2://111122223333/us-east-1/{image_id}/snap-1",
        sha256=Sha256("0" * 64),
        published_at="2026-01-01T00:00:00Z",
        sandbox="site" in more,
    )
    made = make([publication], PhantomPolicy())
    made["launch_templates"][0]["data"] = {"ImageId": image_id, **DATA, **more.get("data", {})}
    folder = desk.folder / f"build/web/{BUILD}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(made))


def templates(server: Ec2Server) -> list[Template]:
    return [*server.state.regions["us-east-1"].templates.values()]


def instances(server: Ec2Server) -> list[Instance]:
    return [*server.state.regions["us-east-1"].instances.values()]


def test_machines_start_by_a_template(desk: Desk, server: Ec2Server, image: str) -> None:
    ran = desk.run(*LAUNCH, "--count", "2", "--key-name", "mine", "--security-group", "sg-1")
    assert (ran.status, ran.err) == (0, "")
    (template,), machines = templates(server), instances(server)
    assert ran.out == (
        f"2 machines of web at amazon (us-east-1); launch template {NAME} is made\n"
        "  machine              state\n"
        f"  {machines[0].id}  pending\n"
        f"  {machines[1].id}  pending\n"
    )
    assert (template.name, template.versions) == (NAME, [{"ImageId": image, **DATA}])
    tags = {
        "Name": "web",
        "team": "images",
        "phantom:pipeline": "phantom-image",
        "phantom:appliance": "web",
        "phantom:version": "1.0",
        "phantom:build": BUILD,
        "phantom:site": SITE,
    }
    assert template.tags == machines[0].tags == machines[1].tags == tags
    for machine in machines:
        assert (machine.data["KeyName"], machine.data["SecurityGroupIds"]) == ("mine", ["sg-1"])

    ran = desk.run(*LAUNCH)  # one more: a command that has ended is not repeated
    assert ran.out.splitlines()[0] == (
        f"1 machine of web at amazon (us-east-1); launch template {NAME} is there"
    )
    assert (len(templates(server)), len(instances(server))) == (1, 3)


def test_other_data_make_a_further_version(desk: Desk, server: Ec2Server, image: str) -> None:
    assert desk.run(*LAUNCH).status == 0
    publish(desk, image, data={"InstanceType": "t3.small"})
    ran = desk.run(*LAUNCH)
    assert ran.out.splitlines()[0].endswith(f"launch template {NAME} gets a further version")
    publish(desk, image)
    ran = desk.run(*LAUNCH)
    assert ran.out.splitlines()[0].endswith(f"launch template {NAME} is there")
    (template,) = templates(server)
    assert [each["InstanceType"] for each in template.versions] == ["t3.micro", "t3.small"]
    started = [each.data["InstanceType"] for each in instances(server)]
    assert started == ["t3.micro", "t3.small", "t3.micro"]


def test_a_dry_run_changes_nothing(desk: Desk, server: Ec2Server, image: str) -> None:
    ran = desk.run(*LAUNCH, "--count", "2", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        "would start 2 machines of web at amazon (us-east-1); launch template "
        f"{NAME} is made\nnothing was started (--dry-run)\n"
    )
    asked = {each.action for each in server.requests} - {"ec2:RegisterImage"}
    assert asked == {"ec2:DescribeLaunchTemplates"}


def test_a_lost_answer_starts_no_machine_twice(desk: Desk, server: Ec2Server, image: str) -> None:
    server.faults.reset("ec2:CreateLaunchTemplate", times=1, after=True)
    server.faults.reset("ec2:RunInstances", times=2, after=True)
    ran = desk.run(*LAUNCH, "--count", "2")
    assert (ran.status, server.count("ec2:RunInstances")) == (0, 3)
    assert len(templates(server)) == 1
    assert [each.id for each in instances(server)] == re.findall("i-[0-9a-f]+", ran.out)


def kill_launch(desk: Desk, server: Ec2Server) -> list[Instance]:
    """Kills a launch of two machines that waits for the answer."""
    rule = server.faults.reset("ec2:RunInstances", times=None, after=True)
    words = [sys.executable, "-m", "pipeline.cli", *LAUNCH, "--count", "2"]
    with subprocess.Popen(words, cwd=desk.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}) as p:
        while not instances(server):
            assert p.poll() is None
            time.sleep(0.02)
        p.kill()
    server.faults.clear()
    assert rule is not None
    return instances(server)


@pytest.mark.slow
def test_a_killed_launch_is_finished_by_the_same_command(
    desk: Desk, server: Ec2Server, image: str
) -> None:
    first = kill_launch(desk, server)
    assert len(first) == 2
    ran = desk.run(*LAUNCH, "--count", "1")  # which is another one
    assert (ran.status, len(instances(server))) == (0, 3)
    ran = desk.run(*LAUNCH, "--count", "2")
    assert ran.status == 0
    assert [each.id for each in first] == re.findall("i-[0-9a-f]+", ran.out)
    assert len(instances(server)) == 3
    assert desk.run(*LAUNCH, "--count", "2").status == 0
    assert len(instances(server)) == 5


def test_machines_of_a_killed_launch_that_ended_since(
    desk: Desk, server: Ec2Server, image: str
) -> None:
    first = kill_launch(desk, server)
    for each in first:
        each.state = "terminated"
    ran = desk.run(*LAUNCH, "--count", "2")
    assert ran.status == 0
    started = [each for each in instances(server) if each not in first]
    assert [each.id for each in started] == re.findall("i-[0-9a-f]+", ran.out)


def test_json(desk: Desk, server: Ec2Server, image: str) -> None:
    expected = {
        "site": SITE,
        "region": "us-east-1",
        "sandbox": False,
        "appliance": "web",
        "build": BUILD,
        "count": 1,
        "dry_run": True,
        "launch_template": {"name": NAME, "action": "create"},
        "machines": [],
    }
    assert desk.run(*LAUNCH, "--json", "--dry-run").json == expected
    told = desk.run(*LAUNCH, "--json").json
    (machine,) = instances(server)
    machines = [{"id": machine.id, "state": "pending"}]
    assert told == {**expected, "dry_run": False, "machines": machines}
    jsonschema.validate(told, closed(output_schemas()["launch"]))


def test_retire_takes_the_template_but_waits_for_machines(
    desk: Desk, server: Ec2Server, image: str
) -> None:
    """Of the site that made it."""
    region = server.state.regions["us-east-1"]
    assert desk.run(*LAUNCH).status == 0
    snapshot = region.images[image].snapshot_ids[0]
    tags = {"phantom:pipeline": "phantom-image", "phantom:site": SITE}
    region.images[image].tags.update(tags)
    region.snapshots[snapshot].tags.update(tags)
    path = desk.folder / f"build/web/{BUILD}/manifest.json"
    path.write_text(path.read_text().replace("snap-1", snapshot))
    (machine,) = instances(server)
    cloud = Ec2(
        Site(
            name=SITE,
            cloud="ec2",
            options={"region": "us-east-1", "endpoint": server.endpoint},
            where="sites.yaml",
        )
    )
    (publication,) = publications_of(json.loads(path.read_text()))
    with cloud.open(desk.folder):
        with pytest.raises(InUseError) as caught:
            cloud.retire(publication)
        assert str(caught.value) == (
            f"site {SITE}: {image} in us-east-1 is used by "
            f"arn:aws:ec2:us-east-1:111122223333:instance/{machine.id}\n"
            "  do: let them use another image, or end them, then run the same command again"
        )
        assert len(templates(server)) == 1
        region.references[:] = [
            each for each in region.references if not each.arn.endswith(machine.id)
        ]
        cloud.retire(publication)
    assert (templates(server), image in region.images) == ([], False)


# ---- what is refused


def fail(desk: Desk, status: int, what: str, todo: str, *more: str) -> None:
    ran = desk.run(*LAUNCH, *more)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err == f"error: {what}\n  do: {todo}\n"


def test_an_image_that_is_gone(desk: Desk, server: Ec2Server, image: str) -> None:
    server.client("ec2").deregister_image(ImageId=image)
    fail(
        desk,
        66,
        f"site amazon: image {image} is not in us-east-1 any more",
        f"publish the build again: `phantom-image publish web --build {BUILD}`",
    )


def test_a_build_that_is_not_published_there(desk: Desk, server: Ec2Server, image: str) -> None:
    todo = f"`phantom-image publish web --build {BUILD} --site amazon` publishes it there"
    what = f"web 1.0, build {BUILD}, is not published at"
    fail(desk, 66, f"{what} eu-west-1 of amazon, only at us-east-1", todo, "--region", "eu-west-1")
    desk.publish(HOTEL)
    fail(desk, 66, f"{what} amazon, only at hotel", todo)


def test_another_s_template_has_the_name(desk: Desk, server: Ec2Server, image: str) -> None:
    made = {"ImageId": image}
    server.client("ec2").create_launch_template(LaunchTemplateName=NAME, LaunchTemplateData=made)
    fail(
        desk,
        38,
        f"site amazon: launch template {NAME} in us-east-1 is another's: its tags do not say that "
        "this site made it",
        "rename or delete it in the EC2 console, then run the same command again",
    )


@pytest.mark.parametrize(
    ("code", "status"), [("VcpuLimitExceeded", 400), ("InsufficientInstanceCapacity", 500)]
)
def test_no_more_machines(
    desk: Desk, server: Ec2Server, image: str, code: str, status: int
) -> None:
    server.faults.refuse("ec2:RunInstances", code, "none left", status=status)
    fail(
        desk,
        34,
        f"site amazon: us-east-1 starts no more machines of this kind ({code}: none left)",
        "ask for fewer, end machines that are not needed, take another "
        "`phantom: instance_type:` in the definition, or ask AWS for a higher quota",
    )
    assert instances(server) == []


@pytest.mark.parametrize("action", ["ec2:RunInstances", "ec2:CreateLaunchTemplate"])
def test_a_missing_right(desk: Desk, server: Ec2Server, image: str, action: str) -> None:
    server.faults.deny(action)
    fail(
        desk,
        36,
        f"site amazon: the account may not call {action} in us-east-1",
        f"let a policy of the user or role allow {action}; docs/ec2.md has the whole policy that a "
        "site needs",
    )


def test_a_cloud_without_launch_templates(desk: Desk) -> None:
    desk.publish(HOTEL)
    (desk.folder / "sites.yaml").write_text(
        "sites: {hotel: {cloud: nimbus, repository: 'cumulus.example.org:8888'}}\n"
    )
    ran = desk.run("launch", "web", "--site", "hotel")
    assert (ran.status, ran.out) == (24, "")
    assert ran.err == (
        "error: sites.yaml:1:9: site hotel starts no machines by itself: cloud nimbus has no "
        "launch templates\n"
        "  do: have Phantom start them (`phantom-image launch-config`, `phantom-image domain`)\n"
    )


# ---- the sandbox


@pytest.mark.slow
def test_the_emulator_rehearses_a_launch(desk: Desk) -> None:
    words = ("launch", "web", "--site", "ec2-sandbox", "--count", "3")
    publish(desk, "ami-0123456789abcdef0", site="ec2-sandbox")
    ran = desk.run(*words)
    assert (ran.status, ran.err) == (
        66,
        "error: site ec2-sandbox: image ami-0123456789abcdef0 is not in us-east-1 any more\n"
        f"  do: publish the build again: `phantom-image publish web --build {BUILD}`\n",
    )
    content = json.loads((desk.folder / f"build/web/{BUILD}/manifest.json").read_text())
    known = Rehearsal(
        name="web", content="0" * 64, publications=(*publications_of(content),), published=True
    )
    Rehearsals(desk.folder / "build/sites/ec2-sandbox").write(known)
    ran = desk.run(*words)
    assert (ran.status, ran.err) == (0, "")
    first, _, *machines, last = ran.out.splitlines()
    assert first == (
        f"3 machines of web at ec2-sandbox (us-east-1); launch template web-{BUILD}-ec2-sandbox is "
        "made"
    )
    assert len({line.split()[0] for line in machines}) == 3
    assert all(re.fullmatch("  i-[0-9a-f]{17}  (pending|running)", line) for line in machines)
    assert last == "a sandbox: an emulator has started them, and has ended with this command"
