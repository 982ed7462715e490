"""Packages of the image, by its own package manager."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import DefinitionError, PackageManagerError, PackagesFailedError, PhantomError
from pipeline.guest.appliance import Guest
from pipeline.guest.files import TEMPORARY, ImageFiles, full
from pipeline.guest.programs import Ended, printable, reachable, resolving, run_program
from pipeline.guest.system import System

Installed = tuple[str, str, str]
"""Name, version, architecture."""

_SECONDS = 2 * 3600  # for one run of a package manager
_LIST_SECONDS = 300
_LAST_LINES = 6
_APT = [
    "apt-get --assume-yes --quiet",
    "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0",
    "-o APT::Install-Recommends=false -o APT::Install-Suggests=false",
    "-o Acquire::Languages=none -o Acquire::PDiffs=false -o Acquire::Retries=3",
]
_ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "apt": {
        "APT_LISTCHANGES_FRONTEND": "none",
        "DEBCONF_NONINTERACTIVE_SEEN": "true",
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
        "UCF_FORCE_CONFFOLD": "1",
    },
    "zypper": {"ZYPP_LOCK_TIMEOUT": "0"},
}


@dataclass(frozen=True, kw_only=True)
class _Manager:
    """What a package manager is told, as lines of shell; packages follow."""

    refresh: str | None
    install: str
    remove: str
    tidy: str | None


_MANAGERS: Mapping[str, _Manager] = {
    "apt": _Manager(
        refresh="{apt} update",
        install="{apt} install",
        remove="{apt} purge",
        tidy="apt-get clean",
    ),
    "dnf": _Manager(
        refresh=None,
        install="dnf --assumeyes --setopt=install_weak_deps=False install",
        remove="dnf --assumeyes remove",
        tidy="dnf --quiet clean all",
    ),
    "yum": _Manager(
        refresh=None,
        install="yum --assumeyes install",
        remove="yum --assumeyes remove",
        tidy="yum --quiet clean all",
    ),
    "zypper": _Manager(
        refresh="zypper --non-interactive refresh",
        install="zypper --non-interactive install --no-recommends --auto-agree-with-licenses",
        remove="zypper --non-interactive remove",
        tidy="zypper --quiet clean --all",
    ),
    "apk": _Manager(
        refresh=None,
        install="apk add --no-cache --no-progress",
        remove="apk del --no-progress",
        tidy=None,
    ),
    "pacman": _Manager(
        refresh="pacman --sync --refresh --noconfirm --noprogressbar",
        install="pacman --sync --needed --noconfirm --noprogressbar",
        remove="pacman --remove --noconfirm --noprogressbar",
        tidy="rm -rf /var/cache/pacman/pkg/* /var/lib/pacman/sync/*",
    ),
}
_POLICY = PurePosixPath("/usr/sbin/policy-rc.d")
_NO_SERVICES = "#!/bin/sh\n# No service is started while packages are installed.\nexit 101\n"
# What separates fields and lines, for whoever reads a list of packages, and what no terminal takes.
_UNCLEAN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.+_-]*")


def change_packages(
    guest: Guest,
    system: System,
    *,
    install: Sequence[str],
    remove: Sequence[str],
    network: bool,
    apt_sources: str | None,
    proxies: Mapping[str, str],
) -> None:
    """Removes packages, then installs those that are not there yet, without recommended ones.

    No service is started, and files of settings that were changed are kept. `apt_sources` is the
    text of a sources.list to use in place of the image's own, `proxies` are environment variables;
    neither stays in the image. Raises PackageManagerError, PackagesFailedError, DefinitionError for
    packages that need a network, FileSystemError.
    """
    if not install and not remove:
        return
    manager = system.package_manager
    if manager is None or manager not in _MANAGERS:
        raise PackageManagerError(
            f"{system.product} has no package manager that is known",
            todo="leave `packages` out, or take a base image that has them already",
        )
    present = {name for name, _version, _architecture in list_packages(guest, system)}
    missing = [name for name in install if not _is_present(name, present)]
    unwanted = [name for name in remove if _is_present(name, present)]
    if missing and not network:
        raise DefinitionError(
            f"the base image lacks {', '.join(missing)}, and is not given a network to get "
            f"{'it' if len(missing) == 1 else 'them'}",
            todo="write `network: true` below `base_image`, or leave these packages out",
        )
    files = ImageFiles(guest)
    run = _Run(guest, files, manager, proxies)
    with run.prepared(apt_sources if missing else None):
        if unwanted:
            guest.progress.step(f"removing {_count(unwanted)}")
            run.remove(unwanted)
        if missing:
            guest.progress.step(f"installing {_count(missing)}")
            with resolving(guest, files, network=network):
                run.install(missing)


def list_packages(guest: Guest, system: System) -> list[Installed]:
    """The packages that are installed, sorted; empty where no package manager is known. What its
    list holds is the image's word: an entry that is none is left out.

    Raises PackagesFailedError, FileSystemError.
    """
    lister = _LISTERS.get(system.package_manager or "")
    return [] if lister is None else sorted(filter(_is_clean, lister(guest)))


def _is_clean(package: Installed) -> bool:
    return bool(package[0]) and not any(_UNCLEAN.search(field) for field in package)


class _Run:
    """Runs of one package manager."""

    def __init__(
        self, guest: Guest, files: ImageFiles, manager: str, proxies: Mapping[str, str]
    ) -> None:
        self._guest = guest
        self._files = files
        self._manager = manager
        self._environment = {
            **_ENVIRONMENTS.get(manager, {}),
            **{name: reachable(value) for name, value in proxies.items()},
        }
        self._apt = " ".join(_APT)

    @contextmanager
    def prepared(self, apt_sources: str | None) -> Iterator[None]:
        """Where apt's lists and packages go into a folder of our own, and no service starts."""
        if self._manager != "apt":
            yield
            return
        folder = PurePosixPath(f"/var/tmp/{TEMPORARY}{secrets.token_hex(8)}")  # noqa: S108
        for below in ("lists/partial", "cache/archives/partial"):
            self._files.make_folder(folder / below)
        options = f"-o Dir::State::Lists={folder}/lists -o Dir::Cache={folder}/cache"
        if apt_sources is not None:
            self._files.write(folder / "sources.list", reachable(apt_sources))
            options += f" -o Dir::Etc::SourceList={folder}/sources.list"
            options += " -o Dir::Etc::SourceParts=/dev/null"
        self._apt = " ".join([*_APT, options])
        try:
            with _no_services(self._guest, self._files):
                yield
        finally:
            if not self._guest.ended:
                self._files.remove(folder)

    def remove(self, packages: Sequence[str]) -> None:
        """Removes packages. Raises PackagesFailedError."""
        self._run(_MANAGERS[self._manager].remove, packages)

    def install(self, packages: Sequence[str]) -> None:
        """Installs packages. Raises PackagesFailedError."""
        manager = _MANAGERS[self._manager]
        if manager.refresh is not None:
            self._run(manager.refresh)
        self._run(manager.install, packages)
        if self._manager == "yum":  # which ends well when it knows only some of them
            self._run("rpm --query --whatprovides", packages)
        if manager.tidy is not None:
            self._run(manager.tidy)

    def _run(self, line: str, packages: Sequence[str] = ()) -> None:
        words = ["/bin/sh", "-c", line.format(apt=self._apt) + ' "$@"', "sh", *packages]
        shown = " ".join([line.format(apt="apt-get"), *packages])
        try:
            ended = run_program(
                self._guest, self._files, words, seconds=_SECONDS, environment=self._environment
            )
        except TimeoutError:
            raise PackagesFailedError(
                f"`{shown}` did not end in the image within {_SECONDS // 3600} hours",
                log=self._guest.log,
            ) from None
        if ended.status != 0:
            raise self._explain(shown, ended)

    def _explain(self, shown: str, ended: Ended) -> PhantomError:
        if any("No space left on device" in line or "free space" in line for line in ended.lines):
            return full()
        how = "shut its machine down" if ended.status is None else f"ended with {ended.status}"
        return PackagesFailedError(
            f"`{shown}` {how} in the image",
            todo="see what it says; its sources of packages are those of the base image",
            log=self._guest.log,
            detail="\n".join(ended.lines),
        )


