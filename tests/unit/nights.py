"""Nights of a small build server: definitions and sites are real, and so are disks, images and
publications. Root file systems have a few files, and instead of being booted an image is unpacked
and its file system checked.

    nights.py FOLDER [SITE...]    runs a night there, in a process of its own
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from manifests import check_manifest
from test_manifest import FACTS

from pipeline.build.plan import Plan, plan_targets
from pipeline.build.prune import find_starts
from pipeline.clouds import clouds, make_cloud
from pipeline.definitions.appliance import load_appliance
from pipeline.definitions.sites import load_sites, select_sites
from pipeline.errors import (
    DefinitionError,
    DownloadError,
    NoSpaceError,
    StageFailedError,
)
from pipeline.file_copies import FileCopy
from pipeline.model import (
    MIB,
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    NoProgress,
    Package,
    Sha256,
    Site,
)
from pipeline.nightly.night import Night, Outcome
from pipeline.nightly.order import Order
from pipeline.nightly.run import run_night
from pipeline.stages.base import HERE_ONLY, Context, LocalFile, Stage, own_file
from pipeline.stages.boot import BootCheck
from pipeline.stages.image import unpack_image
from pipeline.store import Artifact, Store
from pipeline.tools import run
from pipeline.tools.snapshot import Snapshot
from pipeline.workspace import Workspace

EPOCH = 1_700_000_000
DAY = 86_400
SITES = """\
sites:
  hotel: {cloud: nimbus, sandbox: true, root: sda1}
  sierra: {cloud: nimbus, sandbox: true, root: sda1}
