"""The manifest: one build of one appliance with all its publications, as Phantom reads it.

Only `published_at`, the figures of the boot checks and the definition's commit depend on when,
where and by whom it was built.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.attestations.documents import write_document
from pipeline.attestations.signing import Sign
from pipeline.build import launch as launching
from pipeline.build.upgrades import CONFIGURATION, upgrade
from pipeline.errors import ManifestError
from pipeline.model import Appliance, BootReport, Image, Publication, Sha256
from pipeline.stages.base import key_of, read_own

SCHEMA = 5
FILE = "manifest.json"
LATEST = "latest"
"""The name of the link to the build that was published last."""
DOCUMENTS = ("sbom", "provenance")
"""The keys that name documents beside the manifest; null until these are written."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHAPE = {
    "schema": int,
    "appliance": {
        "name": _NAME,
        "version": str,
        "summary": str,
        "build": _NAME,
        "labels": {str: str},
    },
    "inputs": {"packages": list},
    "root_filesystem": {"sha256": str},
    **dict.fromkeys(DOCUMENTS, ({"file": records.FILE_NAME, "sha256": records.HEX64}, None)),
    "checks": (
        {
            "findings": [{"rule": str, "path": str, "detail": str}],
            "waived": [{"rule": str, "path": str, "detail": str, "reason": str}],
        },
        None,
    ),
    "images": [
        {
            "site": str,
            "cloud": str,
            "file": records.FILE_NAME,
            "layout": str,
            "format": str,
            "compression": (str, None),
            "bytes": int,
            "sha256": str,
            "disk_bytes": int,
            "disk_sha256": str,
            "boot_checks": [{"machine": str, "boot_seconds?": float}],
            "cluster_check?": {"seconds": float, "guests": [{"name": str}]},
        }
    ],
    "publications": [records.PUBLICATION],
    "phantom": {"sandbox": bool, "launch_configuration": CONFIGURATION},
    "launch_templates": [{"site": str, "region": (str, None)}],
}
"""What commands read of a manifest."""


@dataclass(frozen=True, kw_only=True)
class ManifestImage:
    """An image, what its file is called in the build's folder, and its boot checks."""

    file: str
    image: Image
    root_sha256: Sha256
    reports: Sequence[BootReport]
    cluster: Mapping[str, Any] | None = None
    """The facts of its cluster check."""
    identities: Mapping[str, Any] | None = None
    """What each machine makes for itself at boot (`made_at_boot`), and what all of them share and
    perhaps should not (`shared`); None where that is not known."""
    python: Mapping[str, Any] | None = None
    """Of the virtual environment that the definition asks for: the `version` of Python, and its
    `wheels`."""


