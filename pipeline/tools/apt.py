"""apt with lists of its own: resolves which packages an image gets, and downloads them.

Nothing here reads or writes the host's installed packages. Mirrors, proxies and credentials come
from the host's own apt configuration; what mirrors have to prove does not (`apt_lists`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.customizations.repositories import Repository
from pipeline.errors import MirrorError, PhantomError, UnknownPackageError
from pipeline.files import discard, make_folder, share
from pipeline.model import COMPONENTS, MIB, Package, Progress
from pipeline.store import Store, sync, write_atomically
from pipeline.tools import deb, run
from pipeline.tools.apt_complaints import check_components
from pipeline.tools.apt_lists import MIRROR, NOTHING, SECURITY_MIRROR, Lists, check_dates
from pipeline.tools.apt_pins import Pins, check_same, check_there
from pipeline.tools.apt_request import Wanted, check_exist, choose, merge
from pipeline.tools.snapshot import Snapshot

_HELPER = "/usr/lib/apt/apt-helper"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Twice what apt's lists and caches of a release take (90 MB). apt hangs on a full disk.
_LISTS_BYTES = 192 * MIB
_ANSWER = {
    "packages": [
        {
            "name": str,
            "version": str,
            "architecture": str,
            "sha256": records.HEX64,
            "uri": str,
        }
    ],
    "installed_bytes": int,
    "stanzas": {str: str},
    "requested": [str],
    "left_out": [str],
}


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """Where one release's packages come from."""

    release: str
    main: str
    """The archive's URI, without a slash at the end."""
    security: str | None
    components: tuple[str, ...] = ("main",)
    """Those of the archive that packages may come from."""
    repositories: tuple[Repository, ...] = ()
    """Archives beside it."""

    def suites(self) -> list[tuple[str, str]]:
        """URI and suite of each index."""
        suites = [(self.main, self.release)]
        if self.release not in ("sid", "unstable"):
            suites.append((self.main, f"{self.release}-updates"))
            if self.security is not None:
                suites.append((self.security, f"{self.release}-security"))
        return suites

    def image_sources(self) -> str:
        """The image's own `sources.list`; empty if only this host can reach the mirrors."""
        reachable = all(uri.startswith(("http:", "https:")) for uri, _ in self.suites())
        return self.sources() if reachable else ""

    def sources(self, options: str = "", components: Iterable[str] | None = None) -> str:
        """The lines of a `sources.list`, without the other repositories."""
        words = " ".join(self.components if components is None else components)
        return "".join(f"deb {options}{uri} {suite} {words}\n" for uri, suite in self.suites())

    def indexes(self) -> list[tuple[str, str, str]]:
        """The URL of each signed index, its place in messages, and its name there."""
        ours = [
            (f"{uri}/dists/{suite}/InRelease", f"{uri} ({suite})", "the mirror's index")
            for uri, suite in self.suites()
        ]
        return ours + [
            (each.index, each.where or each.url, f"the index of the repository {each.name!r}")
            for each in self.repositories
        ]


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The packages that a request needs, dependencies included."""

    packages: tuple[Package, ...]
    installed_bytes: int
    """Their installed size according to the archive."""
    uris: dict[str, str]
    """The URI of each package, by its SHA-256."""
    stanzas: dict[str, str]
    """The archive's description of each package, by its SHA-256."""
    requested: tuple[str, ...] = ()
    """The names of the packages that were asked for, and are among them."""
    left_out: tuple[str, ...] = ()
    """Those that were only preferred, and conflict with others."""


def find_mirrors(
    release: str,
    components: Sequence[str] = ("main",),
    repositories: Sequence[Repository] = (),
) -> Mirrors:
    """The mirrors that the settings name (`PHANTOM_DEBIAN_MIRROR`,
    `PHANTOM_DEBIAN_SECURITY_MIRROR`), or else the host's apt configuration; and the repositories
    that a definition names. Raises MirrorError if neither names a mirror."""
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
        release=release,
        main=main.rstrip("/"),
        security=security and security.rstrip("/"),
        components=tuple(components),
        repositories=tuple(repositories),
    )


