"""What `phantom-image doctor` says of sites whose settings weaken their security."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.doctor import find_risks

SITES = """
sites:
  hotel: {{cloud: nimbus, cloud_properties: {folder}/cloud.properties}}
  sierra: {{cloud: nimbus, repository: 'h:1', https: true, self_signed: true}}
  tango: {{cloud: nimbus, repository: 'h:1', https: true, certificate_sha256: '{digest}'}}
  gone: {{cloud: nimbus, cloud_properties: {folder}/gone}}
  mine: {{cloud: nimbus, sandbox: true}}
  amazon: {{cloud: ec2, region: eu-central-1}}
phantoms:
  future: {{url: 'https://phantom.example.org:8445'}}
  old: {{url: 'http://phantom.example.org', api: web}}
  rehearsal: {{url: 'http://127.0.0.1:8445', sandbox: true}}
"""
PROPERTIES = """
vws.repository=h:1
vws.repository.s3https=true
vws.repository.s3selfsigned=true
"""


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


def look(folder: Path) -> dict[str, tuple[bool | None, str]]:
    (folder / "cloud.properties").write_text(PROPERTIES)
    file = folder / "sites.yaml"
    file.write_text(SITES.format(folder=folder, digest="ab" * 32))
    return {found.name: (found.ok, found.found) for found in find_risks(file)}


def test_risks_of_sites(tmp_path: Path) -> None:
    told = look(tmp_path)
    assert {name: ok for name, (ok, _) in told.items()} == {
        "site hotel": None,
        "site sierra": None,
        "site tango": True,
        "site gone": None,
        "site mine": True,
        "site amazon": True,
        "Phantom future": True,
        "Phantom old": None,
        "Phantom rehearsal": True,
    }
    assert told["Phantom old"][1] == (
        "requests go without TLS (http://phantom.example.org): others can read the token and "
        "user-data"
    )
    ignored = f"vws.repository.s3selfsigned in {tmp_path}/cloud.properties does not count"
    assert told["site hotel"][1].startswith(ignored)
    assert "`self_signed: true`" in told["site sierra"][1]
    assert "which cannot be read" in told["site gone"][1]


def test_an_endpoint_of_the_hosts_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://configured:1\n")
    configured = look(tmp_path)["site amazon"]
    assert configured == (
        None,
        "requests and images go to http://configured:1, which the AWS configuration names",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://named:1")
    assert look(tmp_path)["site amazon"][1].endswith("http://named:1, which AWS_ENDPOINT_URL names")


def test_sites_with_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "sites.yaml"
    assert list(find_risks(file)) == []
    file.write_text("sites: {hotel: {clod: nimbus}}\n")
    (found,) = find_risks(file)
    assert found.ok is None and "unknown key 'clod'" in found.found
