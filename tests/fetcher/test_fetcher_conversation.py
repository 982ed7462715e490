"""How the fetcher talks to metadata services, and what it does about their bad answers."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faulty_metadata import DisabledEc2, Ec2Version1, Fault, FaultyServer
from fetcher_guest import (
    ALL_PLATFORMS,
    CURL,
    DASH,
    OPTIONS,
    PROGRAM,
    STATIC,
    TOOL_SETS,
    Guest,
    Platform,
    find,
    make_guest,
)

from pipeline.clouds.ec2.metadata import Ec2Metadata
from pipeline.clouds.nimbus.metadata import NimbusMetadata
from pipeline.machine.metadata import Answer, MetadataServer, Request

SCRIPT = b"#!/bin/sh\necho it ran; exit 7\n"
GAVE_UP = 75
# A launch without a key pair: neither EC2's metadata nor OpenStack's has one.
NO_KEYS = [
    ("GET", "/latest/meta-data/public-keys/", 404),
    ("GET", "/openstack/latest/meta_data.json", 404),
]
SLOW_OR_FINE = (Fault.HANG, Fault.DRIP, Fault.EMPTY)


def has_tokens(platform: Platform) -> bool:
    """Whether the client can send the PUT that a token needs: BusyBox's wget cannot."""
    if platform.client == "wget" and platform.shell[0] == "busybox":
        return not busybox_prefers_its_own_wget()
    return platform.client in ("curl", "wget")


@functools.cache
def busybox_prefers_its_own_wget() -> bool:
    """Whether BusyBox's shell runs its own wget rather than one on the PATH. In Debian, that of
    busybox-static does, and that of busybox does not."""
    command = [str(find("busybox")), "sh", "-c", "wget --help"]
    ended = subprocess.run(command, env={"PATH": "/nonexistent"}, capture_output=True, check=False)
    return b"BusyBox" in ended.stderr


def make_ec2(platform: Platform, user_data: bytes | None = None) -> Ec2Metadata:
    """A service that requires a token wherever the client can get one."""
    kind = Ec2Metadata if has_tokens(platform) else Ec2Version1
    return kind(user_data=user_data)


def get_paths(server: MetadataServer) -> list[tuple[str, str, int | None]]:
    return [(request.method, request.path, request.status) for request in server.requests]


@pytest.mark.parametrize("platform", ALL_PLATFORMS, ids=str)
def test_nimbus_data_is_run(guest: Guest) -> None:
    with MetadataServer(NimbusMetadata(user_data=SCRIPT)) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == 7
    assert "it ran\n" in outcome.output
    assert guest.data.read_bytes() == SCRIPT
    assert get_paths(server) == [("GET", "/latest/user-data", 200)]
    assert "PHANTOM_METADATA_PROTOCOL=nimbus\n" in guest.facts.read_text()


@pytest.mark.parametrize("platform", ALL_PLATFORMS, ids=str)
def test_ec2_data_is_run(guest: Guest, platform: Platform) -> None:
    with MetadataServer(make_ec2(platform, SCRIPT)) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == 7
    assert "it ran\n" in outcome.output
    token_call = [("PUT", "/latest/api/token", 200)] if has_tokens(platform) else []
    assert get_paths(server) == [*token_call, ("GET", "/latest/user-data", 200), *NO_KEYS]
    protocol = "imdsv2" if has_tokens(platform) else "imdsv1"
    assert f"PHANTOM_METADATA_PROTOCOL={protocol}\n" in guest.facts.read_text()
    assert ("using version 1" in outcome.output) == (not has_tokens(platform))


@pytest.mark.parametrize("platform", ALL_PLATFORMS, ids=str)
def test_nimbus_that_is_late_is_asked_again(guest: Guest) -> None:
    faults = [Fault.FORBIDDEN, Fault.FORBIDDEN, Fault.NOT_FOUND, Fault.ERROR, Fault.ERROR_PAGE]
    guest.set_options(MAX_TRIES=6)
    with FaultyServer(NimbusMetadata(user_data=SCRIPT), faults) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == 7
    assert "PHANTOM_USER_DATA_TRIES=6\n" in guest.facts.read_text()
    told = re.findall(
        r"phantom-user-data: try (\d) of 6: (?:HTTP (\d+)|an HTML page)", outcome.output
    )
    assert told == [("1", "403"), ("3", "404"), ("4", "500"), ("5", "")]  # each reason once


