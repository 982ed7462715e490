"""phantom-debian: what counts as installed, and name servers without systemd-resolved."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ELEMENT = Path(__file__).parents[2] / "elements/phantom-debian"
STATUS = "\n\n".join(
    f"Package: {name}\nStatus: {status}\nVersion: 1.0\nArchitecture: amd64\nDescription: toy"
    for name, status in {
        "usual": "install ok installed",
        "held": "hold ok installed",
        "unwanted": "deinstall ok installed",
        "purged": "purge ok config-files",
        "removed": "deinstall ok config-files",
        "half": "install ok half-configured",
        "broken": "install reinstreq half-installed",
    }.items()
)


def install_packages(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "status").write_text(STATUS + "\n")
    (folder / "updates").mkdir(exist_ok=True)
    program = folder / "pkg-map"
    program.write_text('#!/bin/sh\n[ "$1 $2" = "--element base" ] && echo usual held\n')
    program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        [ELEMENT / "bin/install-packages", *words],
        env={**os.environ, "DPKG_ADMINDIR": str(folder), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_installed_whatever_is_wished_for_it(tmp_path: Path) -> None:
    assert install_packages(tmp_path, "usual", "held", "unwanted").returncode == 0
    for name in ("purged", "removed", "half", "broken", "nothing"):
        done = install_packages(tmp_path, "usual", name)
        assert done.returncode == 1
        assert done.stderr == (
            f"install-packages: not in the image: {name}; name them in the definition's packages "
            "or in the element's package-installs.yaml\n"
        )


def test_the_options_of_diskimage_builder_s_install_packages(tmp_path: Path) -> None:
    for words in (["-u"], ["-e", "usual"], ["-m", "base", "iscsi_package"], ["-d", "held"], []):
        assert install_packages(tmp_path, *words).returncode == 0, words


RESOLV_CONF = (ELEMENT / "static/usr/lib/phantom/resolv-conf").read_text()
SHELLS = (["dash"], ["bash", "--posix"])


def hand_over(folder: Path, shell: list[str]) -> None:
    """Runs the program that phantom-resolv-conf.service runs, on files of a folder."""
    script = RESOLV_CONF
    for path, ours in (("/run/systemd/netif/state", "state"), ("/etc/resolv.conf", "resolv.conf")):
        assert script.count(path) == 1
        script = script.replace(path, str(folder / ours))
    path = f"{folder}:/usr/bin:/bin"
    subprocess.run([*shell, "-c", script], env={"PATH": path}, check=True)


@pytest.mark.parametrize(
    ("state", "servers"),
    [
        ("OPER_STATE=routable\nDNS=10.0.2.3\n", "nameserver 10.0.2.3\n"),
        (
            "DNS=10.0.2.3 fe80::1%eth0 9.9.9.9#dns.example\nDOMAINS=example.org lab.example\n"
            "ROUTE_DOMAINS=\n",
            "nameserver 10.0.2.3\nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n"
            "search example.org lab.example\n",
        ),
        ("OPER_STATE=degraded\n", None),
        (None, None),
    ],
)
def test_name_servers_reach_resolvconf(
    tmp_path: Path, state: str | None, servers: str | None
) -> None:
    told = tmp_path / "told"
    if state is not None:
        (tmp_path / "state").write_text(state)
    program = tmp_path / "resolvconf"
    program.write_text(f'#!/bin/sh\n[ "$*" = "-a phantom" ] && cat >{told}\n')
    program.chmod(0o755)
    for shell in SHELLS:
        hand_over(tmp_path, shell)
        assert (told.read_text() if told.exists() else None) == servers
        assert not (tmp_path / "resolv.conf").exists()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_name_servers_are_written_down_where_nobody_else_does(
    tmp_path: Path, shell: list[str]
) -> None:
    written, state = tmp_path / "resolv.conf", tmp_path / "state"
    for server in ("10.0.2.3", "10.0.2.4"):
        state.write_text(f"DNS={server}\n")
        hand_over(tmp_path, shell)
        assert written.read_text() == (
            f"# Written by phantom-resolv-conf.service\nnameserver {server}\n"
        )
    written.write_text("nameserver 127.0.0.1\n")  # a daemon's own
    hand_over(tmp_path, shell)
    assert written.read_text() == "nameserver 127.0.0.1\n"
