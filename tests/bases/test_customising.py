"""A definition's files, packages and scripts in a base image, and the cleaning of the image."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from base_images import Bases
from debian_packages import make_package, serving
from guests import Heard, image_of, mounted

from pipeline.definitions.packages import read_package_file
from pipeline.errors import (
    DefinitionError,
    FileSystemError,
    PackageManagerError,
    PackagesFailedError,
    ScriptError,
    ScriptHungError,
    ScriptRebootError,
    StageFailedError,
    UnsafeImageError,
)
from pipeline.guest import identities, keeping
from pipeline.guest.appliance import Guest
from pipeline.guest.cleaning import clean, forget_proxies
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.packages import change_packages, list_packages
from pipeline.guest.programs import run_program
from pipeline.guest.remarks import find_remarks
from pipeline.guest.scripts import run_scripts
from pipeline.sources.copied import Copied, CopiedFile, CopiedFolder, CopiedLink, bring
from pipeline.stages.base import own_file
from pipeline.tools import deb

P = PurePosixPath


@pytest.fixture(scope="module")
def opened(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Heard]]:
    """An appliance with a copy of a small Debian, for all tests here that do not end it."""
    root = bases.copy_root("plain", "customising.ext4")
    with mounted(root, tmp_path_factory.mktemp("opened"), network=True) as both:
        yield both


@pytest.fixture
def guest(opened: tuple[Guest, Heard]) -> Guest:
    return opened[0]


@pytest.fixture
def heard(opened: tuple[Guest, Heard]) -> Heard:
    opened[1].lines.clear()
    return opened[1]


@pytest.fixture
def files(guest: Guest) -> ImageFiles:
    return ImageFiles(guest)


def shape(guest: Guest, path: str) -> tuple[int, int, int]:
    """Mode, owner and group."""
    status = guest.handle.lstatns(path)
    return status["st_mode"] & 0o7777, status["st_uid"], status["st_gid"]


def script(folder: Path, text: str, name: str = "customise") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ---- files


def test_files_land_with_their_modes_and_belong_to_root(
    guest: Guest, files: ImageFiles, tmp_path: Path
) -> None:
    source, large = tmp_path / "source", tmp_path / "large"
    source.write_bytes(b"content\n")
    large.write_bytes(b"\0\xff" * (5 << 19))
    copies = [
        Copy(target=P(f"/opt/new/{n % 7}/{n}"), mode=0o640, source=source) for n in range(300)
    ]
    copies.append(Copy(target=P("/usr/local/bin/large"), mode=0o4755, source=large))
    copies.append(Copy(target=P("/bin/merged"), mode=0o755, source=source))
    began = time.monotonic()
    files.copy([Copy(target=P("/opt/new/alone"), mode=0o640, source=source)])
    one = time.monotonic() - began
    files.copy(copies)
    assert time.monotonic() - began < 100 * one  # 302 files do not take 302 times as long
    files.write(P("/etc/new/text"), "grüße\n", 0o600)
    files.write(P("/etc/new/large"), large.read_bytes())

    assert files.read_bytes(P("/opt/new/3/3")) == b"content\n"
    assert len(files.names(P("/opt/new/3"))) == 43
    assert shape(guest, "/opt/new/3/3") == (0o640, 0, 0)
    assert shape(guest, "/opt/new/3") == (0o755, 0, 0)
    assert shape(guest, "/usr/local/bin/large") == (0o4755, 0, 0)
    assert files.read_bytes(P("/etc/new/large")) == large.read_bytes()
    assert files.read_bytes(P("/usr/bin/merged")) == b"content\n"
    assert (files.read_bytes(P("/etc/new/text")), files.mode(P("/etc/new/text"))) == (
        "grüße\n".encode(),
        0o600,
    )
    files.remove(P("/opt/new"))
    assert not files.exists(P("/opt/new"))
    assert not [name for name in files.names(P("/")) if name.startswith(".")]


def test_what_lies_in_the_place_of_a_file_is_replaced_not_written_to(
    guest: Guest, files: ImageFiles
) -> None:
    guest.handle.mkdir("/etc/odd")
    guest.handle.write("/etc/canary", b"canary")
    guest.handle.ln_s("/etc/canary", "/etc/odd/link")
    guest.handle.ln("/etc/canary", "/etc/odd/hard")
    guest.handle.mkfifo(0o600, "/etc/odd/fifo")
    guest.handle.mknod_c(0o600, 1, 3, "/etc/odd/device")
    for name in ("link", "hard", "fifo", "device"):
        assert files.read_bytes(P("/etc/odd") / name) == (b"canary" if name == "hard" else None)
        files.write(P("/etc/odd") / name, "ours")
        assert files.read_bytes(P("/etc/odd") / name) == b"ours"
    files.link(P("/etc/odd/link"), "/nowhere")
    assert files.read_link(P("/etc/odd/link")) == P("/nowhere")
    assert files.read_bytes(P("/etc/canary")) == b"canary"
    files.remove(P("/etc/odd/link"))
    assert not files.exists(P("/etc/odd/link"))

    # what lies at a path of our own is replaced; elsewhere, a folder is an error
    guest.handle.ln_s("/etc", "/usr/lib/phantom")
    guest.handle.mkdir("/etc/odd/phantom-file")
    files.write(P("/usr/lib/phantom/fetch"), "ours")
    files.write(P("/etc/odd/phantom-file"), "ours")
    assert files.names(P("/usr/lib/phantom")) == ["fetch"]
    with pytest.raises(FileSystemError) as caught:
        files.write(P("/etc/apt"), "ours")
    assert str(caught.value) == "the image's /etc/apt is a folder, and to be made a file"
    with pytest.raises(FileSystemError) as caught:
        files.write(P("/etc/hosts/below"), "ours")
    assert str(caught.value) == (
        "the image's /etc/hosts is no folder, and files are to be written into it"
    )


def test_links_in_the_place_of_folders_are_followed_only_where_distributions_have_them(
    guest: Guest, files: ImageFiles, tmp_path: Path
) -> None:
    guest.handle.ln_s("../etc/odd-one", "/srv/app")
    guest.handle.mkdir("/etc/odd-one")
    files.write(P("/var/run/usual"), "ours")  # /var/run is a link to /run
    assert files.read_bytes(P("/run/usual")) == b"ours"
    source = script(tmp_path, "ours")
    writers: list[Callable[[], None]] = [
        lambda: files.write(P("/srv/app/file"), "ours"),
        lambda: files.make_folder(P("/srv/app/folder")),
        lambda: files.link(P("/srv/app/link"), "target"),
        lambda: files.copy([Copy(target=P("/srv/app/file"), mode=0o644, source=source)]),
    ]
    for write in writers:
        with pytest.raises(UnsafeImageError) as caught:
            write()
        assert str(caught.value) == (
            "the image's /srv/app is a link to ../etc/odd-one, and files are to be written below "
            "it\n  do: make it a folder in the base image, or name files by the folder that it "
            "leads to"
        )
    files.remove(P("/srv/app/file"))
    assert files.names(P("/etc/odd-one")) == []
    assert not files.exists(P("/srv/app/file"))
    assert not [name for name in files.names(P("/")) if name.startswith(".")]


def test_a_full_file_system_is_said_and_nothing_stays_behind(
    guest: Guest, files: ImageFiles, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as content:
        content.write(b"\1" * (16 << 20))  # root may use the reserved blocks
    free = guest.handle.statvfs("/")
    guest.handle.fallocate64("/filler", (free["bavail"] - 512) * free["bsize"])
    expected = (
        "the image's root file system is full\n"
        "  do: give the appliance a larger disk_size, or remove something from the base"
    )
    try:
        with pytest.raises(FileSystemError) as caught:
            files.copy([Copy(target=P("/opt/large"), mode=0o644, source=large)])
        assert str(caught.value) == expected
        with pytest.raises(FileSystemError) as caught:
            files.write(P("/opt/large"), large.read_bytes())
        assert str(caught.value) == expected
        assert files.names(P("/opt")) == []
        assert not [name for name in files.names(P("/")) if name.startswith(".")]
    finally:
        guest.handle.rm("/filler")


# ---- scripts


def test_a_script_runs_as_root_and_leaves_nothing_running(
    guest: Guest, files: ImageFiles, heard: Heard, tmp_path: Path
) -> None:
    text = """#!/bin/sh -eu
