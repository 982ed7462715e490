"""What Debian's security tracker says of a bill of materials."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_runs import Project, make_project
from http_files import HttpFile, serving
from night_values import make_night, make_outcome
from test_manifest import BUILD, HOTEL
from test_manifest import make as make_manifest

from pipeline.attestations.documents import write_document
from pipeline.attestations.sbom import FILE, make_sbom
from pipeline.build.manifest import write_manifest
from pipeline.build.schemas import output_schemas
from pipeline.nightly.exposure import judge
from pipeline.nightly.night import NightState, State

NO_PROXY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
PACKAGES = [
    ("libssl3", "3.0.11-1", "openssl", "3.0.11-1"),
    ("openssl", "3.0.11-1", "openssl", "3.0.11-1"),
    ("linux-image-6.1.0-56-amd64", "6.1.192-2", "linux-signed-amd64", "6.1.192+2"),
    ("nano", "7.2-1+b1", "nano", "7.2-1"),
]


def issue(status: str, urgency: str, fixed: str | None = None) -> dict[str, Any]:
    record = {"status": status, "urgency": urgency}
    if fixed is not None:
        record["fixed_version"] = fixed
    return {"releases": {"bookworm": record, "sid": {"status": "open", "urgency": "high"}}}


TRACKER = {
    "openssl": {
        "CVE-2024-1": issue("resolved", "high", "3.0.12-1"),
        "CVE-2024-2": issue("resolved", "high", "3.0.11-1"),
        "CVE-2024-3": issue("open", "low**"),
        "CVE-2024-4": {"releases": {"sid": {"status": "open", "urgency": "high"}}},
        "CVE-2024-5": issue("resolved", "high", "0"),
    },
    "linux": {
        "CVE-2025-1": issue("open", "not yet assigned"),
        "CVE-2025-2": issue("resolved", "medium", "6.1.192-2"),
        "CVE-2025-3": issue("resolved", "medium", "6.1.193-1"),
    },
    "nano": {"CVE-2024-9": issue("open", "unimportant"), "CVE-\n": issue("open", "high")},
    "other": {"CVE-2024-8": issue("open", "high")},
}
OPEN = [
    ("high", "CVE-2024-1", "openssl", "3.0.12-1"),
    ("medium", "CVE-2025-3", "linux", "6.1.193-1"),
    ("unknown", "CVE-2025-1", "linux", None),
    ("low", "CVE-2024-3", "openssl", None),
    ("unimportant", "CVE-2024-9", "nano", None),
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path / "project")
    inventory = {
        "epoch": 0,
        "distribution": {"id": "debian", "version": "12", "codename": "bookworm"},
        "kind": "deb",
        "packages": [
            {
                "name": name,
                "version": version,
                "architecture": "amd64",
                "source": source,
                "source_version": source_version,
                "licences": [],
            }
            for name, version, source, source_version in PACKAGES
        ],
        "python": [{"name": "six", "version": "1", "place": "/opt", "licences": []}],
    }
    content, folder = make_manifest(HOTEL), made.build / "web"
    text = make_sbom(content, inventory)
    content["sbom"] = write_document(folder / BUILD / FILE, text, None)
    write_manifest(folder, content)
    made.write("tracker.json", json.dumps(TRACKER))
    return made


def test_what_is_open(project: Project) -> None:
    words = ("vulnerabilities", "build/web/latest", "--tracker", "tracker.json")
    told = project.succeed(*words, "--json").json
    jsonschema.validate(told, output_schemas()["vulnerabilities"])
    keys = ("severity", "issue", "source", "fixed")
    assert [tuple(each[key] for key in keys) for each in told] == OPEN
    assert told[0]["packages"] == ["libssl3", "openssl"]
    assert project.run(*words, "--fail-above", "medium", "--json").status == 75
    done = project.run(*words, "--fail-above", "low")
    assert done.status == 75
    assert done.out.splitlines()[0].split() == [
        *("high", "CVE-2024-1", "openssl", "3.0.11-1", "3.0.12-1")
    ]
    assert done.error == (
        "error: build/web/latest/manifest.json: 3 of 5 open vulnerabilities are worse than low\n"
        "  do: build again where the archive has corrections, or leave the packages out\n"
    )
    project.write("sites.yaml", "sites: {}\nvulnerabilities: tracker.json\n")
    assert project.succeed("vulnerabilities", "build/web/latest").out.endswith("\n5 open\n")


def test_what_cannot_be_told(project: Project) -> None:
    words = ("vulnerabilities", "build/web/latest")
    done = project.run(*words)
    assert (done.status, done.error) == (
        24,
        "error: nothing says what is vulnerable\n"
        "  do: name the export of Debian's security tracker by --tracker, or as "
        "`vulnerabilities:` in sites.yaml\n",
    )
    project.write("tracker.json", "[]")
    done = project.run(*words, "--tracker", "tracker.json")
    assert (done.status, done.error) == (
        24,
        "error: tracker.json: it is no export of Debian's security tracker, and none of OSV: it "
        "is not an object\n"
        "  do: fetch https://security-tracker.debian.org/tracker/data/json\n",
    )


def test_a_night_tells_of_them_and_fails_above_a_level(project: Project) -> None:
    web = make_outcome("web", build=BUILD)
    gone = make_outcome("gone")
    failed = make_outcome("mail", state=State.FAILED, message="no space")
    night = make_night(0, web, gone, failed)
    told = judge(night, project.build, TRACKER, "high")
    assert told.outcomes[0].warnings == (
        "known vulnerabilities: 1 high, 1 medium, 1 unknown, 1 low, 1 unimportant; CVE-2024-1 in "
        "openssl is corrected in 3.0.12-1",
    )
    assert told.outcomes[0].state is State.UNCHANGED
    (warning,) = told.outcomes[1].warnings
    assert warning.startswith("its known vulnerabilities cannot be told: ")
    assert told.outcomes[2] == failed
    bad = judge(make_night(0, web), project.build, TRACKER, "unknown")
    (outcome,) = bad.outcomes
    assert (bad.state, outcome.state, outcome.build) == (NightState.FAILED, State.FAILED, BUILD)
    assert (outcome.stage, outcome.exit_status) == ("vulnerabilities", 75)
    assert outcome.message == ("2 worse than unknown: CVE-2024-1 in openssl; CVE-2025-3 in linux")
    assert judge(make_night(0, web), project.build, {}, "low").outcomes == (web,)


def test_a_night_ends_with_a_catalog(project: Project) -> None:
    """Of what was built before it, too; what goes wrong there is told by the report as well."""
    project.define("broken", "disk_size: much\n")
    catalog = "sites: {}\nnightly: {catalog: {folder: shown, title: Ours}}\n"
    project.write("sites.yaml", "vulnerabilities: tracker.json\n" + catalog)
    assert project.run("nightly", "broken", "--no-publish").status == 71
    assert "<title>Ours" in (project.folder / "shown/index.html").read_text()
    assert (project.folder / "shown/catalog.json").read_text().count(BUILD)
    (project.folder / "taken").write_text("a file")
    project.write("sites.yaml", catalog.replace("shown", "taken"))
    done = project.run("nightly", "broken", "--no-publish", "--json")
    assert done.status == 83
    told = [each for each in done.json["warnings"] if "catalog" in each]
    assert len(told) == 1 and told[0].startswith("the catalog could not be written: ")


def test_a_night_without_what_it_is_to_fail_by(project: Project) -> None:
    for text, why in (
        (
            "nightly: {fail_above: low}",
            "error: sites.yaml: `nightly: fail_above` has nothing to go by\n"
            "  do: name the export of Debian's security tracker as `vulnerabilities`\n",
        ),
        (
            "vulnerabilities: nothing.json",
            "error: there is no file 'PROJECT/nothing.json'\n"
            "  do: fetch the export of Debian's security tracker, or leave it out\n",
        ),
    ):
        project.write("sites.yaml", f"sites: {{}}\n{text}\n")
        done = project.run("nightly", "hello-phantom")
        assert (done.status, project.masked(done.error)) == (24, why)
        assert not (project.build / "nightly").exists()


def test_a_page_of_the_catalog_tells_of_them(project: Project) -> None:
    def read_page() -> str:
        return (project.build / "catalog/appliances/web/index.html").read_text()

    project.succeed("catalog")
    assert "Known vulnerabilities" not in read_page()
    project.succeed("catalog", "--tracker", "tracker.json")
    assert "1 high, 1 medium, 1 unknown, 1 low, 1 unimportant" in read_page()
    assert "<td>openssl</td><td>3.0.11-1</td><td>3.0.12-1</td>" in read_page()
    assert project.succeed("catalog", "--tracker", "tracker.json", "--json").json["written"] == 0
    project.write("tracker.json", "{}")
    project.succeed("catalog", "--tracker", "tracker.json")
    assert "knows of nothing open in its packages" in read_page()
    done = project.run("catalog", "--tracker", "nothing.json")
    assert (done.status, done.error) == (
        24,
        "error: there is no file 'nothing.json'\n"
        "  do: fetch the export of Debian's security tracker, or leave it out\n",
    )


def osv(name: str, source: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "Debian:12", "name": source},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
        "ecosystem_specific": {"urgency": more.pop("urgency", "not yet assigned")},
    }
    return {"id": name, "modified": "2026-01-01T00:00:00Z", "affected": [affected], **more}


def test_an_export_of_osv(project: Project) -> None:
    first: dict[str, str] = {"introduced": "0"}
    issues = [
        osv("DEBIAN-CVE-2024-0001", "openssl", first, {"fixed": "3.0.12-1"}, urgency="high"),
        osv("DEBIAN-CVE-2024-0002", "openssl", first, {"fixed": "3.0.11-1"}),
        osv("DSA-5000-1", "linux", first, upstream=["CVE-2025-0001"]),
        osv("DEBIAN-CVE-2024-0003", "nano", {"introduced": "8.0"}),
        osv("DEBIAN-CVE-2024-0004", "nano", first, withdrawn="2026-01-02T00:00:00Z"),
        {"id": "PYSEC-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "six"}}]},
    ]
    with zipfile.ZipFile(project.folder / "all.zip", "w") as export:
        for each in issues:
            export.writestr(f"{each['id']}.json", json.dumps(each))
    words = ("vulnerabilities", "web", "--tracker", "all.zip")
    told = project.succeed(*words, "--json").json
    assert [(each["severity"], each["issue"], each["fixed"]) for each in told] == [
        ("high", "CVE-2024-0001", "3.0.12-1"),
        ("unknown", "CVE-2025-0001", None),
    ]
    whole = (project.folder / "all.zip").read_bytes()
    (project.folder / "all.zip").write_bytes(whole[:-30])
    done = project.run(*words)
    assert done.status == 24
    assert done.error.startswith(
        "error: all.zip: it is no export of Debian's security tracker, and none of OSV: it is no "
        "whole ZIP file: "
    )


def test_an_export_at_a_url(project: Project) -> None:
    """It is fetched again only where the server has another one."""
    file = HttpFile(json.dumps(TRACKER).encode())
    with serving(file):
        project.write("sites.yaml", f"sites: {{}}\nvulnerabilities: {file.url}\n")
        words = ("vulnerabilities", "web", "--json")
        for _ in range(2):
            told = project.succeed(*words, **NO_PROXY).json
            assert [each["issue"] for each in told] == [each[1] for each in OPEN]
        assert file.sent == len(file.content) + 1  # and one byte, to see that it is the same
        file.content, file.etag = b"{}", '"two"'
        assert project.succeed(*words, **NO_PROXY).json == []
        file.statuses = [404] * 3
        done = project.run("vulnerabilities", "web", **NO_PROXY)
        assert done.error.startswith(f"error: {file.url}: the file cannot be fetched: ")
