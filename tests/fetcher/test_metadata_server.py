"""The metadata server is as strict as the facts on the real ones."""

from __future__ import annotations

import http.client
import itertools
import time
import urllib.error
import urllib.request

import pytest

from pipeline.metadata_server import (
    EC2_TOKEN_SECONDS,
    NIMBUS_META_DATA,
    REPORT_BYTES,
    Ec2Metadata,
    Fault,
    MetadataServer,
    NimbusMetadata,
)

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


def ask(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method, headers=headers or {}, data=body)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_nimbus_adds_a_newline_and_loses_what_is_not_latin_1() -> None:
    with MetadataServer(NimbusMetadata(user_data="a é €\n".encode())) as server:
        assert ask(f"{server.url}/latest/user-data") == (200, b"a \xe9 ?\n\n")


def test_nimbus_has_one_newline_for_no_data() -> None:
    with MetadataServer(NimbusMetadata()) as server:
        assert ask(f"{server.url}/latest/user-data") == (200, b"\n")


def test_nimbus_paths() -> None:
    with MetadataServer(NimbusMetadata()) as server:
        base = f"{server.url}/latest/meta-data"
        assert ask(f"{base}/") == (200, "\n".join(sorted(NIMBUS_META_DATA)).encode())
        assert ask(f"{base}/local-ipv4") == (200, b"10.0.0.2")
        for url in (base, f"{base}/instance-id", server.url + "/", f"{server.url}/report"):
            status, page = ask(url)
            assert status == 404
            assert page.startswith(b"<html>")
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] in (404, 501)


def test_ec2_lists_folders_and_older_versions() -> None:
    """cloud-init walks through all of a dated version, with and without slashes."""
    with MetadataServer(Ec2Metadata(user_data=b"data", tokens_required=False)) as server:
        assert ask(f"{server.url}/2021-03-23/user-data") == (200, b"data")
        assert ask(f"{server.url}/2021-03-24/user-data")[0] == 404
        assert ask(f"{server.url}/2021-03-23/dynamic/instance-identity") == (200, b"document")
        assert ask(f"{server.url}/latest/meta-data/network/interfaces/") == (200, b"macs/")
        assert ask(f"{server.url}/latest/meta-data/network/none/")[0] == 404


def test_limits_of_the_clouds() -> None:
    NimbusMetadata(user_data="é".encode() * 30_720)
    with pytest.raises(ValueError, match="30720 characters"):
        NimbusMetadata(user_data=b"a" * 30_721)
    Ec2Metadata(user_data=bytes(16_384))
    with pytest.raises(ValueError, match="16384 bytes"):
        Ec2Metadata(user_data=bytes(16_385))


