"""boto3 and boto 2.49, unchanged, against the local Phantom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from phantom_kit import USER, Local, local_phantom, run_python, tags

from pipeline.phantom.signature import User

DATA = "#!/bin/sh\necho 'quoted' \"twice\" \\ and no newline"

BOTO2 = """
import json, sys
from boto.ec2.autoscale import AutoScaleConnection, AutoScalingGroup, LaunchConfiguration, Tag
from boto.exception import BotoServerError
from boto.regioninfo import RegionInfo

class Phantom(AutoScaleConnection):
    def _required_auth_capability(self):
        return ["sign-v2"]

port, key, secret, data = sys.argv[1:]
def connect(secret):
    region = RegionInfo(name="phantom", endpoint="127.0.0.1")
    return Phantom(key, secret, is_secure=False, port=int(port), region=region)
phantom = connect(secret)
phantom.create_launch_configuration(LaunchConfiguration(
    phantom, name="web@hotel", image_id="web.gz", instance_type="m1.small", user_data=data))
(made,) = phantom.get_all_launch_configurations()
assert isinstance(made.user_data, bytes)
tags = [Tag(phantom, key=key, value=value, propagate_at_launch=True, resource_id="workers")
        for key, value in (("PHANTOM_DEFINITION", "error_overflow_n_preserving"),
                           ("clouds", "hotel:2"), ("minimum_vms", "0"))]
phantom.create_auto_scaling_group(AutoScalingGroup(
    phantom, group_name="workers", launch_config=made, availability_zones=["hotel"],
    min_size=0, max_size=5, tags=tags))
phantom.set_desired_capacity("workers", 3)
(group,) = phantom.get_all_groups(names=["workers"])
told = {"name": made.name, "data": made.user_data.decode(), "desired": group.desired_capacity,
        "tags": {tag.key: tag.value for tag in group.tags}}
refused = []
for call in (lambda: connect("wrong").get_all_groups(),
             lambda: phantom.set_desired_capacity("nobody", 1)):
    try:
        call()
    except BotoServerError as error:
        refused.append([error.status, error.reason])
group.delete()
made.delete()
told["left"] = len(phantom.get_all_groups()) + len(phantom.get_all_launch_configurations())
print(json.dumps({**told, "refused": refused}))
"""


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    with local_phantom(tmp_path) as local:
        yield local


def test_boto3_does_all_that_there_is(phantom: Local) -> None:
    client = phantom.boto3()
    client.create_launch_configuration(
        LaunchConfigurationName="web@hotel",
        ImageId="web.gz",
        InstanceType="m1.small",
        UserData=DATA,
    )
    (made,) = client.describe_launch_configurations()["LaunchConfigurations"]
    assert (made["LaunchConfigurationName"], made["ImageId"]) == ("web@hotel", "web.gz")
    assert phantom.state.list_types(USER.access_key)[0].user_data == DATA
    client.create_auto_scaling_group(
        AutoScalingGroupName="workers",
        LaunchConfigurationName="web@hotel",
        MinSize=0,
        MaxSize=5,
        AvailabilityZones=["hotel"],
        Tags=tags("workers", size=0),
    )
    client.set_desired_capacity(AutoScalingGroupName="workers", DesiredCapacity=3)
    (domain,) = phantom.state.list_domains()
    machine = phantom.state.add_machine(domain.id, "hotel", "web.gz")
    assert machine is not None
    (group,) = client.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["DesiredCapacity"], group["Instances"][0]["InstanceId"]) == (3, machine.id)
    assert {tag["Key"]: tag["Value"] for tag in group["Tags"]}["clouds"] == "hotel:2,sierra:-1"
    activity = client.terminate_instance_in_auto_scaling_group(
        InstanceId=machine.id, ShouldDecrementDesiredCapacity=True
    )["Activity"]
    assert activity["AutoScalingGroupName"] == "workers"
    assert phantom.state.list_domains()[0].desired == 2
    client.delete_auto_scaling_group(AutoScalingGroupName="workers")
    client.delete_launch_configuration(LaunchConfigurationName="web@hotel")
    assert client.describe_auto_scaling_groups()["AutoScalingGroups"] == []


def test_boto3_cannot_parse_an_error(phantom: Local) -> None:
    """Errors are no XML."""
    wrong = User(access_key=USER.access_key, secret_key="wrong", token="")
    with pytest.raises(ResponseParserError):
        phantom.boto3(wrong).describe_auto_scaling_groups()
    with pytest.raises(ResponseParserError):
        phantom.boto3().update_auto_scaling_group(AutoScalingGroupName="workers")


def test_boto3_signs_with_version_4_by_default(phantom: Local) -> None:
    """That is a 500."""
    client = phantom.boto3(signature_version="v4")
    with pytest.raises((ResponseParserError, ClientError)):
        client.describe_auto_scaling_groups()


def test_boto_2_does_all_that_there_is(phantom: Local) -> None:
    port = str(phantom.server.port)
    told = json.loads(run_python(BOTO2, port, USER.access_key, USER.secret_key, DATA))
    policy = {"PHANTOM_DEFINITION": "error_overflow_n_preserving", "clouds": "hotel:2"}
    assert told == {
        "name": "web@hotel",
        "data": DATA,
        "desired": 3,
        "tags": {**policy, "minimum_vms": "0"},
        "left": 0,
        "refused": [[400, "IncompleteSignature"], [400, "InvalidParameterValue"]],
    }
