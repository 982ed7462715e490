"""A root file system from scratch: diskimage-builder, with our operating-system element."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import host, sparse
from pipeline.errors import StageFailedError
from pipeline.model import GIB, MIB, Package, ScratchSource
from pipeline.stages.base import HERE_ONLY, Context, LocalFile, Stage, digest_of_file
from pipeline.store import Artifact, Store
from pipeline.tools import apt, dib, namespace, run

ROOT = "root.ext4"
PACKAGES = "packages.tsv"
_NAMESPACE = uuid.UUID("6f2a0a52-5a3c-5a3e-9d3b-0a6f9f6c1f1e")  # of our UUIDs; drawn once


@dataclass(frozen=True, kw_only=True)
class CopiedFile:
    """A file that lands in the image, owned by root."""

    target: PurePosixPath
    mode: int
    content: LocalFile


@dataclass(frozen=True, kw_only=True)
class ElementTree:
    """An element, with the folder that holds it on this host."""

    name: str
    tree: LocalFile


@dataclass(frozen=True, kw_only=True)
class ScratchRoot(Stage):
    """The root file system, as one ext4 file system in a file.

    Its size is that of its content and some room: it grows at first boot to the disk that it finds,
    so that one file serves disks of every size.
    """

    name: ClassVar[str] = "root"
    revision: ClassVar[int] = 2
    cores: ClassVar[int] = 2

    release: str
    architecture: str
    kernel: str
    user_data_frequency: str
    elements: tuple[ElementTree, ...]
    """All of them, with dependencies."""
    requested: tuple[str, ...]
    """The packages that were asked for; the others are marked as automatically installed."""
    packages: tuple[Package, ...]
    """All packages of the image."""
    apt_sources: str
    """The image's own `sources.list`."""
    files: tuple[CopiedFile, ...]
    scripts: tuple[LocalFile, ...]
    environment: Mapping[str, str]
    """What the user's `DIB_` variables hold, as digests: values may be secret."""
    tools: Mapping[str, str]
    """Versions of the programs whose output lies in the result."""
    epoch: int
    """The time, in seconds since 1970, that no file of the image is younger than."""

    resolution: apt.Resolution = field(metadata=HERE_ONLY, compare=False, repr=False)
    archive: apt.Archive = field(metadata=HERE_ONLY, compare=False, repr=False)
    store: Store = field(metadata=HERE_ONLY, compare=False, repr=False)
    given: Mapping[str, str] = field(metadata=HERE_ONLY, compare=False, repr=False)
    """The user's `DIB_` variables themselves."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        self.store.check_space(2 * self._tree_bytes())
        self._build(context)
        return self._facts(context)

    def _build(self, context: Context) -> None:
        packages = self.archive.download(self.resolution, context.progress)
        repository, inside, build = (
            Path(context.work, name) for name in ("repository", "appliance", "build")
        )
        for folder in (repository, inside, build):
            folder.mkdir()
        apt.write_repository(self.resolution, packages, repository, self.release)
        self._write_appliance(inside)
        (context.work / "requested").write_text("".join(f"{each}\n" for each in self.requested))
        (context.work / "sources.list").write_text(self.apt_sources)
        environment = context.work / "environment"
        namespace.write_environment(
            environment, self._environment(context, repository, inside, build)
        )
        context.progress.step("building the root file system")
        try:
            namespace.run_isolated(
                dib.build_command(
                    [each.name for each in self.elements], self.architecture, context.work / "none"
                ),
                work=build,
                tmpfs_mib=self._tmpfs_mib(),
                environment=environment,
                log=context.log,
                progress=context.progress,
            )
        except run.ToolError as error:
            raise dib.explain_failure(error) from error

    def _write_appliance(self, folder: Path) -> None:
        """Lays out the definition's files and scripts for the element `phantom-appliance`."""
        (folder / "scripts").mkdir()
        for number, script in enumerate(self.scripts):
            copy = folder / "scripts" / f"{number:02}-{script.path.name}"
            copy_unchanged(script, copy)
            copy.chmod(0o755)
        for file in self.files:
            copy = folder / "files" / file.target.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_unchanged(file.content, copy)
            copy.chmod(file.mode)
        (folder / "files").mkdir(exist_ok=True)
        (folder / "user-data-frequency").write_text(f"{self.user_data_frequency}\n")

    def _tree_bytes(self) -> int:
        """What packages and files take; scripts and hooks may add to it."""
        copied = sum(file.content.path.stat().st_size for file in self.files)
        return self.resolution.installed_bytes + 2 * copied  # as handed over, and in place

    def _tmpfs_mib(self) -> int:
        """How large a file system in memory may grow that the tree is built in; 0 where memory is
        too short for it. The tree is as large as its packages say, and a half more for what hooks
        add; as much again stays free for everything else."""
        tree = self._tree_bytes() * 3 // 2 + 512 * MIB
        return 2 * tree // MIB if host.available_memory() > 3 * tree + GIB else 0

    def _environment(
        self, context: Context, repository: Path, inside: Path, build: Path
    ) -> dict[str, str]:
        *ours, _ = dib.elements_path()  # diskimage-builder adds its own
        return {
            **network_environment(),
            **self.given,
            "DIB_NO_TIMESTAMP": "1",
            "DIB_NO_TMPFS": "1",
            "DIB_RELEASE": self.release,
            "ELEMENTS_PATH": ":".join(str(each) for each in ours),
            "HOME": str(build),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{dib.PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PHANTOM_APPLIANCE": str(inside),
            "PHANTOM_KERNEL": self.kernel,
            "PHANTOM_OUTPUT": str(context.out),
            "PHANTOM_OWNER": f"{os.getuid()}:{os.getgid()}",
            "PHANTOM_PACKAGES": str(context.work / "requested"),
            "PHANTOM_REPOSITORY": str(repository),
            "PHANTOM_SOURCES": str(context.work / "sources.list"),
            "PHANTOM_UUID": str(uuid.uuid5(_NAMESPACE, self.key)),
            "SOURCE_DATE_EPOCH": str(self.epoch),
            "TMPDIR": str(build),
            "TMP_DIR": str(build),
        }

    def _facts(self, context: Context) -> Mapping[str, Any]:
        root = context.out / ROOT
        if not root.is_file():
            raise StageFailedError(
                "the operating-system element wrote no root file system",
                todo=f"let its last cleanup.d hook write $PHANTOM_OUTPUT/{ROOT}, as "
                "elements/phantom-debian does",
                log=context.log,
            )
        self._check_packages(context)
        context.progress.step("computing the digest")
        return {"sha256": sparse.sha256(root), "bytes": root.stat().st_size}

    def _check_packages(self, context: Context) -> None:
        """The image has the packages that its key says, and no others. Raises StageFailedError."""
        lines = (context.out / PACKAGES).read_text().splitlines()
        installed = {tuple(line.split("\t")[:3]) for line in lines if "\tii" in line}
        expected = {(each.name, each.version, each.architecture) for each in self.packages}
        extra, missing = sorted(installed - expected), sorted(expected - installed)
        if extra or missing:
            words = [f"+{name} {version}" for name, version, _ in extra]
            words += [f"-{name} {version}" for name, version, _ in missing]
            raise StageFailedError(
                f"the image has other packages than were resolved: {', '.join(words[:8])}",
                todo="declare packages in an element's package-installs.yaml or in the definition "
                "instead of installing or removing them in a hook",
                log=context.log,
            )


def describe_inputs(source: ScratchSource, root: ScratchRoot) -> dict[str, Any]:
    """What a manifest says of what the image was made of."""
    elements = sorted(root.elements, key=lambda each: each.name)
    return {
        "source": {"scratch": asdict(source)},
        "packages": [asdict(package) for package in root.packages],
        "elements": [{"name": each.name, "digest": each.tree.digest} for each in elements],
    }


def copy_unchanged(file: LocalFile, copy: Path) -> None:
    """Copies a file of the definition. Raises StageFailedError if it is not what was planned."""
    shutil.copy(file.path, copy)
    if digest_of_file(copy) != file.digest:
        raise StageFailedError(
            f"{file.path} was changed after the plan was made", todo="run the same command again"
        )


def network_environment() -> dict[str, str]:
    """The user's proxies, for what reaches the network while an image is made."""
    names = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
    return {name: os.environ[name] for name in names if name in os.environ}