echo "$(id -u) $(pwd) $HOME $LC_ALL ${http_proxy-none}"
cat
[ ! -t 0 ] && [ ! -t 1 ]
printf '\\033[31mred\\033[0m\\n10%%\\r100%%\\nno line end'
echo made >/opt/made-by-script
systemctl daemon-reload
trap '' HUP TERM
setsid sleep 1000 &
(while :; do :; done) &
"""
    run_scripts(image_of(guest), [script(tmp_path, text)], seconds=60, proxies={"http_proxy": "x"})
    wanted = ["0 / /root C.UTF-8 none", "red", "100%"]
    assert [line for line in heard.lines if line in wanted] == wanted
    assert any("no line end" in line for line in heard.lines)
    assert files.read_bytes(P("/opt/made-by-script")) == b"made\n"
    assert "sleep 1000" not in guest.handle.debug("sh", ["ps ax"])
    assert "/sysroot/" not in guest.handle.debug("sh", ["mount"])
    assert not [name for name in files.names(P("/")) if name.startswith(".")]


def test_scripts_see_the_network_only_if_it_is_asked_for(
    guest: Guest, files: ImageFiles, heard: Heard, tmp_path: Path
) -> None:
    before = files.read_link(P("/etc/resolv.conf")), files.read_bytes(P("/etc/resolv.conf"))
    text = "echo $http_proxy; cat /etc/resolv.conf; test ! -L /etc/resolv.conf\n"
    proxies = {"http_proxy": "http://localhost:3128"}
    asked = script(tmp_path, text)
    run_scripts(image_of(guest), [asked], seconds=60, network=True, proxies=proxies)
    assert heard.lines[0] == "http://169.254.2.2:3128"
    assert heard.lines[1].startswith("nameserver ")
    after = files.read_link(P("/etc/resolv.conf")), files.read_bytes(P("/etc/resolv.conf"))
    assert after == before


FAILURES = {
    "failed": (
        "#!/bin/sh\nseq 100\necho sorry >&2\nexit 7\n",
        "the definition's script customise failed in the base image with status 7\n"
        + "".join(f"  | {n}\n" for n in range(82, 101))
        + "  | sorry\n",
    ),
    "failed in bash": (
        "#!/bin/bash\nset -e\necho one\nls /nowhere\n",
        "customise:4: the definition's script customise failed in the base image with status 2: "
        "ls /nowhere\n  | one\n  | ls: cannot access '/nowhere': No such file or directory\n",
    ),
    "killed": (
        "#!/bin/sh\nkill -9 $$\n",
        "the definition's script customise failed in the base image with status 137\n  | Killed\n",
    ),
    "no interpreter": (
        "#!/usr/bin/python2 -E\n",
        "the definition's script customise needs /usr/bin/python2, which the base image does not "
        "have\n  do: add the package that has it, or write the script for /bin/sh",
    ),
    "Windows": (
        "#!/bin/sh\r\ntrue\r\n",
        "the definition's script customise has Windows line ends\n"
        "  do: save it with Unix line ends",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_script_is_named_with_its_last_lines(
    guest: Guest, files: ImageFiles, tmp_path: Path, case: str
) -> None:
    text, expected = FAILURES[case]
    marker = script(tmp_path, "touch /opt/not-reached\n", "second")
    with pytest.raises(ScriptError) as caught:
        run_scripts(image_of(guest), [script(tmp_path, text), marker], seconds=60)
    assert str(caught.value).removesuffix(f"  log: {guest.log}") == expected
    assert not files.exists(P("/opt/not-reached"))
    assert not [name for name in files.names(P("/")) if name.startswith(".")]


REBOOT = """the definition's script customise shut down the machine that it ran in
{detail}  do: leave reboots out: the image boots only when it is complete
  log: {log}"""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("reboot -f", "Rebooting."),
        pytest.param("halt -f", "Halting.", marks=pytest.mark.only_soak),
    ],
)
def test_a_script_that_reboots(
    guest: Guest, files: ImageFiles, tmp_path: Path, command: str, says: str
) -> None:
    text = f"#!/bin/sh\n{command}\nsleep 100\n"
    with pytest.raises(ScriptRebootError) as caught:
        run_scripts(image_of(guest), [script(tmp_path, text)], seconds=60)
    assert str(caught.value) == REBOOT.format(detail=f"  | {says}\n", log=guest.log)
    assert not guest.ended


def test_a_script_that_takes_the_kernel_down(bases: Bases, tmp_path: Path) -> None:
    root = bases.copy_root("plain", "reset.ext4")
    with mounted(root, tmp_path) as (guest, _heard):
        text = "#!/bin/sh\necho b >/proc/sysrq-trigger\nsleep 100\n"
        with pytest.raises(ScriptRebootError) as caught:
            run_scripts(image_of(guest), [script(tmp_path, text)], seconds=60)
        shown = re.sub(r"\[ *[0-9.]+\]", "[]", str(caught.value))
        assert shown == REBOOT.format(detail="  | [] sysrq: Resetting\n", log=guest.log)
        assert guest.ended


def test_a_script_that_hangs(bases: Bases, tmp_path: Path) -> None:
    root = bases.copy_root("plain", "hung.ext4")
    with mounted(root, tmp_path) as (guest, heard):
        text = "#!/bin/sh\necho waiting\ntrap '' TERM INT HUP\nwhile :; do :; done\n"
        with pytest.raises(ScriptHungError) as caught:
            run_scripts(image_of(guest), [script(tmp_path, text)], seconds=5)
        assert str(caught.value) == (
            "the definition's script customise did not end in the base image within 5 s\n"
            "  do: look at what it waits for, or set a higher `script_seconds`\n"
            f"  log: {guest.log}"
        )
        assert heard.lines == ["waiting"]
        assert guest.ended


# ---- packages


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "repository"
    folder.mkdir()
    make_package(
        folder,
        "greeting",
        files={"/usr/share/greeting": "hello\n", "/etc/greeting.conf": "theirs\n"},
        conffiles=["/etc/greeting.conf"],
        scripts={
            "postinst": "#!/bin/sh\nset -e\necho says greeting\n"
            "invoke-rc.d cron start || true\nsetsid sleep 500 &\n"
        },
        fields=["Recommends: chatter"],
    )
    make_package(folder, "chatter", files={"/usr/share/chatter": "x\n"})
    make_package(
        folder,
        "broken",
        files={"/usr/share/broken": "x\n"},
        scripts={"postinst": "#!/bin/sh\necho cannot be set up >&2\nexit 3\n"},
    )
    with serving(folder) as line:
        yield line


def test_packages_come_and_go(
    guest: Guest, files: ImageFiles, heard: Heard, repository: str
) -> None:
    image = image_of(guest)
    before = list_packages(image)
    resolver = files.read_link(P("/etc/resolv.conf")), files.read_bytes(P("/etc/resolv.conf"))
    files.write(P("/etc/greeting.conf"), "kept\n")
    files.write(P("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 0\n", 0o755)

    def change(install: Sequence[str], remove: Sequence[str] = (), *, network: bool) -> None:
        change_packages(
            image,
            install=install,
            remove=remove,
            network=network,
            apt_sources=repository if network else None,
            proxies={},
        )

    with pytest.raises(DefinitionError) as caught:
        change(["cron", "greeting", "other"], network=False)
    assert str(caught.value) == (
        "the base image lacks greeting, other, and is not given a network to get them\n"
        "  do: write `network: true` below `base_image`, or leave these packages out"
    )
    change(["cron", "udev:amd64"], ["not-there"], network=False)
    assert heard.lines == []

    change(["greeting", "cron"], ["ifupdown"], network=True)
    assert "says greeting" in heard.lines
    assert any("policy-rc.d denied execution of start" in line for line in heard.lines)
    expected = [each for each in before if each[0] != "ifupdown"]
    assert list_packages(image) == sorted([*expected, ("greeting", "1", "all")])
    assert files.read_bytes(P("/etc/greeting.conf")) == b"kept\n"
    assert files.read_bytes(P("/usr/sbin/policy-rc.d")) == b"#!/bin/sh\nexit 0\n"
    assert "sleep 500" not in guest.handle.debug("sh", ["ps ax"])

    change([], ["greeting"], network=False)
    assert list_packages(image) == expected

    for name in ("greetin.", "cron-", "greeting+"):
        with pytest.raises(PackagesFailedError) as unknown:
            change([name], network=True)
        assert str(unknown.value).splitlines()[:2] == [
            f"the base image's sources of packages have no {name}",
            "  do: correct the name; a virtual package is asked for by one that provides it",
        ]
    assert list_packages(image) == expected
    change(["greeting=1"], network=True)
    change(["greeting=1"], network=False)
    with pytest.raises(PackagesFailedError) as absent:
        change(["greeting=2"], network=True)
    assert "Version '2' for 'greeting' was not found" in str(absent.value)
    change([], ["greeting"], network=False)

    with pytest.raises(PackagesFailedError) as failed:
        change(["broken"], network=True)
    shown = str(failed.value)
    assert shown.startswith("`apt-get install broken` ended with 100 in the image\n")
    assert "  | cannot be set up\n" in shown
    after = files.read_link(P("/etc/resolv.conf")), files.read_bytes(P("/etc/resolv.conf"))
    assert after == resolver
    assert files.names(P("/var/tmp")) == []
    files.remove(P("/usr/sbin/policy-rc.d"))
    # Each later run of apt would try to set it up.
    run_program(image, ["dpkg", "--purge", "broken"], seconds=60)
    assert "broken" not in [package[0] for package in list_packages(image)]


def local_package(folder: Path, text: str, **more: Any) -> deb.LocalPackage:
    """A package file of a definition, which brings a text."""
    folder.mkdir()
    path = make_package(folder, "mytool", files={"/usr/share/mytool": text}, **more)
    return deb.read_packages([read_package_file(path, "web.yaml:4:12")])[0]


def test_packages_that_are_files(guest: Guest, files: ImageFiles, tmp_path: Path) -> None:
    """They need no network unless they depend on what the image lacks, and replace what is there:
    even the same version, whose content the image's package manager does not compare."""
    image = image_of(guest)
    before = list_packages(image)

    def change(name: str, text: str, **more: Any) -> None:
        change_packages(
            image,
            install=[],
            remove=[],
            network=False,
            apt_sources=None,
            proxies={},
            files=[local_package(tmp_path / name, text, **more)],
            work=tmp_path / f"{name}-work",
        )

    change("first", "one\n", version="2", fields=["Depends: cron"])
    assert list_packages(image) == sorted([*before, ("mytool", "2", "all")])
    change("same", "two\n", version="2")
    assert files.read(P("/usr/share/mytool")) == "two\n"
    change("older", "three\n", version="1")
    assert list_packages(image) == sorted([*before, ("mytool", "1", "all")])
    with pytest.raises(PackagesFailedError) as failed:
        change("needy", "x\n", version="3", fields=["Depends: absent"])
    shown = str(failed.value)
    assert shown.startswith("`apt-get install mytool` ended with 100 in the image\n")
    assert "Depends: absent" in shown
    assert (
        "  do: see what it says; a package that depends on others which the base image lacks "
        "needs `network: true` below `base_image`\n"
    ) in shown
    with pytest.raises(PackageManagerError) as foreign:
        change("foreign", "x\n", architecture="i386")
    assert str(foreign.value) == (
        "web.yaml:4:12: mytool_1_i386.deb is for i386, and the base image is for amd64\n"
        "  do: name the package for the image's architecture"
    )
    change_packages(
        image, install=[], remove=["mytool"], network=False, apt_sources=None, proxies={}
    )
    assert list_packages(image) == before
    assert files.names(P("/var/tmp")) == []


