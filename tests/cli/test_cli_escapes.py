"""What images, definitions, manifests and programs say, on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Project, make_project

from pipeline.build import manifest
from pipeline.model import Appliance, BootReport, Disk, Image, Publication, ScratchSource, Sha256

PLANTED = "\x1b]0;owned\x07\x1b[31;5mred\x9b2J\u202egnp\nerror: forged\r\x7f\u2028\U000e0041"
_OURS = re.compile(r"\x1b\[[0-9;]*m")  # what rich and the label of an error print
_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\ud800-\udfff]")


def on_terminal(project: Project, argv: list[str], **env: str) -> tuple[int, str]:
    """The status of a program, and all that it wrote to a terminal."""
    main, side = pty.openpty()
    environ = project.env(TERM="xterm", COLUMNS="250", **env)
    with subprocess.Popen(
        argv, cwd=project.folder, env=environ, stdin=side, stdout=side, stderr=side
    ) as process:
        os.close(side)
        data = b""
        try:
            while part := os.read(main, 1 << 16):
                data += part
        except OSError:  # how Linux reports the end of a pseudo-terminal
            pass
        os.close(main)
    return process.returncode, data.decode().replace("\r\n", "\n")


def assert_harmless(shown: str) -> None:
    """Nothing planted reached the terminal, neither as a control nor as a line of its own."""
    plain = _OURS.sub("", shown)
    found = _HARMFUL.search(plain)
    assert found is None, ascii(plain[max(0, found.start() - 80) : found.end() + 80])
    assert not re.search("^error: forged", plain, re.MULTILINE)
    assert "\x1b[31;5m" not in shown
    assert "]0;owned" in plain


def plant(value: Any) -> Any:
    """A value with the planted text behind every text in it."""
    if isinstance(value, str):
        return value + PLANTED
    if isinstance(value, dict):
        return {name: plant(part) for name, part in value.items()}
    return [plant(part) for part in value] if isinstance(value, list) else value


def plant_manifest() -> dict[str, Any]:
    """A manifest with the planted text in it, except where there are names of folders."""
    told = plant(make_manifest())
    told["appliance"] |= {"name": "planted", "build": "0123456789ab"}
    assert isinstance(told, dict)
    return told


def make_manifest() -> dict[str, Any]:
    digest = Sha256("0" * 64)
    disk = Disk(layout="mbr", format="raw", compression="gzip")
    told = manifest.make_manifest(
        appliance=Appliance(
            name="planted",
            version="1.0",
            summary="An appliance",
            source=ScratchSource(element="debian", release="bookworm", architecture="amd64"),
            definition=Path("images/planted/appliance.yaml"),
        ),
        build="0123456789ab",
        inputs={"source": {}, "packages": [], "elements": []},
        root_sha256=digest,
        images=[
            manifest.ManifestImage(
                file="image.raw.gz",
                image=Image(
                    site="hotel",
                    cloud="nimbus",
                    file=Path("disk.raw"),
                    disk=disk,
                    bytes=1,
                    sha256=digest,
                    md5=None,
                    disk_bytes=1,
                    disk_sha256=digest,
                ),
                root_sha256=digest,
                reports=[BootReport(machine="bios", passed=True, facts={"boot_seconds": 9.0})],
            )
        ],
        publications=[],
        launch={},
        templates=[],
    )
    told["publications"] = [
        asdict(
            Publication(
                site="hotel",
                cloud="nimbus",
                region="here",
                image_id="image.gz",
                location="cumulus://hotel/image.gz",
                sha256=digest,
                published_at="2026-01-01T00:00:00Z",
                sandbox=False,
            )
        )
    ]
    return told


@pytest.fixture
def planted(tmp_path: Path) -> Project:
    """A project with a build whose manifest has the planted text wherever there is text."""
    project = make_project(tmp_path / "project")
    folder = project.build / "planted/0123456789ab"
    folder.mkdir(parents=True)
    told = plant_manifest()
    (folder / "manifest.json").write_text(json.dumps(told))
    (folder.parent / "latest").symlink_to(folder.name)
    return project


@pytest.mark.parametrize(
    "words",
    [["list"], ["show", "planted"], ["manifest", "show", "build/planted/latest"]],
    ids=" ".join,
)
def test_manifests(planted: Project, words: list[str]) -> None:
    status, shown = on_terminal(planted, planted.command(*words))
    assert status == 0
    assert_harmless(shown)


@pytest.mark.parametrize("words", [["list", "--json"], ["show", "planted", "--json"]], ids=" ".join)
def test_json_on_a_terminal_is_exact(planted: Project, words: list[str]) -> None:
    status, shown = on_terminal(planted, planted.command(*words))
    assert status == 0
    assert_harmless(shown)
    told = json.loads(shown)
    expected = plant_manifest()
    if words[0] == "list":
        assert told[0]["version"] == expected["appliance"]["version"]
    else:
        assert told == expected


def test_mistakes_in_definitions_and_sites(planted: Project) -> None:
    quoted = json.dumps(PLANTED.replace("\U000e0041", ""))  # YAML reads JSON's escapes
    planted.define("web", f"packages: [{quoted}]\n{quoted}: 1\nlabels: {{{quoted}: a}}\n")
    planted.write("sites.yaml", f"sites: {{hotel: {{cloud: {quoted}, {quoted}: 1}}}}\n")
    for words in (["plan", "web"], ["plan"], ["plan", f"no{PLANTED}"], [f"no{PLANTED}"]):
        status, shown = on_terminal(planted, planted.command(*words))
        assert status in (2, 10, 24)
        assert "Traceback" not in shown
        plain = _OURS.sub("", shown)
        assert _HARMFUL.search(plain) is None, ascii(plain)


def test_what_a_program_said_last(planted: Project) -> None:
    """An apt that fails in its own words: its last lines are part of the error."""
    program = f"#!{sys.executable}\nprint({PLANTED!r})\nraise SystemExit(100)\n"
    for name in ("apt-get", "apt-config", "apt-cache"):
        planted.write(f"bin/{name}", program, 0o755)
    path = f"{planted.folder / 'bin'}:{os.environ['PATH']}"
    status, shown = on_terminal(planted, planted.command("plan"), PATH=path)
    assert status not in (0, 1)
    assert_harmless(shown)
    assert "  | error: forged" in shown


_INSPECTION = """
import json, sys
from pipeline import terminal
from pipeline.commands.inspect import _print
terminal.guard()
_print(json.load(sys.stdin))
"""


def test_what_inspect_tells_of_an_image(planted: Project) -> None:
    place = {"partition": 1, "volume": None, "start": 1 << 20, "size": 1 << 30}
    told = {
        "file": "disk.img",
        "bytes": 1 << 30,
        "format": "qcow2",
        "compression": "gzip",
        "disk_bytes": 1 << 30,
        "boot_code": True,
        "partitions": [
            {"number": 1, "size": 1 << 30, "type": "83", "bootable": True},
            {"number": 2, "size": 1 << 20, "type": "82", "bootable": False},
        ],
        "file_systems": [{"place": place, "type": "ext4", "mount": "/", "label": "root"}],
        "system": {
            "boots": {"version": "6.1", "command_line": "ro quiet"},
            "kernels": ["6.1"],
            "fetcher": False,
            "product": "Debian",
            "architecture": "x86_64",
            "root_bytes": 1 << 30,
            "boot_loaders": ["grub2"],
            "init": "systemd",
            "package_manager": "apt",
            "networks": ["ifupdown"],
            "cloud_init": "22.4",
            "selinux": "none",
            "clients": ["curl"],
        },
        "sites": [
            {
                "kind": "nimbus",
                "boots": False,
                "reasons": ["fstab names swap"],
                "notes": ["a note"],
                "boots_converted": False,
                "obstacles": ["no init"],
            }
        ],
        "remarks": ["a password"],
    }
    file = planted.write("told.json", json.dumps({**plant(told), "table": "mbr"}))
    status, shown = on_terminal(
        planted, ["sh", "-c", 'exec "$@" <told.json', "sh", sys.executable, "-c", _INSPECTION]
    )
    assert (status, file.exists()) == (0, True), shown
    assert_harmless(shown)
    assert shown.count("owned") >= 20


_PROGRESS = """
import sys, time
from pipeline import terminal
from pipeline.progress import shown
terminal.guard()
planted = sys.argv[1]
with shown(sys.stderr, verbose=False) as start:
    for end in ("finish", "fail"):
        progress = start(end + planted)
        progress.step(planted)
        time.sleep(0.3)
        getattr(progress, end)(planted)
"""


def test_rows_of_progress(planted: Project) -> None:
    """The rows move the cursor, but nothing in their texts does."""
    argv = [sys.executable, "-c", _PROGRESS, PLANTED]
    status, shown = on_terminal(planted, argv, LC_ALL="C.UTF-8")
    assert status == 0
    assert "\x1b[" in shown and "]0;owned" in shown
    for harmful in ("\x1b]0;", "\x07", "\x1b[31;5m", "\x9b", "\u202e", "\u2028", "\nerror: forged"):
        assert harmful not in shown
