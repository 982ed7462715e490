"""Packages of the image, by its own package manager."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.customizations.repositories import Repository
from pipeline.errors import DefinitionError, PackageManagerError, PackagesFailedError, PhantomError
from pipeline.guest.files import Copy, full, temporary_name
from pipeline.guest.image import Image
from pipeline.guest.programs import Ended, printable, reachable, resolving, run_program
from pipeline.model import split_pin
from pipeline.tools import apt_complaints, deb
from pipeline.tools.deb import LocalPackage

Installed = tuple[str, str, str]
"""Name, version, architecture."""

_SECONDS = 2 * 3600  # for one run of a package manager
_LIST_SECONDS = 300
_LAST_LINES = 6
_APT = (
    "apt-get --assume-yes --quiet --allow-downgrades "
    "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "
    "-o APT::Install-Recommends=false -o APT::Install-Suggests=false "
    "-o Acquire::Languages=none -o Acquire::PDiffs=false -o Acquire::Retries=3"
)
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
    """The commands of a package manager, as lines of shell; packages follow."""

    refresh: str | None = None
    install: str
    remove: str
    tidy: str | None = None
    pin: str | None = "{name}={version}"
    """How it is asked for one version of a package; None if it cannot be."""


_MANAGERS: Mapping[str, _Manager] = {
    "apt": _Manager(
        refresh="{apt} update",
        install="{apt} install",
        remove="{apt} purge",
        tidy="apt-get clean",
    ),
    "dnf": _Manager(
        install="dnf --assumeyes --setopt=install_weak_deps=False install",
        remove="dnf --assumeyes remove",
        tidy="dnf --quiet clean all",
        pin="{name}-{version}",
    ),
    "yum": _Manager(
        install="yum --assumeyes install",
        remove="yum --assumeyes remove",
        tidy="yum --quiet clean all",
        pin="{name}-{version}",
    ),
    "zypper": _Manager(
        refresh="zypper --non-interactive refresh",
        install="zypper --non-interactive install --no-recommends --auto-agree-with-licenses "
        "--oldpackage",
        remove="zypper --non-interactive remove",
        tidy="zypper --quiet clean --all",
    ),
    "apk": _Manager(install="apk add --no-cache --no-progress", remove="apk del --no-progress"),
    "pacman": _Manager(
        refresh="pacman --sync --refresh --noconfirm --noprogressbar",
        install="pacman --sync --needed --noconfirm --noprogressbar",
        remove="pacman --remove --noconfirm --noprogressbar",
        tidy="rm -rf /var/cache/pacman/pkg/* /var/lib/pacman/sync/*",
        pin=None,
    ),
}
_ARCHITECTURES = {"x86_64": "amd64", "i686": "i386"}
"""Debian's names of the architectures whose programs can be run."""
_POLICY = PurePosixPath("/usr/sbin/policy-rc.d")
_NO_SERVICES = "#!/bin/sh\n# No service is started while packages are installed.\nexit 101\n"
# What would break the columns and lines of our own list, or disturb a terminal.
_UNCLEAN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_PACKAGE = "phantom-image: no package: "
_PLAIN_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9.+_-]*)[^=/<>~@*]*")


def change_packages(
    image: Image,
    *,
    install: Sequence[str],
    remove: Sequence[str],
    network: bool,
    apt_sources: str | None,
    proxies: Mapping[str, str],
    repositories: Sequence[Repository] = (),
    files: Sequence[LocalPackage] = (),
    work: Path | None = None,
) -> None:
    """Removes packages, then installs those that are not there yet, without recommended ones.

    No service is started, and files of settings that were changed are kept. `apt_sources` is the
    text of a sources.list to use in place of the image's own, `proxies` are environment variables,
    `repositories` further archives for apt; none of them stays in the image. `files` are packages
    of the definition, which replace others of their name, and pass through the folder `work`.
    Raises PackageManagerError, PackagesFailedError, MirrorError, FileSystemError, and
    DefinitionError for packages that need a network.
    """
    if not install and not remove and not files:
        return
    guest, manager = image.guest, _find_manager(image, repositories)
    _check_files(image, files)
    present: defaultdict[str, set[str]] = defaultdict(set)
    for name, version, _architecture in list_packages(image):
        present[name].add(version)
    missing = [name for name in install if not _is_present(name, present)]
    unwanted = [name for name in remove if _is_present(name, present)]
    if missing and not network:
        raise DefinitionError(
            f"the base image lacks {', '.join(missing)}, and is not given a network to get "
            f"{'it' if len(missing) == 1 else 'them'}",
            todo="write `network: true` below `base_image`, or leave these packages out",
        )
    again = [file for file in files if file.version in present[file.name]]
    new = [file.name for file in files if file not in again]
    run = _Run(image, manager, proxies, network=network)
    if not missing and not new:
        apt_sources, repositories = None, ()
    with run.prepared(apt_sources, repositories, files, work):
        if unwanted:
            guest.progress.step(f"removing {_count(unwanted)}")
            run.remove(unwanted)
        if wanted := [*missing, *new]:
            guest.progress.step(f"installing {_count(wanted)}")
            with resolving(image):
                run.install(wanted)
        if again:
            guest.progress.step(f"installing {_count([file.name for file in again])}")
            run.install_again(again)


