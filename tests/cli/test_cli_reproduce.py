"""`phantom-image reproduce`: a build made once more from its manifest, in an empty store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Hello, Project, assert_clean, list_tree

from pipeline.build.origin import describe_definition
from pipeline.definitions.appliance import load_appliance

SCRIPT = "#!/bin/sh\necho one >/etc/told\n"


def write_manifest(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder / "manifest.json"


def test_the_same_bytes_in_an_empty_store(shared: Project, hello: Hello, tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "old", hello.manifest)
    before = list_tree(shared.store / "artifacts")
    done = shared.succeed("reproduce", str(file), "--json")
    assert done.json["build"] == f"hello-phantom/{hello.manifest['appliance']['build']}"
    assert done.json["reproduced"] is True
    assert [(each["what"], each["site"]) for each in done.json["digests"]] == [
        ("root file system", None),
        ("disk", "nimbus-sandbox"),
        ("image", "nimbus-sandbox"),
    ]
    assert done.json["difference"] is None
    for line in ("packages: downloading", "packages: installing", "root: building"):
        assert line in done.err
    assert "boot" not in done.err
    assert list_tree(shared.store / "artifacts") == before
    assert_clean(shared)


def test_the_first_file_that_differs_is_named(shared: Project, hello: Hello) -> None:
    """The manifest is of hello-phantom, and says that a definition with another file made it."""
    shared.write("images/told/script.sh", SCRIPT, 0o755)
    definition = shared.define("told", "scripts: [script.sh]\n")
    digest = describe_definition(load_appliance("told", definition.parent.parent))["digest"]
    build = shared.build / "told" / hello.manifest["appliance"]["build"]
    content = json.loads(json.dumps(hello.manifest))
    content["appliance"]["name"] = "told"
    content["inputs"]["definition"]["digest"] = digest
    file = write_manifest(build, content)
    stages = hello.project.build / "hello-phantom" / build.name / "stages.json"
    (build / "stages.json").write_bytes(stages.read_bytes())

    done = shared.run("reproduce", str(file))
    assert done.status == 87
    assert done.error == (
        f"error: told/{build.name} was made once more, and 3 of 3 digests differ\n"
        "  do: use the program and the tools that made it: see above what differs\n"
    )
    lines = done.out.splitlines()
    assert lines[0] == f"told/{build.name}"
    old, new = hello.manifest["root_filesystem"]["sha256"], lines[1].split()[-1]
    assert lines[1].split() == f"root file system differs sha256 {old} -> {new}".split()
    start = lines.index("not as it was:")
    assert "  scripts: script.sh is new" in lines[start:]
    at = lines.index("the first file that differs: /etc/told")
    assert lines[at + 1 :] == ["  | before: not there", "  | now: file 0644 0:0, 4 bytes"]
    assert_clean(shared)


# ---- what cannot be made again


def fail(project: Project, content: dict[str, Any], name: str) -> tuple[int, str]:
    file = write_manifest(project.folder / name, content)
    done = project.run("reproduce", str(file))
    assert_clean(project)
    return done.status, project.masked(done.error)


def test_another_definition(shared: Project, hello: Hello) -> None:
    content = json.loads(json.dumps(hello.manifest))
    content["inputs"]["definition"] = {"digest": "0" * 64, "commit": None, "dirty": None}
    start = (
        "error: images/hello-phantom/appliance.yaml: the definition is not the one{} that "
        "hello-phantom/HEX was made from\n"
    )
    assert fail(shared, content, "no commit") == (
        86,
        start.format("") + "  do: take the definition that the build was made from\n",
    )
    content["inputs"]["definition"].update(commit="ab" * 20, dirty=False)
    assert fail(shared, content, "commit") == (
        86,
        start.format(" of commit HEX")
        + "  do: `git checkout HEX`, and run the same command there\n",
    )


def test_no_site_of_the_manifest_is_known(shared: Project, hello: Hello) -> None:
    content = json.loads(json.dumps(hello.manifest))
    for image in content["images"]:
        image["site"] = "elsewhere"
    assert fail(shared, content, "elsewhere") == (
        86,
        "error: none of the sites of hello-phantom/HEX is known here: elsewhere\n"
        "  do: let --sites name the file that describes them\n",
    )


def test_packages_that_are_gone(shared: Project, hello: Hello) -> None:
    content = json.loads(json.dumps(hello.manifest))
    first, second, *_ = content["inputs"]["packages"]
    first["version"] = "0.0.1-1"
    status, error = fail(shared, content, "gone")
    assert status == 12
    assert f"the archive has no more {first['name']} 0.0.1-1\n" in error
    assert error.endswith(
        "  do: set PHANTOM_SNAPSHOT_MIRROR to a snapshot of the archive of the time of the build\n"
    )
    first["version"] = hello.manifest["inputs"]["packages"][0]["version"]
    second["sha256"] = "0" * 64
    status, error = fail(shared, content, "other bytes")
    assert status == 12
    assert f"has other packages in place of {second['name']} {second['version']}\n" in error


def test_elements_of_another_commit(shared: Project, hello: Hello) -> None:
    content = json.loads(json.dumps(hello.manifest))
    element = content["inputs"]["elements"][0]
    element["digest"] = "0" * 64
    assert fail(shared, content, "elements") == (
        86,
        "error: elements are not those that hello-phantom/HEX was "
        f"made from: {element['name']}\n"
        "  do: take the commit of the elements that the build was made from\n",
    )


@pytest.mark.parametrize("name", ["PHANTOM_SNAPSHOT_MIRROR", "PHANTOM_SNAPSHOT_SECURITY_MIRROR"])
def test_a_snapshot_that_cannot_be_reached(shared: Project, hello: Hello, name: str) -> None:
    """It is asked, and not the mirror of today."""
    file = write_manifest(shared.folder / "snapshot", hello.manifest)
    done = shared.run("reproduce", str(file), **{name: "http://127.0.0.1:9/old"})
    assert done.status == 13
    assert "http://127.0.0.1:9/old" in done.error
    assert_clean(shared)