"""
BASE = """\
name: base
version: "1"
summary: What the others extend
packages: [sh]
disk_size: 32MiB
keep: {last: 2, daily: 3}
"""


@dataclass(frozen=True, kw_only=True)
class Tree(Stage):
    """The packages of a root file system, as the archive has them."""

    name: ClassVar[str] = "packages"

    packages: tuple[Package, ...]
    archive: Path = field(metadata=HERE_ONLY, compare=False)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        note(self)
        if (self.archive / "away").exists():
            raise DownloadError("the archive does not answer", todo="wait")
        lines = [f"{each.name} {each.version}\n" for each in self.packages]
        (context.out / "tree").write_text("".join(lines))
        return {}


@dataclass(frozen=True, kw_only=True)
class Root(Stage):
    """A root file system of 8 MiB with the packages' names and the definition's files."""

    name: ClassVar[str] = "root"

    files: tuple[LocalFile, ...]
    base: str | None = None
    """The build that it is made of."""
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        note(self)
        tree, root = context.work / "tree", context.out / "root.ext4"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/packages").write_bytes(inputs[0].file("tree").read_bytes())
        (tree / "etc/base").write_text(f"{self.base}\n")
        for file in self.files:
            text = file.path.read_text()
            if text.startswith("hang"):
                run.run(["sleep", "1000"], log=context.log)
            if text.startswith("break"):
                raise StageFailedError("a script failed", todo="mend it", log=context.log)
            if text.startswith("fill"):
                raise NoSpaceError("no space for the artifacts: nothing is left free")
            if text.startswith("flood"):
                with (context.work / "flood").open("wb", buffering=0) as flood:
                    while True:
                        flood.write(bytes(MIB))
            (tree / "etc" / file.path.name).write_text(text)
        for path in [tree, *tree.rglob("*")]:
            os.utime(path, (EPOCH, EPOCH))
        uuid = "f11e5000-0000-4000-8000-000000000000"
        words = ["mke2fs", "-q", "-t", "ext4", "-U", uuid, "-E", f"hash_seed={uuid},root_owner=0:0"]
        run.run(
            [*words, "-d", str(tree), str(root), "8M"],
            env={"E2FSPROGS_FAKE_TIME": str(EPOCH)},
            log=context.log,
        )
        _set_times(root, [f"/{path.relative_to(tree)}" for path in tree.rglob("*")], context)
        sha256 = hashlib.sha256(root.read_bytes()).hexdigest()
        return {"sha256": sha256, "bytes": root.stat().st_size, "identities": None}


def _set_times(root: Path, paths: Sequence[str], context: Context) -> None:
    """mke2fs takes over when files were written."""
    commands = context.work / "commands"
    kinds = ("atime", "ctime", "crtime")
    lines = (f"sif {path} {kind} @{EPOCH}\n" for path in ("/", *paths) for kind in kinds)
    commands.write_text("".join(lines))
    run.run(["debugfs", "-w", "-f", str(commands), str(root)], log=context.log)


@dataclass(frozen=True, kw_only=True)
class Look(BootCheck):
    """Unpacks an image and checks its file system."""

    memory: ClassVar[int] = 64 * MIB
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (image,) = inputs
        disk = context.work / "disk.raw"
        unpack_image(image, disk)
        run.run(["e2fsck", "-f", "-n", str(disk)], log=context.log)
        return {**FACTS, "boot_seconds": 0.5}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """The source of a tiny root file system."""

    appliance: Appliance
    root: Root
    base: None = None
    from_base_image: ClassVar[bool] = False

    def plan_contents(self, images: Sequence[Stage]) -> None:
        """None."""

    def describe_inputs(self, contents: Artifact | None) -> dict[str, Any]:
        tree = self.root.inputs[0]
        assert isinstance(tree, Tree)
        return {
            "source": {"scratch": {"element": "toy", "release": "toy", "architecture": "amd64"}},
            "repeatable": True,
            "packages": [asdict(each) for each in tree.packages],
            "pinned_packages": [],
            "elements": [],
        }


RUNS: list[str] = []
"""What the stages `packages` and `root` were made for in this process."""


def note(stage: Stage) -> None:
    RUNS.append(f"{stage.name} {stage.key[:6]}")


class Server:
    """A folder with definitions, sites and an archive, and the nights that are run in it."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        """`store` is the store's folder; None: one in the folder."""
        self.folder = folder
        self.archive = folder / "archive"
        self.images = folder / "images"
        self.workspace = Workspace(
            build=folder / "build",
            store=Store(store or folder / "store"),
            progress=lambda _: NoProgress(),
        )
        self.clock = float(EPOCH)

    def set_up(self, **versions: str) -> Server:
        """Writes sites, an archive and the definition that others extend."""
        self.archive.mkdir(parents=True)
        self.release(sh="1", **versions)
        (self.folder / "sites.yaml").write_text(SITES)
        self.write("base", BASE)
        return self

    def release(self, **versions: str) -> None:
        """Lets the archive have new versions of packages."""
        index = self.archive / "index.json"
        known = json.loads(index.read_text()) if index.exists() else {}
        index.write_text(json.dumps({**known, **versions}))

    def write(self, name: str, text: str, **files: str) -> None:
        """Writes a definition and its files."""
        folder = self.images / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "appliance.yaml").write_text(text)
        for file, content in files.items():
            (folder / file).write_text(content)

    def define(self, name: str, text: str = "", **files: str) -> None:
        """Writes a definition that extends the base, with a file of its own."""
        files = files or {"own": f"{name}\n"}
        listed = ", ".join(f"{{from: {file}, to: /etc/{file}}}" for file in files)
        head = f'extends: base\nname: {name}\nversion: "1"\nsummary: One of many\n'
        self.write(name, f"{head}files: [{listed}]\n{text}", **files)

    def order(self, *names: str, **options: Any) -> Order:
        known = sorted(path.parent.name for path in self.images.glob("*/appliance.yaml"))
        wanted = options.pop("sites", None)
        sites = load_sites(self.folder / "sites.yaml", clouds())
        return Order(
            names=names or tuple(name for name in known if name != "base"),
            sites=select_sites(sites, None, wanted),
            load=lambda name: load_appliance(name, self.images),
            make_plan=self.plan,
            pauses=(0.0,),
            find_starts=lambda: find_starts(self.images),
            **options,
        )

    def plan(self, appliance: Appliance, sites: Sequence[Site], snapshot: Snapshot) -> Plan:
        """The plan of an appliance with a tiny root file system."""
        made = [make_cloud(site) for site in sites]
        index = snapshot.once(
            "index", lambda: json.loads((self.archive / "index.json").read_text())
        )
        if lacking := [name for name in appliance.packages if name not in index]:
            raise DefinitionError(f"there is no package {lacking[0]}", where=appliance.name)
        digest = hashlib.sha256
        packages = tuple(
            Package(
                name=name,
                version=index[name],
                architecture="amd64",
                sha256=Sha256(digest(f"{name} {index[name]}".encode()).hexdigest()),
            )
            for name in sorted(appliance.packages)
        )
        tree = Tree(packages=packages, archive=self.archive)
        base, source = None, appliance.source
        if isinstance(source, BaseImageSource) and isinstance(source.location, ApplianceBuild):
            latest = self.workspace.folder(source.location.name) / "latest"
            base = latest.readlink().name
        files = tuple(
            own_file(each.source) for each in appliance.files if isinstance(each, FileCopy)
        )
        tiny = Tiny(appliance=appliance, root=Root(inputs=(tree,), files=files, base=base))
        targets = [
            replace(target, boots=tuple(_look(boot) for boot in target.boots))
            for target in plan_targets(appliance, made, tiny)
        ]
        return Plan(appliance=appliance, source=tiny, targets=tuple(targets))

    def snapshot(self) -> Snapshot:
        """Of the archive as it is now."""
        return Snapshot()

    def make_artifact(self, stage: Stage) -> Artifact:
        """An artifact of a stage, made by hand."""
        store = self.workspace.store
        with store.making(stage.name, stage.key) as folder:
            (folder / "out").mkdir()
            (folder / "out/file").write_bytes(bytes(range(256)) * 64)
            return store.add(stage.name, stage.key, folder / "out", {})

    def night(self, *names: str, **options: Any) -> Night:
        """Runs a night in this process, a day after the one before."""
        self.clock += DAY
        night = run_night(self.order(*names, **options), self.workspace, now=lambda: self.clock)
        for path in self.workspace.build.glob("*/*/manifest.json"):
            check_manifest(json.loads(path.read_text()))
        return night

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts a night in a process of its own."""
        return subprocess.Popen(
            [sys.executable, __file__, str(self.folder), *words],
            env={
                **os.environ,
                "PYTHONPATH": ":".join(sys.path),
                "PHANTOM_STORE": str(self.workspace.store.folder),
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    def contents(self) -> dict[str, str]:
        """The digest of each file that a site, or a user of a build, sees."""
        found = {}
        for path in sorted(self.workspace.build.glob("*/*/*")):
            if path.is_file() and path.parts[-3] not in ("nightly", "sites"):
                name = str(path.relative_to(self.workspace.build))
                found[name] = hashlib.sha256(_without_times(path)).hexdigest()
        return found


def _without_times(path: Path) -> bytes:
    if path.name != "manifest.json":
        return path.read_bytes()
    told = json.loads(path.read_text())
    for each in told["publications"]:
        del each["published_at"]
    return json.dumps(told, sort_keys=True).encode()


def _look(boot: BootCheck) -> Look:
    return Look(**{each.name: getattr(boot, each.name) for each in fields(boot)})


def states(night: Night) -> dict[str, str]:
    """What became of each appliance; of each site, where they differ."""
    found: dict[str, dict[str, str]] = {}
    for each in night.outcomes:
        found.setdefault(each.appliance, {})[each.site] = str(each.state)
    told = {}
    for name, sites in found.items():
        if len({*sites.values()}) == 1:
            told[name] = next(iter(sites.values()))
        else:
            told |= {f"{name} {site}": state for site, state in sites.items()}
    return told


def find(night: Night, appliance: str, site: str = "hotel") -> Outcome:
    """What became of an appliance at a site."""
    (found,) = (each for each in night.outcomes if (each.appliance, each.site) == (appliance, site))
    return found


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]), Path(os.environ["PHANTOM_STORE"]))
    done = run_night(server.order(sites=sys.argv[2:] or None), server.workspace, now=time.time)
    print(json.dumps(states(done)))
