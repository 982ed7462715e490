"""For each rule of the gate, files that break it and files that nearly do."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Made(NamedTuple):
    """A file with a mode, which is 0644 without one; a folder, if it has no content."""

    content: str | bytes | None
    mode: int = 0o644


class Link(str):
    """A symbolic link's target."""


Files = Mapping[str, str | bytes | Made | Link]
Changes = Mapping[str, str | bytes | Made | Link | None]
"""Files to write, and others to take away."""

KEY = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz"
PEM = f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n"
SSH = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY}\n-----END OPENSSH PRIVATE KEY-----\n"
USERS = "root:x:0:0:root:/root:/bin/sh\nops:x:1000:1000::/home/ops:/bin/sh\n"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq me@here\n"
STATUS = "Package: tool\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n"
INFO = "var/lib/dpkg/info/tool"
HASH = "$y$j9T$abcdefghij$0123456789012345678901234567890123456789012"
UUID = "5f0e2a0c-7d1b-4c39-9a63-1f0f6b0b8a77"

GOOD: Files = {
    "etc/passwd": USERS,
    "etc/shadow": "root:*:19000::::::\nops:!:19000::::::\n",
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n',
    "etc/machine-id": "",
    "etc/fstab": "LABEL=root / ext4 defaults 0 1\n",
    "etc/hostname": "localhost\n",
    "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication yes\n",
    "etc/ssh/sshd_config.d/00-own.conf": "PasswordAuthentication no\n",
    "etc/systemd/system/sysinit.target.wants/systemd-timesyncd.service": Link(
        "/usr/lib/systemd/system/systemd-timesyncd.service"
    ),
    "usr/lib/systemd/system/systemd-timesyncd.service": "[Service]\n",
    "home/ops": Made(None, 0o755),
    "root/.bashrc": "umask 022\n",
    "tmp": Made(None, 0o1777),
    "usr/sbin/sshd": Made("program", 0o755),
    "usr/bin/tool": Made("tool", 0o755),
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/tool.list": "/.\n/usr\n/usr/bin\n/usr/bin/tool\n/etc/tool.conf\n",
    "var/lib/dpkg/info/tool.md5sums": "39ab32c5aeb56c9f5ae17f073ce31023  usr/bin/tool\n",
    "var/log/lastlog": "",
}
"""An image that breaks no rule, whose file system has the label `root`."""


@dataclass(frozen=True)
class Case:
    """What is put into the good image (None: taken away)."""

    bad: Changes
    found: list[tuple[str, str]]
    """Paths and details."""
    good: Changes = field(default_factory=dict)
    """What comes close, and breaks nothing."""


def _unit(name: str, content: str = "[Service]\n") -> Files:
    unit = f"usr/lib/systemd/system/{name}"
    return {unit: content, f"etc/systemd/system/multi-user.target.wants/{name}": Link(f"/{unit}")}


