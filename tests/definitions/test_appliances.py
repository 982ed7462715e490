"""Valid definitions: the appliances that they give, how they merge, and the values' positions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml
from definition_texts import HEAD, Load, Write

from pipeline.clouds import clouds
from pipeline.definitions.appliance import appliance_schema, list_appliances, load_appliance
from pipeline.definitions.yaml import read_yaml
from pipeline.file_copies import FileCopy
from pipeline.model import (
    GIB,
    MIB,
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    BootCheckPolicy,
    CloudOverride,
    PhantomPolicy,
    ScratchSource,
    Sha256,
)

REPOSITORY = Path(__file__).parents[2]


def test_the_least_definition_has_every_default(root: Path, load: Load) -> None:
    assert load(HEAD) == Appliance(
        name="web",
        version="1.0",
        summary="A web server",
        source=ScratchSource(element="phantom-debian", release="bookworm", architecture="amd64"),
        definition=root / "images/web/appliance.yaml",
    )


def test_everything_that_can_be_said_of_a_base_image(root: Path, load: Load) -> None:
    digest = "ab" * 32
    appliance = load(
        HEAD
        + f"""
source:
  base_image:
    location: ../base.vhd.xz
    sha256: {digest}
    format: vhd
    network: true
    remove_packages: [snapd]
    script_seconds: 60
user_data: {{runner: fetcher}}
disk_size: 3GiB
"""
    )
    assert appliance.source == BaseImageSource(
        location=root / "images/base.vhd.xz",
        sha256=Sha256(digest),
        format="vpc",
        network=True,
        remove_packages=("snapd",),
        script_seconds=60,
    )
    assert appliance.user_data_runner == "fetcher"


def test_a_base_image_may_be_another_appliances_build(write: Write, load: Load) -> None:
    write("images/hello/appliance.yaml", HEAD)
    text = "source: {base_image: {location: {appliance: hello}}}\ndisk_size: 2GiB\n"
    assert load(HEAD + text).source == BaseImageSource(location=ApplianceBuild(name="hello"))


def test_a_digest_is_not_inherited_by_another_location(write: Write, load: Load) -> None:
    write(
        "images/parent/appliance.yaml",
        "name: parent\nversion: '1'\nsummary: s\ndisk_size: 2GiB\n"
        f"source: {{base_image: {{location: a.img, sha256: '{'ab' * 32}', network: true}}}}\n",
    )
    child = load(HEAD + "extends: parent\nsource: {base_image: {location: b.img}}\n")
    assert isinstance(child.source, BaseImageSource)
    assert (child.source.sha256, child.source.network) == (None, True)


def test_everything_that_a_definition_can_say(root: Path, write: Write, load: Load) -> None:
    web = root / "images/web"
    write("images/web/check.sh", "#!/bin/sh\n")
    write("images/web/user-data.sh", "#!/bin/sh\n" + "#" * 1014)
    write("images/web/tree/etc/motd", "hello\n")
    write("images/web/tree/usr/bin/hello", "#!/bin/sh\n").chmod(0o700)
    appliance = load(
        HEAD
        + """
source: {scratch: {release: trixie}}
elements: [phantom-user-data]
packages: [nginx-light, g++]
files:
  - {from: tree/, to: /}
  - {from: check.sh, to: /opt/check, mode: "4755"}
scripts: [check.sh]
disk_size: 512 MiB
user_data: {frequency: instance}
login: {user: ops}
kernel: cloud
clouds:
  ec2: {disk_size: 8GiB}
  nimbus: {image_name: "{name}-{build}"}
boot_check: {script: check.sh, seconds: 600}
phantom:
  instance_type: {nimbus: m1.small, ec2: t2.micro}
  max_vms: 20
  rank: 2
  user_data: user-data.sh
