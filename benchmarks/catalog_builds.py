"""Builds as the pipeline leaves them, without images: manifests for catalogs to be made from."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.build import launch
from pipeline.build.manifest import SCHEMA
from pipeline.build.manifest_schema import manifest_schema

USER_DATA = "#!/bin/sh\nset -eu\necho hello >/run/greeting\n"
HOTEL, SIERRA = ("hotel", "nimbus", None), ("sierra", "nimbus", None)
FRANKFURT, VIRGINIA = ("frankfurt", "ec2", "eu-central-1"), ("frankfurt", "ec2", "us-east-1")
PACKAGES = tuple((f"package-{number}", f"1.{number}-1") for number in range(170))
"""As many as hello-phantom has."""

Place = tuple[str, str, str | None]
"""A site, its cloud, and a region of it."""


def write_build(
    folder: Path,
    name: str,
    number: int,
    *,
    date: str = "2026-01-01T00:00:00Z",
    places: Sequence[Place] = (HOTEL,),
    **more: Any,
) -> Path:
    """Writes the manifest of a build to FOLDER/<name>/<build>/manifest.json. Returns its path."""
    manifest = make_build(name, number, date=date, places=places, **more)
    path: Path = folder / name / manifest["appliance"]["build"] / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False))
    return path


def make_build(
    name: str,
    number: int,
    *,
    date: str,
    places: Sequence[Place],
    version: str = "1.0",
    summary: str = "Debian 12 that greets from its user-data",
    labels: Mapping[str, str] | None = None,
    packages: Sequence[tuple[str, str]] = PACKAGES,
    release: str = "bookworm",
    bytes: int = 200 << 20,
    boot_seconds: float = 20.0,
) -> dict[str, Any]:
    """A valid manifest; the build's digits come from name and number."""
    build = hashlib.sha256(f"{name}/{number}".encode()).hexdigest()[:12]
    publications = [_publication(place, f"{name}-{version}-{build}", date) for place in places]
    sites = list(dict.fromkeys((site, cloud) for site, cloud, _ in places))
    params = {
        site: {
            "image_id": next(each["image_id"] for each in publications if each["site"] == site),
            "instance_type": {"nimbus": "m1.small", "ec2": "t3.micro"}[cloud],
            "max_vms": launch.UNLIMITED,
            "common": False,
            "rank": rank,
        }
        for rank, (site, cloud) in enumerate(sites, 1)
    }
    configuration = {
        "name": name,
        "cloud_params": params,
        "contextualization_method": "user_data",
        "user_data": USER_DATA,
        "appliance": None,
    }
    made = {
        "schema": SCHEMA,
        "appliance": {
            "name": name,
            "version": version,
            "summary": summary,
            "build": build,
            "labels": {"os": "debian"} if labels is None else dict(labels),
        },
        "inputs": _inputs(packages, release),
        "root_filesystem": {"sha256": _digest(build), "identities": None},
        "images": [_image(site, cloud, build, bytes, boot_seconds) for site, cloud in sites],
        "publications": sorted(publications, key=lambda each: each["site"]),
        "phantom": launch.complete(configuration, sandbox=False),
        "launch_templates": [
            {"site": each["site"], "region": each["region"], "data": _template(each["image_id"])}
            for each in publications
            if each["cloud"] == "ec2"
        ],
    }
    # Documents beside the manifest, and what the gate found: these builds have none.
    return {**dict.fromkeys(manifest_schema()["required"]), **made}


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def _publication(place: Place, image: str, date: str) -> dict[str, Any]:
    site, cloud, region = place
    digits = _digest(f"{image}{region}")[:17]
    image_id = f"ami-{digits}" if cloud == "ec2" else f"{image}.gz"
    return {
        "site": site,
        "cloud": cloud,
        "region": region,
        "image_id": image_id,
        "location": f"{cloud}://{site}/{image_id}",
        "sha256": _digest(image),
        "published_at": date,
        "sandbox": False,
    }


def _inputs(packages: Sequence[tuple[str, str]], release: str) -> dict[str, Any]:
    return {
        "definition": {"digest": _digest("definition"), "commit": None, "dirty": None},
        "source": {
            "scratch": {"element": "phantom-debian", "release": release, "architecture": "amd64"}
        },
        "repeatable": True,
        "packages": [
            {
                "name": package,
                "version": version,
                "architecture": "amd64",
                "sha256": _digest(f"{package}={version}"),
            }
            for package, version in packages
        ],
        "elements": [{"name": "phantom-debian", "digest": _digest("phantom-debian")}],
    }


def _image(site: str, cloud: str, build: str, size: int, seconds: float) -> dict[str, Any]:
    return {
        "site": site,
        "cloud": cloud,
        "file": f"{build}.gz",
        "layout": "mbr",
        "format": "raw",
        "compression": "gzip",
        "bytes": size,
        "sha256": _digest(f"{build}.gz"),
        "disk_bytes": 2 << 30,
        "disk_sha256": _digest(f"{build}.raw"),
        "boot_checks": [
            {
                "machine": "bios",
                "passed": True,
                "accelerator": "kvm",
                "release": "Debian GNU/Linux 12 (bookworm)",
                "kernel": "6.1.0-56-amd64",
                "firmware": "bios",
                "addresses": ["10.0.2.15/24"],
                "failed_units": [],
                "root_bytes": 2 << 30,
                "disk_driver": "virtio_blk",
                "network_driver": "virtio_net",
                "ssh_host_keys": ["ED25519"],
                "user_data_by": "fetcher",
                "fetcher_tries": 1,
                "fetcher_protocol": "nimbus",
                "boot_seconds": seconds,
                "user_data_status": 0,
                "check_status": 0,
                "user_data": {"absent": "nothing run", "present": "run"},
            }
        ],
    }


def _template(image_id: str) -> dict[str, Any]:
    return {
        "ImageId": image_id,
        "InstanceType": "t3.micro",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "UserData": base64.b64encode(USER_DATA.encode()).decode(),
    }
