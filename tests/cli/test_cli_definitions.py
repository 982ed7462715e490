"""Mistakes in a definition are reported before anything is built or written."""

from __future__ import annotations

import json
import re

import pytest
from cli_runs import Project, assert_clean

ABSENT = (
    "  do: correct the name, or take out the package, in the definition or in the element that "
    "asks for it; for a package of another archive, name that in `repositories`\n"
)


def fail(project: Project, *words: str, status: int, **env: str) -> str:
    """Runs a command that must fail before a stage starts; returns its message."""
    done = project.run(*words, **env)
    assert done.status == status, done.err
    assert done.err == done.error, "nothing else was said"
    assert project.artifacts() == []
    assert not project.build.exists()
    assert_clean(project)
    return project.masked(done.error)


def test_missing_definition(project: Project) -> None:
    assert fail(project, "image", "hello-fantom", status=24) == (
        "error: there is no appliance 'hello-fantom' in images; did you mean 'hello-phantom'?\n"
        "  do: choose one of: debian-cloud-base, hello-base, hello-phantom, ubuntu-base\n"
    )


def test_missing_file(project: Project) -> None:
    assert fail(project, "image", "images/web/appliance.yaml", status=10) == (
        "error: images/web/appliance.yaml: there is no such file\n"
        "  do: choose one of: debian-cloud-base, hello-base, hello-phantom, ubuntu-base\n"
    )


def test_broken_definition(project: Project) -> None:
    project.write(
        "images/web/appliance.yaml",
        "name: web\n"
        "version: 1.10\n"
        "summary: A web server\n"
        "pakages: [nginx-light]\n"
        "kernel: clod\n"
        "disk_size: 2XB\n"
        "scripts: [setup.sh]\n"
        "name: web\n",
    )
    assert fail(project, "image", "web", status=10) == (
        "error: 6 mistakes in images/web/appliance.yaml\n"
        "  | images/web/appliance.yaml:2:10: 'version' must be a string, and YAML reads 1.10 as "
        'the number 1.1; put it in quotes: "1.10"\n'
        "  | images/web/appliance.yaml:4:1: unknown key 'pakages'; did you mean 'packages'?\n"
        "  | images/web/appliance.yaml:5:9: 'kernel' must be one of generic, cloud, auto, not "
        "'clod'; did you mean 'cloud'?\n"
        "  | images/web/appliance.yaml:6:12: 'disk_size' must be a number and MiB, GiB or TiB, "
        "such as 2GiB, not '2XB'\n"
        "  | images/web/appliance.yaml:7:11: 'scripts[0]': there is no 'setup.sh' in images/web\n"
        "  | images/web/appliance.yaml:8:1: 'name' is written twice; the first is on line 1\n"
        "  do: correct them; `phantom-image schema` prints all that a definition can say\n"
    )


def test_definition_that_is_not_yaml(project: Project) -> None:
    project.write("images/web/appliance.yaml", "name: web\n\tversion: 1\n")
    assert fail(project, "image", "web", status=10) == (
        "error: images/web/appliance.yaml:2:1: a tab; YAML wants spaces here\n"
        "  do: correct it; `phantom-image schema` prints all that a definition can say\n"
    )


def test_unknown_element(project: Project) -> None:
    project.define("web", "elements:\n  - phantom-user-dat\n")
    assert fail(project, "image", "web", status=11) == (
        "error: images/web/appliance.yaml:6:5: there is no element 'phantom-user-dat', for which "
        "the definition asks; did you mean 'phantom-user-data'?\n"
        "  do: correct the name, or set ELEMENTS_PATH to the folder that holds the element\n"
    )


def test_unknown_element_that_another_one_needs(project: Project) -> None:
    project.write("elements/web/element-deps", "package-instals\n")
    project.define("web", "elements: [web]\n")
    assert fail(project, "image", "web", status=11, ELEMENTS_PATH="elements") == (
        "error: images/web/appliance.yaml:1:1: there is no element 'package-instals', for which "
        "element web asks; did you mean 'package-installs'?\n"
        "  do: correct the name, or set ELEMENTS_PATH to the folder that holds the element\n"
    )


