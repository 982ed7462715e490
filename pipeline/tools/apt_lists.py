"""apt's programs, run on lists of packages in a folder of ours.

Of the host's apt configuration only what reaches the network is taken (proxies, certificates): what
a mirror must prove, signatures and their validity, is said here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType

from pipeline.customizations.repositories import Repository
from pipeline.errors import MirrorError, UsageError
from pipeline.tools import apt_complaints, deb, run
from pipeline.tools.run import ToolError

MIRROR = "PHANTOM_DEBIAN_MIRROR"
SECURITY_MIRROR = "PHANTOM_DEBIAN_SECURITY_MIRROR"
CHECK_VALID_UNTIL = "PHANTOM_DEBIAN_CHECK_VALID_UNTIL"
NOTHING: Mapping[str, str] = MappingProxyType({})
_FUTURE = timedelta(minutes=10)  # by how much a mirror's clock may be ahead of ours

_CONFIGURATION = """
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Check-Date "true";
Acquire::Check-Valid-Until "{valid_until}";
Acquire::ForceHash "SHA256";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
"""
_OF_THE_NETWORK = re.compile(r"Acquire::(https?|ftp|tor|socks5h?|mirror|Force-?IPv[46])\b", re.I)
_UNREACHABLE = re.compile(
    r"Failed to fetch|Could not (connect|resolve|handshake)|Download Failed|Cannot initiate"
    r"|Temporary failure|does not have a Release file|is not signed|Connection|InRelease"
    r"|404 +Not Found|Hash Sum mismatch|Clearsigned|Unable to connect|Release file"
)


def checks_valid_until() -> bool:
    """Whether an index whose time is over is refused. Raises UsageError."""
    setting = os.environ.get(CHECK_VALID_UNTIL) or "yes"
    if setting not in ("yes", "no"):
        raise UsageError(f"{CHECK_VALID_UNTIL} is {setting!r}", todo="set it to yes or no")
    return setting == "yes"


def check_dates(index: str, where: str, what: str = "the mirror's index") -> None:
    """Checks a suite's index (`InRelease`) against this host's clock, as apt does when it fetches
    one that it does not know; `where` names the suite, and `what` the index. Raises MirrorError."""
    now = datetime.now(UTC)
    until, made = _date(index, "Valid-Until"), _date(index, "Date")
    if until is not None and until < now and checks_valid_until():
        raise MirrorError(
            f"{what} was valid until {until:%Y-%m-%d %H:%M} UTC",
            where=where,
            todo="use a mirror that is up to date; for an archive that is old on purpose, set "
            f"{CHECK_VALID_UNTIL}=no",
        )
    if made is not None and made > now + _FUTURE:
        raise MirrorError(
            f"{what} is of {made:%Y-%m-%d %H:%M} UTC, which is in the future",
            where=where,
            todo="set this host's clock",
        )


def _date(index: str, field: str) -> datetime | None:
    for line in index.splitlines():
        name, colon, value = line.partition(":")
        if name == field and colon:
            try:
                date = parsedate_to_datetime(value.strip())
            except ValueError:
                return None
            return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None


def make_configuration(folder: Path, architecture: str, of_host: str) -> str:
    """apt's configuration for lists in a folder. Of the host's own, as `apt-config dump` prints it,
    only what reaches the network is taken."""
    kept = (line for line in of_host.splitlines(keepends=True) if _OF_THE_NETWORK.match(line))
    return "".join(kept) + _CONFIGURATION.format(
        folder=folder,
        architecture=architecture,
        valid_until="true" if checks_valid_until() else "false",
    )


class Lists:
    """The lists of some suites in a folder, and what apt says of their packages."""

    def __init__(
        self,
        folder: Path,
        *,
        sources: str,
        architecture: str,
        where: str,
        repositories: Sequence[Repository] = (),
        files: Sequence[deb.LocalPackage] = (),
        without: Mapping[str, str] = NOTHING,
    ) -> None:
        """`sources` are the lines of a sources.list, `where` names the mirror in messages;
        `repositories` are archives beside it, `files` packages that take the place of theirs. No
        solution may have the packages of `without`, which has the place that says so of each."""
        self._folder = folder
        self._sources = sources
        self._architecture = architecture
        self._where = where
        self._repositories = repositories
        self._files = files
        self.without = without

    def run(self, argv: Sequence[str]) -> str:
        """What one of apt's programs prints. Raises ToolError, MirrorError."""
        folder = self._folder
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        sources, preferences = self._sources, deb.preferences(self._files)
        if self._files:
            deb.write_index(self._files, folder / "files")
            # The first: of two packages that apt cannot tell apart, it takes the first source's.
            line = deb.source_line(str(folder / "files"), f"arch={self._architecture}")
            sources = line + sources
        for repository in self._repositories:
            key = folder / f"{repository.name}.asc"
            key.write_text(repository.key)
            sources += repository.line(f"arch={self._architecture} signed-by={key}")
            preferences += repository.preferences()
        (folder / "sources.list").write_text(sources)
        (folder / "preferences").write_text(preferences)
        configuration = folder / "apt.conf"
        configuration.touch(mode=0o600)  # a proxy's URI may hold a password
        of_host = run.capture(["apt-config", "dump", "Acquire"])
        configuration.write_text(make_configuration(folder, self._architecture, of_host))
        try:
            return run.capture(
                argv, env={**run.proxy_environment(), "APT_CONFIG": str(configuration)}
            )
        except ToolError as error:
            raise self._unreachable(error) or error from error

    def update(self) -> None:
        """Fetches the lists. Raises MirrorError."""
        self.run(["apt-get", "update", "-q", "--error-on=any"])

    def indexes(self) -> set[str]:
        """The digests of the signed indexes that the lists were fetched with."""
        found = (self._folder / "lists").glob("*InRelease")
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def solve(self, words: Iterable[str]) -> str:
        """What `apt-get install` would fetch into an empty system: these packages, `name` or
        `name=version`, with what is essential or required. Raises ToolError."""
        every = f"?narrow(?architecture({self._architecture}),?or(?essential,?priority(required)))"
        kept_out = (f"{name}-" for name in self.without)
        return self.run(
            ["apt-get", "install", "-q", "-y", "--print-uris", every, "apt", *words, *kept_out]
        )

    def versions(self, names: Iterable[str]) -> Mapping[str, list[tuple[str, str]]]:
        """Versions and components of packages of exactly these names, the newest first; a name
        without any is no package."""
        found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        wanted = {*names}
        printed = self.run(["apt-cache", "madison", *sorted(wanted)]) if wanted else ""
        for line in printed.splitlines():
            name, version, source = (part.strip() for part in line.split("|"))
            suite_and_component = source.split()[
                1
            ]  # of `URI suite/component architecture Packages`
            if name in wanted:
                found[name].append((version, suite_and_component.partition("/")[2]))
        return found

    def names(self, *, virtual: bool = False) -> set[str]:
        """The names of all packages; `virtual`: and all that packages provide or mention."""
        option = f"APT::Cache::AllNames={str(virtual).lower()}"
        return {*self.run(["apt-cache", "pkgnames", "-o", option]).splitlines()}

    def providers(self, names: Iterable[str]) -> Mapping[str, list[str]]:
        """The packages that provide each of these virtual ones, whose names apt must know."""
        found: dict[str, list[str]] = {}
        wanted = sorted(names)
        printed = self.run(["apt-cache", "showpkg", *wanted]) if wanted else ""
        for part in printed.split("\nPackage: "):
            name, _, rest = part.removeprefix("Package: ").partition("\n")
            _, _, listed = rest.partition("\nReverse Provides:")
            found[name] = sorted({line.split()[0] for line in listed.splitlines() if line.strip()})
        return found

    def _unreachable(self, error: ToolError) -> MirrorError | None:
        """The error for a mirror that does not work, if that is what apt complains about."""
        complaints = re.findall(r"^[EW]: (.*)$", error.output, re.MULTILINE)
        complaint = next(filter(_UNREACHABLE.search, complaints), None)
        if complaint is None:
            return None
        if found := apt_complaints.explain(error.output, self._repositories):
            return found
        return MirrorError(
            f"the mirror cannot be used: {complaint}",
            where=self._where,
            todo="see that the mirror of the host's apt configuration answers (`apt-get update`), "
            f"or set {MIRROR} and {SECURITY_MIRROR} to others",
        )
