"""The image and the release that the stages of a target make, as sites publish them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.build import manifest
from pipeline.build.manifest import ManifestImage
from pipeline.build.plan import Plan, Target, file_name
from pipeline.errors import StoreError
from pipeline.model import BootReport, ContentKey, Image, Release, Sha256
from pipeline.stages.image import describe_image
from pipeline.store import Artifact
from pipeline.workspace import is_copy

Artifacts = Mapping[ContentKey, Artifact]


def make_image(target: Target, artifacts: Artifacts) -> Image:
    """A target's image, from the artifacts of its stages `image` and `hash`."""
    made = describe_image(artifacts[target.image.key])
    disk_sha256 = Sha256(artifacts[target.hash.key].facts["sha256"])
    return Image(
        site=target.site.name,
        cloud=target.site.cloud,
        file=made.file,
        disk=target.cloud.disk,
        bytes=made.bytes,
        sha256=made.sha256 or disk_sha256,
        md5=made.md5,
        disk_bytes=made.disk_bytes,
        disk_sha256=disk_sha256,
    )


def make_entry(target: Target, artifacts: Artifacts, name: str) -> ManifestImage:
    """What the manifest says of a target's image, from the artifacts of all its leaves."""
    return ManifestImage(
        file=file_name(name, target.cloud.disk),
        image=make_image(target, artifacts),
        root_sha256=find_root_sha256(target, artifacts),
        identities=artifacts[target.image.key].facts.get("identities"),
        python=artifacts[target.image.key].facts.get("python"),
        reports=[
            BootReport(machine=boot.machine.name, passed=True, facts=artifacts[boot.key].facts)
            for boot in target.boots
        ],
        cluster=None if target.cluster is None else artifacts[target.cluster.key].facts,
    )


def find_root_sha256(target: Target, artifacts: Artifacts) -> Sha256:
    """The digest of the root file system in a target's image."""
    source = target.image if target.contents is None else target.contents
    return Sha256(artifacts[source.key].facts["root_sha256"])


def make_release(plan: Plan, target: Target, artifacts: Artifacts, builds: Path) -> Release:
    """The build of a target's image. `builds` is the folder of the appliance's builds."""
    appliance = plan.appliance
    build = manifest.build_name(appliance, find_root_sha256(target, artifacts), plan.makers)
    return Release(
        appliance=appliance.name,
        version=appliance.version,
        build=build,
        name=target.cloud.image_name(appliance, build),
        summary=appliance.summary,
        labels=appliance.labels,
        folder=builds / build,
    )


# ---- the files in the build's folder


def check_files(folder: Path, entries: Sequence[ManifestImage]) -> None:
    """Checks that each image's file in the build's folder is the stored image. Raises StoreError:
    another command, or another image of the same name, has replaced it."""
    for entry in entries:
        path = folder / entry.file
        if not path.is_file() or not is_copy(path, entry.image.file):
            raise StoreError(
                f"{path.name} is not the image of site {entry.image.site}: something else has "
                "replaced it",
                where=str(folder),
                todo="run the same command again; if it happens again, give the images different "
                "names (`clouds: ...: image_name:`)",
            )


def keep_true(
    folder: Path, images: Sequence[Mapping[str, Any]], entries: Sequence[ManifestImage]
) -> list[Mapping[str, Any]]:
    """Of an earlier manifest's images, those that still are what it says: not the ones whose file
    was replaced by another image since. A file that is gone contradicts nothing."""
    files = _Files(folder, images)
    for entry in entries:
        files.note(folder / entry.file, entry.image.sha256)
    return [image for image in images if files.hold(image)]


class _Files:
    """The files of a build's folder, each read at most once, and only where it may have changed."""

    def __init__(self, folder: Path, images: Sequence[Mapping[str, Any]]) -> None:
        self._folder = folder
        self._digests: dict[tuple[int, ...], str] = {}
        self._written = (folder / manifest.FILE).stat().st_mtime_ns
        told: dict[str, set[str]] = {}
        for image in images:
            told.setdefault(image["file"], set()).add(image["sha256"])
        self._doubtful = {name for name, digests in told.items() if len(digests) > 1}

    def note(self, path: Path, sha256: str) -> None:
        """Notes what is known of a file."""
        self._digests[_identify(path)] = sha256

    def hold(self, image: Mapping[str, Any]) -> bool:
        """Whether an image's file is there with its digest, or not there at all."""
        path: Path = self._folder / image["file"]
        if not path.is_file():
            return True
        status, identity = path.stat(), _identify(path)
        if status.st_size != image["bytes"]:
            return False
        if identity not in self._digests:
            if status.st_ctime_ns < self._written and path.name not in self._doubtful:
                return True  # no name and no byte of it has changed since the manifest was written
            with path.open("rb") as file:
                self._digests[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return bool(self._digests[identity] == image["sha256"])


def _identify(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino
