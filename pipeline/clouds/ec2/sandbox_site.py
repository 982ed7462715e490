"""A sandbox site of EC2: the command starts an emulator and runs all verbs against it. The emulator
forgets everything when the site is closed, so records of what was made stay in the site's folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.foresight import foresee_rehearsal
from pipeline.clouds.ec2.launch import make_gone
from pipeline.clouds.ec2.region import Described, Region
from pipeline.clouds.ec2.register import make_order
from pipeline.clouds.ec2.sandbox import (
    CONNECTIONS,
    Rehearsal,
    Rehearsals,
    check_emulator,
    check_space,
    compare_blocks,
    start_emulator,
)
from pipeline.clouds.ec2.sandbox_server import LOG, NO_SPACE
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import Ec2Settings, resolve_settings
from pipeline.clouds.ec2.tokens import make_space_error, written
from pipeline.clouds.ec2.upload import upload_snapshot
from pipeline.clouds.held import Held
from pipeline.clouds.launching import Launch, LaunchOrder
from pipeline.errors import NameTakenError, located
from pipeline.model import (
    BootedImage,
    Image,
    Leftover,
    Outlook,
    Progress,
    Publication,
    Release,
    Sha256,
    Site,
)
from pipeline.tools.aws import Account, Refused
from pipeline.tools.aws_session import make_dummy_session

REGION = "us-east-1"
ACCOUNT = "sandbox"
"""Stands for the account in the locations of a sandbox, whose own number is the emulator's."""

_OF_AMAZON = ("profile", "endpoint", "ca_bundle")
"""Options of a site that mean nothing to an emulator."""


def resolve_sandbox_settings(site: Site) -> Ec2Settings:
    """The settings of a sandbox site. Raises DefinitionError for contradictory options."""
    kept = {name: option for name, option in site.options.items() if name not in _OF_AMAZON}
    settings = resolve_settings(replace(site, options={"region": REGION, **kept}))
    # The emulator has no import service; what matters is rehearsed all the same.
    return replace(settings, method="ebs-direct", emulated=True)


class SandboxSession(Session):
    """A sandbox site whose emulator runs."""

    @cached_property
    def account_id(self) -> str:
        """Stands for the emulator's account."""
        self.home.find_account()  # shows that the emulator answers
        return ACCOUNT


