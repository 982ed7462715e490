"""The local Phantom answers as the real one was seen to: docs/facts/phantom.md."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from phantom_kit import OTHER, TIME, USER, Local, local_phantom

CREATE = {
    "Action": "CreateLaunchConfiguration",
    "LaunchConfigurationName": "web@hotel",
    "ImageId": "web.gz",
    "InstanceType": "m1.small",
}
GROUP = {
    "Action": "CreateAutoScalingGroup",
    "AutoScalingGroupName": "workers",
    "LaunchConfigurationName": "web@hotel",
    "MinSize": "0",
    "MaxSize": "9",
    "AvailabilityZones.member.1": "hotel",
}
POLICY = ("PHANTOM_DEFINITION", "error_overflow_n_preserving")
TAGS = [POLICY, ("clouds", "hotel:2,sierra:-1"), ("minimum_vms", "2")]
SITE = {
    "image_id": "web.gz",
    "instance_type": "m1.small",
    "max_vms": -1,
    "common": False,
    "rank": 1,
}
TYPE = {
    "name": "web",
    "cloud_params": {"hotel": SITE},
    "contextualization_method": "user_data",
    "user_data": "#!/bin/sh\n",
    "appliance": None,
}


def encode(tags: list[tuple[str, str]]) -> dict[str, str]:
    fields = {}
    for number, (key, value) in enumerate(tags, 1):
        for name, text in (
            ("Key", key),
            ("Value", value),
            ("PropagateAtLaunch", "true"),
            ("ResourceId", "workers"),
            ("ResourceType", "auto-scaling-group"),
        ):
            fields[f"Tags.member.{number}.{name}"] = text
    return fields


def data(content: bytes) -> dict[str, str]:
    return {"UserData": b64encode(content).decode()}


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    with local_phantom(tmp_path) as local:
        yield local


GROUP_TAGS = encode(TAGS)
MISSING: list[tuple[dict[str, str], str]] = [
    *((CREATE, field) for field in ("LaunchConfigurationName", "ImageId", "InstanceType")),
    *((GROUP | GROUP_TAGS, field) for field in GROUP if field != "Action"),
    *((GROUP | GROUP_TAGS, field) for field in GROUP_TAGS),
    ({"Action": "SetDesiredCapacity", "DesiredCapacity": "1"}, "AutoScalingGroupName"),
    ({"Action": "TerminateInstanceInAutoScalingGroup"}, "InstanceId"),
    ({"Action": "DeleteAutoScalingGroup"}, "AutoScalingGroupName"),
    ({"Action": "DeleteLaunchConfiguration"}, "LaunchConfigurationName"),
    ({}, "Action"),
]


@pytest.mark.parametrize(("fields", "missing"), MISSING, ids=lambda value: str(value)[:60])
def test_a_missing_field_is_a_400_missing_parameter(
    phantom: Local, fields: dict[str, str], missing: str
) -> None:
    sent = {name: value for name, value in fields.items() if name != missing}
    got = phantom.post(phantom.signed(sent))
    assert (got.status, got.reason) == (400, "MissingParameter")
    assert got.text == f"The request must contain the parameter {missing}.\n"
    assert got.headers["Content-Type"] == "text/plain"


REFUSED: list[tuple[dict[str, str], int, str]] = [
    (CREATE | {"LaunchConfigurationName": "web"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "web@"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "@hotel"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "we/b@hotel"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "web@hotel@x"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "web@mars"}, 400, "InvalidParameterValue"),
    (CREATE | {"LaunchConfigurationName": "w" * 129 + "@hotel"}, 400, "InvalidParameterValue"),
    (CREATE | {"UserData": "no base64!"}, 400, "InvalidParameterValue"),
    (CREATE | data(b"\x1f\x8b\x08\x00" + bytes(range(128, 200))), 500, "InternalServerError"),
    (
        CREATE | {"BlockDeviceMappings.member.1.Ebs.VolumeSize": "8"},
        500,
        "InternalServerError",
    ),
    ({"Action": "UpdateAutoScalingGroup", "AutoScalingGroupName": "workers"}, 404, "NotFound"),
    ({"Action": "DescribeTags"}, 404, "NotFound"),
    (GROUP | GROUP_TAGS | {"MinSize": "ten"}, 400, "InvalidParameterValue"),
    (GROUP | GROUP_TAGS | {"MinSize": "10"}, 400, "InvalidParameterValue"),
    (GROUP | GROUP_TAGS | {"LaunchConfigurationName": "db@hotel"}, 400, "InvalidParameterValue"),
    (GROUP | encode([("PHANTOM_DEFINITION", "x"), *TAGS[1:]]), 400, "InvalidParameterValue"),
    (GROUP | encode([POLICY, ("clouds", "mars:1"), TAGS[2]]), 400, "InvalidParameterValue"),
    (GROUP | encode([POLICY, ("clouds", "hotel"), TAGS[2]]), 400, "InvalidParameterValue"),
    (GROUP | encode([*TAGS[:2], ("minimum_vms", "-1")]), 400, "InvalidParameterValue"),
    (GROUP | encode(TAGS[1:]), 400, "MissingParameter"),
    (GROUP, 400, "MissingParameter"),
]


@pytest.mark.parametrize(("fields", "status", "code"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_refused_call_has_its_status_and_code(
    phantom: Local, fields: dict[str, str], status: int, code: str
) -> None:
    known = CREATE | {"LaunchConfigurationName": "web@sierra"}
    assert phantom.query(**known).status == 200
    got = phantom.query(**fields)
    assert (got.status, got.reason) == (status, code)
    assert "<" not in got.text and got.text.count("\n") == 1
    assert [each.sites[0].site for each in phantom.state.list_types(USER.access_key)] == ["sierra"]
    assert phantom.state.list_domains() == []


def test_a_taken_name_is_a_400(phantom: Local) -> None:
    for fields in (CREATE, GROUP | GROUP_TAGS):
        assert phantom.query(**fields).status == 200
        again = phantom.query(**fields)
        assert (again.status, again.reason) == (400, "InvalidParameterValue")
    assert phantom.query(OTHER, **CREATE).status == 200  # names are a user's own


# ---- who asks


def test_signatures_are_verified(phantom: Local) -> None:
    good = phantom.signed(CREATE)
    table: list[tuple[dict[str, str], int, str]] = [
        (good | {"ImageId": "other.gz"}, 400, "IncompleteSignature"),
        (good | {"Signature": "AAAA"}, 400, "IncompleteSignature"),
        (good | {"Signature": "ünïcode"}, 400, "IncompleteSignature"),
        (good | {"SignatureVersion": "1"}, 400, "IncompleteSignature"),
        (good | {"SignatureMethod": "MD5"}, 400, "IncompleteSignature"),
        (good | {"AWSAccessKeyId": "AKnobody"}, 403, "InvalidClientTokenId"),
        (good | {"AWSAccessKeyId": OTHER.access_key}, 400, "IncompleteSignature"),
        ({**good, "Signature": ""}, 400, "MissingParameter"),
        (phantom.signed(CREATE | {"Timestamp": "yesterday"}), 400, "InvalidParameterValue"),
        (good, 200, "OK"),
    ]
    for fields, status, reason in table:
        got = phantom.post(fields)
        assert (got.status, got.reason) == (status, reason), fields


@pytest.mark.parametrize(("minutes", "status"), [(-16, 400), (-14, 200), (14, 200), (16, 400)])
def test_a_clock_may_be_off_by_15_minutes(phantom: Local, minutes: int, status: int) -> None:
    time = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime(TIME)
    got = phantom.query(**CREATE, Timestamp=time)
    assert (got.status, got.reason) == (status, "OK" if status == 200 else "RequestExpired")


def test_signature_version_4_is_a_500(phantom: Local) -> None:
    kind = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKalice/20250101/us-east-1/x"}
    got = phantom.request("POST", "/", "Action=DescribeAutoScalingGroups&Version=2011-01-01", kind)
    assert got.status == 500


def test_other_paths_and_bodies_are_refused(phantom: Local) -> None:
    assert phantom.request("GET", "/elsewhere").status == 404
    assert phantom.request("PUT", "/").status == 404
    assert phantom.request("POST", "/", "x" * (1 << 20) + "x").status == 413
    assert phantom.request("POST", "/", None, {"Content-Length": "-1"}).status == 413
    assert phantom.request("POST", "/", None, {"Transfer-Encoding": "chunked"}).status == 411
    assert phantom.request("POST", "/", "&".join(f"a{n}=1" for n in range(1001))).status == 400


# ---- launch configurations


def test_user_data_belongs_to_the_type(phantom: Local) -> None:
    phantom.query(**CREATE, **data(b"first"))
    phantom.query(**CREATE | {"LaunchConfigurationName": "web@sierra"}, **data(b"second"))
    got = phantom.query(Action="DescribeLaunchConfigurations")
    assert got.text.count(b64encode(b"second").decode()) == 2
    assert "<LaunchConfigurationName>web@hotel</LaunchConfigurationName>" in got.text
    assert "<KeyName>phantomkey</KeyName>" in got.text


@pytest.mark.parametrize(
    "content",
    [b"x" * 1024, b"y" * 16384, b"'\"\\\\$`", b"a\r\nb\r\n", b"no newline", b"\n\n", b"\x00\x01"],
    ids=lambda content: repr(content[:8]),
)
def test_ascii_user_data_arrives_as_it_is(phantom: Local, content: bytes) -> None:
    assert phantom.query(**CREATE, **data(content)).status == 200
    (made,) = phantom.state.list_types(USER.access_key)
    assert (made.user_data or "").encode() == content


def test_other_user_data_is_stored_and_breaks_every_describe(phantom: Local) -> None:
    assert phantom.query(**CREATE, **data("größer".encode())).status == 200
    for action in ("DescribeLaunchConfigurations", "DescribeAutoScalingGroups"):
        assert phantom.query(Action=action).status == 500
        assert phantom.query(OTHER, Action=action).status == 200
    delete = {**CREATE, "Action": "DeleteLaunchConfiguration"}
    assert phantom.query(**delete).status == 200
    assert phantom.query(Action="DescribeLaunchConfigurations").status == 200


def test_a_used_launch_configuration_stays(phantom: Local) -> None:
    phantom.query(**CREATE)
    phantom.query(**GROUP | GROUP_TAGS)
    delete = {**CREATE, "Action": "DeleteLaunchConfiguration"}
    got = phantom.query(**delete)
    assert (got.status, got.reason) == (400, "ResourceInUse")
    phantom.query(Action="DeleteAutoScalingGroup", AutoScalingGroupName="workers")
    assert phantom.query(**delete).status == 200
    assert phantom.query(**delete).status == 400
    assert len(phantom.changes) == 2


# ---- the web API


def test_the_web_api_has_basic_authentication(phantom: Local) -> None:
    path = "/launchconfigurations"
    assert phantom.request("GET", f"/api/dev{path}").status == 401
    assert (
        phantom.request("GET", f"/api/dev{path}", None, {"Authorization": "Basic ?"}).status == 401
    )
    assert phantom.web("GET", path, token="wrong").status == 401
    assert phantom.web("GET", path).json == []


def test_a_launch_configuration_is_created_once(phantom: Local) -> None:
    created = phantom.web("POST", "/launchconfigurations", TYPE)
    assert (created.status, created.reason) == (201, "Created")
    again = phantom.web("POST", "/launchconfigurations", TYPE)
    assert again.status == 302
    assert again.headers["Location"] == created.headers["Location"]
    shown = phantom.web("GET", "/launchconfigurations/web").json
    assert shown == created.json
    assert {name: shown[name] for name in TYPE} == TYPE
    # The query service knows it too.
    assert "web@hotel" in phantom.query(Action="DescribeLaunchConfigurations").text


SPOILT: list[dict[str, Any]] = [
    {"name": "web@hotel"},
    {"name": ""},
    {"name": "w" * 129},
    {"name": 5},
    {"contextualization_method": "magic"},
    {"cloud_params": {}},
    {"cloud_params": {"mars": SITE}},
    {"cloud_params": {"hotel": SITE | {"rank": 0}}},
    {"cloud_params": {"hotel": SITE | {"rank": True}}},
    {"cloud_params": {"hotel": SITE | {"max_vms": -2}}},
    {"cloud_params": {"hotel": SITE | {"common": "no"}}},
    *({"cloud_params": {"hotel": {k: v for k, v in SITE.items() if k != gone}}} for gone in SITE),
    {"user_data": ["x"]},
]


@pytest.mark.parametrize("change", SPOILT, ids=str)
def test_a_wrong_launch_configuration_is_a_400(phantom: Local, change: dict[str, Any]) -> None:
    got = phantom.web("POST", "/launchconfigurations", TYPE | change)
    assert got.status == 400
    assert phantom.state.list_types(USER.access_key) == []


def test_the_column_for_user_data_holds_1024_characters(phantom: Local) -> None:
    whole = TYPE | {"user_data": "x" * 1024}
    assert phantom.web("POST", "/launchconfigurations", whole).status == 201
    long = TYPE | {"name": "long", "user_data": "x" * 1025}
    assert phantom.web("POST", "/launchconfigurations", long).status == 500


def test_user_data_may_be_of_a_site(phantom: Local) -> None:
    two = {"hotel": SITE, "sierra": SITE | {"rank": 2}}
    said = TYPE | {"cloud_params": two, "user_data": {"hotel": "h", "sierra": "s"}}
    assert phantom.web("POST", "/launchconfigurations", said).json["user_data"] == said["user_data"]
    (made,) = phantom.state.list_types(USER.access_key)
    assert [made.user_data_at(site) for site in ("hotel", "sierra")] == ["h", "s"]


def test_domains_of_the_web_api(phantom: Local) -> None:
    phantom.web("POST", "/launchconfigurations", TYPE)
    said = {"name": "workers", "lc_name": "web", "de_name": "multicloud", "vm_count": 2}
    assert phantom.web("POST", "/domains", said).status == 201
    assert phantom.web("POST", "/domains", said).status == 302
    assert phantom.web("POST", "/domains", said | {"name": "x", "lc_name": "no"}).status == 400
    assert phantom.web("POST", "/domains", said | {"name": "x", "de_name": "sensor"}).status == 400
    assert phantom.web("PUT", "/domains/workers", {"vm_count": 5}).json["vm_count"] == 5
    assert phantom.web("GET", "/domains/workers/vms").json == []
    assert phantom.web("GET", "/domains/workers/vms/i-00000000").status == 404
    assert phantom.web("DELETE", "/launchconfigurations/web").status == 400
    assert phantom.web("GET", "/domains", user=OTHER).json == []
    assert phantom.web("DELETE", "/domains/workers").status == 204
    assert phantom.web("DELETE", "/domains/workers").status == 404
    assert phantom.web("DELETE", "/launchconfigurations/web").status == 204
    assert phantom.web("PATCH", "/domains").status == 405


def test_the_state_outlives_the_service(tmp_path: Path) -> None:
    with local_phantom(tmp_path) as local:
        local.query(**CREATE, **data(b"kept"))
        local.query(**GROUP | GROUP_TAGS)
    with local_phantom(tmp_path) as local:
        assert (
            b64encode(b"kept").decode() in local.query(Action="DescribeLaunchConfigurations").text
        )
        (domain,) = local.state.list_domains()
        assert (domain.name, domain.desired) == ("workers", 2)
        assert domain.clouds == (("hotel", 2), ("sierra", -1))
