"""Packages that are files of a definition: what it says of them, and what apt makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import archives
import pytest
from debian_packages import make_package

from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError, StageFailedError, UnknownPackageError
from pipeline.model import Appliance, NoProgress, Package
from pipeline.sources.element_facts import wanted_packages
from pipeline.store import Store
from pipeline.tools import apt, deb

HEAD = 'name: {name}\nversion: "1"\nsummary: s\n'
MAIN = {"curl=2.0": "", "wget=1.0": "", "mytool=9.0": "", "twin=1": ""}
Define = Callable[[str, str], Appliance]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    (folder / "web").mkdir(parents=True)
    return folder


@pytest.fixture
def define(images: Path) -> Define:
    def make(name: str, text: str) -> Appliance:
        folder = images / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "appliance.yaml").write_text(HEAD.format(name=name) + text)
        return load_appliance(name, images)

    return make


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> apt.Mirrors:
    debian = archives.write_archive(tmp_path / "debian", {"main": MAIN})
    monkeypatch.setattr(apt, "_KEYRING", str(archives.sign(debian, tmp_path / "key")))
    monkeypatch.setattr(apt.Mirrors, "suites", lambda self: [(self.main, "toy")])
    return apt.Mirrors(release="toy", main=f"file:{debian}", security=None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(folder: Path, text: str = "x\n", *, version: str = "1.5", depends: str = "curl") -> Path:
    """Puts mytool.deb into a folder."""
    work = folder.parent / "made"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    files = {"/usr/share/mytool": text}
    fields = [f"Depends: {depends}"] if depends else []
    made = make_package(work, "mytool", files=files, version=version, fields=fields)
    return Path(shutil.copy(made, folder / "mytool.deb"))


def resolve(appliance: Appliance, mirrors: apt.Mirrors, store: Store) -> apt.Resolution:
    files = deb.read_packages(appliance.package_files)
    archive = apt.Archive(mirrors, "amd64", store, files)
    return archive.resolve(wanted_packages(appliance, {}, {}))


def test_the_file_and_what_it_depends_on(
    images: Path, define: Define, mirrors: apt.Mirrors, store: Store
) -> None:
    """It is taken although the archive has a newer one, and is recorded by its digest."""
    file = put(images / "web")
    web = define("web", "packages: [wget, ./mytool.deb]\n")
    assert web.packages == ("wget",)
    resolution = resolve(web, mirrors, store)
    found = {package.name: package for package in resolution.packages}
    assert {name: each.version for name, each in found.items()} == {
        "apt": "1.0",
        "base-files": "1.0",
        "curl": "2.0",
        "mytool": "1.5",
        "wget": "1.0",
    }
    assert resolution.requested == ("mytool", "wget")
    assert str(images) not in str(resolution), "nothing of this host is kept"
    (answer,) = (store.folder / "resolutions").iterdir()
    assert resolve(web, mirrors, store) == resolution
    assert [*answer.parent.iterdir()] == [answer], "what was resolved once is known"

    mine = found["mytool"]
    alone = apt.Resolution(
        packages=(mine,), installed_bytes=0, uris=resolution.uris, stanzas=resolution.stanzas
    )
    (local,) = deb.read_packages(web.package_files)
    archive = apt.Archive(mirrors, "amd64", store, [local])
    put(images / "web", "another\n")
    with pytest.raises(StageFailedError, match=r"mytool\.deb was changed after the plan was made"):
        archive.download(alone, NoProgress())
    file.write_bytes((images / "made/mytool_1.5_all.deb").read_bytes())
    (changed,) = deb.read_packages(web.package_files)
    assert changed.sha256 != local.sha256
    again = resolve(web, mirrors, store)
    assert len([*answer.parent.iterdir()]) == 2, "another file is another question"
    (mine,) = (package for package in again.packages if package.name == "mytool")
    assert mine == Package(name="mytool", version="1.5", architecture="all", sha256=changed.sha256)
    alone = apt.Resolution(
        packages=(mine,), installed_bytes=0, uris=again.uris, stanzas=again.stanzas
    )
    stored = apt.Archive(mirrors, "amd64", store, [changed]).download(alone, NoProgress())
    assert (stored / f"{changed.sha256}.deb").read_bytes() == file.read_bytes()
    assert deb.describe([changed]) == [
        {"file": "mytool.deb", "name": "mytool", "version": "1.5", "sha256": changed.sha256}
    ]


def test_what_it_depends_on_is_not_there(
    images: Path, define: Define, mirrors: apt.Mirrors, store: Store
) -> None:
    put(images / "web", depends="absent")
    web = define("web", "packages: [wget, ./mytool.deb]\n")
    with pytest.raises(UnknownPackageError) as caught:
        resolve(web, mirrors, store)
    place = "images/web/appliance.yaml:4:18"
    assert str(caught.value) == (
        f"{place}: mytool ({place}) cannot be installed\n"
        "  | mytool : Depends: absent but it is not installable\n"
        "  do: take it out"
    )


def test_a_file_that_an_archive_has_otherwise(
    images: Path, define: Define, mirrors: apt.Mirrors, store: Store
) -> None:
    """apt cannot tell them apart: the source of the file comes first."""
    file = make_package(
        images.parent, "twin", files={}, architecture="amd64", fields=["Installed-Size: 1"]
    )
    shutil.copy(file, images / "web/twin.deb")
    web = define("web", "packages: [./twin.deb]\n")
    (local,) = deb.read_packages(web.package_files)
    (twin,) = (each for each in resolve(web, mirrors, store).packages if each.name == "twin")
    assert twin.sha256 == local.sha256


def test_a_file_that_is_changed_between_definition_and_plan(images: Path, define: Define) -> None:
    put(images / "web")
    web = define("web", "packages: [./mytool.deb]\n")
    put(images / "web", version="1.6")
    with pytest.raises(DefinitionError) as caught:
        deb.read_packages(web.package_files)
    assert str(caught.value) == (
        "images/web/appliance.yaml:4:12: mytool.deb was changed after the definition was read\n"
        "  do: run the same command again"
    )


def test_mistakes(images: Path, define: Define) -> None:
    web = images / "web"
    put(web)
    shutil.copy(web / "mytool.deb", web / "again.deb")
    (web / "text.deb").write_text("no package\n")
    (web / "cut.deb").write_bytes((web / "mytool.deb").read_bytes()[:100])
    for architecture in ("arm64", "amd64"):
        file = make_package(images.parent, architecture, files={}, architecture=architecture)
        shutil.copy(file, web / f"{architecture}.deb")
    text = """\
