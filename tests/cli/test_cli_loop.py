"""The commands of a working day: a new definition, some stages of a build, and their logs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from cli_runs import Hello, Project, assert_clean
from test_cli_escapes import make_manifest

from pipeline import __version__, records

BUILD = "0123456789ab"
KEYS = {"root": "a" * 64, "boot hotel bios": "b" * 64, "hash": "c" * 64}


@pytest.mark.parametrize("words", [[], ["--from", "hello-phantom"]], ids=["copy", "extends"])
def test_a_new_definition_can_be_planned_at_once(project: Project, words: list[str]) -> None:
    written = project.succeed("new", "web", *words, "--json").json
    folder = project.folder / "images/web"
    files = sorted(f"images/web/{file.name}" for file in folder.iterdir())
    assert written == {"appliance": "web", "files": [*files, "images/appliance.schema.json"]}
    assert ("images/web/check.sh" in files) is (not words)

    text = (folder / "appliance.yaml").read_text()
    editor, _, _ = text.partition("\n")
    assert editor == "# yaml-language-server: $schema=../appliance.schema.json"
    schema = json.loads((folder / editor.partition("$schema=")[2]).read_text())
    assert schema == project.succeed("schema").json
    if not words:  # with `extends`, what is needed may be inherited
        jsonschema.validate(yaml.safe_load(text), schema)

    stages = project.succeed("plan", "web", "--json").json["stages"]
    assert [stage["stage"] for stage in stages][:3] == ["packages", "root", "disk mbr"]
    assert_clean(project)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["hello-base"],
            "error: images/hello-base is there already\n"
            "  do: choose another name, or remove it first\n",
        ),
        (
            ["../up"],
            "error: '../up' cannot be an appliance's name\n"
            "  do: choose at most 64 small letters, digits, dots and hyphens; the first is a "
            "letter or a digit\n",
        ),
        (
            ["sites"],
            "error: no appliance can be called 'sites': the folder of builds has something else "
            "there\n"
            "  do: choose another name\n",
        ),
        (
            ["web", "--from", "hello-fantom"],
            "error: there is no appliance 'hello-fantom' in images; did you mean 'hello-phantom'?\n"
            "  do: choose one of: debian-cloud-base, hello-base, hello-phantom, ubuntu-base\n",
        ),
    ],
)
def test_names_that_no_new_definition_can_have(
    project: Project, words: list[str], error: str
) -> None:
    before = sorted((project.folder / "images").rglob("*"))
    done = project.run("new", *words)
    assert (done.status, done.err) == (24, error)
    assert sorted((project.folder / "images").rglob("*")) == before


def test_what_cannot_be_asked_for(project: Project) -> None:
    choice = (
        "  do: choose one of: packages, root, disk, image, hash, inventory, gate, drivers, boot\n"
    )
    for words, status, error in (
        (
            ["build", "--stop-after", "rot"],
            24,
            "error: hello-phantom has no stage 'rot'; did you mean 'root'?\n" + choice,
        ),
        (
            ["logs", "hello-phantom", "nope"],
            24,
            "error: hello-phantom has no stage 'nope'\n" + choice,
        ),
        (
            ["logs", "hello-phantom", "root"],
            24,
            "error: stage root of hello-phantom has no log: it has not run, or does not write one\n"
            "  do: `phantom-image logs hello-phantom` lists those that there are\n",
        ),
        (
            ["logs", "--follow"],
            24,
            "error: --follow needs a stage\n  do: name the appliance and one of its stages\n",
        ),
        (
            ["shell", "hello-phantom", "--", "true"],
            24,
            "error: hello-phantom has no build yet\n"
            "  do: build it: `phantom-image build hello-phantom`; `--as-defined` takes what a "
            "failed build has made\n",
        ),
        (
            ["shell", "hello-phantom", "--as-defined", "--", "true"],
            24,
            "error: hello-phantom is not built as it is defined now\n"
            "  do: build it: `phantom-image build hello-phantom`\n",
        ),
        (
            ["shell", "hello-fantom", "--", "true"],
            24,
            "error: there is no appliance 'hello-fantom' in images; did you mean "
            "'hello-phantom'?\n"
            "  do: choose one of: debian-cloud-base, hello-base, hello-phantom, ubuntu-base\n",
        ),
        (
            ["shell"],
            24,
            "error: a shell needs a terminal as standard input and output\n"
            "  do: run it in a terminal, as by `ssh -t`; without one, name a command: "
            "`phantom-image shell hello-phantom -- COMMAND`\n",
        ),
        (
            ["check"],
            24,
            "error: no machine of hello-phantom is running\n"
            "  do: start one in another terminal: `phantom-image boot hello-phantom`\n",
        ),
    ):
        done = project.run(*words)
        assert (done.status, done.err) == (status, error)
    done = project.run("build", "--stop-after", "root", "--no-boot")
    assert done.status == 2
    assert "argument --no-boot: not allowed with argument --stop-after" in done.err
    assert project.artifacts() == []
    assert_clean(project)


def remember_build(project: Project, appliance: str) -> Path:
    """Writes what a build leaves of its stages; returns the folder of logs, which has two."""
    folder = project.build / appliance / BUILD
    folder.mkdir(parents=True)
    told = make_manifest()
    told["appliance"]["name"] = appliance
    (folder / "manifest.json").write_text(json.dumps(told))
    stages = {
        title: {"key": key, "revision": 1, "fields": {}, "inputs": {}}
        for title, key in KEYS.items()
    }
    (folder / "stages.json").write_text(json.dumps(records.seal({"stages": stages})))
    logs = project.store / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for title in ("root", "boot hotel bios"):
        name = title.partition(" ")[0]
        (logs / f"{name}-{KEYS[title][:16]}.log").write_text(f"the log of {title}\n")
    return logs


def test_logs_of_a_build(project: Project) -> None:
    logs = remember_build(project, "web")
    for word in (f"web/{BUILD}", "web/latest", BUILD):
        listed = project.succeed("logs", word, "--json").json
        assert {each["stage"] for each in listed} == {"root", "boot hotel bios"}
        assert {Path(each["log"]).parent for each in listed} == {logs}
        assert project.succeed("logs", word, "boot").out == "the log of boot hotel bios\n"
        assert project.succeed("logs", word, "boot hotel bios").out.startswith("the log of boot")

    todo = "  do: `phantom-image list` lists the builds\n"
    remember_build(project, "again")
    (project.build / "again" / BUILD / "stages.json").unlink()
    for words, error in (
        (["ffffffffffff"], f"error: there is no build 'ffffffffffff'\n{todo}"),
        (["other/latest"], f"error: there is no build 'other/latest'\n{todo}"),
        (
            [BUILD],
            f"error: several appliances have a build {BUILD}\n"
            f"  do: choose one of: again/{BUILD}, web/{BUILD}\n",
        ),
        (
            [f"again/{BUILD}"],
            f"error: nothing is known of the stages that made again/{BUILD}\n"
            "  do: build it again; `phantom-image logs again` lists the logs of again as it is "
            "defined now\n",
        ),
        (
            [f"web/{BUILD}", "rot"],
            f"error: web/{BUILD} has no stage 'rot'; did you mean 'root'?\n"
            "  do: choose one of: root, boot, hash\n",
        ),
        (
            [f"web/{BUILD}", "hash"],
            f"error: stage hash of web/{BUILD} has no log: it has not run, or does not write one\n"
            f"  do: `phantom-image logs web/{BUILD}` lists those that there are\n",
        ),
    ):
        done = project.run("logs", *words)
        assert (done.status, done.err) == (24, error)


def test_a_log_is_followed_while_it_grows(project: Project) -> None:
    """Also when the stage runs again, which begins another log."""
    log = remember_build(project, "web") / f"root-{KEYS['root'][:16]}.log"
    follower = project.start("logs", "web/latest", "root", "--follow")
    follower.wait_until(lambda: follower.out == "the log of root\n", "the first line", 60)
    with log.open("a") as file:
        file.write("half a li")
        file.flush()
        time.sleep(0.7)  # long enough for the reader to come by
        file.write("ne\nanother\n")
    follower.wait_until(lambda: follower.out.endswith("half a line\nanother\n"), "more lines", 60)
    log.unlink()
    log.write_text("the second run\n")
    follower.wait_until(lambda: follower.out.endswith("the second run\n"), "the second run", 60)
    done = follower.interrupt(group=True)
    assert done.status == 130
    assert done.out == "the log of root\nhalf a line\nanother\nthe second run\n"


@pytest.mark.parametrize("word", ["8080", "0:80", "80:65536", "a:b", "80:80:80", "\u0661:80"])
def test_what_is_no_pair_of_ports(project: Project, word: str) -> None:
    done = project.run("boot", "--forward", word)
    assert done.status == 2
    assert done.err.endswith(
        f"argument --forward: {word!r} is no pair of ports from 1 to 65535, such as 8080:80\n"
    )


def test_a_machine_s_disk_is_always_a_snapshot(project: Project) -> None:
    """The word is known from QEMU and libguestfs's programs, and changes nothing."""
    told = [project.run("boot", *words) for words in ([], ["--snapshot"])]
    assert told[0].status == told[1].status == 24
    assert told[0].err == told[1].err
    assert told[0].err.startswith("error: `boot` shows a machine's console, and needs a terminal")


