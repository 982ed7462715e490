"""A root file system from an image that exists: libguestfs, in one launch of its appliance."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import (
    ArchitectureError,
    ChecksumError,
    DefinitionError,
    DiskTooSmallError,
    MirrorError,
    StageFailedError,
    UnknownElementError,
)
from pipeline.guest import (
    booting,
    cleaning,
    geometry,
    injection,
    inspection,
    packages,
    root,
    scripts,
    selinux,
)
from pipeline.guest.appliance import CPUS, MEMORY, Drive, Guest, launched
from pipeline.guest.files import Copy, ImageFiles
from pipeline.guest.system import System
from pipeline.model import (
    MIB,
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    ContentKey,
    Sha256,
    format_size,
)
from pipeline.sources.base_disk import BASE, BaseDisk, stamp_of
from pipeline.sources.download import Download
from pipeline.sources.scratch import (
    PACKAGES,
    ROOT,
    CopiedFile,
    ElementTree,
    copy_unchanged,
    network_environment,
)
from pipeline.sources.transport import shown
from pipeline.stages.base import (
    HERE_ONLY,
    Context,
    LocalFile,
    Stage,
    digest_of_tree,
    key_of,
    local_file,
)
from pipeline.store import Artifact, Store, write_atomically
from pipeline.tools import apt, dib

AROUND_ROOT = 65 * MIB
"""What the widest layout, `hybrid`, takes of a disk beside root."""

HEAD = "head.raw"
"""What lies before root on a base's disk, where its boot loader is kept."""

_TOLD = ("product", "distribution", "release", "architecture")
_RUNNABLE = ("x86_64", "i686")
_INSPECTION_REVISION = 1  # raised when `inspection` finds something else in the same image


