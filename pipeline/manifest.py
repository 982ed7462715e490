"""The manifest: one build of one appliance with all its publications, as Phantom reads it.

Nothing in it depends on when, where or by whom it was built, but `published_at` and the figures of
the boot check.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.model import Appliance, BootReport, Image, Publication, Sha256
from pipeline.stages.base import key_of
from pipeline.store import write_atomically

SCHEMA = 2
FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ManifestImage:
    """An image, what its file is called in the build's folder, and its boot checks."""

    file: str
    image: Image
    root_sha256: Sha256
    reports: Sequence[BootReport]


@dataclass(frozen=True, kw_only=True)
class LaunchTemplate:
    """What starts the image of one publication by its cloud's own means, without Phantom."""

    site: str
    region: str | None
    data: Mapping[str, object]
    """In the words of the cloud."""


def _sorted_templates(templates: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(templates, key=lambda each: (each["site"], each["region"] or ""))


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
    inputs: Mapping[str, Any],
    root_sha256: Sha256,
    images: Sequence[ManifestImage],
    publications: Sequence[Publication],
    launch: Mapping[str, Mapping[str, object]],
    templates: Sequence[LaunchTemplate],
) -> dict[str, Any]:
    """The manifest's content. `inputs` tells what the image was made of: `source`, `packages` and
    `elements`. `launch` has, by site, what Phantom needs besides the image's id:
    `instance_type` and `common`."""
    return {
        "schema": SCHEMA,
        "appliance": {
            "name": appliance.name,
            "version": appliance.version,
            "summary": appliance.summary,
            "build": build,
            "labels": dict(appliance.labels),
        },
        "inputs": dict(inputs),
        "root_filesystem": {"sha256": root_sha256},
        "images": [_image(each) for each in sorted(images, key=lambda each: each.image.site)],
        "publications": [asdict(each) for each in sorted(publications, key=lambda p: p.site)],
        "phantom": _launch_configuration(appliance, publications, launch),
        "launch_templates": _sorted_templates(asdict(each) for each in templates),
    }


def _image(entry: ManifestImage) -> dict[str, Any]:
    image = entry.image
    return {
        "site": image.site,
        "cloud": image.cloud,
        "file": entry.file,
        "layout": image.disk.layout,
        "format": image.disk.format,
        "compression": image.disk.compression,
        "bytes": image.bytes,
        "sha256": image.sha256,
        "disk_bytes": image.disk_bytes,
        "disk_sha256": image.disk_sha256,
        "boot_checks": [
            {"machine": each.machine, "passed": each.passed, **each.facts} for each in entry.reports
        ],
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
    params: dict[str, object] = {}
    for each in sorted(publications, key=lambda publication: publication.site):
        if each.site in launch:
            # A site's own publication comes before its copies in other regions.
            params.setdefault(
                each.site,
                {
                    "image_id": each.image_id,
                    "instance_type": launch[each.site]["instance_type"],
                    "max_vms": phantom.max_vms,
                    "common": launch[each.site]["common"],
                    "rank": phantom.rank,
                },
            )
    return {
        "name": appliance.name,
        "cloud_params": params,
        "contextualization_method": "none" if user_data is None else "user_data",
        "user_data": user_data,
        "appliance": None,
    }


def keep_other_sites(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The new manifest of a build, with what the old one says of sites that the new one lacks."""
    sites = {image["site"] for image in new["images"]}
    images = [*new["images"], *(image for image in old["images"] if image["site"] not in sites)]
    launch = dict(new["phantom"])
    params = {**old["phantom"]["cloud_params"], **launch["cloud_params"]}
    launch["cloud_params"] = dict(sorted(params.items()))
    kept = [each for each in old["launch_templates"] if each["site"] not in sites]
    return {
        **new,
        "images": sorted(images, key=lambda image: image["site"]),
        "phantom": launch,
        "launch_templates": _sorted_templates([*new["launch_templates"], *kept]),
    }


def without(manifest: Mapping[str, Any], retired: Publication) -> dict[str, Any]:
    """A manifest one of whose publications has been retired."""
    site = retired.site
    left = [each for each in manifest["publications"] if each != asdict(retired)]
    launch = dict(manifest["phantom"])
    params = launch["cloud_params"]
    if params.get(site, {}).get("image_id") == retired.image_id:
        launch["cloud_params"] = {name: each for name, each in params.items() if name != site}
    templates = [
        each
        for each in manifest["launch_templates"]
        if (each["site"], each["region"]) != (site, retired.region)
    ]
    return {
        **manifest,
        "publications": left,
        "phantom": launch,
        "launch_templates": templates,
    }


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
    if not isinstance(manifest, dict):
        return None
    if manifest.get("schema") == 1:
        manifest = _upgrade(manifest)
    return manifest if manifest.get("schema") == SCHEMA else None


def _upgrade(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1, which knew neither regions nor several machines, as one of 2."""
    return {
        **manifest,
        "schema": SCHEMA,
        "images": [
            {
                **{key: value for key, value in image.items() if key != "boot_check"},
                "boot_checks": [{"machine": "bios", **image["boot_check"]}],
            }
            for image in manifest["images"]
        ],
        "publications": [
            {"site": each["site"], "cloud": each["cloud"], "region": None, **each}
            for each in manifest["publications"]
        ],
        "launch_templates": [],
    }


def publications_of(manifest: Mapping[str, Any]) -> list[Publication]:
    """The publications that a manifest tells of."""
    return [Publication(**each) for each in manifest["publications"]]