labels: {os: debian, "on": "yes"}
"""
    )
    assert appliance == Appliance(
        name="web",
        version="1.0",
        summary="A web server",
        source=ScratchSource(element="phantom-debian", release="trixie", architecture="amd64"),
        elements=("phantom-user-data",),
        packages=("nginx-light", "g++"),
        files=(
            FileCopy(source=web / "tree/etc/motd", target=PurePosixPath("/etc/motd"), mode=0o644),
            FileCopy(
                source=web / "tree/usr/bin/hello",
                target=PurePosixPath("/usr/bin/hello"),
                mode=0o755,
            ),
            FileCopy(source=web / "check.sh", target=PurePosixPath("/opt/check"), mode=0o4755),
        ),
        scripts=(web / "check.sh",),
        disk_size=512 * MIB,
        kernel="cloud",
        user_data_frequency="instance",
        login_user="ops",
        clouds={
            "ec2": CloudOverride(disk_size=8 * GIB),
            "nimbus": CloudOverride(image_name="{name}-{build}"),
        },
        boot_check=BootCheckPolicy(script=web / "check.sh", seconds=600),
        phantom=PhantomPolicy(
            instance_type={"nimbus": "m1.small", "ec2": "t2.micro"},
            max_vms=20,
            rank=2,
            user_data=web / "user-data.sh",
        ),
        labels={"os": "debian", "on": "yes"},
        definition=web / "appliance.yaml",
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("20 GB", 20 * 10**9),
        ("1TB", 10**12),
        ("512MB", 512 * 10**6),
        ("700MB", 700 * 10**6 - 256),  # whole sectors
        ("2GiB", 2 * GIB),
    ],
)
def test_sizes_in_units_of_1000_and_of_1024(load: Load, text: str, size: int) -> None:
    appliance = load(HEAD + f"disk_size: {text}\nclouds: {{ec2: {{disk_size: {text}}}}}\n")
    assert appliance.disk_size == appliance.disk_size_on("ec2") == size


def test_a_definition_is_found_by_name_file_and_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("images/web/appliance.yaml", HEAD)
    by_name = load_appliance("web", Path("images"), clouds=["nimbus"])
    for other in ("images/web", "images/web/", "images/web/appliance.yaml", file, file.parent):
        assert load_appliance(other, Path("nowhere"), clouds=["nimbus"]) == by_name
    monkeypatch.chdir(file.parent)
    assert load_appliance("appliance.yaml", Path("."), clouds=["nimbus"]) == by_name


def test_only_a_file_called_appliance_is_bound_to_its_folder(write: Write) -> None:
    write("images/web/variant.yaml", HEAD.replace("web", "variant", 1))
    appliance = load_appliance("images/web/variant.yaml", Path("images"), clouds=["nimbus"])
    assert appliance.name == "variant"


def test_appliances_are_listed_by_name(write: Write, root: Path) -> None:
    write("images/web/appliance.yaml", HEAD)
    write("images/mail/appliance.yaml", "")
    write("images/void/README.md", "")
    assert list_appliances(root / "images") == ("mail", "web")
    assert list_appliances(root / "none") == ()


PARENT = """
name: base
version: "7"
summary: What others extend
source: {scratch: {release: trixie}}
packages: [vim, rsync, git]
files:
  - {from: motd, to: /etc/motd}
  - {from: issue, to: /etc/issue}
scripts: [setup.sh]
disk_size: 4GiB
kernel: cloud
phantom:
  instance_type: {nimbus: m1.small}
  rank: 3
labels: {os: debian, team: a}
"""

CHILD = """
extends: base
packages: [nginx, vim, git=1:2.39]
files: [{from: motd, to: /etc/motd}]
scripts: [setup.sh]
disk_size: 2GiB
phantom:
  instance_type: {ec2: t2.micro}
