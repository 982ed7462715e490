"""The output of commands, for people and for programs: plan, manifest, list, show, schema."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cli_runs import REPOSITORY, Hello, Project, list_tree

from pipeline.model import format_size

SHA256 = r"[0-9a-f]{64}"


def test_summary_of_a_build(hello: Hello) -> None:
    summary = hello.summary
    assert list(summary) == [
        *("appliance", "build", "manifest", "stages", "images", "publications", "identities"),
        "checks",
    ]
    assert summary["checks"] == {"findings": [], "waived": []}
    assert [stage["stage"] for stage in summary["stages"]] == [
        "packages",
        "root",
        "disk mbr",
        "image mbr raw gzip",
        "hash mbr",
        "inventory",
        "gate",
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
        "sbom",
        "provenance",
        "checks",
        "images",
        "publications",
        "phantom",
        "launch_templates",
    ]
    assert manifest["schema"] == 5
    assert manifest["appliance"] == {
        "name": "hello-phantom",
        "version": definition["version"],
        "summary": definition["summary"],
        "build": hello.summary["build"],
        "labels": definition["labels"],
    }
    assert re.fullmatch("[0-9a-f]{12}", manifest["appliance"]["build"])

    inputs = manifest["inputs"]
    assert list(inputs) == [
        "definition",
        "customizations",
        "source",
        "repeatable",
        "archive",
        "packages",
        "pinned_packages",
        "left_out_packages",
        "elements",
    ]
    assert list(inputs["definition"]) == ["digest", "commit", "dirty"]
    assert re.fullmatch(SHA256, inputs["definition"]["digest"])
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
        assert list(element)[:2] == ["name", "digest"]
        ours = element["name"].startswith("phantom-")
        assert ("commit" in element, "dirty" in element) == (ours, ours)
        assert re.fullmatch(SHA256, element["digest"])

    assert list(manifest["root_filesystem"]) == ["sha256", "identities"]
    assert manifest["root_filesystem"]["identities"] == {"made_at_boot": [], "shared": []}
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
    assert {"ECDSA", "ED25519"} <= {*check["ssh_host_keys"]}  # RSA may come later
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
        "sandbox": True,
        "launch_configuration": {
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
        },
        "auto_scaling": {
            "nimbus-sandbox": {
                "LaunchConfigurationName": "hello-phantom@nimbus-sandbox",
                "ImageId": image["file"],
                "InstanceType": "m1.small",
                "UserData": user_data,
            }
        },
    }
    assert manifest["launch_templates"] == []


def test_manifest_tells_nothing_of_its_host(hello: Hello) -> None:
    """The manifest has no path, and no time but that of publication."""
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
    """The second run makes nothing, sends nothing, and does not change the manifest."""
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
    assert done.seconds < hello.done.seconds / 5  # `make bench` measures it


# ---- plan


def plan(project: Project, appliance: str, **env: str) -> dict[str, tuple[str, list[str]]]:
    """Action and reasons of each stage; the plan must not write anything."""
    folders = (project.folder / "images", project.build, project.store)
    before = [list_tree(folder) for folder in folders]
    told = project.succeed("plan", appliance, "--json", **env).json
    for folder, lines in zip(folders, before, strict=True):
        assert list_tree(folder) == lines
    assert list(told) == ["appliance", "base_image", "stages", "publications", "warnings"]
    assert told["base_image"] is None
    for stage in told["stages"]:
        assert list(stage) == ["stage", "key", "action", "reasons"]
        assert re.fullmatch(SHA256, stage["key"])
    return {stage["stage"]: (stage["action"], stage["reasons"]) for stage in told["stages"]}


@pytest.fixture
def variant(shared: Project) -> Project:
    """A project in which the appliance `variant`, equal to hello-phantom, is built."""
    shared.define("variant")
    shared.succeed("build", "variant")
    return shared


def test_plan_reuses_a_finished_build(variant: Project) -> None:
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
    assert steps["disk mbr"] == ("build", ["size 2 GiB -> 3 GiB"])
    action, (reason,) = steps["image mbr raw gzip"]
    assert action == "build"
    assert re.fullmatch(r"its input disk mbr changed \([0-9a-f]{12} -> [0-9a-f]{12}\)", reason)


def test_plan_tells_a_changed_package_list(variant: Project) -> None:
    variant.define("variant", "packages: [less]\n")
    action, reasons = plan(variant, "variant")["packages"]
    assert action == "build"
    assert re.fullmatch(r"package less [0-9][^ ]* is new", reasons[0])


def test_plan_tells_a_changed_element(shared: Project) -> None:
    """A file changes in a copy of an element of ours, which ELEMENTS_PATH names first."""
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
        "element phantom-grow-root changed (HEX -> HEX)"
    ]


def test_plan_for_people(variant: Project) -> None:
    variant.define("variant", "disk_size: 3GiB\n")
    done = variant.succeed("plan", "variant")
    assert done.out == (
        "packages                  reuse\n"
        "root                      reuse\n"
        "disk mbr                  build: size 2 GiB -> 3 GiB\n"
        "image mbr raw gzip        build: its input disk mbr changed\n"
        "hash mbr                  build: its input disk mbr changed\n"
        "inventory                 reuse\n"
        "gate                      reuse\n"
        "drivers nimbus-sandbox    reuse\n"
        "boot nimbus-sandbox bios  build: its input image mbr raw gzip changed\n"
        "\n"
        "publish nimbus-sandbox  variant-1.0-<build>.gz  send: not built yet\n"
        f"{'':48}a sandbox: a local server that the command starts\n"
    )
    assert done.err == ""
    told = re.sub("[0-9a-f]{12}", "HEX", variant.succeed("plan", "variant", "-v").out)
    assert told.startswith("packages                  HEX  reuse\n")
    assert (
        "\nhash mbr                  HEX  build: its input disk mbr changed (HEX -> HEX)\n" in told
    )


# ---- list, show, schema


def test_list_and_show(hello: Hello) -> None:
    project, build = hello.project, hello.summary["build"]
    written = datetime.fromtimestamp(Path(hello.summary["manifest"]).stat().st_mtime, UTC)
    size = hello.manifest["images"][0]["bytes"]
    assert project.succeed("list", "--json").json == [
        {
            "appliance": "hello-phantom",
            "version": "1.0",
            "build": build,
            "date": f"{written:%Y-%m-%dT%H:%M:%SZ}",
            "bytes": size,
            "latest": True,
            "sites": ["nimbus-sandbox"],
        }
    ]
    assert re.sub(" +", " ", project.succeed("list", TZ="UTC").out) == (
        "appliance version build date size latest sites\n"
        f"hello-phantom 1.0 {build} {written:%Y-%m-%d %H:%M} {format_size(size)} * nimbus-sandbox\n"
    )
    assert project.succeed("show", "--json").json == hello.manifest
    assert project.succeed("show", "--of", build, "--json").json == hello.manifest
    shown = project.succeed("show").out
    assert shown.startswith(f"hello-phantom 1.0, build {build}\n")
    assert hello.manifest["images"][0]["sha256"] in shown
    for name in (hello.manifest["images"][0]["file"], "manifest.json"):
        assert f"  build/hello-phantom/{build}/{name}\n" in shown


def test_list_has_the_newest_first(hello: Hello, project: Project) -> None:
    days = {"0" * 12: 2, "1" * 12: 3, "2" * 12: 1}
    for build, day in days.items():
        text = json.dumps(hello.manifest).replace(hello.summary["build"], build)
        path = project.write(f"build/web/{build}/manifest.json", text)
        os.utime(path, (86400 * day, 86400 * day))
    told = project.succeed("list", "--json").json
    assert [row["build"] for row in told] == ["1" * 12, "0" * 12, "2" * 12]
    assert [row["date"][:10] for row in told] == ["1970-01-04", "1970-01-03", "1970-01-02"]


def strict(schema: Any) -> Any:
    """A schema that takes no key but those that it describes, so that none is forgotten in it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {**closed, **{key: strict(value) for key, value in schema.items()}}


def test_outputs_are_as_their_schemas_say(hello: Hello) -> None:
    outputs = {
        "manifest": [hello.manifest],
        "plan": [hello.project.succeed("plan", "--json").json],
        "image": [hello.summary],
        "part": [hello.project.succeed("build", "--no-boot", "--json").json],
        "list": [
            hello.project.succeed("list", "--json").json,
            hello.project.succeed("list", "--site", "nimbus-sandbox", "--json").json,
        ],
    }
    for name, values in outputs.items():
        schema = hello.project.succeed("schema", name).json
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        for value in values:
            assert value
            jsonschema.validate(value, schema)
            jsonschema.validate(value, strict(schema))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"appliance": 1}, schema)


def test_list_without_builds(project: Project) -> None:
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
