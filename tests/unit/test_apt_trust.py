"""What a mirror has to prove, whatever the host's own apt takes: real apt, signed archives."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from archives import sign, write_archive

from pipeline.errors import MirrorError, UsageError
from pipeline.store import Store
from pipeline.tools import apt
from pipeline.tools.apt_lists import (
    CHECK_VALID_UNTIL,
    Lists,
    check_dates,
    checks_valid_until,
    make_configuration,
)

CARELESS = """
Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
Acquire::AllowDowngradeToInsecureRepositories "true";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Max-FutureTime "100000";
Acquire::gpgv::Options { "--ignore-time-conflict"; };
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ssl/ours.pem";
APT::Get::AllowUnauthenticated "true";
"""


def at(**ago: int) -> str:
    return format_datetime(datetime.now(UTC) - timedelta(**ago)).replace("+0000", "UTC")


def archive_of(
    mirror: Path, keyring: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> apt.Archive:
    monkeypatch.setattr(apt, "_KEYRING", str(keyring))
    # The release's name makes it an archive without updates.
    monkeypatch.setattr(apt.Mirrors, "suites", lambda self: [(self.main, "toy")])
    mirrors = apt.Mirrors(release="toy", main=f"file:{mirror}", security=None)
    return apt.Archive(mirrors, "amd64", Store(store))


def dump(configuration: Path) -> str:
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    told = subprocess.run(
        ["apt-config", "dump"], env=environment, check=True, capture_output=True, text=True
    )
    return told.stdout


def test_the_host_s_apt_does_not_say_what_is_checked(tmp_path: Path) -> None:
    careless, ours = tmp_path / "careless.conf", tmp_path / "ours.conf"
    careless.write_text(CARELESS)
    ours.write_text(make_configuration(tmp_path, "amd64", dump(careless)))
    told = dump(ours)
    for line in (
        'Acquire::AllowInsecureRepositories "false";',
        'Acquire::AllowWeakRepositories "false";',
        'Acquire::AllowDowngradeToInsecureRepositories "false";',
        'Acquire::Check-Valid-Until "true";',
        'Acquire::Check-Date "true";',
        'APT::Get::AllowUnauthenticated "false";',
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::https::CaInfo "/etc/ssl/ours.pem";',
    ):
        assert line in told.splitlines()
    assert "gpgv::Options" not in told
    assert "FutureTime" not in told


def test_an_archive_without_signature(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive", {"main": {"curl": ""}})
    sources = f"deb [arch=amd64] file:{archive} toy main\n"
    lists = Lists(tmp_path / "lists", sources=sources, architecture="amd64", where="toy")
    with pytest.raises(MirrorError) as caught:
        lists.update()
    assert "does not have a Release file" in caught.value.what


def test_an_archive_that_is_signed_by_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write_archive(tmp_path / "archive", {"main": {"curl": ""}})
    other = write_archive(tmp_path / "other", {"main": {}})
    sign(mirror, tmp_path / "key")
    keyring = sign(other, tmp_path / "key2")
    with pytest.raises(MirrorError) as caught:
        archive_of(mirror, keyring, tmp_path / "store", monkeypatch).resolve(["curl"])
    assert "NO_PUBKEY" in caught.value.what


def test_an_index_is_refused_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the answer is known: an archive that nobody updates must not look current."""
    mirror = write_archive(tmp_path / "archive", {"main": {"curl": ""}})
    keyring = sign(mirror, tmp_path / "key", Date=at(days=9), Valid_Until=at(days=-1))
    archive = archive_of(mirror, keyring, tmp_path / "store", monkeypatch)
    assert [package.name for package in archive.resolve(["curl"]).packages][-1] == "curl"
    sign(mirror, tmp_path / "key", Date=at(days=9), Valid_Until=at(days=2))
    refused = "the mirror's index was valid until "
    monkeypatch.setenv(CHECK_VALID_UNTIL, "no")
    assert archive.resolve(["curl"]).requested == ("curl",)
    monkeypatch.delenv(CHECK_VALID_UNTIL)
    resolutions = {*(tmp_path / "store/resolutions").iterdir()}
    for keep in (True, False):
        with pytest.raises(MirrorError) as caught:
            archive.resolve(["curl"], keep=keep)
        assert caught.value.what.startswith(refused)
        assert caught.value.where == f"file:{mirror} (toy)"
        assert caught.value.todo == (
            "use a mirror that is up to date; for an archive that is old on purpose, set "
            "PHANTOM_DEBIAN_CHECK_VALID_UNTIL=no"
        )
    assert {*(tmp_path / "store/resolutions").iterdir()} == resolutions


def test_an_index_of_the_future() -> None:
    with pytest.raises(MirrorError, match="which is in the future"):
        check_dates(f"Origin: Debian\nDate: {at(days=-3)}\n", "toy")
    for fine in ("", "Date: nonsense", "Valid-Until:", f"Date: {at(hours=1)}", "Valid-Until"):
        check_dates(f"Origin: Debian\n{fine}\n", "toy")


def test_the_setting_is_yes_or_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECK_VALID_UNTIL, "")
    assert checks_valid_until()
    monkeypatch.setenv(CHECK_VALID_UNTIL, "false")
    with pytest.raises(UsageError) as caught:
        checks_valid_until()
    assert str(caught.value) == (
        "PHANTOM_DEBIAN_CHECK_VALID_UNTIL is 'false'\n  do: set it to yes or no"
    )


def test_a_damaged_resolution_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write_archive(tmp_path / "archive", {"main": {"curl": ""}})
    keyring = sign(mirror, tmp_path / "key", Date=at(days=1))
    archive = archive_of(mirror, keyring, tmp_path / "store", monkeypatch)
    resolution = archive.resolve(["curl"])
    (stored,) = (tmp_path / "store/resolutions").iterdir()
    whole = stored.read_text()
    for damaged in ("", whole[: len(whole) // 2], "null", "[]", "{}", '{"packages": [1]}', "\0"):
        stored.write_text(damaged)
        assert archive.resolve(["curl"]) == resolution
        assert stored.read_text() == whole
