"""The manifest: what one command says of some sites and keeps of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.model import (
    Appliance,
    BootReport,
    Disk,
    Image,
    Publication,
    ScratchSource,
    Sha256,
)

DIGEST = Sha256("0" * 64)
APPLIANCE = Appliance(
    name="web",
    version="1.0",
    summary="An appliance",
    source=ScratchSource(element="debian", release="bookworm", architecture="amd64"),
    definition=Path("images/web/appliance.yaml"),
)
HOTEL = Publication(
    site="hotel",
    cloud="nimbus",
    image_id="web.gz",
    location="cumulus://hotel/web.gz",
    sha256=DIGEST,
    published_at="2026-01-01T00:00:00Z",
    sandbox=False,
)
HOME = replace(HOTEL, site="amazon", cloud="ec2", region="us-east-1", image_id="ami-1")
COPY = replace(HOME, region="eu-west-1", image_id="ami-2")


def make(*publications: Publication) -> dict[str, Any]:
    """The manifest of one run."""
    sites = sorted({each.site for each in publications})
    return manifest.make_manifest(
        appliance=APPLIANCE,
        build="b",
        inputs={"source": {}, "packages": [], "elements": []},
        root_sha256=DIGEST,
        images=[make_image(site) for site in sites],
        publications=publications,
        launch={site: {"instance_type": "small", "common": False} for site in sites},
        templates=[
            manifest.LaunchTemplate(
                site=each.site, region=each.region, data={"ImageId": each.image_id}
            )
            for each in publications
            if each.cloud == "ec2"
        ],
    )


def make_image(site: str) -> manifest.ManifestImage:
    disk = Disk(layout="mbr", format="raw")
    image = Image(
        site=site,
        cloud="nimbus",
        file=Path("disk.raw"),
        disk=disk,
        bytes=1,
        sha256=DIGEST,
        md5=None,
        disk_bytes=1,
        disk_sha256=DIGEST,
    )
    report = BootReport(machine="bios", passed=True, facts={"boot_seconds": 9.0})
    return manifest.ManifestImage(
        file=f"{site}.raw", image=image, root_sha256=DIGEST, reports=[report]
    )


def test_phantom_starts_the_image_of_the_sites_own_region() -> None:
    made = make(HOME, COPY)
    assert made["phantom"]["cloud_params"]["amazon"]["image_id"] == "ami-1"
    assert [(each["region"], each["data"]) for each in made["launch_templates"]] == [
        ("eu-west-1", {"ImageId": "ami-2"}),
        ("us-east-1", {"ImageId": "ami-1"}),
    ]


def test_what_another_command_published_is_kept() -> None:
    before, now = make(HOME, COPY), make(HOTEL)
    both = manifest.keep_other_sites(now, before)
    assert [each["site"] for each in both["images"]] == ["amazon", "hotel"]
    assert sorted(both["phantom"]["cloud_params"]) == ["amazon", "hotel"]
    assert [each["region"] for each in both["launch_templates"]] == ["eu-west-1", "us-east-1"]


def test_retiring_a_copy_leaves_the_rest() -> None:
    left = manifest.without(make(HOTEL, HOME, COPY), COPY)
    assert manifest.publications_of(left) == [HOME, HOTEL]
    assert left["phantom"]["cloud_params"]["amazon"]["image_id"] == "ami-1"
    assert [each["region"] for each in left["launch_templates"]] == ["us-east-1"]
    nothing = manifest.without(manifest.without(left, HOME), HOTEL)
    assert nothing["publications"] == nothing["launch_templates"] == []
    assert nothing["phantom"]["cloud_params"] == {}


def test_manifests_of_the_first_schema_can_still_be_read(tmp_path: Path) -> None:
    old = make(HOTEL)
    old["schema"] = 1
    del old["launch_templates"]
    del old["publications"][0]["region"]
    (check,) = old["images"][0].pop("boot_checks")
    del check["machine"]
    old["images"][0]["boot_check"] = check
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / manifest.FILE).write_text(json.dumps(old))
    read = manifest.read_manifest(tmp_path, "b")
    assert read == make(HOTEL)
    assert manifest.publications_of(read) == [HOTEL]


def test_a_later_schema_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / manifest.FILE).write_text(json.dumps({**make(HOTEL), "schema": 3}))
    assert manifest.read_manifest(tmp_path, "b") is None
