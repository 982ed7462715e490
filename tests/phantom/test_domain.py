"""`phantom-image domain` at a local Phantom, by both of its APIs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from client_kit import EAST, HOTEL, SANDBOX, SIERRA, Desk, desk
from phantom_kit import USER, Local, SleepMachines, local_phantom

from pipeline.build.schema_terms import closed
from pipeline.build.schemas import output_schemas
from pipeline.phantom.sandbox import run_phantom
from pipeline.phantom.state import Domain

__all__ = ["desk"]
P = ("--phantom", "future")
CREATE = ("domain", "create", "web", *P, "--size", "3")
WHERE = "hotel (at most 4), then sierra (no limit)"


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    folder = tmp_path / "phantom"
    folder.mkdir()
    with local_phantom(folder) as local:
        yield local


@pytest.fixture(params=["query", "web"])
def api(request: pytest.FixtureRequest, phantom: Local, desk: Desk) -> str:
    """Each API in turn, of a Phantom that has the launch configuration `web`."""
    desk.know(phantom.server.url, f", api: {request.param}")
    desk.publish(HOTEL, SIERRA, limits={"hotel": 4})
    assert desk.run("launch-config", "web", *P).status == 0
    return str(request.param)


def domains(phantom: Local) -> list[Domain]:
    return phantom.state.list_domains(USER.access_key)


def checked(value: Any) -> Any:
    jsonschema.validate(value, closed(output_schemas()["domain"]))
    return value


def test_the_story(desk: Desk, phantom: Local, api: str) -> None:
    ran = desk.run(*CREATE)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"created domain web, 3 machines of web, at {WHERE}\n"
    (made,) = domains(phantom)
    assert (made.type, made.desired) == ("web", 3)
    assert made.clouds == (("hotel", 4), ("sierra", -1))

    again = desk.run(*CREATE)
    assert (again.status, again.err) == (0, "")
    assert again.out == f"nothing to do: there is domain web, 3 machines of web, at {WHERE}\n"
    assert domains(phantom) == [made]

    sites = f", at {WHERE}" if api == "query" else ""
    shown = desk.run("domain", "show", "web", *P)
    assert shown.out == f"domain web: 3 machines of web{sites}\n  no machine yet\n"
    machine = phantom.state.add_machine(made.id, "hotel", "web-1.gz")
    assert machine is not None
    phantom.state.set_running(machine.id)
    shown = desk.run("domain", "show", "web", *P)
    state = "InService" if api == "query" else "running"
    assert shown.out.splitlines()[1:] == [
        "  machine     site   state",
        f"  {machine.id}  hotel  {state}",
    ]
    listed = desk.run("domain", "list", *P).out.splitlines()
    assert [line.split()[:1] for line in listed] == [["domain"], ["web"]]

    ran = desk.run("domain", "resize", "web", *P, "--size", "5")
    assert (ran.status, ran.out) == (0, "domain web: 3 -> 5 machines\n")
    assert domains(phantom)[0].desired == 5
    ran = desk.run("domain", "resize", "web", *P, "--size", "5")
    assert (ran.status, ran.out) == (0, "nothing to do: domain web is for 5 machines\n")

    ran = desk.run("domain", "delete", "web", *P)
    assert (ran.status, ran.out) == (0, "deleted domain web; its machines end\n")
    assert domains(phantom) == []
    ran = desk.run("domain", "delete", "web", *P)
    assert (ran.status, ran.out) == (0, "nothing to do: there is no domain web\n")
    assert desk.run("domain", "list", *P).out == "nothing to list\n"


def test_json(desk: Desk, phantom: Local, api: str) -> None:
    clouds = [{"site": "hotel", "max_vms": 4}, {"site": "sierra", "max_vms": -1}]
    row = {
        "name": "web",
        "launch_configuration": "web",
        "size": 3,
        "clouds": clouds if api == "query" else None,
        "machines": [],
    }
    assert checked(desk.run(*CREATE, "--json").json) == {"action": "create", "domain": row}
    assert desk.run(*CREATE, "--json").json == {"action": "unchanged", "domain": row}
    resized = {**row, "size": 1}
    resize = ("domain", "resize", "web", *P, "--size", "1", "--json")
    assert checked(desk.run(*resize).json) == {"action": "resize", "domain": resized}
    assert desk.run(*resize).json == {"action": "unchanged", "domain": resized}
    assert checked(desk.run("domain", "show", "web", *P, "--json").json) == resized
    machines: list[Any] | None = [] if api == "query" else None
    listed = checked(desk.run("domain", "list", *P, "--json").json)
    assert listed == [{**resized, "machines": machines}]
    delete = ("domain", "delete", "web", *P, "--json")
    assert checked(desk.run(*delete).json) == {"action": "delete", "domain": None}
    assert desk.run(*delete).json == {"action": "unchanged", "domain": None}


def test_the_request_has_all_that_phantom_asks_for(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    desk.publish(HOTEL, SIERRA, EAST)
    assert desk.run("launch-config", "web", *P).status == 0
    words = ("domain", "create", "lab", *P, "--size", "8", "--launch-config", "web")
    ran = desk.run(*words, "--clouds", "sierra:2, hotel")
    assert (ran.status, ran.err) == (0, "")
    (group,) = phantom.boto3().describe_auto_scaling_groups()["AutoScalingGroups"]
    told = {key: group[key] for key in ("LaunchConfigurationName", "AvailabilityZones", "MinSize")}
    assert told == {
        "LaunchConfigurationName": "web@sierra",
        "AvailabilityZones": ["sierra", "hotel"],
        "MinSize": 0,
    }
    assert (group["DesiredCapacity"], group["MaxSize"]) == (8, 10_000)
    assert {tag["Key"]: tag["Value"] for tag in group["Tags"]} == {
        "PHANTOM_DEFINITION": "error_overflow_n_preserving",
        "clouds": "sierra:2,hotel:-1",
        "minimum_vms": "8",
    }
    for tag in group["Tags"]:
        assert tag["PropagateAtLaunch"] is True
        assert (tag["ResourceId"], tag["ResourceType"]) == ("lab", "auto-scaling-group")


def test_a_site_without_limit_before_others_is_told(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    desk.publish(HOTEL, SIERRA)
    assert desk.run("launch-config", "web", *P).status == 0
    ran = desk.run(*CREATE)
    assert ran.status == 0
    assert ran.err == (
        "warning: Phantom never gets to sierra: hotel comes before and has no limit, and Phantom "
        "leaves no site before its limit, even if every machine there fails; set `phantom: sites: "
        "hotel: max_vms:` of the definition\n"
    )


# ---- what is refused


def test_another_domain_has_the_name(desk: Desk, phantom: Local, api: str) -> None:
    assert desk.run(*CREATE).status == 0
    ran = desk.run("domain", "create", "web", *P, "--size", "2")
    assert (ran.status, ran.out) == (38, "")
    assert ran.err == (
        "error: Phantom future: domain web exists already, with size 3\n"
        "  do: `phantom-image domain resize web --size 2` changes its size; for the rest, delete "
        "it first or take another name\n"
    )
    assert domains(phantom)[0].desired == 3


def test_no_launch_configuration(desk: Desk, phantom: Local, api: str) -> None:
    assert desk.run("domain", "delete", "web", *P).status == 0
    phantom.state.remove_type(USER.access_key, "web")
    ran = desk.run(*CREATE)
    assert (ran.status, ran.out) == (24, "")
    assert ran.err == (
        "error: Phantom future has no launch configuration web\n"
        "  do: `phantom-image launch-config web --phantom future` sends it\n"
    )


def test_a_site_without_launch_configuration(desk: Desk, phantom: Local, api: str) -> None:
    ran = desk.run(*CREATE, "--clouds", "hotel:1,tango:2")
    assert (ran.status, ran.out) == (24, "")
    if api == "web":
        assert ran.err == (
            "error: by the web API, a domain takes the order of sites and their maxima from its "
            "launch configuration\n"
            "  do: leave --clouds out; the definition says both (`phantom: sites:`)\n"
        )
        return
    assert ran.err == (
        "error: Phantom future has no launch configuration web@tango, only web@hotel, web@sierra\n"
        "  do: `phantom-image launch-config web --phantom future` sends it; or choose other sites "
        "by --clouds\n"
    )


def test_a_name_that_phantom_refuses(desk: Desk, phantom: Local, api: str) -> None:
    ran = desk.run("domain", "create", "web@hotel", *P, "--size", "1")
    assert (ran.status, ran.out) == (24, "")
    assert ran.err == (
        "error: Phantom takes no domain 'web@hotel'\n"
        "  do: use letters, digits, spaces, '-', '_' and '.', at most 128 of them\n"
    )


def test_no_such_domain(desk: Desk, phantom: Local, api: str) -> None:
    words = ("domain", "show", "wbe", *P)
    assert desk.run(*words).err == (
        "error: Phantom future has no domain 'wbe'\n"
        "  do: choose another one (it has none), or create it (`phantom-image domain create`)\n"
    )
    assert desk.run(*CREATE).status == 0
    for more in (("show",), ("resize", "--size", "2")):
        ran = desk.run("domain", more[0], "wbe", *P, *more[1:])
        assert (ran.status, ran.out) == (24, "")
        assert ran.err == (
            "error: Phantom future has no domain 'wbe'; did you mean 'web'?\n"
            "  do: choose another one (it has web), or create it (`phantom-image domain create`)\n"
        )


def test_nothing_says_where(desk: Desk, phantom: Local) -> None:
    desk.know(phantom.server.url)
    ran = desk.run("domain", "create", "lab", *P, "--size", "1")
    assert (ran.status, ran.out) == (24, "")
    assert ran.err == (
        "error: there is no build 'latest' of 'lab'\n"
        "  do: name the appliance or its manifest by --launch-config, or the sites by --clouds\n"
    )


@pytest.mark.parametrize(
    ("words", "what", "todo"),
    [
        ("show", "`domain show` needs the name of a domain", "give one"),
        ("create x", "`domain create` needs the number of machines", "give it by --size N"),
        ("resize x", "`domain resize` needs the number of machines", "give it by --size N"),
    ],
)
def test_words_that_are_missing(desk: Desk, words: str, what: str, todo: str) -> None:
    ran = desk.run("domain", *words.split(), *P)
    assert (ran.status, ran.err) == (24, f"error: {what}\n  do: {todo}\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--size -1", "argument --size: '-1' is no number from 0 to 10000"),
        ("--size 1e3", "argument --size: '1e3' is no number from 0 to 10000"),
        ("--clouds hotel:0", "argument --clouds: 'hotel:0' is not SITE or SITE:MAXIMUM"),
        ("--clouds a,a:1", "argument --clouds: 'a' stands there twice"),
    ],
)
def test_words_that_are_wrong(desk: Desk, words: str, complaint: str) -> None:
    with pytest.raises(SystemExit) as caught:
        desk.run("domain", "create", "web", *P, *words.split())
    assert caught.value.code == 2
    assert f"error: {complaint}\n" in desk.capsys.readouterr().err


# ---- a whole local Phantom, whose machines are processes


def test_machines_of_a_local_phantom(desk: Desk) -> None:
    desk.publish(SANDBOX)
    folder = desk.folder / "build/.phantom"
    local = ("--phantom", "local")
    with run_phantom(folder, ("nimbus-sandbox",), SleepMachines(folder / "machines")):
        assert desk.run("launch-config", "web", *local).status == 0
        assert desk.run("domain", "create", "web", *local, "--size", "3").status == 0

        def running() -> set[str]:
            machines = desk.run("domain", "show", "web", *local, "--json").json["machines"]
            return {each["id"] for each in machines if each["state"] == "InService"}

        while len(first := running()) < 3:
            time.sleep(0.05)
        assert desk.run("domain", "resize", "web", *local, "--size", "1").status == 0
        while len(left := running()) > 1:
            time.sleep(0.05)
        assert left < first
        assert desk.run("domain", "delete", "web", *local).status == 0
        while any((folder / "machines").iterdir()):
            time.sleep(0.05)
