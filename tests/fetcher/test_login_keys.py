"""Who may log in: the launch's public keys, as the fetcher gets and writes them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_metadata import Ec2Version1, Fault, FaultyServer
from fetcher_guest import STATIC, TOOL_SETS, Guest, Outcome, find

from pipeline.clouds.ec2.metadata import Ec2Metadata
from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.machine.metadata import Answer, MetadataServer, Request, find_meta_data

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx0 someone@example.org"
OTHER = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY= {other}"
DATA = b"#!/bin/sh\nexit 0\n"
PROGRAM = STATIC / "usr/lib/phantom/write-login-keys"


@pytest.fixture
def home(guest: Guest) -> Path:
    """Root's, of the guest."""
    made = guest.root / "root"
    made.mkdir(mode=0o700)
    return made


def run(guest: Guest, key: str | None = KEY, service: Ec2Version1 | None = None) -> Outcome:
    with MetadataServer(service or Ec2Version1(user_data=DATA, public_key=key)) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == 0, outcome.output
    return outcome


def lines(home: Path) -> list[str]:
    return (home / ".ssh/authorized_keys").read_text().splitlines()


def set_login(guest: Guest, user: str) -> None:
    options = guest.root / "etc/default/phantom-user-data"
    text = options.read_text()
    assert "PHANTOM_LOGIN_USER=root\n" in text
    options.write_text(text.replace("LOGIN_USER=root", f"LOGIN_USER={user}"))


def test_the_key_is_written_once(guest: Guest, home: Path) -> None:
    first, second = run(guest), run(guest)
    assert "wrote 1 of the launch's public keys into" in first.output
    assert "public keys" not in second.output
    assert lines(home) == [KEY]
    for path, mode in ((".ssh", 0o700), (".ssh/authorized_keys", 0o600)):
        status = (home / path).lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, os.geteuid())
    assert [path.name for path in (home / ".ssh").iterdir()] == ["authorized_keys"]


def test_a_token_is_used_where_one_is_required(guest: Guest, home: Path) -> None:
    if guest.platform.client == "curl":
        run(guest, service=Ec2Metadata(user_data=DATA, public_key=KEY))  # type: ignore[arg-type]
        assert lines(home) == [KEY]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_keys_that_are_there_stay(guest: Guest, home: Path, ending: str) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/authorized_keys").write_text(f"# mine\n{OTHER}{ending}")
    run(guest)
    assert lines(home) == ["# mine", OTHER, KEY]
    options = f'command="/bin/false" {KEY.rpartition(" ")[0]}{ending}'
    (home / ".ssh/authorized_keys").write_text(options)
    run(guest)
    assert lines(home) == [options.rstrip()]  # whoever wrote that meant it


def test_a_key_whose_beginning_is_there_is_another(guest: Guest, home: Path) -> None:
    (home / ".ssh").mkdir()
    longer = KEY.replace("IJx0", "IJx0AAAA")
    (home / ".ssh/authorized_keys").write_text(f"{longer}\n")
    run(guest)
    assert lines(home) == [longer, KEY]


@pytest.mark.parametrize(
    "key", ["<html>", f'command="reboot" {KEY}', "ssh-ed25519", "ssh-rsa $(reboot)", ""]
)
def test_what_is_no_key_is_not_written(guest: Guest, home: Path, key: str) -> None:
    run(guest, key)
    assert not (home / ".ssh").exists()


def test_no_key_pair(guest: Guest, home: Path) -> None:
    assert "key" not in run(guest, None).output
    assert not (home / ".ssh").exists()


@pytest.mark.parametrize("to_directory", [False, True])
def test_a_link_in_the_place_of_the_file_is_replaced(
    guest: Guest, home: Path, to_directory: bool
) -> None:
    victim = guest.root / "victim"
    (home / ".ssh").mkdir()
    if to_directory:
        victim.mkdir()
    else:
        victim.write_text("precious\n")
    for name in ("authorized_keys", ".phantom-keys"):
        (home / ".ssh" / name).symlink_to(victim)
    run(guest)
    assert lines(home) == [KEY]
    assert not (home / ".ssh/authorized_keys").is_symlink()
    assert list(victim.iterdir()) == [] if to_directory else victim.read_text() == "precious\n"


