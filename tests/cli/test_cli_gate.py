"""The gate in a build: an image that others should not boot is not published."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Project, assert_clean, edit_root
from rule_cases import KEY

STOPPED = """\
error: site nimbus-sandbox: the image must not be published: private-key: /opt/test.key: a PEM \
private key
  | warning temporary-file: /var/tmp/left: somebody left it there
  do: remove it, and have each machine make or fetch its own at boot; or give the reason why it \
may be so below `waive:` in the definition
"""
WAIVED = """\
waive:
  - {rule: private-key, path: /opt/*.key, reason: a test's}
"""


def leave(root: Path, folder: Path) -> None:
    """Puts files into a root file system, as a script might leave them."""
    key, left = folder / "key", folder / "left"
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{KEY}\n")
    left.write_text("x\n")
    commands = f"write {key} /opt/test.key\nwrite {left} /var/tmp/left\n"
    argv = ["debugfs", "-w", "-f", "-", str(root)]
    subprocess.run(argv, input=commands, text=True, check=True, capture_output=True)


@pytest.mark.boot
def test_a_leaky_image(copied: Callable[..., Project], tmp_path: Path) -> None:
    project = copied("packages", "root")
    edit_root(project, lambda root: leave(root, tmp_path))
    part = project.succeed("build", "--stop-after", "gate").out
    assert "\n  error    private-key: /opt/test.key: a PEM private key\n" in part
    assert "\n  warning  temporary-file: /var/tmp/left: somebody left it there\n" in part
    done = project.run("image")
    assert (done.status, project.masked(done.error)) == (75, STOPPED)
    manifest = project.manifest("hello-phantom")
    assert manifest["publications"] == [] and manifest["checks"]["waived"] == []
    assert [(each["rule"], each["severity"]) for each in manifest["checks"]["findings"]] == [
        ("private-key", "error"),
        ("temporary-file", "warning"),
    ]
    build = manifest["appliance"]["build"]
    words = ("publish", "hello-phantom", "--build", build)
    done = project.run(*words)
    assert (done.status, project.masked(done.error)) == (75, STOPPED)

    path = project.folder / "images/hello-phantom/appliance.yaml"
    path.write_text(path.read_text() + WAIVED)
    done = project.succeed("image", "--json")
    assert all(stage["reused"] for stage in done.json["stages"])
    assert len(done.json["publications"]) == 1
    assert done.json["checks"]["waived"] == [
        {
            "rule": "private-key",
            "path": "/opt/test.key",
            "detail": "a PEM private key",
            "reason": "a test's",
        }
    ]
    (warning,) = done.json["checks"]["findings"]
    assert warning["rule"] == "temporary-file"
    shown = project.succeed("image").out
    assert "  warning    temporary-file: /var/tmp/left: somebody left it there\n" in shown
    assert "  waived     private-key: /opt/test.key: a test's\n" in shown
    assert_clean(project)
