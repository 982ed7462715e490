"""Phantom takes a manifest's `phantom` section as it is, by each of its APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from phantom_kit import OTHER, USER, Local, local_phantom

from pipeline.build.launch import make_section
from pipeline.model import Appliance, PhantomPolicy, Publication, ScratchSource, Sha256

HOTEL = Publication(
    site="hotel",
    cloud="nimbus",
    image_id="web.gz",
    location="cumulus://hotel/web.gz",
    sha256=Sha256("0" * 64),
    published_at="2026-01-01T00:00:00Z",
    sandbox=False,
)
EAST = replace(HOTEL, site="ec2-east", cloud="ec2", image_id="ami-1", region="us-east-1")
LINE = "echo 'single' \"double\" back\\slash \\t \\\\ $HOME `id` %s &=+ \t#\n"


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    with local_phantom(tmp_path) as local:
        yield local


def make(script: Path, *, sites: tuple[Publication, ...] = (HOTEL, EAST)) -> dict[str, Any]:
    """The section of an appliance with this user-data, as it is read from a file."""
    appliance = Appliance(
        name="web",
        version="1.0",
        summary="An appliance",
        source=ScratchSource(element="debian", release="bookworm", architecture="amd64"),
        definition=Path("images/web/appliance.yaml"),
        phantom=PhantomPolicy(user_data=script),
    )
    launch = {each.site: {"instance_type": "m1.small", "common": False} for each in sites}
    section: dict[str, Any] = json.loads(json.dumps(make_section(appliance, sites, launch)))
    return section


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\n" + LINE,
        "#!/bin/sh\necho no newline at the end",
        ("#!/bin/sh\n" + LINE * 30)[:1024],
    ],
)
def test_both_apis_take_the_section(phantom: Local, tmp_path: Path, text: str) -> None:
    script = tmp_path / "user-data.sh"
    script.write_bytes(text.encode())
    section = make(script)
    made = phantom.web("POST", "/launchconfigurations", section["launch_configuration"])
    assert made.status == 201, made.text
    (web,) = phantom.state.list_types(USER.access_key)
    client = phantom.boto3(OTHER)
    for params in section["auto_scaling"].values():
        client.create_launch_configuration(**params)
    (query,) = phantom.state.list_types(OTHER.access_key)
    assert (web.name, query.name) == ("web", "web")
    assert web.user_data == query.user_data == text
    told = client.describe_launch_configurations()["LaunchConfigurations"]
    assert {each["LaunchConfigurationName"]: each["ImageId"] for each in told} == {
        "web@hotel": "web.gz",
        "web@ec2-east": "ami-1",
    }