def test_a_link_in_the_place_of_the_folder_is_refused(guest: Guest, home: Path) -> None:
    (guest.root / "victim").mkdir()
    (home / ".ssh").symlink_to(guest.root / "victim")
    assert "is a symbolic link: no key is written through it" in run(guest).output
    assert list((guest.root / "victim").iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class OpenStack(Ec2Version1):
    """OpenStack's own metadata, where EC2's has no keys."""

    document: str

    def answer(self, request: Request) -> Answer:
        if request.path == "/openstack/latest/meta_data.json":
            return Answer(status=200, body=self.document.encode())
        return super().answer(request)


@pytest.mark.parametrize("indent", [None, 1])
def test_openstack(guest: Guest, home: Path, indent: int | None) -> None:
    keys = {"ssh-name": f"{KEY}\n", "second, or \\": OTHER.replace("{other}", "two")}
    told = {
        "meta": {"note": '"public_keys": {"a": "' + KEY.replace("IJx0", "FALSE") + '"}'},
        "public_keys": keys,
        "hostname": "a",
    }
    document = json.dumps(told, indent=indent).replace("/", "\\/")
    run(guest, service=OpenStack(user_data=DATA, document=document))
    assert lines(home) == [KEY, OTHER.replace("{other}", "two")]
    assert "key" not in run(guest, service=OpenStack(user_data=DATA, document='{"a": 1}')).output


@dataclass(frozen=True, kw_only=True)
class TwoPairs(Ec2Version1):
    def answer(self, request: Request) -> Answer:
        top = "/latest/meta-data/public-keys/"
        keys: Mapping[str, str] = {"0/openssh-key": KEY, "1/openssh-key": OTHER}
        if request.path == top:
            return Answer(status=200, body=b"0=mine\n1=yours")
        return find_meta_data(keys, request.path, top) or super().answer(request)


def test_two_pairs(guest: Guest, home: Path) -> None:
    run(guest, service=TwoPairs(user_data=DATA))
    assert lines(home) == [KEY, OTHER]


def test_a_service_that_is_late_with_keys(guest: Guest, home: Path) -> None:
    service = Ec2Version1(user_data=DATA, public_key=KEY)
    skipped = [None] if guest.platform.client == "busybox" else [None, None]
    with FaultyServer(service, [*skipped, Fault.UNAVAILABLE, Fault.ERROR]) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 0
    assert lines(home) == [KEY]
    with FaultyServer(service, [*skipped, *[Fault.ERROR] * 4]) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == 0
    assert "cannot get the launch's public keys, going on without them: HTTP 500" in outcome.output


def test_a_user_of_the_image(guest: Guest, home: Path) -> None:
    set_login(guest, "ops")
    (guest.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nops:x:0:0::/home/ops:\n")
    (guest.root / "home/ops").mkdir(parents=True)
    run(guest)
    assert lines(guest.root / "home/ops") == [KEY]
    assert not (home / ".ssh").exists()


@pytest.mark.parametrize("user", ["", "-x", "a b", "$(reboot)", "../a"])
def test_what_is_no_name(guest: Guest, user: str) -> None:
    set_login(guest, f"'{user}'")
    outcome = guest.run()
    assert outcome.status == (75 if user == "" else 78)


def test_nimbus_node_has_written_roots(guest: Guest, home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/authorized_keys").write_text(f"{OTHER}\n")
    (guest.root / "etc/passwd").write_text("ops:x:0:0::/home/ops:\n")
    (guest.root / "home/ops").mkdir(parents=True)
    for user in ("root", "ops"):
        if user == "ops":
            set_login(guest, user)
        with MetadataServer(NimbusMetadata(user_data=DATA, public_key=KEY)) as server:
            guest.use_nimbus(server.url)
            assert guest.run().status == 0
        assert [request.path for request in server.requests] == ["/latest/user-data"]
    assert lines(home) == lines(guest.root / "home/ops") == [OTHER]


@pytest.mark.parametrize("platform", TOOL_SETS[:1], ids=str)
def test_cloud_init_writes_roots(guest: Guest, home: Path) -> None:
    guest.set_options(LEAVE_TO_CLOUD_INIT="yes")
    (guest.root / "run/cloud-init").mkdir()
    (guest.root / "run/cloud-init/status.json").write_text(
        '{"v1": {"datasource": "DataSourceEc2"}}'
    )
    run(guest)
    assert not (home / ".ssh").exists()
    set_login(guest, "ops")
    (guest.root / "etc/passwd").write_text("ops:x:0:0::/home/ops:\n")
    (guest.root / "home/ops").mkdir(parents=True)
    assert "left to it, nothing run" in run(guest).output
    assert lines(guest.root / "home/ops") == [KEY]


# ---- users of a real system


def write_as(image: Path, user: str) -> str:
    """Runs the program as root of an image that has this host's programs; what it says."""
    for link, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        if not (image / link).is_symlink():
            (image / link).symlink_to(target)
    shutil.copy(PROGRAM, image / "write-login-keys")
    (image / "write-login-keys").chmod(0o755)
    binds = []
    for folder in ("/usr", "/dev", "/proc"):
        (image / folder[1:]).mkdir(exist_ok=True)
        binds.append(f'mount --rbind {folder} "$1"{folder}')
    script = "\n".join([*binds, 'exec chroot "$1" /write-login-keys "$2"'])
    ended = subprocess.run(
        [find("unshare"), "-m", find("sh"), "-ec", script, "sh", image, user],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        input=f"{KEY}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0 or "error: " in ended.stdout, ended.stderr
    return ended.stdout


@pytest.fixture
def system(tmp_path: Path) -> Path:
    image = tmp_path / "system"
    shutil.copytree("/etc/pam.d", image / "etc/pam.d")
    for folder in ("home", "root", "tmp", "etc/sudoers.d"):
        (image / folder).mkdir()
    image.chmod(0o755)
    (image / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nold:x:1500:1500::/home/old:/bin/sh\n"
    )
    (image / "etc/group").write_text("root:x:0:\nold:x:1500:\n")
    (image / "etc/shadow").write_text("root:*:19000::::::\nold:!:19000::::::\n")
    (image / "etc/login.defs").write_text("UID_MIN 1000\nUID_MAX 60000\nUSERGROUPS_ENAB yes\n")
    (image / "home/old").mkdir()
    os.chown(image / "home/old", 1500, 1500)
    return image


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be by root")


@needs_root
def test_a_user_who_is_made(system: Path) -> None:
    said = write_as(system, "ops")
    assert "made the user ops" in said
    assert ("ops:x:" in (system / "etc/passwd").read_text()) and "\nops:*:" in (
        system / "etc/shadow"
    ).read_text()
    assert lines(system / "home/ops") == [KEY]
    owner = (system / "home/ops").stat().st_uid
    assert owner >= 1000
    for path, mode in ((".ssh", 0o700), (".ssh/authorized_keys", 0o600)):
        status = (system / "home/ops" / path).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner, mode)
    rules = system / "etc/sudoers.d/phantom-login"
    if "sudo is not in this image" in said:
        assert not rules.exists()
    else:
        assert rules.read_text() == "ops ALL=(ALL) NOPASSWD:ALL\n"
        assert stat.S_IMODE(rules.stat().st_mode) == 0o440
    assert "made" not in write_as(system, "ops")
    assert lines(system / "home/ops") == [KEY]


@needs_root
def test_a_user_cannot_lead_root_elsewhere(system: Path) -> None:
    """Root writes nothing itself in a folder that is another user's."""
    assert "wrote 1 of" in write_as(system, "old")
    assert (system / "home/old/.ssh/authorized_keys").stat().st_uid == 1500
    shutil.rmtree(system / "home/old/.ssh")
    (system / "root/.ssh").mkdir(mode=0o700)
    (system / "home/old/.ssh").symlink_to("/root/.ssh")
    assert "error: " in write_as(system, "old")
    os.rename(system / "home/old", system / "home/real")
    (system / "home/old").symlink_to("/root")
    assert "error: " in write_as(system, "old")
    assert list((system / "root/.ssh").iterdir()) == []
    assert not (system / "etc/sudoers.d/phantom-login").exists()
