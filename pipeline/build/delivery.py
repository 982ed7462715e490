"""One site's part of a build: makes, boots and publishes its image while other sites do so too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pipeline.build import manifest
from pipeline.build.builder import Builder, Built
from pipeline.build.gate import Verdict, judge
from pipeline.build.manifest import ManifestImage
from pipeline.build.plan import Plan, Target
from pipeline.build.release import make_entry, make_release
from pipeline.build.sites import open_site
from pipeline.checks.report import make_error
from pipeline.clouds import Cloud
from pipeline.errors import PhantomError, located
from pipeline.model import BootedImage, ContentKey, Image, Progress, Publication, Release
from pipeline.progress import failing
from pipeline.store import Artifact
from pipeline.workspace import Workspace, link

PATIENCE = 5.0  # seconds that uploads get, when interrupted, to close what they have open


class SiteThread(threading.Thread):
    """Work for one site. It ends with the process, so that an interrupt need not wait for a network
    that is gone. `error` keeps the PhantomError that ended it, `defect` any other exception."""

    def __init__(self, site: str, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.error: PhantomError | None = None
        self.defect: BaseException | None = None
        self.seconds = 0.0
        self._work = work

    def run(self) -> None:
        started = time.monotonic()
        try:
            self._work()
        except PhantomError as error:
            self.error = error
        except BaseException as defect:  # noqa: BLE001 # the main thread raises it
            self.defect = defect
        finally:
            self.seconds = time.monotonic() - started


class Sending(SiteThread):
    """One site's image on its way there: `entry` tells what it is, `published` what the site has.

    `stopping` is set when the command is interrupted.
    """

    def __init__(
        self,
        cloud: Cloud,
        stopping: threading.Event,
        workspace: Workspace,
        work: Callable[[], None],
    ) -> None:
        super().__init__(cloud.site.name, work)
        self.published: tuple[Publication, ...] = ()
        self.sent_bytes = 0
        """Of the image, at most, where the site lacked it: without what is empty, where the cloud
        leaves that out."""
        self.cloud = cloud
        self._stopping = stopping
        self._workspace = workspace

    def _send(self, image: Image, release: Release, make_booted: Callable[[], BootedImage]) -> None:
        """Uploads the image unless its bytes are there, and makes it visible to the site's users.
        `make_booted` gives what is uploaded, and is called only where it is. `published` then has
        the site's own publication, those in further regions, and what was known before."""
        try:
            with located(f"site {self.site}"), self._workspace.errors():
                published = self._publish(image, release, make_booted)
        except PhantomError as error:
            self._keep(error.published)
            raise
        self._keep(published)

    def _keep(self, published: Sequence[Publication]) -> None:
        """Notes what was published now. Publications of earlier runs in other regions remain."""
        regions = {each.region for each in published}
        others = [each for each in self.published if each.region not in regions]
        self.published = (*published, *others)

    def _publish(
        self, image: Image, release: Release, make_booted: Callable[[], BootedImage]
    ) -> tuple[Publication, ...]:
        """What was there already keeps the time that the last manifest gives."""
        shown = self._workspace.progress(f"publish {self.site}")
        progress = _Stoppable(shown, self._stopping)
        waiting = "another command publishes there; waiting for it"
        with (
            failing(shown, self._stopping.is_set),
            open_site(self.cloud, self._workspace, lambda: progress.step(waiting)) as cloud,
        ):
            publication = cloud.find(image, release)
            if publication is None:
                publication = cloud.upload(make_booted(), release, progress)
                self.sent_bytes = min(progress.most or image.bytes, image.bytes)
            else:
                progress.step(f"{release.name} is there already")
            # Even if it was there: an earlier run may have ended between upload and publish.
            published = cloud.publish(publication, release, progress)
        progress.finish(f"done: {', '.join(each.image_id for each in published)}")
        return tuple(_with_known_time(each, self.published) for each in published)


