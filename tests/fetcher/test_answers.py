"""The answers that a boot check gives: the fetcher does with each what the check expects."""

from __future__ import annotations

import hashlib

import pytest
from fetcher_guest import CURL, Guest, Platform

from pipeline.clouds import clouds, metadata_service
from pipeline.clouds.ec2.metadata import EC2_USER_DATA_BYTES, Ec2Metadata
from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.machine.metadata import MetadataServer
from pipeline.stages.userdata_cases import Case, find_faults, make_cases

NONCE = "0123456789abcdef"
EC2 = make_cases(Ec2Metadata, NONCE)
KINDS = [(kind, case) for kind in clouds() for case in make_cases(metadata_service(kind), NONCE)]

# The machines' services require a token, for which BusyBox's wget cannot ask.
curl_only = pytest.mark.parametrize("platform", [CURL], ids=str)


def report_of(guest: Guest, case: Case, status: int) -> str:
    """The line that the guest's report has for a case."""
    kept = hashlib.sha256(guest.data.read_bytes()).hexdigest() if guest.data.exists() else "-"
    ran = guest.root / "ran"
    return f"{case.name} {status} {kept} {ran.read_text() if ran.exists() else '-'}"


@curl_only
@pytest.mark.parametrize(
    ("kind", "case"), KINDS, ids=[f"{kind}-{case.name}" for kind, case in KINDS]
)
def test_the_fetcher_copes_with_it(guest: Guest, platform: Platform, kind: str, case: Case) -> None:
    with MetadataServer(metadata_service(kind)(user_data=case.user_data)) as server:
        guest.use_nimbus(server.url) if kind == "nimbus" else guest.use_ec2(server.url)
        outcome = guest.run()
        assert not any(each.lacked_token for each in server.requests)
    line = report_of(guest, case, outcome.status)
    assert list(find_faults([case], {"case": [line]})) == [], outcome.output


def test_cases_of_each_metadata_service() -> None:
    assert [case.name for case in EC2] == ["absent", "gzip", "binary", "largest"]
    assert [case.name for case in make_cases(NimbusMetadata, NONCE)] == ["absent"]
    sizes = {case.name: len(case.user_data or b"") for case in EC2}
    assert sizes["largest"] == EC2_USER_DATA_BYTES == 16384
    for case in EC2:
        assert case.user_data == make_cases(Ec2Metadata, NONCE)[EC2.index(case)].user_data


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("absent", "absent 75 - -", "is absent, ended with status 75 in place of 0"),
        ("absent", "absent 0 - something ran", "is absent, ran it"),
        ("gzip", "gzip 65 {kept} -", "is gzip, ended with status 65 in place of 0 and did not run"),
        ("gzip", "gzip 0 {other} gzip {nonce}", "is gzip, kept something else"),
        ("binary", "binary 0 {kept} -", "is binary, ended with status 0 in place of 65"),
        ("binary", "binary 65 - -", "is binary, kept something else"),
        ("largest", "largest 0 {other} -", "is largest, did not run all of it and kept something"),
    ],
)
def test_a_fetcher_that_does_not_cope(name: str, line: str, fault: str) -> None:
    (case,) = (each for each in EC2 if each.name == name)
    digest = hashlib.sha256(case.kept or b"").hexdigest()
    told = line.format(kept=digest, other="0" * 64, nonce=NONCE)
    (found,) = find_faults([case], {"case": [told]})
    assert found.startswith(f"its user-data fetcher, given user-data that {fault}")


def test_a_case_that_was_not_tried() -> None:
    kept = {case.name: hashlib.sha256(case.kept or b"").hexdigest() for case in EC2}
    lines = [f"{case.name} {case.status} {kept[case.name]} {case.ran or '-'}" for case in EC2]
    assert list(find_faults(EC2, {"case": lines})) == []
    assert list(find_faults(EC2, {"case": lines[:-1]})) == [
        "its user-data fetcher was not tried with user-data that is largest"
    ]