labels: {team: b}
"""


def write_parent(write: Write) -> None:
    write("images/base/appliance.yaml", PARENT)
    for folder in ("base", "web"):
        for name in ("motd", "issue", "setup.sh"):
            write(f"images/{folder}/{name}", "#!/bin/sh\n")


def test_a_child_is_merged_into_its_parent(root: Path, write: Write, load: Load) -> None:
    write_parent(write)
    base, web = root / "images/base", root / "images/web"
    assert load(HEAD + CHILD) == Appliance(
        name="web",
        version="1.0",
        summary="A web server",
        source=ScratchSource(element="phantom-debian", release="trixie", architecture="amd64"),
        packages=("vim", "rsync", "nginx", "git=1:2.39"),
        files=(
            FileCopy(source=base / "issue", target=PurePosixPath("/etc/issue")),
            FileCopy(source=web / "motd", target=PurePosixPath("/etc/motd")),
        ),
        scripts=(base / "setup.sh", web / "setup.sh"),
        disk_size=2 * GIB,
        kernel="cloud",
        phantom=PhantomPolicy(
            instance_type={"nimbus": "m1.small", "ec2": "t2.micro"}, max_vms=-1, rank=3
        ),
        labels={"os": "debian", "team": "b"},
        definition=web / "appliance.yaml",
    )


def test_a_chain_of_parts_by_relative_path(write: Write, load: Load) -> None:
    write("common/a/first.yaml", "packages: [aa]\nkernel: cloud\n")
    write("common/second.yaml", "extends: a/first.yaml\npackages: [bb]\nkernel: generic\n")
    appliance = load(HEAD + "extends: ../../common/second.yaml\npackages: [cc]\n")
    assert (appliance.packages, appliance.kernel) == (("aa", "bb", "cc"), "generic")


def test_positions_of_values(load: Load) -> None:
    appliance = load(
        "# a comment\n"
        + HEAD
        + "elements:   # another\n"
        + "  - one\n\n"
        + "  # and one more\n"
        + '  - "two"\n'
        + "packages: [g++, vim,\n   rsync]\n"
        + "labels: {\u0061: \u00e9, b: c}\n"
        + "clouds: {ec2: {\n"
        + "  disk_size: 8GiB}}\n"
    )
    file, find = "images/web/appliance.yaml", appliance.positions.find
    assert find("name") == f"{file}:2:7"
    assert find("elements", 0) == f"{file}:6:5"
    assert find("elements", "two") == f"{file}:9:5"
    assert find("packages", 2) == f"{file}:11:4"
    assert find("packages", "rsync") == f"{file}:11:4"
    assert find("labels", "b") == f"{file}:12:19"
    assert find("clouds", "ec2", "disk_size") == f"{file}:14:14"
    assert find("elements", "three") == file
    assert find("elements", 2) == file
    assert find("labels", "a", "x") == file
    assert find() == f"{file}:2:1"


def test_positions_of_keys(write: Write) -> None:
    file = read_yaml(write("images/web/appliance.yaml", "a:\n  second: {b: c,   d: e}\n"))
    assert file.where(("a", "second", "d"), key=True) == "images/web/appliance.yaml:2:20"
    assert file.where(("a", "second", "x"), key=True) == "images/web/appliance.yaml:2:11"


def test_positions_of_inherited_values(write: Write, load: Load) -> None:
    write_parent(write)
    find = load(HEAD + CHILD).positions.find
    assert find("packages", "nginx") == "images/web/appliance.yaml:6:12"
    assert find("packages", "rsync") == "images/base/appliance.yaml:6:17"
    assert find("packages", "vim") == "images/web/appliance.yaml:6:19"
    assert find("packages", 0) == "images/web/appliance.yaml:6:12"
    assert find("kernel") == "images/base/appliance.yaml:12:9"
    assert find("boot_check") == "images/web/appliance.yaml"
    assert find() == "images/web/appliance.yaml:1:1"


def test_positions_do_not_make_appliances_differ(load: Load) -> None:
    one, other = load(HEAD), load("# a comment\n" + HEAD)
    assert one.positions != other.positions
    assert one == other


def test_marks_of_anchors_in_quotes_and_in_texts_are_no_anchors(load: Load) -> None:
    appliance = load(HEAD + "labels: {'a': '&x', b: \"*x\", c: x &y, d: \"<<\", e: <<}\n")
    assert appliance.labels == {"a": "&x", "b": "*x", "c": "x &y", "d": "<<", "e": "<<"}


def walk_properties(schema: Any, way: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, below in schema.get("properties", {}).items():
        found += [(f"{way}.{name}", below), *walk_properties(below, f"{way}.{name}")]
    if isinstance(schema.get("items"), dict):
        found += [(f"{way}[]", schema["items"]), *walk_properties(schema["items"], f"{way}[]")]
    return found


@pytest.mark.parametrize(
    ("way", "part"), walk_properties(appliance_schema()), ids=lambda value: str(value)[:30]
)
def test_each_property_is_described_and_its_examples_fit(way: str, part: dict[str, Any]) -> None:
    assert part["description"][0].isupper(), way
    assert part["description"].endswith("."), way
    for example in [*part.get("examples", []), *([part["default"]] if "default" in part else [])]:
        jsonschema.Draft202012Validator(part).validate(example)
    if "properties" not in part and "items" not in part:
        assert part["examples"], way


def test_patterns_are_explained() -> None:
    for way, part in walk_properties(appliance_schema()):
        if "pattern" in part or "anyOf" in part:
            assert part["errorMessage"].startswith("must "), way


def test_the_schema_is_sound_and_takes_what_we_take() -> None:
    schema = appliance_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    for file in (REPOSITORY / "images").glob("*/appliance.yaml"):
        jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize("name", list_appliances(REPOSITORY / "images"))
def test_our_appliances_are_sound(name: str) -> None:
    appliance = load_appliance(name, REPOSITORY / "images")
    assert set(appliance.phantom.instance_type) == set(clouds())


def test_values_of_the_example_definition() -> None:
    appliance = load_appliance("hello-phantom", REPOSITORY / "images")
    folder = REPOSITORY / "images/hello-phantom"
    assert isinstance(appliance.source, ScratchSource)
    assert appliance.source.release == "bookworm"
    assert appliance.elements == ("phantom-user-data", "phantom-grow-root")
    assert appliance.disk_size == 2 * GIB
    assert appliance.boot_check.script == folder / "check.sh"
    assert appliance.phantom.user_data == folder / "user-data.sh"


def test_the_yaml_in_the_readme_of_the_example_is_sound(write: Write) -> None:
    readme = (REPOSITORY / "images/hello-phantom/README.md").read_text()
    lines = readme.split("    # images/my-appliance/appliance.yaml\n")[1].split("\n\n")[0]
    text = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    path = write("images/my-appliance/appliance.yaml", text)
    write("images/my-appliance/index.html", "hello\n")
    (path.parents[1] / "hello-phantom").symlink_to(REPOSITORY / "images/hello-phantom")
    assert load_appliance("my-appliance", Path("images")).packages[-1] == "nginx-light"


def test_importing_loads_neither_yaml_nor_jsonschema() -> None:
    code = (
        "import sys, pipeline.definitions.appliance, pipeline.definitions.sites\n"
        "print({'yaml', 'jsonschema'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
