"""Bills of materials: read from small root file systems, and held against CycloneDX's schema."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from files import make_context
from packageurl import PackageURL
from test_manifest import BUILD, DIGEST, HOTEL
from test_manifest import make as make_manifest

from pipeline.attestations.licences import find_expression, find_spdx_id
from pipeline.attestations.sbom import make_sbom
from pipeline.sources.epoch import EPOCH
from pipeline.stages.inventory import ListSoftware, read_inventory
from pipeline.store import Store

STATUS = """Package: nano
Status: install ok installed
Version: 7.2-1+b1
Source: nano (7.2-1)
Architecture: amd64

Package: libc6
Status: hold ok installed
Version: 2.36-9
Source: glibc
Architecture: amd64
Multi-Arch: same

Package: libc6
Status: install ok installed
Version: 2.36-9
Source: glibc
Architecture: i386

Package: gone
Status: deinstall ok config-files
Version: 1
Architecture: all
"""
NANO = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nano

Files: *
Copyright: Somebody
License: GPL-3+

Files: lib/*
License: Expat or custom
 Permission is granted.

License: GPL-3+
 This program is free software.
License:
 No name.
"""
GLIBC = "This is Debian's package of the GNU C library.\n\nLicense: LGPL-2.1+\n"
ACCORDING_TO_ITSELF = """Metadata-Version: 2.1
Name: Zope.Interface
Version: 6.0
License: BSD
Classifier: License :: OSI Approved :: BSD License

License: not a header
"""
OS_RELEASE = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
PACKAGES = [
    {"name": "nano", "version": "7.2-1+b1", "architecture": "amd64", "sha256": DIGEST},
    {"name": "libc6", "version": "2.36-9", "architecture": "amd64", "sha256": None},
    {"name": "libc6", "version": "2.36-9", "architecture": "i386", "sha256": None},
]


def list_software(folder: Path, files: dict[str, str]) -> dict[str, Any]:
    """The inventory of a file system with these files."""
    folder.mkdir()
    tree, context = folder / "tree", make_context(folder)
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    store, stage = Store(folder / "store"), ListSoftware(epoch=EPOCH)
    with store.making("root", stage.key) as made:
        image = made / "root.ext4"
        subprocess.run(["mke2fs", "-q", "-F", "-d", str(tree), str(image), "16M"], check=True)
        root = store.add("root", stage.key, made, {})
    facts = stage.run([root], context)
    return read_inventory(store.add("inventory", stage.key, context.out, facts))


def make_content(packages: list[Any], **inputs: Any) -> dict[str, Any]:
    """The manifest of an image of these packages."""
    content = make_manifest(HOTEL)
    content["inputs"] |= {"packages": packages, **inputs}
    return content


def make(inventory: dict[str, Any], packages: list[Any], **inputs: Any) -> dict[str, Any]:
    """The document, which has passed the schema."""
    text = make_sbom(make_content(packages, **inputs), inventory)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document: dict[str, Any] = json.loads(text)
    for component in document["components"]:
        assert PackageURL.from_string(component["purl"]).name.lower() == component["name"].lower()
    return document


def parts(document: dict[str, Any]) -> dict[str, Any]:
    return {component["purl"]: component for component in document["components"]}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return list_software(
        tmp_path_factory.mktemp("debian") / "root",
        {
            "etc/os-release": OS_RELEASE,
            "var/lib/dpkg/status": STATUS,
            "usr/share/doc/nano/copyright": NANO,
            "usr/share/doc/libc6/copyright": GLIBC,
            # Debian's own package, which dpkg knows; and what pip put beside it.
            "usr/lib/python3/dist-packages/PyYAML-6.0.dist-info/METADATA": "Name: PyYAML\n"
            "Version: 6.0\n",
            "usr/lib/python3/dist-packages/six-1.16.dist-info/METADATA": "Name: six\nVersion: 1.16"
            "\nLicense-Expression: MIT\n",
            "usr/lib/python3/dist-packages/six-1.16.dist-info/INSTALLER": "pip\n",
            "opt/web/lib/python3.11/site-packages/six-1.16.dist-info/METADATA": "Name: six\n"
            "Version: 1.16\nLicense-Expression: MIT\n",
            "opt/web/lib/python3.11/site-packages/zope-6.dist-info/METADATA": ACCORDING_TO_ITSELF,
            "opt/web/lib/python3.11/site-packages/bad-6.dist-info/METADATA": "Name: \x1b\n"
            "Version: 1\n",
            "opt/web/lib/ruby/site-packages/no-6.dist-info/METADATA": "Name: no\nVersion: 1\n",
        },
    )


def test_packages_of_debian(debian: dict[str, Any]) -> None:
    found = parts(make(debian, PACKAGES))
    assert [url for url in found if "pypi" not in url] == [
        "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/libc6@2.36-9?arch=i386&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/nano@7.2-1%2Bb1?arch=amd64&distro=debian-12&upstream=nano%407.2-1",
    ]
    libc, _, nano = (found[url] for url in found if "pypi" not in url)
    assert "licenses" not in libc and "hashes" not in libc
    assert nano["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert nano["licenses"] == [
        {"license": {"id": "GPL-3.0-or-later"}},
        {"license": {"name": "Expat or custom"}},
    ]
    assert {each["name"]: each["value"] for each in nano["properties"]} == {
        "phantom-image:architecture": "amd64",
        "phantom-image:source-package": "nano",
        "phantom-image:source-version": "7.2-1",
    }