@dataclass(frozen=True, kw_only=True)
class BaseRoot(Stage):
    """The root file system of a base image, changed as the definition asks, as one ext file system
    in a file. It is as large as the smallest disk that is asked for allows, and lies on the disks
    of all sites: `/boot` and the like are folded into it.

    Its facts are those of the image besides: `system`, as it was found; `kept`, where its own
    partition table and boot loader serve one of the layouts. Raises the errors of `pipeline.guest`.
    """

    name: ClassVar[str] = "root"
    cores: ClassVar[int] = CPUS

    disk_size: int
    """Bytes of the smallest disk that root is to lie on."""
    packages: tuple[str, ...]
    remove_packages: tuple[str, ...]
    network: bool
    payloads: tuple[ElementTree, ...]
    """The elements whose payload is injected."""
    user_data_runner: str
    user_data_frequency: str
    files: tuple[CopiedFile, ...]
    scripts: tuple[LocalFile, ...]

    script_seconds: int = field(metadata=HERE_ONLY, compare=False)
    store: Store = field(metadata=HERE_ONLY, compare=False, repr=False)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("root from a base image",)

    @property
    def memory(self) -> int:
        """The appliance's."""
        return MEMORY

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (image,) = inputs
        disk, made = image.file(BASE), context.out / ROOT
        self.store.check_space(2 * _data_bytes(disk))
        shape = geometry.read_geometry(disk)
        likely = root.find_likely_root(disk, shape)
        root.make_root(made, self._size(likely), likely)
        room = made.stat().st_size
        working, base = Drive(file=made, name="root", writable=True), Drive(file=disk, name="base")
        with (
            _copying(disk, made, likely) as copied,
            launched(
                [working, base],
                store=context.store,
                log=context.log,
                progress=context.progress,
                network=self.network,
            ) as guest,
        ):
            copied()
            system = self._inspect(guest, shape, base)
            _check_architecture(system)
            root.settle_root(
                guest,
                system,
                likely,
                working=working,
                base=base,
                room=room,
            )
            kept = self._change(guest, system, base, room, context)
            root.trim(guest, room)
        if kept is not None:
            _write_head(disk, context.out / HEAD, kept.root_start)
        return {
            "bytes": made.stat().st_size,
            "kept": None if kept is None else vars(kept),
            "system": inspection.to_facts(system),
        }

    def _size(self, likely: root.Likely | None) -> int:
        """How large the file system may be: there is room on the disk for what a layout of ours, or
        the base's own, has beside it. Raises DiskTooSmallError."""
        place = likely.place if likely is not None and likely.place.partition == 1 else None
        start = place.start or 0 if place is not None else 0
        beside = max(AROUND_ROOT, -(-start // MIB) * MIB + MIB)
        size = self.disk_size - beside
        if likely is not None and likely.bytes > size:
            raise DiskTooSmallError(
                f"the base image's root file system has {format_size(likely.bytes)}, and a disk of "
                f"{format_size(self.disk_size)} has no room for it and what lies beside it",
                todo=f"set disk_size to {-(-(likely.bytes + beside) // MIB)}MiB or more",
            )
        return size

    def _inspect(self, guest: Guest, shape: geometry.Geometry, base: Drive) -> System:
        """What the image is. It is found once for all that start from the same image."""
        (image,) = self.inputs
        key = _inspection_key(image)
        with self.store.lock(f"inspect-{key}"):
            known = self.store.find("inspect", key)
            if known is not None:
                self.store.touch(known)
                return inspection.from_facts(known.facts)
            guest.progress.step("looking into the image")
            system = inspection.inspect_system(guest, shape, base)
            with self.store.making("inspect", key) as folder:
                out = folder / "out"
                out.mkdir()
                self.store.add("inspect", key, out, inspection.to_facts(system))
        return system

    def _change(
        self, guest: Guest, system: System, base: Drive, room: int, context: Context
    ) -> booting.Kept | None:
        """Customises, injects, converts and cleans, in the mounted root file system."""
        proxies = network_environment() if self.network else {}
        files = ImageFiles(guest)
        packages.change_packages(
            guest,
            system,
            install=self.packages,
            remove=self.remove_packages,
            network=self.network,
            apt_sources=_mirrors_for(system) if self.network else None,
            proxies=proxies,
        )
        payloads = [_payload(each) for each in self.payloads]
        context.progress.step("putting the user-data fetcher in")
        with files.alone():
            injection.inject(
                guest,
                files,
                system,
                payloads,
                runner=self.user_data_runner,
                frequency=self.user_data_frequency,
            )
            cleaning.forget_proxies(files)  # those of the image; what the definition sets stays
        self._copy_files(files, context)
        scripts.run_scripts(
            guest,
            files,
            self._own_scripts(context),
            seconds=self.script_seconds,
            network=self.network,
            proxies=proxies,
        )
        context.progress.step("making it boot everywhere, and cleaning up")
        if self.packages or self.remove_packages or self.files or self.scripts:
            system = inspection.look_again(guest, files, system)
        with files.alone():
            injection.settle_runner(
                files,
                system,
                payloads,
                runner=self.user_data_runner,
                frequency=self.user_data_frequency,
            )
            kept = booting.configure_boot(guest, files, system, base=base)
        with root.bounded(guest, room):
            cleaning.clean(guest, files, system)
            selinux.relabel(guest, files, system)
        lines = ("\t".join(each) for each in packages.list_packages(guest, system))
        (context.out / PACKAGES).write_text("".join(f"{line}\n" for line in lines))
        return kept

    def _copy_files(self, files: ImageFiles, context: Context) -> None:
        folder = context.work / "files"
        folder.mkdir()
        copies = []
        for number, file in enumerate(self.files):
            copy = folder / str(number)
            copy_unchanged(file.content, copy)
            copies.append(Copy(target=file.target, mode=file.mode, source=copy))
        files.copy(copies)

    def _own_scripts(self, context: Context) -> list[Path]:
        folder = context.work / "scripts"
        copies = []
        for number, script in enumerate(self.scripts):
            copy = folder / f"{number:02}" / script.path.name
            copy.parent.mkdir(parents=True)
            copy_unchanged(script, copy)
            copies.append(copy)
        return copies


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
class BaseFile:
    """A base image that lies on this host."""

    path: Path
    sha256: Sha256
    stamp: str
    """What `stamp_of` said when the digest was taken."""
    build: str | None = None
    """The build of another appliance that it is of."""


def find_base_file(path: Path, store: Store, *, keep: bool) -> BaseFile:
    """A file of somebody's own. Its digest is computed once for as long as its size and times stay
    as they are; with `keep` false, it is not kept. Raises DefinitionError."""
    try:
        stamp, is_file = stamp_of(path), path.is_file()
    except OSError as error:
        raise DefinitionError(
            f"the base image {path} cannot be read: {error.strerror}",
            todo="fetch it to there, or correct the location",
        ) from error
    if not is_file:
        raise DefinitionError(f"the base image {path} is no file", todo="correct the location")
    memory = store.folder / "digests" / key_of([str(path), stamp])
    digest = Sha256("")
    with suppress(OSError):
        digest = Sha256(memory.read_text().strip())
    if not digest:
        digest = sparse.sha256(path)
        if keep:
            write_atomically(store.path("digests") / memory.name, f"{digest}\n")
    return BaseFile(path=path, sha256=digest, stamp=stamp)


def plan_base_root(
    appliance: Appliance,
    source: BaseImageSource,
    file: BaseFile | None,
    *,
    disk_size: int,
    store: Store,
) -> BaseRoot:
    """The stages that make the root file system, of a file or else of the source's URL.
    `disk_size` is the smallest that a site asks for.

    Raises DefinitionError, UnknownElementError, ChecksumError.
    """
    if file is not None and source.sha256 not in (None, file.sha256):
        raise ChecksumError(
            f"the base image {file.path} is not the one that is pinned: its SHA-256 is "
            f"{file.sha256}, and the definition says {source.sha256}",
            todo=f"fetch the pinned image again, or take this one: `phantom-image pin "
            f"{appliance.name}` writes its digest into the definition",
        )
    for name in appliance.elements:
        _plan_payload(name, dib.find(name))  # before those that it asks for, which nobody named
    elements = dib.expand(appliance.elements)
    return BaseRoot(
        inputs=(_plan_disk(source, file, disk_size),),
        disk_size=disk_size,
        packages=appliance.packages,
        remove_packages=source.remove_packages,
        network=source.network,
        payloads=tuple(_plan_payload(name, folder) for name, folder in elements.items()),
        user_data_runner=appliance.user_data_runner,
        user_data_frequency=appliance.user_data_frequency,
        files=tuple(
            CopiedFile(target=each.target, mode=each.mode, content=local_file(each.source))
            for each in appliance.files
        ),
        scripts=tuple(local_file(each) for each in appliance.scripts),
        script_seconds=source.script_seconds,
        store=store,
    )


def _plan_disk(source: BaseImageSource, file: BaseFile | None, disk_size: int) -> BaseDisk:
    if file is not None:
        local = LocalFile(digest=file.sha256, path=file.path)
        return BaseDisk(
            file=local,
            format=source.format,
            most_bytes=disk_size,
            location=str(file.path),
            stamp=file.stamp,
        )
    assert isinstance(source.location, str) and source.sha256 is not None
    download = Download(sha256=source.sha256, url=source.location)
    return BaseDisk(
        inputs=(download,),
        format=source.format,
        most_bytes=disk_size,
        location=shown(source.location),
    )


def _plan_payload(name: str, folder: Path) -> ElementTree:
    if injection.read_payload(folder) is None:
        raise UnknownElementError(
            f"the element {name!r} has nothing for base images: its hooks run only where an image "
            "is made from scratch",
            todo="leave it out, or do what it does with packages, files and scripts",
        )
    return ElementTree(name=name, tree=LocalFile(digest=digest_of_tree(folder), path=folder))


def describe_inputs(
    source: BaseImageSource, file: BaseFile | None, root: BaseRoot, contents: Artifact
) -> dict[str, Any]:
    """What a manifest says of what the image was made of. Nothing of this host is in it: of a file
    only its name, and no query of a URL, which may be somebody's right to read it."""
    location: object = source.location
    if isinstance(source.location, ApplianceBuild):
        assert file is not None
        location = {"appliance": source.location.name, "build": file.build}
    elif isinstance(source.location, Path):
        location = source.location.name
    else:
        location = shown(source.location)
    return {
        "source": {
            "base_image": {
                "location": location,
                "sha256": source.sha256 if file is None else file.sha256,
                "network": source.network,
                "remove_packages": list(source.remove_packages),
                "system": {name: contents.facts["system"][name] for name in _TOLD},
            }
        },
        "packages": _read_packages(contents),
        "elements": [{"name": each.name, "digest": each.tree.digest} for each in root.payloads],
    }


def _read_packages(contents: Artifact) -> list[dict[str, str | None]]:
    """The packages of the image. What the image's package manager knows has no digest."""
    lines = contents.file(PACKAGES).read_text().splitlines()
    return [
        {"name": name, "version": version, "architecture": architecture, "sha256": None}
        for name, version, architecture in (line.split("\t") for line in lines)
    ]


# ---- small things


@contextmanager
def _copying(disk: Path, made: Path, likely: root.Likely | None) -> Iterator[Callable[[], None]]:
    """Copies the likely root on a thread of its own; what it gives waits until that is done."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = (
            None if likely is None else pool.submit(root.copy_root, disk, made, likely, stop=stop)
        )
        try:
            yield lambda: None if future is None else future.result()
        finally:
            stop.set()


def _check_architecture(system: System) -> None:
    """The appliance runs programs of x86 alone. Raises ArchitectureError."""
    if system.architecture not in _RUNNABLE:
        raise ArchitectureError(
            f"{system.product} is for {system.architecture}, and this host cannot run its programs "
            "to change it",
            todo="take the base image for x86_64 (amd64)",
        )


def _inspection_key(base: Stage) -> ContentKey:
    return key_of({"stage": "inspect", "revision": _INSPECTION_REVISION, "base": base.key})


def _payload(element: ElementTree) -> injection.Payload:
    found = injection.read_payload(element.tree.path)
    if found is None or digest_of_tree(element.tree.path) != element.tree.digest:
        raise StageFailedError(
            f"the element {element.name} was changed after the plan was made",
            todo="run the same command again",
        )
    return found


def _mirrors_for(system: System) -> str | None:
    """The archive as this host reaches it, for an image of the same distribution."""
    if system.distribution != "debian" or not system.codename:
        return None
    try:
        return apt.find_mirrors(system.codename).image_sources() or None
    except MirrorError:
        return None


def _write_head(disk: Path, head: Path, size: int) -> None:
    """Copies a disk's first bytes, sparsely."""
    with disk.open("rb") as source, head.open("wb") as target:
        target.truncate(size)
        for offset, chunk in sparse.data_chunks(source.fileno(), size):
            sparse.write_at(target.fileno(), chunk, offset)


def _data_bytes(file: Path) -> int:
    return file.stat().st_blocks * 512
