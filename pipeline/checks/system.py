"""Rules of the system's settings: its release, sshd, time, mounts, services."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from datetime import date, timedelta

from pipeline.checks.releases import end_of
from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.disk import fstab
from pipeline.disk.untrusted import lines_of, to_printable

_CLOCKS = (
    *("systemd-timesyncd", "chrony", "chronyd", "ntp", "ntpd", "ntpsec", "openntpd"),
    *("busybox-ntpd", "ptp4l", "phc2sys"),
)
_NAMED_DEVICE = re.compile(r"/dev/(sd|vd|xvd|hd|nvme|mmcblk|md|sr|dm-)[a-z0-9]*")
_LISTENERS = {
    **dict.fromkeys(("nginx", "apache2", "httpd", "lighttpd", "caddy", "haproxy"), "web pages"),
    **dict.fromkeys(("mariadb", "mysql", "mysqld", "postgresql", "mongod"), "a database"),
    **dict.fromkeys(("redis", "redis-server", "memcached", "etcd", "elasticsearch"), "a database"),
    **dict.fromkeys(("rpcbind", "nfs-server", "nfs-kernel-server", "smbd", "nmbd"), "files"),
    **dict.fromkeys(("vsftpd", "proftpd", "rsync", "tftpd-hpa", "iscsid-target"), "files"),
    **dict.fromkeys(("exim4", "postfix", "sendmail", "dovecot"), "mail"),
    **dict.fromkeys(("named", "bind9", "dnsmasq", "unbound"), "names"),
    **dict.fromkeys(("avahi-daemon", "cups", "cups-browsed"), "the local network"),
    **dict.fromkeys(("xrdp", "vncserver", "telnetd", "inetd", "xinetd"), "logins"),
    **dict.fromkeys(("slurmd", "slurmctld", "slurmdbd"), "a cluster"),
    **dict.fromkeys(("docker", "rabbitmq-server", "squid", "snmpd"), "other machines"),
}
_LISTENS = re.compile(r"(?m)^[ \t]*Listen(?:Stream|Datagram)[ \t]*=[ \t]*(\S+)")
_EXPECTED_SOCKETS = ("ssh.socket", "sshd.socket", "sshd-unix-local.socket", "sshd-vsock.socket")


def _find_old_release(root: Root) -> Iterator[Found]:
    end = None if root.release is None else end_of(root.release)
    if root.release is not None and end is not None:
        yield Found(
            path="/etc/os-release",
            detail=f"{root.release.product} has no updates since {end}",
            since=(date.fromisoformat(end) + timedelta(days=1)).isoformat(),
        )


# ---- sshd


def _sshd_settings(root: Root) -> dict[str, tuple[str, str]] | None:
    """sshd's settings outside of Match blocks, in lower case, each with the file that has it; None
    where there is no sshd. The first value of a setting counts."""
    if root.program("sshd") is None:
        return None
    settings: dict[str, tuple[str, str]] = {}
    for path in ("/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config"):
        if root.contents.text(path):
            _read_sshd(root, path, settings, 0)
            break
    return settings


def _read_sshd(root: Root, path: str, settings: dict[str, tuple[str, str]], depth: int) -> None:
    for line in lines_of(root.contents.text(path)):
        match = re.match(r"[ \t]*([A-Za-z]+)[ \t=]+\"?([^\"\n]*?)\"?[ \t\r]*$", line)
        if match is None:
            continue
        key, value = match[1].lower(), match[2]
        if key == "match":
            return
        if key != "include":
            settings.setdefault(key, (value.lower(), path))
        elif depth < 8:
            for pattern in value.split():
                full = pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}"
                folder = full.rpartition("/")[0]
                for file in root.inside(folder):
                    if fnmatch.fnmatchcase(f"{folder}/{file.name}", full):
                        _read_sshd(root, file.path, settings, depth + 1)


def _find_sshd(root: Root) -> Iterator[tuple[str, Found]]:
    settings = _sshd_settings(root)
    if settings is None:
        return
    default = "/etc/ssh/sshd_config"
    passwords = settings.get("passwordauthentication", ("yes", default))
    by_root = settings.get("permitrootlogin", ("prohibit-password", default))
    empty = settings.get("permitemptypasswords", ("no", default))
    if passwords[0] == "yes":
        yield "passwords", Found(path=passwords[1], detail="PasswordAuthentication is yes")
    if passwords[0] == "yes" and by_root[0] == "yes":
        yield "root", Found(path=by_root[1], detail="PermitRootLogin is yes")
    if empty[0] == "yes":
        yield "empty", Found(path=empty[1], detail="PermitEmptyPasswords is yes")


def _find_sshd_passwords(root: Root) -> Iterator[Found]:
    yield from (found for kind, found in _find_sshd(root) if kind == "passwords")


def _find_sshd_root(root: Root) -> Iterator[Found]:
    yield from (found for kind, found in _find_sshd(root) if kind in ("root", "empty"))


# ---- time


def _find_lost_zone(root: Root) -> Iterator[Found]:
    path = "/etc/localtime"
    file = root.contents.files.get(path)
    if file is not None and file.target is not None and root.contents.find(path) is None:
        yield Found(
            path=path, detail=f"it leads to {to_printable(file.target)}, which is not there"
        )


def _find_no_clock(root: Root) -> Iterator[Found]:
    enabled = {name.removesuffix(".service") for name in root.enabled}
    if root.enabled and not enabled.intersection(_CLOCKS):
        yield Found(path="/etc", detail="no service that is enabled sets the clock")


# ---- mounts


def _find_lost_mounts(root: Root) -> Iterator[Found]:
    path = str(fstab.FSTAB)
    for line in fstab.parse(root.contents.text(path)):
        source = to_printable(line.source)
        if line.optional:
            continue
        if _NAMED_DEVICE.match(source):
            yield Found(path=path, detail=f"{source}, for {line.mount}, has other names elsewhere")
        elif re.match("(UUID|LABEL|PARTUUID|PARTLABEL)=", source):
            name, _, value = source.partition("=")
            known = {identifier.lower() for identifier in root.contents.identifiers}
            if name[:4] != "PART" and f"{name}={value}".lower() not in known:
                yield Found(path=path, detail=f"no file system of the image is {source}")


# ---- services


def _find_listeners(root: Root) -> Iterator[Found]:
    for unit in sorted(root.enabled):
        name = unit.removesuffix(".service").partition("@")[0]
        if unit.endswith(".socket") and unit not in _EXPECTED_SOCKETS:
            for address in _LISTENS.findall(root.unit_text(unit)):
                if not address.startswith(("/", "@", "127.", "[::1]", "vsock:", "%", "kobject")):
                    detail = f"{unit} listens at {to_printable(address)[:60]}"
                    yield Found(path=_unit_path(root, unit), detail=detail, subject=unit)
                    break
        elif name in _LISTENERS:
            detail = f"{name} serves {_LISTENERS[name]} from the first boot on"
            yield Found(path=_unit_path(root, unit), detail=detail, subject=name)


def _unit_path(root: Root, unit: str) -> str:
    names = [unit, f"{unit}.service"]
    folders = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
    paths = [f"{folder}/{name}" for folder in folders for name in names] + [f"/etc/init.d/{unit}"]
    return next((path for path in paths if root.contents.find(path) is not None), "/etc")


RULES = (
    Rule(
        id="release-ended",
        severity="warning",
        what="a release without updates",
        reason="nobody mends its faults any more, and new ones become known every week",
        todo="move the definition to a release that its distribution still supports",
        find=_find_old_release,
    ),
    Rule(
        id="sshd-root-password",
        severity="error",
        what="sshd lets root in by password, or anybody without one",
        reason="root's name is known, and programs try passwords on every address",
        todo="`PermitRootLogin prohibit-password`, `PermitEmptyPasswords no`; the element "
        "phantom-ssh sets this",
        find=_find_sshd_root,
    ),
    Rule(
        id="sshd-passwords",
        severity="warning",
        what="sshd takes passwords",
        reason="programs try passwords on every address, and find weak ones",
        todo="`PasswordAuthentication no`; the element phantom-ssh sets this",
        find=_find_sshd_passwords,
    ),
    Rule(
        id="time-zone",
        severity="warning",
        what="a time zone that is not there",
        reason="programs fall back to UTC, while settings say otherwise",
        todo="install tzdata, or set the definition's `timezone`",
        find=_find_lost_zone,
    ),
    Rule(
        id="no-clock-service",
        severity="warning",
        what="no service that sets the clock",
        reason="clocks of virtual machines drift, and certificates and clusters need the time",
        todo="install and enable systemd-timesyncd or chrony",
        find=_find_no_clock,
    ),
    Rule(
        id="fstab",
        severity="error",
        what="a mount that machines of the image do not have",
        reason="the boot waits for it, and may end in emergency mode",
        todo="mount by LABEL or UUID what the image has, and add `nofail` to the rest",
        find=_find_lost_mounts,
    ),
    Rule(
        id="listening-service",
        severity="warning",
        what="a service that others can reach from the first boot on",
        reason="it runs before user-data has configured it, on every address of the machine",
        todo="let user-data start it (`systemctl disable`), or waive it where it is the purpose",
        find=_find_listeners,
    ),
)
