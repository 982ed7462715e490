"""What the commands tell, to people and to programs: plan, manifest, list, show, schema."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cli_runs import REPOSITORY, Hello, Project, list_tree

SHA256 = r"[0-9a-f]{64}"


def test_summary_of_a_build(hello: Hello) -> None:
    summary = hello.summary
    assert list(summary) == ["appliance", "build", "manifest", "stages", "images", "publications"]
    assert [stage["stage"] for stage in summary["stages"]] == [
        "root",
        "disk mbr",
        "image mbr raw gzip",
        "hash mbr",
        "drivers nimbus-sandbox",
        "boot nimbus-sandbox bios",
    ]
    assert not any(stage["reused"] for stage in summary["stages"])
    assert summary["manifest"] == str(
        hello.project.build / "hello-phantom" / summary["build"] / "manifest.json"
    )
    assert "\x1b" not in hello.done.out + hello.done.err


def test_manifest(hello: Hello) -> None:
    manifest = hello.manifest
    definition = yaml.safe_load((REPOSITORY / "images/hello-phantom/appliance.yaml").read_text())
    assert list(manifest) == [
        "schema",
        "appliance",
        "inputs",
        "root_filesystem",
        "images",
        "publications",
        "phantom",
        "launch_templates",
    ]
    assert manifest["schema"] == 2
    assert manifest["appliance"] == {
        "name": "hello-phantom",
        "version": definition["version"],
        "summary": definition["summary"],
        "build": hello.summary["build"],
        "labels": definition["labels"],
    }
    assert re.fullmatch("[0-9a-f]{12}", manifest["appliance"]["build"])

    inputs = manifest["inputs"]
    assert list(inputs) == ["source", "packages", "elements"]
    assert inputs["source"] == definition["source"]
    for package in inputs["packages"]:
        assert list(package) == ["name", "version", "architecture", "sha256"]
        assert re.fullmatch(SHA256, package["sha256"])
    names = [package["name"] for package in inputs["packages"]]
    assert names == sorted(names)
    assert {"linux-image-amd64", "openssh-server", "systemd", "curl"} < set(names)
    assert {"phantom-debian", "phantom-user-data", "phantom-grow-root"} < {
        element["name"] for element in inputs["elements"]
    }
    for element in inputs["elements"]:
        assert list(element) == ["name", "digest"]
        assert re.fullmatch(SHA256, element["digest"])

    assert list(manifest["root_filesystem"]) == ["sha256"]
    assert re.fullmatch(SHA256, manifest["root_filesystem"]["sha256"])
    check_image(manifest["images"], hello)
    check_publication(manifest, hello)


def check_image(images: list[dict[str, Any]], hello: Hello) -> None:
    (image,) = images
    build = hello.summary["build"]
    assert list(image) == [
        "site",
        "cloud",
        "file",
        "layout",
        "format",
        "compression",
        "bytes",
        "sha256",
        "disk_bytes",
        "disk_sha256",
        "boot_checks",
    ]
    assert image["file"] == f"hello-phantom-1.0-{build}.gz"
    told = [image[key] for key in ("site", "cloud", "layout", "format", "compression")]
    assert told == ["nimbus-sandbox", "nimbus", "mbr", "raw", "gzip"]
    assert image["disk_bytes"] == 2 << 30
    file = hello.project.build / "hello-phantom" / build / image["file"]
    assert file.stat().st_size == image["bytes"]
    (check,) = image["boot_checks"]
    assert (check["machine"], check["passed"]) == ("bios", True)
    assert check["disk_driver"] == "ata_piix"
    assert check["network_driver"] in ("8139cp", "8139too")
    assert check["fetcher_tries"] >= 1
    assert check["failed_units"] == []
    assert check["ssh_host_keys"] == ["ECDSA", "ED25519", "RSA"]
    assert (check["user_data_status"], check["check_status"]) == (0, 0)


def check_publication(manifest: dict[str, Any], hello: Hello) -> None:
    (publication,) = manifest["publications"]
    image = manifest["images"][0]
    assert list(publication) == [
        "site",
        "cloud",
        "region",
        "image_id",
        "location",
        "sha256",
        "published_at",
        "sandbox",
    ]
    assert publication["region"] is None
    assert publication["image_id"] == image["file"]
    assert publication["sha256"] == image["sha256"]
    assert publication["sandbox"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", publication["published_at"])
    user_data = (REPOSITORY / "images/hello-phantom/user-data.sh").read_text()
    assert manifest["phantom"] == {
        "name": "hello-phantom",
        "cloud_params": {
            "nimbus-sandbox": {
                "image_id": image["file"],
                "instance_type": "m1.small",
                "max_vms": -1,
                "common": False,
                "rank": 1,
            }
        },
        "contextualization_method": "user_data",
        "user_data": user_data,
        "appliance": None,
    }
    assert manifest["launch_templates"] == []


def test_manifest_tells_nothing_of_its_host(hello: Hello) -> None:
    """No path, and no clock time but that of publication."""
    manifest = hello.manifest
    for publication in manifest["publications"]:
        del publication["published_at"]
    text = json.dumps(manifest)
    texts = [str(hello.project.folder), str(hello.store), str(REPOSITORY), str(Path.home())]
    assert not any(each in text for each in texts if each != "/")
    assert not re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", text)


def test_latest_link(hello: Hello) -> None:
    latest = hello.project.build / "hello-phantom" / "latest"
    assert latest.is_symlink()
    assert str(latest.readlink()) == hello.summary["build"]


def test_nothing_changed(hello: Hello) -> None:
    """The second run makes nothing, sends nothing, and leaves the manifest as it is."""
    project = hello.project
    manifest = Path(hello.summary["manifest"])
    objects = project.build / "sites/nimbus-sandbox/objects"
    before, stored = manifest.read_bytes(), list_tree(objects)
    done = project.succeed("image", "--json")
    assert {**done.json, "stages": 0} == {**hello.summary, "stages": 0}
    assert all(stage["reused"] for stage in done.json["stages"])
    assert manifest.read_bytes() == before
    assert list_tree(objects) == stored
    assert "is there already" in done.err
    assert done.seconds < 6  # 2 s are promised, on a host that does nothing else


# ---- plan


def plan(project: Project, appliance: str, **env: str) -> dict[str, tuple[str, list[str]]]:
    """Action and reasons of each stage; the plan must not write anything."""
    folders = (project.folder / "images", project.build, project.store)
    before = [list_tree(folder) for folder in folders]
    told = project.succeed("plan", appliance, "--json", **env).json
    for folder, lines in zip(folders, before, strict=True):
        assert list_tree(folder) == lines
    assert list(told) == ["appliance", "base_image", "stages"]
    assert told["base_image"] is None
    for stage in told["stages"]:
        assert list(stage) == ["stage", "key", "action", "reasons"]
        assert re.fullmatch(SHA256, stage["key"])
    return {stage["stage"]: (stage["action"], stage["reasons"]) for stage in told["stages"]}


@pytest.fixture
def variant(shared: Project) -> Project:
    """A project in which the appliance `variant`, as hello-phantom, is built."""
    shared.define("variant")
    shared.succeed("build", "variant")
    return shared


def test_plan_of_what_is_built(variant: Project) -> None:
    steps = plan(variant, "variant")
    assert all(step == ("reuse", []) for step in steps.values())


def test_plan_on_an_empty_store(project: Project) -> None:
    steps = plan(project, "hello-phantom")
    assert {action for action, _ in steps.values()} == {"build"}
    assert not project.store.exists()
    assert not project.build.exists()


def test_plan_tells_a_changed_disk_size(variant: Project) -> None:
    variant.define("variant", "disk_size: 3GiB\n")
    steps = plan(variant, "variant")
    assert steps["root"] == ("reuse", [])
    assert steps["disk mbr"] == ("build", ["size 2147483648 -> 3221225472"])
    action, (reason,) = steps["image mbr raw gzip"]
    assert action == "build"
    assert re.fullmatch("its input disk mbr changed: [0-9a-f]{12} -> [0-9a-f]{12}", reason)


def test_plan_tells_a_changed_package_list(variant: Project) -> None:
    variant.define("variant", "packages: [less]\n")
    action, reasons = plan(variant, "variant")["root"]
    assert action == "build"
    assert re.fullmatch(r"package less [0-9][^ ]* \([0-9a-f]{8}\) is new", reasons[0])


def test_plan_tells_a_changed_element(shared: Project) -> None:
    """A file of an element changed, in a copy of ours that stands before it in ELEMENTS_PATH."""
    elements = shared.folder / "elements"
    shutil.copytree(REPOSITORY / "elements" / "phantom-grow-root", elements / "phantom-grow-root")
    shared.define("variant")
    path = {"ELEMENTS_PATH": str(elements)}
    shared.succeed("build", "variant", **path)
    grow = elements / "phantom-grow-root/static/usr/lib/phantom/grow-root"
    grow.write_text(grow.read_text() + "# changed\n")
    action, reasons = plan(shared, "variant", **path)["root"]
    assert action == "build"
    assert [re.sub("[0-9a-f]{12}", "HEX", reason) for reason in reasons] == [
        "element phantom-grow-root HEX -> HEX"
    ]


def test_plan_for_people(variant: Project) -> None:
    variant.define("variant", "disk_size: 3GiB\n")
    done = variant.succeed("plan", "variant")
    assert re.sub("[0-9a-f]{12}", "HEX", done.out) == (
        "root                      HEX  reuse\n"
        "disk mbr                  HEX  build: size 2147483648 -> 3221225472\n"
        "image mbr raw gzip        HEX  build: its input disk mbr changed: HEX -> HEX\n"
        "hash mbr                  HEX  build: its input disk mbr changed: HEX -> HEX\n"
        "drivers nimbus-sandbox    HEX  reuse\n"
        "boot nimbus-sandbox bios  HEX  build: its input image mbr raw gzip changed: HEX -> HEX\n"
    )
    assert done.err == ""


# ---- list, show, schema


def test_list_and_show(hello: Hello) -> None:
    project, build = hello.project, hello.summary["build"]
    assert project.succeed("list", "--json").json == [
        {
            "appliance": "hello-phantom",
            "version": "1.0",
            "build": build,
            "latest": True,
            "sites": ["nimbus-sandbox"],
        }
    ]
    assert re.sub(" +", " ", project.succeed("list").out) == (
        f"appliance version build latest sites\nhello-phantom 1.0 {build} * nimbus-sandbox\n"
    )
    assert project.succeed("show", "--json").json == hello.manifest
    assert project.succeed("show", "--of", build, "--json").json == hello.manifest
    shown = project.succeed("show").out
    assert shown.startswith(f"hello-phantom 1.0, build {build}\n")
    assert hello.manifest["images"][0]["sha256"] in shown


def test_list_of_nothing(project: Project) -> None:
    assert project.succeed("list").out == "nothing to list\n"
    assert project.succeed("list", "--json").json == []


def test_schema(project: Project) -> None:
    schema = project.succeed("schema").json
    jsonschema.Draft202012Validator.check_schema(schema)
    definition = yaml.safe_load((REPOSITORY / "images/hello-phantom/appliance.yaml").read_text())
    jsonschema.validate(definition, schema)
    sites = project.succeed("schema", "--sites").json
    jsonschema.Draft202012Validator.check_schema(sites)
    jsonschema.validate(yaml.safe_load((REPOSITORY / "sites.example.yaml").read_text()), sites)
