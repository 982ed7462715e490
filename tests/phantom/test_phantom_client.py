"""phantom-ctl, as an appliance runs it, against the local Phantom and what may answer in its
place."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from phantom_kit import USER, Local, local_phantom

ELEMENT = Path(__file__).parents[2] / "elements/phantom-client"
MODULES = ELEMENT / "static/usr/lib/python3/dist-packages"
LAUNCH = {
    "LaunchConfigurationName": "web@hotel",
    "ImageId": "web-1.0-0123456789ab.gz",
    "InstanceType": "m1.small",
    "UserData": '#!/bin/sh\necho "it\'s" \\ %s\n',
}


@pytest.fixture
def phantom(tmp_path: Path) -> Iterator[Local]:
    (tmp_path / "phantom").mkdir()
    with local_phantom(tmp_path / "phantom") as local:
        yield local


def ctl(
    settings: Path, *words: str, told: str = "", more: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of phantom-ctl."""
    program = ELEMENT / "static/usr/local/bin/phantom-ctl"
    done = subprocess.run(
        [sys.executable, str(program), "--settings", str(settings), *words],
        input=told,
        env={**os.environ, "PYTHONPATH": str(MODULES), **(more or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def configure(
    folder: Path, url: str, secret: str = USER.secret_key, key: str = USER.access_key
) -> Path:
    settings = folder / "etc/phantom/settings"
    told = f"# as user-data has it\nurl = {url}\naccess_key = {key}\nsecret_key = {secret}\n"
    assert ctl(settings, "configure", told=f"{told}domain = web\n") == (0, "", "")
    return settings


def create_domain(phantom: Local, settings: Path) -> None:
    """By the module, since phantom-ctl drives the domain that its machine is of."""
    code = (
        "import sys; from pathlib import Path; from phantom_client import Phantom, read_settings\n"
        "phantom = Phantom(read_settings(Path(sys.argv[1])))\n"
        "phantom.create_domain('web', 'web@hotel', [('hotel', 2), ('sierra', -1)], 2)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(MODULES)}
    subprocess.run([sys.executable, "-c", code, str(settings)], env=environ, check=True)


def test_an_appliance_drives_its_domain(phantom: Local, tmp_path: Path) -> None:
    settings = configure(tmp_path, phantom.server.url)
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    file = tmp_path / "launch.json"
    file.write_text(json.dumps(LAUNCH))
    assert ctl(settings, "launch-config", str(file)) == (0, "", "")
    again = {**LAUNCH, "LaunchConfigurationName": "web@sierra"}
    assert ctl(settings, "launch-config", "-", told=json.dumps(again)) == (0, "", "")
    (made,) = phantom.state.list_types(USER.access_key)
    assert (made.user_data, [site.site for site in made.sites]) == (
        LAUNCH["UserData"],
        ["hotel", "sierra"],
    )

    create_domain(phantom, settings)
    (domain,) = phantom.state.list_domains()
    assert (domain.name, domain.desired) == ("web", 2)
    assert domain.clouds == (("hotel", 2), ("sierra", -1))
    machine = phantom.state.add_machine(domain.id, "hotel", LAUNCH["ImageId"])
    assert machine is not None

    assert ctl(settings, "list") == (0, "web 1/2 web@hotel\n", "")
    assert ctl(settings, "show") == (0, f"{machine.id} hotel Pending\n1 of 2 machines\n", "")
    assert ctl(settings, "resize", "0") == (0, "", "")
    assert ctl(settings, "resize", "3", "web") == (0, "", "")
    assert ctl(settings, "show", "web")[1].endswith("1 of 3 machines\n")


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["show", "other"], 65, "there is no domain other"),
        (
            ["resize", "2", "other"],
            65,
            "Phantom refuses SetDesiredCapacity: 400 InvalidParameterValue: There is no group"
            " other.",
        ),
        (["launch-config", "none.json"], 66, "none.json: [Errno 2] No such file or directory:"),
    ],
)
def test_a_refusal_is_one_line(
    words: list[str], status: int, error: str, phantom: Local, tmp_path: Path
) -> None:
    got = ctl(configure(tmp_path, phantom.server.url), *words)
    assert got[:2] == (status, "")
    assert got[2].startswith(f"phantom-ctl: error: {error}")
    assert got[2].count("\n") == 1


@pytest.mark.parametrize(
    ("launch", "status", "error"),
    [
        (
            {"UserData": "naïve"},
            65,
            "the user-data is not ASCII",
        ),
        (
            {"ImageId": ""},
            65,
            "Phantom refuses CreateLaunchConfiguration: 400 MissingParameter: The request must"
            " contain the parameter ImageId.",
        ),
        (
            {"LaunchConfigurationName": "web"},
            65,
            "Phantom refuses CreateLaunchConfiguration: 400 InvalidParameterValue: 'web' is not"
            " of the form name@site.",
        ),
        ({"ImageId": 3}, 66, "-: not an object whose values are text"),
    ],
)
def test_a_wrong_launch_configuration_makes_nothing(
    launch: dict[str, object], status: int, error: str, phantom: Local, tmp_path: Path
) -> None:
    settings = configure(tmp_path, phantom.server.url)
    got = ctl(settings, "launch-config", "-", told=json.dumps({**LAUNCH, **launch}))
    assert got == (status, "", f"phantom-ctl: error: {error}\n")
    assert phantom.state.list_types(USER.access_key) == []


def test_wrong_credentials_and_a_wrong_clock_are_told_apart(phantom: Local, tmp_path: Path) -> None:
    def said(text: str) -> tuple[int, str, str]:
        error = f"phantom-ctl: error: Phantom refuses DescribeAutoScalingGroups: {text}\n"
        return 77, "", error

    wrong = configure(tmp_path, phantom.server.url, secret="other")
    assert ctl(wrong, "list") == said("400 IncompleteSignature: The signature does not match.")
    unknown = configure(tmp_path, phantom.server.url, key="AKnobody")
    assert ctl(unknown, "list") == said("403 InvalidClientTokenId: The access key is not known.")
    phantom.server.clock = lambda: datetime.now(UTC) + timedelta(minutes=16)
    assert ctl(configure(tmp_path, phantom.server.url), "list") == said(
        "400 RequestExpired: The timestamp is more than 15 minutes off."
    )


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The end point of a server that gives one answer to each request, and then waits."""
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(1 << 16)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


PAGE = b"<html><style>b{}</style><h1>Bad Gateway</h1>\n<p>try\x1b[31m later</p></html>"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE,
            "Phantom fails at DescribeAutoScalingGroups: 502 Bad Gateway: Bad Gateway try [31m"
            " later",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE,
            "what answers DescribeAutoScalingGroups is not Phantom: Bad Gateway try [31m later",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n<Describe",
            "URL has not answered DescribeAutoScalingGroups in 1 seconds",
        ),
        (b"", "URL has not answered DescribeAutoScalingGroups in 1 seconds"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "URL cannot be asked: SSH-2.0-OpenSSH"),
    ],
)
def test_what_is_no_answer_of_phantom_is_one_line(
    answer: bytes, error: str, tmp_path: Path
) -> None:
    with answering(answer) as url:
        got = ctl(configure(tmp_path, url), "--seconds", "1", "list")
    assert got == (69, "", f"phantom-ctl: error: {error.replace('URL', url)}\n")


def test_a_phantom_that_is_away_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    error = f"phantom-ctl: error: {url} cannot be asked: [Errno 111] Connection refused\n"
    assert ctl(configure(tmp_path, url), "list") == (69, "", error)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("url = http://h\naccess_key = A\n", "secret_key is missing or is no word of ASCII"),
        ("secret_key = S3CRET\nurl\n", "not lines of the form `key = value`"),
        (
            "url = h\naccess_key = A\nsecret_key = S3CRET\n",
            "url is not of the form https://HOST[:PORT]",
        ),
        (
            "url = http://h\naccess_key = A\nsecret_key = S3CRET\nsecret = S3CRET\n",
            "unknown: secret",
        ),
    ],
)
def test_wrong_settings_are_refused_and_never_shown(told: str, error: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    got = ctl(settings, "configure", told=told)
    assert got == (78, "", f"phantom-ctl: error: standard input: {error}\n")
    assert not settings.exists()


def test_without_settings_phantom_ctl_says_how_to_make_them(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    error = f"{settings} is not there: `phantom-ctl configure` writes it"
    assert ctl(settings, "list") == (78, "", f"phantom-ctl: error: {error}\n")


def test_without_a_domain_of_its_own_one_is_asked_for(phantom: Local, tmp_path: Path) -> None:
    settings = configure(tmp_path, phantom.server.url)
    settings.write_text(settings.read_text().replace("domain = web\n", ""))
    error = "name a domain: the settings have none"
    assert ctl(settings, "show") == (78, "", f"phantom-ctl: error: {error}\n")


def test_the_readmes_scripts_run_as_they_stand(phantom: Local, tmp_path: Path) -> None:
    settings = configure(tmp_path, phantom.server.url)
    assert ctl(settings, "launch-config", "-", told=json.dumps(LAUNCH))[0] == 0
    create_domain(phantom, settings)
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", (ELEMENT / "README.rst").read_text())
    scripts = [textwrap.dedent(block) for block in blocks if "import" in block]
    outputs = []
    for script in scripts:
        own = script.replace("/etc/phantom/settings", str(settings)).replace(
            "read_settings()", f"read_settings(Path({str(settings)!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"from pathlib import Path\n{own}"],
            env={**os.environ, "PYTHONPATH": str(MODULES)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        outputs.append((done.returncode, done.stdout, done.stderr))
    assert outputs == [(0, "web []\n", ""), (0, "web\n", "")]
