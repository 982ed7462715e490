"""apt, on lists of its own: which packages an image gets, and the packages themselves.

Nothing here reads or writes the host's installed packages. Mirrors, proxies and credentials are
those of the host's own apt configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import urllib.parse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MirrorError, PhantomError, UnknownPackageError
from pipeline.model import MIB, Package, Progress, Sha256
from pipeline.store import Store, sync, write_atomically
from pipeline.tools import run

_HELPER = "/usr/lib/apt/apt-helper"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "PHANTOM_DEBIAN_MIRROR"
SECURITY_MIRROR = "PHANTOM_DEBIAN_SECURITY_MIRROR"
# Twice what apt's lists of a release and its caches take: 90 MB. Without space apt waits for ever.
_LISTS_BYTES = 192 * MIB


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """Where one release's packages come from."""

    release: str
    main: str
    """The archive's URI, without a slash at the end."""
    security: str | None
    components: tuple[str, ...] = ("main",)

    def suites(self) -> list[tuple[str, str]]:
        """URI and suite of each index."""
        suites = [(self.main, self.release)]
        if self.release not in ("sid", "unstable"):
            suites.append((self.main, f"{self.release}-updates"))
            if self.security is not None:
                suites.append((self.security, f"{self.release}-security"))
        return suites

    def image_sources(self) -> str:
        """The image's own `sources.list`: empty where only this host reaches the mirrors."""
        reachable = all(uri.startswith(("http:", "https:")) for uri, _ in self.suites())
        return self.sources() if reachable else ""

    def sources(self, options: str = "") -> str:
        """The lines of a `sources.list`."""
        components = " ".join(self.components)
        return "".join(f"deb {options}{uri} {suite} {components}\n" for uri, suite in self.suites())


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The packages that a request needs, with all that they depend on."""

    packages: tuple[Package, ...]
    installed_bytes: int
    """What the archive says that they take when installed."""
    uris: dict[str, str]
    """Where each package is, by its SHA-256."""
    stanzas: dict[str, str]
    """The archive's description of each package, by its SHA-256."""


def find_mirrors(release: str) -> Mirrors:
    """The mirrors of the settings (`PHANTOM_DEBIAN_MIRROR`, `PHANTOM_DEBIAN_SECURITY_MIRROR`), or
    else of the host's apt configuration. Raises MirrorError where neither names one."""
    main, security = os.environ.get(MIRROR), os.environ.get(SECURITY_MIRROR)
    if not main or not security:
        of_host = _host_mirrors()
        main, security = main or of_host[0], security or of_host[1]
    if not main:
        raise MirrorError(
            "the host's apt configuration names no mirror of Debian",
            todo=f"set {MIRROR} (and {SECURITY_MIRROR}) to the URIs of mirrors",
        )
    for uri in filter(None, (main, security)):
        if urllib.parse.urlsplit(uri).username is not None:
            raise MirrorError(
                "a mirror's URI holds a name or password, which would end up in the image",
                todo="put it into apt's auth.conf, and the URI without it into the sources",
            )
    return Mirrors(
        release=release, main=main.rstrip("/"), security=security and security.rstrip("/")
    )


def _host_mirrors() -> tuple[str | None, str | None]:
    """Debian's archive and its security archive, as the host's own apt finds them."""
    main = security = None
    listed = run.capture(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(LABEL)|$(COMPONENT)"]
        + ["Created-By: Packages"]
    )
    for line in listed.splitlines():
        uri, suite, label, component = line.split("|")
        if component != "main" or label not in ("Debian", "Debian-Security", "$(LABEL)", ""):
            continue
        if suite.endswith("-security"):
            security = security or _one_mirror(uri)
        elif "-" not in suite and label != "Debian-Security":
            main = main or _one_mirror(uri)
    return main, security


def _one_mirror(uri: str) -> str:
    """The first mirror of a list of mirrors on this host, as Debian's cloud images have it: an
    image of ours has no such list. Anything else is the mirror itself."""
    scheme, _, path = uri.partition(":")
    if scheme != "mirror+file":
        return uri
    with suppress(OSError):
        for line in Path(urllib.parse.urlsplit(path).path.rstrip("/")).read_text().splitlines():
            if line.startswith(("http:", "https:")):
                return line.split()[0]
    return uri


