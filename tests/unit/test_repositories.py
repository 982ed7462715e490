"""Archives that a definition names, beside a toy Debian: real apt, real signatures, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import archives
import pytest
from debian_packages import make_package, serving_at, sign

from pipeline.customizations.repositories import Repository, find_repositories
from pipeline.errors import MirrorError
from pipeline.model import NoProgress
from pipeline.store import Store
from pipeline.tools import apt

PLACE = "images/web/appliance.yaml:5:3"


class Toy:
    """A toy Debian, and an archive of somebody else."""

    def __init__(self, folder: Path, url: str, key: str, keyring: Path) -> None:
        self.folder = folder
        self.url = url
        self.key = key
        self.keyring = keyring

    @property
    def own(self) -> Path:
        return self.folder / "own"

    def archive(self, **changes: object) -> apt.Archive:
        values = {
            "name": "own",
            "url": self.url,
            "suite": "./",
            "components": (),
            "key": self.key,
            "where": PLACE,
        }
        repository = Repository(**{**values, **changes})  # type: ignore[arg-type]
        main = f"file:{self.folder / 'debian'}"
        mirrors = apt.Mirrors(release="toy", main=main, security=None, repositories=(repository,))
        return apt.Archive(mirrors, "amd64", Store(self.folder / "store"))

    def versions(self, **changes: object) -> dict[str, str]:
        resolution = self.archive(**changes).resolve(["curl", "greeting"])
        return {package.name: package.version for package in resolution.packages}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    debian = archives.write_archive(tmp_path / "debian", {"main": {"curl=2.0": ""}})
    keyring = archives.sign(debian, tmp_path / "debian-key")
    monkeypatch.setattr(apt, "_KEYRING", str(keyring))
    monkeypatch.setattr(apt.Mirrors, "suites", lambda self: [(self.main, "toy")])
    own = tmp_path / "own"
    own.mkdir()
    make_package(
        own, "greeting", files={"/usr/share/greeting": "hello\n"}, fields=["Depends: curl"]
    )
    make_package(own, "curl", files={"/usr/share/curl": "newer\n"}, version="3.0")
    key = sign(own, tmp_path / "key")
    with serving_at(own) as url:
        yield Toy(tmp_path, url, key, keyring)


def test_its_packages_are_resolved_checked_and_downloaded(toy: Toy) -> None:
    """The newest version is taken, as apt does; and what was resolved once is known."""
    archive = toy.archive()
    resolution = archive.resolve(["greeting"])
    found = {package.name: package for package in resolution.packages}
    assert (found["greeting"].version, found["curl"].version) == ("1", "3.0")
    assert resolution.uris[found["greeting"].sha256].startswith(f"{toy.url}/")
    ours = tuple(found[name] for name in ("greeting", "curl"))
    alone = apt.Resolution(
        packages=ours, installed_bytes=0, uris=resolution.uris, stanzas=resolution.stanzas
    )
    folder = archive.download(alone, NoProgress())
    file = folder / f"{found['greeting'].sha256}.deb"
    assert file.read_bytes() == (toy.own / "greeting_1_all.deb").read_bytes()
    (answer,) = (toy.folder / "store/resolutions").iterdir()
    assert toy.archive().resolve(["greeting"]) == resolution
    toy.archive(pin=600).resolve(["greeting"])
    assert len([*answer.parent.iterdir()]) == 2, "a pin is another question"


def test_a_pin_decides_which_archive_comes_first(toy: Toy) -> None:
    assert toy.versions(pin=100)["curl"] == "2.0"
    assert toy.versions(pin=600)["curl"] == "3.0"


def test_another_key_than_the_one_that_signed_it(toy: Toy) -> None:
    other = sign(toy.own, toy.folder / "key2")
    with pytest.raises(MirrorError) as caught:
        toy.versions()
    assert str(caught.value).startswith(f"{PLACE}: the repository 'own' cannot be used: ")
    assert "NO_PUBKEY" in caught.value.what
    assert caught.value.todo == (
        "see that its url, suite and components are right, that it answers, and that `key` is the "
        "key that signs it"
    )
    assert toy.versions(key=other)["greeting"] == "1"


def test_an_index_whose_time_is_over(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    begin, end = (
        format_datetime(now - timedelta(days=days)).replace("+0000", "UTC") for days in (9, 2)
    )
    sign(toy.own, toy.folder / "key", Date=begin, Valid_Until=end)
    with pytest.raises(MirrorError) as caught:
        toy.versions()
    assert caught.value.where == PLACE
    assert caught.value.what.startswith("the mirror's index was valid until ")
    monkeypatch.setenv("PHANTOM_DEBIAN_CHECK_VALID_UNTIL", "no")
    assert toy.versions()["greeting"] == "1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "http://127.0.0.1:9"}, "Could not connect"),
        ({"suite": "none", "components": ("main",)}, "404"),
    ],
)
def test_an_archive_that_is_not_there(toy: Toy, changes: dict[str, object], said: str) -> None:
    with pytest.raises(MirrorError) as caught:
        toy.versions(**changes)
    assert str(caught.value).startswith(f"{PLACE}: the repository 'own' cannot be used: ")
    assert said in caught.value.what


def test_a_package_that_was_changed_after_it_was_signed(toy: Toy) -> None:
    archive = toy.archive()
    resolution = archive.resolve(["greeting"])
    with (toy.own / "greeting_1_all.deb").open("ab") as package:
        package.write(b"more")
    (greeting,) = (each for each in resolution.packages if each.name == "greeting")
    alone = apt.Resolution(
        packages=(greeting,), installed_bytes=0, uris=resolution.uris, stanzas=resolution.stanzas
    )
    with pytest.raises(MirrorError, match="the repository 'own' cannot be used: "):
        archive.download(alone, NoProgress())


def test_where_its_index_is() -> None:
    entry = {"name": "x", "url": "https://h/debian/", "suite": "stable", "key": _Key()}
    (found,) = find_repositories({"repositories": [{**entry, "components": ["a", "b"]}]})
    assert found.index == "https://h/debian/dists/stable/InRelease"
    assert found.line("arch=amd64") == "deb [arch=amd64] https://h/debian stable a b\n"
    (flat,) = find_repositories({"repositories": [{**entry, "suite": "deb/", "pin": 9}]})
    assert flat.index == "https://h/debian/deb/InRelease"
    assert flat.preferences() == "Package: *\nPin: origin h\nPin-Priority: 9\n\n"


class _Key:
    text = ""
