"""Publishes an uploaded image: copies it to the other regions, shares it, sets its deprecation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipeline.clouds.ec2.errors import make_sharing_error
from pipeline.clouds.ec2.proof import Proofs
from pipeline.clouds.ec2.region import (
    FAILED_STATES,
    UNKNOWN_SECONDS,
    Described,
    Region,
    find_site,
    format_moment,
    get_snapshots,
    get_tags,
    make_tag_list,
    parse_time,
)
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import CONTENT_TAG, Ec2Settings, describe_release
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.disk.untrusted import to_number
from pipeline.errors import NameTakenError, PhantomError, UploadError
from pipeline.model import Progress, Publication, Release, Sha256
from pipeline.tools.aws import Refused

Deprecate = Callable[[Described, Region, Progress], None]
"""Sets the day from which an image counts as deprecated."""

_COPIES = 3  # of one image, where earlier ones were removed or failed

_SOON = timedelta(minutes=5)  # EC2 refuses a time of deprecation that has passed


def publish_image(
    session: Session, publication: Publication, release: Release, deprecate: Deprecate
) -> tuple[Publication, ...]:
    """Publishes an image and its copies in the other regions, which are made in parallel.

    After all regions were tried, raises the first error, which also tells of the others and of the
    images that were published all the same.
    """
    original = _Original(session, publication, release, _wait_original(session, publication))
    regions = session.settings.regions
    with ThreadPoolExecutor(len(regions)) as pool:
        jobs = [pool.submit(original.publish_in, region, deprecate) for region in regions]
    outcomes = [job.result() for job in jobs]
    published = tuple(made for made, _ in outcomes if made is not None)
    errors = [error for _, error in outcomes if error is not None]
    if errors:
        raise _join(errors, published)
    return published


def _wait_original(session: Session, publication: Publication) -> Described:
    """Waits until the image that is to be published can be started."""
    image_id, home = session.parse_location(publication).image, session.home
    with session.translate_errors():
        if home.describe_image(image_id) is None:
            raise UploadError(
                f"{publication.location} is not there, so it cannot be published",
                where=session.where,
                todo="upload the image first: run `phantom-image publish` again",
            )
    try:
        with session.translate_errors():
            return home.wait_image(image_id, session.progress)
    except PhantomError as error:
        error.published = (publication,)
        raise


def _join(errors: Sequence[PhantomError], published: tuple[Publication, ...]) -> PhantomError:
    """The first error, with the texts of the others and with the images that were published."""
    first, *others = errors
    if others:
        first.detail = "\n".join([*filter(None, [first.detail]), *(f"also: {e}" for e in others)])
    first.published = published
    return first


def _is_encrypted(image: Described) -> bool:
    mappings = image.get("BlockDeviceMappings") or ()
    return any(mapping.get("Ebs", {}).get("Encrypted") for mapping in mappings)


@dataclass(frozen=True)
class _Original:
    """The uploaded image, which the copies in other regions are made from."""

    session: Session
    publication: Publication
    release: Release
    image: Described

    @property
    def content(self) -> Sha256:
        """The SHA-256 of the disk."""
        return self.publication.sha256

    @property
    def proofs(self) -> Proofs:
        """What is known of images and snapshots of the disk."""
        return Proofs(self.session, self.release, self.content, self.session.disk)

    def publish_in(
        self, region_name: str, deprecate: Deprecate
    ) -> tuple[Publication | None, PhantomError | None]:
        """Copies the image unless the region is its own, shares it, and sets its deprecation.
        Returns what is there in the end, and what went wrong."""
        session, image = self.session, self.image
        region = session.region(region_name)
        home = region is session.home
        made = self.publication if home else None
        try:
            with session.translate_errors(region_name):
                if not home:
                    image = self._copy(region)
                    made = session.make_publication(image, region, self.publication.sha256)
                if _is_encrypted(image) and not session.settings.encrypt:
                    session.progress.output(
                        f"{image['ImageId']} in {region_name} is encrypted, as the account's "
                        "default may be: the site does not ask for it"
                    )
                share_image(image, region, session.settings)
                deprecate(image, region, session.progress)
        except PhantomError as error:
            return made, error
        return made, None

    def _copy(self, target: Region) -> Described:
        """The copy of the image in another region, made unless it exists, once it can be started.

        Raises NameTakenError and UploadError.
        """
        session, name = self.session, self.release.name
        settings, progress = session.settings, session.progress
        known = find_image(target, name, self.content, settings)
        token = KeptToken(self.release.folder / f"{session.site.name}.{target.name}.copy")
        # A run that was killed before it could note its copy left the token, which names it.
        if known is None or (token.is_kept() and not self._is_noted(target, known)):
            image_id = self._start_copy(target, token)
            progress.step(f"copying {name} to {target.name} as {image_id}")
            target.wait_image(image_id, progress)
            progress.step(f"{image_id} is there in {target.name}")
        else:
            image_id = str(known["ImageId"])
        image = target.wait_image(image_id, progress)
        self.proofs.check_image(target, image)
        token.drop()
        if known is not None:
            check_volume(image, target, settings, _find_root(self.image).get("VolumeSize"))
        tags = get_tags(self.image)
        target.ensure_tags(image_id, get_tags(image), tags)
        for snapshot_id in get_snapshots(image):
            snapshot = target.describe_snapshot(snapshot_id)
            target.ensure_tags(snapshot_id, get_tags(snapshot or {}), tags)
        return image

    def _is_noted(self, target: Region, image: Described) -> bool:
        return self.proofs.is_noted(target.name, [str(image["ImageId"])])

    def _start_copy(self, target: Region, token: KeptToken) -> str:
        """Starts a copy, or finds the copy that a killed run started, and returns its id."""
        name, settings = self.release.name, self.session.settings
        snapshot_tags = make_tag_list(get_tags(self.image))
        parameters: dict[str, Any] = {
            "SourceImageId": self.image["ImageId"],
            "SourceRegion": self.session.home.name,
            "Name": name,
            "Description": describe_release(self.release),
            "CopyImageTags": True,
            "TagSpecifications": [{"ResourceType": "snapshot", "Tags": snapshot_tags}],
            **settings.make_encryption(target.name),
        }
        for _ in range(_COPIES):
            try:
                answer = target.call("CopyImage", ClientToken=token.get(parameters), **parameters)
            except Refused as refused:
                if refused.code == "IdempotentParameterMismatch":
                    token.drop()
                    continue
                if refused.code != "InvalidAMIName.Duplicate":
                    raise
                holder = find_holder(target, name, self.content, settings)
                if holder is None:
                    raise
                return str(holder["ImageId"])
            image_id = str(answer["ImageId"])
            self.proofs.note(target.name, image_id)
            copy = target.find_new_image(image_id)
            if copy is not None and copy.get("State") not in FAILED_STATES:
                return image_id
            token.drop()  # it would bring back the same copy
            if copy is not None:
                target.remove_failed(copy, settings.site)
        raise UploadError(
            f"{name} cannot be copied to {target.name}: {_COPIES} copies failed or are gone",
            todo="see what removes them, and run the same command again",
        )


def find_image(region: Region, name: str, content: str, settings: Ec2Settings) -> Described | None:
    """The site's image of this name with this content. Failed images of the site are removed: they
    hold the name, and will never work.

    Raises NameTakenError where the name belongs to another's image, or to an image of the site with
    other content.
    """
    images = []
    for image in region.find_images([{"Name": "name", "Values": [name]}]):
        if find_site(image) == settings.site and image.get("State") in FAILED_STATES:
            region.remove_failed(image, settings.site)
        elif image.get("State") != "deregistered":
            images.append(image)
    for image in images:
        if find_site(image) == settings.site and get_tags(image).get(CONTENT_TAG) == content:
            return image
    if images:
        raise _make_taken(images[0], region, name, settings)
    return None


def _make_taken(
    image: Described, region: Region, name: str, settings: Ec2Settings
) -> NameTakenError:
    site = find_site(image)
    if site == settings.site:
        reason = "other content"
        todo = (
            "retire it (`phantom-image retire`), raise the appliance's version, or put {build} "
            "into `clouds: ec2: image_name:`"
        )
    elif site is not None:
        reason = f"is of site {site}"
        todo = (
            "put something that differs into `image_name` (`clouds: ec2: image_name:`) of the "
            f"appliances, or make {site} and {settings.site} one site"
        )
    else:
        reason = "is not of this pipeline"
        todo = (
            "rename or deregister it, raise the appliance's version, or put {build} into "
            "`clouds: ec2: image_name:`"
        )
    return NameTakenError(
        f"{image['ImageId']} in {region.name} has the name {name!r} already, and {reason}",
        todo=todo,
    )


def find_holder(region: Region, name: str, content: str, settings: Ec2Settings) -> Described | None:
    """The site's image of a name that EC2 says is taken. EC2 may not list it for a while after it
    was made by a call whose answer was lost, or by another command. Raises as `find_image`."""
    for seconds in region.polls(UNKNOWN_SECONDS):
        image = find_image(region, name, content, settings)
        if image is not None:
            return image
        region.pause(seconds)
    return None


def check_volume(
    image: Described, region: Region, settings: Ec2Settings, volume_gib: int | None
) -> None:
    """Compares an image that was made earlier with the site's options for its volume.

    Raises NameTakenError where they differ. An image may be encrypted though the site does not ask
    for it: the account may encrypt everything by default.
    """
    made = _find_root(image)
    wrong = None
    if not (settings.tells_volumes and made):
        return
    if settings.encrypt and not made.get("Encrypted"):
        wrong = "unencrypted"
    elif settings.kms_key is not None:
        snapshot = region.describe_snapshot(str(made.get("SnapshotId"))) or {}
        if snapshot.get("KmsKeyId") not in (None, settings.find_key(region.name)):
            wrong = f"with the key {snapshot['KmsKeyId']}"
    if made.get("VolumeType") not in (None, settings.volume_type):
        wrong = f"with a volume of type {made['VolumeType']}"
    elif made.get("VolumeSize") not in (None, volume_gib):
        wrong = f"with a volume of {made['VolumeSize']} GiB"
    if wrong is not None:
        raise NameTakenError(
            f"{image['ImageId']} in {region.name} has the same bytes, and was made {wrong}, "
            f"which site {settings.site} does not ask for any more",
            todo="retire it first (`phantom-image retire`), or give the site its old options back",
        )


def _find_root(image: Described) -> Described:
    """The description of an image's root volume; empty while the image is still being copied."""
    for mapping in image.get("BlockDeviceMappings") or ():
        if mapping.get("Ebs", {}).get("SnapshotId"):
            return dict(mapping["Ebs"])
    return {}


