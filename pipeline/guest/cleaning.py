"""Removes what must differ between machines, and traces of those who made the image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.guest.files import TEMPORARY, ImageFiles
from pipeline.guest.image import Image

_ALL = ("*",)
HISTORIES = (
    *(".bash_history", ".ash_history", ".sh_history", ".zsh_history", ".history", ".lesshst"),
    *(".viminfo", ".python_history", ".node_repl_history", ".mysql_history", ".psql_history"),
    *(".sqlite_history", ".rediscli_history", ".wget-hsts"),
)
"""In homes, what programs keep of what was typed or visited."""
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
    # what belongs to the machine that the image was made on
    "/etc/udev/rules.d": ("70-persistent-net.rules", "70-persistent-cd.rules"),
    **dict.fromkeys(("/var/lib/dhcp", "/var/lib/dhcp3", "/var/lib/dhclient"), _ALL),
    **dict.fromkeys(("/var/lib/dhcpcd", "/var/lib/dhcpcd5", "/var/lib/wicked"), _ALL),
    "/var/lib/NetworkManager": (
        *("*.lease", "*.leases", "*-intern.conf", "secret_key", "seen-bssids", "timestamps"),
    ),
    "/var/lib/systemd/timesync": ("clock",),
    "/var/lib/cloud": ("data", "handlers", "instance", "instances", "sem"),
    **dict.fromkeys(("/etc/pki/consumer", "/etc/pki/entitlement"), _ALL),
    "/etc/sysconfig/rhn": ("systemid",),
    # what a node wrote and the user-data fetcher kept: it would ask the service of that site
    "/var": ("nimbus-metadata-server-url",),
    "/var/lib/phantom": _ALL,
    # leftovers of programs, and of ourselves
    "/": ("core", "core.[0-9]*", f"{TEMPORARY}*"),
    "/etc": (
        *("passwd-", "group-", "shadow-", "gshadow-", "subuid-", "subgid-", "dhcpcd.duid"),
        *("blkid.tab", "blkid.tab.old", ".resolv.conf.systemd-resolved.bak", f"{TEMPORARY}*"),
    ),
    "/usr/sbin": (f"{TEMPORARY}*",),
    **dict.fromkeys(("/tmp", "/var/tmp"), _ALL),  # noqa: S108
    **dict.fromkeys(("/var/crash", "/var/lib/systemd/coredump"), _ALL),
    "/root": HISTORIES,
    # what can be fetched again
    "/var/lib/apt/lists": _ALL,
    "/var/cache/apt": ("*.bin",),
    "/var/cache/apt/archives": ("*.deb", "partial"),
    "/var/cache/debconf": ("*-old",),
    "/var/lib/dpkg": ("*-old",),
    **dict.fromkeys(("/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum"), _ALL),
    **dict.fromkeys(("/var/cache/zypp", "/var/cache/apk", "/var/cache/pacman/pkg"), _ALL),
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
_IN_HOME = re.compile(r"/sysroot/home/[^/]+/([^/]+)(?:/.*)?", re.DOTALL)
_MACHINE_ID = PurePosixPath("/etc/machine-id")
_DBUS_MACHINE_ID = PurePosixPath("/var/lib/dbus/machine-id")

_DNF_PROXY = re.compile(r"(?m)^[ \t]*proxy(_username|_password|_auth_method)?[ \t]*=.*\n?")
_PROXY_FILES = {
    PurePosixPath("/etc/dnf/dnf.conf"): _DNF_PROXY,
    PurePosixPath("/etc/yum.conf"): _DNF_PROXY,
    PurePosixPath("/etc/environment"): re.compile(
        r"(?mi)^[ \t]*(export[ \t]+)?(http|https|ftp|all|no)_proxy[ \t]*=.*\n?"
    ),
    PurePosixPath("/etc/wgetrc"): re.compile(r"(?mi)^[ \t]*(http|https|ftp|no)_proxy[ \t]*=.*\n?"),
}
_APT = PurePosixPath("/etc/apt")
_APT_PROXY = re.compile(
    r"(?mi)^[ \t]*Acquire::(http|https|ftp)(::[^\s\"]*)?::Proxy(-Auto-Detect)?"
    r"[ \t]+\"[^\"]*\";.*\n?"
)


def forget_proxies(files: ImageFiles) -> None:
    """Removes the proxies of those who made the base image. It runs before the definition's files
    and scripts, so that what they set stays."""
    parts = _APT / "apt.conf.d"
    paths = [_APT / "apt.conf", *(parts / name for name in files.names(parts))]
    for path, pattern in (_PROXY_FILES | dict.fromkeys(paths, _APT_PROXY)).items():
        text, mode = files.read_to_edit(path), files.mode(path)
        kept = pattern.sub("", text)
        if kept != text and mode is not None:
            files.write(path, kept, mode)


def clean(image: Image, *, sparing: PurePosixPath | None = None) -> None:
    """Removes host keys, identities, logs, histories, leases, seeds and caches, and never follows a
    link of the image. People's keys (`authorized_keys`) stay: the image's owner wants them. So does
    the temporary folder `sparing`."""
    with image.files.alone():
        _forget_machine_id(image)
        searches = list(_searches(image.files, sparing))
    # The appliance's own find, which follows no links; no program of the image runs meanwhile.
    # Starting a process takes longer than its work, so a few do all of it.
    script = "\n".join(f"find {words} 2>&1" for words in searches)
    for line in image.guest.shell(f"{script}\n:").splitlines():
        image.guest.progress.output(line)


def _forget_machine_id(image: Image) -> None:
    """systemd fills in an empty file at boot; other init systems make a file that is missing."""
    files = image.files
    if image.system.init == "systemd":
        files.write(_MACHINE_ID, "", 0o444)
    else:
        files.remove(_MACHINE_ID)
    if files.read_link(_DBUS_MACHINE_ID) is None:
        files.remove(_DBUS_MACHINE_ID)


def find_cleaned(files: ImageFiles, paths: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Those of the paths that `clean` would remove or empty."""
    removed = _places(files, _REMOVED)
    whole = tuple(f"{place}/" for place in _places(files, (*_EMPTIED, *_TRUNCATED)).values())

    def is_cleaned(place: str) -> bool:
        if place.startswith(whole):
            return True
        if (match := _IN_HOME.fullmatch(place)) and match[1] in HISTORIES:
            return True
        return any(
            fnmatchcase(place.removeprefix(f"{above}/").partition("/")[0], pattern)
            for folder, above in removed.items()
            if place.startswith(f"{above}/")
            for pattern in _REMOVED[folder]
        )

    located = {path: files.locate(path) for path in paths}
    return [path for path, place in located.items() if place and is_cleaned(f"/sysroot{place}")]


