"""One site's part of a build: its image is made, booted and published, beside those of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import manifest
from pipeline.build import Builder, Built
from pipeline.errors import PhantomError
from pipeline.manifest import ManifestImage
from pipeline.model import (
    BootedImage,
    BootReport,
    ContentKey,
    Disk,
    Image,
    Progress,
    Publication,
    Release,
    Sha256,
)
from pipeline.plan import Plan, Target
from pipeline.publish import publish_image
from pipeline.stages.image import describe_image
from pipeline.workspace import Workspace, link

_PATIENCE = 5.0  # seconds that uploads get, when interrupted, to close what they have open


class Delivery:
    """One site's part of a build: its image, booted and published. `run` is for a thread."""

    def __init__(
        self, plan: Plan, target: Target, builder: Builder, workspace: Workspace, publish: bool
    ) -> None:
        self.site = target.site.name
        self.entry: ManifestImage | None = None
        self.published: tuple[Publication, ...] = ()
        self.error: PhantomError | None = None
        self.defect: BaseException | None = None
        self.ended = False
        self._plan = plan
        self._target = target
        self._builder = builder
        self._workspace = workspace
        self._publish = publish

    def run(self, stopping: threading.Event) -> None:
        """Does all of it; what went wrong is in `error`, or in `defect` where it is ours."""
        try:
            self._run(stopping)
        except PhantomError as error:
            self.error = error
        except BaseException as defect:  # noqa: BLE001 # the main thread raises it
            self.defect = defect
        self.ended = True

    def _run(self, stopping: threading.Event) -> None:
        built = self._wait()
        build = manifest.build_name(
            self._plan.appliance, _root_sha256(self._target, built), self._plan.makers
        )
        folder = self._workspace.folder(self._plan.appliance.name) / build
        name = self._target.cloud.image_name(self._plan.appliance, build)
        before = manifest.read_manifest(folder.parent, build)
        self.published = tuple(
            each
            for each in (manifest.publications_of(before) if before is not None else [])
            if each.site == self.site
        )
        self._note(built, name, folder)
        if not self._publish:
            return
        try:
            with self._workspace.errors():
                published = publish_image(
                    self._target.cloud,
                    self._booted(),
                    self._release(build, name, folder),
                    make_sound=lambda: self._make_sound(built, name, folder),
                    known=self.published,
                    store=self._workspace.store,
                    folder=self._workspace.site_folder(self.site),
                    progress=_Stoppable(self._workspace.progress(f"publish {self.site}"), stopping),
                )
        except PhantomError as error:
            self._keep(error.published)
            raise error.located(f"site {self.site}") from error
        self._keep(published)

    def _keep(self, published: Sequence[Publication]) -> None:
        """Takes note of what was published now. What lies in other regions, where an earlier run
        put it, is still there."""
        regions = {each.region for each in published}
        others = [each for each in self.published if each.region not in regions]
        self.published = (*published, *others)

    def _note(self, built: Mapping[ContentKey, Built], name: str, folder: Path) -> None:
        """Gives the image its name in the build's folder."""
        entry = _make_entry(self._target, built, name)
        with self._workspace.errors():
            link(entry.image.file, folder / entry.file)
        self.entry = entry

    def _booted(self) -> BootedImage:
        assert self.entry is not None
        return BootedImage(image=self.entry.image, reports=tuple(self.entry.reports))

    def _make_sound(
        self, built: Mapping[ContentKey, Built], name: str, folder: Path
    ) -> BootedImage:
        """The image, made anew if it is of an earlier run and not as it was stored."""
        image = self._target.image
        if built[image.key].reused and self._builder.renew(image):
            leaves = self._target.leaves
            again = Builder(self._workspace.store, self._workspace.progress).build(leaves)
            self._note(
                {stage.key: each for stage, each in zip(leaves, again, strict=True)}, name, folder
            )
        return self._booted()

    def _wait(self) -> Mapping[ContentKey, Built]:
        leaves = self._target.leaves
        futures = self._builder.submit(leaves)
        return {stage.key: each.result() for stage, each in zip(leaves, futures, strict=True)}

    def _release(self, build: str, name: str, folder: Path) -> Release:
        appliance = self._plan.appliance
        return Release(
            appliance=appliance.name,
            version=appliance.version,
            build=build,
            name=name,
            summary=appliance.summary,
            labels=appliance.labels,
            folder=folder,
        )


class _Stopped(KeyboardInterrupt):
    """The command was interrupted; raised in the threads that publish."""


class _Stoppable:
    """Progress that ends the work that tells it, once the command has been interrupted."""

    def __init__(self, progress: Progress, stopping: threading.Event) -> None:
        self._progress = progress
        self._stopping = stopping

    def step(self, text: str) -> None:
        self._look()
        self._progress.step(text)

    def advance(self, done: int, total: int | None) -> None:
        self._look()
        self._progress.advance(done, total)

    def output(self, line: str) -> None:
        self._look()
        self._progress.output(line)

    def _look(self) -> None:
        if self._stopping.is_set():
            raise _Stopped


def run_side_by_side(deliveries: Sequence[Delivery], builder: Builder) -> None:
    """Runs each on a thread of its own. When interrupted, it waits a little for them to let go, and
    leaves the rest to the end of the process: all of it survives that."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=each.run, args=(stopping,), daemon=True) for each in deliveries
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stopping.set()
        builder.stop()
        deadline = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _image(target: Target, built: Mapping[ContentKey, Built]) -> Image:
    made = describe_image(built[target.image.key].artifact)
    disk_sha256 = Sha256(built[target.hash.key].artifact.facts["sha256"])
    return Image(
        site=target.site.name,
        cloud=target.site.cloud,
        file=made.file,
        disk=target.cloud.disk,
        bytes=made.bytes,
        sha256=made.sha256 or disk_sha256,
        md5=made.md5,
        disk_bytes=made.disk_bytes,
        disk_sha256=disk_sha256,
    )


def _make_entry(target: Target, built: Mapping[ContentKey, Built], name: str) -> ManifestImage:
    return ManifestImage(
        file=_file_name(name, target.cloud.disk),
        image=_image(target, built),
        root_sha256=_root_sha256(target, built),
        reports=[
            BootReport(machine=boot.machine.name, passed=True, facts=built[boot.key].artifact.facts)
            for boot in target.boots
        ],
    )


def _file_name(name: str, disk: Disk) -> str:
    """What an image's file is called in the build's folder: as at its site, as far as file names
    may, and with an end that tells what it is."""
    safe = name.replace("/", "_")
    return safe if disk.compression is not None else f"{safe}{disk.suffix}"


def _root_sha256(target: Target, built: Mapping[ContentKey, Built]) -> Sha256:
    told = target.image if target.contents is None else target.contents
    return Sha256(built[told.key].artifact.facts["root_sha256"])
