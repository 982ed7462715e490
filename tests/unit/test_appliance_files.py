"""How the files of a definition get into an image that is made from scratch, and stay there.

The element's hooks run as diskimage-builder runs them, in a small tree in place of an image's.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ELEMENT = Path(__file__).parents[2] / "elements/phantom-appliance"
PROGRAMS = ("bash", "find", "install", "cp", "rm", "cat", "sed", "grep", "sh", "env")
RESOLVER = "etc/resolv.conf"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its root folder")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with what the hooks run."""
    tree = tmp_path_factory.mktemp("programs") / "tree"
    for link in ("bin", "lib", "lib64"):
        (tree / "usr" / link).mkdir(parents=True)
        (tree / link).symlink_to(f"usr/{link}")
    for program in PROGRAMS:
        path = shutil.which(program)
        assert path is not None
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for file in (path, *re.findall(r"(/\S+) \(", linked)):
            place = tree / file.lstrip("/")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
    return tree


class Build:
    """diskimage-builder's folder, with the tree of an image."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.root = folder / "mnt"
        self.appliance = folder / "appliance"
        self.files = self.appliance / "files"
        shutil.copytree(programs, self.root, symlinks=True, copy_function=os.link)
        for made in ("tmp", "etc", "var/log", "root"):
            (self.root / made).mkdir(parents=True)
        for made in ("files", "scripts"):
            (self.appliance / made).mkdir(parents=True)
        self.kept = self.appliance / "kept"
        self.kept.touch()
        (self.appliance / "user-data-frequency").write_text("boot\n")
        shutil.copy("/etc/resolv.conf", self.root / RESOLVER)
        (self.root / RESOLVER).chmod(0o777)

    def bring(self, name: str, content: str = "brought\n", mode: int = 0o644) -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return self.root / name

    def hook(self, name: str, *prefix: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "PHANTOM_APPLIANCE": str(self.appliance),
            "TARGET_ROOT": str(self.root),
            "TMP_BUILD_DIR": str(self.folder),
            "TMP_MOUNT_PATH": str(self.root),
        }
        return subprocess.run([*prefix, name], env=env, capture_output=True, text=True, check=False)

    def install(self) -> None:
        """Runs the hooks before the definition's scripts."""
        done = self.hook(str(ELEMENT / "extra-data.d/50-phantom-appliance"))
        assert done.returncode == 0, done.stderr
        hook = "post-install.d/80-phantom-appliance-files"
        shutil.copy(ELEMENT / hook, self.root / "hook")
        done = self.hook("/hook", "chroot", str(self.root), "bash", "-x")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(self.root / "tmp/phantom-appliance")

    def remember(self) -> None:
        """Runs the hook after the definition's scripts."""
        done = self.hook(str(ELEMENT / "post-root.d/90-phantom-appliance"))
        assert done.returncode == 0, done.stderr

    def clean(self) -> None:
        for name in ("tmp", "var/log", "root"):
            shutil.rmtree(self.root / name)
            (self.root / name).mkdir()
        for path in (RESOLVER, f"{RESOLVER}.ORIG"):
            (self.root / path).unlink(missing_ok=True)

    def restore(self) -> str:
        """Runs the hook after the cleaning; returns what it says when it fails."""
        done = self.hook(str(ELEMENT / "cleanup.d/90-phantom-appliance"))
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stderr


@pytest.fixture
def build(tmp_path: Path, programs: Path) -> Build:
    return Build(tmp_path, programs)


NAMES = ("blank ", " two  words ", "line\nfeed\n", "-rf", "$(x) `y` *", "quo'te\"s\\", "ü", ".dot")


def test_what_is_brought_arrives(build: Build) -> None:
    for name in NAMES:
        build.bring(f"opt/{name}/{name}", name)
    build.bring("usr/local/bin/tool", mode=0o4755)
    build.bring("bin/other", mode=0o750)
    (build.files / "var/lib/empty").mkdir(parents=True)
    (build.files / "opt/link\n").symlink_to("/usr/bin/python3 \n")
    (build.root / "opt").mkdir(mode=0o700)
    build.bring("etc/was-link")
    (build.root / "etc/was-link").symlink_to("/opt")
    (build.files / "etc/was-file").symlink_to("there")
    (build.root / "etc/was-file").write_text("old")
    for path in build.files.rglob("*"):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    (build.files / "usr/local/bin/tool").chmod(0o4755)  # which chown takes away
    build.install()
    for name in NAMES:
        assert (build.root / "opt" / name / name).read_text() == name
    assert os.readlink(build.root / "opt/link\n") == "/usr/bin/python3 \n"
    assert os.readlink(build.root / "etc/was-file") == "there"
    assert not (build.root / "etc/was-link").is_symlink()
    modes = {"usr/local/bin/tool": 0o4755, "usr/bin/other": 0o750, "var/lib/empty": 0o755}
    for place, mode in {**modes, "opt": 0o700, f"opt/{NAMES[0]}": 0o755}.items():
        assert stat.S_IMODE((build.root / place).stat().st_mode) == mode, place
    for path in build.files.rglob("*"):
        status = (build.root / path.relative_to(build.files)).lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path


