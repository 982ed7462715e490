"""The manifest: what a command writes for its own sites and keeps of others."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import check_manifest

from pipeline.build import launch, manifest
from pipeline.build.manifest_check import find_faults
from pipeline.build.release import check_files, keep_true
from pipeline.errors import StoreError
from pipeline.model import (
    Appliance,
    BootReport,
    Disk,
    Image,
    PhantomPolicy,
    Publication,
    ScratchSource,
    Sha256,
    SitePolicy,
)
from pipeline.workspace import link

DIGEST = Sha256("0" * 64)
BUILD = "0123456789ab"
FACTS: dict[str, Any] = {
    "accelerator": "tcg",
    "release": "12",
    "kernel": "6.1.0",
    "firmware": "bios",
    "addresses": ["10.0.2.15/24"],
    "failed_units": [],
    "root_bytes": 1,
    "disk_driver": "ata_piix",
    "network_driver": "e1000",
    "ssh_host_keys": [],
    "user_data_by": "fetcher",
    "fetcher_tries": 1,
    "fetcher_protocol": "nimbus",
    "boot_seconds": 9.0,
    "user_data_status": None,
    "check_status": None,
    "user_data": None,
}
"""What a guest told."""
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


def make(
    *publications: Publication,
    of: Appliance = APPLIANCE,
    order: Sequence[str] = (),
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of one run, which publishes these, after one that wrote `before`."""
    sites = sorted({each.site for each in publications})
    if before is not None:
        known = manifest.publications_of(before)
        publications = (*publications, *(each for each in known if each.site not in sites))
    made = manifest.make_manifest(
        appliance=of,
        build=BUILD,
        order=order,
        before=before,
        inputs={
            "definition": {"digest": DIGEST, "commit": None, "dirty": None},
            "source": {"scratch": {"element": "debian"}},
            "packages": [],
            "elements": [],
        },
        root_sha256=DIGEST,
        images=[make_image(site) for site in sites],
        publications=publications,
        launch={site: {"instance_type": "small", "common": False} for site in sites},
        templates=[
            {"site": each.site, "region": each.region, "data": {"ImageId": each.image_id}}
            for each in publications
            if each.cloud == "ec2" and each.site in sites
        ],
    )
    if before is None or not find_faults(before):
        check_manifest(made)
    return made


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
    report = BootReport(machine="bios", passed=True, facts=FACTS)
    return manifest.ManifestImage(
        file=f"{site}.raw", image=image, root_sha256=DIGEST, reports=[report]
    )


def test_phantom_starts_the_image_of_the_sites_own_region() -> None:
    made = make(HOME, COPY)
    assert launch.params_of(made["phantom"])["amazon"]["image_id"] == "ami-1"
    assert [(each["region"], each["data"]) for each in made["launch_templates"]] == [
        ("eu-west-1", {"ImageId": "ami-2"}),
        ("us-east-1", {"ImageId": "ami-1"}),
    ]


def test_publications_of_another_command_are_kept() -> None:
    both = make(HOTEL, before=make(HOME, COPY))
    assert [each["site"] for each in both["images"]] == ["amazon", "hotel"]
    assert sorted(launch.params_of(both["phantom"])) == ["amazon", "hotel"]
    assert [each["region"] for each in both["launch_templates"]] == ["eu-west-1", "us-east-1"]


@pytest.mark.parametrize("last", [HOTEL, HOME])
def test_a_site_that_is_added_later_gives_what_all_at_once_give(last: Publication) -> None:
    """One manifest covers a build at all its sites."""
    first = HOME if last is HOTEL else HOTEL
    order = ("hotel", "amazon")
    later = make(last, order=order, before=make(first, order=order))
    assert json.dumps(later) == json.dumps(make(HOTEL, HOME, order=order))
    assert later["phantom"]["auto_scaling"] == {
        "hotel": {
            "LaunchConfigurationName": "web@hotel",
            "ImageId": "web.gz",
            "InstanceType": "small",
        },
        "amazon": {
            "LaunchConfigurationName": "web@amazon",
            "ImageId": "ami-1",
            "InstanceType": "small",
        },
    }


SANDBOX = replace(HOTEL, site="nimbus-sandbox", sandbox=True)
SIERRA = replace(HOTEL, site="sierra")


