"""What the catalog knows of builds and appliances: values without clock, disk or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from pipeline import records
from pipeline.build.lifecycle import State
from pipeline.model import Publication

_RANKS = (
    State.PUBLISHED,
    State.DEPRECATED,
    State.UNPUBLISHED,
    State.WITHDRAWN,
    State.DELETED,
)
"""Which builds people should look at first."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of an appliance, without what only its own page tells."""

    appliance: str
    version: str
    summary: str
    build: str
    labels: Mapping[str, str]
    date: str
    """When it was published last, or, of one that no site has, when its manifest was written: UTC,
    ISO 8601, seconds."""
    state: State
    replacement: str | None
    reason: str
    release: str
    """What the guest calls its distribution, such as `Debian GNU/Linux 12 (bookworm)`; empty where
    it was not booted."""
    codename: str
    """The release in one word, such as `bookworm` or `22.04`; empty where that is not known."""
    architecture: str
    bytes: int
    """Of its smallest image file; 0 without images."""
    disk_bytes: int
    """Of its largest disk."""
    boot_seconds: float | None
    """Of its slowest boot check."""
    emulated: bool
    """Whether that machine was emulated, and so slower than a real one."""
    packages: int
    sha256: str
    """Of the root file system."""
    publications: tuple[Publication, ...]
    files: tuple[str, ...]
    """Names of the files that lie beside the manifest and are offered with it."""

    @property
    def clouds(self) -> list[str]:
        return sorted({each.cloud for each in self.publications})

    @property
    def sites(self) -> list[str]:
        return sorted({each.site for each in self.publications})

    @property
    def places(self) -> dict[str, list[str]]:
        """The sites by cloud."""
        return {
            cloud: sorted({each.site for each in self.publications if each.cloud == cloud})
            for cloud in self.clouds
        }

    @property
    def order(self) -> tuple[str, str]:
        """Sorts builds by age."""
        return self.date, self.build

    @property
    def usable(self) -> bool:
        """Whether its images may be started."""
        return self.state in (State.PUBLISHED, State.DEPRECATED)

    def to_json(self) -> dict[str, Any]:
        """The build as JSON can hold it."""
        published = [vars(each) for each in self.publications]
        return {**vars(self), "publications": published, "files": [*self.files]}


BUILD_SHAPE: Mapping[str, Any] = {
    "appliance": str,
    "version": str,
    "summary": str,
    "build": str,
    "labels": {str: str},
    "date": str,
    "state": str,
    "replacement": (str, None),
    "reason": str,
    "release": str,
    "codename": str,
    "architecture": str,
    "bytes": int,
    "disk_bytes": int,
    "boot_seconds": (float, None),
    "emulated": bool,
    "packages": int,
    "sha256": str,
    "publications": [records.PUBLICATION],
    "files": [str],
}
"""The shape of a `Build` as JSON."""


def to_build(told: Mapping[str, Any]) -> Build:
    """The build that has been JSON of its shape."""
    values = {member.name: told[member.name] for member in fields(Build)}
    values["state"] = State(told["state"])
    values["publications"] = tuple(map(records.to_publication, told["publications"]))
    values["files"] = tuple(told["files"])
    return Build(**values)


@dataclass(frozen=True)
class Entry:
    """An appliance: its builds, of which there is at least one."""

    builds: Sequence[Build] = field()
    """The newest first."""

    @cached_property
    def current(self) -> Build:
        """The build that people should look at: the newest of those that may be used."""
        return min(self.builds, key=lambda build: _RANKS.index(build.state))

    @cached_property
    def previous(self) -> Build | None:
        """The build before the current one, whatever its state, but for one that no site had."""
        older = [each for each in self.builds if each.order < self.current.order]
        return next((each for each in older if each.state is not State.UNPUBLISHED), None)

    @property
    def name(self) -> str:
        return self.current.appliance
