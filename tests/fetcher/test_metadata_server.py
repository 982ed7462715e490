"""The metadata server is as strict as the real ones (docs/facts/nimbus.md, docs/facts/ec2.md)."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_metadata import DisabledEc2, Ec2Version1, Fault, FaultyServer

from pipeline.clouds.ec2.metadata import EC2_TOKEN_SECONDS, Ec2Metadata
from pipeline.clouds.nimbus.metadata import NIMBUS_META_DATA, NimbusMetadata
from pipeline.machine.metadata import REPORT_BYTES, MetadataServer

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
    """cloud-init reads every folder of a dated version, with and without a slash at the end."""
    with MetadataServer(Ec2Version1(user_data=b"data")) as server:
        assert ask(f"{server.url}/2021-03-23/user-data") == (200, b"data")
        assert ask(f"{server.url}/2021-03-24/user-data")[0] == 404
        assert ask(f"{server.url}/2021-03-23/dynamic/instance-identity") == (200, b"document")
        assert ask(f"{server.url}/latest/meta-data/network/interfaces/") == (200, b"macs/")
        assert ask(f"{server.url}/latest/meta-data/network/none/")[0] == 404


def test_ec2_lists_the_key_pair_of_the_launch() -> None:
    with MetadataServer(Ec2Version1(public_key="ssh-ed25519 AAAA")) as server:
        base = f"{server.url}/latest/meta-data"
        assert b"public-keys/" in ask(f"{base}/")[1].splitlines()
        for path in ("public-keys", "public-keys/"):
            assert ask(f"{base}/{path}") == (200, b"0=launch")
        assert ask(f"{base}/public-keys/0/") == (200, b"openssh-key")
        assert ask(f"{base}/public-keys/0/openssh-key") == (200, b"ssh-ed25519 AAAA\n")
    with MetadataServer(Ec2Version1()) as server:
        assert ask(f"{server.url}/latest/meta-data/public-keys/")[0] == 404


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
    with MetadataServer(Ec2Version1(token_status=405)) as server:
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 405
        assert ask(f"{server.url}/latest/user-data")[0] == 404
        assert ask(f"{server.url}/latest/meta-data/instance-id")[0] == 200
    with MetadataServer(DisabledEc2()) as server:
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 403


def test_faults_come_first_and_in_order() -> None:
    faults = [Fault.FORBIDDEN, None, Fault.UNAVAILABLE]
    with FaultyServer(NimbusMetadata(), faults) as server:
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
    faults = itertools.repeat(Fault.ERROR)
    with FaultyServer(NimbusMetadata(), faults, takes_reports=True) as server:
        url = f"{server.url}/report"
        assert server.wait_for_report(0.01) is None
        assert ask(url)[0] == 405
        assert ask(url, "POST", body=bytes(REPORT_BYTES)) == (200, b"thank you\n")
        assert ask(url, "POST", body=b"second")[0] == 200
        assert server.wait_for_report(5) == bytes(REPORT_BYTES)


@pytest.mark.parametrize(
    ("length", "status"), [(None, 411), ("-1", 411), ("ten", 411), (str(REPORT_BYTES + 1), 413)]
)
def test_report_is_bounded(length: str | None, status: int) -> None:
    with MetadataServer(NimbusMetadata(), takes_reports=True) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.putrequest("POST", "/report")
        if length is not None:
            connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
        assert server.wait_for_report(0) is None


def test_requests_without_a_token_are_recorded() -> None:
    """A wrong token is not a missing token, and version 1 needs no token."""
    with MetadataServer(Ec2Metadata(user_data=b"data")) as server:
        url = f"{server.url}/latest/user-data"
        _, token = ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})
        for headers in ({TOKEN: token.decode()}, {TOKEN: "wrong"}, {}):
            ask(url, headers=headers)
        told = [(request.status, request.lacked_token) for request in server.requests]
    assert told == [(200, False), (200, False), (401, False), (401, True)]
    with MetadataServer(Ec2Version1()) as server:
        ask(f"{server.url}/latest/user-data")
        assert not any(each.lacked_token for each in server.requests)


def test_requests_without_a_token_are_recorded_when_refused_as_late() -> None:
    """A request without a token counts even if a late service refuses all requests."""
    faults = [Fault.UNAVAILABLE, Fault.RESET, Fault.UNAVAILABLE, Fault.UNAVAILABLE]
    with FaultyServer(Ec2Metadata(user_data=b"data"), faults, takes_reports=True) as server:
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
    for free in (NimbusMetadata(), Ec2Version1(token_status=404), DisabledEc2()):
        with FaultyServer(free, [Fault.UNAVAILABLE]) as server:
            ask(f"{server.url}/latest/user-data")
            ask(f"{server.url}/latest/user-data")
            assert [each.lacked_token for each in server.requests] == [False, False]


def test_a_service_that_is_late_refuses_the_first_requests() -> None:
    """Nimbus does not know the caller yet. EC2 resets, after which cloud-init tries again."""
    with MetadataServer(NimbusMetadata(user_data=b"data"), late=2, takes_reports=True) as server:
        url = f"{server.url}/latest/user-data"
        assert ask(f"{server.url}/report")[0] == 405
        assert [ask(url) for _ in range(3)] == [(403, b""), (403, b""), (200, b"data\n")]
    with MetadataServer(Ec2Metadata(), late=1) as server:
        with pytest.raises(OSError, match="reset"):
            ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 200


def test_a_guest_chooses_other_services() -> None:
    others = {"absent": NimbusMetadata(), "second": NimbusMetadata(user_data=b"second")}
    with MetadataServer(NimbusMetadata(user_data=b"first"), others=others) as server:
        url = f"{server.url}/latest/user-data"
        assert ask(url) == (200, b"first\n")
        assert ask(f"{server.url}/report/absent")[0] == 405
        assert ask(f"{server.url}/report/unknown", "POST", body=b"")[0] == 501
        assert ask(url) == (200, b"first\n")
        assert ask(f"{server.url}/report/absent", "POST", body=b"") == (200, b"")
        assert ask(url) == (200, b"\n")
        assert ask(f"{server.url}/report/second", "POST", body=b"") == (200, b"")
        assert ask(url) == (200, b"second\n")


def test_an_address_that_is_taken() -> None:
    with MetadataServer(NimbusMetadata()) as server:
        second = MetadataServer(NimbusMetadata(), port=server.port)
        with pytest.raises(OSError, match="Address already in use"):
            second.__enter__()


ASK_SOCKET = """
import os, socket, sys
name, user, method, path = sys.argv[1:]
if user:
    os.setgroups([])
    os.setuid(int(user))
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("\\0" + name)
    connection.settimeout(10)
    body = "nonce stolen\\n"
    try:
        connection.sendall(
            f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
            f"Content-Length: {len(body)}\\r\\n\\r\\n{body}".encode()
        )
        while data := connection.recv(65536):
            sys.stdout.write(data.decode())
    except ConnectionError:
        pass
