"""The packages of a root file system from scratch, installed in one transaction by mmdebstrap.

What is asked for by name, files, scripts and sites do not count: so all appliances with the same
packages share one tree, and a changed file or script does not install them again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline.errors import StageFailedError
from pipeline.machine import accelerator, host
from pipeline.model import GIB, MIB, Package
from pipeline.sources.copied import CopiedFile, write_tree
from pipeline.sources.element_facts import read_facts
from pipeline.stages.base import HERE_ONLY, IF_ANY, Context, Stage, local_file
from pipeline.store import Artifact, Store
from pipeline.tools import apt, apt_repository, mmdebstrap, namespace, run

TREE = "tree.tar"


@dataclass(frozen=True, kw_only=True)
class PackageTree(Stage):
    """The installed packages as one tar, with numeric owners and extended attributes."""

    name: ClassVar[str] = "packages"
    revision: ClassVar[int] = 3
    cores: ClassVar[int] = 2

    release: str
    architecture: str
    packages: tuple[Package, ...]
    leaves_out: tuple[str, ...] = ()
    """Patterns of files that packages have and the tree does not get."""
    keeps: tuple[str, ...] = ()
    """Patterns of files that it gets all the same."""
    initramfs: tuple[CopiedFile, ...] = ()
    """Files that decide the initramfs; without any, none is made."""
    answers: str = field(default="", metadata=IF_ANY)
    """What debconf is told before packages are configured."""
    tools: Mapping[str, str]
    """Versions of the programs whose output lies in the result."""
    epoch: int
    """The time, in seconds since 1970, that maintainer scripts take for today's."""

    resolution: apt.Resolution = field(metadata=HERE_ONLY, compare=False, repr=False)
    archive: apt.Archive = field(metadata=HERE_ONLY, compare=False, repr=False)

    def check_host(self, store: Store) -> None:
        """Whether a root of namespaces can be had. Raises HostError, SudoError."""
        host.require_isolation(store.folder)

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        installed = self.resolution.installed_bytes
        context.store.check_space(2 * installed)
        packages = self.archive.download(self.resolution, context.progress)
        build, repository = context.work / "build", context.work / "repository"
        build.mkdir()
        apt_repository.write_repository(self.resolution, packages, repository, self.release)
        order = mmdebstrap.describe_order(self.resolution)
        (repository / "order").write_text(order)
        (context.work / "settings").mkdir()
        write_tree(self.initramfs, context.work / "settings")
        (context.work / "answers").write_text(self.answers)
        context.progress.step(f"installing {len(self.packages)} packages")
        memory = limit_memory(installed + mmdebstrap.AHEAD_BYTES, 0, accelerator.available_memory())
        python = map(Path, dict.fromkeys((sys.prefix, sys.base_prefix)))
        try:
            namespace.run_in_memory(
                mmdebstrap.command(build, repository, context.out / TREE),
                view=namespace.View(
                    readable=[
                        *(repository, packages),
                        *(context.work / "settings", context.work / "answers"),
                        *mmdebstrap.PROGRAMS,
                        *python,
                    ],
                    writable=[context.out],
                ),
                build=build,
                mib=memory // MIB,
                folder=context.work / "namespace",
                environment=self._environment(context.work),
                log=context.log,
                progress=context.progress,
            )
        except run.ToolError as error:
            raise mmdebstrap.explain_failure(error) from error
        return self._facts(context)

    def _environment(self, work: Path) -> dict[str, str]:
        return {
            "LC_ALL": "C.UTF-8",
            "PATH": f"{namespace.PROGRAMS}:{mmdebstrap.SYSTEM_PATH}",
            "PHANTOM_ANSWERS": str(work / "answers"),
            "PHANTOM_ARCHITECTURE": self.architecture,
            "PHANTOM_DPKG_OPTIONS": mmdebstrap.dpkg_options(self.leaves_out, self.keeps),
            "PHANTOM_OWNER": namespace.owner(work),
            "PHANTOM_PACKAGES": ",".join(package.name for package in self.packages),
            "PHANTOM_PYTHON": sys.executable,
            "PHANTOM_RELEASE": self.release,
            "PHANTOM_SETTINGS": str(work / "settings"),
            "SOURCE_DATE_EPOCH": str(self.epoch),
            "TMPDIR": str(work / "build"),
        }

    def _facts(self, context: Context) -> Mapping[str, Any]:
        tree = context.out / TREE
        if not tree.is_file():
            raise StageFailedError("mmdebstrap left no tree", todo="see the log", log=context.log)
        return {"bytes": tree.stat().st_size}


def limit_memory(planned: int, room: int, available: int) -> int:
    """How many bytes of memory a tree may take that is built in memory; 0 where it had better be on
    the disk at once.

    It will have about the `planned` bytes of packages and files, and a half more that hooks add;
    scripts may bring more, as much as there is `room` for on the image's disk. As much again as it
    will have stays free of the `available` memory.
    """
    tree = planned * 3 // 2 + 512 * MIB
    most = available - tree - GIB
    return min(max(2 * tree, tree + room), most) if most > 2 * tree else 0


def plan_packages(
    resolution: apt.Resolution,
    archive: apt.Archive,
    *,
    release: str,
    architecture: str,
    element: Path,
    answers: str,
    epoch: int,
) -> PackageTree:
    """The stage that installs what was resolved, as the operating-system element in a folder wants
    it. Raises HostError, ToolError, DefinitionError."""
    facts = read_facts(element)
    return PackageTree(
        release=release,
        architecture=architecture,
        packages=resolution.packages,
        leaves_out=facts.leaves_out,
        keeps=facts.keeps,
        initramfs=tuple(_static_files(element / "static", facts.initramfs)),
        answers=answers,
        tools=mmdebstrap.versions(),
        epoch=epoch,
        resolution=resolution,
        archive=archive,
    )


def _static_files(static: Path, names: Sequence[str]) -> Iterator[CopiedFile]:
    """An element's files, by the names of files and folders below `static`."""
    for name in names:
        place = static / name
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in (each for each in files if each.is_file()):
            target = PurePosixPath("/", file.relative_to(static))
            yield CopiedFile(target=target, mode=0o644, content=local_file(file.resolve()))
