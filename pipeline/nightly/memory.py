"""What earlier nights teach: how long stages take and how large they are, and what sites had."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import records
from pipeline.build.executor import Built, Need
from pipeline.build.plan import Plan
from pipeline.files import make_folder, write_atomically
from pipeline.model import ContentKey, Site
from pipeline.stages.base import Stage, key_of, to_json
from pipeline.store import Artifact

FILE = "memory.json"
_SHAPE = {
    "stages": {str: {"seconds": float, "bytes": int}},
    "sites": {str: records.HEX64},
}


@dataclass(frozen=True)
class Expected:
    """What a stage will probably take; zeros where nothing like it was ever made."""

    seconds: float = 0.0
    bytes: int = 0
    """Of its artifact."""


class Memory:
    """What the nights of one folder of builds remember."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        told = records.read(self._file, _SHAPE, sealed=True) or {"stages": {}, "sites": {}}
        self._stages: dict[str, Any] = told["stages"]
        self._sites: dict[str, str] = told["sites"]

    def save(self) -> None:
        """Writes it down."""
        make_folder(self._file.parent)
        told = {"stages": self._stages, "sites": self._sites}
        write_atomically(self._file, json.dumps(records.seal(told)) + "\n")

    def note(self, appliance: str, stage: Stage, built: Built) -> None:
        """Remembers what making a stage took."""
        size = bytes_of(built.artifact)
        self._stages[f"{appliance}/{stage.title}"] = {"seconds": built.seconds, "bytes": size}

    def expect(self, appliance: str, stage: Stage) -> Expected:
        """What a stage of an appliance will take: as the last time, or else as stages of its name
        do for other appliances."""
        known = self._stages.get(f"{appliance}/{stage.title}")
        if known is not None:
            return Expected(known["seconds"], known["bytes"])
        alike = [told for name, told in self._stages.items() if _is_alike(name, stage.name)]
        if not alike:
            return Expected()
        seconds = median(each["seconds"] for each in alike)
        return Expected(seconds, round(median(each["bytes"] for each in alike)))

    def has_changed(self, appliance: str, site: Site) -> bool:
        """Whether sites.yaml says something else of a site than when it got the appliance."""
        known = self._sites.get(f"{appliance}/{site.name}")
        return known is not None and known != _digest(site)

    def note_site(self, appliance: str, site: Site) -> None:
        """Remembers what sites.yaml says of a site that has the appliance."""
        self._sites[f"{appliance}/{site.name}"] = _digest(site)


def _is_alike(name: str, stage: str) -> bool:
    return name.partition("/")[2].partition(" ")[0] == stage


def _digest(site: Site) -> str:
    return key_of([site.cloud, site.sandbox, to_json(dict(site.options))])


def bytes_of(artifact: Artifact) -> int:
    """How much of the disk an artifact takes."""
    return sum(path.stat().st_blocks * 512 for path in artifact.folder.iterdir())


class Needs:
    """What the stages of a night need, by their keys: the most urgent is the one with the longest
    way to the end of its appliance."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._needs: dict[ContentKey, Need] = {}
        self._names: dict[ContentKey, str] = {}

    def add(self, plan: Plan, missing: Iterable[Stage]) -> tuple[float, int]:
        """Notes an appliance's stages. Returns the seconds that the longest chain of its `missing`
        ones takes, and the bytes that they add to the store beside those of plans before."""
        name, made = plan.appliance.name, {stage.key for stage in missing}
        ways: dict[ContentKey, float] = {}
        added = 0
        for stage in reversed(plan.stages):
            expected = self._memory.expect(name, stage) if stage.key in made else Expected()
            way = ways.get(stage.key, 0.0) + expected.seconds
            for before in (*stage.inputs, *stage.after):
                ways[before.key] = max(ways.get(before.key, 0.0), way)
            known = self._needs.get(stage.key)
            added += expected.bytes if known is None else 0
            self._names.setdefault(stage.key, name)
            self._needs[stage.key] = Need(
                cores=stage.cores,
                memory=stage.memory,
                disk=expected.bytes,
                urgency=max(way, known.urgency if known else 0.0),
            )
            ways[stage.key] = way
        return max(ways.values(), default=0.0), added

    def find(self, stage: Stage) -> Need:
        """What a stage needs."""
        return self._needs.get(stage.key) or Need.of(stage)

    def find_title(self, stage: Stage) -> str:
        """What people call a stage of the night."""
        return f"{self._names.get(stage.key, '')} {stage.title}".lstrip()
