"""`phantom-image launch-config` at a local Phantom, by both of its APIs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from client_kit import BUILD, EAST, HOTEL, SANDBOX, SCRIPT, SIERRA, Desk, desk
from phantom_kit import USER, Local, local_phantom, tags

from pipeline.build.schema_terms import closed
from pipeline.build.schemas import output_schemas
from pipeline.phantom.state import LaunchType

__all__ = ["desk"]
HEAD = "launch configuration web at Phantom future ({}): web 1.0, build 0123456789ab\n"


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    folder = tmp_path / "phantom"
    folder.mkdir()
    with local_phantom(folder) as local:
        yield local


@pytest.fixture(params=["query", "web"])
def api(request: pytest.FixtureRequest, phantom: Local, desk: Desk) -> str:
    """Each API in turn, of a Phantom that `sites.yaml` names."""
    desk.know(phantom.server.url, f", api: {request.param}")
    return str(request.param)


def only_type(phantom: Local) -> LaunchType:
    (found,) = phantom.state.list_types(USER.access_key)
    return found


def sites_of(found: LaunchType) -> dict[str, tuple[str, str, int, int]]:
    return {
        each.site: (each.image_id, each.instance_type, each.max_vms, each.rank)
        for each in found.sites
    }


def test_all_sites_are_created_and_a_repeat_does_nothing(
    desk: Desk, phantom: Local, api: str
) -> None:
    desk.publish(HOTEL, SIERRA, EAST, limits={"hotel": 4, "sierra": 2})
    ran = desk.run("launch-config", "web", "--phantom", "future")
    assert (ran.status, ran.err) == (0, "")
    head = HEAD.format(phantom.server.url)
    assert ran.out == (
        f"{head}"
        "  create  web@hotel     web-1.gz, m1.small\n"
        "  create  web@sierra    web-1.gz, m1.small\n"
        "  create  web@ec2-east  ami-1, m1.small\n"
        "created web@hotel\ncreated web@sierra\ncreated web@ec2-east\n"
    )
    found = only_type(phantom)
    most = (4, 2, -1) if api == "web" else (-1, -1, -1)
    assert sites_of(found) == {
        "hotel": ("web-1.gz", "m1.small", most[0], 1),
        "sierra": ("web-1.gz", "m1.small", most[1], 2),
        "ec2-east": ("ami-1", "m1.small", most[2], 3),
    }
    assert (found.user_data, found.method) == (SCRIPT, "user_data")

    before = found.created, [each.created for each in found.sites]
    ran = desk.run("launch-config", "build/web/latest", "--phantom", "future")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        f"{head}"
        "  unchanged  web@hotel     web-1.gz, m1.small\n"
        "  unchanged  web@sierra    web-1.gz, m1.small\n"
        "  unchanged  web@ec2-east  ami-1, m1.small\n"
        "nothing to do\n"
    )
    found = only_type(phantom)
    assert (found.created, [each.created for each in found.sites]) == before


def test_no_user_data(desk: Desk, phantom: Local, api: str) -> None:
    desk.publish(HOTEL, script=None)
    assert desk.run("launch-config", "web", "--phantom", "future").status == 0
    found = only_type(phantom)
    assert (found.user_data, found.method) == (None, "none")
    assert desk.run("launch-config", "web", "--phantom", "future").out.endswith("nothing to do\n")


def test_a_new_build_replaces_and_says_whom_user_data_reaches(
    desk: Desk, phantom: Local, api: str
) -> None:
    desk.publish(HOTEL, SIERRA)
    assert desk.run("launch-config", "web", "--phantom", "future").status == 0
    new = replace(HOTEL, image_id="web-2.gz")
    desk.publish(new, replace(SIERRA, image_id="web-2.gz"), script="#!/bin/sh\necho new\n")
    plan = (
        f"{HEAD.format(phantom.server.url)}"
        "  replace  web@hotel   image web-1.gz -> web-2.gz, user-data\n"
        "  keep     web@sierra  user-data\n"
        "user-data belongs to web and not to one of its sites: it changes for the machines that "
        "start from now on at all sites, also at sierra, which is not sent\n"
    )
    words = ("launch-config", "web", "--phantom", "future", "--site", "hotel")
    ran = desk.run(*words, "--dry-run")
    assert (ran.status, ran.out) == (0, f"{plan}nothing was sent (--dry-run)\n")
    assert only_type(phantom).user_data == SCRIPT
    ran = desk.run(*words)
    assert (ran.status, ran.out) == (0, f"{plan}replaced web@hotel\n")
    found = only_type(phantom)
    assert found.user_data == "#!/bin/sh\necho new\n"
    assert {site: each[0] for site, each in sites_of(found).items()} == {
        "hotel": "web-2.gz",
        "sierra": "web-1.gz",
    }


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\necho 'a' \"b\" back\\slash \\t $HOME `id` %s &=+ ~ \t#",
        ("#!/bin/sh\n" + "x" * 1024)[:1024],
    ],
)
def test_user_data_arrives_byte_for_byte(desk: Desk, phantom: Local, api: str, text: str) -> None:
    desk.publish(HOTEL, script=text)
    assert desk.run("launch-config", "web", "--phantom", "future").status == 0
    assert only_type(phantom).user_data == text


def test_what_an_interrupted_run_left_is_finished(desk: Desk, phantom: Local) -> None:
    """As a run leaves it that ended after it deleted web@sierra."""
    desk.know(phantom.server.url)
    desk.publish(HOTEL, SIERRA)
    assert desk.run("launch-config", "web", "--phantom", "future").status == 0
    got = phantom.query(Action="DeleteLaunchConfiguration", LaunchConfigurationName="web@sierra")
    assert got.status == 200
    ran = desk.run("launch-config", "web", "--phantom", "future")
    assert ran.out.endswith(
        "  unchanged  web@hotel   web-1.gz, m1.small\n"
        "  create     web@sierra  web-1.gz, m1.small\n"
        "created web@sierra\n"
    )
    assert [*sites_of(only_type(phantom))] == ["hotel", "sierra"]


def test_json(desk: Desk, phantom: Local, api: str) -> None:
    desk.publish(HOTEL)
    words = ("launch-config", "web", "--phantom", "future", "--json")
    expected = {
        "phantom": "future",
        "url": phantom.server.url,
        "appliance": "web",
        "build": BUILD,
        "launch_configuration": "web",
        "dry_run": True,
        "user_data_changes": False,
        "domains": [],
        "sites": [
            {
                "site": "hotel",
                "name": "web@hotel",
                "action": "create",
                "image_id": "web-1.gz",
                "instance_type": "m1.small",
                "changes": [],
            }
        ],
    }
    assert desk.run(*words, "--dry-run").json == expected
    assert phantom.state.list_types(USER.access_key) == []
    assert desk.run(*words).json == {**expected, "dry_run": False}
    jsonschema.validate(expected, closed(output_schemas()["launch-config"]))
    assert only_type(phantom).name == "web"


# ---- what is refused


def use(phantom: Local, name: str) -> None:
    """Makes a domain of the launch configuration `web`."""
    phantom.boto3().create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName="web@hotel",
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=["hotel"],
        Tags=tags(name, clouds="hotel:1"),
    )


def test_one_that_domains_use_is_not_touched(desk: Desk, phantom: Local, api: str) -> None:
    desk.publish(HOTEL)
    assert desk.run("launch-config", "web", "--phantom", "future").status == 0
    use(phantom, "lab")
    use(phantom, "test")
    desk.publish(replace(HOTEL, image_id="web-2.gz"))
    ran = desk.run("launch-config", "web", "--phantom", "future")
    plan = (
        f"{HEAD.format(phantom.server.url)}"
        "  replace  web@hotel  image web-1.gz -> web-2.gz\n"
        "in use by lab, test: machines that run stay as they are, those that start from now on "
        "get what is sent\n"
    )
    if api == "web":
        assert (ran.status, ran.out, ran.err) == (0, f"{plan}replaced web@hotel\n", "")
        return
    assert (ran.status, ran.out) == (42, plan)
    assert ran.err == (
        "error: Phantom future: launch configuration web cannot be replaced at hotel: domains lab, "
        "test use it\n"
        "  do: delete what uses it (`phantom-image domain delete`) and run the same command again, "
        "or send the build under another name; the web API replaces it in use\n"
    )
    assert sites_of(only_type(phantom))["hotel"][0] == "web-1.gz"


def test_a_site_that_this_phantom_does_not_know(desk: Desk, phantom: Local, api: str) -> None:
    desk.publish(HOTEL, replace(SIERRA, site="tango"))
    ran = desk.run("launch-config", "web", "--phantom", "future", "--site", "tango")
    code = "BAD REQUEST" if api == "web" else "InvalidParameterValue"
    what = "launch configuration web" if api == "web" else "web@tango"
    assert ran.status == 64
    assert ran.err == (
        f"error: Phantom future: creating {what} is refused (400 {code}: There is no site "
        "'tango'.)\n"
        "  do: sites.yaml must call sites as this Phantom does: rename the site there and publish "
        "again, or choose others by --site\n"
    )
    assert phantom.state.list_types(USER.access_key) == []


def test_a_site_that_nobody_knows(desk: Desk, phantom: Local, api: str) -> None:
    desk.publish(HOTEL)
    ran = desk.run("launch-config", "web", "--phantom", "future", "--site", "hotle")
    assert (ran.status, ran.out) == (24, "")
    assert ran.err == (
        "error: there is no site 'hotle'; did you mean 'hotel'?\n"
        "  do: choose one of: hotel, nimbus-sandbox, ec2-sandbox\n"
    )


def test_a_build_that_is_not_published_at_a_site(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    desk.publish(SIERRA)
    ran = desk.run("launch-config", "web", "--phantom", "future", "--site", "hotel")
    assert (ran.status, ran.out) == (66, "")
    assert ran.err == (
        "error: web 1.0, build 0123456789ab, is not published at hotel, only at sierra\n"
        "  do: `phantom-image publish web --build 0123456789ab --site hotel` publishes it there\n"
    )
    desk.publish()
    ran = desk.run("launch-config", "web", "--phantom", "future")
    assert (ran.status, ran.out) == (66, "")
    assert ran.err == (
        "error: web 1.0, build 0123456789ab, is published at no site\n"
        "  do: `phantom-image publish web --build 0123456789ab --site SITE` publishes it\n"
    )


def test_sandboxes_are_for_a_local_phantom(desk: Desk, tmp_path: Path) -> None:
    desk.publish(SANDBOX)
    with local_phantom(tmp_path, ("nimbus-sandbox",)) as local:
        desk.know(local.server.url)
        ran = desk.run("launch-config", "web", "--phantom", "future")
        assert (ran.status, ran.out) == (66, "")
        assert ran.err == (
            "error: web 1.0, build 0123456789ab, is published at sandboxes alone "
            "(nimbus-sandbox), which only a local Phantom reaches\n"
            "  do: `phantom-image publish web --build 0123456789ab --site SITE` publishes it at a "
            "real site; --phantom local names the Phantom that `phantom-image phantom-sandbox` "
            "runs\n"
        )
        desk.know(local.server.url, ", sandbox: true")
        assert desk.run("launch-config", "web", "--phantom", "future").status == 0
        assert [*sites_of(only_type(local))] == ["nimbus-sandbox"]


def test_broken_user_data_of_another_configuration(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    desk.publish(HOTEL)
    made = phantom.query(
        Action="CreateLaunchConfiguration",
        LaunchConfigurationName="old@hotel",
        ImageId="old.gz",
        InstanceType="m1.small",
        UserData=base64.b64encode("gr\u00fc\u00df".encode()).decode(),
    )
    assert made.status == 200
    ran = desk.run("launch-config", "web", "--phantom", "future")
    assert (ran.status, ran.out) == (64, "")
    assert ran.err == (
        "error: Phantom future: describing launch configurations fails (500 InternalServerError: "
        "'ascii' codec can't encode the user-data)\n"
        "  do: user-data that is not ASCII text, in any launch configuration of this user, breaks "
        "every description: delete that one, then run the same command again\n"
    )


def test_a_manifest_that_is_not_there(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    for word, what, todo in (
        (
            "lab",
            "there is no build 'latest' of 'lab'",
            "`phantom-image list` lists the builds, `phantom-image image` makes one",
        ),
        (
            "build/lab/manifest.json",
            "there is no file 'build/lab/manifest.json'",
            "`phantom-image list` lists the builds; their folders have the manifests",
        ),
    ):
        ran = desk.run("launch-config", word, "--phantom", "future")
        assert (ran.status, ran.err) == (24, f"error: {what}\n  do: {todo}\n")