class Ec2Sandbox(Ec2):
    """A sandbox site. Its credentials are made up, and no call can reach Amazon."""

    def check_size(self, disk_size: int) -> None:
        """As `Ec2.check_size`; and looks whether the emulator is installed: no earlier verb could
        tell. Raises HostError too."""
        super().check_size(disk_size)
        check_emulator()

    @contextmanager
    def _start_session(self, folder: Path) -> Iterator[Session]:
        with start_emulator(folder) as endpoint:
            account = Account(make_dummy_session(), endpoint=endpoint, isolated=True)
            self._folder = folder
            yield SandboxSession(
                self.site, self._resolve(), account, clock=self._clock, pause=self._pause
            )

    def _resolve(self) -> Ec2Settings:
        return resolve_sandbox_settings(self.site)

    def find_risks(self) -> Sequence[str]:
        """None: nothing leaves this host."""
        return ()

    def find_credentials(self) -> str:
        """They are made up."""
        return "made by the command"

    def foresee(self, image: Image, release: Release, folder: Path) -> Outlook:
        """What `upload` would do, by the records of rehearsals; no emulator is started."""
        known = Rehearsals(folder).find(release.name)
        content = known.content if known is not None and known.published else None
        return foresee_rehearsal(image, content)

    @property
    def _rehearsals(self) -> Rehearsals:
        return Rehearsals(self._folder)

    # ---- the verbs

    def check(self) -> None:
        """Shows that the emulator answers: there are no rights to prove."""
        with self._opened.translate_errors():
            _ = self._opened.account_id

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication that was rehearsed with these bytes under this name."""
        return self._find_rehearsed(image, release) or super().find(image, release)

    def _find_rehearsed(self, image: Image, release: Release) -> Publication | None:
        known = self._rehearsals.find(release.name)
        if known is None or known.content != image.disk_sha256:
            return None
        here = known.publications[0].image_id in self._opened.made
        return known.publications[0] if known.published or here else None

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """As `Ec2.upload`; the snapshot is read back and compared with the disk."""
        image = booted.image
        known = self._find_rehearsed(image, release)
        if known is not None:
            progress.output(f"{known.location} was rehearsed with the same bytes")
            return known
        self._check_name(image, release)
        publication = super().upload(booted, release, progress)
        made = Rehearsal(name=release.name, content=image.disk_sha256, publications=(publication,))
        self._rehearsals.write(made)
        return publication

    def _check_name(self, image: Image, release: Release) -> None:
        known = self._rehearsals.find(release.name)
        if known is not None and known.published and known.content != image.disk_sha256:
            raise NameTakenError(
                f"{known.publications[0].image_id} has the name {release.name!r} already, and "
                "other content",
                where=f"site {self.site.name}",
                todo="retire it (`phantom-image retire`), raise the appliance's version, or put "
                "{build} into `clouds: ec2: image_name:`",
            )

    def _make_snapshot(self, image: Image, release: Release, tags: Mapping[str, str]) -> str:
        """Sends the whole disk, since the emulator knows no parents, and reads the snapshot back.
        The records of the upload are removed: a later run could not use them."""
        session, folder, progress = self._opened, self._folder, self._opened.progress
        ebs = Ebs(session.account, session.home.name, connections=CONNECTIONS)
        scratch = folder / "upload"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        check_space(folder, image.file)
        with written(scratch):
            scratch.mkdir()
        try:
            order = make_order(session, image, release, tags, scratch / "records")
            sent = upload_snapshot(ebs, order, session.home, progress, pause=self._pause)
        except Refused as refused:
            if refused.code != NO_SPACE:
                raise
            raise make_space_error(str(folder), refused.message) from refused
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        progress.step(f"reading {sent.snapshot_id} back")
        compare_blocks(ebs, sent.snapshot_id, image.file, progress, log=folder / LOG)
        return sent.snapshot_id

    def publish(
        self, publication: Publication, release: Release, progress: Progress
    ) -> tuple[Publication, ...]:
        """As `Ec2.publish`, unless it was rehearsed before."""
        known = self._rehearsals.find(release.name)
        if known is not None and known.published:
            return known.publications
        here = replace(release, folder=self._folder)
        published = super().publish(publication, here, progress)
        if known is not None:
            self._rehearsals.write(replace(known, publications=published, published=True))
        return published

    def _deprecate(self, image: Described, region: Region, progress: Progress) -> None:
        try:
            super()._deprecate(image, region, progress)
        except Refused as refused:
            if refused.code != "InvalidAction":
                raise
            progress.output(f"skipped: the emulator has no {refused.action} (deprecation)")

    def read_back(
        self, publication: Publication, disk_bytes: int, progress: Progress
    ) -> Held | None:
        """By the record of its rehearsal: the emulator has forgotten the image."""
        for known in self._rehearsals.list():
            if known.published and publication.location in {
                each.location for each in known.publications
            }:
                return Held(sha256=Sha256(known.content), of_disk=True, read=False)
        return None

    def retire(self, publication: Publication) -> None:
        """As `Ec2.retire`, and forgets that the image was rehearsed."""
        super().retire(publication)
        self._rehearsals.remove(publication)

    def _check_unused(self, region: Region, image_id: str) -> Sequence[str]:
        """Nothing uses it: the emulator started with the command."""
        return ()

    def launch(self, order: LaunchOrder, *, dry_run: bool) -> Launch:
        """As `Ec2.launch`; the emulator, which started anew, takes the image's id as it is."""
        images = {each.image_id for each in self.list()}
        if order.data["ImageId"] not in images:
            with located(self._opened.where):
                raise make_gone(order)
        return super().launch(order, dry_run=dry_run)

    def list(self) -> Sequence[Publication]:
        """The images that were rehearsed."""
        known = self._rehearsals.list()
        return [
            publication
            for rehearsal in known
            if rehearsal.published
            for publication in rehearsal.publications
        ]

    def find_leftovers(self) -> Sequence[Leftover]:
        """None: the emulator forgets everything."""
        return []
