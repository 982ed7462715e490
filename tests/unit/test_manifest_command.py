"""`phantom-image manifest`: files of manifests that are checked, shown and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_runs import Project, make_project
from test_manifest import APPLIANCE, BUILD, COPY, DIGEST, HOME, HOTEL, make

from pipeline.model import PhantomPolicy

Manifest = dict[str, Any]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def write(project: Project, name: str, content: object) -> str:
    project.write(name, content if isinstance(content, str) else json.dumps(content))
    return name


def package(name: str, version: str, digest: str = "a") -> dict[str, str]:
    return {"name": name, "version": version, "architecture": "amd64", "sha256": digest * 64}


# ---- validate


def test_valid_manifests(project: Project) -> None:
    older = make(HOTEL)
    older |= {"schema": 3, "phantom": older["phantom"]["launch_configuration"]}
    write(project, "build/web/latest/manifest.json", make(HOTEL, HOME, COPY))
    write(project, "older.json", older)
    done = project.succeed("manifest", "validate", "build/web/latest", "older.json")
    assert done.out == (
        "build/web/latest/manifest.json: valid, schema 5\n"
        "older.json: valid, schema 3, an earlier one: read in today's terms\n"
    )


def edit(change: Callable[[Manifest], object]) -> Manifest:
    told = make(HOTEL, HOME)
    change(told)
    return told


def params(told: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = told["phantom"]["launch_configuration"]["cloud_params"]
    return found


EMPTY = "the manifest cannot be used: it "
CONFIGURATION = "phantom.launch_configuration"


INVALID: list[tuple[object, str]] = [
    ("", f"{EMPTY}holds no JSON"),
    (json.dumps(make(HOTEL))[:-9], f"{EMPTY}holds no JSON"),
    ([], f"{EMPTY}is not an object"),
    ({"name": "left-pad", "version": "1.0.0"}, f"{EMPTY}has no 'schema'"),
    ({"schema": 9}, f"{EMPTY}has schema 9, and this program knows 5"),
    ({"schema": 0}, f"{EMPTY}has schema 0, and this program knows 5"),
    ({"schema": 2}, f"{EMPTY}has no 'inputs'"),
    (edit(lambda told: told.pop("images")), "it has no 'images'"),
    (
        edit(lambda told: told["images"][0].update(sha="x")),
        "images[0] has 'sha', which no manifest has",
    ),
    (
        edit(lambda told: told["images"][0].update(sha256=DIGEST + "\n")),
        f"images[0].sha256 is '{'0' * 55}...': it must match ^[0-9a-f]{{64}}$",
    ),
    (
        edit(lambda told: told["root_filesystem"].update(sha256="x")),
        "root_filesystem.sha256 is 'x': it must match ^[0-9a-f]{64}$",
    ),
    (
        edit(lambda told: told["images"][0].update(bytes="1")),
        "images[0].bytes is '1': it must be of the type integer",
    ),
    (
        edit(lambda told: told["inputs"].update(customizations={"user": []})),
        "inputs.customizations has 'user', which no definition has",
    ),
    (
        edit(lambda told: params(told)["hotel"].update(max_vms=0)),
        f"{CONFIGURATION}.cloud_params.hotel.max_vms is 0: it must be -1 (no limit) or at least 1",
    ),
    (
        edit(lambda told: params(told)["hotel"].update(image_id="other.gz")),
        "phantom.auto_scaling does not say what phantom.launch_configuration says",
    ),
    (
        edit(lambda told: told["publications"].clear()),
        f"{CONFIGURATION}.cloud_params.amazon has the image 'ami-1', which no publication has",
    ),
    (
        edit(lambda told: params(told)["hotel"].update(rank=1)),
        f"{CONFIGURATION}.cloud_params has two sites of one rank",
    ),
    (
        edit(lambda told: told["phantom"]["launch_configuration"].update(name="other")),
        f"{CONFIGURATION}.name is not the appliance's name",
    ),
]


def test_what_makes_a_manifest_invalid(project: Project) -> None:
    files = [write(project, f"{number}.json", each) for number, (each, _) in enumerate(INVALID)]
    done = project.run("manifest", "validate", "--json", *files)
    assert (done.status, done.err) == (70, "")
    told = done.json
    assert [row["faults"][0] for row in told] == [what for _, what in INVALID]
    assert not any(row["valid"] for row in told)
    jsonschema.validate(told, project.succeed("schema", "validation").json)


def test_one_manifest_that_is_not_valid(project: Project) -> None:
    one = write(project, "one.json", edit(lambda told: told["images"][0].update(bytes="1")))
    done = project.run("manifest", "validate", one)
    assert (done.status, done.out, done.err) == (
        70,
        "",
        "error: one.json: images[0].bytes is '1': it must be of the type integer\n"
        "  do: build or publish the appliance again, which writes its manifest anew\n",
    )
    later = write(project, "later.json", {"schema": 9})
    done = project.run("manifest", "validate", later)
    assert (done.status, done.out, done.err) == (
        70,
        "",
        "error: later.json: the manifest cannot be used: it has schema 9, and this program knows "
        "5\n  do: read it with the phantom-image that wrote it, or a later one\n",
    )
    two = write(project, "two.json", edit(lambda told: told.update(images=1, more=2)))
    done = project.run("manifest", "validate", two)
    assert (done.status, done.out, done.err) == (
        70,
        "",
        "error: two.json: the manifest has 2 faults\n"
        "  | it has 'more', which no manifest has\n"
        "  | images is 1: it must be of the type array\n"
        "  do: build or publish the appliance again, which writes its manifest anew\n",
    )


def test_several_manifests_one_of_a_later_version(project: Project) -> None:
    write(project, "good.json", make(HOTEL))
    write(project, "later.json", {"schema": 9})
    write(project, "cut.json", "{")
    done = project.run("manifest", "validate", "later.json", "good.json", "cut.json")
    assert (done.status, done.out) == (70, "good.json: valid, schema 5\n")
    assert done.err == (
        "error: 2 of 3 manifests are not valid\n"
        "  | later.json: the manifest cannot be used: it has schema 9, and this program knows 5\n"
        "  | cut.json: the manifest cannot be used: it holds no JSON\n"
        "  do: build or publish the appliance again, which writes its manifest anew\n"
    )


def test_files_that_are_not_there(project: Project) -> None:
    done = project.run("manifest", "show", "web.json")
    assert (done.status, done.error) == (
        24,
        "error: there is no file 'web.json'\n"
        "  do: `phantom-image list` lists the builds; their folders have the manifests\n",
    )
    done = project.run("manifest", "diff", "images")
    assert (done.status, done.error) == (
        24,
        "error: `manifest diff` takes 2 files, not 1\n"
        "  do: name the earlier manifest, then the later\n",
    )
    done = project.run("manifest", "diff", "images", "images")
    assert (done.status, done.error.splitlines()[0]) == (
        24,
        "error: there is no file 'images/manifest.json'",
    )
    name = "x" * 300
    done = project.run("manifest", "validate", name)
    assert (done.status, done.error) == (
        70,
        f"error: {name}: the manifest cannot be read: File name too long\n"
        "  do: see who may read it\n",
    )
    done = project.run("manifest", "show", "images", "images")
    assert done.error.startswith("error: `manifest show` takes 1 file, not 2\n")


# ---- show


def test_a_file_is_shown_as_its_build_is(project: Project) -> None:
    told = make(HOTEL, HOME)
    write(project, f"build/web/{BUILD}/manifest.json", told)
    shown = project.succeed("manifest", "show", f"build/web/{BUILD}").out
    assert shown == project.succeed("show", "web", "--of", BUILD).out
    assert "at amazon (us-east-1) as ami-1, 2026-01-01T00:00:00Z\n" in shown
    assert project.succeed("manifest", "show", f"build/web/{BUILD}", "--json").json == told
    lines = [line.split(maxsplit=1) for line in shown.splitlines()[3:]]
    assert lines[-3:] == [
        ["phantom", "rank 1: amazon, any number of small"],
        ["phantom", "rank 2: hotel, any number of small"],
        ["manifest", f"build/web/{BUILD}/manifest.json"],
    ]
    write(project, "kept.json", told)
    assert project.succeed("manifest", "show", "kept.json").out.endswith(" kept.json\n")
    write(project, "cut.json", "{")
    done = project.run("manifest", "show", "cut.json")
    assert (done.status, done.error.splitlines()[0]) == (
        70,
        "error: cut.json: the manifest cannot be used: it holds no JSON",
    )


# ---- diff


def test_what_differs_between_two_builds(project: Project, tmp_path: Path) -> None:
    before = make(HOTEL)
    before["inputs"]["packages"] = [
        package("openssl", "3.0.19"),
        package("rsync", "3.2.7"),
        package("tzdata", "1"),
    ]
    script = tmp_path / "user-data.sh"
    script.write_text("#!/bin/sh\n")
    appliance = replace(APPLIANCE, version="1.1", phantom=PhantomPolicy(user_data=script))
    after = make(replace(HOTEL, image_id="web-1.1.gz"), HOME, of=appliance)
    after["inputs"]["packages"] = [
        package("nginx", "1.22"),
        package("openssl", "3.0.20"),
        package("tzdata", "1", "b"),
    ]
    after["inputs"]["customizations"] = {"services": {"enabled": ["nginx"]}}
    after["root_filesystem"]["sha256"] = "1" * 64
    files = write(project, "before.json", before), write(project, "after.json", after)
    done = project.succeed("manifest", "diff", *files)
    assert [line.split() for line in done.out.splitlines()] == [
        line.split()
        for line in f"""\
