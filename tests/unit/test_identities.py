"""What packages make while they are installed and each machine has to have for itself."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ELEMENT = Path(__file__).parents[2] / "elements" / "phantom-debian"
PROGRAM = ELEMENT / "bin" / "identities.py"
MAKERS = sorted(file.name for file in (ELEMENT / "identities").iterdir())
SERVICE = "etc/systemd/system/phantom-identities.service"
WANTED = "etc/systemd/system/basic.target.wants/phantom-identities.service"

sys.path.insert(0, str(PROGRAM.parent))
import identities  # noqa: E402


class Tree:
    """A small image with a package that owns some files, after the transaction."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tree"
        self.record = folder / "record.json"
        self.output = folder / "identities.json"
        self.aside = folder / "aside"
        self.write("var/lib/dpkg/info/owner.list", "/.\n/etc\n/etc/owned.key\n/etc/owner.conf\n")
        self.write("etc/owned.key", KEY)
        self.write("etc/owner.conf", "setting = 1\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n")

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> Path:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def note(self) -> None:
        """The end of the packages' transaction."""
        self.run("record")

    def hide(self) -> None:
        """The moment before the initramfs is made."""
        self.run("hide", str(ELEMENT), str(self.aside))

    def settle(self, **environment: str) -> Any:
        """The end of the build; what it tells."""
        self.run("show", str(self.aside))
        self.run("settle", str(ELEMENT), str(self.output), **environment)
        return json.loads(self.output.read_text())

    def run(self, command: str, *words: str, **environment: str) -> None:
        argv = [sys.executable, "-B", str(PROGRAM), command, str(self.path), str(self.record)]
        subprocess.run([*argv, *words], check=True, env={**os.environ, **environment}, timeout=60)

    def content(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of all that is in it."""
        told = {}
        for path in sorted(self.path.rglob("*")):
            mode = path.lstat().st_mode
            if path.is_symlink():
                content = os.readlink(path).encode()
            else:
                content = b"" if stat.S_ISDIR(mode) else path.read_bytes()
            told[str(path.relative_to(self.path))] = (mode, content)
        return told


KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\n-----END PRIVATE KEY-----\n"
CERTIFICATE = (
    "-----BEGIN CERTIFICATE-----\nMIIDXTCCAkWgAwIBAgIJAKL0UG+mRkSP\n-----END CERTIFICATE-----\n"
)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def files_of(maker: str) -> list[str]:
    (found,) = (
        each for each in identities.read_makers(ELEMENT / "identities") if each.name == maker
    )
    return list(found.files)


def install(tree: Tree, maker: str, secret: bytes) -> None:
    """What the maker's package does when it is installed."""
    for path in files_of(maker):
        tree.write(path, secret, 0o600)


@pytest.mark.parametrize("maker", MAKERS)
def test_each_maker(maker: str, tree: Tree) -> None:
    install(tree, maker, b"drawn once")
    tree.note()
    files = [f"/{path}" for path in files_of(maker)]
    tree.hide()
    assert not [file for file in files if os.path.lexists(f"{tree.path}{file}")]
    assert tree.settle()["made_at_boot"] == [{"package": maker, "files": files}]
    assert not any((tree.path / path).exists() for path in files_of(maker))
    assert os.readlink(tree.path / WANTED) == f"/{SERVICE}"
    (added,) = (tree.path / "usr/lib/phantom/identities").iterdir()
    text = added.read_text()
    for file in files:
        assert f"    chown {os.getuid()}:{os.getgid()} {file}\n    chmod 0600 {file}\n" in text
    program = tree.path / "usr/lib/phantom/make-identities"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    checked = ["shellcheck", "--shell=sh", "--exclude=SC2034", str(added)]
    subprocess.run(checked, check=True, timeout=60)


def test_two_builds_are_the_same(tmp_path: Path) -> None:
    """Whatever was drawn during two builds, their trees are the same in the end."""
    contents = []
    for number in (1, 2):
        tree = Tree(tmp_path / str(number))
        for maker in MAKERS:
            install(tree, maker, random.Random(number).randbytes(200))
        tree.write("etc/postfix/main.cf", "myhostname = localhost\nmyorigin = /etc/mailname\n")
        tree.note()
        told = tree.settle()
        assert [each["package"] for each in told["made_at_boot"]] == MAKERS
        assert told["shared"] == []
        contents.append(tree.content())
    assert contents[0] == contents[1]
    assert contents[0]["etc/postfix/main.cf"][1] == b"myorigin = /etc/mailname\n"


def test_an_image_without_them_is_left_alone(tree: Tree) -> None:
    tree.note()
    before = tree.content()
    assert tree.settle() == {"made_at_boot": [], "shared": []}
    assert tree.content() == before


def test_what_the_definition_brought_stays(tree: Tree) -> None:
    """A cluster's own key is the definition's, in place of what the package made or without it."""
    install(tree, "munge", b"drawn")
    install(tree, "bind9", b"drawn")
    tree.note()
    tree.write("etc/munge/munge.key", b"the cluster's", 0o600)
    tree.write("var/lib/rabbitmq/.erlang.cookie", "THECLUSTERS", 0o400)
    made = tree.settle()["made_at_boot"]
    assert [each["package"] for each in made] == ["bind9"]
    assert (tree.path / "etc/munge/munge.key").read_bytes() == b"the cluster's"
    assert (tree.path / "var/lib/rabbitmq/.erlang.cookie").exists()


def test_one_file_of_several_was_replaced(tree: Tree) -> None:
    """A key that belongs to another certificate would be of no use."""
    install(tree, "ssl-cert", KEY.encode())
    tree.note()
    tree.write("etc/ssl/certs/ssl-cert-snakeoil.pem", CERTIFICATE)
    told = tree.settle()
    assert told["made_at_boot"] == []
    key = "/etc/ssl/private/ssl-cert-snakeoil.key"
    assert told["shared"] == [{"file": key, "what": "a private key"}]


def test_links_to_a_certificate(tree: Tree) -> None:
    """Its hash link goes; a program's link to it will lead there again."""
    install(tree, "ssl-cert", KEY.encode())
    (tree.path / "etc/ssl/certs/1f2e3d4c.0").symlink_to("ssl-cert-snakeoil.pem")
    (tree.path / "etc/xrdp").mkdir()
    (tree.path / "etc/xrdp/cert.pem").symlink_to("/etc/ssl/certs/ssl-cert-snakeoil.pem")
    tree.note()
    tree.settle()
    assert list((tree.path / "etc/ssl/certs").iterdir()) == []
    assert (tree.path / "etc/xrdp/cert.pem").is_symlink()


@pytest.mark.parametrize("planted", ["etc/munge", "etc"])
def test_links_are_not_followed(planted: str, tree: Tree, tmp_path: Path) -> None:
    """A script of the definition may leave any link; what it leads to is the build host's."""
    install(tree, "munge", b"drawn")
    tree.note()
    folder = tree.path / planted
    outside = tmp_path / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    assert tree.settle()["made_at_boot"] == []
    assert sorted(outside.rglob("*")) == before


def test_a_link_where_the_service_would_be(tree: Tree, tmp_path: Path) -> None:
    install(tree, "munge", b"drawn")
    (tree.path / "usr/lib").mkdir(parents=True)
    (tree.path / "usr/lib/phantom").symlink_to(tmp_path)
    tree.note()
    with pytest.raises(subprocess.CalledProcessError):
        tree.settle()
    assert not (tmp_path / "make-identities").exists()


def drawn(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


SHARED: dict[str, dict[str, str | bytes]] = {
    "a private key": {
        "etc/server/tls.pem": CERTIFICATE + KEY,
        "var/lib/daemon/id_ed25519": KEY.replace("PRIVATE", "OPENSSH PRIVATE"),
        "root/.age": "AGE-SECRET-KEY-1QQPQYHA\n",
    },
    "an id": {
        "etc/daemon/uuid": "4f8c9f1e-6f0b-4c52-9a51-0d7a3f6f8e21\n",
        "var/lib/libvirt/network.xml": "<uuid>4F8C9F1E-6F0B-4C52-9A51-0D7A3F6F8E21</uuid>\n",
    },
    "random bytes": {
        "etc/cluster/authkey": drawn(128),
        "var/lib/daemon/seed": drawn(512),
        "var/lib/daemon/short": drawn(32),
    },
    "an id or a secret": {
        "etc/daemon/report.conf": f'HOSTID="{drawn(16).hex()}"\n',
        "var/lib/app/secret.php": "<?php $secret = 'q8Zr1Tn0bVx4KdP9mWs2Lh7c'; ?>\n",
    },
}


@pytest.mark.parametrize(
    ("what", "path"), [(what, path) for what, files in SHARED.items() for path in files]
)
def test_what_no_maker_knows_is_told(what: str, path: str, tree: Tree) -> None:
    tree.write(path, SHARED[what][path])
    tree.note()
    assert tree.settle() == {"made_at_boot": [], "shared": [{"file": f"/{path}", "what": what}]}
    assert (tree.path / path).exists()


def test_a_short_password_that_not_everybody_may_read(tree: Tree) -> None:
    tree.write("etc/mysql/debian.cnf", "password = k3X9mQz7Rw1b\n", 0o600)
    tree.write("etc/mysql/other.cnf", "password = k3X9mQz7Rw1b\n", 0o644)
    tree.note()
    assert tree.settle()["shared"] == [{"file": "/etc/mysql/debian.cnf", "what": "a secret"}]


ORDINARY: dict[str, str | bytes] = {
    "etc/ssl/certs/ca-certificates.crt": CERTIFICATE,
    "etc/daemon/ca.pem": CERTIFICATE,
    "etc/shadow": "root:$y$j9T$q8Zr1Tn0bVx4KdP9mWs2Lh7c$abc:19723:0:99999:7:::\n",
    "etc/ca-certificates.conf": "mozilla/D-TRUST_EV_Root_CA_1_2020.crt\nmozilla/UCA_Global_G2_R1\n",
    "etc/java.jfc": '<event name="jdk.G1HeapRegionTypeChange">\n',
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/paths.conf": "/usr/lib/x86_64-linux-gnu/security/pam_systemd_home.so.1.2.3\n",
    "etc/bus.conf": "org.freedesktop.NetworkManager.GetAllDevicesAndConnections2\n",
    "etc/pam.d/common-auth": "auth [success=1 default=ignore] pam_unix.so nullok\n",
    "etc/zeros": bytes(4096),
    "var/lib/daemon/records.gz": b"\x1f\x8b\x08\x00" + drawn(4000),
    "var/lib/daemon/numbers": b"".join(n.to_bytes(4, "little") for n in range(500)),
    "var/lib/daemon/unicode": "Größe, façade, 日本語のテキスト\n" * 20,
    "var/lib/daemon/empty": "",
    "var/log/install.log": KEY,
}


@pytest.mark.parametrize("path", ORDINARY)
def test_ordinary_files_are_not_told(path: str, tree: Tree) -> None:
    tree.write(path, ORDINARY[path], 0o640)
    tree.note()
    assert tree.settle()["shared"] == []


def test_what_scripts_make(tree: Tree, tmp_path: Path) -> None:
    """A key that a script made is every machine's; a key that the definition copied is meant so."""
    tree.note()
    tree.write("etc/app/made.key", KEY)
    tree.write("etc/app/copied.key", KEY)
    tree.write("etc/app/id", "4f8c9f1e-6f0b-4c52-9a51-0d7a3f6f8e21\n")
    (tmp_path / "appliance/files/etc/app").mkdir(parents=True)
    (tmp_path / "appliance/files/etc/app/copied.key").write_text(KEY)
    told = tree.settle(PHANTOM_APPLIANCE=str(tmp_path / "appliance"))
    assert told["shared"] == [{"file": "/etc/app/made.key", "what": "a private key"}]


def test_random_words_are_recognised() -> None:
    """Most: by chance a word has hardly any digits, or they hardly alternate."""
    import base64

    words = [base64.b64encode(drawn(24, seed)).rstrip(b"=") for seed in range(1000)]
    assert sum(map(identities.is_random_word, words)) > 900
    assert all(identities.is_random(drawn(64, seed)) for seed in range(300))
    assert all(identities.is_random_word(drawn(16, seed).hex().encode()) for seed in range(300))


def test_what_was_hidden_comes_back_to_its_own_place_only(tmp_path: Path) -> None:
    """A hook that ran meanwhile has put a file of its own there, or a link in a folder's place."""
    tree = Tree(tmp_path)
    tree.write("etc/munge/munge.key", os.urandom(128), 0o400)
    tree.write("etc/bind/rndc.key", 'secret "Zm9v";\n', 0o640)
    tree.note()
    tree.hide()
    tree.write("etc/munge/munge.key", b"the hook's own")
    (tree.path / "etc/bind").rmdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree.path / "etc/bind").symlink_to(outside)
    assert tree.settle()["made_at_boot"] == []
    assert (tree.path / "etc/munge/munge.key").read_bytes() == b"the hook's own"
    assert list(outside.iterdir()) == []
