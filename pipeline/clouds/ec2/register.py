"""A disk becomes an image in the site's own region: its snapshot is made or found, and registered.

Each step is made only where its result is not there already, so a killed run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.clouds.ec2.blocks import BlockIndex, find_parent
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.journal import journal_file
from pipeline.clouds.ec2.proof import Proofs
from pipeline.clouds.ec2.region import (
    Described,
    Registration,
    get_snapshots,
    get_tags,
    is_ours,
    make_tag_filters,
)
from pipeline.clouds.ec2.replicate import check_volume, find_holder, find_image
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import (
    CONTENT_TAG,
    PIPELINE,
    PIPELINE_TAG,
    SITE_TAG,
    describe_release,
    find_volume_gib,
)
from pipeline.clouds.ec2.upload import SnapshotOrder, upload_snapshot
from pipeline.clouds.ec2.vm_import import Importer
from pipeline.errors import NameTakenError
from pipeline.files import make_folder
from pipeline.model import GIB, Image, Publication, Release, format_size
from pipeline.tools.aws import Refused

SnapshotMaker = Callable[[Image, Release, Mapping[str, str]], str]
"""Makes or finds the completed snapshot of an image, with these tags, and returns its id."""


def find_same_image(session: Session, image: Image, release: Release) -> Described | None:
    """The site's image of this name and these bytes. Raises NameTakenError where the name is
    another's, where the image was made with other options, and where nothing but its tags says that
    it has these bytes."""
    settings, home = session.settings, session.home
    same = find_image(home, release.name, image.disk_sha256, settings)
    if same is not None:
        volume_gib = find_volume_gib(settings, image.disk_bytes, session.site)
        check_volume(same, home, settings, volume_gib)
        _make_proofs(session, image, release).check_image(home, same)
    return same


def _make_proofs(session: Session, image: Image, release: Release) -> Proofs:
    return Proofs(session, release, image.disk_sha256, image.file)


def upload_image(
    session: Session, image: Image, release: Release, make: SnapshotMaker
) -> Publication:
    """The image of a disk, made unless it exists. Raises Refused, Cut and NoCredentials too."""
    _ = session.account_id  # wrong credentials are found out before the image is read
    settings, home, progress = session.settings, session.home, session.progress
    same = find_same_image(session, image, release)
    if same is not None:
        progress.output(f"{same['ImageId']} has the same bytes: nothing to send")
        return session.make_publication(same, home, image.sha256)
    size = format_size(image.disk_bytes)
    progress.step(f"uploading {release.name} ({size}) to {session.site.name}")
    tags = settings.make_tags(release, image.disk_sha256)
    registration = Registration(
        name=release.name,
        description=describe_release(release),
        snapshot_id=make(image, release, tags),
        volume_gib=find_volume_gib(settings, image.disk_bytes, session.site),
        volume_type=settings.volume_type,
        tags=tags,
    )
    progress.step(f"registering {release.name}")
    made = _register(session, registration, image, release)
    return session.make_publication(made, home, image.sha256)


# ---- the snapshot


def make_snapshot(session: Session, image: Image, release: Release, tags: Mapping[str, str]) -> str:
    """The completed snapshot of an image: an existing one, or a new one."""
    records = release.folder / session.site.name
    direct = session.settings.method == "ebs-direct"
    # An upload that a journal tells of comes first: it is to be brought to an end.
    if not (direct and journal_file(records).exists()):
        known = _find_snapshot(session, image, release)
        if known is not None:
            session.progress.step(f"snapshot {known} has the same bytes: nothing to send")
            return known
    if not direct:
        snapshot_id = Importer(session, image, release, tags).run()
        _make_proofs(session, image, release).note(session.home.name, snapshot_id)
        return snapshot_id
    make_folder(release.folder)
    order = make_order(session, image, release, tags, records)
    order = replace(order, parent=_find_parent(session, release, order.volume_gib))
    ebs = Ebs(session.account, session.home.name)
    sent = upload_snapshot(ebs, order, session.home, session.progress, pause=session.pause)
    return sent.snapshot_id


def make_order(
    session: Session, image: Image, release: Release, tags: Mapping[str, str], records: Path
) -> SnapshotOrder:
    """The order of a full snapshot."""
    return SnapshotOrder(
        disk=image.file,
        volume_gib=max(1, -(-image.disk_bytes // GIB)),
        description=describe_release(release),
        tags=tags,
        encrypted=session.settings.encrypt,
        kms_key=session.settings.kms_key,
        parent=None,
        records=records,
        content=image.disk_sha256,
    )


def _find_snapshot(session: Session, image: Image, release: Release) -> str | None:
    """A completed snapshot of ours with these bytes: of a run that was stopped before it registered
    it, or of an image with another name. One whose content only its tags tell is not used."""
    proofs = _make_proofs(session, image, release)
    named = [str(snapshot["SnapshotId"]) for snapshot in find_snapshots(session, image)]
    for snapshot_id in sorted(named, key=lambda one: not proofs.is_noted(session.home.name, [one])):
        if proofs.is_proven(session.home, snapshot_id):
            return snapshot_id
        session.progress.step(f"{snapshot_id} has our tags, but is not proven to have these bytes")
    return None


def find_snapshots(session: Session, image: Image) -> list[Described]:
    """The completed snapshots that tags say are the site's and hold an image, encrypted as the site
    asks."""
    wanted = {PIPELINE_TAG: PIPELINE, SITE_TAG: session.site.name, CONTENT_TAG: image.disk_sha256}
    return [
        snapshot
        for snapshot in session.home.find_snapshots(make_tag_filters(wanted))
        if snapshot["State"] == "completed" and _is_encrypted_alike(session, snapshot)
    ]


def _find_parent(session: Session, release: Release, volume_gib: int) -> BlockIndex | None:
    """The snapshot that this one can be a delta to."""
    settings = session.settings

    def usable(snapshot_id: str) -> bool:
        snapshot = session.home.describe_snapshot(snapshot_id)
        return (
            snapshot is not None
            and snapshot["State"] == "completed"
            and snapshot.get("OwnerId") == session.account_id
            and is_ours(snapshot)
            and _is_encrypted_alike(session, snapshot)
        )

    builds = release.folder.parent
    parent = find_parent(builds, session.site.name, settings.region, volume_gib, usable)
    if parent is None or parent.kms_key != settings.kms_key:
        return None
    return parent


def _is_encrypted_alike(session: Session, snapshot: Described) -> bool:
    settings = session.settings
    if bool(snapshot.get("Encrypted")) != settings.encrypt:
        return False
    return settings.kms_key is None or snapshot.get("KmsKeyId") == settings.kms_key


# ---- the image


def _register(
    session: Session, registration: Registration, image: Image, release: Release
) -> Described:
    """Makes the image. RegisterImage has no token: where its answer was lost, or another command
    was faster, the image is found by its name."""
    home = session.home
    try:
        image_id = home.register(registration)
        session.made[image_id] = registration.snapshot_id
    except Refused as refused:
        if refused.code != "InvalidAMIName.Duplicate":
            raise
        image_id = _find_winner(session, registration, image, release)
    made = home.wait_image(image_id, session.progress)
    home.ensure_tags(image_id, get_tags(made), registration.tags)
    return made


def _find_winner(
    session: Session, registration: Registration, image: Image, release: Release
) -> str:
    """The image that already has the name to be registered. The snapshot that was made for the name
    is deleted, unless that image uses it. Raises NameTakenError."""
    home, name = session.home, registration.name
    try:
        winner = find_holder(home, name, image.disk_sha256, session.settings)
        if winner is None:
            raise NameTakenError(
                f"an image in {home.name} has the name {name!r} already",
                todo="run the same command again; if it stays so, raise the appliance's version",
            )
        if registration.snapshot_id not in get_snapshots(winner):
            _make_proofs(session, image, release).check_image(home, winner)
    except NameTakenError:
        home.delete_unused(registration.snapshot_id)
        raise
    if registration.snapshot_id not in get_snapshots(winner):
        home.delete_unused(registration.snapshot_id)
    return str(winner["ImageId"])
