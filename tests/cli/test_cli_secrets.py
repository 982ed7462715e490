"""Secrets of a build: scripts and hooks read them, and no image, log or record has them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from base_images import Bases
from cli_runs import Done, Project, assert_clean

VALUE = "correct-horse/battery+staple?"
IN_BASE64 = base64.b64encode(VALUE.encode()).decode()
USE = """\
#!/bin/sh
set -eu
[ "$(stat -c '%a %u' /run/secrets/token)" = '400 0' ]
[ "$(cat /run/secrets/token)" = "$(cat /run/secrets/same)" ]
! env | grep -q correct-horse
echo "the token is $(cat /run/secrets/token)"
base64 -w 0 /run/secrets/token
printf %s "$(sha256sum </run/secrets/token)" >/etc/used
[ -z "$(find /run/secrets -type f -perm /022)" ]
"""
KEEP = """\
#!/bin/sh
set -eu
mkdir -p /opt/app
echo "token: $(cat /run/secrets/token)" >/opt/app/conf
"""
ENCODE = """\
#!/bin/sh
set -eu
printf 'me:%s' "$(cat /run/secrets/token)" | base64 -w 0 >/root/login
"""
HOOK = """\
#!/bin/bash
set -eu -o pipefail
if [ "${DIB_DEBUG_TRACE:-0}" -gt 0 ]; then set -x; fi
[ "$(cat /run/secrets/token)" = "$(cat /run/secrets/same)" ]
echo "the hook has read it: $(cat /run/secrets/same)"
"""
LEFT = (
    "error: images/web/appliance.yaml:5:44: the secret 'token' is in the finished image: {}\n"
    "  do: let scripts read it from /run/secrets and write it to nothing that the image keeps; "
    "what was built is not stored\n"
    "  log: STORE/logs/root-HEX.log\n"
)


def define(project: Project, *scripts: str, source: str = "", extends: str | None) -> None:
    """Defines `web`, with the same secret from a variable and from a file."""
    secret = project.write("outside/secret", f"{VALUE}\n", 0o600)
    for name, text in (("use.sh", USE), ("keep.sh", KEEP), ("encode.sh", ENCODE)):
        project.write(f"images/web/{name}", text, 0o755)
    project.define(
        "web",
        f"build_secrets: [{{name: same, file: {secret}}}, {{name: token, env: TOKEN}}]\n"
        f"scripts: [{', '.join(scripts)}]\n{source}",
        extends=extends,
    )


def build(project: Project, **more: str) -> Done:
    return project.run("build", "web", "--stop-after", "root", "-v", TOKEN=VALUE, **more)


def assert_told_nowhere(project: Project, done: Done) -> None:
    """That the secret is in nothing that the command has printed or left, but for the key file."""
    texts = [done.out, done.err]
    for folder in (project.store, project.build):
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        texts += [
            path.read_text(errors="replace") for path in files if path.stat().st_size < 1 << 20
        ]
    assert not [text for text in texts if VALUE in text or IN_BASE64[:-2] in text]


def masked(project: Project, done: Done) -> str:
    """The error; the place of the secret in its line depends on the folder's length."""
    return re.sub(r"(appliance.yaml:5):[0-9]+:", r"\1:44:", project.masked(done.error))


@pytest.mark.slow
def test_scripts_and_hooks_use_secrets_that_no_image_has(
    copied: Callable[..., Project],
) -> None:
    project = copied("packages")
    define(project, "use.sh", extends="hello-phantom")
    for phase in ("extra-data.d", "install.d"):  # outside the image, and in it
        project.write(f"elements/reader/{phase}/50-{phase[:-2]}-reader", HOOK, 0o755)
    text = (project.folder / "images/web/appliance.yaml").read_text()
    project.write("images/web/appliance.yaml", f"{text}elements: [reader]\n")
    done = build(project, ELEMENTS_PATH=str(project.folder / "elements"))
    assert done.status == 0, done.err
    (log,) = (project.store / "logs").glob("root-*.log")
    assert log.read_text().count("the hook has read it: ***\n") == 2
    assert "the token is ***\n" in log.read_text()
    assert_told_nowhere(project, done)
    assert_clean(project)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "place"), [("keep.sh", "/opt/app/conf"), ("encode.sh", "/root/login (in base64)")]
)
def test_a_secret_left_in_an_image_fails_the_build(
    script: str, place: str, copied: Callable[..., Project]
) -> None:
    project = copied("packages")
    before = project.artifacts("root")
    define(project, script, extends="hello-phantom")
    done = build(project)
    assert masked(project, done) == LEFT.format(place)
    assert done.status == 63
    assert project.artifacts("root") == before
    assert_told_nowhere(project, done)
    assert_clean(project)


def test_a_missing_secret_is_told_before_anything_is_built(project: Project) -> None:
    define(project, "use.sh", extends="hello-phantom")
    for command in ("plan", "build"):
        done = project.run(command, "web")
        assert (done.status, masked(project, done)) == (
            10,
            "error: images/web/appliance.yaml:5:44: the secret 'token' is missing: the environment "
            "variable TOKEN is not set\n  do: set TOKEN, or take the secret out\n",
        )
    assert project.artifacts() == []


@pytest.mark.only_soak
def test_a_base_image_gets_secrets_in_memory_alone(
    bases: Bases, project: Project, tmp_path: Path
) -> None:
    """The root file system is searched whole, blocks of removed files too: none ever had it."""
    source = f"source: {{base_image: {{location: {bases.path('simple.raw')}}}}}\ndisk_size: 2GiB\n"
    define(project, "use.sh", source=source, extends=None)
    done = build(project)
    assert done.status == 0, done.err
    assert "the token is ***" in done.err
    assert_told_nowhere(project, done)
    define(project, "keep.sh", source=source, extends=None)
    done = build(project)
    assert done.status == 63
    assert "is in the finished image: /opt/app/conf\n" in masked(project, done)
    assert_told_nowhere(project, done)
    assert len(project.artifacts("root")) == 1
    assert_clean(project)