def test_nimbus_broken_answers_are_asked_again(guest: Guest) -> None:
    faults = [
        Fault.BAD_REQUEST,
        Fault.NOT_IMPLEMENTED,
        Fault.UNAVAILABLE,
        Fault.REDIRECT,
        Fault.RESET,
        Fault.TRUNCATED,
        Fault.HANG,
        Fault.DRIP,
    ]
    # BusyBox's wget follows the redirect, so one of its tries makes two requests.
    guest.set_options(MAX_TRIES=9)
    started = time.monotonic()
    with FaultyServer(NimbusMetadata(user_data=SCRIPT), faults) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == 7
    # The fetcher cuts off HANG and DRIP, which never end, after one second each.
    assert time.monotonic() - started >= 2
    assert "redirect was followed" not in outcome.output
    assert "cut body" not in outcome.output
    extra = 1 if guest.platform.client == "busybox" else 0
    assert f"PHANTOM_USER_DATA_TRIES={9 - extra}\n" in guest.facts.read_text()


def test_redirects_are_not_followed(guest: Guest) -> None:
    with FaultyServer(NimbusMetadata(user_data=SCRIPT), [Fault.REDIRECT]) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == 7
    assert "HTTP 302" in outcome.output
    assert "redirect was followed" not in outcome.output


@pytest.mark.parametrize("fault", [f for f in Fault if f not in SLOW_OR_FINE])
def test_nimbus_that_never_answers_properly_is_given_up(tmp_path: Path, fault: Fault) -> None:
    guest = make_guest(tmp_path)
    guest.set_options(MAX_TRIES=2)
    with FaultyServer(NimbusMetadata(), itertools.repeat(fault)) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == GAVE_UP
    assert "error: gave up fetching user-data after 2 tries: " in outcome.output
    assert server.url in outcome.output.splitlines()[-1]
    assert len(server.requests) >= 2
    assert not guest.data.exists()
    assert not guest.facts.exists()