def test_what_is_a_folder_in_the_image_is_not_replaced(build: Build) -> None:
    build.bring("opt/a b")
    (build.root / "opt/a b").mkdir(parents=True)
    with pytest.raises(AssertionError) as caught:
        build.install()
    assert (
        "phantom-appliance: /opt/a\\ b is a folder in the image, and none in the definition\n"
    ) in str(caught.value.args[0])


def test_what_is_brought_outlives_the_cleaning(build: Build) -> None:
    key = build.bring("root/.ssh/authorized_keys", "ssh-ed25519 AAAA x@y\n")
    seed = build.bring("var/log/app/seed")
    odd = build.bring("tmp/deep/er/blank ", mode=0o600)
    resolver = build.bring(RESOLVER, "nameserver 192.0.2.53\n")
    (build.files / "tmp/empty").mkdir()
    (build.files / "tmp/link").symlink_to("gone")
    gone = build.bring("tmp/archive.tar")
    changed = build.bring("etc/app.conf")
    build.install()
    assert resolver.read_text() == Path("/etc/resolv.conf").read_text()
    # the definition's scripts
    gone.unlink()
    changed.write_text("changed\n")
    seed.write_text("seed\n")
    os.chown(seed, 10, 20)
    seed.chmod(0o640)
    (build.root / "tmp/deep").chmod(0o711)
    os.chown(build.root / "tmp/deep", 3, 4)
    build.remember()
    build.clean()
    assert build.restore() == ""
    assert key.read_text() == "ssh-ed25519 AAAA x@y\n"
    status = seed.stat()
    assert (seed.read_text(), status.st_uid, status.st_gid) == ("seed\n", 10, 20)
    assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (1, 0o640)
    assert (odd.read_text(), stat.S_IMODE(odd.stat().st_mode)) == ("brought\n", 0o600)
    deep = (build.root / "tmp/deep").stat()
    assert (stat.S_IMODE(deep.st_mode), deep.st_uid, deep.st_gid) == (0o711, 3, 4)
    assert resolver.read_text() == "nameserver 192.0.2.53\n"
    assert os.readlink(build.root / "tmp/link") == "gone"
    assert list((build.root / "tmp/empty").iterdir()) == []
    assert changed.read_text() == "changed\n"
    assert not gone.exists()
    assert sorted(path.name for path in build.folder.iterdir()) == ["appliance", "mnt"]


def replace_by_script(build: Build) -> None:
    (build.root / RESOLVER).unlink()
    (build.root / RESOLVER).write_text("nameserver 192.0.2.1\n")


def write_by_script(build: Build) -> None:
    (build.root / RESOLVER).write_text("nameserver 192.0.2.1\n")


def add_by_script(build: Build) -> None:
    with (build.root / RESOLVER).open("a") as file:
        file.write("nameserver 192.0.2.1\n")


def link_by_script(build: Build) -> None:
    (build.root / RESOLVER).unlink()
    (build.root / RESOLVER).symlink_to("/run/mine")


@pytest.mark.parametrize(
    ("script", "stays"),
    [
        (replace_by_script, "nameserver 192.0.2.1\n"),
        (write_by_script, "nameserver 192.0.2.1\n"),
        (add_by_script, None),  # the build host's is still in it
        (link_by_script, "/run/mine"),
        (lambda _: None, None),
    ],
)
def test_the_name_servers_of_a_script_stay_and_the_build_hosts_go(
    build: Build, script: Callable[[Build], None], stays: str | None
) -> None:
    build.install()
    script(build)
    build.remember()
    build.clean()
    assert build.restore() == ""
    place = build.root / RESOLVER
    found = os.readlink(place) if place.is_symlink() else None
    if found is None and place.exists():
        found = place.read_text()
        assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert found == stays


def test_what_is_not_as_it_was_is_named(build: Build) -> None:
    emptied = build.bring("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    opened = build.bring("etc/secret list", mode=0o600)
    owned = build.bring("etc/owned")
    hidden = build.bring("etc/hidden/file")
    build.bring("etc/kept")
    build.install()
    build.remember()
    emptied.write_text("")
    opened.chmod(0o644)
    os.chown(owned, 1, 1)
    hidden.unlink()
    hidden.mkdir()
    assert build.restore() == (
        "phantom-appliance: what the definition brings is not in the image as its scripts left it: "
        "'/etc/hidden/file' (kind, content, mode), '/etc/machine-id' (content), '/etc/owned' "
        "(owner), '/etc/secret list' (mode)\n"
    )


def test_what_a_key_of_the_definition_made_stays(build: Build) -> None:
    keys = build.root / "root/.ssh/authorized_keys"
    build.kept.write_text("/root/.ssh/authorized_keys\n/not/there\n")
    build.install()
    keys.parent.mkdir(mode=0o700)
    keys.write_text("ssh-ed25519 AAAA ops@lab\n")
    build.remember()
    build.clean()
    assert build.restore() == ""
    assert keys.read_text() == "ssh-ed25519 AAAA ops@lab\n"


def test_no_link_of_the_image_leads_out_of_it(build: Build, tmp_path: Path) -> None:
    build.bring("opt/app/file")
    build.install()
    build.remember()
    shutil.rmtree(build.root / "opt")
    (build.root / "opt").symlink_to(tmp_path)  # on the host; in the image it leads nowhere
    assert "'/opt/app/file' (No such file or directory)" in build.restore()
    assert not (tmp_path / "app").exists()