def test_what_pip_installed(debian: dict[str, Any]) -> None:
    wheels = [{"name": "six", "version": "1.16", "file": "six.whl", "sha256": DIGEST}]
    found = parts(make(debian, PACKAGES, python={"version": "3.11", "wheels": wheels}))
    assert [url for url in found if "pypi" in url] == [
        "pkg:pypi/six@1.16",
        "pkg:pypi/zope.interface@6.0",
    ]
    six, zope = found["pkg:pypi/six@1.16"], found["pkg:pypi/zope.interface@6.0"]
    assert six["licenses"] == [{"license": {"id": "MIT"}}]
    assert six["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert [each["value"] for each in six["properties"]] == [
        "/opt/web/lib/python3.11/site-packages",
        "/usr/lib/python3/dist-packages",
    ]
    assert zope["licenses"] == [{"license": {"name": "BSD"}}]
    assert "hashes" not in zope


def test_the_appliance_that_it_is_of(debian: dict[str, Any]) -> None:
    document = make(debian, PACKAGES)
    about = document["metadata"]
    assert about["timestamp"] == "2024-01-01T00:00:00+00:00"
    assert (about["component"]["name"], about["component"]["version"]) == ("web", "1.0")
    assert about["component"]["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert about["component"]["components"] == [
        {
            "type": "file",
            "bom-ref": "file:hotel.raw",
            "name": "hotel.raw",
            "hashes": [{"alg": "SHA-256", "content": DIGEST}],
            "properties": [{"name": "phantom-image:disk-sha256", "value": DIGEST}],
        }
    ]
    (subject,) = (each for each in document["dependencies"] if "dependsOn" in each)
    assert subject["ref"] == about["component"]["bom-ref"] == f"web@{BUILD}"
    assert subject["dependsOn"] == [each["bom-ref"] for each in document["components"]]


def test_the_same_image_has_the_same_document(debian: dict[str, Any]) -> None:
    content = make_content(PACKAGES)
    one, again = (make_sbom(content, debian) for _ in range(2))
    content["appliance"]["summary"] = "Another"
    other = make_sbom(content, debian)
    assert one == again
    assert json.loads(one)["serialNumber"] != json.loads(other)["serialNumber"]


@pytest.mark.parametrize(
    ("database", "package", "url"),
    [
        (
            "usr/lib/sysimage/rpm/rpmdb.sqlite",
            ("bash", "1:5.2.26-3.fc40", "x86_64"),
            "pkg:rpm/fedora/bash@5.2.26-3.fc40?arch=x86_64&distro=fedora-40&epoch=1",
        ),
        (
            "lib/apk/db/installed",
            ("musl", "1.2.5-r0", "x86_64"),
            "pkg:apk/fedora/musl@1.2.5-r0?arch=x86_64&distro=fedora-40",
        ),
        (
            "srv/none",
            ("base", "1", "noarch"),
            "pkg:generic/fedora/base@1?arch=noarch&distro=fedora-40",
        ),
    ],
)
def test_other_managers_list_comes_from_the_manifest(
    tmp_path: Path, database: str, package: tuple[str, str, str], url: str
) -> None:
    files = {"usr/lib/os-release": "ID=fedora\nVERSION_ID=40\n", database: ""}
    inventory = list_software(tmp_path / "root", files)
    told = dict(zip(("name", "version", "architecture"), package, strict=True))
    assert list(parts(make(inventory, [{**told, "sha256": None}]))) == [url]


def test_an_empty_root(tmp_path: Path) -> None:
    inventory = list_software(tmp_path / "root", {"etc/hostname": "nothing\n"})
    assert inventory["distribution"]["id"] == "linux"
    assert make(inventory, [])["components"] == []


@pytest.mark.parametrize(
    ("name", "spdx"),
    [
        ("GPL-2", "GPL-2.0-only"),
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("AGPL-3+", "AGPL-3.0-or-later"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("Expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("ZLIB", "Zlib"),
        ("Artistic", "Artistic-1.0-Perl"),
        ("GPL", None),
        ("GPL-2+ with OpenSSL exception", None),
        ("public-domain", None),
    ],
)
def test_names_of_licences(name: str, spdx: str | None) -> None:
    assert find_spdx_id(name) == spdx


@pytest.mark.parametrize(
    ("names", "expression"),
    [
        (["GPL-1+ or Artistic"], "GPL-1.0-or-later OR Artistic-1.0-Perl"),
        (["GPL-2 and Expat and ISC"], "GPL-2.0-only AND MIT AND ISC"),
        (["GPL-2 and Expat or ISC"], None),
        (["GPL-2 or custom"], None),
        (["GPL-2"], None),
        (["GPL-2 or ISC", "Expat"], None),
    ],
)
def test_expressions_of_licences(names: list[str], expression: str | None) -> None:
    assert find_expression(names) == expression