web 1.0, build {BUILD} -> web 1.1, build {BUILD}
appliance
  ~ version 1.0 -> 1.1
definition
  + customizations.services.enabled ['nginx']
packages
  + nginx:amd64 1.22
  ~ openssl:amd64 3.0.19 -> 3.0.20
  - rsync:amd64 3.2.7
  ~ tzdata:amd64 sha256 aaaaaaaaaaaa -> bbbbbbbbbbbb
digests
  + disk of amazon 000000000000
  + image of amazon 000000000000
  ~ root file system 000000000000 -> 111111111111
images
  + amazon.bytes 1
  + amazon.disk_bytes 1
  + amazon.file amazon.raw
  + amazon.format raw
  + amazon.layout mbr
publications
  + amazon (us-east-1) ami-1
  ~ hotel image_id web.gz -> web-1.1.gz
phantom
  + cloud_params.amazon.common no
  + cloud_params.amazon.image_id ami-1
  + cloud_params.amazon.instance_type small
  + cloud_params.amazon.max_vms -1
  + cloud_params.amazon.rank 1
  ~ cloud_params.hotel.image_id web.gz -> web-1.1.gz
  ~ cloud_params.hotel.rank 1 -> 2
  ~ contextualization_method none -> user_data
  + user_data '#!/bin/sh\\n'
