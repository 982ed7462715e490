"""An image in one region becomes one in every region, for those whom the site shares it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from pipeline.clouds.ec2.aws import Refused
from pipeline.clouds.ec2.explain import make_sharing_error
from pipeline.clouds.ec2.region import (
    FAILED_STATES,
    UNKNOWN_SECONDS,
    Described,
    Region,
    find_site,
    format_moment,
    get_snapshots,
    get_tags,
    make_filters,
    make_tag_list,
    parse_time,
)
from pipeline.clouds.ec2.settings import CONTENT_TAG, Ec2Settings
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.errors import NameTakenError, UploadError
from pipeline.model import Progress

T = TypeVar("T")
Optional = Callable[[str, Callable[[], Any]], Any]
"""Makes a step that a sandbox's emulator may not know: its name, and what makes it."""

_COPIES = 3  # of one image, where earlier ones were removed or failed

_SOON = timedelta(minutes=5)  # EC2 refuses a time of deprecation that has passed


@dataclass(frozen=True, kw_only=True)
class Original:
    """The image that others are copied from."""

    image: Described
    region: Region
    name: str
    description: str
    content: str
    records: Path
    """What the names of the files start with that remember the copies."""


def copy_image(
    original: Original, target: Region, settings: Ec2Settings, progress: Progress
) -> Described:
    """The copy of an image in another region, made there unless it is there already; available.

    Raises NameTakenError and UploadError.
    """
    found = find_image(target, original.name, original.content, settings)
    token = KeptToken(original.records.with_name(f"{original.records.name}.{target.name}.copy"))
    if found is None:
        image_id = _start_copy(original, target, settings, token)
        progress.step(f"copying {original.name} to {target.name} as {image_id}")
        target.wait_image(image_id, progress)
        progress.step(f"{image_id} is there in {target.name}")
    else:
        image_id = str(found["ImageId"])
    image = target.wait_image(image_id, progress)
    token.drop()
    if found is not None:
        check_volume(image, target, settings, _find_root(original.image).get("VolumeSize"))
    tags = get_tags(original.image)
    target.ensure_tags(image_id, get_tags(image), tags)
    for snapshot_id in get_snapshots(image):
        snapshot = target.describe_snapshot(snapshot_id)
        target.ensure_tags(snapshot_id, get_tags(snapshot or {}), tags)
    return image


def find_image(region: Region, name: str, content: str, settings: Ec2Settings) -> Described | None:
    """The site's image of this name with this content. One of the site that failed is removed: it
    keeps the name, and nothing else can come of it.

    Raises NameTakenError where the name is another's, or the site's own image's with other content.
    """
    images = []
    for each in region.find_images(make_filters(name=name)):
        if find_site(each) == settings.site and each.get("State") in FAILED_STATES:
            region.remove_failed(each, settings.site)
        elif each.get("State") != "deregistered":
            images.append(each)
    for each in images:
        if find_site(each) == settings.site and get_tags(each).get(CONTENT_TAG) == content:
            return each
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
    """The site's image of a name that EC2 says is taken. One that was just made, by a call whose
    answer was lost or by another command, may not be shown for a while. Raises as `find_image`."""
    for seconds in region.polls(UNKNOWN_SECONDS):
        found = find_image(region, name, content, settings)
        if found is not None:
            return found
        region.pause(seconds)
    return None


def check_volume(
    image: Described, region: Region, settings: Ec2Settings, volume_gib: int | None
) -> None:
    """Holds an image that was made earlier against the options for its volume.

    Raises NameTakenError. That it is encrypted although the site says nothing of it is no fault:
    the account may encrypt all by default.
    """
    made = _find_root(image)
    wrong = None
    if settings.sandbox or not made:
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
    """What is told of the volume that an image starts from; nothing of a copy under way."""
    for each in image.get("BlockDeviceMappings") or ():
        if each.get("Ebs", {}).get("SnapshotId"):
            return dict(each["Ebs"])
    return {}


def _start_copy(original: Original, target: Region, settings: Ec2Settings, token: KeptToken) -> str:
    """Starts a copy, or finds the one that a killed run started."""
    encryption: dict[str, Any] = {}
    if settings.encrypt:
        encryption["Encrypted"] = True
        if (key := settings.find_key(target.name)) is not None:
            encryption["KmsKeyId"] = key
    snapshot_tags = make_tag_list(get_tags(original.image))
    parameters: dict[str, Any] = {
        "SourceImageId": original.image["ImageId"],
        "SourceRegion": original.region.name,
        "Name": original.name,
        "Description": original.description,
        "CopyImageTags": True,
        "TagSpecifications": [{"ResourceType": "snapshot", "Tags": snapshot_tags}],
        **encryption,
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
            found = find_holder(target, original.name, original.content, settings)
            if found is None:
                raise
            return str(found["ImageId"])
        image_id = str(answer["ImageId"])
        copy = target.find_new_image(image_id)
        if copy is not None and copy.get("State") not in FAILED_STATES:
            return image_id
        token.drop()  # it would bring back the same
        if copy is not None:
            target.remove_failed(copy, settings.site)
    raise UploadError(
        f"{original.name} cannot be copied to {target.name}: {_COPIES} copies failed or are gone",
        todo="see what removes them, and run the same command again",
    )


def share_image(image: Described, region: Region, settings: Ec2Settings) -> None:
    """Lets those of `share_with` start an image, and use its snapshot. Who could before and is not
    named any more, still can.

    Raises SharingBlockedError.
    """
    if not settings.share_with:
        return
    image_id = str(image["ImageId"])
    try:
        region.call(
            "ModifyImageAttribute",
            ImageId=image_id,
            LaunchPermission={"Add": [_make_permission(each) for each in settings.share_with]},
        )
        # Of a snapshot organisations cannot be told; they need the image alone.
        users = [each for each in settings.share_with if each.isdigit()]
        added: list[dict[str, str]] = [{"UserId": each} for each in users]
        added += [{"Group": "all"}] if settings.public else []
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
    """Finds out before anything is sent whether images may be made public.

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
    if who.isdigit():
        return {"UserId": who}
    kind = "OrganizationArn" if ":organization/" in who else "OrganizationalUnitArn"
    return {kind: who}


def deprecate_image(
    image: Described, region: Region, settings: Ec2Settings, optional: Optional, now: datetime
) -> None:
    """Sets the day from which an image counts as deprecated, reckoned from its own making, so that
    a repeated run changes nothing. One that has passed is now, and stays."""
    if settings.deprecate_days is None:
        return
    at = parse_time(image["CreationDate"]) + timedelta(days=settings.deprecate_days)
    at = max(at, now + _SOON).replace(second=0, microsecond=0)
    if image.get("DeprecationTime"):
        known = parse_time(image["DeprecationTime"])
        if known == at or known <= now:
            return
    optional(
        "deprecation",
        lambda: region.call(
            "EnableImageDeprecation",
            ImageId=str(image["ImageId"]),
            DeprecateAt=format_moment(at),
        ),
    )


def run_in_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order. All are brought to their end, then the first defect is
    raised; faults of a region are for the job to return, so that they do not hide the others."""
    if not jobs:
        return []
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
    return [future.result() for future in futures]