def ranks(section: dict[str, Any]) -> dict[str, int]:
    return {site: param["rank"] for site, param in launch.params_of(section).items()}


def rank_by_definition(**sites: SitePolicy) -> Appliance:
    return replace(APPLIANCE, phantom=PhantomPolicy(sites=sites))


def test_phantom_gets_no_sandbox_beside_a_real_site() -> None:
    made = make(SANDBOX, HOTEL)
    assert ranks(made["phantom"]) == {"hotel": 1}
    assert not made["phantom"]["sandbox"]
    later = make(SANDBOX, before=make(HOTEL))
    assert ranks(later["phantom"]) == {"hotel": 1}
    real = make(HOTEL, before=make(SANDBOX))
    assert ranks(real["phantom"]) == {"hotel": 1} and not real["phantom"]["sandbox"]
    assert len(real["publications"]) == 2


def test_a_section_of_sandboxes_alone_says_so() -> None:
    section = make(SANDBOX)["phantom"]
    assert ranks(section) == {"nimbus-sandbox": 1} and section["sandbox"] is True
    assert not make()["phantom"]["sandbox"]


@pytest.mark.parametrize(
    ("order", "sites", "expected"),
    [
        ((), {}, ["amazon", "hotel", "sierra"]),
        (("sierra", "hotel", "amazon"), {}, ["sierra", "hotel", "amazon"]),
        (("sierra",), {}, ["sierra", "amazon", "hotel"]),
        (("sierra", "hotel", "amazon"), {"amazon": 5}, ["amazon", "sierra", "hotel"]),
        (("sierra",), {"amazon": 2, "hotel": 1}, ["hotel", "amazon", "sierra"]),
        (("sierra", "hotel"), {"sierra": 1, "hotel": 1}, ["sierra", "hotel", "amazon"]),
    ],
)
def test_ranks_are_an_order(
    order: tuple[str, ...], sites: dict[str, int], expected: list[str]
) -> None:
    appliance = rank_by_definition(**{name: SitePolicy(rank=rank) for name, rank in sites.items()})
    made = make(HOTEL, SIERRA, HOME, COPY, of=appliance, order=order)
    assert ranks(made["phantom"]) == {site: rank for rank, site in enumerate(expected, 1)}
    if len(order) == 3:  # then it does not matter which was published first
        one_by_one = make(HOTEL, of=appliance, order=order)
        for each in (SIERRA, HOME):
            one_by_one = make(each, of=appliance, order=order, before=one_by_one)
        assert ranks(one_by_one["phantom"]) == ranks(made["phantom"])


def test_the_first_rank_is_the_definitions() -> None:
    appliance = replace(APPLIANCE, phantom=PhantomPolicy(rank=4))
    assert ranks(make(HOTEL, SIERRA, of=appliance)["phantom"]) == {"hotel": 4, "sierra": 5}


def test_a_site_has_the_limit_that_the_definition_gives_it() -> None:
    sites = {"hotel": SitePolicy(max_vms=7), "sierra": SitePolicy(rank=1)}
    appliance = replace(APPLIANCE, phantom=PhantomPolicy(max_vms=20, sites=sites))
    params = launch.params_of(make(HOTEL, SIERRA, of=appliance)["phantom"])
    assert {site: param["max_vms"] for site, param in params.items()} == {"hotel": 7, "sierra": 20}


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ([("a", -1)], None),
        ([("a", 5), ("b", -1)], None),
        ([("a", -1), ("b", 5), ("c", -1)], ("b, c", "a")),
        ([("a", 5), ("b", -1), ("c", 5)], ("c", "b")),
    ],
)
def test_a_site_without_a_limit_before_others_is_warned_of(
    limits: list[tuple[str, int]], named: tuple[str, str] | None
) -> None:
    warning = launch.find_endless(limits)
    if named is None:
        assert warning is None
    else:
        assert warning == (
            f"Phantom never gets to {named[0]}: {named[1]} comes before and has no limit, and "
            "Phantom leaves no site before its limit, even if every machine there fails; set "
            f"`phantom: sites: {named[1]}: max_vms:` of the definition"
        )


