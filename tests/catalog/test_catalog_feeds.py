"""What programs read of a catalog, by the readers that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from catalog_kit import HOSTILE, Demo, build, query
from cli_runs import make_project

from benchmarks.catalog_builds import FRANKFURT, HOTEL, VIRGINIA

ATOM = "{http://www.w3.org/2005/Atom}"


def validate(demo: Demo, of: str, value: Any) -> None:
    schema = demo.project.succeed("schema", of).json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


def test_catalog_json_has_each_appliance_with_its_current_build(demo: Demo) -> None:
    catalog = demo.json("catalog.json")
    validate(demo, "catalog", catalog)
    assert (catalog["title"], catalog["url"]) == ("Lab", "https://images.example.org/lab")
    assert catalog["updated"] >= "2026-02-01T03:00:00Z"
    found = {each["name"]: each["current"] for each in catalog["appliances"]}
    assert {name: each["state"] for name, each in found.items()} == {
        "bad": "withdrawn",
        "batch": "published",
        "hostile": "published",
        "old": "deprecated",
        "unsent": "unpublished",
        "web": "published",
    }
    web = found["web"]
    assert (web["version"], web["release"]) == ("1.1", "Debian GNU/Linux 12 (bookworm)")
    assert {each["site"] for each in web["publications"]} == {"hotel", "sierra", "frankfurt"}
    assert found["old"]["replacement"] == "web"
    assert json.loads(demo.read(web["manifest"]))["appliance"]["build"] == web["build"]
    assert [*web["files"]] == ["manifest.json.sig", "provenance.intoto.json", "sbom.cdx.json"]
    for name, path in web["files"].items():
        assert demo.read(path) == f"{name}\n"


def test_each_appliance_has_all_its_builds(demo: Demo) -> None:
    for each in demo.json("catalog.json")["appliances"]:
        appliance = demo.json(each["data"])
        validate(demo, "appliance", appliance)
        assert (appliance["name"], len(appliance["builds"])) == (each["name"], each["builds"])
        assert appliance["current"] == each["current"]["build"]
        folder = (demo.output / each["data"]).parent
        assert all((folder / one["manifest"]).is_file() for one in appliance["builds"])
    web = demo.json("appliances/web/appliance.json")
    assert [one["version"] for one in web["builds"]] == ["1.1", "1.0"]


def test_a_key_that_no_schema_has_is_refused(demo: Demo) -> None:
    catalog = demo.json("catalog.json")
    catalog["appliances"][0]["current"]["more"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'more' was unexpected"):
        validate(demo, "catalog", catalog)


def test_sstream_query_finds_the_newest_image_of_a_release_cloud_and_region(demo: Demo) -> None:
    def newest(*words: str) -> list[tuple[str, str]]:
        found = query(demo.output, "--max=1", *words)
        return [(each["appliance_version"], each["id"][:4]) for each in found]

    web = "appliance=web"
    of_virginia = "release=bookworm", "cloud=ec2", "region=us-east-1", web
    assert newest("release=bookworm", "cloud=ec2", "region=eu-central-1", web) == [("1.1", "ami-")]
    assert newest(*of_virginia) == [("1.0", "ami-")]  # the newest build is not there
    assert newest("release=bookworm", "cloud=nimbus", "site=hotel", web) == [("1.1", "web-")]
    assert newest("release=trixie", "cloud=ec2") == []
    assert newest("release=trixie") == [("1.0", "batc")]
    names = {each["appliance"] for each in query(demo.output)}
    assert names == {"batch", "hostile", "old", "web"}  # none that must not be started
    assert {each["appliance"] for each in query(demo.output, "state=deprecated")} == {"old"}


def test_the_feed_has_new_builds_the_newest_first(demo: Demo) -> None:
    feed = ElementTree.fromstring(demo.read("feed.atom"))
    entries = feed.findall(f"{ATOM}entry")
    titles = [entry.findtext(f"{ATOM}title") for entry in entries]
    web = demo.json("appliances/web/appliance.json")["builds"]
    assert titles[0] == f"web 1.1, build {web[0]['build']}"
    assert len(titles) == 5  # withdrawn builds are none to take
    for entry in [feed, *entries]:
        assert entry.findtext(f"{ATOM}id", "").startswith("urn:uuid:")
        assert entry.findtext(f"{ATOM}updated")
        assert entry.findtext(f"{ATOM}title")
    link = entries[0].find(f"{ATOM}link")
    assert link is not None
    page = link.get("href", "").removeprefix("https://images.example.org/lab/")
    assert (demo.output / page).is_file()


def test_texts_that_mean_harm_are_texts_in_feeds(demo: Demo) -> None:
    hostile = demo.json("appliances/hostile/appliance.json")["builds"][0]
    assert hostile["summary"].startswith(HOSTILE)
    feed = ElementTree.fromstring(demo.read("feed.atom"))
    (text,) = (
        entry.findtext(f"{ATOM}summary", "")
        for entry in feed.findall(f"{ATOM}entry")
        if entry.findtext(f"{ATOM}title", "").startswith("hostile")
    )
    assert "<script>" in text
    assert not any(character in text for character in "\x00\x1b\u202e")
    (found,) = query(demo.output, "appliance=hostile")
    assert found["appliance_version"] == HOSTILE


def test_without_an_address_links_are_relative(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    build(project, "web", places=(HOTEL, FRANKFURT, VIRGINIA))
    project.succeed("catalog")
    feed = ElementTree.fromstring((project.build / "catalog/feed.atom").read_text())
    links = [link.get("href") for link in feed.iter(f"{ATOM}link")]
    assert links == ["feed.atom", "index.html", "appliances/web/index.html"]