@cache
def _host_mirrors() -> tuple[str | None, str | None]:
    """Debian's archive and its security archive in the host's apt configuration."""
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
    """Replaces the name of a list of mirrors on this host, as Debian's cloud images have one, by
    its first mirror, because our images have no such list. Returns any other URI as it is."""
    scheme, _, path = uri.partition(":")
    if scheme != "mirror+file":
        return uri
    with suppress(OSError, ValueError):
        for line in Path(urllib.parse.urlsplit(path).path.rstrip("/")).read_text().splitlines():
            if line.startswith(("http:", "https:")):
                return line.split()[0]
    return uri


class Archive:
    """One set of mirrors, with apt's lists for it in a folder of the store; and a definition's own
    `files`."""

    def __init__(
        self,
        mirrors: Mirrors,
        architecture: str,
        store: Store,
        files: Sequence[deb.LocalPackage] = (),
        snapshot: Snapshot | None = None,
    ) -> None:
        """`files` are packages of a definition, which take the place of the archive's. With a
        `snapshot`, the archive is as that saw it first."""
        self._mirrors = mirrors
        self.files = files
        self._architecture = architecture
        self._store = store
        self._snapshot = snapshot or Snapshot(kept=False)

    def resolve(
        self,
        requested: Sequence[str | Wanted],
        *,
        without: Sequence[Wanted] = (),
        keep: bool = True,
    ) -> Resolution:
        """Resolves a request to packages, the essential and required ones among them, and none of
        `without`. A text is a name, or `name=version`.

        Asks apt only if the archive's signed index or the request has changed. With `keep` false,
        writes nothing except below the system's folder for temporary files.
        Raises MirrorError, UnknownPackageError.
        """
        wanted = merge(Wanted.parse(each) if isinstance(each, str) else each for each in requested)
        with tempfile.TemporaryDirectory(prefix="phantom-apt-") as temporary:
            indexes = ("index", *self._mirrors.indexes())
            index = self._snapshot.once(indexes, lambda: self._fetch_index(Path(temporary)))
            words = [[each.word, each.preferred] for each in wanted]
            kept_out = [f"{each.name}-" for each in without]
            own = [f"./{each.file}" for each in self.files]
            told = [*self._others(), *kept_out, *own]
            asked = json.dumps([2, index, self._architecture, words, *told])
            key = hashlib.sha256(asked.encode()).hexdigest()
            if not keep and self._read_answer(key) is None:
                return _resolution(self._resolve_in(Path(temporary), index, wanted, without))
            return self._snapshot.once(
                ("answer", key), lambda: self._answer(key, index, wanted, without, keep=keep)
            )

    def _read_answer(self, key: str) -> Any:
        """The stored answer to a request; None where there is none."""
        return records.read(self._answer_file(key), _ANSWER, sealed=True)

    def _answer_file(self, key: str) -> Path:
        return self._store.folder / "resolutions" / f"{key}.json"

    def _answer(
        self,
        key: str,
        index: Mapping[str, str],
        wanted: Sequence[Wanted],
        without: Sequence[Wanted],
        *,
        keep: bool,
    ) -> Resolution:
        """The answer to a request, from the store or from apt."""
        stored, answer = self._answer_file(key), self._read_answer(key)
        if answer is not None:
            with suppress(OSError):
                if keep:
                    os.utime(stored)
            return _resolution(answer)
        lines = f"{self._architecture} {self._mirrors.sources()}{''.join(self._others())}"
        # apt's own files are not for other users: each of a shared store has lists of its own.
        name = f"apt-{hashlib.sha256(lines.encode()).hexdigest()[:16]}-{os.geteuid()}"
        folder = self._store.path("archives") / name
        self._store.check_space(_LISTS_BYTES)
        with self._store.lock(folder.name):
            answer = self._resolve_with(folder, index, wanted, without)
            self._store.path("resolutions")
            write_atomically(stored, json.dumps(records.seal(answer)))
        return _resolution(answer)

    def take(self, pins: Pins, requested: Sequence[Wanted]) -> Resolution:
        """Exactly the packages of an earlier build, whatever the request would give today. Raises
        MirrorError, and UnknownPackageError where the archive lacks some of them."""
        self._store.check_space(_LISTS_BYTES)
        where = f"{self._mirrors.main} ({self._mirrors.release})"
        with tempfile.TemporaryDirectory(prefix="phantom-apt-") as temporary:
            lists = self._lists(Path(temporary))
            lists.update()
            check_there(lists, pins, where)
            names = [_name_in_cache(asdict(package)) for package in pins.packages]
            printed = lists.run(["apt-get", "download", "-qq", "--print-uris", *names])
            packages = [_read_printed(line) for line in printed.splitlines()]
            check_same(pins, {package["sha256"] for package in packages}, where)
            self._settle_files(packages)
            described = lists.run(["apt-cache", "show", *names])
        known = {package.name for package in pins.packages}
        return _resolution(
            {
                **_answer(packages, described),
                "requested": sorted(known.intersection(each.name for each in requested)),
                "left_out": list(pins.left_out),
            }
        )

    def download(self, resolution: Resolution, progress: Progress) -> Path:
        """Downloads the packages that the store lacks, and checks all of them by their digests.

        Returns the folder with each of them as `<sha256>.deb`. Raises MirrorError, NoSpaceError.
        """
        folder = self._store.path("packages")
        digests = (package.sha256 for package in resolution.packages)
        missing = [name for name in digests if not _is_sound(folder / f"{name}.deb", name)]
        if missing:
            progress.step(f"downloading {len(missing)} of {len(resolution.packages)} packages")
            own = {each.sha256: each for each in self.files}
            with self._store.temporary("download") as new:
                words = []
                for digest in missing:
                    if digest in own:
                        deb.copy(own[digest], new / own[digest].file)
                        continue
                    words += [resolution.uris[digest], f"{new}/{digest}.deb", f"SHA256:{digest}"]
                if words:
                    self._lists(new).run([_HELPER, "download-file", *words])
                for digest in missing:
                    sync(new / f"{digest}.deb")
                    discard(folder / f"{digest}.deb", shutil.rmtree)  # damaged
                    os.replace(new / f"{digest}.deb", folder / f"{digest}.deb")
                    share(folder / f"{digest}.deb")
        return folder

    def _others(self) -> list[str]:
        """What the answer depends on beside the indexes; nothing for Debian's main component."""
        told = [each for each in self._mirrors.components if each != "main"]
        for each in self._mirrors.repositories:
            told += [each.line(each.name), each.key, each.preferences()]
        return told

    def _fetch_index(self, folder: Path) -> dict[str, str]:
        """The digest of each suite's current signed index, by its URL."""
        indexes = self._mirrors.indexes()
        words = []
        for number, (url, _, _) in enumerate(indexes):
            words += [url, f"{folder}/{number}.InRelease", ""]
        self._lists(folder).run([_HELPER, "download-file", *words])
        found, texts = {}, {}
        for number, (url, where, what) in enumerate(indexes):
            index = (folder / f"{number}.InRelease").read_bytes()
            texts[url] = index.decode(errors="replace")
            check_dates(texts[url], where, what)
            found[url] = hashlib.sha256(index).hexdigest()
        for repository in self._mirrors.repositories:
            check_components(texts[repository.index], repository)
        return found

    def _resolve_in(
        self,
        folder: Path,
        index: Mapping[str, str],
        wanted: Sequence[Wanted],
        without: Sequence[Wanted],
    ) -> dict[str, Any]:
        """Updates the lists and has apt solve the request against an empty system."""
        lists = self._lists(folder, without={each.name: each.asker for each in without})
        self._snapshot.update(lists, folder, index)
        named = [*wanted, *without]
        check_exist(lists, named, release=self._mirrors.release, others=self._other_components)
        chosen, printed = choose(lists, wanted)
        names = [each.name for each in chosen]
        packages = [_read_printed(line) for line in printed.splitlines() if line.startswith("'")]
        self._settle_files(packages)
        described = lists.run(["apt-cache", "show", *map(_name_in_cache, packages)])
        return {
            **_answer(packages, described),
            "requested": sorted(names),
            "left_out": [each.name for each in wanted if each.name not in names],
        }

    def _settle_files(self, packages: Sequence[dict[str, str]]) -> None:
        """Takes this host's paths out of what apt said of the definition's files. Raises
        UnknownPackageError where it took a package of an archive in place of one."""
        named = {package["name"]: package for package in packages}
        for local in self.files:
            found = named[local.name]
            if found["sha256"] != local.sha256:
                raise UnknownPackageError(
                    f"an archive has another package {found['name']} {found['version']}",
                    where=local.where or None,
                    packages=[found["name"]],
                    todo=f"build {local.path.name} with a version of its own",
                )
            found["uri"] = f"file:{local.file}"

    def _resolve_with(
        self,
        folder: Path,
        index: Mapping[str, str],
        wanted: Sequence[Wanted],
        without: Sequence[Wanted],
    ) -> dict[str, Any]:
        """As `_resolve_in`, with kept lists; where these are damaged, with new ones."""
        if folder.is_symlink():
            folder.unlink()  # it would lead apt out of the store
        known = folder.exists()
        with suppress(OSError):
            make_folder(folder)
        try:
            return self._resolve_in(folder, index, wanted, without)
        except MirrorError:
            raise
        except (OSError, LookupError, ValueError, PhantomError) as error:
            if not known or (isinstance(error, UnknownPackageError) and error.packages):
                raise
        discard(folder, shutil.rmtree)
        make_folder(folder)
        self._snapshot.forget(folder)
        return self._resolve_in(folder, index, wanted, without)

    @contextmanager
    def _other_components(self) -> Iterator[Lists | None]:
        """Lists of the archive's components that are not asked for, for messages; None where they
        cannot be had."""
        others = [each for each in COMPONENTS if each not in self._mirrors.components]
        with tempfile.TemporaryDirectory(prefix="phantom-apt-") as temporary:
            lists = self._lists(Path(temporary), others)
            try:
                lists.update()
            except (run.ToolError, MirrorError):
                yield None
            else:
                yield lists

    def _lists(
        self,
        folder: Path,
        others: Sequence[str] | None = None,
        without: Mapping[str, str] = NOTHING,
    ) -> Lists:
        """Lists of all that is asked for, or only of these `others` of the archive's components."""
        options = f"[arch={self._architecture} signed-by={_KEYRING}] "
        return Lists(
            folder,
            sources=self._mirrors.sources(options, others),
            architecture=self._architecture,
            where=f"{self._mirrors.main} ({self._mirrors.release})",
            repositories=self._mirrors.repositories if others is None else (),
            files=self.files if others is None else (),
            without=without,
        )