def test_elements_path_without_folder(project: Project) -> None:
    assert fail(project, "image", status=11, ELEMENTS_PATH="/nonexistent") == (
        "error: ELEMENTS_PATH: there is no folder /nonexistent\n"
        "  do: correct ELEMENTS_PATH; its folders are separated by colons\n"
    )


def test_unknown_package(project: Project) -> None:
    project.define("web", "packages:\n  - nginx-light\n  - nginx-lite\n")
    assert fail(project, "image", "web", status=12) == (
        "error: images/web/appliance.yaml:7:5: bookworm has no package nginx-lite; did you mean "
        f"'nginx-light'?\n{ABSENT}"
    )


def test_unknown_package_of_an_element(project: Project) -> None:
    project.write("elements/web/package-installs.yaml", "nginx-lite:\n")
    project.write("elements/web/element-deps", "package-installs\n")
    project.define("web", "elements: [web]\n")
    assert fail(project, "image", "web", status=12, ELEMENTS_PATH="elements") == (
        "error: element web: bookworm has no package nginx-lite; did you mean 'nginx-light'?\n"
        f"{ABSENT}"
    )


def test_packages_that_exclude_each_other(project: Project) -> None:
    project.define("web", "packages: [exim4-daemon-light, postfix]\n")
    message = fail(project, "image", "web", status=12)
    assert re.sub(r"but \S+ is to be", "but VERSION is to be", message) == (
        "error: images/web/appliance.yaml:5:12: exim4-daemon-light "
        "(images/web/appliance.yaml:5:12) and postfix (images/web/appliance.yaml:5:32) cannot be "
        "installed together\n"
        "  | exim4-config : Conflicts: postfix but VERSION is to be installed\n"
        "  | exim4-daemon-light : Conflicts: mail-transport-agent\n"
        "  | postfix : Conflicts: mail-transport-agent\n"
        "  do: take out one of them\n"
    )


RELEASES = "bullseye, bookworm, trixie, forky, sid"


@pytest.mark.parametrize(
    ("scratch", "column", "what"),
    [
        ("release: buster", 29, f"release 'buster'; it supports {RELEASES}"),
        ("release: noble", 29, f"release 'noble'; it supports {RELEASES}"),
        ("architecture: arm64", 34, "architecture 'arm64'; it supports amd64"),
    ],
)
def test_what_the_operating_system_element_does_not_support(
    project: Project, scratch: str, column: int, what: str
) -> None:
    project.define("web", f"source: {{scratch: {{{scratch}}}}}\n")
    assert fail(project, "image", "web", status=10) == (
        f"error: images/web/appliance.yaml:5:{column}: the operating-system element phantom-debian "
        f"does not support the {what}\n"
        "  do: name one that it supports, or start from a base image (docs/base-images.md)\n"
    )


def test_an_operating_system_element_of_diskimage_builder(project: Project) -> None:
    project.define("web", "source: {scratch: {element: debian-minimal}}\n")
    assert fail(project, "image", "web", status=10) == (
        "error: images/web/appliance.yaml:5:29: the element debian-minimal of diskimage-builder "
        "does not write a root file system as this pipeline needs it\n"
        "  do: name phantom-debian, or an element of your own that does as it does\n"
    )


def test_variables_of_the_environment_have_no_effect(project: Project) -> None:
    project.define("web", "elements: [none]\nenvironment: {DIB_DEV_USER_USERNAME: me}\n")
    variables = {"DIB_DEV_USER_USERNAME": "x", "DIB_OFFLINE": "1", "DIB_DEBUG_TRACE": "1"}
    done = project.run("plan", "web", **variables)
    assert done.status == 11
    assert done.err.removesuffix(done.error) == (
        "warning: DIB_OFFLINE of the environment has no effect; write it into "
        "images/web/appliance.yaml, below `environment:`\n"
    )


