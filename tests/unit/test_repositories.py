"""Archives that a definition names, beside a toy Debian: real apt, real signatures, over HTTP."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import archives
import pytest
from debian_packages import make_package, serving_at, sign

from pipeline.customizations import describe, public_keys
from pipeline.customizations.repositories import Repository, find_repositories
from pipeline.definitions.appliance import load_appliance
from pipeline.errors import DefinitionError, MirrorError
from pipeline.model import NoProgress
from pipeline.store import Store
from pipeline.tools import apt, apt_complaints

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


def gpg(home: Path, *words: str) -> bytes:
    """What gpg prints of the keys in a folder."""
    argv = ["gpg", "--homedir", str(home), "--batch", "--passphrase", "", *words]
    try:
        return subprocess.run(argv, check=True, capture_output=True).stdout
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


def refuse(toy: Toy, **changes: object) -> str:
    """The error for an archive that cannot be used, without its place."""
    with pytest.raises(MirrorError) as caught:
        toy.versions(**changes)
    assert caught.value.exit_code == 13
    place, said = str(caught.value).split(": ", 1)
    assert place == PLACE
    return said.replace(toy.url, "URL")


def test_another_key_than_the_one_that_signed_it(toy: Toy) -> None:
    other = sign(toy.own, toy.folder / "key2")
    said = refuse(toy)
    name = public_keys.fingerprints(other)[0][-16:]
    assert said == (
        f"the repository 'own' is signed by the key {name}, which `key` does not hold\n"
        "  do: see that `key` is the file that the archive's maintainers publish"
    )
    assert toy.versions(key=other)["greeting"] == "1"


def test_a_binary_key_serves_as_well(toy: Toy) -> None:
    binary = gpg(toy.folder / "key", "--export")
    assert public_keys.decode(toy.key.encode()) == toy.key
    key = public_keys.decode(binary)
    assert public_keys.fingerprints(key) == public_keys.fingerprints(toy.key)
    assert toy.versions(key=key)["greeting"] == "1"
    with pytest.raises(UnicodeDecodeError):
        public_keys.decode(b"\xff\xff\xff")


def test_fingerprints_are_those_of_gpg(toy: Toy) -> None:
    told = gpg(toy.folder / "key", "--with-colons", "--fingerprint").decode()
    assert f"fpr:::::::::{public_keys.fingerprints(toy.key)[0]}:" in told


def test_a_fingerprint_is_that_of_the_only_key(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images/web"
    folder.mkdir(parents=True)
    mine = public_keys.fingerprints(toy.key)[0]
    sign(toy.own, tmp_path / "key2")
    second = gpg(tmp_path / "key2", "--export")
    other = public_keys.fingerprints(public_keys.decode(second))[0]
    (folder / "one.asc").write_text(toy.key)
    (folder / "both.gpg").write_bytes(gpg(tmp_path / "key", "--export") + second)

    def load(key: str, fingerprint: str) -> str:
        entry = f"name: own, url: {toy.url!r}, suite: ./, key: {key}, fingerprint: {fingerprint!r}"
        text = f'name: web\nversion: "1"\nsummary: s\nrepositories: [{{{entry}}}]\n'
        (folder / "appliance.yaml").write_text(text)
        try:
            web = load_appliance("web", tmp_path / "images")
        except DefinitionError as error:
            return str(error).splitlines()[0].partition(": ")[2]
        (found,) = find_repositories(web.customizations)
        (told,) = describe(web.customizations)["repositories"]
        content = (folder / key).read_bytes()
        assert told["key"] == {"file": key, "sha256": hashlib.sha256(content).hexdigest()}
        return found.key

    spaced = " ".join(mine[at : at + 4] for at in range(0, 40, 4)).lower()
    assert load("one.asc", mine) == load("one.asc", spaced) == toy.key
    at = "'repositories[0].fingerprint'"
    assert load("one.asc", other) == (
        f"{at}: 'one.asc' holds a key with other fingerprints: {mine}"
    )
    assert (
        load("both.gpg", mine) == f"{at}: 'both.gpg' holds 2 keys; export the one with this alone"
    )
    assert load("both.gpg", "0" * 64) == (
        f"{at}: 'both.gpg' holds 2 keys with other fingerprints: {mine}, {other}"
    )
    assert load("one.asc", mine[:16]) == (
        f"{at} must be a whole fingerprint: 40 or 64 hexadecimal digits, not {mine[:16]!r}"
    )


def test_a_secret_key_is_refused(toy: Toy) -> None:
    secret = gpg(toy.folder / "key", "--export-secret-keys")
    with pytest.raises(public_keys.NotPublicKeyError, match="holds a secret key"):
        public_keys.fingerprints(public_keys.decode(secret))


def test_an_index_whose_time_is_over(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    begin, end = (
        format_datetime(now - timedelta(days=days)).replace("+0000", "UTC") for days in (9, 2)
    )
    sign(toy.own, toy.folder / "key", Date=begin, Valid_Until=end)
    until = f"{now - timedelta(days=2):%Y-%m-%d %H:%M}"
    assert refuse(toy) == (
        f"the index of the repository 'own' was valid until {until} UTC\n"
        "  do: use a mirror that is up to date; for an archive that is old on purpose, set "
        "PHANTOM_DEBIAN_CHECK_VALID_UNTIL=no"
    )
    monkeypatch.setenv("PHANTOM_DEBIAN_CHECK_VALID_UNTIL", "no")
    assert toy.versions()["greeting"] == "1"


def test_an_index_that_was_changed_or_is_not_signed(toy: Toy) -> None:
    index = toy.own / "InRelease"
    signed = index.read_text()
    index.write_text(signed.replace("Origin: own", "Origin: owx"))
    assert refuse(toy) == (
        "the repository 'own' has an index that is not what was signed\n"
        "  do: try again later; if it stays so, somebody changes it on its way"
    )
    index.write_text(signed.split("\n\n", 1)[1].split("-----BEGIN PGP SIG")[0])
    assert refuse(toy) == (
        "the repository 'own' has an index that nobody signed\n"
        "  do: only a signed archive can be used; ask its maintainers, or name its packages as "
        "files"
    )


NO_INDEX = (
    "the repository 'own' has no index at {}\n"
    "  do: see that its url, suite and components are right, and that the archive has an InRelease"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"url": "http://127.0.0.1:9"},
            "the repository 'own' cannot be reached: Could not connect to 127.0.0.1:9 (127.0.0.1). "
            "- connect (111: Connection refused)\n"
            "  do: see that its url is right, and that it answers; run the same command again",
        ),
        (
            {"suite": "none", "components": ("main",)},
            NO_INDEX.format("URL/dists/none/InRelease"),
        ),
    ],
)
def test_an_archive_that_is_not_there(toy: Toy, changes: dict[str, object], said: str) -> None:
    assert refuse(toy, **changes) == said


def test_a_component_that_an_archive_does_not_have(toy: Toy) -> None:
    """apt only warns of it."""
    suite = archives.write_archive(toy.own / "suites", {"main": {"greeting=2": ""}})
    keyring = archives.sign(suite, toy.folder / "key3")
    changes = {
        "url": f"{toy.url}/suites",
        "suite": "toy",
        "key": public_keys.decode(keyring.read_bytes()),
    }
    assert toy.versions(**changes, components=("main",))["greeting"] == "2"
    assert refuse(toy, **changes, components=("main", "extra")) == (
        "the repository 'own' has no component extra; it has main\n  do: correct `components`"
    )


# What apt says where this host cannot make it say so, as base images of other releases do.
SAID = [
    (
        "W: Failed to fetch URL/./InRelease  Sub-process /usr/bin/sqv returned an error code (1), "
        "error message is: Missing key 0123456789ABCDEF0123456789ABCDEF01234567, which is needed "
        "to verify signature.",
        "is signed by the key 0123456789ABCDEF0123456789ABCDEF01234567, which `key` does not hold",
    ),
    (
        "E: Release file for URL/./InRelease is expired (invalid since 2d 0h). Updates for this "
        "repository will not be applied.",
        "has an index whose time is over",
    ),
    (
        "W: GPG error: URL ./ InRelease: The following signatures were invalid: EXPKEYSIG "
        "0123456789ABCDEF own@example.org",
        "is signed by the key 0123456789ABCDEF, which has expired or was revoked",
    ),
    (
        "W: Skipping acquire of configured file 'extra/binary-amd64/Packages' as repository 'URL "
        "toy InRelease' doesn't have the component 'extra' (component misspelt in sources.list?)",
        "has no component extra",
    ),
    ("W: URL/./InRelease: Policy will reject signature within a year", None),
    ("W: Failed to fetch URL2/./InRelease  404  Not Found", None),
]


@pytest.mark.parametrize(("line", "meaning"), SAID)
def test_what_apt_complains_about(line: str, meaning: str | None) -> None:
    repository = Repository(
        name="own", url="http://h/debian", suite="./", components=(), key="", where=PLACE
    )
    error = apt_complaints.explain(line.replace("URL", repository.url), [repository])
    found = None if error is None else error.what
    assert found == (None if meaning is None else f"the repository 'own' {meaning}")


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
