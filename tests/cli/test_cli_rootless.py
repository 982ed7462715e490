"""Builds without root's rights."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import REPOSITORY, Hello, Project, assert_nothing_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can add a user"),
]

USER = "phantom-tests"


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """A copy of this checkout in the home of a new user, who has a range of other users and no
    sudo."""
    with tempfile.TemporaryDirectory(prefix="phantom-home-") as folder:
        home = Path(folder)
        words = ["--create-home", "--home-dir", str(home / "home"), "--user-group", USER]
        subprocess.run(["useradd", *words], check=True)
        try:
            home.chmod(0o755)
            copy = home / "home" / "checkout"
            copy.mkdir()
            for name in ("pipeline", "elements", "images", ".venv", "pyproject.toml"):
                source = REPOSITORY / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, symlinks=True)
                else:
                    shutil.copy(source, copy / name)
            subprocess.run(["chown", "-R", f"{USER}:", str(home / "home")], check=True)
            yield copy
        finally:
            subprocess.run(["userdel", USER], check=True)


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as that user, in a project of the user's."""
    project = Project(folder=checkout, store=checkout / "build" / "store")
    env = project.env(HOME=str(checkout.parent), PYTHONPATH=str(checkout), TMPDIR="/tmp")
    python = checkout / ".venv" / "bin" / "python3"
    entry = pwd.getpwnam(USER)
    return subprocess.run(
        [str(python), "-m", "pipeline.cli", *words],
        cwd=checkout,
        env=env,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_user_without_sudo_gets_the_bytes_of_root_s_build(checkout: Path, hello: Hello) -> None:
    done = run(checkout, "build", "hello-phantom", "--cloud", "nimbus", "--stop-after", "root")
    assert done.returncode == 0, done.stderr
    (made,) = (checkout / "build/store/artifacts").glob("root-*/root.ext4")
    theirs = hello.artifact("root") / "root.ext4"  # other tests may leave further ones there
    assert made.parent.name == theirs.parent.name
    assert subprocess.run(["cmp", str(made), str(theirs)], check=False).returncode == 0
    uid = pwd.getpwnam(USER).pw_uid
    owners = {path.lstat().st_uid for path in (checkout / "build").rglob("*")}
    assert owners == {uid}
    assert_nothing_runs(checkout)


def test_what_a_killed_build_leaves_is_removed_by_the_next(checkout: Path) -> None:
    """On the disk, a build's files belong to users of its own, whom this user cannot become."""
    work = checkout / "build/store/work/root-of-a-killed-build"
    (work / "tree").mkdir(parents=True)
    (work / "tree/file").touch()
    start = int(
        next(
            line.split(":")[1]
            for line in Path("/etc/subuid").read_text().splitlines()
            if line.startswith(f"{USER}:")
        )
    )
    entry = pwd.getpwnam(USER)
    for path in (work, *work.parents[:3]):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    for path in (work / "tree/file", work / "tree"):
        os.chown(path, start + 100, start + 100)
    done = run(checkout, "gc", "--size", "100GiB")
    assert done.returncode == 0, done.stderr
    assert not work.exists()
