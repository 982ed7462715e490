"""Catalogs of tests: builds without images, and what reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_runs import Project, make_project
from manifests import check_manifest

from benchmarks.catalog_builds import (
    FRANKFURT,
    HOTEL,
    PACKAGES,
    SIERRA,
    VIRGINIA,
    write_build,
)

HOSTILE = (
    '<script>document.title = "taken over"</script> "><img src=x onerror=alert(1)> '
    "&amp; ]]> {{ 7 * 7 }} \u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627 \x1b[31m\x00"
)
LONG = "word " * 2000
NEWER = (("package-0", "2.0-1"), *PACKAGES[2:], ("package-new", "0.1"))
"""One package changed, one removed, one added."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A project with a catalog."""

    project: Project

    @property
    def output(self) -> Path:
        return self.project.build / "catalog"

    def read(self, name: str) -> str:
        return (self.output / name).read_text()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))


def build(project: Project, name: str, number: int = 0, **more: Any) -> str:
    """Writes a build, whose digits it returns. Its manifest is valid."""
    path = write_build(project.build, name, number, **more)
    check_manifest(json.loads(path.read_text()))
    return path.parent.name


def add_cluster_check(path: Path) -> None:
    """Has a manifest tell of a check of two guests."""
    content = json.loads(path.read_text())
    guests = [
        {"name": "head", "address": "10.0.2.15", "seconds": 90.5, "printed": "one\n2 jobs ran\n"},
        {"name": "worker", "address": "10.0.2.16", "seconds": 80.0, "printed": None},
    ]
    content["images"][0]["cluster_check"] = {
        "passed": True,
        "accelerator": "tcg",
        "seconds": 95.0,
        "guests": guests,
        "started_by_phantom": 2,
    }
    check_manifest(content)
    path.write_text(json.dumps(content))


def make_demo(folder: Path) -> Demo:
    """A catalog with an appliance of each kind, and one that means harm."""
    project = make_project(folder)
    build(project, "web", 1, date="2026-01-01T03:00:00Z", places=(HOTEL, FRANKFURT, VIRGINIA))
    newest = build(
        project,
        "web",
        2,
        version="1.1",
        date="2026-02-01T03:00:00Z",
        places=(HOTEL, SIERRA, FRANKFURT),
        labels={"os": "debian", "purpose": "web"},
        packages=NEWER,
        bytes=210 << 20,
        boot_seconds=21.5,
    )
    for name in ("sbom.cdx.json", "provenance.intoto.json", "manifest.json.sig", "other.txt"):
        (project.build / "web" / newest / name).write_text(f"{name}\n")
    batch = build(project, "batch", places=(SIERRA,), labels={"purpose": "batch"}, release="trixie")
    add_cluster_check(project.build / "batch" / batch / "manifest.json")
    build(project, "old", places=(HOTEL,))
    build(project, "bad", places=(HOTEL,))
    build(project, "unsent", places=())
    labels = {HOSTILE: HOSTILE, "long": LONG}
    build(project, "hostile", summary=HOSTILE + LONG, version=HOSTILE, labels=labels)
    reason = "superseded <b>now</b>"
    project.succeed("mark", "deprecated", "old", "--replacement", "web", "--reason", reason)
    project.succeed("mark", "withdrawn", "bad", "--reason", "it leaks")
    project.succeed("catalog", "--title", "Lab", "--url", "https://images.example.org/lab")
    return Demo(project=project)


def query(output: Path, *words: str) -> list[dict[str, str]]:
    """What sstream-query finds in a catalog's streams."""
    program = Path(sys.executable).with_name("sstream-query")
    index = str(output / "streams/v1/index.json")
    done = subprocess.run(
        [program, "--json", *words[:1], index, *words[1:]]
        if words and words[0].startswith("--")
        else [program, "--json", index, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found