def test_retiring_a_copy_leaves_the_rest() -> None:
    left = manifest.without(make(HOTEL, HOME, COPY), COPY)
    check_manifest(left)
    assert manifest.publications_of(left) == [HOME, HOTEL]
    assert launch.params_of(left["phantom"])["amazon"]["image_id"] == "ami-1"
    assert [each["region"] for each in left["launch_templates"]] == ["us-east-1"]
    nothing = manifest.without(manifest.without(left, HOME), HOTEL)
    check_manifest(nothing)
    assert nothing["phantom"]["auto_scaling"] == {}
    assert nothing["publications"] == nothing["launch_templates"] == []
    assert launch.params_of(nothing["phantom"]) == {}


def test_manifests_of_the_second_schema_are_put_in_order(tmp_path: Path) -> None:
    old = make(HOTEL, SIERRA)
    old["schema"] = 2
    old["phantom"] = old["phantom"]["launch_configuration"]
    del old["inputs"]["definition"]
    params = old["phantom"]["cloud_params"]
    for param in params.values():
        param["rank"] = 1
    params["nimbus-sandbox"] = params["hotel"]
    old["publications"].append(
        {**old["publications"][0], "site": "nimbus-sandbox", "sandbox": True}
    )
    manifest.write_manifest(tmp_path, old)
    read = manifest.read_manifest(tmp_path)
    assert read is not None
    assert ranks(read["phantom"]) == {"hotel": 1, "sierra": 2}
    assert read["inputs"]["definition"] == {"digest": None, "commit": None, "dirty": None}


# ---- user-data


LINE = "echo 'single' \"double\" back\\\\slash \\t $HOME `id` %s\t#\n"


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\n" + LINE,
        "#!/bin/sh\necho no newline at the end",
        "#!/bin/sh\nprintf 'one\rtwo'\n\n\n",
        ("#!/bin/sh\n" + LINE * 30)[:1024],
        '[quoted]\nkey = "\\\\"\n',
    ],
)
def test_user_data_arrives_byte_for_byte(tmp_path: Path, text: str) -> None:
    """In the file and in each way to Phantom."""
    script = tmp_path / "user-data.sh"
    script.write_bytes(text.encode())
    appliance = replace(APPLIANCE, phantom=PhantomPolicy(user_data=script))
    path = manifest.write_manifest(tmp_path, make(HOTEL, SIERRA, of=appliance))
    told = manifest.load_manifest(path)
    section = told["phantom"]
    assert section["launch_configuration"]["user_data"] == text
    assert section["launch_configuration"]["contextualization_method"] == "user_data"
    assert {each["UserData"] for each in section["auto_scaling"].values()} == {text}


@pytest.mark.parametrize("text", ["", "x" * 1025, "x" * 16_384, "caf\xe9\n", "\x00", "\x1f\x8b"])
def test_user_data_that_breaks_phantom_makes_a_manifest_invalid(text: str) -> None:
    told = make(HOTEL)
    told["phantom"] = launch.complete(
        {
            **told["phantom"]["launch_configuration"],
            "contextualization_method": "user_data",
            "user_data": text,
        },
        sandbox=False,
    )
    faults = find_faults(told)
    assert len(faults) == 2  # in both ways to Phantom
    assert faults[0].startswith("phantom.auto_scaling.hotel.UserData is ")
    assert faults[1].startswith("phantom.launch_configuration.user_data is ")


# ---- latest


def test_latest_is_what_was_published(tmp_path: Path) -> None:
    published, unpublished = make(HOTEL), make()
    unpublished["appliance"]["build"] = "c"
    manifest.write_manifest(tmp_path, unpublished)
    assert not (tmp_path / "latest").is_symlink()
    newest = manifest.read_manifest(tmp_path)  # until one is published
    assert newest is not None and newest["appliance"]["build"] == "c"
    manifest.write_manifest(tmp_path, published)
    manifest.write_manifest(tmp_path, unpublished)
    assert str((tmp_path / "latest").readlink()) == BUILD
    latest = manifest.read_manifest(tmp_path)
    assert latest is not None and latest["appliance"]["build"] == BUILD


# ---- the files of images