def _find_manager(image: Image, repositories: Sequence[Repository]) -> str:
    """The image's package manager. Raises PackageManagerError where it has none that serves."""
    manager = image.system.package_manager
    if manager is None or manager not in _MANAGERS:
        raise PackageManagerError(
            f"{image.system.product} has no package manager that is known",
            todo="leave `packages` out, or take a base image that has them already",
        )
    if repositories and manager != "apt":
        raise PackageManagerError(
            f"{image.system.product} has no apt, which `repositories` are for",
            todo="leave `repositories` out, and add its own in a script, with `network: true`",
        )
    return manager


def _check_files(image: Image, files: Sequence[LocalPackage]) -> None:
    """Raises PackageManagerError for package files that the image cannot have."""
    if files and image.system.package_manager != "apt":
        raise PackageManagerError(
            f"{image.system.product} has no apt, which installs .deb files",
            where=files[0].where or None,
            todo=f"leave {files[0].path.name} out, or take a base image that has apt",
        )
    own = _ARCHITECTURES.get(image.system.architecture)
    for file in files:
        if own is not None and file.architecture not in ("all", own):
            raise PackageManagerError(
                f"{file.path.name} is for {file.architecture}, and the base image is for {own}",
                where=file.where or None,
                todo="name the package for the image's architecture",
            )


def answer_questions(image: Image, answers: str) -> None:
    """Tells debconf what packages will ask. Raises PackageManagerError where there is no debconf,
    PackagesFailedError where it does not take the answers."""
    if not answers:
        return
    if image.system.package_manager != "apt":
        raise PackageManagerError(
            f"{image.system.product} has no debconf", todo="leave `debconf` out"
        )
    place = PurePosixPath("/", temporary_name())
    image.files.write(place, answers, 0o600)
    words = ["/bin/sh", "-c", f"debconf-set-selections {place}"]
    ended = run_program(image, words, seconds=_LIST_SECONDS, environment=_ENVIRONMENTS["apt"])
    image.files.remove(place)
    if ended.status != 0:
        raise PackagesFailedError(
            "debconf does not take the answers of `debconf`",
            todo="correct the file that it names",
            log=image.guest.log,
            detail=ended.output,
        )


def list_packages(image: Image) -> list[Installed]:
    """The installed packages, sorted; empty if no package manager is known. The list comes from the
    image and is not trusted: malformed entries are left out.

    Raises PackagesFailedError, FileSystemError.
    """
    lister = _LISTERS.get(image.system.package_manager or "")
    packages = [] if lister is None else lister(image)
    return sorted(
        fields for fields in packages if fields[0] and not any(map(_UNCLEAN.search, fields))
    )


