"""What Phantom needs, injected into images of each init system, all in one launch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest
from guests import Heard, debian, image_of

from pipeline.disk import foreign_kernel
from pipeline.disk.system import System
from pipeline.errors import ClientError, InitSystemError
from pipeline.guest import inspection, kernel_options, network, selinux, services, sshd
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.injection import OPTIONS, inject, settle_runner
from pipeline.guest.payload import DESCRIPTION, Payload, read_payload

P = PurePosixPath
ELEMENTS = Path(__file__).resolve().parents[2] / "elements"

# As insserv writes them on Debian 12.
DEPEND_START = """\
TARGETS = bootlogs ssh rc.local
INTERACTIVE =
rc.local: bootlogs ssh
"""
DEPEND_BOOT = """\
TARGETS = mountkernfs.sh checkroot.sh checkfs.sh
INTERACTIVE = checkroot.sh checkfs.sh
checkroot.sh: mountkernfs.sh
checkfs.sh: checkroot.sh
"""
PROGRAMS = {
    f"usr/{each}": ""
    for each in ("bin/curl", "bin/ssh-keygen", "sbin/sshd", "sbin/resize2fs", "sbin/sfdisk")
} | {"usr/bin/partx": ""}
UNITS = {
    f"usr/lib/systemd/system/{each}": "[Unit]\n"
    for each in ("cloud-init-local.service", "cloud-init.service", "cloud-final.service")
}
# Images' files by name of the image, only those that matter to the injection. `-> ` is a link.
TREES: Mapping[str, Mapping[str, str]] = {
    "cloud": {
        **PROGRAMS,
        **UNITS,
        "lib": "-> usr/lib",
        "etc/cloud/cloud.cfg": "",
        "etc/ssh/sshd_config": "PasswordAuthentication yes\nMatch User a\n",
        "etc/netplan/50-cloud-init.yaml": "network: {ethernets: {eth0: {match: {macaddress: a}}}}",
        "etc/default/phantom-user-data": "PHANTOM_USER_DATA_MAX_TRIES=7\n",
        "etc/systemd/system/phantom-grow-root.service": "-> /dev/null",
        # Red Hat's unit that makes host keys; it leaves them to cloud-init
        "usr/lib/systemd/system/sshd-keygen@.service": "ExecStart=sshd-keygen %i",
    },
    "sysv": {
        **PROGRAMS,
        "etc/init.d/.depend.start": DEPEND_START,
        "etc/init.d/.depend.boot": DEPEND_BOOT,
        "etc/init.d/cloud-init": "",
        "etc/init.d/ssh": "#!/bin/sh\n",
        "etc/rcS.d/S04checkroot.sh": "-> ../init.d/checkroot.sh",
        "etc/rcS.d/S05checkfs.sh": "-> ../init.d/checkfs.sh",
        **{f"etc/rc{each}.d/S02ssh": "-> ../init.d/ssh" for each in "2345"},
        **{f"etc/rc{each}.d/S03cloud-init": "-> ../init.d/cloud-init" for each in "2345"},
        "etc/network/interfaces": "auto lo ens3\niface lo inet loopback\n"
        "iface ens3 inet static\n    address 192.0.2.7/24\n"
        "iface br0 inet static\n    bridge_ports none\n",
    },
    "redhat": {
        **PROGRAMS,
        "etc/init.d": "-> rc.d/init.d",
        "etc/rc.d/init.d/sshd": "#!/bin/bash\nssh-keygen -t rsa1\n",
        **{f"etc/rc{each}.d": f"-> rc.d/rc{each}.d" for each in "2345"},
        **{f"etc/rc.d/rc{each}.d/S55sshd": "-> ../init.d/sshd" for each in "2345"},
        "etc/sysconfig/network-scripts/ifcfg-eth0": 'DEVICE=eth0\nHWADDR="52:54:00:00:00:01"\n'
        "BOOTPROTO=dhcp\nONBOOT=yes\n",
        "etc/sysconfig/network-scripts/ifcfg-eth1": "DEVICE=eth1\nONBOOT=yes\n",
    },
    "openrc": {
        **PROGRAMS,
        "sbin/openrc-run": "",
        "etc/init.d/sshd": "#!/sbin/openrc-run\nssh-keygen -A\n",
        "etc/runlevels/boot/hostname": "-> /etc/init.d/hostname",
        "etc/runlevels/default/sshd": "-> /etc/init.d/sshd",
        "etc/network/interfaces": "auto lo\niface lo inet loopback\nauto eth0\n"
        "iface eth0 inet dhcp\n",
    },
    "ranonce": {
        **PROGRAMS,
        "lib": "-> usr/lib",
        "usr/lib/systemd/system/ssh.service": "[Service]\nExecStart=/usr/sbin/sshd -D\n",
        # It was started once, and has disabled itself.
        "usr/lib/systemd/system/regenerate_ssh_host_keys.service": "[Service]\n"
        "ExecStart=/usr/bin/ssh-keygen -A\n[Install]\nWantedBy=multi-user.target\n",
        "usr/lib/systemd/system/ssh-host-keys-check.service": "[Unit]\n"
        "After=network.target ssh.service\n[Service]\nExecStart=/usr/bin/ssh-keygen -l\n",
        "etc/ssh/sshd_config": "Port 22\nInclude /etc/ssh/sshd_config.d/*.conf\n"
        "PermitRootLogin yes\n",
        "etc/ssh/sshd_config.d/50-cloud-init.conf": "PasswordAuthentication yes\n",
    },
    "ownmaker": {
        **PROGRAMS,
        "usr/lib/systemd/system/sshd.service": "[Service]\nExecStartPre=/usr/bin/ssh-keygen -A\n",
        "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\n",
        "etc/ssh/sshd_config.d/00-a.conf": "PasswordAuthentication yes\n",
    },
    "sysvranonce": {
        **PROGRAMS,
        "etc/init.d/ssh": "#!/bin/sh\n",
        "etc/init.d/make-ssh-host-keys": "#!/bin/sh\nssh-keygen -A\n",
        **{f"etc/rc{each}.d/S02ssh": "-> ../init.d/ssh" for each in "2345"},
    },
    "bare": {"etc/hostname": "bare\n"},
}


def make_image(folder: Path, name: str) -> Path:
    tree, image = folder / name, folder / f"{name}.ext4"
    for path, content in TREES[name].items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            place.symlink_to(content.removeprefix("-> "))
        else:
            place.write_text(content)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(image), "16M"]
    subprocess.run(words, check=True)
    return image


Opened = Callable[[str], ImageFiles]


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Heard]]:
    folder = tmp_path_factory.mktemp("injection")
    drives = [Drive(file=make_image(folder, name), name=name, writable=True) for name in TREES]
    heard = Heard()
    with launched(drives, store=folder, log=folder / "log", progress=heard) as guest:
        yield guest, heard


@contextmanager
def opened(guest: Guest, name: str) -> Iterator[ImageFiles]:
    """The image of that name, mounted at /."""
    guest.handle.mount(f"/dev/disk/guestfs/{name}", "/")
    try:
        yield ImageFiles(guest)
    finally:
        guest.handle.umount("/")


def payloads() -> list[Payload]:
    names = ("phantom-user-data", "phantom-grow-root", "phantom-ssh")
    found = [read_payload(ELEMENTS / name) for name in names]
    return [each for each in found if each is not None]


def put_in(guest: Guest, files: ImageFiles, system: System, *, runner: str, frequency: str) -> None:
    """Injects everything, as for a definition that has no files or scripts."""
    image = Image(guest, files, system)
    inject(image, payloads(), runner=runner, frequency=frequency)
    settle_runner(image, payloads(), runner=runner, frequency=frequency)


def text(files: ImageFiles, path: str) -> str:
    return files.read(P(path))


def test_only_some_elements_have_a_payload() -> None:
    assert [each.name for each in payloads()] == [
        "phantom-user-data",
        "phantom-grow-root",
        "phantom-ssh",
    ]
    assert read_payload(ELEMENTS / "phantom-debian") is None
    fetcher = payloads()[0]
    assert fetcher.needs_one_of == ("curl", "wget")
    assert {str(each.target): each.mode for each in fetcher.files_for("openrc")} == {
        "/etc/default/phantom-user-data": 0o644,
        "/etc/init.d/phantom-user-data": 0o755,
        "/usr/lib/phantom/fetch-user-data": 0o755,
        "/usr/lib/phantom/write-login-keys": 0o755,
    }


def test_systemd_with_cloud_init(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    system = debian(cloud_init="22.4.2", networks=("netplan",))
    with opened(guest, "cloud") as files:
        put_in(guest, files, system, runner="cloud-init", frequency="instance")
        wants = "/etc/systemd/system/multi-user.target.wants"
        assert files.read_link(P(f"{wants}/phantom-user-data.service")) == P(
            "/usr/lib/systemd/system/phantom-user-data.service"
        )
        # Units that the image's owner has masked stay masked.
        assert files.names(P("/etc/systemd/system/local-fs.target.wants")) == []
        assert files.read_link(P("/etc/systemd/system/phantom-grow-root.service")) == P("/dev/null")
        assert not files.exists(P("/etc/init.d/phantom-user-data"))
        assert text(files, str(OPTIONS)).splitlines() == [
            "PHANTOM_USER_DATA_MAX_TRIES=7",
            "",
            "PHANTOM_USER_DATA_FREQUENCY=instance",
            "",
            "PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT=yes",
            "",
            "PHANTOM_LOGIN_USER=root",
        ]
        for unit in UNITS:
            condition = text(files, f"/etc/systemd/system/{P(unit).name}.d/phantom.conf")
            assert "ConditionPathExists=!/var/nimbus-metadata-server-url" in condition
        assert "datasource_list: [Ec2, NoCloud, None]" in text(
            files, "/etc/cloud/cloud.cfg.d/zz-phantom.cfg"
        )
        assert not files.exists(P("/etc/cloud/cloud-init.disabled"))
        # Red Hat's unit leaves host keys to cloud-init, so ours must make them.
        assert {*files.names(P(wants))} > {
            "phantom-ssh-host-keys.service",
            "phantom-ssh-rsa-key.service",
        }
        # The drop-in folder is not read, so the settings stand where they are read first.
        assert text(files, "/etc/ssh/sshd_config").splitlines()[1:] == [
            "PasswordAuthentication no",
            "ChallengeResponseAuthentication no",
            "PermitRootLogin without-password",
            "",
            "PasswordAuthentication yes",
            "Match User a",
        ]
        assert files.names(P("/etc/netplan")) == ["zz-phantom-dhcp.yaml"]
        assert 'match: {name: "e*"}' in text(files, "/etc/netplan/zz-phantom-dhcp.yaml")

        assert "ConditionPathIsDirectory=/lib/modules/%v" in text(
            files, str(foreign_kernel.CONDITION)
        )

        # A file of the definition replaces ours.
        files.write(OPTIONS, "PHANTOM_USER_DATA_MAX_TRIES=9\n")
        image = Image(guest, files, system)
        changed = inspection.look_again(image).system
        assert (changed.cloud_init, changed.clients, changed.fetcher) == (None, ("curl",), True)
        settle_runner(image, payloads(), runner="cloud-init", frequency="boot")
        assert "LEAVE_TO_CLOUD_INIT=yes" in text(files, str(OPTIONS))
        assert text(files, str(OPTIONS)).startswith("PHANTOM_USER_DATA_MAX_TRIES=9\n")

        put_in(guest, files, system, runner="fetcher", frequency="boot")
        assert files.exists(P("/etc/cloud/cloud-init.disabled"))
        options = text(files, str(OPTIONS)).splitlines()
        assert options[2::2] == [
            "PHANTOM_USER_DATA_FREQUENCY=boot",
            "PHANTOM_USER_DATA_LEAVE_TO_CLOUD_INIT=no",
            "PHANTOM_LOGIN_USER=root",
        ]


def test_sysv_of_debian(appliance: tuple[Guest, Heard]) -> None:
    guest, heard = appliance
    system = debian(init="sysv", cloud_init="22.4.2")
    with opened(guest, "sysv") as files:
        put_in(guest, files, system, runner="cloud-init", frequency="boot")
        put_in(guest, files, system, runner="cloud-init", frequency="boot")
        assert files.names(P("/etc/rc3.d")) == [
            "S01phantom-ssh-host-keys",
            "S02ssh",
            "S99phantom-user-data",
        ]
        assert files.read_link(P("/etc/rc3.d/S99phantom-user-data")) == P(
            "/etc/rc3.d/../init.d/phantom-user-data"
        )
        assert files.names(P("/etc/rcS.d")) == [
            "S04checkroot.sh",
            "S05checkfs.sh",
            "S05phantom-grow-root",
        ]
        # startpar starts only what these files list.
        assert text(files, "/etc/init.d/.depend.start").splitlines() == [
            "TARGETS = bootlogs ssh rc.local phantom-user-data phantom-ssh-host-keys",
            "INTERACTIVE =",
            "rc.local: bootlogs ssh",
            "ssh: phantom-ssh-host-keys",
            "phantom-user-data: bootlogs ssh rc.local phantom-ssh-host-keys",
        ]
        assert text(files, "/etc/init.d/.depend.boot").splitlines()[0::4] == [
            "TARGETS = mountkernfs.sh checkroot.sh checkfs.sh phantom-grow-root",
            "phantom-grow-root: checkroot.sh",
        ]
        assert "cloud-init is turned off" in " ".join(heard.lines)
        assert text(files, "/etc/network/interfaces").splitlines() == [
            "auto lo",
            "iface lo inet loopback",
            "iface br0 inet static",
            "    bridge_ports none",
            "",
            "# Written by phantom-image: the machine's first card, by the kernel's own name.",
            "auto eth0",
            "iface eth0 inet dhcp",
        ]
        assert network.kernel_options(Image(guest, files, system)) == ("net.ifnames=0",)


def test_sysv_of_red_hat(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    system = debian(init="sysv", family="redhat", networks=("network-scripts",))
    with opened(guest, "redhat") as files:
        put_in(guest, files, system, runner="fetcher", frequency="boot")
        assert files.names(P("/etc/rc.d/rc3.d")) == [
            "S01phantom-grow-root",
            "S55sshd",
            "S99phantom-user-data",
        ]
        assert files.read_link(P("/etc/rc.d/rc3.d/S99phantom-user-data")) == P(
            "/etc/rc.d/rc3.d/../init.d/phantom-user-data"
        )
        scripts = P("/etc/sysconfig/network-scripts")
        assert files.names(scripts) == ["ifcfg-eth0"]
        assert text(files, f"{scripts}/ifcfg-eth0") == "DEVICE=eth0\nBOOTPROTO=dhcp\nONBOOT=yes\n"


def test_openrc(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    with opened(guest, "openrc") as files:
        before = text(files, "/etc/network/interfaces")
        put_in(guest, files, debian(init="openrc"), runner="fetcher", frequency="boot")
        assert files.names(P("/etc/runlevels/default")) == ["phantom-user-data", "sshd"]
        assert files.names(P("/etc/runlevels/boot")) == ["hostname", "phantom-grow-root"]
        script = text(files, "/etc/init.d/phantom-user-data")
        assert script.startswith("#!/sbin/openrc-run\n")
        assert not files.exists(P("/usr/lib/systemd/system/phantom-user-data.service"))
        # The card has DHCP already.
        assert text(files, "/etc/network/interfaces") == before


def test_a_maker_of_host_keys_that_is_not_started(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    with opened(guest, "ranonce") as files:
        put_in(guest, files, debian(), runner="fetcher", frequency="boot")
        units = "/etc/systemd/system"
        for unit in ("phantom-ssh-host-keys.service", "phantom-ssh-rsa-key.service"):
            assert files.exists(P(f"{units}/multi-user.target.wants/{unit}"))
            # If somebody enables the image's own, ours comes after it, where it can.
            assert "\nAfter=regenerate_ssh_host_keys.service\n" in text(
                files, f"{units}/{unit}.d/phantom.conf"
            )
        assert files.mode(P("/usr/lib/phantom/make-host-keys")) == 0o755
        assert not files.exists(P("/etc/init.d/phantom-ssh-host-keys"))
        assert "\nPasswordAuthentication no\n" in text(files, str(sshd.DROP_IN))
        assert text(files, "/etc/ssh/sshd_config").startswith("Port 22\n")
    with opened(guest, "sysvranonce") as files:
        put_in(guest, files, debian(init="sysv"), runner="fetcher", frequency="boot")
        assert "S01phantom-ssh-host-keys" in files.names(P("/etc/rc3.d"))
        assert not files.exists(P("/etc/ssh"))


def test_a_maker_of_host_keys_that_starts_with_sshd(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    with opened(guest, "ownmaker") as files:
        for _ in range(2):
            put_in(guest, files, debian(), runner="fetcher", frequency="boot")
        wants = P("/etc/systemd/system/multi-user.target.wants")
        assert files.names(wants) == ["phantom-user-data.service"]
        # Another file of the folder would be read before ours.
        assert not files.exists(sshd.DROP_IN)
        lines = text(files, "/etc/ssh/sshd_config").splitlines()
        assert lines[1] == "PasswordAuthentication no" and len(lines) == 6


def test_image_that_lacks_something_is_left_alone(appliance: tuple[Guest, Heard]) -> None:
    guest, _heard = appliance
    fetcher, grow, _ssh = payloads()
    with opened(guest, "bare") as files:
        with pytest.raises(InitSystemError) as no_init:
            inject(image_of(guest, init=None), [fetcher], runner="fetcher", frequency="boot")
        assert str(no_init.value) == (
            "the base image has no init system that is known, so that nothing in it would fetch "
            "user-data at boot\n  do: take a base image with systemd, SysV init or OpenRC"
        )
        with pytest.raises(ClientError) as no_client:
            inject(image_of(guest), [fetcher], runner="fetcher", frequency="boot")
        assert str(no_client.value) == (
            "the base image has neither curl nor wget, and phantom-user-data needs one\n"
            "  do: add `packages: [curl]` and `network: true` to the definition"
        )
        with pytest.raises(ClientError) as no_program:
            inject(image_of(guest), [grow], runner="fetcher", frequency="boot")
        assert str(no_program.value) == (
            "the base image lacks resize2fs and sfdisk and partx, which phantom-grow-root needs\n"
            "  do: add `packages: [e2fsprogs, fdisk, util-linux]` (Debian's names) and "
            "`network: true`, or leave the element phantom-grow-root out"
        )
        # The image has no program that sets labels, so it is relabelled at its first boot.
        selinux.relabel(image_of(guest, selinux="enforcing"))
        assert files.names(P("/")) == [".autorelabel", "etc", "lost+found"]


def test_networks_that_do_dhcp_on_every_card_are_left_alone() -> None:
    every = "[Match]\nType=ether\nKind=!*\n[Network]\nDHCP=yes\n"
    some = "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n"
    assert network.covers(network._dhcp_patterns(every))
    assert not network.covers(network._dhcp_patterns(some))
    assert list(network._dhcp_patterns("[Match]\nMACAddress=52:54:00:00:00:01\n" + some[8:])) == []
    plan = "network: {ethernets: {%s: {dhcp4: true, match: {name: '%s'}}}}"
    both = [*network._netplan_patterns(plan % ("a", "en*"))]
    assert not network.covers(both)
    assert network.covers([*both, *network._netplan_patterns(plan % ("b", "eth*"))])
    for broken in ("[", "network: 5", "!!python/object:os.system x", "[" * 5000):
        assert list(network._netplan_patterns(broken)) == []


def test_networks_of_one_machine_are_not_kept() -> None:
    static = "[Match]\n%s\n[Network]\nAddress=192.0.2.7/24\n%s"
    for match in ("Name=ens3", "MACAddress=52:54:00:00:00:01"):
        assert network._is_one_address(static % (match, ""))
        assert not network._is_one_address(static % (match, "DHCP=yes\n"))
    for match in ("Name=br0", "Name=e*", "Name=ens3\nType=ether"):
        assert not network._is_one_address(static % (match, ""))
    plan = "network: {version: 2, ethernets: {ens3: {addresses: [192.0.2.7/24]%s}}%s}"
    assert network._plans_addresses(plan % ("", ""))
    assert not network._plans_addresses(plan % (", dhcp4: true", ""))
    assert not network._plans_addresses(plan % ("", ", bonds: {}"))
    connection = "[connection]\ntype=ethernet\n%s[ipv4]\nmethod=%s\n"
    assert network._is_manual(network._parse(connection % ("interface-name=ens3\n", "manual")))
    assert not network._is_manual(network._parse(connection % ("interface-name=ens3\n", "auto")))
    assert not network._is_manual(network._parse(connection % ("", "manual")))


def test_options_of_the_kernel_that_the_network_needs() -> None:
    """The options are added; those that told cloud-init about another cloud are removed."""
    line = "root=/dev/sda1 ds=nocloud cloud-init=disabled quiet console=ttyS0"
    assert kernel_options.follow(line, "u", ("net.ifnames=0",)) == (
        "root=UUID=u quiet console=ttyS0 net.ifnames=0"
    )
    assert kernel_options.follow("net.ifnames=1", "u", ("net.ifnames=0",)) == (
        "net.ifnames=1 console=tty0 console=ttyS0,115200"
    )


def test_header_of_an_init_script() -> None:
    script = ELEMENTS / "phantom-user-data/static/etc/init.d/phantom-user-data"
    header = services.read_header(script.read_text())
    assert header["Default-Start"] == ["2", "3", "4", "5"]
    assert header["Should-Start"] == ["$all"]
    assert DESCRIPTION == "base-image.yaml"
