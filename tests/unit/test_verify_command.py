"""`phantom-image verify`: a build as somebody signed it, and what has been changed since. The
signatures are also checked by ssh-keygen alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_runs import Done, Project, make_project
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from test_manifest import BUILD, HOTEL, make

from pipeline.attestations.provenance import make_provenance
from pipeline.attestations.signing import plan_signing
from pipeline.build import manifest
from pipeline.build.attest import attest, attest_images
from pipeline.build.schemas import output_schemas
from pipeline.clouds import make_cloud
from pipeline.definitions.signing import Signing
from pipeline.model import (
    BootedImage,
    BootReport,
    Disk,
    Image,
    NoProgress,
    Publication,
    Release,
    Sha256,
    Site,
)
from pipeline.store import Store
from pipeline.workspace import Workspace

DISK = os.urandom(5000) + bytes(200_000)
FILE = gzip.compress(DISK, mtime=0)
DIGEST, DISK_DIGEST = (hashlib.sha256(data).hexdigest() for data in (FILE, DISK))
NAME, WHO = "web.gz", "images@example.org"
INVENTORY: dict[str, Any] = {
    "epoch": 1_704_067_200,
    "distribution": {"id": "debian", "version": "12", "codename": "bookworm"},
    "kind": "deb",
    "packages": [],
    "python": [],
}
SANDBOX = Site(name="nimbus-sandbox", cloud="nimbus", sandbox=True, where="built in")


def make_key(folder: Path, name: str, passphrase: str = "") -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", name]
    subprocess.run(words, cwd=folder, check=True)
    return folder / name


def allow(folder: Path, key: Path, who: str = WHO) -> str:
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (folder / "allowed").write_text(f"{who} {public}\n")
    return "allowed"


@dataclass(frozen=True)
class Built:
    """A project with a build, and the key that has signed it."""

    project: Project
    key: Path
    folder: Path
    content: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "manifest.json"

    def verify(self, *words: str) -> Done:
        shown = f"build/web/{BUILD}"
        return self.project.run("verify", shown, "--allowed-signers", "allowed", *words)

    def refuse(self, status: int, *words: str) -> str:
        """The whole message of what is not verified."""
        done = self.verify(*words)
        assert done.status == status, done.err
        return re.sub("SHA256:[A-Za-z0-9+/]+", "SHA256:KEY", done.error)


def make_image(content: dict[str, Any]) -> None:
    """Makes the manifest's image one of this test's bytes."""
    content["images"][0] |= {
        "file": NAME,
        "compression": "gzip",
        "bytes": len(FILE),
        "sha256": DIGEST,
        "disk_bytes": len(DISK),
        "disk_sha256": DISK_DIGEST,
    }


def write_build(project: Project, key: Path | None, *published: Publication) -> Built:
    folder = project.build / "web"
    content = make(*published)
    make_image(content)
    sign = None if key is None else plan_signing(Signing(key=key, where="sites.yaml:1"))
    workspace = Workspace(
        build=project.build,
        store=Store(project.store),
        progress=lambda _: NoProgress(),
        sign=sign,
        identity=WHO,
    )
    (folder / BUILD).mkdir(parents=True, exist_ok=True)
    (folder / BUILD / NAME).write_bytes(FILE)
    content = attest(folder / BUILD, content, INVENTORY, workspace)
    manifest.write_manifest(folder, content, sign=sign)
    return Built(project, key or Path(), folder / BUILD, content)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


@pytest.fixture
def built(project: Project) -> Built:
    key = make_key(project.folder, "key")
    allow(project.folder, key)
    return write_build(project, key, HOTEL)


def test_a_signed_build(built: Built) -> None:
    done = built.verify()
    assert done.status == 0, done.err
    key = r"with ED25519 key SHA256:\S+"
    assert re.fullmatch(
        rf"manifest\.json +signed by {WHO} {key}\n"
        rf"sbom\.cdx\.json +as the manifest says, signed by {WHO} {key}\n"
        rf"provenance\.intoto\.json +as the manifest says, signed by {WHO} {key}\n"
        rf"web\.gz +the image of site hotel, sha256 {DIGEST}\n"
        rf"build/web/{BUILD}/manifest\.json: verified\n",
        done.out,
    )
    told = built.verify("--json", "--documents").json
    jsonschema.validate(told, output_schemas()["verification"])
    assert (told["manifest"], told["verified"]) == (f"build/web/{BUILD}/manifest.json", True)
    assert [each["of"] for each in told["checks"]] == [
        "manifest.json",
        "sbom.cdx.json",
        "provenance.intoto.json",
    ]


@pytest.mark.parametrize("name", ["manifest.json", "sbom.cdx.json", "provenance.intoto.json"])
def test_signatures_without_us(built: Built, name: str) -> None:
    words = ["-Y", "verify", "-f", "allowed", "-I", WHO, "-n", "phantom-image"]
    with (built.folder / name).open("rb") as document:
        told = subprocess.run(
            ["ssh-keygen", *words, "-s", str(built.folder / f"{name}.sig")],
            cwd=built.project.folder,
            stdin=document,
            capture_output=True,
            text=True,
            check=True,
        )
    assert told.stdout.startswith(f'Good "phantom-image" signature for {WHO} with ED25519 key')


def test_images_by_themselves(built: Built) -> None:
    disk = built.project.folder / "disk.raw"
    disk.write_bytes(DISK)
    assert f"the disk of site hotel's image, sha256 {DISK_DIGEST}\n" in (
        built.verify("--image", "disk.raw").out
    )
    (built.project.folder / "again.gz").write_bytes(gzip.compress(DISK, 1, mtime=7))
    assert f"the disk of site hotel's image, sha256 {DISK_DIGEST}\n" in (
        built.verify("--image", "again.gz").out
    )
    disk.write_bytes(DISK[:-1] + b"1")
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    assert built.refuse(80, "--image", "disk.raw") == (
        "error: disk.raw: it is no image of this build: the manifest has another SHA-256 than its "
        f"{digest}\n  do: fetch it anew; never start it\n"
    )
    assert built.refuse(24, "--image", "none.raw") == (
        "error: there is no image 'none.raw'\n  do: name a file, or leave --image out\n"
    )


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_a_tampered_manifest(built: Built) -> None:
    change(built.file, DIGEST.encode(), b"0" * 64)
    assert built.refuse(80) == (
        f"error: build/web/{BUILD}/manifest.json: its signature is not good: Signature "
        "verification failed: incorrect signature\n"
        "  do: take both anew from where they come from; one of them was changed\n"
    )


def test_a_tampered_document(built: Built) -> None:
    change(built.folder / "sbom.cdx.json", b'"web"', b'"Web"')
    assert built.refuse(80, "--documents") == (
        f"error: build/web/{BUILD}/sbom.cdx.json: it is not what its manifest says: it has another "
        "SHA-256\n"
        "  do: take it from where the manifest comes from, or build the appliance again\n"
    )
    (built.folder / "sbom.cdx.json").unlink()
    change(built.folder / NAME, FILE[-9:], b"_" * 9)
    digest = hashlib.sha256((built.folder / NAME).read_bytes()).hexdigest()
    assert built.refuse(81) == (
        f"error: build/web/{BUILD}: there is no sbom.cdx.json, which the manifest names\n"
        f"  | also: build/web/{BUILD}/{NAME}: it is no image of this build: the manifest has "
        f"another SHA-256 than its {digest}\n"
        "  |   do: fetch it anew; never start it\n"
        "  do: take it from where the manifest comes from, or build the appliance again\n"
    )
    told = built.verify("--json")
    assert told.status == 81
    assert [each["error"] for each in told.json["checks"]] == [
        None,
        "GoneError",
        None,
        "TamperedError",
    ]


def test_an_image_that_is_not_there(built: Built) -> None:
    (built.folder / NAME).unlink()
    assert built.refuse(81) == (
        f"error: build/web/{BUILD}/{NAME}: the image cannot be read: No such file or directory\n"
        "  do: fetch it, or check the documents alone (`verify --documents`)\n"
    )
    assert built.verify("--documents").status == 0


def test_a_signature_by_another_key(built: Built) -> None:
    allow(built.project.folder, make_key(built.project.folder, "other"))
    assert built.refuse(79) == (
        f"error: build/web/{BUILD}/manifest.json: it is signed with ED25519 key SHA256:KEY, and by "
        "no allowed signer (No principal matched)\n"
        "  do: ask its publisher for the key; allowed says whose signatures count\n"
    )


def test_a_manifest_that_is_not_signed(built: Built) -> None:
    (built.folder / "manifest.json.sig").unlink()
    assert built.refuse(78) == (
        f"error: build/web/{BUILD}/manifest.json: it is not signed, and only what an allowed "
        "signer has signed counts\n"
        "  do: take manifest.json.sig from where it comes from, or leave out who may sign, which "
        "then nothing vouches for\n"
    )
    done = built.project.succeed("verify", f"build/web/{BUILD}", "--documents")
    assert done.out.startswith("manifest.json           not signed\n")
    assert built.project.succeed("verify", "web", "--of", BUILD, "--documents").out == done.out


def test_a_broken_manifest_and_a_later_one(built: Built) -> None:
    (built.folder / "manifest.json.sig").unlink()
    told = json.loads(built.file.read_text())
    file = str(built.file.relative_to(built.project.folder))
    for content, why in (
        ({**told, "images": {}}, "images is {}: it must be of the type array"),
        ({**told, "schema": 99}, "the manifest cannot be used: it has schema 99"),
        ([], "the manifest cannot be used: it is not an object"),
    ):
        built.file.write_text(json.dumps(content))
        done = built.project.run("verify", file)
        assert done.status == 70
        assert done.error.startswith(f"error: {file}: {why}")
    for words, why in (
        (["nothing.json"], "there is no file 'nothing.json'"),
        (["web", "--of", "012345"], "there is no build '012345' of 'web'"),
        (["nobody"], "there is no build 'latest' of 'nobody'"),
        (["web", "--of", "../web"], "there is no build '../web' of 'web'"),
    ):
        done = built.project.run("verify", *words)
        assert (done.status, done.error.splitlines()[0]) == (24, f"error: {why}")


# ---- sites


@pytest.fixture
def published(project: Project) -> tuple[Built, Callable[[bytes], Publication]]:
    """A build at a sandbox, whose image can be replaced."""
    cloud = make_cloud(SANDBOX)
    folder = project.build / "sites" / SANDBOX.name
    disk = Disk(layout="mbr", format="raw", compression="gzip")

    def send(data: bytes) -> Publication:
        file = project.folder / "sent"
        file.write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        image = Image(
            site=SANDBOX.name,
            cloud="nimbus",
            file=file,
            disk=disk,
            bytes=len(data),
            sha256=Sha256(hashlib.sha256(data).hexdigest()),
            md5=md5,
            disk_bytes=len(DISK),
            disk_sha256=Sha256(DISK_DIGEST),
        )
        booted = BootedImage(
            image=image, reports=(BootReport(machine="bios", passed=True, facts={}),)
        )
        release = Release(
            appliance="web", version="1.0", build=BUILD, name=NAME, summary="A", folder=folder
        )
        with cloud.open(folder):
            made = cloud.upload(booted, release, NoProgress())
            return cloud.publish(made, release, NoProgress())[0]

    key = make_key(project.folder, "key")
    allow(project.folder, key)
    return write_build(project, key, send(FILE)), send


def test_what_a_site_holds(
    published: tuple[Built, Callable[[bytes], Publication]],
) -> None:
    built, send = published
    done = built.verify("--site", SANDBOX.name)
    assert done.status == 0, done.err
    assert f"every byte read back: sha256 {DIGEST}\n" in done.out
    other = send(FILE + b"more")
    assert built.refuse(80, "--site", SANDBOX.name) == (
        f"error: site {SANDBOX.name}: what it has as {NAME} is not the manifest's image: its "
        f"SHA-256 is {other.sha256} in place of {DIGEST}\n"
        "  do: start no machine of it; retire it, and see who may write there\n"
    )
    with make_cloud(SANDBOX).open(built.project.build / "sites" / SANDBOX.name):
        pass
    cloud = make_cloud(SANDBOX)
    with cloud.open(built.project.build / "sites" / SANDBOX.name):
        cloud.retire(other)
    assert built.refuse(81, "--site", SANDBOX.name) == (
        f"error: site {SANDBOX.name}: the site no longer has {NAME}\n"
        "  do: `phantom-image publish --build` sends the build again\n"
    )
    assert built.refuse(24, "--site", "ec2-sandbox") == (
        f"error: this build is not published at site 'ec2-sandbox'\n  do: it is at {SANDBOX.name}\n"
    )


# ---- documents and their signatures


def test_the_settings_say_whose_signatures_count(built: Built) -> None:
    project, shown = built.project, f"build/web/{BUILD}"
    words = ("verify", shown, "--documents")
    project.write("sites.yaml", f"sites: {{}}\nsigning: {{key: key, identity: {WHO}}}\n")
    assert f"signed by {WHO} with" in project.succeed(*words).out
    project.write("sites.yaml", "sites: {}\nsigning: {allowed_signers: allowed}\n")
    assert f"signed by {WHO} with" in project.succeed(*words).out
    other = make_key(project.folder, "other")
    assert project.run(*words, PHANTOM_SIGNING_KEY=str(other)).status == 0
    project.write("sites.yaml", "sites: {}\n")
    assert project.run(*words, PHANTOM_SIGNING_KEY=str(other)).status == 79
    project.write("sites.yaml", "sites: {}\nsigning: {keys: key}\n")
    assert project.run(*words).status == 10


def test_a_manifest_that_changes_is_signed_again(built: Built) -> None:
    folder, signature = built.folder.parent, built.folder / "manifest.json.sig"
    sign = plan_signing(Signing(key=built.key))
    before = signature.read_bytes(), signature.stat().st_ino
    manifest.write_manifest(folder, built.content, sign=sign)
    assert (signature.read_bytes(), signature.stat().st_ino) == before
    retired = manifest.without(built.content, HOTEL)
    manifest.write_manifest(folder, retired, latest=False, sign=sign)
    assert built.verify().status == 0
    signature.write_bytes(before[0])  # as a command leaves it that is killed between two renames
    assert built.verify().status == 80
    manifest.write_manifest(folder, retired, latest=False, sign=sign)
    assert built.verify().status == 0
    manifest.write_manifest(folder, built.content, latest=False)
    assert not signature.exists()


def test_documents_of_further_images(built: Built) -> None:
    content = json.loads(json.dumps(built.content))
    further = {**content["images"][0], "site": "sierra", "file": "more.gz", "sha256": "1" * 64}
    content["images"].append(further)
    sign = plan_signing(Signing(key=built.key))
    workspace = Workspace(
        build=built.project.build,
        store=Store(built.project.store),
        progress=lambda _: NoProgress(),
        sign=sign,
    )
    content = attest_images(built.folder, content, workspace)
    manifest.write_manifest(built.folder.parent, content, sign=sign)
    assert built.verify("--documents").status == 0
    statement = json.loads((built.folder / "provenance.intoto.json").read_text())
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert subjects["more.gz"] == "1" * 64
    assert statement["predicate"]["runDetails"]["byproducts"][0]["digest"] == {
        "sha256": content["sbom"]["sha256"]
    }
    text = (built.folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["metadata"]["component"]["components"]
    assert {each["name"]: each["hashes"][0]["content"] for each in parts} == {
        NAME: DIGEST,
        "more.gz": "1" * 64,
    }


def test_provenance(built: Built) -> None:
    statement = json.loads((built.folder / "provenance.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": "root file system", "digest": {"sha256": "0" * 64}},
        {"name": NAME, "digest": {"sha256": DIGEST}},
        {"name": f"disk in {NAME}", "digest": {"sha256": DISK_DIGEST}},
    ]
    definition, details = (
        statement["predicate"][name] for name in ("buildDefinition", "runDetails")
    )
    assert definition["buildType"] == "urn:phantom-image:build:1"
    assert definition["externalParameters"]["sites"] == ["hotel"]
    assert details["builder"]["id"] == f"urn:phantom-image:builder:{WHO}"
    assert details["metadata"] == {"invocationId": f"web/{BUILD}"}
    sbom = (built.folder / "sbom.cdx.json").read_bytes()
    assert details["byproducts"] == [
        {"name": "sbom.cdx.json", "digest": {"sha256": hashlib.sha256(sbom).hexdigest()}}
    ]


def test_what_an_image_was_made_of(built: Built) -> None:
    content = json.loads(json.dumps(built.content))
    base = {"location": {"appliance": "base", "build": BUILD}, "sha256": "2" * 64}
    content["inputs"] |= {
        "definition": {"digest": "3" * 64, "commit": "4" * 40, "dirty": True},
        "source": {"base_image": base},
        "elements": [
            {"name": "base", "digest": "5" * 64},
            {"name": "phantom-ssh", "digest": "7" * 64, "commit": "8" * 40, "dirty": False},
        ],
    }
    components: list[dict[str, Any]] = [
        {"purl": "pkg:deb/debian/nano@7", "hashes": [{"alg": "SHA-256", "content": "6" * 64}]},
        {"purl": "pkg:pypi/six@1"},
    ]
    text = make_provenance(content, components, identity=None, commit=None)
    predicate = json.loads(text)["predicate"]
    assert predicate["buildDefinition"]["resolvedDependencies"] == [
        {
            "name": "definition",
            "digest": {"phantomTreeSha256": "3" * 64, "gitCommit": "4" * 40},
            "annotations": {"dirty": True},
        },
        {
            "name": "base image",
            "uri": f"urn:phantom-image:image:base/{BUILD}",
            "digest": {"sha256": "2" * 64},
        },
        {"name": "element base", "digest": {"phantomTreeSha256": "5" * 64}},
        {
            "name": "element phantom-ssh",
            "digest": {"phantomTreeSha256": "7" * 64, "gitCommit": "8" * 40},
            "annotations": {"dirty": False},
        },
        {"uri": "pkg:deb/debian/nano@7", "digest": {"sha256": "6" * 64}},
        {"uri": "pkg:pypi/six@1"},
    ]
    assert predicate["runDetails"]["builder"]["id"] == "urn:phantom-image:builder"


# ---- keys that cannot sign


def test_keys_that_cannot_sign(project: Project) -> None:
    """Found out before anything is built."""
    project.write("images/web/appliance.yaml", 'name: web\nversion: "1"\nsummary: A server\n')
    locked = make_key(project.folder, "locked", "a passphrase")
    (project.folder / "text").write_text("no key\n")
    for key, why, todo in (
        (
            "none",
            "cannot be read: No such file or directory",
            "name a key that is there, or leave `signing: key:` out",
        ),
        (
            "locked",
            "has a passphrase, and no agent holds it",
            f"`ssh-add {locked}` gives it to the agent that SSH_AUTH_SOCK names",
        ),
        (
            "text",
            "cannot sign: it is no key of OpenSSH",
            "name a private key of OpenSSH that only its owner may read, or a public one whose "
            "private half an agent holds",
        ),
    ):
        project.write("sites.yaml", f"sites: {{}}\nsigning: {{key: {key}}}\n")
        done = project.run("image", "web", "--site", SANDBOX.name)
        assert done.status == 10, done.err
        assert done.error == (
            f"error: sites.yaml:2:16: the signing key {project.folder / key} {why}\n  do: {todo}\n"
        )
        assert not project.build.exists() or not list(project.build.glob("web/*"))


def test_a_key_of_an_agent(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by its public half alone."""
    locked = make_key(built.project.folder, "locked", "a passphrase")
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    told = dict(re.findall(r"(SSH_[A-Z_]+)=([^;]+);", agent))
    try:
        asks = built.project.folder / "ask"
        asks.write_text("#!/bin/sh\necho 'a passphrase'\n")
        asks.chmod(0o755)
        more = {"SSH_ASKPASS": str(asks), "SSH_ASKPASS_REQUIRE": "force"}
        add = ["ssh-add", "-q", str(locked)]
        subprocess.run(add, env=os.environ | told | more, check=True)
        monkeypatch.setenv("SSH_AUTH_SOCK", told["SSH_AUTH_SOCK"])
        locked.unlink()
        public = locked.with_suffix(".pub")
        sign = plan_signing(Signing(key=public))
        manifest.write_manifest(built.folder.parent, built.content, sign=sign)
        allow(built.project.folder, locked, "agent@example.org")
        done = built.verify("--documents", "--json").json
        assert done["checks"][0]["said"].startswith("signed by agent@example.org with ED25519")
    finally:
        os.kill(int(told["SSH_AGENT_PID"]), 15)


def test_nobody_signs_where_no_key_is_named() -> None:
    assert plan_signing(replace(Signing(), identity=WHO)) is None
