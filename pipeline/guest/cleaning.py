"""Removes what would make machines twins, and what tells of those who made the image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from pipeline.guest.appliance import Guest
from pipeline.guest.files import TEMPORARY, ImageFiles
from pipeline.guest.system import System

_ALL = ("*",)
_HISTORIES = (
    *(".bash_history", ".ash_history", ".sh_history", ".zsh_history", ".history", ".lesshst"),
    *(".viminfo", ".python_history", ".node_repl_history", ".mysql_history", ".psql_history"),
    *(".sqlite_history", ".rediscli_history", ".wget-hsts"),
)
# What is removed from these folders, whole trees included.
_REMOVED: Mapping[str, Sequence[str]] = {
    # made anew by each machine
    "/etc/ssh": ("ssh_host_*",),
    "/etc/openssh": ("ssh_host_*",),
    "/etc/dropbear": ("dropbear_*_host_key",),
    "/var/lib/systemd": ("random-seed", "credential.secret"),
    "/var/lib/urandom": ("random-seed",),
    "/var/lib/misc": ("random-seed",),
    "/var/lib/seedrng": _ALL,
    "/boot/loader": ("random-seed",),
    "/var/lib/yum": ("uuid",),
    # what was found on the machine where the image was made
    "/etc/udev/rules.d": ("70-persistent-net.rules", "70-persistent-cd.rules"),
    "/var/lib/dhcp": _ALL,
    "/var/lib/dhcp3": _ALL,
    "/var/lib/dhclient": _ALL,
    "/var/lib/dhcpcd": _ALL,
    "/var/lib/dhcpcd5": _ALL,
    "/var/lib/wicked": _ALL,
    "/var/lib/NetworkManager": (
        *("*.lease", "*.leases", "*-intern.conf", "secret_key", "seen-bssids", "timestamps"),
    ),
    "/var/lib/systemd/timesync": ("clock",),
    "/var/lib/cloud": ("data", "handlers", "instance", "instances", "sem"),
    "/etc/pki/consumer": _ALL,
    "/etc/pki/entitlement": _ALL,
    "/etc/sysconfig/rhn": ("systemid",),
    # what a node wrote, and what the user-data fetcher kept: it would ask the service of that site
    "/var": ("nimbus-metadata-server-url",),
    "/var/lib/phantom": _ALL,
    # left by programs that ended, and by ourselves
    "/": ("core", "core.[0-9]*", f"{TEMPORARY}*"),
    "/etc": (
        *("passwd-", "group-", "shadow-", "gshadow-", "subuid-", "subgid-", "dhcpcd.duid"),
        *("blkid.tab", "blkid.tab.old", ".resolv.conf.systemd-resolved.bak", f"{TEMPORARY}*"),
    ),
    "/usr/sbin": (f"{TEMPORARY}*",),
    "/tmp": _ALL,  # noqa: S108
    "/var/tmp": _ALL,  # noqa: S108
    "/var/crash": _ALL,
    "/var/lib/systemd/coredump": _ALL,
    "/root": _HISTORIES,
    # what can be fetched again
    "/var/lib/apt/lists": _ALL,
    "/var/cache/apt": ("*.bin",),
    "/var/cache/apt/archives": ("*.deb", "partial"),
    "/var/cache/debconf": ("*-old",),
    "/var/lib/dpkg": ("*-old",),
    "/var/cache/dnf": _ALL,
    "/var/cache/libdnf5": _ALL,
    "/var/cache/yum": _ALL,
    "/var/cache/zypp": _ALL,
    "/var/cache/apk": _ALL,
    "/var/cache/pacman/pkg": _ALL,
    "/var/lib/pacman/sync": _ALL,
}
# Folders whose trees stay and whose files go: their owners want to find the folders.
_EMPTIED = (
    *("/var/spool/mqueue", "/var/spool/clientmqueue"),
    *("/var/spool/exim4/input", "/var/spool/exim4/msglog"),
    *(f"/var/spool/postfix/{queue}" for queue in ("active", "deferred", "incoming", "maildrop")),
)
# Folders whose files stay, empty, with their owners and modes; but rotated ones and journals go.
_TRUNCATED = ("/var/log", "/var/mail", "/var/spool/mail")
_ROTATED = (
    *("*.gz", "*.xz", "*.bz2", "*.zst", "*.old", "*.[0-9]", "*.[0-9][0-9]", "*-[0-9]*[0-9]"),
    *("*.journal", "*.journal~"),
)
_MACHINE_ID = PurePosixPath("/etc/machine-id")
_DBUS_MACHINE_ID = PurePosixPath("/var/lib/dbus/machine-id")

_PROXY_FILES: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(
        ("/etc/dnf/dnf.conf", "/etc/yum.conf"),
        re.compile(r"(?m)^[ \t]*proxy(_username|_password|_auth_method)?[ \t]*=.*\n?"),
    ),
    "/etc/environment": re.compile(
        r"(?mi)^[ \t]*(export[ \t]+)?(http|https|ftp|all|no)_proxy[ \t]*=.*\n?"
    ),
    "/etc/wgetrc": re.compile(r"(?mi)^[ \t]*(http|https|ftp|no)_proxy[ \t]*=.*\n?"),
}
_APT = PurePosixPath("/etc/apt")
_APT_PROXY = re.compile(
    r"(?mi)^[ \t]*Acquire::(http|https|ftp)(::[^\s\"]*)?::Proxy(-Auto-Detect)?"
    r"[ \t]+\"[^\"]*\";.*\n?"
)


def forget_proxies(files: ImageFiles) -> None:
    """Takes out the proxies of those who made the base image. Before the definition's files and
    scripts: what they set stays."""
    texts = {PurePosixPath(path): pattern for path, pattern in _PROXY_FILES.items()}
    parts = _APT / "apt.conf.d"
    texts |= dict.fromkeys(
        [_APT / "apt.conf", *(parts / n for n in files.names(parts))], _APT_PROXY
    )
    for path, pattern in texts.items():
        content, mode = files.read(path), files.mode(path)
        if content is None or mode is None:
            continue
        text = content.decode("utf-8", "surrogateescape")
        kept = pattern.sub("", text)
        if kept != text:
            files.write(path, kept.encode("utf-8", "surrogateescape"), mode)


def clean(guest: Guest, files: ImageFiles, system: System) -> None:
    """Removes keys, identities, logs, histories, leases, seeds and caches. Keys of people
    (`authorized_keys`) stay: who made the image wants them. Never through a link of the image."""
    with files.alone():
        _forget_machine_id(files, system)
        searches = list(_searches(files))
    # The appliance's own find, which follows no links; nothing of the image runs meanwhile. A
    # process costs more than what it does, so there are few.
    script = "\n".join(f"find {words} 2>&1" for words in searches)
    for line in guest.handle.debug("sh", [f"{script}\n:"]).splitlines():
        guest.progress.output(line)


def _forget_machine_id(files: ImageFiles, system: System) -> None:
    """systemd fills an empty file in at boot; others make one where there is none."""
    if system.init == "systemd":
        files.write(_MACHINE_ID, "", 0o444)
    else:
        files.remove(_MACHINE_ID)
    if files.read_link(_DBUS_MACHINE_ID) is None:
        files.remove(_DBUS_MACHINE_ID)


def _searches(files: ImageFiles) -> Iterator[str]:
    """What find is told: folders, what to look for in them, and what to do with it."""
    remove = "-exec rm -rf --one-file-system -- {} +"
    places = _places(files, _REMOVED)
    paths = [f"{place}/{name}" for folder, place in places.items() for name in _REMOVED[folder]]
    yield f"{_words(places)} -mindepth 1 -maxdepth 1 {_any_of('-path', paths)} {remove}"
    homes = _places(files, ["/home"])
    if homes:
        yield f"{_words(homes)} -mindepth 2 -maxdepth 2 {_any_of('-name', _HISTORIES)} {remove}"
    emptied = _places(files, _EMPTIED)
    if emptied:
        yield f"{_words(emptied)} -xdev -mindepth 1 -not -type d -delete"
    truncated = _places(files, _TRUNCATED)
    if truncated:
        # a file with another name elsewhere loses the name, not its content
        odd = f"-links +1 -o {_any_of('-name', _ROTATED)}"
        empty = "-size +0 -exec truncate --size=0 -- {} +"
        yield f"{_words(truncated)} -xdev -type f '(' '(' {odd} ')' -delete -o {empty} ')'"


def _places(files: ImageFiles, folders: Iterable[str]) -> dict[str, str]:
    """Where those folders that are there lie in the appliance."""
    found = {folder: files.locate_folder(PurePosixPath(folder)) for folder in folders}
    return {
        folder: f"/sysroot{place.rstrip('/')}"
        for folder, place in found.items()
        if place is not None
    }


def _words(places: Mapping[str, str]) -> str:
    return shlex.join(dict.fromkeys(places.values()))


def _any_of(test: str, patterns: Iterable[str]) -> str:
    return f"'(' {' -o '.join(f'{test} {shlex.quote(pattern)}' for pattern in patterns)} ')'"
