"""Lists the software in a root file system, for the bill of materials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pipeline import records
from pipeline.disk import debian_packages, python_packages
from pipeline.disk.ext4_reader import Reader, read_lines
from pipeline.disk.os_release import Release, read_os_release
from pipeline.model import KIB
from pipeline.stages.base import Context, Stage
from pipeline.store import Artifact

_FILE = "inventory.json"
_LONGEST_RELEASE = 64 * KIB  # of os-release
_DATABASES = {
    "deb": ("var/lib/dpkg/status",),
    "rpm": ("var/lib/rpm", "usr/lib/sysimage/rpm"),
    "apk": ("lib/apk/db", "usr/lib/apk/db"),
    "alpm": ("var/lib/pacman/local",),
}
"""By the type that package URLs give them, where managers of packages keep what they know."""
_SHAPE = {
    "epoch": int,
    "distribution": {"id": str, "version": str, "codename": str},
    "kind": (str, None),
    "packages": [
        {
            "name": str,
            "version": str,
            "architecture": str,
            "source": str,
            "source_version": str,
            "licences": [str],
        }
    ],
    "python": [{"name": str, "version": str, "place": str, "licences": [str]}],
}


@dataclass(frozen=True, kw_only=True)
class ListSoftware(Stage):
    """What the root file system itself says of its packages: dpkg's database, the copyright files
    that are machine-readable, and the metadata of Python packages that dpkg does not know. Where
    another manager has the packages, only its `kind`: who changed the image listed them."""

    name: ClassVar[str] = "inventory"

    epoch: int
    """The time that documents about the image bear, in seconds since 1970."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (root,) = inputs
        context.progress.step("listing packages and their licences")
        with Reader(root.file("root.ext4")) as reader:
            listed = {"epoch": self.epoch, **_list_software(reader)}
        (context.out / _FILE).write_text(json.dumps(listed, indent=1) + "\n")
        return {"packages": len(listed["packages"]), "python": len(listed["python"])}


def read_inventory(artifact: Artifact) -> dict[str, Any]:
    """What `ListSoftware` wrote. Raises OSError, Unfit for what is damaged."""
    return dict(records.load(artifact.file(_FILE), _SHAPE))


def _list_software(reader: Reader) -> dict[str, Any]:
    release = read_os_release(lambda path: _read(reader, path)) or Release(id="linux")
    packages = sorted(debian_packages.read_packages(reader))
    return {
        "distribution": {
            "id": release.id,
            "version": release.version,
            "codename": release.codename,
        },
        "kind": next(_kinds(reader), None),
        "packages": [
            {**asdict(each), "licences": debian_packages.read_licences(reader, each.name)}
            for each in packages
        ],
        "python": [asdict(each) for each in python_packages.read_packages(reader)],
    }


def _kinds(reader: Reader) -> Iterator[str]:
    for kind, places in _DATABASES.items():
        if any(reader.find(place) is not None for place in places):
            yield kind


def _read(reader: Reader, path: PurePosixPath) -> str:
    return "\n".join(read_lines(reader, str(path), _LONGEST_RELEASE))