CASES: dict[str, Case] = {
    "password-set": Case(
        {"etc/shadow": f"root:*:1::::::\nops:{HASH}:1::::::\n"},
        [("/etc/shadow", "ops has a password")],
        {"etc/shadow": f"root:!*:1::::::\nops:!{HASH}:1::::::\n"},
    ),
    "password-empty": Case(
        {"etc/shadow": "root::1::::::\n", "etc/passwd": USERS + "old::7:7::/nowhere:/bin/sh\n"},
        [
            ("/etc/shadow", "old has an empty password"),
            ("/etc/shadow", "root has an empty password"),
        ],
        {"etc/shadow": "", "etc/passwd": USERS + "+::::::\n"},
    ),
    "second-root": Case(
        {"etc/passwd": USERS + "toor:x:0:0::/root:/bin/sh\n"},
        [("/etc/passwd", "toor has root's number, 0")],
        {"etc/passwd": USERS + "zero:x:10:0::/home/zero:/bin/sh\nodd:x::0::/:/bin/sh\n"},
    ),
    "authorized-keys": Case(
        {
            "root/.ssh/authorized_keys": f"# mine\n{PUBLIC}",
            "home/ops/.ssh/authorized_keys2": PUBLIC,
            "etc/ssh/authorized_keys.d/ops": PUBLIC,
        },
        [
            ("/etc/ssh/authorized_keys.d/ops", "the owner of a key can log in"),
            ("/home/ops/.ssh/authorized_keys2", "the owner of a key can log in as ops"),
            ("/root/.ssh/authorized_keys", "the owner of a key can log in as root"),
        ],
        {"root/.ssh/authorized_keys": "# none\n\n", "home/ops/.ssh/known_hosts": PUBLIC},
    ),
    "ssh-host-key": Case(
        {"etc/ssh/ssh_host_ed25519_key": SSH},
        [("/etc/ssh/ssh_host_ed25519_key", "an SSH host key")],
        {"etc/ssh/ssh_host_ed25519_key.pub": PUBLIC, "etc/ssh/moduli": "1 2 3\n"},
    ),
    "private-key": Case(
        {
            "opt/app/tests/test.key": PEM,
            "root/.ssh/id_rsa": f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4\n\n{KEY}\n",
            "home/ops/.ssh/id_ed25519": SSH,
            "home/ops/.gnupg/private-keys-v1.d/AA.key": b"(11:private-key",
            "etc/wireguard/wg0.conf": "[Interface]\nPrivateKey = " + KEY[:43] + "=\n",
        },
        [
            ("/etc/wireguard/wg0.conf", "a WireGuard private key"),
            ("/home/ops/.gnupg/private-keys-v1.d/AA.key", "a private key of GnuPG"),
            ("/home/ops/.ssh/id_ed25519", "an OpenSSH private key"),
            ("/opt/app/tests/test.key", "a PEM private key"),
            ("/root/.ssh/id_rsa", "a PEM private key"),
        ],
        {
            "etc/ssl/certs/ca.pem": f"-----BEGIN CERTIFICATE-----\n{KEY}\n",
            "opt/app/pem.py": "MARK = '-----BEGIN PRIVATE KEY-----'\n",
            "usr/lib/python3/test/keycert.pem": PEM,
        },
    ),
    "credentials": Case(
        {
            "root/.aws/credentials": "[default]\n",
            "home/ops/.netrc": "machine a login b password c\n",
            "home/ops/.docker/config.json": '{"auths": {"x": {"auth": "YTpi"}}}',
            "etc/apt/auth.conf.d/own.conf": "machine a\n",
        },
        [
            ("/etc/apt/auth.conf.d/own.conf", "credentials"),
            ("/home/ops/.docker/config.json", "credentials"),
            ("/home/ops/.netrc", "credentials"),
            ("/root/.aws/credentials", "credentials"),
        ],
        {
            "root/.aws/config": "[default]\nregion = here\n",
            "root/.aws/credentials": "",
            "home/ops/.docker/config.json": '{"credsStore": "pass"}',
            "home/ops/.npmrc": "//registry/:_authToken=${TOKEN}\n",
        },
    ),
    "token": Case(
        {
            "srv/settings.ini": "key = AKIAABCDEFGHIJKLMNOP\n",
            "etc/pip.conf": "[global]\nindex-url = https://me:Xo3yai@index.example/simple\n",
            "root/notes": "ghp_" + "a1B2" * 9,
        },
        [
            ("/etc/pip.conf", "a password in a URL"),
            ("/root/notes", "a token of GitHub"),
            ("/srv/settings.ini", "an access key of AWS"),
        ],
        {
            "srv/settings.ini": "key = AKIAIOSFODNN7EXAMPLE\n",
            "etc/pip.conf": "index-url = https://$USER:$PASSWORD@index.example/simple\n",
            "root/notes": "ghp_short\n",
            "opt/url.py": '"""As http://username:password@host.com:80/path."""\n',
        },
    ),
    "shell-history": Case(
        {"root/.bash_history": "mysql -psecret\n", "home/ops/.python_history": "x\n"},
        [
            ("/home/ops/.python_history", "what somebody typed"),
            ("/root/.bash_history", "what somebody typed"),
        ],
        {"root/.bash_history": "", "usr/share/.bash_history": "example\n"},
    ),
    "machine-id": Case(
        {"etc/machine-id": "0123456789abcdef0123456789abcdef\n"},
        [("/etc/machine-id", "it is not empty")],
        {"etc/machine-id": "uninitialized\n", "var/lib/dbus/machine-id": Link("/etc/machine-id")},
    ),
    "random-seed": Case(
        {"var/lib/systemd/random-seed": b"\x9a" * 32, "var/lib/seedrng/seed.credit": b"\x9a"},
        [
            ("/var/lib/seedrng", "a seed of random numbers"),
            ("/var/lib/systemd/random-seed", "a seed of random numbers"),
        ],
        {"var/lib/seedrng": Made(None, 0o700), "var/lib/systemd/random-seed": Link("nowhere")},
    ),
    "package-identity": Case(
        {"etc/ssl/private/ssl-cert-snakeoil.key": PEM, "etc/munge/munge.key": b"\1" * 128},
        [
            ("/etc/munge/munge.key", "a package made it when it was installed"),
            (
                "/etc/ssl/private/ssl-cert-snakeoil.key",
                "a package made it when it was installed",
            ),
        ],
        {"usr/lib/phantom/identities/munge": 'files="/etc/munge/munge.key"\n'},
    ),
    "random-identity": Case(
        {"var/lib/agent/id": f"{UUID}\n"},
        [("/var/lib/agent/id", "it holds nothing but a random identity")],
        {"etc/tool.conf": f"{UUID}\n", "var/lib/agent/id": f"id={UUID}\n"},
    ),
    "build-host-name": Case(
        {"etc/mailname": "grindstone.example.org\n"},
        [("/etc/mailname", "it names the host that built the image")],
        {"etc/mailname": "grindstones.example.org\n", "etc/tool.conf": "grindstone\n"},
    ),
    "network-rules": Case(
        {"etc/udev/rules.d/70-persistent-net.rules": '# eth0\nSUBSYSTEM=="net", NAME="eth0"\n'},
        [("/etc/udev/rules.d/70-persistent-net.rules", "it names another machine's devices")],
        {"etc/udev/rules.d/70-persistent-net.rules": "# none\n"},
    ),
    "dhcp-lease": Case(
        {"var/lib/dhcp/dhclient.eth0.leases": "lease {}\n"},
        [("/var/lib/dhcp/dhclient.eth0.leases", "a lease or key of another machine's network")],
        {"var/lib/dhcp/dhclient.leases": "", "var/lib/NetworkManager/NetworkManager.state": "x\n"},
    ),
    "first-boot-done": Case(
        {"var/lib/cloud/instances/i-1/boot-finished": "x", "var/lib/phantom/user-data": "x"},
        [
            ("/var/lib/cloud/instances", "cloud-init remembers a machine that it ran on"),
            (
                "/var/lib/phantom/user-data",
                "the user-data fetcher remembers a machine that it ran on",
            ),
        ],
        {"var/lib/cloud/instances": Made(None, 0o755), "var/lib/phantom": Made(None, 0o700)},
    ),
    "package-broken": Case(
        {
            "var/lib/dpkg/status": f"{STATUS}\nPackage: half\nStatus: install ok half-configured\n"
            "\nPackage: bad\nStatus: install reinstreq installed\n"
        },
        [
            ("/var/lib/dpkg/status", "bad is in the state 'install reinstreq installed'"),
            ("/var/lib/dpkg/status", "half is in the state 'install ok half-configured'"),
        ],
        {"var/lib/dpkg/status": f"{STATUS}\nPackage: gone\nStatus: deinstall ok config-files\n"},
    ),
    "package-file-changed": Case(
        {"usr/bin/tool": Made("other", 0o755)},
        [("/usr/bin/tool", "its content is not that of tool")],
        {
            "usr/bin/tool": Made("mine", 0o755),
            "usr/bin/tool.real": Made("tool", 0o755),
            "var/lib/dpkg/diversions": "/usr/bin/tool\n/usr/bin/tool.real\n:\n",
        },
    ),
    "package-file-missing": Case(
        {"usr/bin/tool": None},
        [("/usr/bin/tool", "a file of tool is not there")],
        {
            f"{INFO}.md5sums": "39ab32c5aeb56c9f5ae17f073ce31023  usr/bin/tool\n"
            "0123456789abcdef0123456789abcdef  usr/share/doc/tool/README\n"
            "0123456789abcdef0123456789abcdef  usr/share/games/tool\n"
            "0123456789abcdef0123456789abcdef  etc/tool.conf\n",
            "etc/dpkg/dpkg.cfg.d/small": "path-exclude /usr/share/games/*\n",
            "var/lib/dpkg/status": f"{STATUS}Conffiles:\n /etc/tool.conf 0123\nDescription: x\n",
        },
    ),
    "source-unsigned": Case(
        {
            "etc/apt/sources.list": "deb [trusted=yes] https://a:b@x.example/ ./\n",
            "etc/apt/sources.list.d/a.sources": "Types: deb\nURIs: https://y.example/\n"
            "Suites: main\nTrusted: yes\nSigned-By: /k.gpg\n",
            "etc/yum.repos.d/own.repo": "[own]\nbaseurl=https://z.example\ngpgcheck=0\n",
        },
        [
            ("/etc/apt/sources.list", "trusted: yes, for https://***@x.example/"),
            ("/etc/apt/sources.list.d/a.sources", "trusted: yes, for https://y.example/"),
            ("/etc/yum.repos.d/own.repo", "gpgcheck=0 in [own]"),
        ],
        {
            "etc/apt/sources.list": "# deb [trusted=yes] https://x.example/ ./\n",
            "etc/apt/sources.list.d/a.sources": "Enabled: no\nURIs: https://y/\nTrusted: yes\n",
            "etc/yum.repos.d/own.repo": "[own]\nenabled=0\ngpgcheck=0\n[two]\ngpgcheck=1\n",
        },
    ),
    "source-any-key": Case(
        {
            "etc/apt/trusted.gpg.d/vendor.gpg": b"\x99",
            "etc/apt/sources.list.d/vendor.list": "deb https://vendor.example/ main x\n",
        },
        [("/etc/apt/sources.list.d/vendor.list", "no signed-by, for https://vendor.example/")],
        {
            "etc/apt/trusted.gpg.d/vendor.gpg": b"\x99",
            "etc/apt/sources.list": "deb https://mirror.example/debian trixie-updates main\n",
            "etc/apt/sources.list.d/vendor.list": "deb [signed-by=/k.gpg] https://v.example/ x y\n",
        },
    ),
    "source-local": Case(
        {"etc/apt/sources.list": "deb http://127.0.0.1:3142/debian trixie main\n"},
        [("/etc/apt/sources.list", "packages come from http://127.0.0.1:3142/debian")],
        {"etc/apt/sources.list": "deb http://archive.example/debian trixie main\n"},
    ),
    "proxy": Case(
        {
            "etc/apt/apt.conf.d/01proxy": 'Acquire::http::Proxy "http://10.0.0.1:3128";\n',
            "etc/environment": "http_proxy=http://10.0.0.1:3128\n",
        },
        [
            ("/etc/apt/apt.conf.d/01proxy", "it names http://10.0.0.1:3128"),
            ("/etc/environment", "it names http://10.0.0.1:3128"),
        ],
        {
            "etc/apt/apt.conf.d/01proxy": 'Acquire::http::Proxy "DIRECT";\n// Acquire::x\n',
            "etc/environment": "no_proxy=localhost\n",
        },
    ),
    "setuid": Case(
        {"usr/local/bin/su": Made("x", 0o4755), "opt/mail": Made("x", 0o2755)},
        [
            ("/opt/mail", "setgid 0, from no package"),
            ("/usr/local/bin/su", "setuid 0, from no package"),
        ],
        {"usr/bin/tool": Made("tool", 0o4755), "srv/shared": Made(None, 0o2775)},
    ),
    "world-writable": Case(
        {"etc/open": Made("x", 0o666), "srv/drop": Made(None, 0o777)},
        [
            ("/etc/open", "anybody may write it (0666)"),
            ("/srv/drop", "anybody may replace what is in it (0777)"),
        ],
        {"srv/drop": Made(None, 0o1777), "etc/link": Link("/etc/passwd")},
    ),
    "device": Case({}, [("/srv/disk", "a device outside /dev")]),
    "release-ended": Case(
        {"etc/os-release": 'ID=debian\nVERSION_ID="10"\nPRETTY_NAME="Debian 10"\n'},
        [("/etc/os-release", "Debian 10 has no updates since 2024-06-30")],
        {"etc/os-release": 'ID=debian\nVERSION_ID="99"\n'},
    ),
    "sshd-root-password": Case(
        {"etc/ssh/sshd_config.d/00-own.conf": "permitrootlogin yes\nPermitEmptyPasswords yes\n"},
        [
            ("/etc/ssh/sshd_config.d/00-own.conf", "PermitEmptyPasswords is yes"),
            ("/etc/ssh/sshd_config.d/00-own.conf", "PermitRootLogin is yes"),
        ],
        {
            "etc/ssh/sshd_config.d/00-own.conf": "PasswordAuthentication no\nPermitRootLogin yes\n"
            "Match Address 10.0.0.0/8\nPermitEmptyPasswords yes\n"
        },
    ),
    "sshd-passwords": Case(
        {"etc/ssh/sshd_config.d/00-own.conf": None},
        [("/etc/ssh/sshd_config", "PasswordAuthentication is yes")],
        {"etc/ssh/sshd_config.d/00-own.conf": None, "usr/sbin/sshd": None},
    ),
    "time-zone": Case(
        {"etc/localtime": Link("/usr/share/zoneinfo/Mars/Base")},
        [("/etc/localtime", "it leads to /usr/share/zoneinfo/Mars/Base, which is not there")],
        {"etc/localtime": Link("/usr/share/zoneinfo/UTC"), "usr/share/zoneinfo/UTC": "TZif"},
    ),
    "no-clock-service": Case(
        {"etc/systemd/system/systemd-timesyncd.service": Link("/dev/null"), **_unit("a.service")},
        [("/etc", "no service that is enabled sets the clock")],
        {
            "etc/systemd/system/systemd-timesyncd.service": Link("/dev/null"),
            **_unit("chrony.service"),
        },
    ),
    "fstab": Case(
        {
            "etc/fstab": f"/dev/sda1 / ext4 defaults 0 1\nUUID={UUID} /data xfs defaults 0 0\n"
            "LABEL=other /srv ext4 defaults 0 0\n"
        },
        [
            ("/etc/fstab", "/dev/sda1, for /, has other names elsewhere"),
            ("/etc/fstab", "no file system of the image is LABEL=other"),
            ("/etc/fstab", f"no file system of the image is UUID={UUID}"),
        ],
        {
            "etc/fstab": f"LABEL=root / ext4 defaults 0 1\nUUID={UUID} /d xfs defaults,nofail 0 0\n"
            "tmpfs /tmp tmpfs defaults 0 0\n/swapfile none swap sw 0 0\n"
        },
    ),
    "listening-service": Case(
        {
            **_unit("nginx.service"),
            **_unit("own.socket", "[Socket]\nListenStream=8080\n"),
        },
        [
            (
                "/usr/lib/systemd/system/nginx.service",
                "nginx serves web pages from the first boot on",
            ),
            ("/usr/lib/systemd/system/own.socket", "own.socket listens at 8080"),
        ],
        {
            "usr/lib/systemd/system/nginx.service": "[Service]\n",
            **_unit("own.socket", "[Socket]\nListenStream=/run/own\nListenStream=127.0.0.1:1\n"),
            **_unit("ssh.socket", "[Socket]\nListenStream=22\n"),
        },
    ),
    "log": Case(
        {"var/log/apt/history.log": "x" * 2000},
        [("/var/log/apt/history.log", "a log of 1.95 KiB")],
        {"var/log/apt/history.log": ""},
    ),
    "mail": Case(
        {"var/mail/root": "From x\n"},
        [("/var/mail/root", "mail of 7 B")],
        {"var/mail/root": ""},
    ),
    "core-dump": Case(
        {"var/crash/a.crash": "x", "core": "x"},
        [
            ("/core", "what a program had in memory"),
            ("/var/crash/a.crash", "what a program had in memory, 1 B"),
        ],
        {"core": Made(None, 0o755)},
    ),
    "temporary-file": Case(
        {"tmp/left": "x", "var/tmp/folder": Made(None, 0o700)},
        [("/tmp/left", "somebody left it there"), ("/var/tmp/folder", "somebody left it there")],
        {"var/tmp": Made(None, 0o1777)},
    ),
    "package-cache": Case(
        {"var/cache/apt/archives/tool.deb": "x" * 100_000},
        [("/var/cache/apt/archives", "files of 97.7 KiB")],
        {"var/cache/apt/archives/lock": "", "var/lib/apt/lists/lock": "x" * 100},
    ),
    "old-configuration": Case(
        {"etc/tool.conf.dpkg-old": "x", "etc/ssh/sshd_config.rpmnew": "x"},
        [
            ("/etc/ssh/sshd_config.rpmnew", "a package manager left it beside the file in use"),
            ("/etc/tool.conf.dpkg-old", "a package manager left it beside the file in use"),
        ],
        {"etc/tool.conf.old": "x"},
    ),
    "build-tool": Case(
        {"usr/sbin/policy-rc.d": Made("exit 101", 0o755)},
        [("/usr/sbin/policy-rc.d", "it keeps packages from starting their services")],
        {"usr/share/policy-rc.d": "exit 101"},
    ),
}


