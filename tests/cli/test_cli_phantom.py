"""`phantom-image phantom-sandbox`, as far as it starts no guest."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from cli_runs import Project, Running, make_project

MADE = re.compile(r"Phantom: (http://127\.0\.0\.1:\d+)\ncredentials: (.+)\nsites: nimbus-sandbox\n")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


@contextmanager
def sandbox(project: Project, *words: str) -> Iterator[tuple[Running, str]]:
    """A local Phantom that runs, and its end point."""
    running = project.start("phantom-sandbox", *words)
    try:
        running.wait_until(lambda: MADE.fullmatch(running.out) is not None, "end point")
        made = MADE.fullmatch(running.out)
        assert made is not None
        yield running, made[1]
    finally:
        if running.process.poll() is None:
            running.kill()


def ask(project: Project, url: str) -> int:
    """How many groups there are, as a user of the credentials' file asks it."""
    file = project.build / ".phantom/credentials"
    said = dict(re.findall(r"(\w+) = (\w+)", file.read_text()))
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    client = boto3.client(
        "autoscaling",
        endpoint_url=url,
        region_name="phantom",
        aws_access_key_id=said["aws_access_key_id"],
        aws_secret_access_key=said["aws_secret_access_key"],
        config=Config(signature_version="v2"),
    )
    return len(client.describe_auto_scaling_groups()["AutoScalingGroups"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(project: Project, number: int) -> None:
    with sandbox(project) as (running, url):
        assert ask(project, url) == 0
        os.kill(running.process.pid, number)
        done = running.end()
        assert done.status == 0
        assert done.err == "Phantom has ended, and its machines with it; domains stay\n"


def test_one_folder_is_for_one_phantom(project: Project) -> None:
    with sandbox(project):
        done = project.run("phantom-sandbox")
    assert done.status == 42
    assert done.err == (
        f"error: {project.build}/.phantom: another local Phantom runs in this folder\n"
        "  do: end it, or name another folder by --folder\n"
    )
    with sandbox(project) as (_, url):  # the other one was killed
        assert ask(project, url) == 0


def test_a_taken_port_is_an_error(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = project.run("phantom-sandbox", "--port", str(port))
    assert done.status == 24
    assert done.err == (
        f"error: port {port} of 127.0.0.1 cannot be used: Address already in use\n"
        "  do: choose another one by --port, or leave it out for one that is free\n"
    )


def test_it_needs_a_sandbox_site(project: Project) -> None:
    sites = "sites: {hotel: {cloud: nimbus, cloud_properties: hotel.properties}}\n"
    (project.folder / "sites.yaml").write_text(sites)
    done = project.run("phantom-sandbox")
    assert done.status == 24
    assert done.err == (
        "error: a local Phantom starts machines at sandbox sites, and there is none among hotel\n"
        "  do: add one to sites.yaml (`sandbox: true`), or name one by --site nimbus-sandbox\n"
    )


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("[default]\n", "credentials has no aws_access_key_id"),
        ("nothing", "File contains no section headers.\n"),
    ],
)
def test_damaged_credentials_are_an_error(project: Project, damage: str, text: str) -> None:
    folder = project.build / ".phantom"
    folder.mkdir(parents=True)
    (folder / "credentials").write_text(damage)
    done = project.run("phantom-sandbox")
    assert done.status == 19
    assert done.err.startswith(f"error: {folder}: the folder of the local Phantom cannot be used: ")
    assert text.strip() in done.err
    assert "  do: see who owns it, or name another one by --folder\n" in done.err