packages:
  - ./text.deb
  - ./cut.deb
  - ./none.deb
  - mytool.deb
  - ./mytool.deb
  - ./again.deb
  - mytool
  - ../../made/mytool_1.5_all.deb
  - ./arm64.deb
  - ./amd64.deb
without_packages: [mytool]
"""
    with pytest.raises(DefinitionError) as caught:
        define("web", text)
    first, *others, _ = str(caught.value).splitlines()
    assert first == "9 mistakes in images/web/appliance.yaml"
    (cut,) = (each for each in others if "cut.deb" in each)
    prefix = "  | images/web/appliance.yaml:"
    assert cut.startswith(f"{prefix}6:5: 'packages[1]': './cut.deb' is no sound Debian package: ")
    others.remove(cut)
    assert [line.removeprefix(prefix) for line in others] == [
        "5:5: 'packages[0]': './text.deb' is no Debian package",
        "7:5: 'packages[2]': there is no './none.deb' in images/web; did you mean 'text.deb'?",
        "8:5: 'packages[3]': write './mytool.deb' for a file beside the definition",
        "10:5: 'packages[5]': line 9 asks for the same package, './mytool.deb'",
        "11:5: 'packages[6]': line 9 asks for the same package, './mytool.deb'",
        "12:5: 'packages[7]': '../../made/mytool_1.5_all.deb' leads to made/mytool_1.5_all.deb, "
        "outside images; copy it there",
        "13:5: 'packages[8]': './arm64.deb' is for arm64, and the image is for amd64",
        "15:20: 'without_packages[0]': line 9 asks for it",
    ]


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (
            "Package: a-b\nVersion: 1\nArchitecture: all\n\nPackage: curl\nVersion: 9\n",
            "its control file is malformed",
        ),
        ("Package: a-b\nversion: 1\nVersion: 2\n", "its control file is malformed"),
        ("Package: A_B\nVersion: 1\nArchitecture: all\n", "its control file has no valid Package"),
        ("Package: a-b\nArchitecture: all\n", "its control file has no valid Version"),
        ("Package: a-b\nVersion: 1\nArchitecture: all\nX: \x07\n", "its control file is no text"),
    ],
)
def test_a_control_file_is_not_trusted(tmp_path: Path, control: str, said: str) -> None:
    """It becomes a part of an index, where a second paragraph would be another package."""
    file = make_raw(tmp_path, control)
    with file.open("rb") as opened, pytest.raises(deb.NotPackageError) as caught:
        deb.read_control(opened)
    assert str(caught.value) == f"is no sound Debian package: {said}"


def test_fields_of_an_archive_are_not_the_packages_to_say(tmp_path: Path) -> None:
    text = (
        "Package: a-b\nVersion: 1\nArchitecture: all\nsha256: 00\nFilename: ../x\nDepends: a,\n b\n"
    )
    file = make_raw(tmp_path, text)
    with file.open("rb") as opened:
        fields = deb.read_control(opened)
    assert fields["Depends"] == "a,\n b"
    stanza = deb._stanza(fields, "f" * 64, 2048)  # type: ignore[arg-type]
    assert stanza == (
        "Package: a-b\nVersion: 1\nArchitecture: all\nDepends: a,\n b\nInstalled-Size: 9\n"
        f"Filename: ./{'f' * 64}.deb\nSize: 2048\nSHA256: {'f' * 64}\n"
    )


def make_raw(folder: Path, control: str) -> Path:
    """A package with this control file, whatever dpkg-deb would say of it."""
    (folder / "control").write_text(control)
    (folder / "debian-binary").write_text("2.0\n")
    for name, files in (("control", ["./control"]), ("data", ["--files-from=/dev/null"])):
        subprocess.run(["tar", "-cf", f"{name}.tar", *files], cwd=folder, check=True)
    file = folder / "made.deb"
    members = ["debian-binary", "control.tar", "data.tar"]
    content = b"!<arch>\n"
    for member in members:
        data = (folder / member).read_bytes()
        content += f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        content += data + b"\n" * (len(data) % 2)
    file.write_bytes(content)
    return file


def test_the_child_decides_for_its_parent(images: Path, define: Define) -> None:
    (images / "parent").mkdir()
    parents, ours = put(images / "parent"), put(images / "web", "ours\n")
    parent = define("parent", "packages: [curl, ./mytool.deb]\n")
    assert [each.path for each in parent.package_files] == [parents]
    child = define("web", "extends: parent\npackages: [./mytool.deb]\n")
    assert (child.packages, [each.path for each in child.package_files]) == (("curl",), [ours])
    named = define("web", "extends: parent\npackages: [mytool]\n")
    assert (named.packages, named.package_files) == (("curl", "mytool"), ())
    without = define("web", "extends: parent\nwithout_packages: [mytool]\n")
    assert (without.packages, without.package_files) == (("curl",), ())
