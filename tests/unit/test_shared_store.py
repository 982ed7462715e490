"""A store that two users of one group share, and links that somebody put into a store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import REPOSITORY

from pipeline.commands import options as shared
from pipeline.errors import StoreError
from pipeline.model import ContentKey
from pipeline.store import Store, write_atomically

GROUP, OTHER_GROUP = 61_001, 61_002
USERS = (61_011, 61_012)  # with a first group of their own, of the same number
KEY = "a" * 64

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

_START = f"""
import os, sys
from pathlib import Path
from pipeline.store import Store, write_atomically
from pipeline.clouds.nimbus.cumulus_index import open_index
from pipeline.build.manifest import write_manifest
from pipeline.sources.download import Arrived
from pipeline.workspace import link
store, key = Store(Path(sys.argv[1])), {KEY!r}
"""
_MAKE = """
with store.used(), store.lock(f"root-{key}"), store.making("root", key) as folder:
    out = folder / "out"
    out.mkdir()
    (out / "file").write_text("content")
    (out / "large").write_bytes(bytes(2 << 20))
    store.new_log("root", key).write_text("log")
    made = store.add("root", key, out, {"made": os.geteuid()})
write_atomically(store.path("resolutions") / "one.json", "{}")
with store.lock("site-hotel"):
    open_index(store.path("sites")).close()
(store.path("downloads") / "x.part").write_text("half")
builds = store.folder / "builds/web"
write_manifest(builds, {"appliance": {"build": "one"}, "publications": ["some"]})
link(made.file("file"), builds / "one/image")
"""
_LEAVE_DEBRIS = """
making = store.making("disk", key)
folder = making.__enter__()
(folder / "work").mkdir()
(folder / "work/half").write_text("half")
os._exit(0)
"""
_USE = """
found = store.find("root", key)
assert found.facts == {"made": int(sys.argv[2])} and found.check()
store.touch(found)
assert found.folder.joinpath("artifact.json").stat().st_mtime > 1e9
with store.used(), store.lock(f"root-{key}"):
    store.new_log("root", key).write_text("log")
write_atomically(store.path("resolutions") / "one.json", "[]")
with store.lock("site-hotel"):
    index = open_index(store.path("sites"))
    index.execute("INSERT INTO object VALUES ('k', 'o', 'a', 1, 'm', 1.0, 1)")
    index.close()
with store.making("disk", key) as folder:
    assert list(folder.iterdir()) == []
Arrived(store.path("downloads") / "x.part", "http://x")
builds = store.folder / "builds/web"
for build in ("one", "two"):
    told = {"appliance": {"build": build}, "publications": ["some"], "by": os.geteuid()}
    write_manifest(builds, told)
    link(found.file("file"), builds / build / "image")
assert (builds / "latest").readlink() == Path("two")
print(*store.sweep(), *store.evict(0))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="phantom-shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def become(user: int, umask: str, *argv: str) -> str:
    """What a program prints that a user of the group runs under an umask."""
    done = subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={GROUP}"]
        + ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *argv],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@as_root
@pytest.mark.parametrize("umask", ["022", "077"])
@pytest.mark.parametrize("mode", [0o2770, 0o775], ids=["setgid", "plain"])
def test_two_users_of_one_group(place: Path, umask: str, mode: int) -> None:
    store = place / "store"
    store.mkdir()
    os.chown(store, 0, GROUP)
    store.chmod(mode)
    first, second = USERS
    python = [sys.executable, "-c"]
    become(first, umask, *python, _START + _MAKE, str(store))
    become(first, umask, *python, _START + _LEAVE_DEBRIS, str(store))
    assert [path.name for path in (store / "work").iterdir()] == [f"disk-{KEY}"]
    printed = become(second, umask, *python, _START + _USE, str(store), str(first))
    assert [int(word) for word in printed.split()][2] >= 3
    assert list((store / "artifacts").iterdir()) == []
    # And the other way round, with what is there already.
    become(second, umask, *python, _START + _MAKE, str(store))
    command = [sys.executable, "-m", "pipeline.cli", "gc", "--size", "0B", "--build", "/nowhere"]
    printed = become(first, umask, "env", f"PHANTOM_STORE={store}", *command)
    assert printed.startswith("removed ")
    assert list((store / "artifacts").iterdir()) == []


@as_root
def test_a_store_of_one_user_stays_his(place: Path) -> None:
    """Where the group may not write, nothing is opened to it."""
    store = place / "store"
    store.mkdir(mode=0o755)
    os.chown(store, USERS[0], OTHER_GROUP)
    become(USERS[0], "077", sys.executable, "-c", _START + _MAKE, str(store))
    for path in store.rglob("*"):
        assert path.lstat().st_gid == USERS[0]
        if path.is_symlink():
            continue
        if path.is_dir() or path.parent.name == "locks":
            assert not path.lstat().st_mode & 0o077, path


def test_a_store_in_a_folder_of_everybody_is_opened_to_nobody(place: Path) -> None:
    place.chmod(0o1777)
    before = os.umask(0o022)
    try:
        Store(place / "store").path("locks")
    finally:
        os.umask(before)
    for path in (place / "store", place / "store/locks"):
        assert path.stat().st_mode & 0o7777 == 0o755


