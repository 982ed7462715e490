"""A shell in the root file system of the last build, here one that has BusyBox and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from cli_runs import Project
from terminals import Terminal

from pipeline import records
from pipeline.model import ContentKey
from pipeline.store import Artifact, Store

KEY = ContentKey("a" * 64)
BEGINS = (
    "unpacking a copy of the root file system of hello-phantom; what is changed there is thrown "
    "away at the end of the shell\n"
)
ENDS = "the shell has ended, and the copy is thrown away\n"


def plant_build(project: Project, key: ContentKey = KEY) -> Artifact:
    """Leaves in a project what a build of hello-phantom leaves: its stages, and its root."""
    tree = project.folder / "planted"
    busybox = shutil.which("busybox")
    assert busybox is not None
    linked = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout
    for source in (busybox, *re.findall(r"(/\S+) \(0x", linked)):
        copy = tree / source.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    for name in ("bin", "root", "etc", "tmp", "proc", "dev"):
        (tree / name).mkdir(exist_ok=True)
    for name in ("sh", "cat", "id", "ls", "rm", "sleep", "stty", "touch", "tty"):
        (tree / "bin" / name).symlink_to(busybox)
    (tree / "etc/motd").write_text("of the image\n")
    made = project.folder / "made"
    made.mkdir()
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(made / "root.ext4"), "32M"]
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
    subprocess.run(words, check=True, env=env, stdout=subprocess.DEVNULL)
    artifact = Store(project.store).add("root", key, made, {})
    stage = {"key": key, "revision": 1, "fields": {}, "inputs": {}}
    sealed = records.seal({"stages": {"root": stage}})
    project.write("build/hello-phantom/stages.json", json.dumps(sealed))
    return artifact


def work(project: Project) -> list[Path]:
    return list((project.store / "work").iterdir())


def test_one_command_has_the_callers_files(project: Project) -> None:
    artifact = plant_build(project)
    before = artifact.file("root.ext4").stat()
    script = "cat /etc/motd; id -u; echo said >&2; rm /etc/motd; ls /sys /home; exit 7"
    words = ("shell", "hello-phantom", "--", "sh", "-c")
    done = project.run(*words, script)
    assert (done.status, done.out) == (7, "of the image\n0\n")
    assert done.err == "said\n" + "".join(
        f"ls: {name}: No such file or directory\n" for name in ("/sys", "/home")
    )
    again = project.succeed(*words, "cat /etc/motd; cat", PHANTOM_SECRET="x")
    assert again.out == "of the image\n"
    assert (
        project.succeed("shell", "--", "sh", "-c", 'echo "$@"', "--", "--", "-v").out == "-- -v\n"
    )
    killed = project.run(*words, "kill -9 $$")
    assert (killed.status, killed.err) == (128 + signal.SIGKILL, "")
    missing = project.run("shell", "hello-phantom", "--", "nope")
    assert (missing.status, missing.err) == (127, "nope: No such file or directory\n")
    after = artifact.file("root.ext4").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert artifact.check()
    assert work(project) == []


def test_the_tree_of_a_build_that_failed(project: Project) -> None:
    planned = project.succeed("plan", "--json").json["stages"]
    (key,) = (stage["key"] for stage in planned if stage["stage"] == "root")
    plant_build(project, ContentKey(key))
    (project.build / "hello-phantom/stages.json").unlink()
    done = project.succeed("shell", "--as-defined", "--", "cat", "/etc/motd")
    assert (done.out, done.err) == ("of the image\n", "")


def test_a_shell_has_a_terminal_of_its_own(project: Project) -> None:
    artifact = plant_build(project)
    argv = project.command("shell", "hello-phantom")
    with Terminal(argv, cwd=project.folder, env=project.env(), columns=133) as terminal:
        terminal.wait_for(" #", 60)
        terminal.type("tty; stty size; touch /changed; cat\n")
        terminal.wait_for("24 133", 60)
        terminal.type("to cat\n")  # shown by the terminal, and once more by the program
        terminal.wait_until(lambda: terminal.rows.count("to cat") == 2, "a program that runs", 60)
        terminal.type("\x03")  # for the program, and not for the command
        terminal.wait_until(lambda: terminal.rows[-1].endswith(" #"), "prompt", 60)
        terminal.type("exit 5\n")
        assert terminal.end(60) == 5
        printed = terminal.printed
    assert printed.startswith(BEGINS) and printed.endswith(ENDS)
    assert "\n/dev/pts/0\n24 133\n" in printed
    assert artifact.check()
    assert work(project) == []


def test_nothing_is_left_of_a_shell_that_is_killed(project: Project) -> None:
    plant_build(project)
    running = project.start("shell", "hello-phantom", "--", "sh", "-c", "echo on; sleep 54321")
    running.wait_until(lambda: running.out == "on\n", "the command")
    running.process.send_signal(signal.SIGTERM)
    assert running.end().status == 128 + signal.SIGTERM
    assert work(project) == []
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 54321" not in listed.stdout


@pytest.mark.parametrize("words", [[], ["--", "true"]], ids=["shell", "command"])
def test_what_is_no_longer_there(project: Project, words: list[str]) -> None:
    artifact = plant_build(project)
    Store(project.store).remove(artifact)
    argv = project.command("shell", "hello-phantom", *words)
    with Terminal(argv, cwd=project.folder, env=project.env(), columns=200) as terminal:
        assert terminal.end(60) == 24
        assert terminal.printed == (
            "\x1b[31merror:\x1b[0m the root file system of hello-phantom's last build is not in "
            "the store any more\n  do: build it again: `phantom-image build hello-phantom`\n"
        )