def test_an_image_without_a_package_manager(guest: Guest) -> None:
    image = image_of(guest, package_manager=None)
    with pytest.raises(PackageManagerError) as caught:
        change_packages(
            image, install=["curl"], remove=[], network=True, apt_sources=None, proxies={}
        )
    assert str(caught.value) == (
        "Debian GNU/Linux 12 (bookworm) has no package manager that is known\n"
        "  do: leave `packages` out, or take a base image that has them already"
    )
    assert list_packages(image) == []


# ---- keys and ids


def test_keys_and_ids_that_packages_made(guest: Guest, files: ImageFiles) -> None:
    """Machines make what the definition's packages made; what the base image had stays."""
    cookie, munge, rndc = (
        P(path)
        for path in (
            "/var/lib/rabbitmq/.erlang.cookie",
            "/etc/munge/munge.key",
            "/etc/bind/rndc.key",
        )
    )
    certificate = P("/etc/ssl/certs/ssl-cert-snakeoil.pem")
    key = P("/etc/ssl/private/ssl-cert-snakeoil.key")
    files.write(cookie, "the owner's")
    before = identities.note(files)
    for path in (munge, rndc, certificate, key):
        files.write(path, "drawn")
    guest.handle.chown(100, 101, str(munge))
    guest.handle.chmod(0o400, str(munge))
    files.link(certificate.parent / "0a1b2c3d.0", certificate.name)
    installed = identities.note(files)
    files.write(rndc, "the definition's")

    told = identities.settle(image_of(guest), before, installed)
    made = [{"package": "munge", "files": [str(munge)]}]
    made.append({"package": "ssl-cert", "files": [str(key), str(certificate)]})
    what = "as it is in the image"
    shared = [{"file": str(cookie), "what": what}]
    assert told == {"made_at_boot": made, "shared": shared}
    assert identities.find(files) == [rndc, cookie]
    assert not files.exists(certificate.parent / "0a1b2c3d.0")
    maker = files.read(P("/usr/lib/phantom/identities/munge"))
    assert f"restore() {{\n    chown 100:101 {munge}\n    chmod 0400 {munge}\n}}\n" in maker
    assert shape(guest, "/usr/lib/phantom/make-identities") == (0o755, 0, 0)
    unit = P("/etc/systemd/system/phantom-identities.service")
    assert files.read_link(unit.parent / "basic.target.wants" / unit.name) == unit
    assert f"it has {cookie}, which all its machines would share" in find_remarks(files)
    files.write(munge, "drawn")
    told = identities.settle(image_of(guest, init="sysv"), before, identities.note(files))
    assert told["made_at_boot"] == []
    files.remove(munge)