def test_a_file_that_is_not_the_image_is_told(tmp_path: Path) -> None:
    entry = make_image("hotel")
    stored = tmp_path / "stored"
    stored.write_bytes(b"image")
    entry = replace(entry, image=replace(entry.image, file=stored))
    folder = tmp_path / "build"
    with pytest.raises(StoreError):
        check_files(folder, [entry])
    link(stored, folder / entry.file)
    check_files(folder, [entry])
    (folder / entry.file).unlink()
    (folder / entry.file).write_bytes(b"other")
    with pytest.raises(StoreError) as caught:
        check_files(folder, [entry])
    assert str(caught.value) == (
        f"{folder}: hotel.raw is not the image of site hotel: something else has replaced it\n"
        "  do: run the same command again; if it happens again, give the images different names "
        "(`clouds: ...: image_name:`)"
    )


def write_old(folder: Path, *files: tuple[str, bytes, bytes]) -> list[dict[str, Any]]:
    """Entries of a manifest that was written before, each with a name, what it says that the file
    holds, and what the file holds."""
    for name, _, content in files:
        (folder / name).write_bytes(content)
    time.sleep(0.01)  # longer than the file system's clock takes to move on
    (folder / manifest.FILE).write_text("{}")
    return [
        {
            "site": f"site {number}",
            "file": name,
            "bytes": len(told),
            "sha256": hashlib.sha256(told).hexdigest(),
        }
        for number, (name, told, _) in enumerate(files)
    ]


def kept(folder: Path, old: list[dict[str, Any]]) -> list[str]:
    return [image["site"] for image in keep_true(folder, old, [])]


def test_an_entry_whose_file_was_replaced_is_not_kept(tmp_path: Path) -> None:
    names = ("same", "changed", "other size", "gone")
    old = write_old(tmp_path, *((name, b"image", b"image") for name in names))
    time.sleep(0.01)
    (tmp_path / "new").write_bytes(b"egami")
    (tmp_path / "new").rename(tmp_path / "changed")
    (tmp_path / "other size").write_bytes(b"im")
    (tmp_path / "gone").unlink()
    assert kept(tmp_path, old) == ["site 0", "site 3"]


def test_of_two_images_with_one_name_the_right_one_is_kept(tmp_path: Path) -> None:
    old = write_old(tmp_path, ("x.gz", b"image", b"egami"), ("x.gz", b"egami", b"egami"))
    assert kept(tmp_path, old) == ["site 1"]


def test_manifests_of_the_first_schema_can_still_be_read(tmp_path: Path) -> None:
    old = make(HOTEL)
    old["schema"] = 1
    old["phantom"] = old["phantom"]["launch_configuration"]
    del old["launch_templates"]
    del old["publications"][0]["region"]
    (check,) = old["images"][0].pop("boot_checks")
    del check["machine"]
    old["images"][0]["boot_check"] = check
    (tmp_path / BUILD).mkdir()
    (tmp_path / BUILD / manifest.FILE).write_text(json.dumps(old))
    read = manifest.read_manifest(tmp_path, BUILD)
    assert read == make(HOTEL)
    assert manifest.publications_of(read) == [HOTEL]


def test_manifests_of_the_third_schema_are_put_in_order(tmp_path: Path) -> None:
    made = make(SANDBOX)
    section = {**made["phantom"]["launch_configuration"], "sandbox": True}
    (tmp_path / BUILD).mkdir()
    (tmp_path / BUILD / manifest.FILE).write_text(
        json.dumps({**made, "schema": 3, "phantom": section})
    )
    assert manifest.read_manifest(tmp_path, BUILD) == made


def test_manifests_of_the_fourth_schema_knew_no_gate(tmp_path: Path) -> None:
    made = make(HOTEL)
    assert made["checks"] is None
    old = {key: value for key, value in made.items() if key != "checks"} | {"schema": 4}
    (tmp_path / BUILD).mkdir()
    (tmp_path / BUILD / manifest.FILE).write_text(json.dumps(old))
    assert manifest.read_manifest(tmp_path, BUILD) == made


def test_a_later_schema_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / BUILD).mkdir()
    (tmp_path / BUILD / manifest.FILE).write_text(json.dumps({**make(HOTEL), "schema": 6}))
    assert manifest.read_manifest(tmp_path, BUILD) is None
