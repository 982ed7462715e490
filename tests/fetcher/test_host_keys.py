"""The maker of SSH host keys (elements/phantom-ssh), run with the real ssh-keygen."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fetcher_guest import SHELLS, STATIC, find

ELEMENT = STATIC.parents[1] / "phantom-ssh/static"
PROGRAM = ELEMENT / "usr/lib/phantom/make-host-keys"
QUICK = ["ssh_host_ecdsa_key", "ssh_host_ed25519_key"]

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH here")


def run(root: Path, shell: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find(shell[0]), *shell[1:], str(PROGRAM), *arguments],
        env={**os.environ, "PHANTOM_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/ssh/sshd_config.d").mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config").write_text("Include /etc/ssh/sshd_config.d/*.conf\n")
    return tmp_path


def keys(root: Path) -> list[str]:
    found = sorted(root.glob("etc/ssh/ssh_host_*_key"))
    for key in found:
        assert key.stat().st_mode & 0o777 == 0o600
        public = subprocess.run(
            ["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True
        )
        told = key.with_name(f"{key.name}.pub")
        assert told.read_text().split()[:2] == public.stdout.split()[:2]
        assert told.stat().st_mode & 0o777 == 0o644
    assert len([*root.glob("etc/ssh/*")] + [*root.glob("etc/ssh/.*")]) == 2 + 2 * len(found)
    return [key.name for key in found]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_quick_keys_come_first(root: Path, shell: tuple[str, ...]) -> None:
    (root / "etc/ssh/ssh_host_ecdsa_key").touch()  # a machine lost power
    assert run(root, shell).returncode == 0
    assert keys(root) == QUICK
    before = (root / "etc/ssh/ssh_host_ed25519_key").read_bytes()
    assert run(root, shell).returncode == 0
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == before


def test_the_rest_is_made_later(root: Path) -> None:
    """A process that took the number of an sshd which has ended gets no signal."""
    sleeper = subprocess.Popen([find("sleep"), "600"])
    (root / "run").mkdir()
    (root / "run/sshd.pid").write_text(f"{sleeper.pid}\n")
    assert run(root, ("dash",)).returncode == 0
    environment = {**os.environ, "PHANTOM_ROOT": str(root)}
    maker = subprocess.Popen([find("dash"), PROGRAM, "rest"], env=environment)
    try:
        while not (root / "etc/ssh/ssh_host_rsa_key").exists():
            assert maker.poll() is None
            time.sleep(0.1)
        assert keys(root) == [*QUICK, "ssh_host_rsa_key"]
        assert sleeper.poll() is None
    finally:
        for process in (maker, sleeper):
            process.kill()
            process.wait()


@pytest.mark.parametrize("place", ["sshd_config", "sshd_config.d/rsa.conf"])
def test_sshd_that_has_only_an_rsa_key(root: Path, place: str) -> None:
    """It would not start before that key is there."""
    (root / "etc/ssh" / place).write_text(' HostKey "/etc/ssh/ssh_host_rsa_key"\n')
    assert run(root, ("dash",)).returncode == 0
    assert (root / "etc/ssh/ssh_host_rsa_key").stat().st_size > 0


def test_no_program_that_makes_keys(root: Path) -> None:
    (root / "bin").mkdir()
    for tool in ("cat", "sed", "rm"):
        (root / "bin" / tool).symlink_to(find(tool))
    ended = subprocess.run(
        [find("dash"), PROGRAM],
        env={"PHANTOM_ROOT": str(root), "PATH": str(root / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == "phantom-ssh: error: no SSH host key could be made\n"