# ---- links


def plant(store: Path, outside: Path) -> None:
    """Links to files and folders outside, wherever gc and a build look."""
    for kind in ("artifacts", "packages", "resolutions", "archives", "downloads", "logs", "work"):
        (store / kind).mkdir(parents=True, exist_ok=True)
        (store / kind / "to-folder").symlink_to(outside)
        (store / kind / "to-file").symlink_to(outside / "file")
        (store / kind / "to-nothing").symlink_to("nothing")
        os.mkfifo(store / kind / "fifo")
    inner = store / "artifacts/inner"
    inner.mkdir()
    (inner / "link").symlink_to(outside)
    (inner / "artifact.json").symlink_to(outside / "file")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("precious")
    (folder / "file").chmod(0o640)
    folder.chmod(0o750)
    return folder


def assert_untouched(outside: Path) -> None:
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"
    assert (outside / "file").stat().st_mode & 0o7777 == 0o640
    assert outside.stat().st_mode & 0o7777 == 0o750


def test_gc_removes_links_and_not_what_they_lead_to(tmp_path: Path, outside: Path) -> None:
    store = tmp_path / "store"
    plant(store, outside)
    store.chmod(0o775)  # what is made below is for the group
    count, freed = Store(store).evict(0)
    assert (count, freed) == (29, 0)
    assert [
        path for path in store.rglob("*") if path.parent.name != "locks" and path.is_symlink()
    ] == []
    assert_untouched(outside)


def test_a_folder_of_the_store_that_is_a_link(tmp_path: Path, outside: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "artifacts").symlink_to(outside)
    with pytest.raises(StoreError) as caught:
        Store(store).evict(0)
    assert str(caught.value) == (
        f"{store}/artifacts: is a link, and the store changes nothing outside its folder\n"
        "  do: remove the link; PHANTOM_STORE names another folder for all of the store"
    )
    assert_untouched(outside)


def test_locks_and_temporary_files_follow_no_link(tmp_path: Path, outside: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store/locks").mkdir(parents=True)
    (tmp_path / "store").chmod(0o775)
    (tmp_path / "store/locks").chmod(0o775)
    for name, lead in (("in-use", "file"), ("root-a", "made-by-us")):
        (tmp_path / "store/locks" / name).symlink_to(outside / lead)
    os.mkfifo(tmp_path / "store/locks/fifo")
    (tmp_path / "store/locks/folder").mkdir()
    for name in ("in-use", "root-a", "fifo", "folder"):
        with store.lock(name):
            assert (tmp_path / "store/locks" / name).is_file()
            assert not (tmp_path / "store/locks" / name).is_symlink()
    target = tmp_path / "store/digest"
    target.symlink_to(outside / "file")
    write_atomically(target, "new")
    assert not target.is_symlink()
    assert_untouched(outside)


def test_an_artifact_that_leads_outside_is_none(tmp_path: Path, outside: Path) -> None:
    """Not even the time of the record that it leads to is changed."""
    key = ContentKey(KEY)
    for name in ("one", "other"):
        with Store(tmp_path / name).making("root", key) as folder:
            out = folder / "out"
            out.mkdir()
            (out / "file").write_text("content")
            Store(tmp_path / name).add("root", key, out, {})
    store, folder = Store(tmp_path / "one"), tmp_path / "one/artifacts" / f"root-{KEY}"
    other = tmp_path / "other/artifacts" / folder.name
    for name in ("artifact.json", "file"):
        assert store.find("root", key) is not None
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(other / name)
        assert store.find("root", key) is None
        (tmp_path / name).rename(folder / name)
    shutil.rmtree(folder)
    folder.symlink_to(other)
    assert store.find("root", key) is None
    assert_untouched(outside)


def test_an_artifact_with_a_link_is_refused_and_nothing_changes_its_mode(
    tmp_path: Path, outside: Path
) -> None:
    store = Store(tmp_path / "store")
    key = ContentKey(KEY)
    with pytest.raises(StoreError), store.making("root", key) as folder:
        out = folder / "out"
        out.mkdir()
        (out / "root.ext4").symlink_to(outside / "file")
        store.add("root", key, out, {})
    assert store.find("root", key) is None
    assert_untouched(outside)


# ---- eviction


def test_nothing_is_evicted_while_a_command_builds(tmp_path: Path) -> None:
    """`boot`, which builds an image that is missing, holds the store as `build` does."""
    options = Namespace(build=tmp_path / "build", verbose=False)
    with shared.open_shown_workspace(options) as workspace:
        with pytest.raises(StoreError) as caught:
            Store(workspace.store.folder).evict(0)
        assert caught.value.what == "another command is using the store, so nothing is evicted"
    assert Store(workspace.store.folder).evict(0) == (0, 0)


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for folder in (Path("/proc/store"), tmp_path / "file", tmp_path / "loop", tmp_path / "file/x"):
        with pytest.raises(StoreError, match="the store cannot be written to"):
            Store(folder).evict(0)
        with pytest.raises(StoreError), Store(folder).lock("x"):
            pass
