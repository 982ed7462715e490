"""A root file system from scratch: diskimage-builder, with our operating-system element."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.clouds import Cloud
from pipeline.customizations import make_answers, make_steps
from pipeline.customizations.customization import Step
from pipeline.customizations.python import WHEELS
from pipeline.customizations.repositories import find_repositories
from pipeline.definitions.yaml import shown
from pipeline.errors import (
    DiskTooSmallError,
    StageFailedError,
    located,
)
from pipeline.guest import cloud_init
from pipeline.guest.certificates import VARIABLES
from pipeline.machine import accelerator, host
from pipeline.model import MIB, Appliance, Package, ScratchSource, format_size, split_pin
from pipeline.sources import BaseFile, Request, elements_located
from pipeline.sources.build_certificates import (
    Certificates,
    check_certificates_left,
    describe_certificates,
    hand_over,
    plan_certificates,
)
from pipeline.sources.build_secrets import (
    Secret,
    check_left,
    describe_secrets,
    handed,
    read_secrets,
)
from pipeline.sources.copied import Copied, CopiedFile, copied_files, write_tree
from pipeline.sources.element_facts import check_supported, unwanted_packages, wanted_packages
from pipeline.sources.element_trees import ElementTree, describe_elements
from pipeline.sources.epoch import read_epoch
from pipeline.sources.interpreters import check_interpreters
from pipeline.sources.kernels import choose_kernel
from pipeline.sources.package_tree import TREE, PackageTree, limit_memory, plan_packages
from pipeline.sources.wheels import describe_wheels, lay_out, plan_for_packages, wheels_of
from pipeline.stages.base import (
    HERE_ONLY,
    IF_ANY,
    Context,
    LocalFile,
    Stage,
    copy_unchanged,
    own_file,
)
from pipeline.store import Artifact, Store
from pipeline.tools import apt, apt_lists, apt_repository, deb, dib, namespace, run, script_line
from pipeline.tools.apt_pins import snapshots
from pipeline.tools.dib_environment import CALLERS, IMAGE_NAME
from pipeline.tools.mmdebstrap import SYSTEM_PATH

ROOT = "root.ext4"
PACKAGES = "packages.tsv"
_IDENTITIES = "identities.json"
_APPLIANCE_ELEMENT = "phantom-appliance"
_WHEELS_IN_IMAGE = "/tmp/phantom-appliance/wheels"  # noqa: S108  (while it is made)
_HANDED_OVER = ("appliance", "automatic", "certificates", "cloud-init", "lib", "sources.list")
_NAMESPACE = uuid.UUID("6f2a0a52-5a3c-5a3e-9d3b-0a6f9f6c1f1e")  # of our UUIDs; drawn once


@dataclass(frozen=True, kw_only=True)
class ScratchRoot(Stage):
    """The root file system, as one ext4 file system in a file. Its inputs are the `PackageTree`
    and, for a virtual environment of Python, the `Wheels`.

    Its size is that of its content and some room: it grows at first boot to the disk that it finds,
    so that one file serves disks of every size.
    """

    name: ClassVar[str] = "root"
    revision: ClassVar[int] = 4
    cores: ClassVar[int] = 2

    kernel: str
    user_data_frequency: str
    user_data_runner: str | None
    """Who runs user-data where cloud-init works, `cloud-init` or `fetcher`; None without
    cloud-init."""
    cloud_init: Mapping[str, str]
    """The files that configure cloud-init for that."""
    login_user: str
    elements: tuple[ElementTree, ...]
    """All of them, with dependencies."""
    requested: tuple[str, ...]
    """The packages that were asked for; the others are marked as automatically installed."""
    apt_sources: str
    """The image's own `sources.list`."""
    files: tuple[Copied, ...]
    customizations: tuple[Step, ...] = field(default=(), metadata=IF_ANY)
    scripts: tuple[LocalFile, ...]
    network: bool = field(default=False, metadata=IF_ANY)
    """Whether hooks and scripts have the host's network."""
    environment: Mapping[str, str]
    """The definition's variables for elements and scripts."""
    secrets: tuple[Secret, ...] = field(default=(), metadata=IF_ANY)
    """What hooks and scripts may read, and the image must not hold."""
    certificates: tuple[Certificates, ...] = field(default=(), metadata=IF_ANY)
    tools: Mapping[str, str]
    """Versions of the programs whose output lies in the result."""
    epoch: int
    """The time, in seconds since 1970, that no file of the image is younger than."""

    room: int = field(metadata=HERE_ONLY, compare=False)
    """Bytes of the smallest disk that it is to lie on. It may be filled by what scripts bring."""

    @property
    def tree(self) -> PackageTree:
        """The stage that installs the packages."""
        tree, *_ = self.inputs
        assert isinstance(tree, PackageTree)
        return tree

    @property
    def packages(self) -> tuple[Package, ...]:
        """All packages of the image."""
        return self.tree.packages

    @property
    def resolution(self) -> apt.Resolution:
        """What the archive says of the packages."""
        return self.tree.resolution

    def check_host(self, store: Store) -> None:
        """Whether a root of namespaces can be had. Raises HostError, SudoError."""
        host.require_isolation(store.folder)
        dib.check_folders([store.folder])

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        tree, *_ = inputs
        wheels = wheels_of(inputs)
        planned = self._tree_bytes(wheels)
        context.store.check_space(2 * planned)
        self._build(tree.file(TREE), wheels, planned, context)
        if not (context.out / ROOT).is_file():
            raise StageFailedError(
                "the operating-system element wrote no root file system",
                todo=f"let its last cleanup.d hook write $PHANTOM_OUTPUT/{ROOT}, as "
                "elements/phantom-debian does",
                log=context.log,
            )
        check_left(self.secrets, context)
        check_certificates_left(self.certificates, context)
        facts = self._facts(context)
        return facts if wheels is None else {**facts, "python": describe_wheels(wheels)}

    def find_remains(self, context: Context) -> Path:
        return context.out / ROOT

    def _build(self, tree: Path, wheels: Artifact | None, planned: int, context: Context) -> None:
        work = context.work
        build = work / "build"
        build.mkdir()
        dib.make_library(work / "lib")
        self._write_appliance(work / "appliance", wheels)
        self._write_cloud_init(work / "cloud-init")
        automatic = apt_repository.describe_automatic(
            self.resolution, self.requested, self.tree.architecture
        )
        (work / "automatic").write_text(automatic)
        hand_over(self.certificates, work / "certificates")
        (work / "sources.list").write_text(self.apt_sources)
        context.progress.step("building the root file system")
        elements = [element.name for element in self.elements]
        memory = limit_memory(planned, self.room, accelerator.available_memory())
        view = namespace.View(
            readable=[
                *(work / name for name in _HANDED_OVER),
                *(tree, *dib.folders(), *(element.tree.path for element in self.elements)),
            ],
            writable=[context.out],
        )
        try:
            namespace.run_in_memory(
                dib.build_command(elements, self.tree.architecture, build / IMAGE_NAME),
                view=view,
                build=build,
                mib=memory // MIB,
                folder=work / "namespace",
                environment=self._environment(tree, context),
                log=context.log,
                progress=context.progress,
                network=self.network,
                secrets=handed(self.secrets),
            )
        except run.ToolError as error:
            places = {step.name: step.where for step in self.customizations}
            names = [script.path.name for script in self.scripts]
            places |= {
                script.path.name: shown(script.path)
                for script in self.scripts
                if names.count(script.path.name) == 1
            }
            raise dib.explain_failure(error, places) from error

    def _write_appliance(self, folder: Path, wheels: Artifact | None) -> None:
        """Lays out the definition's files and scripts for the element `phantom-appliance`."""
        scripts, files, steps = (folder / name for name in ("scripts", "files", "customizations"))
        for made in (folder, scripts, files, steps):
            made.mkdir()
        for number, step in enumerate(self.customizations):
            place = steps / f"{number:02}-{step.name}"
            place.touch(mode=0o600)  # it may have a password's hash
            place.write_text(f"{WHEELS}={_WHEELS_IN_IMAGE}\n{step.script}")
        if wheels is not None:
            lay_out(wheels, folder / WHEELS)
        note = PurePosixPath("/tmp/phantom-appliance/failed")  # noqa: S108
        (folder / "tell-line").write_text(script_line.make_environment(note))
        kept = [path for step in self.customizations for path in step.kept]
        (folder / "kept").write_text("".join(f"{path}\n" for path in kept))
        for number, script in enumerate(self.scripts):
            copy_unchanged(script, scripts / f"{number:02}-{script.path.name}").chmod(0o755)
        write_tree(self.files, files)
        options = {
            "PHANTOM_USER_DATA_FREQUENCY": self.user_data_frequency,
            "PHANTOM_LOGIN_USER": self.login_user,
        }
        lines = (f"{name}={value}\n" for name, value in options.items())
        (folder / "user-data-options").write_text("".join(lines))

    def _write_cloud_init(self, folder: Path) -> None:
        """Lays out what configures cloud-init, for the element `phantom-appliance`."""
        folder.mkdir()
        if self.user_data_runner is None:
            return
        for path, text in self.cloud_init.items():
            file = folder / "files" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (folder / "runner").write_text(f"{self.user_data_runner}\n")

    def _tree_bytes(self, wheels: Artifact | None) -> int:
        """What packages, files and wheels take; scripts and hooks may add to it."""
        files = (file for file in self.files if isinstance(file, CopiedFile))
        copied = sum(file.content.path.stat().st_size for file in files)
        unpacked = 0 if wheels is None else int(wheels.facts["installed_bytes"])
        copied += 0 if wheels is None else int(wheels.facts["bytes"])
        # As handed over, and in place
        return self.resolution.installed_bytes + 2 * copied + unpacked

    def _environment(self, tree: Path, context: Context) -> dict[str, str]:
        *ours, _ = dib.elements_path()  # diskimage-builder adds its own
        work, build = context.work, context.work / "build"
        return {
            **(run.proxy_environment() if self.network else {}),
            **(VARIABLES if self.certificates else {}),
            **{name: os.environ[name] for name in CALLERS if name in os.environ},
            "DIB_PYTHON_EXEC": sys.executable,
            "DIB_PYTHON_VERSION": "3",
            **self.environment,
            "DIB_NO_TIMESTAMP": "1",
            "DIB_NO_TMPFS": "1",
            "DIB_RELEASE": self.tree.release,
            "ELEMENTS_PATH": ":".join(map(str, ours)),
            "HOME": str(build),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{namespace.PROGRAMS}:{dib.PROGRAMS}:{SYSTEM_PATH}",
            "PHANTOM_APPLIANCE": str(work / "appliance"),
            "PHANTOM_AUTOMATIC": str(work / "automatic"),
            "PHANTOM_CERTIFICATES": str(work / "certificates"),
            "PHANTOM_CLOUD_INIT": str(work / "cloud-init"),
            **({"PHANTOM_KEEP_FAILED": "yes"} if context.keep_failed else {}),
            "PHANTOM_KERNEL": self.kernel,
            "PHANTOM_OUTPUT": str(context.out),
            "PHANTOM_OWNER": namespace.owner(work),
            "PHANTOM_SOURCES": str(work / "sources.list"),
            "PHANTOM_TREE": str(tree),
            # Digests of secrets differ from store to store, and the same image is to be the same.
            "PHANTOM_UUID": str(uuid.uuid5(_NAMESPACE, replace(self, secrets=()).key)),
            "SOURCE_DATE_EPOCH": str(self.epoch),
            "TMPDIR": str(build),
            "TMP_DIR": str(build),
            "_LIB": str(work / "lib"),
        }

    def _facts(self, context: Context) -> Mapping[str, Any]:
        root = context.out / ROOT
        self._check_packages(context)
        context.progress.step("computing the digest")
        identities = context.out / _IDENTITIES
        return {
            "sha256": sparse.sha256_in_background(root),
            "bytes": root.stat().st_size,
            "identities": json.loads(identities.read_text()) if identities.is_file() else None,
        }

    def _check_packages(self, context: Context) -> None:
        """Checks that the image has exactly the packages of its key. Raises StageFailedError."""
        lines = (context.out / PACKAGES).read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        installed = {tuple(row[:3]) for row in rows if row[3:] == ["installed"]}
        expected = {(made.name, made.version, made.architecture) for made in self.packages}
        extra, missing = sorted(installed - expected), sorted(expected - installed)
        if extra or missing:
            did = [
                f"{verb} {', '.join(f'{name} {version}' for name, version, _ in packages[:8])}"
                for verb, packages in (("installed", extra), ("removed", missing))
                if packages
            ]
            raise StageFailedError(
                f"a script or a hook {' and '.join(did)} in the image",
                todo="name packages in the definition, or in an element's package-installs.yaml, "
                "instead of installing or removing them; what the archive does not have needs a "
                "base image, where scripts may install packages (docs/base-images.md)",
                log=context.log,
            )


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Packages and elements as the source of a root file system."""

    from_base_image: ClassVar[bool] = False

    source: ScratchSource
    root: ScratchRoot
    pinned: Collection[str] = ()
    """`name=version` of the packages that the definition pins."""
    base: BaseFile | None = None

    def plan_contents(self, images: Sequence[Stage]) -> None:
        """None: the plan knows the packages, and `root` computes the digest."""

    def describe_inputs(self, contents: Artifact | None) -> dict[str, Any]:
        """The packages come from the plan."""
        source = asdict(self.source)
        if not self.source.network:
            del source["network"]
        if self.source.components == ("main",):
            del source["components"]
        files = deb.describe(self.root.tree.archive.files)
        return {
            "source": {"scratch": source},
            "repeatable": not self.source.network,
            **describe_secrets(self.root.secrets),
            **describe_certificates(self.root.certificates),
            "archive": {"validity_checked": apt_lists.checks_valid_until()},
            "packages": [asdict(package) for package in self.root.packages],
            **({"package_files": files} if files else {}),
            "pinned_packages": sorted(self.pinned),
            "left_out_packages": list(self.root.resolution.left_out),
            "elements": describe_elements(self.root.elements),
        }


def plan_scratch(source: ScratchSource, request: Request) -> Scratch:
    """The stage that makes the root file system; asks the archive for its packages.

    Raises KernelError, UnknownElementError, UnknownPackageError, MirrorError, DiskTooSmallError.
    """
    appliance = request.appliance
    secrets = read_secrets(appliance, request.store, keep=request.keep)
    with elements_located(appliance):
        check_supported(appliance, source, dib.find(source.element))
    booting = (cloud for cloud in request.clouds if cloud.hardware.own_kernel)
    hardware = {cloud.site.name: cloud.hardware for cloud in booting}
    with located(appliance.positions.find("kernel")):
        kernel = choose_kernel(appliance.kernel, source.release, hardware)
    certificates = plan_certificates(appliance, network=source.network)
    root = replace(
        _plan_root(appliance, source, kernel, request), secrets=secrets, certificates=certificates
    )
    for cloud in request.clouds:
        _check_disk_size(appliance, cloud, root.resolution.installed_bytes)
    pinned = [package for package in appliance.packages if split_pin(package)[1] is not None]
    return Scratch(source=source, root=root, pinned=pinned)


def _plan_root(
    appliance: Appliance, source: ScratchSource, kernel: str, request: Request
) -> ScratchRoot:
    with elements_located(appliance):
        elements = dib.expand([source.element, _APPLIANCE_ELEMENT, *appliance.elements])
    mirrors, archive, resolution = _resolve(appliance, source, kernel, elements, request)
    names = {package.name for package in resolution.packages}
    check_interpreters(appliance, names)
    runner = appliance.user_data_runner if "cloud-init" in names else None
    settings = cloud_init.settings(runner) if runner else {}
    epoch = read_epoch()
    tree = plan_packages(
        resolution,
        archive,
        release=source.release,
        architecture=source.architecture,
        element=elements[source.element],
        answers=make_answers(appliance.customizations),
        epoch=epoch,
    )
    return ScratchRoot(
        inputs=(tree, *plan_for_packages(appliance, resolution.packages)),
        kernel=kernel,
        user_data_frequency=appliance.user_data_frequency,
        user_data_runner=runner,
        cloud_init={str(path): text for path, text in settings.items()},
        login_user=appliance.login_user,
        elements=tuple(
            request.snapshot.once(("element", *element), partial(ElementTree.read, *element))
            for element in elements.items()
        ),
        requested=resolution.requested,
        apt_sources=mirrors.image_sources(),
        files=copied_files(appliance),
        customizations=make_steps(appliance.customizations, appliance.positions, appliance.files),
        scripts=tuple(own_file(script) for script in appliance.scripts),
        network=source.network,
        environment=dict(appliance.environment),
        tools={
            "diskimage-builder": dib.version(),
            "e2fsprogs": _e2fsprogs_version(),
        },
        epoch=epoch,
        room=min(
            (appliance.disk_size_on(cloud.site.cloud) for cloud in request.clouds),
            default=appliance.disk_size,
        ),
    )


def _resolve(
    appliance: Appliance,
    source: ScratchSource,
    kernel: str,
    elements: Mapping[str, Path],
    request: Request,
) -> tuple[apt.Mirrors, apt.Archive, apt.Resolution]:
    """The packages of the root file system, and where they come from."""
    variables = {
        **appliance.environment,
        "ARCH": source.architecture,
        "DIB_RELEASE": source.release,
        "PHANTOM_KERNEL": kernel,
    }
    with located(appliance.positions.find("elements")):
        asked = request.snapshot.once(
            ("packages", *elements.items(), *sorted(variables.items())),
            lambda: dib.packages(elements, variables),
        )
    repositories = find_repositories(appliance.customizations, appliance.positions)
    mirrors = apt.find_mirrors(source.release, source.components, repositories)
    files = deb.read_packages(appliance.package_files)
    wanted = wanted_packages(appliance, elements, asked)
    if request.pins is not None:
        past = replace(mirrors, **snapshots())
        old = apt.Archive(past, source.architecture, request.store, files)
        return mirrors, old, old.take(request.pins, wanted)
    archive = apt.Archive(mirrors, source.architecture, request.store, files, request.snapshot)
    with located(appliance.positions.find("packages")):
        resolution = archive.resolve(
            wanted, without=unwanted_packages(appliance), keep=request.keep
        )
    return mirrors, archive, resolution


def _check_disk_size(appliance: Appliance, cloud: Cloud, installed: int) -> None:
    """Refuses a disk that is much too small before a build; the stage `disk` decides in the end.

    Packages count their documentation, never a third of them, which the image leaves out.
    """
    size = appliance.disk_size_on(cloud.site.cloud)
    if size < installed * 2 // 3:
        raise DiskTooSmallError(
            f"the disk of {format_size(size)} is too small: the packages alone take about "
            f"{format_size(installed)}",
            where=appliance.positions.find("disk_size"),
            todo="ask for a larger disk_size, or for fewer packages",
        )


@cache
def _e2fsprogs_version() -> str:
    return run.capture(["dpkg-query", "--show", "--showformat=${Version}", "e2fsprogs"])