def test_server_that_starts_late(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guest.use_nimbus(f"http://127.0.0.1:{port}")
    guest.set_options(MAX_TRIES=60, INTERVAL=0.1)
    server = MetadataServer(NimbusMetadata(user_data=SCRIPT), port=port)
    timer = threading.Timer(0.5, server.__enter__)
    timer.start()
    outcome = guest.run()
    timer.join()
    server.__exit__(None, None, None)
    assert outcome.status == 7
    assert "no whole answer to GET" in outcome.output


def test_gives_up_when_no_metadata_service_listens(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guest.use_nimbus(f"http://127.0.0.1:{port}")
    assert guest.run().status == GAVE_UP


def test_one_newline_of_nimbus_means_none(guest: Guest) -> None:
    with MetadataServer(NimbusMetadata()) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == 0
    assert "there is no user-data: nothing to run" in outcome.output
    assert "PHANTOM_USER_DATA_TRIES=1\n" in guest.facts.read_text()


def test_empty_body_means_none(guest: Guest) -> None:
    with FaultyServer(NimbusMetadata(), [Fault.EMPTY]) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert (outcome.status, len(server.requests)) == (0, 1)
    assert "there is no user-data" in outcome.output


def test_404_of_ec2_means_none(guest: Guest, platform: Platform) -> None:
    with MetadataServer(make_ec2(platform)) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == 0
    assert "there is no user-data" in outcome.output
    assert server.requests[-1].status == 404


@pytest.mark.parametrize("data", [b"echo a", b"echo a\n", b"echo a\n\n", b"echo \xe9\n"])
def test_data_of_nimbus_is_kept_byte_by_byte(guest: Guest, data: bytes) -> None:
    text = data.decode("latin-1").encode()
    with MetadataServer(NimbusMetadata(user_data=text)) as server:
        guest.use_nimbus(server.url)
        assert guest.run().status == 0
    assert guest.data.read_bytes() == data


@pytest.mark.parametrize("data", [b"echo a", b"echo a\n", b"echo \xff\xfe\n\n"])
def test_data_of_ec2_is_kept_byte_by_byte(guest: Guest, platform: Platform, data: bytes) -> None:
    with MetadataServer(make_ec2(platform, data)) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 0
    assert guest.data.read_bytes() == data


@pytest.mark.parametrize("status", [404, 405, 501])
def test_version_1_where_no_tokens_are_served(guest: Guest, status: int) -> None:
    with MetadataServer(Ec2Version1(user_data=SCRIPT, token_status=status)) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 7
    assert "PHANTOM_METADATA_PROTOCOL=imdsv1\n" in guest.facts.read_text()


@pytest.mark.parametrize("client", ["curl", "wget"])
@pytest.mark.parametrize("fault", [Fault.FORBIDDEN, Fault.UNAVAILABLE, Fault.BAD_REQUEST])
def test_version_1_is_not_used_because_the_token_call_failed(
    tmp_path: Path, client: str, fault: Fault
) -> None:
    guest = make_guest(tmp_path, Platform(shell=DASH, client=client))
    with FaultyServer(Ec2Metadata(user_data=SCRIPT), [fault] * 2) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 7
    methods = [method for method, _, _ in get_paths(server)]
    assert methods == ["PUT", "PUT", "PUT", "GET", *(method for method, _, _ in NO_KEYS)]
    assert "PHANTOM_METADATA_PROTOCOL=imdsv2\n" in guest.facts.read_text()


@pytest.mark.parametrize("client", ["curl", "wget"])
def test_stale_token_is_replaced_within_the_try(tmp_path: Path, client: str) -> None:
    guest = make_guest(tmp_path, Platform(shell=DASH, client=client))
    faults = [None, Fault.UNAUTHORIZED]
    with FaultyServer(Ec2Metadata(user_data=SCRIPT), faults) as server:
        guest.use_ec2(server.url)
        assert guest.run().status == 7
    methods = [method for method, _, _ in get_paths(server)]
    assert methods == ["PUT", "GET", "PUT", "GET", *(method for method, _, _ in NO_KEYS)]
    assert "PHANTOM_USER_DATA_TRIES=1\n" in guest.facts.read_text()


def test_disabled_metadata_service_is_named(tmp_path: Path) -> None:
    guest = make_guest(tmp_path)
    with MetadataServer(DisabledEc2()) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == GAVE_UP
    assert "may be disabled" in outcome.output.splitlines()[-1]


def test_busybox_where_tokens_are_required(tmp_path: Path) -> None:
    guest = make_guest(tmp_path, Platform(shell=DASH, client="busybox"))
    with MetadataServer(Ec2Metadata(user_data=SCRIPT)) as server:
        guest.use_ec2(server.url)
        outcome = guest.run()
    assert outcome.status == GAVE_UP
    assert "HTTP 401" in outcome.output
    assert outcome.output.count("using version 1") == 1


def test_proxies_are_not_used(guest: Guest) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        guest.environment[name] = "http://127.0.0.1:9"
    with MetadataServer(NimbusMetadata(user_data=SCRIPT)) as server:
        guest.use_nimbus(server.url)
        assert guest.run().status == 7


def test_configuration_of_the_clients_is_not_used(guest: Guest) -> None:
    (guest.root / ".curlrc").write_text('proxy = "http://127.0.0.1:9"\n')
    (guest.root / ".wgetrc").write_text("use_proxy = on\nhttp_proxy = http://127.0.0.1:9\n")
    guest.environment["HOME"] = str(guest.root)
    with MetadataServer(NimbusMetadata(user_data=SCRIPT)) as server:
        guest.use_nimbus(server.url)
        assert guest.run().status == 7


def test_curl_is_preferred(tmp_path: Path) -> None:
    guest = make_guest(tmp_path)
    wget = shutil.which("wget")
    assert wget is not None
    (guest.path / "wget").symlink_to(wget)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guest.use_nimbus(f"http://127.0.0.1:{port}")
    assert "curl ended with" in guest.run().output


class Flood(NimbusMetadata):
    """A server that sends more than any cloud allows for user-data."""

    def answer(self, request: Request) -> Answer:
        return Answer(status=200, body=b"#!/bin/sh\n" + b"#" * (3 << 20))


def test_endless_body_is_cut_off(guest: Guest) -> None:
    guest.set_options(MAX_TRIES=1)
    with MetadataServer(Flood()) as server:
        guest.use_nimbus(server.url)
        outcome = guest.run()
    assert outcome.status == GAVE_UP
    assert outcome.output.count("\n") == 1
    assert not guest.data.exists()


@pytest.mark.parametrize("written", ["{}/", " {}\n", "\t{}/ \r\n\n", "\n{}"])
def test_url_is_trimmed(guest: Guest, written: str) -> None:
    with MetadataServer(NimbusMetadata(user_data=SCRIPT)) as server:
        guest.use_nimbus(written.format(server.url))
        assert guest.run().status == 7
    assert f"PHANTOM_METADATA_URL={server.url}\n" in guest.facts.read_text()


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("127.0.0.1:8080", "does not hold a URL that begins with http:// or https://"),
        ("ftp://127.0.0.1/", "does not hold a URL that begins with"),
        ("file:///etc/passwd", "does not hold a URL that begins with"),
        ("http://", "does not hold a URL that begins with"),
        ("--output=/etc/passwd", "does not hold"),
        ("http://a http://b", "does not hold one URL"),
        ("http://a/$(reboot)", "does not hold one URL"),
        ("http://a/\x1b[2J", "does not hold one URL"),
        ("<html>", "does not hold one URL"),
    ],
)
def test_wrong_url_is_refused(guest: Guest, written: str, message: str) -> None:
    guest.use_nimbus(written)
    outcome = guest.run()
    assert outcome.status == 78
    assert re.search(
        rf"(?m)^phantom-user-data: error: \S+{re.escape(message)}", outcome.output
    ) or (message in outcome.output.splitlines()[-1])
    assert "\x1b" not in outcome.output