class Archive:
    """One set of mirrors, with apt's lists of it in a folder of the store."""

    def __init__(self, mirrors: Mirrors, architecture: str, store: Store) -> None:
        self._mirrors = mirrors
        self._architecture = architecture
        self._store = store

    def resolve(self, requested: Sequence[str], *, keep: bool = True) -> Resolution:
        """The packages that these need, with the essential and required ones.

        It is computed anew only when the archive's signed index or the request has changed. With
        `keep` false, nothing is written but below the system's folder for temporary files.
        Raises MirrorError, UnknownPackageError.
        """
        with tempfile.TemporaryDirectory(prefix="phantom-apt-") as temporary:
            index = self._fetch_index(Path(temporary))
            key = hashlib.sha256(
                json.dumps([1, index, self._architecture, sorted(requested)]).encode()
            ).hexdigest()
            stored = self._store.folder / "resolutions" / f"{key}.json"
            if stored.is_file():
                with suppress(OSError):
                    if keep:
                        os.utime(stored)
                return _resolution(json.loads(stored.read_text()))
            if not keep:
                return _resolution(self._resolve_in(Path(temporary), requested))
            folder = self._store.path("archives") / self._name()
            self._store.check_space(_LISTS_BYTES)
            with self._store.lock(folder.name):
                folder.mkdir(exist_ok=True)
                answer = self._resolve_in(folder, requested)
                self._store.path("resolutions")
                write_atomically(stored, json.dumps(answer))
            return _resolution(answer)

    def download(self, resolution: Resolution, progress: Progress) -> Path:
        """Fetches the packages that the store lacks and checks all against their digests.

        Returns the folder that holds each as `<sha256>.deb`. Raises MirrorError, NoSpaceError.
        """
        folder = self._store.path("packages")
        missing = [
            package
            for package in resolution.packages
            if not _is_sound(folder / f"{package.sha256}.deb", package.sha256)
        ]
        if missing:
            progress.step(f"downloading {len(missing)} of {len(resolution.packages)} packages")
            self._download(missing, resolution, folder)
        return folder

    def _download(self, missing: Sequence[Package], resolution: Resolution, folder: Path) -> None:
        with self._store.temporary("download") as new:
            words = []
            for package in missing:
                words += [resolution.uris[package.sha256], f"{new}/{package.sha256}.deb"]
                words += [f"SHA256:{package.sha256}"]
            self._apt(new, [_HELPER, "download-file", *words])
            for package in missing:
                sync(new / f"{package.sha256}.deb")
                os.replace(f"{new}/{package.sha256}.deb", folder / f"{package.sha256}.deb")

    def _fetch_index(self, folder: Path) -> dict[str, str]:
        """The digest of each suite's signed index as the mirror has it now, by URI and suite."""
        suites = self._mirrors.suites()
        words = []
        for number, (uri, suite) in enumerate(suites):
            words += [f"{uri}/dists/{suite}/InRelease", f"{folder}/{number}.InRelease", ""]
        self._apt(folder, [_HELPER, "download-file", *words])
        return {
            f"{uri} {suite}": hashlib.sha256(
                (folder / f"{number}.InRelease").read_bytes()
            ).hexdigest()
            for number, (uri, suite) in enumerate(suites)
        }

    def _resolve_in(self, folder: Path, requested: Sequence[str]) -> dict[str, Any]:
        """Reads the archive's lists and has apt solve the request against an empty system."""
        self._apt(folder, ["apt-get", "update", "-q", "--error-on=any"])
        every = f"?narrow(?architecture({self._architecture}),?or(?essential,?priority(required)))"
        try:
            printed = self._apt(
                folder,
                ["apt-get", "install", "-q", "-y", "--print-uris", every, "apt", *requested],
            )
        except run.ToolError as error:
            raise _unsolvable(error, self._mirrors) from error
        wanted = [_Printed.read(line) for line in printed.splitlines() if line.startswith("'")]
        described = self._apt(folder, ["apt-cache", "show", *(each.name for each in wanted)])
        return _answer(wanted, described)

    def _name(self) -> str:
        lines = f"{self._architecture} {self._mirrors.sources()}"
        return "apt-" + hashlib.sha256(lines.encode()).hexdigest()[:16]

    def _apt(self, folder: Path, argv: Sequence[str]) -> str:
        """Runs one of apt's programs on the lists in `folder`, by the host's way to the network."""
        for each in ("lists/partial", "cache/archives/partial"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(
            self._mirrors.sources(f"[arch={self._architecture} signed-by={_KEYRING}] ")
        )
        configuration = folder / "apt.conf"
        configuration.touch(mode=0o600)  # a proxy's URI may hold a password
        configuration.write_text(
            run.capture(["apt-config", "dump", "Acquire"])
            + _CONFIGURATION.format(folder=folder, architecture=self._architecture)
        )
        try:
            return run.capture(argv, env={"APT_CONFIG": str(configuration)})
        except run.ToolError as error:
            raise _unreachable(error, self._mirrors) or error from error


def _is_sound(file: Path, digest: str) -> bool:
    """Whether a kept package is whole: a power cut or a failing disk may have seen to it."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == digest
    except OSError:
        return False


_CONFIGURATION = """
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::ForceHash "SHA256";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
"""


@dataclass(frozen=True)
class _Printed:
    """A line of `apt-get --print-uris`."""

    uri: str
    name: str
    """What apt-cache calls exactly this package: `name:architecture=version`."""
    package: Package

    @staticmethod
    def read(line: str) -> _Printed:
        uri, file, _, digest = line.split()
        name, version, architecture = (
            urllib.parse.unquote(part) for part in file.removesuffix(".deb").split("_")
        )
        return _Printed(
            uri=uri.strip("'"),
            name=f"{name}={version}"
            if architecture == "all"
            else f"{name}:{architecture}={version}",
            package=Package(
                name=name,
                version=version,
                architecture=architecture,
                sha256=Sha256(digest.removeprefix("SHA256:")),
            ),
        )


def _answer(wanted: Iterable[_Printed], described: str) -> dict[str, Any]:
    stanzas = {}
    for stanza in described.strip().split("\n\n"):
        digest = re.search(r"^SHA256: ([0-9a-f]{64})$", stanza, re.MULTILINE)
        if digest is not None:
            stanzas[digest[1]] = stanza
    packages = sorted(
        ({**vars(each.package), "uri": each.uri} for each in wanted),
        key=lambda package: (package["name"], package["architecture"]),
    )
    sizes = [
        re.search(r"^Installed-Size: ([0-9]+)$", stanzas[package["sha256"]], re.MULTILINE)
        for package in packages
    ]
    return {
        "packages": packages,
        "installed_bytes": sum(int(size[1]) * 1024 for size in sizes if size),
        "stanzas": {package["sha256"]: stanzas[package["sha256"]] for package in packages},
    }


def _resolution(answer: dict[str, Any]) -> Resolution:
    packages = [dict(package) for package in answer["packages"]]
    uris = {package["sha256"]: package.pop("uri") for package in packages}
    return Resolution(
        packages=tuple(Package(**package) for package in packages),
        installed_bytes=answer["installed_bytes"],
        uris=uris,
        stanzas=answer["stanzas"],
    )


def write_repository(resolution: Resolution, packages: Path, folder: Path, release: str) -> None:
    """Makes a repository of exactly these packages in `folder`, for `copy:` lines of apt."""
    stanzas = []
    for package in resolution.packages:
        (folder / f"{package.sha256}.deb").symlink_to(packages / f"{package.sha256}.deb")
        stanzas.append(
            re.sub(
                r"^Filename: .*$",
                f"Filename: ./{package.sha256}.deb",
                resolution.stanzas[package.sha256],
                flags=re.MULTILINE,
            )
        )
    index = "\n\n".join(stanzas) + "\n"
    (folder / "Packages").write_text(index)
    (folder / "Release").write_text(
        f"Suite: {release}\nCodename: {release}\nSHA256:\n"
        f" {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    )


def _unreachable(error: run.ToolError, mirrors: Mirrors) -> PhantomError | None:
    """The error for a mirror that does not answer as one, if that is what apt complains of."""
    complaints = [line[3:] for line in error.output.splitlines() if line.startswith(("E: ", "W: "))]
    network = [line for line in complaints if re.search(_NETWORK, line)]
    if not network:
        return None
    return MirrorError(
        f"the mirror cannot be used: {network[0]}",
        where=f"{mirrors.main} ({mirrors.release})",
        todo=f"see that the mirror of the host's apt configuration answers (`apt-get update`), or "
        f"set {MIRROR} and {SECURITY_MIRROR} to others",
    )


_NETWORK = re.compile(
    r"Failed to fetch|Could not (connect|resolve|handshake)|Download Failed|Cannot initiate"
    r"|Temporary failure|does not have a Release file|is not signed|Connection|404|InRelease"
    r"|Hash Sum mismatch|Clearsigned|Unable to connect"
)


def _unsolvable(error: run.ToolError, mirrors: Mirrors) -> PhantomError:
    """The error for a package that is not there, or not with the others."""
    unknown = re.findall(r"^E: Unable to locate package (\S+)$", error.output, re.MULTILINE)
    unknown += re.findall(r"^E: Package '(\S+)' has no installation", error.output, re.MULTILINE)
    if unknown:
        names = ", ".join(unknown)
        return UnknownPackageError(
            f"{mirrors.release} has no package {names}",
            todo="correct the name, or take out the package, in the definition or in the element "
            "that asks for it",
        )
    unmet = re.findall(r"^ +(\S+ : (?:\S*Depends|Conflicts|Breaks): .*\S)", error.output, re.M)
    return UnknownPackageError(
        f"the packages cannot be installed together: {'; '.join(unmet[:3]) or error.detail}",
        todo="take out one of them",
    )