def share_image(image: Described, region: Region, settings: Ec2Settings) -> None:
    """Lets those whom `share_with` names start an image and use its snapshot. Nobody's right is
    taken away.

    Raises SharingBlockedError.
    """
    if not settings.share_with:
        return
    image_id = str(image["ImageId"])
    try:
        region.call(
            "ModifyImageAttribute",
            ImageId=image_id,
            LaunchPermission={"Add": [_make_permission(who) for who in settings.share_with]},
        )
        # A snapshot takes no organisations; they need the image alone.
        added = [_make_permission(who) for who in settings.share_with if ":" not in who]
        for snapshot_id in get_snapshots(image) if added else ():
            region.call(
                "ModifySnapshotAttribute",
                SnapshotId=snapshot_id,
                Attribute="createVolumePermission",
                CreateVolumePermission={"Add": added},
            )
    except Refused as refused:
        if settings.public and _is_blocked(refused):
            where = f"site {settings.site}"
            raise make_sharing_error(where, region.name, refused.code) from refused
        raise


def check_sharing(region: Region, settings: Ec2Settings) -> None:
    """Checks, before anything is sent, that images may be made public.

    Raises SharingBlockedError.
    """
    if not settings.public:
        return
    for operation, key in (
        ("GetImageBlockPublicAccessState", "ImageBlockPublicAccessState"),
        ("GetSnapshotBlockPublicAccessState", "State"),
    ):
        answer = region.call(operation)
        state = str(answer.get(key) or "unblocked")
        if state != "unblocked":
            raise make_sharing_error(f"site {settings.site}", region.name, state)


def _is_blocked(refused: Refused) -> bool:
    words = f"{refused.code} {refused.message}".lower()
    return ("block" in words and "public" in words) or refused.code == "OperationNotPermitted"


def _make_permission(who: str) -> dict[str, str]:
    if who == "all":
        return {"Group": "all"}
    if to_number(who) is not None:
        return {"UserId": who}
    kind = "OrganizationArn" if ":organization/" in who else "OrganizationalUnitArn"
    return {kind: who}


def deprecate_image(image: Described, region: Region, settings: Ec2Settings, now: datetime) -> None:
    """Sets the day from which an image counts as deprecated, counted from its creation, so that a
    repeated run changes nothing. A day that has passed becomes today, and is then left alone."""
    if settings.deprecate_days is None:
        return
    at = parse_time(image["CreationDate"]) + timedelta(days=settings.deprecate_days)
    at = max(at, now + _SOON).replace(second=0, microsecond=0)
    if image.get("DeprecationTime"):
        known = parse_time(image["DeprecationTime"])
        if known == at or known <= now:
            return
    region.call(
        "EnableImageDeprecation", ImageId=str(image["ImageId"]), DeprecateAt=format_moment(at)
    )