launch templates
  + amazon (us-east-1).ImageId ami-1
""".splitlines()
    ]
    told = project.succeed("manifest", "diff", *files, "--json").json
    jsonschema.validate(told, project.succeed("schema", "diff").json)
    assert told["same"] is False
    assert told["after"] == {"name": "web", "version": "1.1", "build": BUILD}
    assert told["changes"]["packages"][2] == {
        "name": "rsync:amd64",
        "before": {"version": "3.2.7", "sha256": "a" * 64},
        "after": None,
    }


def test_nothing_differs(project: Project) -> None:
    file = write(project, "one.json", make(HOTEL))
    out = project.succeed("manifest", "diff", file, file).out
    assert out == f"web 1.0, build {BUILD} -> web 1.0, build {BUILD}\nnothing differs\n"
    assert project.succeed("manifest", "diff", file, file, "--json").json["same"] is True


def test_manifests_that_cannot_be_compared(project: Project) -> None:
    good = write(project, "good.json", make(HOTEL))
    told = make(HOTEL)
    told["inputs"]["packages"] = ["rsync"]
    bad = write(project, "bad.json", told)
    done = project.run("manifest", "diff", good, bad)
    assert (done.status, done.error.splitlines()[0]) == (
        70,
        "error: bad.json: the manifest cannot be used: inputs.packages[0] is not an object",
    )