@contextmanager
def _no_services(guest: Guest, files: ImageFiles) -> Iterator[None]:
    aside = _POLICY.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    had_one = files.exists(_POLICY)
    if had_one:
        files.move(_POLICY, aside)
    files.write(_POLICY, _NO_SERVICES, 0o755)
    try:
        yield
    finally:
        if not guest.ended:
            files.remove(_POLICY)
            if had_one:
                files.move(aside, _POLICY)


def _is_present(wanted: str, present: set[str]) -> bool:
    """Whether a package is installed, in whatever version: `name`, `name:amd64`."""
    name = _PLAIN_NAME.match(wanted)
    if name is None or re.search(r"[=/<>~@*]", wanted):
        return False
    return name[0] in present


def _count(packages: Sequence[str]) -> str:
    return packages[0] if len(packages) == 1 else f"{len(packages)} packages"


def _of_dpkg(guest: Guest) -> Iterator[Installed]:
    for fields in _stanzas(guest, "/var/lib/dpkg/status", ": "):
        if fields.get("Status", "").endswith(" installed"):
            yield (
                fields.get("Package", ""),
                fields.get("Version", ""),
                fields.get("Architecture", ""),
            )


def _of_apk(guest: Guest) -> Iterator[Installed]:
    for fields in _stanzas(guest, "/lib/apk/db/installed", ":"):
        if "P" in fields:
            yield fields["P"], fields.get("V", ""), fields.get("A", "")