"""


def ask_socket(name: str, method: str, path: str, user: int | None = None) -> str:
    """What a program of a user gets from a private server."""
    words = [name, "" if user is None else str(user), method, path]
    command = [sys.executable, "-c", ASK_SOCKET, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_private_server_answers_its_user_alone() -> None:
    service = NimbusMetadata(user_data=b"password=swordfish")
    with MetadataServer(service, private=True, takes_reports=True) as server:
        name = server.socket_name
        asked = [("GET", "/latest/user-data"), ("GET", "/latest/meta-data/"), ("POST", "/report")]
        for method, path in asked:
            assert ask_socket(name, method, path, user=65534) == ""
        assert server.requests == ()
        assert server.wait_for_report(0) is None
        assert "password=swordfish" in ask_socket(name, "GET", "/latest/user-data")
        assert "thank you" in ask_socket(name, "POST", "/report")
        assert server.wait_for_report(5) == b"nonce stolen\n"


def test_a_private_server_listens_on_no_port() -> None:
    def ports() -> set[str]:
        text = Path("/proc/self/net/tcp").read_text() + Path("/proc/self/net/tcp6").read_text()
        inodes = {line.split()[9] for line in text.splitlines() if " 0A " in line}
        own = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return {link for link in own if link.removeprefix("socket:[").rstrip("]") in inodes}

    with MetadataServer(NimbusMetadata()):
        assert len(ports()) == 1
    with MetadataServer(NimbusMetadata(), private=True) as server:
        assert ports() == set()
        names = [server.socket_name]
    with MetadataServer(NimbusMetadata(), private=True) as server:
        assert server.socket_name not in names


@pytest.mark.parametrize(
    "request_",
    [
        b"GET //[ HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"GET /latest/user-data HTTP/9.\xb2\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"POST /report HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /report HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /report HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: \xb2\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: "
        + b"9" * 5000
        + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\xff: \xff\r\n\r\n",
        b"FROB / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda request: request[:40].decode("latin-1").replace("\r\n", " "),
)
def test_a_request_that_makes_no_sense(capsys: pytest.CaptureFixture[str], request_: bytes) -> None:
    """It gets an answer or none, the server goes on, and nothing is printed."""
    with MetadataServer(Ec2Metadata(user_data=b"data"), takes_reports=True) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while connection.recv(65_536):
                    pass
        assert ask(f"{server.url}/latest/api/token", "PUT", {TTL: "60"})[0] == 200
        assert all(len(each.path) <= 1024 for each in server.requests)
    assert capsys.readouterr().err == ""
