"""Artifacts that were damaged or evicted, and what a build makes again because of that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Hello, Project, assert_clean, digests, list_tree, stages

pytestmark = pytest.mark.slow


def flip_byte(path: Path, offset: int, *, keep_time: bool) -> None:
    """Changes one byte of a stored file, which keeps its size."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))
    path.chmod(0o444)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_artifact(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_damaged_image(copied: Callable[..., Project], hello: Hello) -> None:
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers", "boot")
    (image,) = project.artifacts("image")
    flip_byte(image / "image.raw.gz", 5_000_000, keep_time=False)
    plan = project.succeed("plan", "--json").json
    actions = {stage["stage"]: stage["action"] for stage in plan["stages"]}
    assert actions["image mbr raw gzip"] == "build"
    done = project.succeed("build", "--json")
    assert stages(done)["image mbr raw gzip"] is False
    assert stages(done)["boot nimbus-sandbox bios"] is True
    assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
    assert_clean(project)


def test_image_that_is_gone_in_part(copied: Callable[..., Project], hello: Hello) -> None:
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers", "boot")
    (image,) = project.artifacts("image")
    (image / "artifact.json").write_text("{")
    (boot,) = project.artifacts("boot")
    assert boot.exists()
    done = project.succeed("build", "--json")
    assert stages(done)["image mbr raw gzip"] is False
    assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
    assert_clean(project)


def test_damage_that_shows_in_no_time(copied: Callable[..., Project], hello: Hello) -> None:
    """A build reads every byte of an artifact of an earlier run before it uses it: it makes the
    root file system again, with the same bytes, and its disk."""
    project = copied("root", "image", "hash", "gate", "drivers", "boot")
    (image,) = project.artifacts("image")
    remove_artifact(image)
    (root,) = project.artifacts("root")
    flip_byte(root / "root.ext4", 300_000_000, keep_time=True)
    done = project.succeed("build", "--json")
    assert "root: what is stored was damaged: making it anew" in done.err
    assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
    assert_clean(project)


def test_damaged_image_is_not_published(copied: Callable[..., Project], hello: Hello) -> None:
    """A damaged image reaches no site, even if its times are right, and the next run repairs it."""
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers", "boot")
    (image,) = project.artifacts("image")
    flip_byte(image / "image.raw.gz", 5_000_000, keep_time=True)
    done = project.succeed("image", "--json")
    assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
    assert done.json["publications"][0]["sha256"] == hello.manifest["images"][0]["sha256"]


def test_gc_evicts_what_is_not_needed(copied: Callable[..., Project], hello: Hello) -> None:
    project = copied("root", "disk", "image", "hash", "inventory", "gate", "drivers", "boot")
    for stage in ("root", "disk"):
        (artifact,) = project.artifacts(stage)
        os.utime(artifact / "artifact.json", (1, 1))
    (project.store / "work").mkdir()
    (project.store / "work" / "root-debris").mkdir()
    (project.store / "work" / "root-debris" / "half").write_text("half\n")
    done = project.succeed("gc", "--size", "600MiB", "--json").json
    assert done["removed"] == 3
    assert done["freed_bytes"] > 500 << 20
    kept = [path.name.split("-")[0] for path in project.artifacts()]
    assert kept == ["boot", "drivers", "gate", "hash", "image", "inventory"]
    # The artifacts that are left are all that a build needs: it makes nothing.
    done_again = project.succeed("build", "--json")
    assert stages(done_again) == {
        "image mbr raw gzip": True,
        "hash mbr": True,
        "inventory": True,
        "gate": True,
        "drivers nimbus-sandbox": True,
        "boot nimbus-sandbox bios": True,
    }
    assert digests(project.manifest("hello-phantom")) == digests(hello.manifest)
    assert_clean(project)

    assert project.succeed("gc", "--size", "0B").out.startswith("removed ")
    kinds = ("artifacts", "packages", "resolutions", "archives", "logs", "work")
    assert [list_tree(project.store / kind) for kind in kinds] == [[]] * len(kinds)
    # gc keeps the images in the build's folder: the manifest promises them.
    (named,) = project.built("hello-phantom").glob("*.gz")
    assert named.stat().st_size == hello.manifest["images"][0]["bytes"]


def test_gc_with_a_wrong_size(project: Project) -> None:
    done = project.run("gc", "--size", "10G")
    assert done.status == 24
    assert done.error == "error: '10G' is no size; write a number and B, KiB, MiB, GiB or TiB\n"