def _stanzas(guest: Guest, path: str, separator: str) -> Iterator[dict[str, str]]:
    """The fields of each paragraph; of those with several lines, the first."""
    content = ImageFiles(guest).read(PurePosixPath(path)) or b""
    for stanza in content.decode("utf-8", "replace").split("\n\n"):
        lines = [line.partition(separator) for line in stanza.split("\n") if line[:1].strip()]
        fields = {name: value.strip() for name, _separator, value in lines}
        if fields:
            yield fields


def _of_rpm(guest: Guest) -> Iterator[Installed]:
    form = r"%{NAME}\t%{EVR}\t%{ARCH}\n"
    for line in _listed(guest, ["rpm", "--query", "--all", "--queryformat", form]).split("\n"):
        name, *rest = line.split("\t")
        if len(rest) == 2 and name != "gpg-pubkey":
            yield name, rest[0], rest[1]


def _of_pacman(guest: Guest) -> Iterator[Installed]:
    for stanza in _listed(guest, ["pacman", "--query", "--info"]).split("\n\n"):
        lines = [line.partition(":") for line in stanza.split("\n")]
        fields = {name.strip(): value.strip() for name, _colon, value in lines}
        yield fields.get("Name", ""), fields.get("Version", ""), fields.get("Architecture", "")


def _listed(guest: Guest, words: Sequence[str]) -> str:
    """What a package manager prints. Raises PackagesFailedError."""
    try:
        with guest.limited(_LIST_SECONDS):
            return str(guest.handle.command(["env", "LC_ALL=C", *words]))
    except TimeoutError:
        raise PackagesFailedError(
            f"{words[0]} did not list the image's packages within {_LIST_SECONDS} s", log=guest.log
        ) from None
    except RuntimeError as error:
        if guest.ended:
            raise
        raise PackagesFailedError(
            f"{words[0]} cannot list the image's packages",
            todo="repair the base image's database of packages, or choose another base image",
            log=guest.log,
            detail="\n".join(printable(line) for line in str(error).splitlines()[-_LAST_LINES:]),
        ) from error


_LISTERS: Mapping[str, Callable[[Guest], Iterator[Installed]]] = {
    "apt": _of_dpkg,
    "dnf": _of_rpm,
    "yum": _of_rpm,
    "zypper": _of_rpm,
    "apk": _of_apk,
    "pacman": _of_pacman,
}