def make_image(folder: Path, changes: Changes, *, device: bool = False) -> Path:
    """An image of the good files and these."""
    tree, image = folder / "tree", folder / "image"
    for path, content in sorted({**GOOD, **changes}.items()):
        if content is not None:
            write(tree / path, content)
    options = ["-O", "^has_journal", "-L", "root", "-E", "root_owner=0:0", "-d", str(tree)]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, image, "8M"], check=True)
    if device:
        debugfs(image, "cd /srv", "mknod disk b 8 0")
    setuid = [f"/{path}" for path, made in changes.items() if isinstance(made, Made)]
    if setuid:
        owner = (f"set_inode_field {path} {who} 0" for path in setuid for who in ("uid", "gid"))
        debugfs(image, *owner)
    return image


def write(file: Path, content: str | bytes | Made | Link) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Link):
        file.symlink_to(str(content))
        return
    made = content if isinstance(content, Made) else Made(content)
    if made.content is None:
        file.mkdir(exist_ok=True)
    else:
        data = made.content
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    file.chmod(made.mode)


def debugfs(image: Path, *commands: str) -> None:
    script = "".join(f"{command}\n" for command in commands)
    argv = ["debugfs", "-w", "-f", "-", str(image)]
    subprocess.run(argv, input=script, text=True, check=True, capture_output=True)
