"""Which stages an edit of a definition repeats, and what a plan says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.build.explain import describe, explain
from pipeline.build.partial import stages_without_boot
from pipeline.build.plan import Plan, make_plan
from pipeline.definitions.appliance import load_appliance
from pipeline.model import Site
from pipeline.sources.scratch import ScratchRoot
from pipeline.store import Store

SITE = Site(name="nimbus-sandbox", cloud="nimbus", sandbox=True, where="built in")
FROM_ROOT = [
    *("root", "disk mbr", "image mbr raw gzip", "drivers", "boot", "cluster", "hash mbr"),
    *("inventory", "gate"),
]
HEAD = "{name: head, user_data: head.sh, script: pair.sh}"
FILES = {
    "motd": "Hello\n",
    "script.sh": "#!/bin/sh\ntouch /etc/one\n",
    "check.sh": "#!/bin/sh\nexit 0\n",
    "head.sh": "#!/bin/sh\necho @address:head@\n",
    "pair.sh": "#!/bin/sh\nexit 0\n",
    "user-data.sh": "#!/bin/sh\necho hello\n",
}
LINES = (
    "name: web",
    'version: "1.0"',
    "summary: A web server",
    "packages: [less]",
    "files: [{from: motd, to: /etc/motd}]",
    "scripts: [script.sh]",
    "boot_check: {script: check.sh, cluster: {guests: [" + HEAD + "]}}",
    "phantom: {user_data: user-data.sh}",
    "disk_size: 2GiB",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def plan_for(folder: Path, store: Store, lines: Sequence[str], files: Mapping[str, str]) -> Plan:
    definition = folder / "images/web"
    definition.mkdir(parents=True)
    for name, text in files.items():
        (definition / name).write_text(text)
    path = definition / "appliance.yaml"
    path.write_text("".join(f"{line}\n" for line in lines))
    return make_plan(load_appliance(path, folder / "images"), [SITE], store, builds=folder / "out")


@pytest.fixture(scope="module")
def before(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_for(tmp_path_factory.mktemp("before"), store, LINES, FILES)


def changed(before: Plan, now: Plan, store: Store) -> dict[str, list[str]]:
    """The stages that an edit repeats, each with the reasons, by their names and layouts."""
    keys = {stage.title: stage.key for stage in before.stages}
    told = {}
    for step in explain(now, store, describe(before)):
        if step.stage.key != keys[step.stage.title]:
            title = step.stage.title.replace(" nimbus-sandbox", "").replace(" bios", "")
            told[title] = [reason.text for reason in step.reasons]
    return told


@pytest.mark.parametrize(
    ("old", "new", "stages", "reasons"),
    [
        (
            "packages: [less]",
            "packages: [less, tree]",
            ["packages", *FROM_ROOT],
            {"packages": "package tree", "root": "its input packages changed"},
        ),
        (
            "packages: [less]",
            "packages: [less, libc6]",
            FROM_ROOT,
            {"root": "package libc6 is asked for by name"},
        ),
        (
            "files: [{from: motd, to: /etc/motd}]",
            "files: []",
            FROM_ROOT,
            {"root": "files: /etc/motd is gone"},
        ),
        ("scripts: [script.sh]", "scripts: []", FROM_ROOT, {"root": "scripts: script.sh is gone"}),
        (
            "disk_size: 2GiB",
            "disk_size: 3GiB",
            ["disk mbr", "image mbr raw gzip", "boot", "cluster", "hash mbr"],
            {"disk mbr": "size 2 GiB -> 3 GiB"},
        ),
        (
            "boot_check: {script: check.sh, cluster: {guests: [" + HEAD + "]}}",
            "boot_check: {script: check.sh, cluster: {guests: [" + HEAD + ", {name: db}]}}",
            ["cluster"],
            {"cluster": "guests db is new"},
        ),
        ("summary: A web server", "summary: A server", [], {}),
    ],
)
def test_an_edit_repeats_what_depends_on_it(
    tmp_path: Path,
    store: Store,
    before: Plan,
    old: str,
    new: str,
    stages: list[str],
    reasons: dict[str, str],
) -> None:
    lines = [new if line == old else line for line in LINES]
    told = changed(before, plan_for(tmp_path, store, lines, FILES), store)
    assert sorted(told) == sorted(stages)
    for stage, reason in reasons.items():
        (only,) = told[stage]
        assert only.startswith(reason)


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("motd", FROM_ROOT),
        ("script.sh", FROM_ROOT),
        ("check.sh", ["boot"]),
        ("head.sh", ["cluster"]),
        ("pair.sh", ["cluster"]),
        ("user-data.sh", ["boot"]),
    ],
)
def test_an_edited_file_repeats_what_depends_on_it(
    tmp_path: Path, store: Store, before: Plan, file: str, stages: list[str]
) -> None:
    files = {**FILES, file: FILES[file] + "# more\n"}
    told = changed(before, plan_for(tmp_path, store, LINES, files), store)
    assert sorted(told) == sorted(stages)
    where = {
        "motd": "files: /etc/motd",
        "script.sh": "scripts: script.sh",
        "head.sh": "guests head user data",
        "pair.sh": "guests head script",
    }.get(file, file)
    assert told[stages[0]] == [f"{where} changed"]


def test_a_cluster_check_follows_the_boot_check_and_is_left_out_with_it(before: Plan) -> None:
    (target,) = before.targets
    assert target.cluster is not None
    assert target.cluster.after == target.boots
    assert target.cluster in target.leaves
    names = [stage.name for stage in stages_without_boot(before)]
    assert "hash" in names
    assert not {"boot", "cluster"}.intersection(names)


def test_packages_are_shared_by_whoever_has_the_same(
    tmp_path: Path, store: Store, before: Plan
) -> None:
    """Whatever they are asked for by: names, elements, other packages."""
    lines = [line for line in LINES if not line.startswith(("files", "scripts"))]
    lines[0] = "name: web"
    lines += ["kernel: generic", "login: {user: root}", "environment: {COLOUR: blue}"]
    lines[lines.index("packages: [less]")] = "packages: [less, dpkg]"
    other = plan_for(tmp_path, store, lines, FILES)
    roots = (before.source.root, other.source.root)
    assert roots[0].key != roots[1].key
    assert [stage.key for stage in roots[0].inputs] == [stage.key for stage in roots[1].inputs]


def test_who_was_not_asked_for_is_marked(before: Plan) -> None:
    from pipeline.tools import apt_repository

    root = before.source.root
    assert isinstance(root, ScratchRoot)
    text = apt_repository.describe_automatic(root.resolution, root.requested, "amd64")
    stanzas = text.removesuffix("\n\n").split("\n\n")
    assert all(
        stanza.splitlines()[1:] == ["Architecture: amd64", "Auto-Installed: 1"]
        for stanza in stanzas
    )
    marked = [stanza.splitlines()[0].removeprefix("Package: ") for stanza in stanzas]
    assert "libsystemd-shared" in marked  # because of systemd
    assert {"less", "dpkg", "mount", "linux-image-amd64"}.isdisjoint(marked)
    assert marked == sorted(marked)
