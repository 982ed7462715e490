"""Two builds, or image files, and what differs between them; nothing needs the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.build import manifest
from pipeline.build.run import read_stages
from pipeline.disk.debian_packages import read_changes, read_installed
from pipeline.disk.ext4_reader import Reader
from pipeline.disk.partitions import read_geometry
from pipeline.disk.superblock import is_ext_at
from pipeline.disk.tree_diff import compare_trees
from pipeline.errors import FileSystemError, UsageError
from pipeline.model import ContentKey, Progress
from pipeline.sources.base_disk import look, unpack_disk
from pipeline.stages.base import key_of
from pipeline.store import Store
from pipeline.workspace import Workspace

_BUILD = re.compile(r"(?:([^/]+)/)?([0-9a-f]{12}|latest)")
_ROOT, _ROOT_FILE = "root", "root.ext4"
_KERNEL = re.compile(r"vmlinuz-(.+)")
_WANTED = re.compile(
    r"/?(?:etc|usr/lib|lib)/systemd/system/[^/]+\.(?:wants|requires)/([^/]+)", re.DOTALL
)
_MOST_BYTES = 2 << 40  # of the disk in an image file


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared."""

    name: str
    """`APPLIANCE/BUILD`, or the file."""
    file: Path
    """A root file system, or an image."""
    manifest: Mapping[str, Any] | None = None
    """None for a file."""


def find_side(word: str, workspace: Workspace) -> Side:
    """The build or the image file that a word names: `APPLIANCE/BUILD`, a build's twelve digits, an
    appliance, or a path. Raises UsageError, and ManifestError for a damaged manifest."""
    found = [*_find_manifests(word, workspace)]
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in found]
    if len(names) > 1:
        raise UsageError(
            f"several appliances have a build {word}", todo=f"choose one of: {', '.join(names)}"
        )
    if not found:
        if Path(word).is_file():
            return Side(name=word, file=Path(word).absolute())
        raise UsageError(
            f"{word!r} is neither a build nor an image file",
            todo="`phantom-image list` lists the builds: name one as APPLIANCE/BUILD, by its "
            "twelve digits, or as APPLIANCE for its latest one",
        )
    content = manifest.load_manifest(found[0])
    name, build = content["appliance"]["name"], content["appliance"]["build"]
    file = find_root(name, content, workspace)
    if file is None:
        raise UsageError(
            f"neither the root file system nor an image of {name}/{build} is there any more",
            todo="build it again, or compare another build",
        )
    return Side(name=f"{name}/{build}", file=file, manifest=content)


def _find_manifests(word: str, workspace: Workspace) -> Iterator[Path]:
    words = _BUILD.fullmatch(word)
    if words is None:
        if records.FILE_NAME.fullmatch(word):
            path = manifest.find_manifest(workspace.folder(word), manifest.LATEST)
            yield from [path] if path.is_file() else []
    elif words[1] is None:
        yield from sorted(workspace.build.glob(f"*/{words[2]}/{manifest.FILE}"))
    elif records.FILE_NAME.fullmatch(words[1]):
        path = manifest.find_manifest(workspace.folder(words[1]), words[2])
        yield from [path] if path.is_file() else []


def find_root(name: str, content: Mapping[str, Any], workspace: Workspace) -> Path | None:
    """The stored root file system of a build, or else an image of it, an uncompressed one first."""
    build = content["appliance"]["build"]
    root = read_stages(workspace, name, build).get(_ROOT)
    stored = root and workspace.store.find(_ROOT, ContentKey(root["key"]))
    if stored:
        return stored.file(_ROOT_FILE)
    images = sorted(content["images"], key=lambda image: image["compression"] is not None)
    files = (workspace.folder(name) / build / image["file"] for image in images)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def opened_file(file: Path, store: Store, progress: Progress) -> Iterator[Reader]:
    """The root file system in a file. Raises ImageFormatError, FileSystemError."""
    looked = look(file, str(file))
    if (looked.format, looked.compression) == ("raw", None):
        with Reader(file, _find_offset(file)) as reader:
            yield reader
        return
    key = key_of(["diff", str(file)])
    waiting = "another command compares this image; waiting for it"
    lock = store.lock(f"diff-{key}", lambda: progress.step(waiting))
    with lock, store.making("diff", key) as folder, store.errors():
        progress.step(f"unpacking {file.name}")
        log = store.new_log("diff", key)
        disk = unpack_disk(file, None, _MOST_BYTES, folder, log, store, progress)
        with Reader(disk, _find_offset(disk)) as reader:
            yield reader


