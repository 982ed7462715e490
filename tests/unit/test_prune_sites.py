"""What no rule keeps is retired at its sites before it goes, and only then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_runs import Done, Project, make_project
from cli_sites import CANONICAL_ID, CumulusSite, configure, find_dead_port
from phantom_kit import USER, Local, local_phantom
from test_manifest import HOTEL, make
from test_prune import builds, plant

PHANTOM = {
    "PHANTOM_FUTURE_ACCESS_KEY": USER.access_key,
    "PHANTOM_FUTURE_SECRET_KEY": USER.secret_key,
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CumulusSite]:
    with CumulusSite(tmp_path / "hotel") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, site: CumulusSite) -> Project:
    """Four builds of `web`, of which one is to stay; the site has all but the last."""
    made = make_project(tmp_path / "project")
    made.define("web", "keep: {last: 1}\n", extends="hello-phantom")
    site.configure(made)
    for day, digit in enumerate("1234"):
        folder = plant(made, "web", digit * 12, day, digit, root=digit)
        if digit != "4":
            publish(site, folder, f"web-{digit}.gz")
    return made


def publish(site: CumulusSite, folder: Path, name: str) -> None:
    incoming = site.server.store.receive()
    incoming.file.write(b"an image")
    incoming.size = 8
    key = f"VMS/{CANONICAL_ID}/{name}"
    site.server.store.put(key, CANONICAL_ID, incoming, 1_700_000_000, 0)
    location = f"cumulus://{site.host}/Repo/{key}"
    change(folder, image_id=name, location=location)


def change(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["publications"] = [{**make(HOTEL)["publications"][0], "sandbox": False, **values}]
    path.write_text(json.dumps(content))


def prune(project: Project, site: CumulusSite, *words: str, **environ: str) -> Done:
    return project.run("prune", *words, **{**site.environ, **environ})


def test_old_builds_leave_their_sites(project: Project, site: CumulusSite) -> None:
    told = prune(project, site, "--json").json
    jsonschema.validate(told, project.succeed("schema", "prune").json)
    assert {each["build"][0]: each["reason"] for each in told["builds"]} == {
        "4": "the one that was made last; the newest",
        "3": "the newest that hotel has",
        "2": "no rule of `keep` asks for it; hotel loses it too",
        "1": "no rule of `keep` asks for it; hotel loses it too",
    }
    assert len(site.images()) == 3
    done = prune(project, site, "--yes")
    assert done.status == 0
    assert done.out.endswith("\nretired web-2.gz at hotel\nretired web-1.gz at hotel\n")
    assert (list(site.images()), builds(project, "web")) == (["web-3.gz"], ["3", "4"])
    assert prune(project, site, "--yes").out.endswith("nothing to remove\n")


def test_a_withdrawn_build_is_not_the_good_one_of_its_site(
    project: Project, site: CumulusSite
) -> None:
    project.succeed("mark", "withdrawn", "web", "--of", "3" * 12, "--reason", "it leaks")
    prune(project, site, "--yes")
    assert (list(site.images()), builds(project, "web")) == (
        ["web-2.gz", "web-3.gz"],
        ["2", "3", "4"],
    )


def test_a_site_that_is_away_keeps_its_builds(project: Project, site: CumulusSite) -> None:
    host = f"127.0.0.1:{find_dead_port()}"
    configure(project, host)
    for digit in "123":
        name = f"web-{digit}.gz"
        location = f"cumulus://{host}/Repo/VMS/{CANONICAL_ID}/{name}"
        change(project.build / "web" / (digit * 12), image_id=name, location=location)
    done = prune(project, site, "--yes", "--json")
    assert done.status == 31
    assert {each["build"][0]: each["error"] is None for each in done.json["retired"]} == {
        "1": False,
        "2": False,
    }
    assert builds(project, "web") == ["1", "2", "3", "4"]


def test_what_a_phantom_starts_stays(project: Project, site: CumulusSite, tmp_path: Path) -> None:
    (tmp_path / "phantom").mkdir()
    with local_phantom(tmp_path / "phantom") as phantom:
        _put(phantom, "web-2.gz")
        text = (project.folder / "sites.yaml").read_text()
        more = f"phantoms: {{future: {{url: '{phantom.server.url}'}}}}\n"
        project.write("sites.yaml", text + more)
        done = prune(project, site, "--yes", **PHANTOM)
        assert (done.status, done.error) == (
            42,
            "error: hotel: a launch configuration of Phantom future starts machines from "
            "it\n  do: `phantom-image launch-config` gives it a newer build\n",
        )
    assert (list(site.images()), builds(project, "web")) == (
        ["web-2.gz", "web-3.gz"],
        ["2", "3", "4"],
    )
    # A Phantom that cannot be asked may use it.
    assert prune(project, site, "--yes", **PHANTOM).status != 0
    assert builds(project, "web") == ["2", "3", "4"]


def _put(phantom: Local, image: str) -> None:
    name = make(HOTEL)["phantom"]["launch_configuration"]["name"]
    phantom.boto3().create_launch_configuration(
        LaunchConfigurationName=f"{name}@hotel", ImageId=image, InstanceType="m1.small"
    )