@pytest.mark.parametrize("ttl", [None, "", "0", "-1", "1.5", "²", str(EC2_TOKEN_SECONDS + 1)])
def test_ec2_token_needs_its_life_time(ttl: str | None) -> None:
    with MetadataServer(Ec2Metadata()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("PUT", "/latest/api/token", headers={} if ttl is None else {TTL: ttl})
        assert connection.getresponse().status == 400
        connection.close()


def test_ec2_data_needs_a_token_that_lives() -> None:
    with MetadataServer(Ec2Metadata(user_data=b"\0\xff")) as server:
        url = f"{server.url}/latest/user-data"
        status, token = ask(f"{server.url}/latest/api/token", "PUT", {TTL: "1"})
        assert status == 200
        assert ask(url, headers={TOKEN: token.decode()}) == (200, b"\0\xff")
        assert ask(url)[0] == 401
        assert ask(url, headers={TOKEN: "wrong"})[0] == 401
        time.sleep(1.1)
        assert ask(url, headers={TOKEN: token.decode()})[0] == 401


def test_ec2_version_1() -> None:
    with MetadataServer(Ec2Metadata(token_status=405)) as server:
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 405
        assert ask(f"{server.url}/latest/user-data")[0] == 404
        assert ask(f"{server.url}/latest/meta-data/instance-id")[0] == 200
    with MetadataServer(Ec2Metadata(enabled=False)) as server:
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 403


def test_faults_come_first_and_in_order() -> None:
    faults = [Fault.FORBIDDEN, None, Fault.UNAVAILABLE]
    with MetadataServer(NimbusMetadata(faults=faults)) as server:
        url = f"{server.url}/latest/user-data"
        assert [ask(url)[0] for _ in range(4)] == [403, 200, 503, 200]
        assert [request.status for request in server.requests] == [403, 200, 503, 200]
    times = [request.time for request in server.requests]
    assert times == sorted(times)


def test_reports_are_taken_only_where_they_are_wanted() -> None:
    with MetadataServer(NimbusMetadata()) as server:
        assert ask(f"{server.url}/report", "POST", body=b"report")[0] == 501
        assert server.wait_for_report(0) is None


def test_report() -> None:
    reports: list[bytes] = []
    faulty = NimbusMetadata(faults=itertools.repeat(Fault.ERROR))
    with MetadataServer(faulty, on_report=reports.append, report_path="/boot/1") as server:
        url = f"{server.url}/boot/1"
        assert server.wait_for_report(0.01) is None
        assert ask(url)[0] == 405
        assert ask(url, "POST", body=bytes(REPORT_BYTES)) == (200, b"thank you\n")
        assert ask(url, "POST", body=b"second")[0] == 200
        assert server.wait_for_report(5) == bytes(REPORT_BYTES)
    assert reports == [bytes(REPORT_BYTES), b"second"]


@pytest.mark.parametrize(
    ("length", "status"), [(None, 411), ("-1", 411), ("ten", 411), (str(REPORT_BYTES + 1), 413)]
)
def test_report_is_bounded(length: str | None, status: int) -> None:
    with MetadataServer(NimbusMetadata(), on_report=lambda report: None) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.putrequest("POST", "/report")
        if length is not None:
            connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
        assert server.wait_for_report(0) is None


def test_what_lacked_a_token_is_told() -> None:
    """A wrong token is no missing one, and version 1 needs none."""
    with MetadataServer(Ec2Metadata(user_data=b"data")) as server:
        url = f"{server.url}/latest/user-data"
        _, token = ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})
        for headers in ({TOKEN: token.decode()}, {TOKEN: "wrong"}, {}):
            ask(url, headers=headers)
        told = [(each.status, each.token, each.lacked_token) for each in server.requests]
    assert told == [
        (200, False, False),
        (200, True, False),
        (401, True, False),
        (401, False, True),
    ]
    with MetadataServer(Ec2Metadata(tokens_required=False)) as server:
        ask(f"{server.url}/latest/user-data")
        assert not any(each.lacked_token for each in server.requests)


def test_what_lacked_a_token_is_told_whatever_it_got() -> None:
    """A service that is late refuses everybody, but who has no token will not get one later."""
    faults = [Fault.UNAVAILABLE, Fault.RESET, Fault.UNAVAILABLE, Fault.UNAVAILABLE]
    service = Ec2Metadata(user_data=b"data", faults=faults)
    with MetadataServer(service, on_report=lambda report: None) as server:
        url = f"{server.url}/latest/user-data"
        assert ask(url)[0] == 503
        with pytest.raises(OSError, match="reset"):
            ask(url)
        assert ask(url, headers={TOKEN: "any"})[0] == 503
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 503
        assert ask(f"{server.url}/latest/api/token")[0] == 405
        assert ask(f"{server.url}/report")[0] == 405
        lacked = [(each.status, each.lacked_token) for each in server.requests]
    assert lacked == [
        (503, True),
        (None, True),
        (503, False),
        (503, False),
        (405, False),
        (405, False),
    ]
    for free in (
        NimbusMetadata(faults=[Fault.UNAVAILABLE]),
        Ec2Metadata(faults=[Fault.UNAVAILABLE], token_status=404),
        Ec2Metadata(faults=[Fault.UNAVAILABLE], enabled=False),
    ):
        with MetadataServer(free) as server:
            ask(f"{server.url}/latest/user-data")
            ask(f"{server.url}/latest/user-data")
            assert [each.lacked_token for each in server.requests] == [False, False]


def test_a_guest_chooses_other_services() -> None:
    late = NimbusMetadata(user_data=b"late", faults=[Fault.UNAVAILABLE])
    others = {"absent": NimbusMetadata(), "late": late}
    with MetadataServer(NimbusMetadata(user_data=b"first"), others=others) as server:
        url = f"{server.url}/latest/user-data"
        assert ask(url) == (200, b"first\n")
        assert ask(f"{server.url}/report/absent")[0] == 405
        assert ask(f"{server.url}/report/unknown", "POST", body=b"")[0] == 501
        assert ask(url) == (200, b"first\n")
        assert ask(f"{server.url}/report/absent", "POST", body=b"") == (200, b"")
        assert ask(url) == (200, b"\n")
        assert ask(f"{server.url}/report/late", "POST", body=b"") == (200, b"")
        assert [ask(url)[0], ask(url)] == [503, (200, b"late\n")]


def test_server_must_be_entered() -> None:
    with pytest.raises(RuntimeError, match="was not started"):
        _ = MetadataServer(NimbusMetadata()).url