class _Run:
    """Runs of one package manager."""

    def __init__(
        self, image: Image, manager: str, proxies: Mapping[str, str], *, network: bool
    ) -> None:
        self._network = network
        self._repositories: Sequence[Repository] = ()
        self._own = PurePosixPath()
        """The folder of the definition's package files, while there are any."""
        self._image = image
        self._files = image.files
        self._manager = manager
        self._environment = {**_ENVIRONMENTS.get(manager, {}), **proxies}
        self._apt = _APT
        self._apt_options = ""

    @contextmanager
    def prepared(
        self,
        apt_sources: str | None,
        repositories: Sequence[Repository],
        own: Sequence[LocalPackage],
        work: Path | None,
    ) -> Iterator[None]:
        """For apt: keeps its lists and packages in a folder of ours, and services from starting."""
        if self._manager != "apt":
            yield
            return
        self._repositories = repositories
        folder = PurePosixPath("/var/tmp", temporary_name())  # noqa: S108
        for below in ("lists/partial", "cache/archives/partial"):
            self._files.make_folder(folder / below)
        options = f"-o Dir::State::Lists={folder}/lists -o Dir::Cache={folder}/cache"
        if own and not self._network:
            apt_sources = ""  # what it depends on has to be there
        if apt_sources is not None:
            options += " -o Dir::Etc::SourceParts=/dev/null"
        if apt_sources is not None or repositories or own:
            sources = self._bring(own, folder / "own", work)
            sources += self._own_sources() if apt_sources is None else reachable(apt_sources)
            sources += self._add(repositories, folder)
            self._files.write(folder / "sources.list", sources)
            options += f" -o Dir::Etc::SourceList={folder}/sources.list"
        preferences = "".join(each.preferences() for each in repositories) + deb.preferences(own)
        if preferences:
            self._files.write(folder / "preferences", preferences)
            options += f" -o Dir::Etc::Preferences={folder}/preferences"
        self._apt, self._apt_options = f"{_APT} {options}", options
        try:
            with _no_services(self._image):
                yield
        finally:
            if not self._image.guest.ended:
                self._files.remove(folder)

    def _bring(self, own: Sequence[LocalPackage], folder: PurePosixPath, work: Path | None) -> str:
        """Copies the definition's package files and an index of them. Returns the line of a
        sources.list for them."""
        if not own:
            return ""
        assert work is not None
        deb.write_index(own, work)
        for each in own:
            deb.copy(each, work / each.file)
        found = sorted(work.iterdir())
        self._files.copy(
            [Copy(target=folder / file.name, mode=0o644, source=file) for file in found]
        )
        self._own = folder
        return deb.source_line(str(folder))

    def _own_sources(self) -> str:
        """The text of the image's sources.list."""
        own = PurePosixPath("/etc/apt/sources.list")
        return f"{self._files.read(own)}\n" if self._files.exists(own) else ""

    def _add(self, repositories: Sequence[Repository], folder: PurePosixPath) -> str:
        """Writes the keys of further archives. Returns the lines of a sources.list for them."""
        lines = ""
        for repository in repositories:
            key = folder / f"{repository.name}.asc"
            self._files.write(key, repository.key)
            lines += reachable(repository.line(f"signed-by={key}"))
        return lines

    def remove(self, packages: Sequence[str]) -> None:
        """Removes packages. Raises PackagesFailedError."""
        self._run(_MANAGERS[self._manager].remove, packages)

    def install(self, packages: Sequence[str]) -> None:
        """Installs packages. Raises PackagesFailedError."""
        manager = _MANAGERS[self._manager]
        if manager.refresh is not None:
            # apt only warns of an archive that it cannot reach.
            said = self._run(manager.refresh)
            if wrong := apt_complaints.explain(said, self._repositories, reachable):
                raise wrong
        if self._manager == "apt":
            self._check_names([split_pin(package)[0] for package in packages])
        self._run(manager.install, [_pinned(self._manager, package) for package in packages])
        if self._manager == "yum":  # which ends well when it knows only some of them
            self._run("rpm --query --whatprovides", [split_pin(each)[0] for each in packages])
        if manager.tidy is not None:
            self._run(manager.tidy)

    def install_again(self, own: Sequence[LocalPackage]) -> None:
        """Installs package files in place of installed packages of the same version, which apt
        takes for the same. Raises PackagesFailedError."""
        self._run("dpkg --install", [str(self._own / each.file) for each in own])

    def _check_names(self, names: Sequence[str]) -> None:
        """Raises PackagesFailedError for names that apt would take for a regular expression or for
        a removal (`curl-`), because no package has them."""
        line = f'for name; do apt-cache {self._apt_options} pkgnames "$name" | grep -Fqxe "$name"'
        line = f'{line} || echo "{_NO_PACKAGE}$name"; done'
        words = ["/bin/sh", "-c", line, "sh", *names]
        ended = run_program(
            self._image, words, seconds=_LIST_SECONDS, environment=self._environment
        )
        said = [line.partition(_NO_PACKAGE)[2] for line in ended.output.splitlines()]
        if unknown := [name for name in names if name in said]:
            raise PackagesFailedError(
                f"the base image's sources of packages have no {', '.join(unknown)}",
                todo="correct the name; a virtual package is asked for by one that provides it",
                log=self._image.guest.log,
            )

    def _run(self, line: str, packages: Sequence[str] = ()) -> str:
        """Runs a line of shell with packages behind it. Returns the last lines that it printed."""
        words = ["/bin/sh", "-c", line.format(apt=self._apt) + ' "$@"', "sh", *packages]
        shown = " ".join([line.format(apt="apt-get"), *packages])
        try:
            ended = run_program(self._image, words, seconds=_SECONDS, environment=self._environment)
        except TimeoutError:
            raise PackagesFailedError(
                f"`{shown}` did not end in the image within {_SECONDS // 3600} hours",
                log=self._image.guest.log,
            ) from None
        if ended.status != 0:
            raise self._explain(shown, ended)
        return ended.output

    def _explain(self, shown: str, ended: Ended) -> PhantomError:
        if "No space left on device" in ended.output or "free space" in ended.output:
            return full()
        if wrong := apt_complaints.explain(ended.output, self._repositories, reachable):
            return wrong
        how = "shut its machine down" if ended.status is None else f"ended with {ended.status}"
        return PackagesFailedError(
            f"`{shown}` {how} in the image",
            todo="see what it says; its sources of packages are those of the base image"
            if self._network
            else "see what it says; a package that depends on others which the base image lacks "
            "needs `network: true` below `base_image`",
            log=self._image.guest.log,
            detail=ended.output,
        )