# ---- cleaning


def test_identities_and_traces_of_the_builder_are_removed(
    guest: Guest, files: ImageFiles, heard: Heard
) -> None:
    gone = (
        *("/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_ed25519_key.pub", "/root/.bash_history"),
        *("/home/someone/.lesshst", "/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed"),
        *("/var/lib/dhcp/dhclient.eth0.leases", "/etc/udev/rules.d/70-persistent-net.rules"),
        *("/var/lib/cloud/instances/i-1/user-data.txt", "/var/lib/cloud/data/instance-id"),
        *("/var/log/syslog.1", "/var/log/journal/5eed/system.journal", "/tmp/left", "/var/tmp/x/y"),
        *("/var/lib/dbus/machine-id", "/var/cache/apt/archives/a_1_all.deb", "/etc/shadow-"),
        *("/var/lib/apt/lists/mirror_InRelease", "/core", "/var/crash/x", "/root/.wget-hsts"),
    )
    emptied = ("/var/log/app/app.log", "/var/log/wtmp", "/var/mail/root", "/etc/machine-id")
    kept = (
        *("/root/.ssh/authorized_keys", "/home/someone/.profile", "/var/lib/cloud/seed/meta-data"),
        *("/etc/ssh/sshd_config", "/etc/udev/rules.d/80-own.rules", "/var/lib/dpkg/status"),
    )
    for path in (*gone, *emptied, *kept):
        if not files.exists(P(path)):
            files.write(P(path), "of the builder\n")
    guest.handle.chown(33, 33, "/var/log/app/app.log")
    files.write(P("/etc/canary-of-logs"), "canary")
    guest.handle.ln("/etc/canary-of-logs", "/var/log/hard")
    files.write(P("/etc/environment"), "LANG=C\nhttp_proxy=http://builder:3128\n")
    files.write(
        P("/etc/apt/apt.conf"), 'Acquire::http::Proxy "http://builder:1/";\nA "b";\n', 0o640
    )

    forget_proxies(files)
    clean(image_of(guest))
    assert [path for path in gone if files.exists(P(path))] == []
    assert [path for path in emptied if files.read_bytes(P(path)) != b""] == []
    assert [path for path in kept if not files.read_bytes(P(path))] == []
    assert shape(guest, "/var/log/app/app.log") == (0o644, 33, 33)
    assert files.read_bytes(P("/etc/canary-of-logs")) == b"canary"
    assert files.read_bytes(P("/etc/environment")) == b"LANG=C\n"
    assert files.read_bytes(P("/etc/apt/apt.conf")) == b'A "b";\n'
    assert files.mode(P("/etc/apt/apt.conf")) == 0o640
    assert heard.lines == []