def test_version_names_the_commit(project: Project) -> None:
    told = project.succeed("--version").out
    commit = r"( \(commit [0-9a-f]{12}(, dirty)?\))?"
    assert re.fullmatch(rf"phantom-image {re.escape(__version__)}{commit}\n", told)


@pytest.mark.slow
def test_a_build_that_stops_early_leaves_its_stages(shared: Project, hello: Hello) -> None:
    part = shared.succeed("build", "--stop-after", "disk", "--json").json
    assert part["stages"] == [{"stage": "disk mbr", "reused": True, "seconds": 0.0}]
    (end,) = part["artifacts"]
    assert end["files"] == [str(hello.artifact("disk") / "disk.raw")]
    done = shared.succeed("build", "--no-boot")
    assert done.out.startswith("hello-phantom, built without booting\n")
    assert "boot nimbus-sandbox" not in done.out
    assert str(hello.artifact("image") / "image.raw.gz") in done.out
    assert not shared.build.exists(), "there is no manifest"


@pytest.mark.slow
def test_logs_are_listed_and_printed(shared: Project, hello: Hello) -> None:
    logs = shared.succeed("logs", "hello-phantom", "--json").json
    assert {"packages", "root", "boot nimbus-sandbox bios"} <= {each["stage"] for each in logs}
    times = [each["time"] for each in logs]
    assert times == sorted(times, reverse=True)
    assert {each["log"] for each in logs} <= {
        each["log"] for each in shared.succeed("logs", "--json").json
    }
    stages = json.loads((hello.project.built("hello-phantom") / "stages.json").read_text())[
        "stages"
    ]
    assert set(stages) >= {each["stage"] for each in logs}
    of_build = hello.project.succeed("logs", hello.summary["build"], "--json").json
    assert [each["log"] for each in of_build] == [each["log"] for each in logs]
    printed = shared.succeed("logs", "hello-phantom", "boot").out
    assert "Linux version" in printed
    assert "\x1b" not in printed