@contextmanager
def _no_services(image: Image) -> Iterator[None]:
    files = image.files
    aside = files.set_aside(_POLICY)
    files.write(_POLICY, _NO_SERVICES, 0o755)
    try:
        yield
    finally:
        if not image.guest.ended:
            files.remove(_POLICY)
            if aside is not None:
                files.move(aside, _POLICY)


def _is_present(wanted: str, present: Mapping[str, Collection[str]]) -> bool:
    """Whether a package is installed, `name` or `name:amd64` in whatever version, `name=version` in
    that one."""
    name, version = split_pin(wanted)
    match = _PLAIN_NAME.fullmatch(name)
    installed = present.get(match[1], ()) if match else ()
    return version in installed if version is not None else bool(installed)


def _pinned(manager: str, package: str) -> str:
    """A package in its manager's words. Raises PackageManagerError for a version where the manager
    only has the newest."""
    name, version = split_pin(package)
    if version is None:
        return name
    form = _MANAGERS[manager].pin
    if form is None:
        raise PackageManagerError(
            f"{manager} cannot install {package}: it only knows the newest version",
            todo=f"write {name} without a version",
        )
    return form.format(name=name, version=version)


def _count(packages: Sequence[str]) -> str:
    return packages[0] if len(packages) == 1 else f"{len(packages)} packages"


def _of_dpkg(image: Image) -> Iterator[Installed]:
    for fields in _stanzas(image.files.read(PurePosixPath("/var/lib/dpkg/status"))):
        if fields["Status"].endswith(" installed"):
            yield fields["Package"], fields["Version"], fields["Architecture"]


def _of_apk(image: Image) -> Iterator[Installed]:
    for fields in _stanzas(image.files.read(PurePosixPath("/lib/apk/db/installed"))):
        yield fields["P"], fields["V"], fields["A"]


def _stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """The fields of each paragraph, empty by default; of those with several lines, the first."""
    for stanza in text.split("\n\n"):
        lines = [line.partition(":") for line in stanza.split("\n") if line[:1].strip()]
        yield defaultdict(str, {name.strip(): value.strip() for name, _colon, value in lines})


def _of_rpm(image: Image) -> Iterator[Installed]:
    form = r"%{NAME}\t%{EVR}\t%{ARCH}\n"
    for line in _listed(image, ["rpm", "--query", "--all", "--queryformat", form]).split("\n"):
        name, *rest = line.split("\t")
        if len(rest) == 2 and name != "gpg-pubkey":
            yield name, rest[0], rest[1]


def _of_pacman(image: Image) -> Iterator[Installed]:
    for fields in _stanzas(_listed(image, ["pacman", "--query", "--info"])):
        yield fields["Name"], fields["Version"], fields["Architecture"]


def _listed(image: Image, words: Sequence[str]) -> str:
    """What a package manager prints. Raises PackagesFailedError."""
    guest = image.guest

    def explain(error: RuntimeError) -> PhantomError:
        lines = str(error).splitlines()[-_LAST_LINES:]
        return PackagesFailedError(
            f"{words[0]} cannot list the image's packages",
            todo="repair the base image's database of packages, or choose another base image",
            log=guest.log,
            detail="\n".join(map(printable, lines)),
        )

    try:
        with guest.explained(explain), guest.limited(_LIST_SECONDS):
            return str(guest.handle.command(["env", "LC_ALL=C", *words]))
    except TimeoutError:
        raise PackagesFailedError(
            f"{words[0]} did not list the image's packages within {_LIST_SECONDS} s", log=guest.log
        ) from None


_LISTERS: Mapping[str, Callable[[Image], Iterator[Installed]]] = {
    "apt": _of_dpkg,
    "dnf": _of_rpm,
    "yum": _of_rpm,
    "zypper": _of_rpm,
    "apk": _of_apk,
    "pacman": _of_pacman,
}