def test_what_the_definition_brings_outlives_the_cleaning(
    guest: Guest, files: ImageFiles, tmp_path: Path
) -> None:
    handle, source = guest.handle, tmp_path / "source"
    source.write_text("brought\n")
    content = own_file(source)
    paths = (
        *("/var/log/brought/seed", "/tmp/brought/two\nlines ", "/home/brought/.bash_history"),
        *("/root/.wget-hsts", "/var/lib/apt/lists/brought", "/core", "/etc/brought/conf"),
        *("/root/.ssh/authorized_keys", "/etc/brought/removed"),
    )
    copies: list[Copied] = [
        CopiedFile(target=P(path), mode=0o640, content=content) for path in paths
    ]
    copies += [
        CopiedLink(target=P("/var/tmp/brought/link"), leads_to="/usr/bin/python3 "),
        CopiedFolder(target=P("/var/crash/empty")),
    ]
    bring(files, copies, tmp_path / "work")
    # the definition's scripts
    files.remove(P("/etc/brought/removed"))
    handle.chown(33, 34, "/var/log/brought/seed")
    handle.chown(5, 6, "/tmp/brought")
    handle.chmod(0o711, "/tmp/brought")
    handle.chmod(0o1777, "/var/crash/empty")
    files.write(P("/var/log/brought/log"), "of the builder\n")
    files.write(P("/tmp/brought/left"), "of the builder\n")

    targets = [copy.target for copy in copies]
    keeping.clean(image_of(guest), targets)
    found = {path: files.read_bytes(P(path)) for path in paths}
    assert found == {**dict.fromkeys(paths, b"brought\n"), "/etc/brought/removed": None}
    assert shape(guest, "/var/log/brought/seed") == (0o640, 33, 34)
    assert shape(guest, "/tmp/brought") == (0o711, 5, 6)
    assert shape(guest, "/var/crash/empty") == (0o1777, 0, 0)
    assert handle.readlink("/var/tmp/brought/link") == "/usr/bin/python3 "
    assert files.read_bytes(P("/var/log/brought/log")) == b""
    assert not files.exists(P("/tmp/brought/left"))
    assert not [name for name in files.names(P("/")) if name.startswith(".")]

    machine_id = [CopiedFile(target=P("/etc/machine-id"), mode=0o644, content=content)]
    bring(files, machine_id, tmp_path / "more")
    with pytest.raises(StageFailedError) as caught:
        keeping.clean(image_of(guest), [P("/etc/machine-id")])
    assert caught.value.what == (
        "what the definition brings is not in the image as its scripts left it: "
        "'/etc/machine-id' (mode, content)"
    )


def test_nothing_is_cleaned_behind_a_link(guest: Guest, files: ImageFiles) -> None:
    handle = guest.handle
    for folder in ("/var/log", "/tmp", "/var/lib/cloud", "/var/spool/mail"):
        files.remove(P(folder))
        files.write(P(f"/srv/behind{folder}/data/x"), "canary")
        handle.ln_s(f"/srv/behind{folder}", folder)
    files.write(P("/srv/behind/home/.bash_history"), "canary")
    handle.ln_s("/srv/behind/home", "/home/linked")
    handle.rm_rf("/etc/ssh")
    files.write(P("/srv/behind/ssh/ssh_host_rsa_key"), "canary")
    handle.ln_s("../srv/behind/ssh", "/etc/ssh")
    before = handle.find("/srv/behind")
    clean(image_of(guest, init="sysv"))
    assert handle.find("/srv/behind") == before
    assert all(
        files.read_bytes(P("/srv/behind") / path.lstrip("/")) == b"canary"
        for path in before
        if path.endswith(("/x", "_history", "_key"))
    )
    assert not files.exists(P("/etc/machine-id"))
