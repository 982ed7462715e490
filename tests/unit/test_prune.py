"""`phantom-image prune`: old builds are removed from a host, and what others need is not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_runs import Project, make_project
from test_manifest import HOTEL, make

from pipeline import records
from pipeline.model import ContentKey
from pipeline.store import Store

DAY = 86_400
MADE = 1_700_000_000


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def store(project: Project, stage: str, key: str, size: int = 5000) -> Path:
    """Stores an artifact, and returns its file."""
    made = Store(project.store)
    with made.making(stage, ContentKey(key)) as folder:
        (folder / "out").mkdir()
        (folder / "out" / "file").write_bytes(os.urandom(size))
        artifact = made.add(stage, ContentKey(key), folder / "out", {})
    return artifact.file("file")


def key(word: str) -> str:
    return (word * 64)[:64]


def plant(project: Project, name: str, build: str, day: int, image: str, *, root: str) -> Path:
    """A build of that day: its image is a link to a stored artifact, and its root file system is
    another one, which builds may share."""
    folder = project.build / name / build
    artifact = Store(project.store).find("image", ContentKey(key(image)))
    file = artifact.file("file") if artifact else store(project, "image", key(image))
    if Store(project.store).find("root", ContentKey(key(root))) is None:
        store(project, "root", key(root))
    folder.mkdir(parents=True)
    os.link(file, folder / "image.gz")
    content: dict[str, Any] = make(HOTEL)
    content["appliance"] |= {"name": name, "build": build}
    content["publications"] = []
    (folder / "manifest.json").write_text(json.dumps(content))
    stages = {
        title: {"key": key(word), "revision": 1, "fields": {}, "inputs": {}}
        for title, word in (("root", root), ("image mbr raw gzip", image))
    }
    for path in (folder, folder.parent):
        (path / "stages.json").write_text(json.dumps(records.seal({"stages": stages})))
    os.utime(folder / "stages.json", (MADE + day * DAY, MADE + day * DAY))
    return folder


def builds(project: Project, name: str) -> list[str]:
    return sorted(path.name[0] for path in (project.build / name).iterdir() if path.is_dir())


def test_old_builds_go_and_nothing_that_others_need(project: Project) -> None:
    project.define("web", "keep: {last: 2}\n", extends="hello-phantom")
    project.define("other", "")
    folders = {
        digit: plant(project, "web", digit * 12, day, digit, root=root)
        for day, (digit, root) in enumerate(zip("1234567", "abbcdef", strict=True))
    }
    plant(project, "other", "9" * 12, 0, "9", root="a")  # has the root file system of build 1
    (folders["2"] / "keep").touch()
    published = json.loads((folders["3"] / "manifest.json").read_text())
    published["publications"] = make(HOTEL)["publications"]
    (folders["3"] / "manifest.json").write_text(json.dumps(published))

    told = project.succeed("prune", "--json").json
    jsonschema.validate(told, project.succeed("schema", "prune").json)
    assert told["removed"] is False and told["freed_bytes"] > 0
    reasons = {
        (each["appliance"], each["build"][0]): (each["keep"], each["reason"])
        for each in told["builds"]
    }
    gone = (False, "no rule of `keep` asks for it")
    assert reasons == {
        ("other", "9"): (True, "its definition says nothing of `keep`"),
        ("web", "7"): (True, "the one that was made last; the newest"),
        ("web", "6"): (True, "one of the last 2"),
        ("web", "5"): gone,
        ("web", "4"): gone,
        ("web", "3"): (True, "published at hotel: `phantom-image retire` comes first"),
        ("web", "2"): (True, "tagged by the file keep in its folder"),
        ("web", "1"): gone,
    }
    shown = project.succeed("prune", "web").out
    assert re.search(r"\n3 builds would go, and free [0-9]+ KiB; --yes removes them\n$", shown)
    assert builds(project, "web") == list("1234567")

    done = project.succeed("prune", "--yes").out
    assert "removed 3 builds, freed " in done
    assert builds(project, "web") == list("2367") and builds(project, "other") == ["9"]
    left = sorted(path.name for path in project.artifacts())
    images = [f"image-{key(word)}" for word in "23679"]
    assert left == sorted([*images, *(f"root-{key(word)}" for word in "abef")])
    assert project.succeed("prune", "--yes").out.endswith("nothing to remove\n")


def test_a_build_that_is_used_stays(project: Project) -> None:
    """By another build that was made of it, by a definition that starts from it, by the link to
    what was published last; and so does a build whose manifest cannot be used."""
    project.define("web", "keep: {daily: 1}\n")
    folders = {
        digit: plant(project, "web", digit * 12, day, digit, root=digit)
        for day, digit in enumerate("123456")
    }
    (project.build / "web" / "latest").symlink_to("1" * 12)
    made = plant(project, "child", "8" * 12, 9, "8", root="8")
    content = json.loads((made / "manifest.json").read_text())
    content["inputs"]["source"] = {"base_image": {"appliance": "web", "build": "2" * 12}}
    (made / "manifest.json").write_text(json.dumps(content))
    project.define(
        "next",
        f"source: {{base_image: {{location: {{appliance: web, build: '{'3' * 12}'}}}}}}\n",
        extends=None,
    )
    (folders["4"] / "manifest.json").write_text("{")
    told = project.succeed("prune", "--json", "--yes").json
    assert {each["build"][0]: each["reason"] for each in told["builds"]} == {
        "8": "its definition says nothing of `keep`",
        "6": "the one that was made last; the newest; the newest of its day",
        "5": "no rule of `keep` asks for it",
        "4": "its manifest cannot be used",
        "3": "the definition of next starts from it",
        "2": f"child/{'8' * 12} was made of it",
        "1": "the one that was published last",
    }
    assert builds(project, "web") == ["1", "2", "3", "4", "6", "l"]


def test_what_cannot_be_pruned(project: Project) -> None:
    assert project.succeed("prune").out == "there are no builds\n"
    done = project.run("prune", "wob")
    assert (done.status, done.error) == (
        24,
        "error: there is no build of 'wob'\n  do: `phantom-image list` lists the builds\n",
    )
    project.define("web", "keep: {last: 1}\n")
    for day, digit in enumerate("12"):
        plant(project, "web", digit * 12, day, digit, root=digit)
    with Store(project.store).used():
        done = project.run("prune", "--yes")
    assert done.status == 19
    assert project.masked(done.error) == (
        "error: STORE: another command is using the store, so nothing is evicted\n"
        "  do: run this again when that one has ended\n"
    )
    assert builds(project, "web") == ["1", "2"]
    project.define("web", "keep: {last: -1}\n")
    done = project.succeed("prune", "--yes")
    assert "all builds of web stay\n" in done.err
    assert builds(project, "web") == ["1", "2"]
