"""What a night costs in which nothing changed: 100 appliances at three sites.

.venv/bin/python3 -m benchmarks.nightly PROJECT    # a folder with a build of hello-phantom
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, phantom
from pipeline import records
from pipeline.build import manifest
from pipeline.build.explain import describe
from pipeline.build.plan import make_plan
from pipeline.clouds import clouds
from pipeline.definitions.appliance import load_appliance
from pipeline.definitions.sites import load_sites
from pipeline.model import Sha256
from pipeline.store import Store
from pipeline.tools.snapshot import Snapshot

APPLIANCES, SITES = 100, ("hotel", "sierra", "foxtrot")
_MIB = 1 << 20
_DEFINITION = """\
extends: hello-phantom
name: {name}
version: "1.0"
summary: One of many
files: [{{from: own, to: /etc/own}}]
"""


def measure_nightly(project: Path) -> Iterator[Figure]:
    """The figures of a quiet night, in a project that has a build of hello-phantom."""
    _plant(project)
    sites = ",".join(SITES)
    words = ("--sites", "nights.yaml", "--only", "many-*", "--site", sites)
    nights = [phantom(project, "nightly", *words) for _ in range(2)]
    for night in nights:
        states = [each["state"] for each in night.answer["outcomes"]]  # type: ignore[attr-defined]
        assert states == ["unchanged"] * APPLIANCES * len(SITES), states
    yield Figure(
        name=f"a night of {APPLIANCES} unchanged appliances at {len(SITES)} sites",
        value=min(night.seconds for night in nights),
        unit=" s",
        at_most=30,
    )
    yield Figure(
        name="its memory",
        value=max(night.peak_bytes for night in nights) / _MIB,
        unit=" MB",
        at_most=300,
    )


def _plant(project: Path) -> None:
    """Leaves what nights before would have: definitions, and a build of each at every site."""
    told = "".join(f"  {name}: {{cloud: nimbus, sandbox: true}}\n" for name in SITES)
    (project / "nights.yaml").write_text(f"sites:\n{told}")
    sites = [each for each in load_sites(project / "nights.yaml", clouds()) if each.name in SITES]
    store = Store(Path(os.environ.get("PHANTOM_STORE") or project / "build/store"))
    content = manifest.read_manifest(project / "build/hello-phantom")
    assert content is not None
    snapshot = Snapshot()
    for number in range(APPLIANCES):
        name = f"many-{number}"
        folder = project / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "appliance.yaml").write_text(_DEFINITION.format(name=name))
        (folder / "own").write_text(f"{name}\n")
        appliance = load_appliance(name, project / "images")
        plan = make_plan(appliance, sites, store, builds=project / "build", snapshot=snapshot)
        sha256 = Sha256(content["root_filesystem"]["sha256"])
        build = manifest.build_name(appliance, sha256, plan.makers)
        built = project / "build" / name / build
        built.mkdir(parents=True, exist_ok=True)
        (built / "manifest.json").write_text(json.dumps(_make_manifest(content, name, build)))
        stages = json.dumps(records.seal({"stages": describe(plan)}))
        for path in (built, built.parent):
            (path / "stages.json").write_text(stages)
        (built.parent / "latest").unlink(missing_ok=True)
        (built.parent / "latest").symlink_to(build)


def _make_manifest(content: dict[str, Any], name: str, build: str) -> dict[str, Any]:
    image, publication = content["images"][0], content["publications"][0]
    return {
        **content,
        "appliance": {**content["appliance"], "name": name, "build": build},
        "images": [{**image, "site": site} for site in SITES],
        "publications": [{**publication, "site": site} for site in SITES],
    }


if __name__ == "__main__":
    for figure in measure_nightly(Path(sys.argv[1])):
        print(figure)
