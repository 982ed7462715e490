"""Blocks, their index, the upload journal and the signature of a block, each on its own."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ebs_uploads import block_of
from ec2_server import Ec2Server

from benchmarks.ebs_sink import running_sink
from benchmarks.measure import ROOT
from pipeline.clouds.ec2.blocks import (
    BLOCK,
    ZEROS_DIGEST,
    Digests,
    count_blocks,
    find_blocks,
    merge,
    read_block,
)
from pipeline.clouds.ec2.connection import Signer
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import Journal
from pipeline.model import Sha256
from pipeline.tools.aws import Account, Cut, Refused
from pipeline.tools.aws_session import make_session

DIGEST = hashlib.sha256(b"a block").digest()


# ---- blocks


def test_only_blocks_with_data_are_found(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as opened:
        opened.truncate(100 * BLOCK + 1)
        for at in (0, 3 * BLOCK - 1, 50 * BLOCK, 100 * BLOCK):
            opened.seek(at)
            opened.write(b"x")
    with disk.open("rb") as opened:
        assert list(find_blocks(opened.fileno())) == [0, 2, 50, 100]


def test_a_block_beyond_the_end_is_padded(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * (BLOCK + 3))
    buffer = bytearray(b"y" * BLOCK)
    with disk.open("rb") as opened:
        read_block(opened.fileno(), 1, buffer)
        assert buffer == b"xxx".ljust(BLOCK, b"\0")
        read_block(opened.fileno(), 7, buffer)
        assert buffer == bytes(BLOCK)


def test_numbers_are_merged_in_order_and_once() -> None:
    assert list(merge(iter([1, 4]), iter([0, 1, 9]), iter([]), iter([4, 5]))) == [0, 1, 4, 5, 9]


def test_digests_have_the_linear_checksum_of_ebs() -> None:
    digests = Digests(count_blocks(10 * BLOCK - 1))
    digests.note(9, ZEROS_DIGEST)
    digests.note(2, DIGEST)

    linear = hashlib.sha256(DIGEST + ZEROS_DIGEST).digest()
    assert digests.summary() == (2, base64.b64encode(linear).decode())
    assert list(digests.items()) == [(2, DIGEST), (9, ZEROS_DIGEST)]
    assert digests.get(3) is None and digests.get(10) is None
    with pytest.raises(IndexError):
        digests.note(10, DIGEST)


# ---- the journal


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "site.journal"
    start = {"VolumeSize": 1, "Tags": [{"Key": "Name", "Value": "ä"}]}
    written = Journal(file, content=Sha256("0" * 64), region="eu-west-1", start=start).begin()
    written.note_snapshot("snap-0123")
    written.note_blocks([(5, DIGEST)])
    written.close()
    written.note_blocks([(6, DIGEST)])
    written.note_completing()

    read = Journal.read(file)

    assert read is not None
    assert (read.token, read.start, read.region) == (written.token, start, "eu-west-1")
    assert (read.snapshot_id, read.started_at) == ("snap-0123", written.started_at)
    assert list(read.sent.items()) == [(5, DIGEST), (6, DIGEST)]
    assert read.completing
    written.close()


def test_a_journal_is_good_wherever_it_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "site.journal"
    start = {"VolumeSize": 1}
    journal = Journal(file, content=Sha256("0" * 64), region="eu-west-1", start=start).begin()
    header = file.stat().st_size
    journal.note_snapshot("snap-0123456789")
    journal.note_blocks([(5, DIGEST), (66, DIGEST)])
    journal.note_completing()
    journal.close()
    whole = file.read_bytes()

    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        read = Journal.read(file)
        if length < header - 1:  # the header is whole without its newline, too
            assert read is None
            continue
        assert read is not None
        assert read.snapshot_id in (None, "snap-0123456789")
        assert list(read.sent.items()) in (
            [],
            [(5, DIGEST)],
            [(5, DIGEST), (66, DIGEST)],
        )
        assert not read.completing


# ---- the signature, and the way to the service


@pytest.mark.parametrize("token", [None, "a+session/token=="])
def test_a_block_is_signed_as_botocore_signs_it(token: str | None) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret"}
    if token:
        environ["AWS_SESSION_TOKEN"] = token
    account = Account(make_session(environ=environ), endpoint="https://example:8443")
    seen: list[Any] = []
    client = account.client("ebs", "eu-west-1")

    def stop(request: Any, **_: object) -> None:
        seen.append(request)
        raise KeyError

    client.meta.events.register("before-send.ebs.PutSnapshotBlock", stop)
    checksum = base64.b64encode(DIGEST).decode()
    with pytest.raises(KeyError):
        client.put_snapshot_block(
            SnapshotId="snap-0123",
            BlockIndex=77,
            BlockData=bytes(BLOCK),
            DataLength=BLOCK,
            Checksum=checksum,
            ChecksumAlgorithm="SHA256",
        )
    theirs = {name.lower(): as_text(value) for name, value in seen[0].headers.items()}

    moment = seconds_of(theirs["x-amz-date"])
    signer = Signer(account, "eu-west-1", "example:8443")
    ours = signer.sign("/snapshots/snap-0123/blocks/77", checksum, now=moment)

    signed = {name.lower(): value for name, value in ours.items()}
    assert signed["authorization"] == theirs["authorization"]
    assert signed.get("x-amz-security-token") == token


def as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def seconds_of(date: str) -> float:
    from datetime import UTC, datetime

    return datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    file, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    return file, key


def put_one(account: Account) -> str:
    ebs = Ebs(account, "us-east-1")
    snapshot_id = ebs.start("token", {"VolumeSize": 1})
    block = bytearray(block_of("one"))
    with ebs.connect() as connection:
        connection.put_block(snapshot_id, 3, block, hashlib.sha256(block).digest())
    return snapshot_id


def test_blocks_go_over_tls_to_a_service_that_is_vouched_for(
    certificate: tuple[Path, Path],
) -> None:
    with Ec2Server(tls=certificate) as server:
        session = make_session(environ=dict(server.environ))
        vouched = Account(
            session, endpoint=server.endpoint, verify=str(certificate[0]), isolated=True
        )
        snapshot_id = put_one(vouched)
        assert server.snapshot(snapshot_id).written.keys() == {3}

        strange = Account(session, endpoint=server.endpoint, isolated=True)
        block = bytearray(BLOCK)
        with Ebs(strange, "us-east-1").connect() as connection, pytest.raises(Cut) as caught:
            connection.put_block(snapshot_id, 4, block, hashlib.sha256(block).digest())
        assert "certificate" in caught.value.reason.lower()
        assert not caught.value.connected


def test_blocks_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ec2Server() as server, running_proxy() as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        account = Account(make_session(environ=dict(server.environ)), endpoint=server.endpoint)

        block = bytearray(BLOCK)
        with Ebs(account, "us-east-1").connect() as connection, pytest.raises(Refused) as caught:
            connection.put_block("snap-0123", 4, block, hashlib.sha256(block).digest())
        assert caught.value.status == 418
        assert asked[-1] == f"{server.endpoint}/snapshots/snap-0123/blocks/4"


@contextmanager
def running_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that refuses every request and records its path."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(418, "only a test")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST = refuse

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


@pytest.mark.parametrize("scheme", ["", "http://", "https://"], ids=["bare", "http", "https"])
def test_blocks_go_through_a_tunnel(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    encrypted = certificate if scheme == "https://" else None
    with Ec2Server(tls=certificate) as server, running_tunnel(encrypted) as (address, asked):
        monkeypatch.setenv("https_proxy", f"{scheme}some%40one:secret@{address}")
        account = Account(
            make_session(environ=dict(server.environ)),
            endpoint=server.endpoint,
            verify=str(certificate[0]),
        )
        snapshot_id = put_one(account)

        assert server.snapshot(snapshot_id).written.keys() == {3}
        service = server.endpoint.removeprefix("https://")
        allowed = "Basic " + base64.b64encode(b"some@one:secret").decode()
        assert asked == [(f"CONNECT {service}", allowed)] * 2  # botocore's and our own


@contextmanager
def running_tunnel(
    tls: tuple[Path, Path] | None,
) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A proxy that opens tunnels, and records who asked for which."""
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append((f"CONNECT {self.path}", self.headers["Proxy-Authorization"]))
            host, _, port = self.path.partition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                relay(self.connection, there)
            self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            plain, address = super().get_request()
            if tls is None:
                return plain, address
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            return context.wrap_socket(plain, server_side=True), address

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def relay(here: socket.socket, there: socket.socket) -> None:
    """Carries bytes both ways until one side ends."""
    ways = {here: there, there: here}
    while True:
        for each in select.select([here, there], [], [])[0]:
            data = each.recv(1 << 16)  # a whole TLS record, so that none is left in a buffer
            if not data:
                return
            ways[each].sendall(data)


# ---- memory


def test_memory_depends_on_the_connections_alone(tmp_path: Path) -> None:
    """The promise is 250 MB with 64 connections; this test's disk holds about as much data."""
    disk = tmp_path / "disk.raw"
    blocks = 512
    with disk.open("wb") as opened:
        for _ in range(blocks):
            opened.write(os.urandom(BLOCK))
        opened.truncate(20 << 30)
    with running_sink() as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        argv = [sys.executable, "-m", "benchmarks.uploads", str(disk), url, "20", "64"]
        done = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["blocks"] == blocks
    assert answer["peak_bytes"] < 150 << 20