def _find_offset(disk: Path) -> int:
    """The byte at which the root file system starts: the first one that has /etc and /usr. Raises
    FileSystemError."""
    starts = [0, *(partition.start for partition in read_geometry(disk).partitions)]
    for start in starts:
        if is_ext_at(disk, start):
            with Reader(disk, start) as reader:
                if reader.find("etc") and reader.find("usr"):
                    return start
    raise FileSystemError(
        "the image has no ext file system with /etc and /usr",
        where=str(disk),
        todo="`phantom-image inspect` tells what is in an image",
    )


# ---- what differs


def compare(old: Side, new: Side, store: Store, progress: Progress) -> dict[str, Any]:
    """What differs, as JSON can hold it; `schemas.py` describes it. Memory grows with what differs
    and not with the images. Raises ImageFormatError, FileSystemError, StoreError."""
    if old.file.samefile(new.file):  # two builds of one root file system, or one word twice
        with opened_file(old.file, store, progress) as one:
            return _compare(old, one, new, one, progress)
    with (
        opened_file(old.file, store, progress) as one,
        opened_file(new.file, store, progress) as other,
    ):
        return _compare(old, one, new, other, progress)


def _compare(
    old: Side, one: Reader, new: Side, other: Reader, progress: Progress
) -> dict[str, Any]:
    progress.step("comparing packages")
    packages = _compare_packages(read_installed(one), read_installed(other), other)
    progress.step("comparing files")
    changes = [] if one is other else [asdict(change) for change in compare_trees(one, other)]
    return {
        "old": _describe(old, one),
        "new": _describe(new, other),
        "packages": packages,
        "files": changes,
        "units": compare_units(changes),
        "boots": [*_compare_boots(old.manifest, new.manifest)],
    }


def _describe(side: Side, reader: Reader) -> dict[str, Any]:
    content = side.manifest
    boot = reader.find("boot")
    names = [name.decode(errors="replace") for name in reader.folder(boot)] if boot else []
    kernels = sorted(found[1] for name in names if (found := _KERNEL.fullmatch(name)))
    definition = None if content is None else content["inputs"].get("definition")
    return {
        "name": side.name,
        "version": content and content["appliance"]["version"],
        "definition": definition and definition["digest"],
        "commit": definition and definition["commit"],
        "root_bytes": reader.bytes,
        "used_bytes": reader.used,
        "kernels": kernels,
    }


_Installed = Mapping[str, tuple[str, str]]


def _compare_packages(old: _Installed, new: _Installed, image: Reader) -> dict[str, Any]:
    """Packages that came, went or changed, each changed one with what the new image's changelog
    says between the versions."""
    changed = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    return {
        "added": [{"name": name, "version": new[name][0]} for name in sorted(new.keys() - old)],
        "removed": [{"name": name, "version": old[name][0]} for name in sorted(old.keys() - new)],
        "changed": [
            {
                "name": name,
                "old": old[name][0],
                "new": new[name][0],
                "changelog": read_changes(image, name, old[name][0], new[name][0]),
            }
            for name in changed
        ],
    }


def compare_units(changes: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Of changed files, the units of systemd that boots start from now on, and those that they do
    not start any more, by the links in `*.wants` and `*.requires`. A unit that only another target
    wants is in neither."""
    units: dict[str, set[str]] = {"old": set(), "new": set()}
    for change in changes:
        wanted = _WANTED.fullmatch(change["path"])
        for side, found in units.items():
            if wanted is not None and change[side] is not None:
                found.add(wanted[1])
    old, new = units["old"], units["new"]
    return {"added": sorted(new - old), "removed": sorted(old - new)}


def _compare_boots(
    old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """The boot checks of each machine of a site that either build was booted on."""
    before, after = _boots(old), _boots(new)
    for site, machine in sorted(before.keys() | after.keys()):
        one, other = before.get((site, machine), {}), after.get((site, machine), {})
        yield {
            "site": site,
            "machine": machine,
            **{
                key: {"old": one.get(key), "new": other.get(key)}
                for key in ("boot_seconds", "kernel", "accelerator")
            },
        }


def _boots(content: Mapping[str, Any] | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    images: Sequence[Mapping[str, Any]] = [] if content is None else content["images"]
    return {
        (image["site"], check["machine"]): check
        for image in images
        for check in image["boot_checks"]
    }
