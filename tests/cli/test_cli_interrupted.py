"""Builds that are killed or interrupted, and two at once: nothing is lost or left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_runs import (
    Hello,
    Project,
    Running,
    assert_clean,
    assert_nothing_runs,
    digests,
    make_project,
    remove_tree,
    stages,
)
from cli_sites import CumulusSite

pytestmark = pytest.mark.slow

INTERRUPTED = "interrupted; the same command goes on where it can\n"
TRANSACTION = "I: installing "  # by mmdebstrap, once the essential packages are unpacked


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, hello: Hello) -> Iterator[Path]:
    """A folder with a store in which a build was killed in its package transaction."""
    folder = tmp_path_factory.mktemp("killed")
    store = hello.copy_store(folder / "store")
    project = make_project(folder / "first", store)
    running = project.start("image", "--json")
    running.wait_for_log("packages", TRANSACTION)
    running.kill()
    assert running.process.returncode == -signal.SIGKILL
    assert_nothing_runs(folder)
    assert project.artifacts() == []
    assert not project.build.exists()
    yield folder
    remove_tree(folder)


@pytest.mark.boot
def test_killed_in_the_transaction_then_two_at_once(killed: Path, hello: Hello) -> None:
    """Two builds in other folders go on where a killed one stopped. Each stage runs in one of
    them, both succeed, and they make the same bytes as an earlier build in another store."""
    projects = [make_project(killed / name, killed / "store") for name in ("second", "third one")]
    both = [project.start("image", "--json") for project in projects]
    ended = [running.end() for running in both]
    for done in ended:
        assert done.status == 0, done.err
    for project in projects:
        assert_clean(project)
    first, second = (stages(done) for done in ended)
    assert set(first) | set(second) == set(stages(hello.done))
    for stage in stages(hello.done):
        made = [each for each in (first, second) if each.get(stage, True) is False]
        assert len(made) == 1, f"{stage} ran {len(made)} times"
    assert any("another command builds this; waiting for it" in done.err for done in ended)
    for project in projects:
        assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
        assert project.manifest("hello-phantom")["inputs"] == hello.manifest["inputs"]


@pytest.mark.boot
def test_killed_again_and_again(copied: Callable[..., Project], hello: Hello) -> None:
    """A build that is killed in each stage after the root file system, and in its upload, goes on
    each time from the last finished stage."""
    project = copied("root")
    with CumulusSite(project.folder / "cumulus") as site:
        site.configure(project)

        def kill_at(ready: Callable[[Running], None]) -> list[str]:
            running = project.start("image", "--site", "hotel", **site.environ)
            ready(running)
            running.kill()
            assert_nothing_runs(project.folder, project.store)
            assert not project.build.exists() or not list(project.build.rglob("manifest.json"))
            made = [path.name.split("-")[0] for path in project.artifacts()]
            # These are short, and run beside `disk`.
            return [stage for stage in made if stage not in ("drivers", "gate", "inventory")]

        assert kill_at(lambda run: run.wait_for_line("disk mbr: assembling")) == ["root"]
        made = kill_at(lambda run: run.wait_for_line("gzip: compressing"))
        assert made in (["disk", "root"], ["disk", "hash", "root"])
        made = kill_at(lambda run: run.wait_for_log("boot", "Linux version"))
        assert made == ["disk", "hash", "image", "root"]
        made = kill_at(lambda run: run.wait_until(site.has_half, "a part of the upload"))
        assert made == ["boot", "disk", "hash", "image", "root"]
        assert site.images() == {}

        done = project.succeed("image", "--site", "hotel", "--json", **site.environ)
        assert all(stages(done).values())
        (name,) = site.images()
        assert site.images()[name] == hello.manifest["images"][0]["bytes"]
        assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
        assert_clean(project)


@pytest.mark.only_soak
def test_interrupted_in_the_transaction(copied: Callable[..., Project]) -> None:
    """By a terminal's control-C, which reaches the command and all that it started."""
    project = copied()
    running = project.start("image")
    running.wait_for_log("packages", TRANSACTION)
    done = running.interrupt(group=True)
    assert done.status == 130
    assert done.err.endswith(INTERRUPTED)
    assert "error" not in done.err
    assert project.artifacts() == []
    assert not project.build.exists()
    assert_clean(project)


@pytest.mark.boot
def test_interrupted_in_the_boot_check(copied: Callable[..., Project]) -> None:
    """By a signal to the command alone, as a build server sends it."""
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers")
    running = project.start("build")
    running.wait_for_log("boot", "Linux version")
    done = running.interrupt(group=False)
    assert done.status == 130
    assert done.err.endswith(INTERRUPTED)
    assert len(project.artifacts()) == 7
    assert_clean(project)
    plan = project.succeed("plan", "--json").json
    actions = [stage["action"] for stage in plan["stages"]]
    assert actions == ["skip", *["reuse"] * 7, "build"]
