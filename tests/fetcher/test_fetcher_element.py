"""The element's hooks and service files, run or read by the real programs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from fetcher_guest import INIT_SCRIPT, OPTIONS, PROGRAM, STATIC, find

from pipeline.tools import namespace

ELEMENT = STATIC.parent
UNIT = "usr/lib/systemd/system/phantom-user-data.service"
MODES = {
    PROGRAM: 0o755,
    "usr/lib/phantom/write-login-keys": 0o755,
    INIT_SCRIPT: 0o755,
    OPTIONS: 0o644,
    UNIT: 0o644,
}
SUDO = Path(namespace.__file__).with_name("isolated_sudo.sh")
EPOCH = 1_700_000_000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the hooks need root's rights")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The tree of an image into which the hook has copied the files, with the `sudo` of builds."""
    target = tmp_path / "image"
    (target / "etc/default").mkdir(parents=True)
    hooks = tmp_path / "hooks"  # where diskimage-builder merges all elements
    shutil.copytree(ELEMENT, hooks)
    for path in hooks.rglob("*"):
        path.chmod(0o777)
    programs = tmp_path / "programs"
    programs.mkdir()
    shutil.copy(SUDO, programs / "sudo")
    (programs / "sudo").chmod(0o755)
    subprocess.run(
        [hooks / "extra-data.d/50-phantom-user-data"],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "TMP_MOUNT_PATH": str(target),
            "SOURCE_DATE_EPOCH": str(EPOCH),
        },
        check=True,
        capture_output=True,
    )
    return target


def test_every_static_file_has_a_fixed_mode() -> None:
    files = {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()}
    assert files == set(MODES)


@needs_root
def test_files_land_with_owner_mode_and_time(image: Path) -> None:
    landed = {str(path.relative_to(image)): path for path in image.rglob("*") if path.is_file()}
    assert set(landed) == set(MODES)
    for name, path in landed.items():
        assert path.read_bytes() == (STATIC / name).read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == MODES[name], name
    for path in image.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, EPOCH), path


def run_enable_hook(image: Path, folders: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the hook in a chroot in `image` into which some of this host's folders are mounted."""
    hook = image / "hook"
    shutil.copy(ELEMENT / "install.d/50-phantom-user-data-enable", hook)
    for link, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (image / link).symlink_to(target)
    binds = []
    for folder in [*folders, "/dev"]:
        (image / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        binds.append(f'mount --bind {folder} "$1"{folder}')
    script = "\n".join([*binds, 'exec chroot "$1" /hook'])
    return subprocess.run(
        [find("unshare"), "-m", find("sh"), "-ec", script, "sh", image],
        env={"PATH": "/usr/sbin:/usr/bin", "SOURCE_DATE_EPOCH": str(EPOCH)},
        capture_output=True,
        text=True,
        check=False,
    )


def find_library_folders() -> list[str]:
    return [str(path) for path in (*Path("/usr/lib").glob("*-linux-gnu*"), Path("/usr/lib64"))]


@needs_root
def test_systemd_link_is_the_one_that_systemctl_makes(image: Path, tmp_path: Path) -> None:
    (image / "usr/lib/systemd/systemd").touch(mode=0o755)
    ended = run_enable_hook(image, ["/usr/bin", *find_library_folders()])
    assert ended.returncode == 0, ended.stderr
    link = image / "etc/systemd/system/multi-user.target.wants/phantom-user-data.service"
    other = tmp_path / "other"
    (other / UNIT).parent.mkdir(parents=True)
    shutil.copy(STATIC / UNIT, other / UNIT)
    subprocess.run(
        ["systemctl", "--root", str(other), "enable", "phantom-user-data.service"],
        check=True,
        capture_output=True,
    )
    made = other / link.relative_to(image)
    assert os.readlink(link) == os.readlink(made) == "/" + UNIT
    assert link.lstat().st_mtime == EPOCH


@needs_root
@pytest.mark.skipif(not Path("/usr/sbin/update-rc.d").exists(), reason="not a Debian host")
def test_init_script_is_enabled_where_there_is_no_systemd(image: Path) -> None:
    folders = ["/usr/bin", "/usr/sbin", "/usr/share/perl5", *find_library_folders()]
    ended = run_enable_hook(image, folders)
    assert ended.returncode == 0, ended.stderr
    for level in "2345":
        links = list((image / f"etc/rc{level}.d").glob("S??phantom-user-data"))
        assert len(links) == 1, level
        assert os.readlink(links[0]) == "../init.d/phantom-user-data"


@needs_root
def test_image_without_an_init_system_is_refused(image: Path) -> None:
    ended = run_enable_hook(image, ["/usr/bin", *find_library_folders()])
    assert ended.returncode == 1
    assert "no systemd, update-rc.d or chkconfig in this image" in ended.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this host has no systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """systemd-analyze also finds cycles in the order of units and unknown settings."""
    units = tmp_path / "units"
    wants = units / "multi-user.target.wants"
    wants.mkdir(parents=True)
    text = (STATIC / UNIT).read_text().replace("/" + PROGRAM, str(STATIC / PROGRAM))
    (units / "phantom-user-data.service").write_text(
        re.sub("(?m)^Documentation=.*$", "", text), encoding="utf-8"
    )
    (wants / "phantom-user-data.service").symlink_to("../phantom-user-data.service")
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "multi-user.target", "phantom-user-data.service"],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "phantom" not in ended.stderr
    assert "cycle" not in ended.stderr


def test_systemd_unit_has_the_settings_that_others_rely_on() -> None:
    lines = (STATIC / UNIT).read_text().splitlines()
    for line in (
        "Type=oneshot",
        "RemainAfterExit=yes",
        "TimeoutStartSec=0",
        "StandardOutput=journal+console",
        "Wants=network-online.target",
        f"ExecStart=/{PROGRAM}",
        "WantedBy=multi-user.target",
    ):
        assert line in lines