class Delivery(Sending):
    """One site's part of a build: its image, booted and, with `publish`, published."""

    def __init__(
        self, plan: Plan, target: Target, builder: Builder, workspace: Workspace, *, publish: bool
    ) -> None:
        super().__init__(target.cloud, builder.stopping, workspace, self._deliver)
        self.entry: ManifestImage | None = None
        self.verdict: Verdict | None = None
        self._plan = plan
        self.target = target
        self._builder = builder
        self._publishes = publish

    def _deliver(self) -> None:
        built = _by_key(future.result() for future in self._builder.submit(self.target.leaves))
        builds = self._workspace.folder(self._plan.appliance.name)
        release = make_release(self._plan, self.target, _artifacts(built), builds)
        before = manifest.read_manifest(release.folder.parent, release.build)
        known = [] if before is None else manifest.publications_of(before)
        self.published = tuple(each for each in known if each.site == self.site)
        entry = self._note(built, release)
        self.verdict = judge(self._plan.appliance, built[self.target.gate.key].artifact.facts)
        if self._publishes:
            self._refuse(self.verdict)
            self._send(entry.image, release, lambda: self._reverify(entry, built, release))

    def _refuse(self, verdict: Verdict) -> None:
        """Raises GateError where the image must not be published."""
        error = make_error(verdict.counted)
        if error is not None:
            error.where = f"site {self.site}"
            raise error

    def _note(self, built: Mapping[ContentKey, Built], release: Release) -> ManifestImage:
        """Gives the image its name in the build's folder."""
        entry = make_entry(self.target, _artifacts(built), release.name)
        with self._workspace.errors():
            link(entry.image.file, release.folder / entry.file)
        self.entry = entry
        return entry

    def _reverify(
        self, entry: ManifestImage, built: Mapping[ContentKey, Built], release: Release
    ) -> BootedImage:
        """The image, made again if it comes from an earlier run and was damaged since."""
        image = self.target.image
        if built[image.key].reused and self._builder.renew(image):
            builder = Builder(
                self._workspace.store, self._workspace.progress, self._workspace.failed
            )
            entry = self._note(_by_key(builder.build(self.target.leaves)), release)
        return BootedImage(image=entry.image, reports=tuple(entry.reports))


class _Stoppable:
    """Progress that ends the work that reports to it, once the command has been interrupted."""

    def __init__(self, progress: Progress, stopping: threading.Event) -> None:
        self.most = 0
        """Bytes of which `advance` said that they are done."""
        self._progress = progress
        self._stopping = stopping

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self._look()
        self._progress.step(text, seconds=seconds)

    def finish(self, text: str) -> None:
        self._look()
        self._progress.finish(text)

    def fail(self, text: str) -> None:
        self._progress.fail(text)

    def advance(self, done: int, total: int | None) -> None:
        self._look()
        self.most = max(self.most, done)
        self._progress.advance(done, total)

    def output(self, line: str) -> None:
        self._look()
        self._progress.output(line)

    def _look(self) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt  # here in a thread that publishes


def run_side_by_side(deliveries: Sequence[SiteThread], builder: Builder) -> None:
    """Runs all deliveries. After an interrupt they get a few seconds to close what they have open;
    those that still run end with the process, and a later command continues them."""
    for delivery in deliveries:
        delivery.start()
    try:
        for delivery in deliveries:
            delivery.join()
    except BaseException:
        builder.stop()
        deadline = time.monotonic() + PATIENCE
        for delivery in deliveries:
            delivery.join(max(0.0, deadline - time.monotonic()))
        raise


def check_sites(clouds: Sequence[Cloud], workspace: Workspace) -> dict[str, PhantomError]:
    """Asks every site, before anything is built, whether it will take its image. Returns the errors
    by site, and reports them at once if other sites go on."""
    checks = [
        SiteThread(cloud.site.name, partial(_check_site, cloud, workspace)) for cloud in clouds
    ]
    for check in checks:
        check.start()
    for check in checks:
        check.join()
    raise_defects(checks)
    errors = {check.site: check.error for check in checks if check.error is not None}
    if len(errors) < len(checks):
        for site, error in errors.items():
            workspace.progress(f"publish {site}").fail(f"left out: {error.what}")
    return errors


def _check_site(cloud: Cloud, workspace: Workspace) -> None:
    if cloud.site.sandbox:
        return  # the sandbox's own server makes its credentials
    site = cloud.site.name
    with located(f"site {site}"), cloud.open(workspace.site_folder(site)):
        cloud.check()


def raise_defects(threads: Sequence[SiteThread]) -> None:
    """Raises the first defect of these threads."""
    for thread in threads:
        if thread.defect is not None:
            raise thread.defect


def _with_known_time(publication: Publication, known: Sequence[Publication]) -> Publication:
    same = (each for each in known if replace(publication, published_at=each.published_at) == each)
    return next(same, publication)


def _artifacts(built: Mapping[ContentKey, Built]) -> dict[ContentKey, Artifact]:
    return {key: result.artifact for key, result in built.items()}


def _by_key(built: Iterable[Built]) -> dict[ContentKey, Built]:
    return {result.artifact.key: result for result in built}
