"""Manifests, and what lies beside them, as the catalog knows them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.build import lifecycle
from pipeline.build.manifest import FILE, load_manifest
from pipeline.catalog.model import Build
from pipeline.errors import ManifestError, UsageError
from pipeline.model import Publication
from pipeline.records import to_publication
from pipeline.workspace import RESERVED

DOWNLOADS = re.compile(r"sbom\.cdx\.json|provenance\.intoto\.json|[A-Za-z0-9][\w.-]{0,99}\.sig")
"""What is offered beside a manifest."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CODENAME = re.compile(r"\((\w+)[^()]*\)\s*$")
_NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Source(NamedTuple):
    """A manifest that the catalog is made from, and what tells that it, or something beside it, is
    not what it was."""

    file: str
    time: int
    """In nanoseconds."""
    size: int
    inode: int
    folder_time: int

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def key(self) -> str:
        """Tells it from the appliance's other manifests."""
        return hashlib.sha256(self.file.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def signature(self) -> list[int]:
        return [*self[1:]]


def find_sources(workspace: Path) -> dict[str, list[Source]]:
    """The manifests in the folder of builds, by appliance. A build's folder is not looked into:
    what is new there was put there by a rename, which its time tells."""
    found: dict[str, list[Source]] = {}
    for name, folder in _folders(str(workspace)):
        if name in RESERVED:
            continue
        looked = (_look(f"{build}/{FILE}", build) for _, build in _folders(folder))
        if sources := [source for source in looked if source is not None]:
            found[name] = sources
    return found


def find_named(paths: Iterable[Path]) -> dict[str, list[Source]]:
    """The manifests that paths name, files or builds' folders, by appliance. Raises UsageError for
    one that is not there."""
    found: dict[str, list[Source]] = {}
    for path in paths:
        file = Path(os.path.realpath(path / FILE if path.is_dir() else path))
        source = _look(str(file), str(file.parent))
        if source is None:
            raise UsageError(
                f"there is no manifest {str(path)!r}",
                todo="name a manifest's file or its folder; without any, the catalog has all "
                "builds of this host",
            )
        try:
            name = load_manifest(file)["appliance"]["name"]
        except (OSError, ManifestError):  # told of with all others that cannot be used
            name = file.parent.parent.name
        if source not in found.setdefault(name, []):
            found[name].append(source)
    return found


def _folders(folder: str) -> list[tuple[str, str]]:
    """Names and paths of the folders in a folder that builds may lie in, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, entry.path)
                for entry in entries
                if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def _look(file: str, folder: str) -> Source | None:
    try:
        own, above = os.stat(file), os.stat(folder)
    except OSError:
        return None
    return Source(file, own.st_mtime_ns, own.st_size, own.st_ino, above.st_mtime_ns)


# ---- one build


def read_build(source: Source) -> Build:
    """What the catalog knows of a build. Raises ManifestError."""
    return make_build(load(source.path), source)


def load(path: Path) -> dict[str, Any]:
    """A manifest. Raises ManifestError where it cannot be used."""
    try:
        return load_manifest(path)
    except OSError as error:
        raise ManifestError(
            f"the manifest cannot be read: {error.strerror}",
            where=str(path),
            todo="see who may read it",
        ) from error


def make_build(content: Mapping[str, Any], source: Source) -> Build:
    """The build that has a manifest."""
    about = content["appliance"]
    folder = source.path.parent
    published = tuple(to_publication(each) for each in content["publications"])
    names = _list(folder)
    mark = lifecycle.read_mark(folder) if lifecycle.FILE in names else lifecycle.Mark()
    checks = [check for image in content["images"] for check in image["boot_checks"]]
    slowest: Mapping[str, Any] = max(
        checks, key=lambda check: float(check.get("boot_seconds", 0)), default={}
    )
    release = next((text for check in checks if (text := _text(check.get("release")))), "")
    return Build(
        appliance=about["name"],
        version=about["version"],
        summary=about["summary"],
        build=about["build"],
        labels=about["labels"],
        date=_find_date(published, source),
        state=lifecycle.find_state(mark, published=bool(published)),
        replacement=mark.replacement,
        reason=mark.reason,
        release=release,
        codename=_find_codename(content, release),
        architecture=_find_architecture(content),
        bytes=min((image["bytes"] for image in content["images"]), default=0),
        disk_bytes=max((image["disk_bytes"] for image in content["images"]), default=0),
        boot_seconds=slowest.get("boot_seconds"),
        emulated=slowest.get("accelerator") == "tcg",
        packages=len(content["inputs"]["packages"]),
        sha256=content["root_filesystem"]["sha256"],
        publications=published,
        files=tuple(sorted(name for name in names if DOWNLOADS.fullmatch(name))),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _find_date(published: Sequence[Publication], source: Source) -> str:
    if published:
        return max(each.published_at for each in published)
    written = datetime.fromtimestamp(source.time // 1_000_000_000, UTC)
    return f"{written:%Y-%m-%dT%H:%M:%SZ}"


def _find_codename(content: Mapping[str, Any], release: str) -> str:
    """The release in one word: as the definition has it, or from what the guest says."""
    scratch = _scratch(content)
    if told := _text(scratch.get("release")):
        return told
    found = _CODENAME.search(release) or _NUMBER.search(release)
    return found[1].lower() if found else ""


def _find_architecture(content: Mapping[str, Any]) -> str:
    if told := _text(_scratch(content).get("architecture")):
        return told
    for package in content["inputs"]["packages"]:
        name = package.get("architecture") if isinstance(package, Mapping) else None
        if isinstance(name, str) and name not in ("all", "noarch", "(none)"):
            return _ARCHITECTURES.get(name, name)
    return "amd64"


def _scratch(content: Mapping[str, Any]) -> Mapping[str, Any]:
    source = content["inputs"].get("source")
    scratch = source.get("scratch") if isinstance(source, Mapping) else None
    return scratch if isinstance(scratch, Mapping) else {}


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
