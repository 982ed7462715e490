"""A root file system from an image that exists: libguestfs, in one launch of its appliance."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.customizations import make_answers, make_steps
from pipeline.customizations.customization import Step
from pipeline.customizations.repositories import Repository, find_repositories
from pipeline.definitions import yaml as definition_yaml
from pipeline.disk import partitions
from pipeline.disk.system import Geometry, System
from pipeline.errors import (
    ArchitectureError,
    DiskTooSmallError,
    MirrorError,
    StageFailedError,
    UnknownElementError,
    located,
)
from pipeline.guest import (
    booting,
    cleaning,
    identities,
    injection,
    inspection,
    keeping,
    packages,
    root,
    scripts,
    selinux,
)
from pipeline.guest.appliance import CPUS, MEMORY, Drive, Guest, launched
from pipeline.guest.certificates import trusting
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.guest.payload import Payload, read_payload
from pipeline.layouts import AROUND_ROOT
from pipeline.model import (
    MIB,
    ApplianceBuild,
    BaseImageSource,
    Sha256,
    format_size,
    split_pin,
)
from pipeline.sources import BaseFile, Request, elements_located
from pipeline.sources.base_disk import BASE, BaseDisk
from pipeline.sources.base_file import find_base
from pipeline.sources.build_certificates import (
    Certificates,
    check_certificates_left,
    describe_certificates,
    plan_certificates,
    texts_of,
)
from pipeline.sources.build_secrets import (
    Secret,
    check_left,
    describe_secrets,
    handed,
    read_secrets,
)
from pipeline.sources.copied import Copied, bring, copied_files
from pipeline.sources.download import Download
from pipeline.sources.element_trees import ElementTree, describe_elements
from pipeline.sources.scratch import PACKAGES, ROOT
from pipeline.sources.transport import shown
from pipeline.sources.wheels import describe_wheels, lay_out, plan_for_base_image, wheels_of
from pipeline.stages.base import (
    HERE_ONLY,
    IF_ANY,
    Context,
    LocalFile,
    Stage,
    copy_unchanged,
    digest_of_tree,
    key_of,
    own_file,
)
from pipeline.stages.disk import HEAD
from pipeline.store import Artifact, Store
from pipeline.tools import apt, deb, dib, run

_TOLD = ("product", "distribution", "release", "architecture")
_RUNNABLE = ("x86_64", "i686")
_INSPECTION_REVISION = 1  # raised when `inspection` finds something else in the same image


@dataclass(frozen=True, kw_only=True)
class BaseRoot(Stage):
    """The root file system of a base image, changed as the definition asks, as one ext file system
    in a file. It is as large as the smallest disk that is asked for allows, and lies on the disks
    of all sites: `/boot` and the like are folded into it.

    Its facts also describe the image: `system`, as inspected, and `kept`, where its own partition
    table and boot loader serve one of the layouts. Raises the errors of `pipeline.guest`.
    """

    name: ClassVar[str] = "root"
    revision: ClassVar[int] = 2
    cores: ClassVar[int] = CPUS

    disk_size: int
    """Bytes of the smallest disk that root is to lie on."""
    packages: tuple[str, ...]
    remove_packages: tuple[str, ...]
    network: bool
    payloads: tuple[ElementTree, ...]
    """The elements whose payload is injected."""
    makers: tuple[Sha256, ...]
    """Digests of what has machines make their own keys and ids."""
    user_data_runner: str
    user_data_frequency: str
    login_user: str
    files: tuple[Copied, ...]
    answers: str = field(default="", metadata=IF_ANY)
    """What debconf is told before packages are configured."""
    customizations: tuple[Step, ...] = field(default=(), metadata=IF_ANY)
    repositories: tuple[Repository, ...] = field(default=(), metadata=IF_ANY)
    """Archives that packages may come from, beside the image's own."""
    package_files: tuple[deb.LocalPackage, ...] = field(default=(), metadata=IF_ANY)
    scripts: tuple[LocalFile, ...]
    secrets: tuple[Secret, ...] = field(default=(), metadata=IF_ANY)
    """What scripts may read, and the image must not hold."""
    certificates: tuple[Certificates, ...] = field(default=(), metadata=IF_ANY)

    script_seconds: int = field(metadata=HERE_ONLY, compare=False)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("root from a base image",)

    @property
    def memory(self) -> int:
        """The appliance's."""
        return MEMORY

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        image, *_ = inputs
        wheels = wheels_of(inputs)
        disk, made = image.file(BASE), context.out / ROOT
        context.store.check_space(2 * disk.stat().st_blocks * 512)
        shape = partitions.read_geometry(disk)
        likely = root.find_likely_root(disk, shape)
        root.make_root(made, self._size(likely), likely)
        room = made.stat().st_size
        working, base = Drive(file=made, name="root", writable=True), Drive(file=disk, name="base")
        with (
            _copying(disk, made, likely) as copied,
            launched(
                [working, base],
                store=context.store.folder,
                log=context.log,
                progress=context.progress,
                network=self.network,
            ) as guest,
            root.written_out(guest, on_failure=context.keep_failed),
        ):
            copied()
            system = self._inspect(guest, shape, base, context.store)
            _check_architecture(system)
            root.settle_root(guest, system, likely, working=working, base=base, room=room)
            with trusting(guest, texts_of(self.certificates)) as trust:
                proxies = {**run.proxy_environment(), **trust} if self.network else {}
                kept, told = self._change(guest, system, base, room, context, wheels, proxies)
            root.trim(guest, room)
        check_left(self.secrets, context)
        check_certificates_left(self.certificates, context)
        if kept is not None:
            sparse.copy_data(disk, context.out / HEAD, kept.root_start)
        environment = {} if wheels is None else {"python": describe_wheels(wheels)}
        return {
            "bytes": made.stat().st_size,
            "kept": None if kept is None else vars(kept),
            "system": inspection.to_facts(system),
            "identities": told,
            **environment,
        }

    def find_remains(self, context: Context) -> Path:
        return context.out / ROOT

    def _size(self, likely: root.Likely | None) -> int:
        """How large the file system may be: there is room on the disk for what a layout of ours, or
        the base's own, has beside it. Raises DiskTooSmallError."""
        start = likely.place.start or 0 if likely and likely.place.partition == 1 else 0
        beside = max(AROUND_ROOT, -(-start // MIB) * MIB + MIB)
        size = self.disk_size - beside
        if likely is not None and likely.bytes > size:
            raise DiskTooSmallError(
                f"the base image's root file system has {format_size(likely.bytes)}, and a disk of "
                f"{format_size(self.disk_size)} has no room for it and what lies beside it",
                todo=f"set disk_size to {-(-(likely.bytes + beside) // MIB)}MiB or more",
            )
        return size

    def _inspect(self, guest: Guest, shape: Geometry, base: Drive, store: Store) -> System:
        """What the image is; the store keeps it for all that start from the same image."""
        image, *_ = self.inputs
        key = key_of({"stage": "inspect", "revision": _INSPECTION_REVISION, "base": image.key})
        with store.lock(f"inspect-{key}"):
            known = store.find("inspect", key)
            if known is not None:
                store.touch(known)
                return inspection.from_facts(known.facts)
            guest.progress.step("looking into the image")
            system = inspection.inspect_system(guest, shape, base)
            with store.making("inspect", key) as folder:
                store.add("inspect", key, folder, inspection.to_facts(system))
        return system

    def _change(
        self,
        guest: Guest,
        system: System,
        base: Drive,
        room: int,
        context: Context,
        wheels: Artifact | None,
        proxies: Mapping[str, str],
    ) -> tuple[booting.Kept | None, dict[str, Any]]:
        """Customises, injects, converts and cleans, in the mounted root file system. Also returns
        what machines share and what they make for themselves. `proxies` is the environment of what
        reaches the network."""
        image = Image(guest, ImageFiles(guest), system)
        had = identities.note(image.files)
        self._change_packages(image, proxies, context.work / "packages")
        installed = identities.note(image.files) if self.packages or self.package_files else had
        payloads = [_payload(element) for element in self.payloads]
        context.progress.step("putting the user-data fetcher in")
        wanted = {
            "runner": self.user_data_runner,
            "frequency": self.user_data_frequency,
            "login_user": self.login_user,
        }
        with image.files.alone():
            injection.inject(image, payloads, **wanted)
            # Those of the image: what the definition's files and scripts set stays.
            cleaning.forget_proxies(image.files)
        self._customize(image, context, wheels, proxies)
        context.progress.step("making it boot everywhere, and cleaning up")
        if any(
            (
                *(self.packages, self.package_files, self.remove_packages),
                *(self.files, self.customizations, self.scripts),
            )
        ):
            image = inspection.look_again(image)
        with image.files.alone():
            injection.settle_runner(image, payloads, **wanted)
            kept = booting.configure_boot(image, base=base)
            told = identities.settle(image, had, installed)
        with root.bounded(guest, room):
            made = [PurePosixPath(path) for step in self.customizations for path in step.kept]
            keeping.clean(image, [*(file.target for file in self.files), *made])
            selinux.relabel(image)
        lines = ("\t".join(package) + "\n" for package in packages.list_packages(image))
        (context.out / PACKAGES).write_text("".join(lines))
        return kept, told

    def _change_packages(self, image: Image, proxies: Mapping[str, str], work: Path) -> None:
        packages.answer_questions(image, self.answers)
        packages.change_packages(
            image,
            install=self.packages,
            remove=self.remove_packages,
            network=self.network,
            apt_sources=_mirrors_for(image.system) if self.network else None,
            proxies=proxies,
            repositories=self.repositories,
            files=self.package_files,
            work=work,
        )

    def _customize(
        self, image: Image, context: Context, wheels: Artifact | None, proxies: Mapping[str, str]
    ) -> None:
        """Brings the definition's files, applies its keys, and runs its scripts."""
        bring(image.files, self.files, context.work / "files")
        brought = None if wheels is None else lay_out(wheels, context.work / "wheels")
        scripts.run_steps(image, self.customizations, brought)
        scripts.run_scripts(
            image,
            [
                copy_unchanged(script, context.work / "scripts" / f"{number:02}" / script.path.name)
                for number, script in enumerate(self.scripts)
            ],
            places=[definition_yaml.shown(script.path) for script in self.scripts],
            seconds=self.script_seconds,
            network=self.network,
            proxies=proxies,
            secrets=handed(self.secrets),
        )


@dataclass(frozen=True, kw_only=True)
class Contents(Stage):
    """What is in a root file system that came from a base image, for the manifest. A stage of its
    own, since the digest takes as long as the disk is large, and nothing waits for it."""

    name: ClassVar[str] = "contents"

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (made,) = inputs
        shutil.copyfile(made.file(PACKAGES), context.out / PACKAGES)
        context.progress.step("computing the digest of the root file system")
        digest = sparse.sha256(made.file(ROOT), context.progress.advance)
        return {"system": made.facts["system"], "root_sha256": digest}


# ---- planning


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """A base image as the source of a root file system."""

    from_base_image: ClassVar[bool] = True

    source: BaseImageSource
    root: BaseRoot
    base: BaseFile | None

    def plan_contents(self, images: Sequence[Stage]) -> Stage:
        """The stage that lists the packages, which the base image brings."""
        return Contents(inputs=(self.root,), after=tuple(images))

    def describe_inputs(self, contents: Artifact | None) -> dict[str, Any]:
        """Nothing of this host is in it: of a file only its name, and no query of a URL, which may
        grant the right to read it."""
        assert contents is not None
        files = deb.describe(self.root.package_files)
        return {
            "source": {
                "base_image": {
                    "location": self._describe_location(),
                    "sha256": self.source.sha256 if self.base is None else self.base.sha256,
                    "network": self.source.network,
                    "remove_packages": list(self.root.remove_packages),
                    "system": {name: contents.facts["system"][name] for name in _TOLD},
                }
            },
            "repeatable": False,
            **describe_secrets(self.root.secrets),
            **describe_certificates(self.root.certificates),
            "packages": _read_packages(contents, self.root.package_files),
            **({"package_files": files} if files else {}),
            "pinned_packages": sorted(
                package for package in self.root.packages if split_pin(package)[1] is not None
            ),
            "elements": describe_elements(self.root.payloads),
        }

    def _describe_location(self) -> object:
        location = self.source.location
        if isinstance(location, ApplianceBuild):
            assert self.base is not None
            return {"appliance": location.name, "build": self.base.build}
        return location.name if isinstance(location, Path) else shown(location)


def plan_base_image(source: BaseImageSource, request: Request) -> BaseImage:
    """The stages that make the root file system from a file, a build or a URL.

    Raises DefinitionError, UnknownElementError, ChecksumError, BaseNotBuiltError.
    """
    appliance = request.appliance
    secrets = read_secrets(appliance, request.store, keep=request.keep)
    with located(appliance.positions.find("source", "base_image", "location")):
        base = find_base(source, request)
    with elements_located(appliance):
        for name in appliance.elements:
            _plan_payload(name, dib.find(name))  # before those that it depends on
        elements = dib.expand([*appliance.elements, injection.SSH])
        payloads = [_plan_payload(*element) for element in elements.items()]
    # The smallest that the definition asks for: the same whatever sites are chosen.
    sizes = (override.disk_size for override in appliance.clouds.values())
    disk_size = min([appliance.disk_size, *filter(None, sizes)])
    root = BaseRoot(
        inputs=(_plan_disk(source, base, disk_size), *plan_for_base_image(appliance)),
        disk_size=disk_size,
        packages=appliance.packages,
        package_files=deb.read_packages(appliance.package_files),
        remove_packages=tuple(
            dict.fromkeys((*source.remove_packages, *appliance.without_packages))
        ),
        network=source.network,
        payloads=tuple(payloads),
        makers=tuple(map(digest_of_tree, (identities.MAKERS, identities.FIRST_BOOT))),
        user_data_runner=appliance.user_data_runner,
        user_data_frequency=appliance.user_data_frequency,
        login_user=appliance.login_user,
        files=copied_files(appliance),
        answers=make_answers(appliance.customizations),
        customizations=make_steps(appliance.customizations, appliance.positions, appliance.files),
        repositories=find_repositories(appliance.customizations, appliance.positions),
        scripts=tuple(own_file(script) for script in appliance.scripts),
        secrets=secrets,
        certificates=plan_certificates(appliance, network=source.network),
        script_seconds=source.script_seconds,
    )
    return BaseImage(source=source, root=root, base=base)


def _plan_disk(source: BaseImageSource, file: BaseFile | None, disk_size: int) -> BaseDisk:
    disk = partial(BaseDisk, format=source.format, most_bytes=disk_size)
    if file is not None:
        local = LocalFile(digest=file.sha256, path=file.path)
        return disk(file=local, location=str(file.path), stamp=file.stamp)
    assert isinstance(source.location, str) and source.sha256 is not None
    download = Download(sha256=source.sha256, url=source.location)
    return disk(inputs=(download,), location=shown(source.location))


def _plan_payload(name: str, folder: Path) -> ElementTree:
    if read_payload(folder) is None:
        raise UnknownElementError(
            f"the element {name!r} has nothing for base images: its hooks run only where an image "
            "is made from scratch",
            element=name,
            todo="leave it out, or do what it does with packages, files and scripts",
        )
    return ElementTree.read(name, folder)


def _read_packages(
    contents: Artifact, files: Sequence[deb.LocalPackage]
) -> list[dict[str, str | None]]:
    """The packages of the image. What its package manager knows has no digest; `files` have."""
    names = ("name", "version", "architecture")
    digests = {f"{each.name}\t{each.version}\t{each.architecture}": each.sha256 for each in files}
    lines = contents.file(PACKAGES).read_text().splitlines()
    return [
        {**dict(zip(names, line.split("\t"), strict=True)), "sha256": digests.get(line)}
        for line in lines
    ]


# ---- small things


@contextmanager
def _copying(disk: Path, made: Path, likely: root.Likely | None) -> Iterator[Callable[[], None]]:
    """Copies the likely root on its own thread; calling what this yields waits for the copy."""
    stop = threading.Event()
    if likely is None:
        yield lambda: None
        return
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(root.copy_root, disk, made, likely, stop=stop)
        try:
            yield future.result
        finally:
            stop.set()


def _check_architecture(system: System) -> None:
    """The appliance can run x86 programs only. Raises ArchitectureError."""
    if system.architecture not in _RUNNABLE:
        raise ArchitectureError(
            f"{system.product} is for {system.architecture}, and this host cannot run its programs "
            "to change it",
            todo="take the base image for x86_64 (amd64)",
        )


def _payload(element: ElementTree) -> Payload:
    payload = read_payload(element.tree.path)
    if payload is None or ElementTree.read(element.name, element.tree.path) != element:
        raise StageFailedError(
            f"the element {element.name} was changed after the plan was made",
            todo="run the same command again",
        )
    return payload


def _mirrors_for(system: System) -> str | None:
    """The archive as this host reaches it, for an image of the same distribution."""
    if system.distribution != "debian" or not system.codename:
        return None
    try:
        return apt.find_mirrors(system.codename).image_sources() or None
    except MirrorError:
        return None