def _sorted_templates(templates: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(templates, key=lambda each: (each["site"], each["region"] or ""))


def build_name(appliance: Appliance, root_sha256: Sha256, makers: Mapping[str, object]) -> str:
    """The build's name: twelve hexadecimal digits that come from its content alone.

    `makers` are the revisions and tools, by stage, that make images of the root file system.
    """
    phantom = appliance.phantom
    user_data = phantom.user_data
    of_sites = {name: asdict(each) for name, each in phantom.sites.items()}
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
                "user_data": None if user_data is None else read_own(user_data).decode(),
                **({"sites": of_sites} if of_sites else {}),
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
    templates: Iterable[Mapping[str, Any]],
    checks: Mapping[str, Any] | None = None,
    order: Sequence[str] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest's content. `inputs` tells what the image was made of: `definition`, `source`,
    `packages` and `elements`. `checks` has what the gate found. `launch` has, by site, what Phantom
    needs besides the image's id: `instance_type` and `common`. `templates` start images by their
    cloud's own means, without Phantom: each has a `site`, a `region` and, in the cloud's terms,
    `data`. `order` names the sites as sites.yaml has them. `before` is the build's earlier
    manifest, whose entries of sites that `images` lacks are kept; `publications` has those sites'
    publications already."""
    section = launching.make_section(
        appliance,
        sorted(publications, key=lambda publication: publication.site),
        launch,
        order=order,
        before=None if before is None else before["phantom"],
    )
    made = {
        "schema": SCHEMA,
        "appliance": {
            "name": appliance.name,
            "version": appliance.version,
            "summary": appliance.summary,
            "build": build,
            "labels": dict(appliance.labels),
        },
        "inputs": dict(inputs),
        "root_filesystem": {
            "sha256": root_sha256,
            "identities": next((each.identities for each in images), None),
        },
        **dict.fromkeys(DOCUMENTS),
        "checks": None if checks is None else dict(checks),
        "images": [_image(each) for each in sorted(images, key=lambda each: each.image.site)],
        "publications": [asdict(each) for each in sorted(publications, key=lambda p: p.site)],
        "phantom": section,
        "launch_templates": _sorted_templates(templates),
    }
    return made if before is None else _keep_other_sites(made, before)


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
        **({"cluster_check": {"passed": True, **entry.cluster}} if entry.cluster else {}),
    }


def _keep_other_sites(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The new manifest of a build, with the old one's images and templates of sites that the new
    one lacks."""
    sites = {image["site"] for image in new["images"]}
    images = [*new["images"], *(image for image in old["images"] if image["site"] not in sites)]
    kept = [each for each in old["launch_templates"] if each["site"] not in sites]
    return {
        **new,
        "images": sorted(images, key=lambda image: image["site"]),
        "launch_templates": _sorted_templates([*new["launch_templates"], *kept]),
    }


def with_publications(
    manifest: Mapping[str, Any],
    images: Sequence[ManifestImage],
    publications: Sequence[Publication],
    section: Mapping[str, Any],
    templates: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """A build's manifest with all its publications as they are now, and with what they change:
    images of further sites, Phantom's section, and launch templates beside those of other sites."""
    new = list(templates)
    replaced = {(each["site"], each["region"]) for each in new}
    kept = [
        each
        for each in manifest["launch_templates"]
        if (each["site"], each["region"]) not in replaced
    ]
    further = {each.image.site for each in images}
    others = [each for each in manifest["images"] if each["site"] not in further]
    return {
        **manifest,
        "images": sorted([*map(_image, images), *others], key=lambda image: image["site"]),
        "publications": [asdict(each) for each in sorted(publications, key=lambda p: p.site)],
        "phantom": dict(section),
        "launch_templates": _sorted_templates([*new, *kept]),
    }


def without(manifest: Mapping[str, Any], retired: Publication) -> dict[str, Any]:
    """A manifest without a publication that has been retired."""
    site = retired.site
    left = [each for each in manifest["publications"] if each != asdict(retired)]
    phantom = manifest["phantom"]
    if launching.params_of(phantom).get(site, {}).get("image_id") == retired.image_id:
        phantom = launching.without_site(phantom, site)
    templates = [
        each
        for each in manifest["launch_templates"]
        if (each["site"], each["region"]) != (site, retired.region)
    ]
    return {**manifest, "publications": left, "phantom": phantom, "launch_templates": templates}


def write_manifest(
    folder: Path, manifest: Mapping[str, Any], *, latest: bool = True, sign: Sign | None = None
) -> Path:
    """Writes `FOLDER/<build>/manifest.json` and, with `sign`, its signature, and with `latest` and
    where a site has the build, points `FOLDER/latest` at its folder, each in one step. A manifest
    that would not change is not written. Returns its path. Raises DefinitionError."""
    build = manifest["appliance"]["build"]
    path: Path = folder / build / FILE
    write_document(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", sign)
    link = folder / LATEST
    if (
        latest
        and manifest["publications"]
        and (not link.is_symlink() or str(link.readlink()) != build)
    ):
        temporary = folder / f".{LATEST}.{os.getpid()}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(build)
        temporary.rename(link)
    return path


def read_manifest(folder: Path, build: str = LATEST, shape: Any = SHAPE) -> dict[str, Any] | None:
    """The manifest of a build of the appliance whose builds lie in `folder`; None where that has no
    manifest, or one that this program cannot read."""
    try:
        return load_manifest(find_manifest(folder, build), shape)
    except (OSError, ManifestError):
        return None


def find_manifest(folder: Path, build: str) -> Path:
    """The file of a build's manifest. The latest build is the one that was published last; where
    none was published yet, it is the newest."""
    path = folder / build / FILE
    if build == LATEST and not path.is_file():
        return max(folder.glob(f"*/{FILE}"), key=_age, default=path)
    return path


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def load_manifest(path: Path, shape: Any = SHAPE) -> dict[str, Any]:
    """The manifest in a file, which must have a shape. Raises OSError where it cannot be read,
    ManifestError where it is damaged or of another version."""
    remedy = "build the appliance again, or take another build (`phantom-image list`)"
    try:
        told: dict[str, Any] = records.load(path, {"schema": int})
        told = upgrade(told)
        if told["schema"] != SCHEMA:
            if told["schema"] > SCHEMA:
                remedy = "read it with the phantom-image that wrote it, or a later one"
            raise records.Unfit(f"it has schema {told['schema']}, and this program knows {SCHEMA}")
        fault = records.find_fault(told, shape)
        if fault is not None:
            raise records.Unfit(fault)
    except records.Unfit as unfit:
        raise ManifestError(
            f"the manifest cannot be used: {unfit}",
            where=str(path),
            todo=remedy,
        ) from unfit
    return told


def read_schema(path: Path) -> int | None:
    """The number of the schema that a file says it has; None where it says none. Raises OSError."""
    try:
        return int(records.load(path, {"schema": int})["schema"])
    except records.Unfit:
        return None


def publications_of(manifest: Mapping[str, Any]) -> list[Publication]:
    """The publications that a manifest names."""
    return [records.to_publication(publication) for publication in manifest["publications"]]