def _is_sound(file: Path, digest: str) -> bool:
    """Whether a stored package is intact: a power cut or a failing disk may have damaged it."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == digest
    except OSError:
        return False


def _read_printed(line: str) -> dict[str, str]:
    """The package in a line of `apt-get --print-uris`: the fields of `Package`, and its URI."""
    uri, file, _, digest = line.split()
    parts = map(urllib.parse.unquote, file.removesuffix(".deb").split("_"))
    package = dict(zip(("name", "version", "architecture"), parts, strict=True))
    return {**package, "sha256": digest.removeprefix("SHA256:"), "uri": uri.strip("'")}


def _name_in_cache(package: dict[str, str]) -> str:
    """apt-cache's name of exactly this package: `name:architecture=version`."""
    architecture = package["architecture"]
    of = "" if architecture == "all" else f":{architecture}"
    return f"{package['name']}{of}={package['version']}"


def _answer(wanted: Iterable[dict[str, str]], described: str) -> dict[str, Any]:
    stanzas = {}
    for stanza in described.strip().split("\n\n"):
        digest = re.search(r"^SHA256: ([0-9a-f]{64})$", stanza, re.MULTILINE)
        if digest is not None:
            stanzas[digest[1]] = stanza
    packages = sorted(wanted, key=lambda package: (package["name"], package["architecture"]))
    sizes = [
        re.search(r"^Installed-Size: ([0-9]{1,12})$", stanzas[package["sha256"]], re.MULTILINE)
        for package in packages
    ]
    return {
        "packages": packages,
        "installed_bytes": sum(int(size[1]) * 1024 for size in sizes if size),
        "stanzas": {package["sha256"]: stanzas[package["sha256"]] for package in packages},
    }


def _resolution(answer: dict[str, Any]) -> Resolution:
    names = ("name", "version", "architecture", "sha256")
    packages = answer["packages"]
    uris = {package["sha256"]: package["uri"] for package in packages}
    return Resolution(
        packages=tuple(Package(**{name: told[name] for name in names}) for told in packages),
        installed_bytes=answer["installed_bytes"],
        uris=uris,
        stanzas=answer["stanzas"],
        requested=tuple(answer["requested"]),
        left_out=tuple(answer["left_out"]),
    )