def _searches(files: ImageFiles, sparing: PurePosixPath | None) -> Iterator[str]:
    """The arguments of each run of find: folders, tests and actions."""
    remove = "-exec rm -rf --one-file-system -- {} +"
    places = _places(files, _REMOVED)
    paths = [f"{place}/{name}" for folder, place in places.items() for name in _REMOVED[folder]]
    spared = "" if sparing is None else f"-not -path /sysroot{sparing} "
    yield f"{_words(places)} -mindepth 1 -maxdepth 1 {spared}{_any_of('-path', paths)} {remove}"
    homes = _places(files, ["/home"])
    if homes:
        yield f"{_words(homes)} -mindepth 2 -maxdepth 2 {_any_of('-name', HISTORIES)} {remove}"
    emptied = _places(files, _EMPTIED)
    if emptied:
        yield f"{_words(emptied)} -xdev -mindepth 1 -not -type d -delete"
    truncated = _places(files, _TRUNCATED)
    if truncated:
        # a file with another name elsewhere loses only this name: it may not be a log there
        odd = f"-links +1 -o {_any_of('-name', _ROTATED)}"
        empty = "-size +0 -exec truncate --size=0 -- {} +"
        yield f"{_words(truncated)} -xdev -type f '(' '(' {odd} ')' -delete -o {empty} ')'"


def _places(files: ImageFiles, folders: Iterable[str]) -> dict[str, str]:
    """The paths in the appliance of those folders that exist."""
    places = {folder: files.locate_folder(PurePosixPath(folder)) for folder in folders}
    return {folder: f"/sysroot{place.rstrip('/')}" for folder, place in places.items() if place}


def _words(places: Mapping[str, str]) -> str:
    return shlex.join(dict.fromkeys(places.values()))


def _any_of(test: str, patterns: Iterable[str]) -> str:
    return f"'(' {' -o '.join(f'{test} {shlex.quote(pattern)}' for pattern in patterns)} ')'"
