"""`phantom-image check FILE`: its report on an image file, and its errors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jsonschema
import pytest
from cli_runs import Project, assert_clean
from rule_cases import CASES, GOOD, KEY, Changes, Made, make_image
from small_images import Part, make_disk

from pipeline import checks
from pipeline.model import MIB

COUNT = len(checks.RULES)
ERROR = """\
error: leaky.raw: the image breaks rules for images that others boot: 2 errors, 1 warning
  do: mend the errors that are listed above
"""
TOLD = f"""\
leaky.raw: 2 errors, 1 warning, by {COUNT} rules
  error    private-key     /opt/app/key.pem         a PEM private key
  error    shell-history   /root/.bash_history      what somebody typed
  warning  temporary-file  /tmp/\\xff?[31mred\\u202e  somebody left it there

private-key: everybody who has the image has the key, and all machines share it
  do: remove it, and have each machine make or fetch its own at boot

shell-history: it tells what somebody did, and often holds passwords
  do: remove the file

temporary-file: no machine needs them, and nobody has looked at them
  do: remove them in the script that made them
"""
LEAKY: Changes = {
    "opt/app/key.pem": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n",
    "root/.bash_history": "mysql -psecret\n",
    "tmp/\udcff\x1b[31mred\u202e": "x",
}


def test_a_good_image(project: Project, tmp_path: Path) -> None:
    make_image(tmp_path, {}).rename(project.folder / "good.raw")
    done = project.succeed("check", "good.raw")
    assert done.out == f"good.raw: nothing found, by {COUNT} rules\n"
    told = project.succeed("check", "./good.raw", "--json").json
    counted = {"rules": COUNT, "errors": 0, "warnings": 0, "findings": []}
    assert told == {"file": "good.raw", **counted}
    assert_clean(project)


def test_a_leaky_image_in_another_format(project: Project, tmp_path: Path) -> None:
    image = make_image(tmp_path, LEAKY)
    done = project.run("check", str(image.rename(project.folder / "leaky.raw").name))
    assert (done.status, done.out, done.error) == (75, TOLD, ERROR)
    words = ["qemu-img", "convert", "-O", "qcow2", "leaky.raw", "leaky.qcow2"]
    subprocess.run(words, cwd=project.folder, check=True)
    done = project.run("check", "leaky.qcow2", "--json")
    assert done.status == 75 and "error" not in done.err
    jsonschema.validate(done.json, project.succeed("schema", "check").json)
    assert [each["rule"] for each in done.json["findings"]] == [
        *("private-key", "shell-history", "temporary-file")
    ]
    assert done.json["findings"][0] == {
        "rule": "private-key",
        "severity": "error",
        "path": "/opt/app/key.pem",
        "detail": "a PEM private key",
        "reason": "everybody who has the image has the key, and all machines share it",
        "todo": "remove it, and have each machine make or fetch its own at boot",
    }
    assert_clean(project)


def test_warnings_are_no_failure(project: Project, tmp_path: Path) -> None:
    make_image(tmp_path, CASES["log"].bad).rename(project.folder / "a.img")
    done = project.succeed("check", "a.img")
    assert done.out.startswith(f"a.img: 1 warning, by {COUNT} rules\n")


def test_no_image(project: Project) -> None:
    todo = "  do: name the file of a disk image: raw, qcow2, vmdk, vhd or vdi, packed or not\n"
    done = project.run("check", "gone.qcow2")
    assert (done.status, done.error) == (24, f"error: gone.qcow2 is not there\n{todo}")
    (project.folder / "cut.raw").write_bytes(b"QFI\xfb")
    done = project.run("check", "cut.raw", "--format", "qcow2")
    assert done.status == 46 and done.error.startswith("error: cut.raw: ")
    assert project.run("check", "nothing").status == 24
    assert_clean(project)


@pytest.mark.slow
def test_an_image_of_several_file_systems(project: Project, tmp_path: Path) -> None:
    """libguestfs opens it, and finds the same."""
    keys = {"lib/agent/key": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n"}
    uuid = "f11e5000-0000-4000-8000-000000000001"
    mounts = f"LABEL=root / ext4 defaults 0 1\nUUID={uuid} /var ext4 defaults 0 1\n"
    files: Changes = {
        "etc/fstab": mounts,
        "usr/bin/tool": Made("other", 0o755),
        "usr/bin/own": Made("x", 0o4755),
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n',
        "var": Made(None, 0o755),
        "sbin/init": "x",
        "bin/sh": b"\x7fELF",
    }
    root = make_image(tmp_path, {**_nothing("var/"), **files})
    tree = tmp_path / "other"
    var = make_image(tree, {**_nothing(""), **keys, **_below_var()})
    subprocess.run(["tune2fs", "-U", uuid, "-L", "var", str(var)], check=True, capture_output=True)
    disk = project.folder / "parts.raw"
    make_disk(disk, "dos", [Part(root, 8 * MIB), Part(var, 8 * MIB)])
    done = project.run("check", "parts.raw", "--json")
    assert [(each["rule"], each["path"]) for each in done.json["findings"]] == [
        ("private-key", "/var/lib/agent/key"),
        ("setuid", "/usr/bin/own"),
        ("package-file-changed", "/usr/bin/tool"),
    ]
    assert done.status == 75
    assert_clean(project)


def _nothing(below: str) -> Changes:
    return {path: None for path in GOOD if path.startswith(below)}


def _below_var() -> Changes:
    """The good image's files of /var, where the file system that is mounted there has them."""
    return {path[4:]: content for path, content in GOOD.items() if path.startswith("var/")}
