"""Certificates of a build: programs that make an image trust them, and no image has them."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from base_images import Bases
from cli_runs import Done, Project, assert_clean
from http_files import HttpFile, serving

USE = """\
#!/bin/sh
set -eu
[ "$(curl --silent --show-error URL)" = module ]
grep -q CAInfo "$APT_CONFIG"
[ "$(stat -c %a "$APT_CONFIG" "$SSL_CERT_FILE" | sort -u)" = 644 ]
runuser -u nobody -- cat "$SSL_CERT_FILE" >/dev/null
[ "$(grep -c BEGIN "$SSL_CERT_FILE")" -gt 100 ] # the image's own too
curl --silent --show-error URL >/etc/module
"""
HOOK = """\
#!/bin/bash
set -eu -o pipefail
if [ "${DIB_DEBUG_TRACE:-0}" -gt 0 ]; then set -x; fi
[ "$(curl --silent --show-error URL)" = module ]
"""
BUSYBOX = """\
#!/bin/sh
set -eu
grep -q BEGIN "$SSL_CERT_FILE"
grep -q CAInfo "$APT_CONFIG"
cp "$SSL_CERT_FILE" /etc/kept
"""
LEFT = (
    "error: images/web/appliance.yaml:4:22: a certificate of 'ca.pem' is in the finished image: "
    "{}\n"
    "  do: bring the file by `files` if the image is to trust it; else let scripts read "
    "/run/build-certificates/ca.crt and copy it nowhere. What was built is not stored\n"
    "  log: STORE/logs/root-HEX.log\n"
)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, as one file, and a server's context with it."""
    folder = tmp_path_factory.mktemp("authority")
    certificate, key = folder / "ca.pem", folder / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subprocess.run(
        [*words.split(), "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@pytest.fixture
def url(authority: tuple[Path, ssl.SSLContext]) -> Iterator[str]:
    with serving(HttpFile(b"module\n"), authority[1]) as served:
        yield served.url


def define(
    project: Project, authority: tuple[Path, ssl.SSLContext], text: str, *, extends: str | None
) -> None:
    project.write("images/web/ca.pem", authority[0].read_text())
    project.define("web", f"build_certificates: [ca.pem]\n{text}", extends=extends)


def build(project: Project, **more: str) -> Done:
    return project.run("build", "web", "--stop-after", "root", "-v", **more)


def masked(project: Project, done: Done) -> str:
    return re.sub(r"(appliance.yaml):[0-9]+:[0-9]+:", r"\1:4:22:", project.masked(done.error))


@pytest.mark.slow
def test_hooks_and_scripts_reach_servers_of_the_authority(
    copied: Callable[..., Project], authority: tuple[Path, ssl.SSLContext], url: str
) -> None:
    project = copied("packages")
    project.write("images/web/use.sh", USE.replace("URL", url), 0o755)
    for phase in ("extra-data.d", "install.d"):  # outside the image, and in it
        hook = HOOK.replace("URL", url)
        project.write(f"elements/reader/{phase}/50-{phase[:-2]}-reader", hook, 0o755)
    text = "source: {scratch: {network: true}}\nelements: [reader]\nscripts: [use.sh]\n"
    define(project, authority, text, extends="hello-phantom")
    done = build(project, ELEMENTS_PATH=str(project.folder / "elements"))
    assert done.status == 0, done.err
    elements = str(project.folder / "elements")
    command = ["sh", "-c", "cat /etc/module; ls -A /run; env"]
    shown = project.succeed("shell", "web", "--as-defined", "--", *command, ELEMENTS_PATH=elements)
    assert shown.out.startswith("module\n") and "build-certificates" not in shown.out
    assert_clean(project)


@pytest.mark.only_soak
def test_scripts_in_a_base_image_have_certificates_that_files_may_keep(
    bases: Bases, project: Project, authority: tuple[Path, ssl.SSLContext]
) -> None:
    project.write("images/web/use.sh", BUSYBOX, 0o755)
    source = (
        f"source: {{base_image: {{location: {bases.path('simple.raw')}, network: true}}}}\n"
        "disk_size: 2GiB\nscripts: [use.sh]\n"
    )
    define(project, authority, source, extends=None)
    done = build(project)
    assert (done.status, masked(project, done)) == (63, LEFT.format("/etc/kept"))
    define(
        project, authority, f"{source}files: [{{from: ca.pem, to: /etc/ca.pem}}]\n", extends=None
    )
    done = build(project)
    assert done.status == 0, done.err
    assert_clean(project)


@pytest.mark.parametrize(
    ("content", "text", "told"),
    [
        ("no\n", "source: {scratch: {network: true}}\n", "5:22: 'build_certificates[0]': 'ca.pem' "
            "has no certificate in PEM form; `openssl x509 -in FILE` writes one"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "source: {scratch: {network: true}}\n", "5:22: 'build_certificates[0]': 'ca.pem' has "
            "a damaged certificate on line 1"),
        ("-----BEGIN PGP MESSAGE-----\nAAAA\n-----END PGP MESSAGE-----\n",
            "source: {scratch: {network: true}}\n", "5:22: 'build_certificates[0]': 'ca.pem' has "
            "a block 'pgp message'; leave all but the certificates out"),
        (None, "", "5:21: 'build_certificates' have no effect: nothing reaches the network while "
            "the image is made\n  do: leave them out, or let it reach the network by `network: "
            "true` below `source`"),
    ],
    ids=["text", "damaged", "other-block", "no-network"],
)  # fmt: skip
def test_what_is_wrong_is_told_by_the_plan(
    project: Project,
    authority: tuple[Path, ssl.SSLContext],
    content: str | None,
    text: str,
    told: str,
) -> None:
    define(project, authority, text, extends="hello-phantom")
    if content is not None:
        project.write("images/web/ca.pem", content)
    done = project.run("plan", "web")
    assert done.status == 10
    assert told in done.err
