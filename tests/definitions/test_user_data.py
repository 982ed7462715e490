"""User-data from the definition's file to Phantom and EC2: byte for byte, or refused at once."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from definition_texts import HEAD, Load

from pipeline.build.launch import make_section
from pipeline.clouds.ec2.metadata import EC2_USER_DATA_BYTES
from pipeline.errors import DefinitionError
from pipeline.model import Appliance, Publication, Sha256

TEXT = b"""#!/bin/sh
echo 'single' "double" back\\slash \\t \\\\ $HOME `id` %s {{x}} <&>\t#
"""
DEFINITION = HEAD + "phantom: {user_data: script.sh}\n"


def fill(size: int) -> bytes:
    return (TEXT * size)[:size]


def read(root: Path, load: Load, content: bytes) -> Appliance:
    """The appliance whose user-data has this content."""
    (root / "images/web").mkdir(parents=True, exist_ok=True)
    (root / "images/web/script.sh").write_bytes(content)
    return load(DEFINITION)


def publication(site: str, cloud: str) -> Publication:
    return Publication(
        site=site,
        cloud=cloud,
        image_id=f"image-{site}",
        location="",
        sha256=Sha256("0" * 64),
        published_at="2026-01-01T00:00:00Z",
        sandbox=False,
    )


def send(params: dict[str, str]) -> dict[str, list[str]]:
    """What boto3 writes into a CreateLaunchConfiguration with these parameters."""
    bodies: list[bytes] = []

    def answer(request: Any, **_: object) -> AWSResponse:
        bodies.append(request.body)
        response: Any = AWSResponse(request.url, 200, {}, None)
        response._content = b"<CreateLaunchConfigurationResponse/>"
        return response

    client = boto3.client(
        "autoscaling",
        endpoint_url="http://phantom.invalid",
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(signature_version="v2"),
    )
    client.meta.events.register("before-send", answer)
    client.create_launch_configuration(**params)
    (body,) = bodies
    return parse_qs(body.decode() if isinstance(body, bytes) else body)


@pytest.mark.parametrize(
    "content",
    [
        fill(1024),
        TEXT,
        TEXT.rstrip(b"\n"),
        TEXT + b"\n\n\n",
        b"#!/bin/sh\nprintf 'one\rtwo'",
        b'{"json": "\\u00e9 \\"quoted\\""}',
        b"plain text without an interpreter",
    ],
)
def test_user_data_arrives_as_it_is(root: Path, load: Load, content: bytes) -> None:
    appliance = read(root, load, content)
    sites = publication("hotel", "nimbus"), publication("amazon", "ec2")
    launch = {each.site: {"instance_type": "m1.small", "common": False} for each in sites}
    section = make_section(appliance, sites, launch)
    assert section["launch_configuration"]["user_data"].encode() == content
    for site in ("hotel", "amazon"):
        sent = send(section["auto_scaling"][site])
        assert sent["LaunchConfigurationName"] == [f"web@{site}"]
        assert sent["ImageId"] == [f"image-{site}"]
        assert [base64.b64decode(each) for each in sent["UserData"]] == [content]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            fill(1025),
            "has 1,025 characters; Phantom's database holds 1,024: put the rest into the image",
        ),
        (
            fill(EC2_USER_DATA_BYTES),
            "has 16,384 characters; Phantom's database holds 1,024: put the rest into the image",
        ),
        (
            TEXT + b"echo caf\xc3\xa9\n",
            "has byte 0xc3 on line 3; Phantom takes ASCII text only, others break its answers",
        ),
        (
            b"\x1f\x8b\x08",
            "has byte 0x1f on line 1; Phantom takes ASCII text only, others break its answers",
        ),
        (
            TEXT + b"\0",
            "has byte 0x00 on line 3; Phantom takes ASCII text only, others break its answers",
        ),
        (
            TEXT.replace(b"\n", b"\r\n"),
            "has Windows line ends; save it with Unix ones",
        ),
        (b"\n \n", "is empty; leave 'user_data' out"),
    ],
)
def test_user_data_is_refused_where_it_is_named(
    root: Path, load: Load, content: bytes, what: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        read(root, load, content)
    assert caught.value.exit_code == 10
    assert str(caught.value) == (
        f"images/web/appliance.yaml:4:22: 'phantom.user_data': 'script.sh' {what}\n"
        "  do: correct it; `phantom-image schema` prints all that a definition can say"
    )