def test_disk_that_is_much_too_small(project: Project) -> None:
    project.define("web", "disk_size: 64MiB\n")
    message = fail(project, "image", "web", status=16)
    assert re.sub("about [0-9]+ MiB", "about SIZE", message) == (
        "error: images/web/appliance.yaml:5:12: the disk of 64 MiB is too small: the packages "
        "alone take about SIZE\n"
        "  do: ask for a larger disk_size, or for fewer packages\n"
    )


def test_name_that_nimbus_refuses(project: Project) -> None:
    project.define("web", "clouds:\n  nimbus:\n    image_name: 'web server {version}'\n")
    assert fail(project, "image", "web", status=32) == (
        "error: images/web/appliance.yaml:7:17: Nimbus refuses the image name 'web server 1.0.gz': "
        "it may hold letters, digits, `.`, `_` and `-` only, and starts with a letter or digit\n"
        "  do: change `clouds: nimbus: image_name:` (or name and version) of the appliance\n"
    )


def test_publish_before_build(project: Project) -> None:
    assert fail(project, "publish", status=24) == (
        "error: hello-phantom is not built: packages, root, disk mbr, image mbr raw gzip, "
        "hash mbr, inventory, gate, drivers nimbus-sandbox, boot nimbus-sandbox bios\n"
        "  do: `phantom-image image` builds and publishes; `phantom-image publish --build BUILD` "
        "sends a build that `phantom-image list` shows, as it is\n"
    )


def test_unknown_site_and_cloud(project: Project) -> None:
    assert fail(project, "image", "--site", "nimbus-sandbax", status=24) == (
        "error: there is no site 'nimbus-sandbax'; did you mean 'nimbus-sandbox'?\n"
        "  do: choose one of: nimbus-sandbox, ec2-sandbox\n"
    )
    assert fail(project, "image", "--cloud", "nimbos", status=24) == (
        "error: no site has cloud 'nimbos'; did you mean 'nimbus'?\n  do: choose one of: "
        "nimbus, ec2\n"
    )


def test_boot_needs_one_site(project: Project) -> None:
    project.write(
        "sites.yaml",
        "sites:\n  one: {cloud: nimbus, sandbox: true}\n  two: {cloud: nimbus, sandbox: true}\n",
    )
    assert fail(project, "boot", status=24) == (
        "error: one machine boots at a time; name one of one, two with --site\n"
    )


def test_build_that_is_not_there(project: Project) -> None:
    for words, build in ((), "latest"), (("--of", "0123456789ab"), "HEX"):
        assert fail(project, "show", *words, status=24) == (
            f"error: there is no build '{build}' of 'hello-phantom'\n"
            "  do: `phantom-image list` lists the builds, `phantom-image image` makes one\n"
        )


@pytest.mark.parametrize("words", [["image"], ["plan"], ["publish"], ["show"]])
def test_error_as_json(project: Project, words: list[str]) -> None:
    done = project.run(*words, "nothing", "--json")
    assert done.status == 24
    told = json.loads(done.out)
    assert told["exit_code"] == 24
    assert told["error"] == "UsageError"
    assert told["what"] in done.error
    assert set(told) == {"error", "exit_code", "what", "where", "todo", "detail", "log"}


def test_unknown_words(project: Project) -> None:
    done = project.run("imago")
    assert done.status == 2
    assert done.out == ""


def test_help_is_quick(project: Project) -> None:
    """The command loads none of the heavy libraries; `make bench` measures the time."""
    done = project.succeed("--help", PYTHONPROFILEIMPORTTIME="1")
    assert "build, boot, publish, and write the manifest" in done.out
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.err.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"boto3", "botocore", "guestfs", "jsonschema", "rich", "urllib3", "yaml"}