def test_url_file_that_cannot_be_read(guest: Guest) -> None:
    guest.url_file.symlink_to("/nonexistent/file")
    outcome = guest.run()
    assert outcome.status == 78
    assert "is there but cannot be read" in outcome.output


def test_no_client(tmp_path: Path) -> None:
    outcome = make_guest(tmp_path, Platform(shell=DASH, client=None)).run()
    assert outcome.status == 69
    assert "error: neither curl nor wget is in this image" in outcome.output


@pytest.mark.parametrize("platform", TOOL_SETS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"FREQUENCY": "never"},
        {"MAX_TRIES": "0"},
        {"MAX_TRIES": "many"},
        {"TRY_SECONDS": "0"},
        {"TRY_SECONDS": "1.5"},
        {"INTERVAL": "1.5.1"},
        {"INTERVAL": "-1"},
    ],
)
def test_wrong_option_is_refused(guest: Guest, options: dict[str, str]) -> None:
    guest.set_options(**options)
    outcome = guest.run()
    assert outcome.status == 78
    assert f"PHANTOM_USER_DATA_{next(iter(options))}" in outcome.output.replace(
        "and _", "and PHANTOM_USER_DATA_"
    )


def test_shipped_options_are_sixty_tries_a_second_apart() -> None:
    shipped = dict(
        re.findall(r"(?m)^PHANTOM_USER_DATA_(\w+)=(.*)$", (STATIC / OPTIONS).read_text())
    )
    assert shipped == {
        "FREQUENCY": "boot",
        "MAX_TRIES": "60",
        "INTERVAL": "1",
        "TRY_SECONDS": "5",
        "LEAVE_TO_CLOUD_INIT": "no",
    }
    # Without the file, the same values hold.
    built_in = re.findall(r"\$\{PHANTOM_USER_DATA_(\w+):-(.*?)\}", (STATIC / PROGRAM).read_text())
    assert dict(built_in) == shipped


def test_tries_are_an_interval_apart(tmp_path: Path) -> None:
    guest = make_guest(tmp_path)
    guest.set_options(INTERVAL=1, MAX_TRIES=2)
    with FaultyServer(NimbusMetadata(), itertools.repeat(Fault.FORBIDDEN)) as server:
        guest.use_nimbus(server.url)
        assert guest.run().status == GAVE_UP
    first, second = server.requests
    assert second.time - first.time >= 1


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0,
    reason="this host allows no user and network namespaces",
)
@pytest.mark.parametrize("platform", [CURL, Platform(shell=DASH, client="wget")], ids=str)
def test_fixed_address_of_ec2(guest: Guest) -> None:
    driver = Path(__file__).with_name("fixed_address.py")
    ended = subprocess.run(
        [find("unshare"), "-rn", sys.executable, driver, *guest.make_command()],
        env={**guest.make_environment(), "PYTHONPATH": str(driver.parents[2])},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["status"] == 7
    assert seen["requests"] == [
        ["PUT", "/latest/api/token"],
        ["GET", "/latest/user-data"],
        *([method, path] for method, path, _ in NO_KEYS),
    ]
    assert "PHANTOM_METADATA_URL=http://169.254.169.254\n" in guest.facts.read_text()
