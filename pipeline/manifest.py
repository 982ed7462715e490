"""The manifest: one build of one appliance with all its publications, as Phantom reads it.

Nothing in it depends on when, where or by whom it was built, but `published_at` and the figures of
the boot check.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.model import Appliance, BootReport, Image, Package, Publication, Sha256
from pipeline.stages.base import key_of
from pipeline.store import write_atomically

SCHEMA = 1
FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ManifestImage:
    """An image, what it is called at its site and in the build's folder, and its boot check."""

    name: str
    image: Image
    report: BootReport | None


def build_name(appliance: Appliance, root_sha256: Sha256, makers: Mapping[str, object]) -> str:
    """What this build is called: twelve hexadecimal digits that come from its content alone.

    `makers` tells, by stage, of what makes images of the root file system: revisions and tools.
    """
    phantom = appliance.phantom
    user_data = phantom.user_data
    return key_of(
        {
            "name": appliance.name,
            "version": appliance.version,
            "summary": appliance.summary,
            "labels": dict(appliance.labels),
            "disk_size": appliance.disk_size,
            "clouds": {name: asdict(each) for name, each in appliance.clouds.items()},
            "phantom": {
                "instance_type": dict(phantom.instance_type),
                "max_vms": phantom.max_vms,
                "rank": phantom.rank,
                "user_data": None if user_data is None else user_data.read_text(),
            },
            "root_filesystem": root_sha256,
            "makers": makers,
        }
    )[:12]


def make_manifest(
    *,
    appliance: Appliance,
    build: str,
    packages: Sequence[Package],
    elements: Mapping[str, Sha256],
    root_sha256: Sha256,
    images: Sequence[ManifestImage],
    publications: Sequence[Publication],
    launch: Mapping[str, Mapping[str, object]],
) -> dict[str, Any]:
    """The manifest's content. `launch` has, by site, what Phantom needs besides the image's id:
    `instance_type` and `common`."""
    source = appliance.source
    return {
        "schema": SCHEMA,
        "appliance": {
            "name": appliance.name,
            "version": appliance.version,
            "summary": appliance.summary,
            "build": build,
            "labels": dict(appliance.labels),
        },
        "inputs": {
            "source": {"scratch": asdict(source)},
            "packages": [asdict(package) for package in packages],
            "elements": [
                {"name": name, "digest": digest} for name, digest in sorted(elements.items())
            ],
        },
        "root_filesystem": {"sha256": root_sha256},
        "images": [_image(each) for each in images],
        "publications": [asdict(each) for each in sorted(publications, key=lambda p: p.site)],
        "phantom": _launch_configuration(appliance, publications, launch),
    }


def _image(entry: ManifestImage) -> dict[str, Any]:
    image, report = entry.image, entry.report
    return {
        "site": image.site,
        "cloud": image.cloud,
        "file": entry.name,
        "layout": image.disk.layout,
        "format": image.disk.format,
        "compression": image.disk.compression,
        "bytes": image.bytes,
        "sha256": image.sha256,
        "disk_bytes": image.disk_bytes,
        "disk_sha256": image.disk_sha256,
        "boot_check": None if report is None else {"passed": report.passed, **report.facts},
    }


def _launch_configuration(
    appliance: Appliance,
    publications: Sequence[Publication],
    launch: Mapping[str, Mapping[str, object]],
) -> dict[str, Any]:
    """The body of `POST /launchconfigurations`, which takes user-data as plain text (facts on
    Phantom, "REST API")."""
    phantom = appliance.phantom
    user_data = None if phantom.user_data is None else phantom.user_data.read_text()
    return {
        "name": appliance.name,
        "cloud_params": {
            each.site: {
                "image_id": each.image_id,
                "instance_type": launch[each.site]["instance_type"],
                "max_vms": phantom.max_vms,
                "common": launch[each.site]["common"],
                "rank": phantom.rank,
            }
            for each in sorted(publications, key=lambda publication: publication.site)
            if each.site in launch
        },
        "contextualization_method": "none" if user_data is None else "user_data",
        "user_data": user_data,
        "appliance": None,
    }


def keep_other_sites(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The new manifest of a build, with what the old one says of sites that the new one lacks."""
    sites = {image["site"] for image in new["images"]}
    images = [*new["images"], *(image for image in old["images"] if image["site"] not in sites)]
    launch = dict(new["phantom"])
    launch["cloud_params"] = {**old["phantom"]["cloud_params"], **launch["cloud_params"]}
    return {**new, "images": sorted(images, key=lambda image: image["site"]), "phantom": launch}


def without_site(manifest: Mapping[str, Any], site: str) -> dict[str, Any]:
    """A manifest whose publication at a site has been retired."""
    launch = dict(manifest["phantom"])
    params = {name: each for name, each in launch["cloud_params"].items() if name != site}
    left = [each for each in manifest["publications"] if each["site"] != site]
    return {**manifest, "publications": left, "phantom": {**launch, "cloud_params": params}}


def write_manifest(folder: Path, manifest: Mapping[str, Any], *, latest: bool = True) -> Path:
    """Writes `FOLDER/<build>/manifest.json` and, if this is the `latest`, points `FOLDER/latest` at
    its folder, each in one step. A manifest that says the same already is left alone. Returns the
    manifest's path."""
    build = manifest["appliance"]["build"]
    path: Path = folder / build / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, text)
    link = folder / "latest"
    if latest and (not link.is_symlink() or str(link.readlink()) != build):
        temporary = folder / f".latest.{os.getpid()}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(build)
        temporary.rename(link)
    return path


def read_manifest(folder: Path, build: str = "latest") -> dict[str, Any] | None:
    """The manifest of a build of the appliance whose builds lie in `folder`; None if there is none
    that this program can read."""
    try:
        manifest = json.loads((folder / build / FILE).read_text())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("schema") == SCHEMA
    return manifest if is_ours else None


def publications_of(manifest: Mapping[str, Any]) -> list[Publication]:
    """The publications that a manifest tells of."""
    return [Publication(**each) for each in manifest["publications"]]
