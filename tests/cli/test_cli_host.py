"""A build host that lacks something: a mirror, space, root's rights."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runs import (
    Hello,
    Project,
    assert_clean,
    assert_nothing_runs,
    list_tree,
    make_project,
)
from cli_sites import find_dead_port
from terminals import Terminal

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


# ---- mirrors


def mirror_at(port: int) -> dict[str, str]:
    return {
        "PHANTOM_DEBIAN_MIRROR": f"http://127.0.0.1:{port}/debian",
        "PHANTOM_DEBIAN_SECURITY_MIRROR": f"http://127.0.0.1:{port}/debian-security",
        "no_proxy": "127.0.0.1",
    }


def test_mirror_that_does_not_answer(project: Project) -> None:
    port = find_dead_port()
    done = project.run("image", **mirror_at(port))
    assert done.status == 13
    assert done.error == (
        f"error: http://127.0.0.1:{port}/debian (bookworm): the mirror cannot be used: Failed to "
        f"fetch http://127.0.0.1:{port}/debian/dists/bookworm/InRelease  Could not connect to "
        f"127.0.0.1:{port} (127.0.0.1). - connect (111: Connection refused)\n"
        "  do: see that the mirror of the host's apt configuration answers (`apt-get update`), or "
        "set PHANTOM_DEBIAN_MIRROR and PHANTOM_DEBIAN_SECURITY_MIRROR to others\n"
    )
    assert project.artifacts() == []
    assert_clean(project)


def test_mirror_that_has_nothing(project: Project, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    (tmp_path / "empty").mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *words: Quiet(*words, directory=str(tmp_path / "empty")),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    done = project.run("image", **mirror_at(port))
    server.shutdown()
    server.server_close()
    assert done.status == 13
    assert done.error == (
        f"error: http://127.0.0.1:{port}/debian (bookworm): the mirror cannot be used: Failed to "
        f"fetch http://127.0.0.1:{port}/debian/dists/bookworm/InRelease  404  File not "
        f"found [IP: 127.0.0.1 {port}]\n"
        "  do: see that the mirror of the host's apt configuration answers (`apt-get update`), or "
        "set PHANTOM_DEBIAN_MIRROR and PHANTOM_DEBIAN_SECURITY_MIRROR to others\n"
    )
    assert_clean(project)


# ---- space


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes, mounted at a folder; yields a function that resizes it."""
    folder.mkdir(parents=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", *options, "tests", str(folder)], check=True)

    mount("-o", f"size={size}")
    try:
        yield lambda new: mount("-o", f"remount,size={new}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full(figures: str) -> str:
    return (
        f"error: STORE: no space for the artifacts: {figures}\n"
        "  do: free some space there (`phantom-image gc` evicts old artifacts) or set "
        "PHANTOM_STORE to a folder with more, then run the same command again\n"
    )


@needs_root
def test_store_too_small_for_the_lists(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * MIB):
        project = make_project(tmp_path / "project", tmp_path / "disk" / "store")
        done = project.run("image")
        assert done.status == 17
        assert project.masked(done.error) == full("4 MiB are free, and about 192 MiB are needed")
        assert list_tree(project.temporary) == []


@needs_root
def test_store_too_small_to_begin(tmp_path: Path, hello: Hello) -> None:
    with small_disk(tmp_path / "disk", 400 * MIB):
        store = hello.copy_store(tmp_path / "disk" / "store")
        project = make_project(tmp_path / "project", store)
        done = project.run("image")
        assert done.status == 17
        told = re.sub("[0-9.]+ [MG]iB", "SIZE", project.masked(done.error))
        assert told == full("SIZE are free, and about SIZE are needed")
        assert project.artifacts() == []
        assert list_tree(store / "work") == []


@needs_root
def test_store_that_fills_up(tmp_path: Path, hello: Hello) -> None:
    """The build fails in two stages, each time goes on after there is more room, and keeps its
    finished artifacts."""
    with small_disk(tmp_path / "disk", 4096 * MIB) as resize:
        store = hello.copy_store(
            tmp_path / "disk" / "store", "root", "inventory", "gate", "drivers", "boot"
        )
        project = make_project(tmp_path / "project", store)
        used = shutil.disk_usage(store).used
        resize(used + 100 * MIB)
        done = project.run("build")
        assert done.status == 17
        assert project.masked(done.error) == full("nothing is left free")
        assert list_tree(store / "work") == []
        made = [path.name.split("-")[0] for path in project.artifacts()]
        assert made == ["boot", "drivers", "gate", "inventory", "root"]

        (root,) = project.artifacts("root")
        data = (root / "root.ext4").stat().st_blocks * 512
        resize(used + data + 50 * MIB)
        done = project.run("build")
        assert done.status == 17
        assert project.masked(done.error) == full("nothing is left free")
        assert list_tree(store / "work") == []
        made = [path.name.split("-")[0] for path in project.artifacts()]
        assert made == ["boot", "disk", "drivers", "gate", "inventory", "root"]

        resize(4096 * MIB)
        summary = project.succeed("build", "--json").json
        assert summary["images"] == hello.summary["images"]
        reused = {stage["stage"]: stage["reused"] for stage in summary["stages"]}
        assert reused["disk mbr"] is True
        assert reused["boot nimbus-sandbox bios"] is True


def _pack_zip(disk: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(disk, "disk")


def _pack_by(*words: str) -> Callable[[Path, Path], object]:
    return lambda disk, packed: subprocess.run([*words, disk, packed], check=True)


@needs_root
@pytest.mark.parametrize(
    ("pack", "figures"),
    [
        (_pack_zip, "what is left free, SIZE, is kept as a reserve"),
        (
            _pack_by("qemu-img", "convert", "-O", "qcow2", "-c"),
            "40 MiB are free, and about 60.3 MiB are needed",
        ),
    ],
    ids=["zip", "qcow2"],
)
def test_an_image_that_unpacks_to_more_than_is_free(
    tmp_path: Path, pack: Callable[[Path, Path], object], figures: str
) -> None:
    disk, packed = tmp_path / "disk", tmp_path / "packed"
    disk.write_bytes(b"\0\1" * 30 * MIB)
    pack(disk, packed)
    with small_disk(tmp_path / "small", 40 * MIB):
        project = make_project(tmp_path / "project", tmp_path / "small/store")
        done = project.run("inspect", str(packed))
        assert done.status == 17
        told = project.masked(done.error[done.error.index("error: ") :])
        assert re.sub("(?<=free, )[0-9.]+ MiB", "SIZE", told) == full(figures)
        assert list_tree(project.store / "work") == []


@needs_root
def test_a_machine_whose_disk_has_no_room(tmp_path: Path, hello: Hello) -> None:
    with small_disk(tmp_path / "disk", 4096 * MIB) as resize:
        store = hello.copy_store(
            tmp_path / "disk/store", "root", "gate", "drivers", "disk", "image"
        )
        project = make_project(tmp_path / "project", store)
        resize(shutil.disk_usage(store).used + 100 * MIB)
        argv = project.command("boot")
        with Terminal(argv, cwd=project.folder, env=project.env(), columns=500) as terminal:
            assert terminal.end() == 17
            rows = terminal.rows
        told = re.sub("[0-9.]+ [MG]iB", "SIZE", project.masked("\n".join(rows[-2:])))
        assert f"{told}\n" == full("SIZE are free, and about SIZE are needed")
        assert list_tree(store / "work") == []


@needs_root
def test_no_space_for_the_build_folder(tmp_path: Path, hello: Hello) -> None:
    with small_disk(tmp_path / "disk", 20 * MIB):
        project = make_project(tmp_path / "disk" / "project", hello.store)
        done = project.run("image", TMPDIR=str(tmp_path))
        assert done.status == 17
        assert project.masked(done.error) == (
            "error: PROJECT/build: no space for images and manifests\n"
            "  do: free some space there, or name a folder with more by --build, then run the same "
            "command again: what is built is kept\n"
        )
        names = [path.name for path in project.build.rglob("*") if path.is_file()]
        assert names == []


# ---- rights


# Starts a program as a user without rights and without a range of other users. Even an installed
# sudo cannot help: that user's namespace has no root.
AS_USER = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
REFUSED = (
    "error: builds need a user namespace or root's rights: /etc/subuid gives this user 0 of 65535 "
    "numbers, and sudo "
)
MEND = re.compile(
    r"  do: sudo usermod --add-subuids (\d+-\d+) --add-subgids \1    # or run as root, or have an "
    r"administrator give this user sudo rights\n"
)


def test_sudo_that_refuses(copied: Callable[..., Project]) -> None:
    project = copied()
    done = project.run_by(AS_USER, "image")
    assert done.status == 15
    refused = f"{REFUSED}does not let this user become root\n"
    assert done.error.startswith(refused)
    assert MEND.fullmatch(done.error.removeprefix(refused))
    assert project.artifacts() == []
    assert_clean(project)


def test_no_sudo(copied: Callable[..., Project], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/local/bin", "/usr/bin", "/usr/sbin"):
        for program in Path(folder).iterdir():
            if program.name != "sudo" and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    project = copied()
    done = project.run_by(AS_USER, "image", PATH=str(programs))
    assert done.status == 15
    refused = f"{REFUSED}is not installed\n"
    assert done.error.startswith(refused)
    assert MEND.fullmatch(done.error.removeprefix(refused))
    assert project.artifacts() == []
    assert_clean(project)


def test_no_sudo_is_no_matter_when_the_root_is_there(copied: Callable[..., Project]) -> None:
    """Only the stage `root` needs root's rights; any user can run the others."""
    project = copied("root", "gate", "drivers", "boot")
    done = project.run_by(AS_USER, "build", "--json")
    assert done.status == 0, done.err
    assert_clean(project)


def test_store_that_cannot_be_written_to(project: Project) -> None:
    project.store.write_text("no folder\n")
    done = project.run("image")
    assert done.status == 19
    assert project.masked(done.error) == (
        "error: STORE: the store cannot be written to: Not a directory\n"
        "  do: set PHANTOM_STORE to a folder that this user may write to\n"
    )
    assert_nothing_runs(project.folder)
    assert project.store.read_text() == "no folder\n"
