"""An image in one region becomes one in every region, for those whom the site shares it with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pipeline.clouds.ec2.aws import Refused
from pipeline.clouds.ec2.explain import make_sharing_error
from pipeline.clouds.ec2.region import (
    FAILED_STATES,
    Described,
    Region,
    get_snapshots,
    get_tags,
    is_ours,
    make_filters,
    make_tag_list,
    parse_time,
)
from pipeline.clouds.ec2.settings import CONTENT_TAG, Ec2Settings
from pipeline.errors import NameTakenError, UploadError
from pipeline.model import Progress

T = TypeVar("T")
Optional = Callable[[str, Callable[[], Any]], Any]
"""Makes a step that a sandbox's emulator may not know: its name, and what makes it."""

_COPIES = 3  # of one image, where earlier ones were removed or failed


@dataclass(frozen=True, kw_only=True)
class Original:
    """The image that others are copied from."""

    image: Described
    region: Region
    name: str
    description: str
    content: str


def copy_image(
    original: Original, target: Region, settings: Ec2Settings, progress: Progress
) -> Described:
    """The copy of an image in another region, made there unless it is there already; available.

    Raises NameTakenError and UploadError.
    """
    found = find_image(target, original.name, original.content)
    if found is None:
        image_id = _start_copy(original, target, settings)
        progress.step(f"copying {original.name} to {target.name} as {image_id}")
        target.wait_image(image_id, progress)
        progress.step(f"{image_id} is there in {target.name}")
    else:
        image_id = str(found["ImageId"])
    image = target.wait_image(image_id, progress)
    tags = get_tags(original.image)
    target.ensure_tags(image_id, get_tags(image), tags)
    for snapshot_id in get_snapshots(image):
        snapshot = target.describe_snapshot(snapshot_id)
        target.ensure_tags(snapshot_id, get_tags(snapshot or {}), tags)
    return image


def find_image(region: Region, name: str, content: str) -> Described | None:
    """Our image of this name with this content. One of ours that failed is removed: it keeps the
    name, and nothing else can come of it.

    Raises NameTakenError where the name is another's, or our own image's with other content.
    """
    images = []
    for each in region.find_images(make_filters(name=name)):
        if is_ours(each) and each.get("State") in FAILED_STATES:
            region.deregister(str(each["ImageId"]))
        elif each.get("State") != "deregistered":
            images.append(each)
    for each in images:
        if is_ours(each) and get_tags(each).get(CONTENT_TAG) == content:
            return each
    if not images:
        return None
    image_id = images[0]["ImageId"]
    ours = is_ours(images[0])
    raise NameTakenError(
        f"{image_id} in {region.name} has the name {name!r} already, and "
        + ("other content" if ours else "is not of this pipeline"),
        todo=(
            "retire it (`phantom-image retire`), raise the appliance's version, "
            if ours
            else "rename or deregister it, raise the appliance's version, "
        )
        + "or put {build} into `clouds: ec2: image_name:`",
    )


def _start_copy(original: Original, target: Region, settings: Ec2Settings) -> str:
    """Starts a copy. The token of one that was removed since would bring back only its id, so the
    next one is taken then."""
    encryption: dict[str, Any] = {}
    if settings.encrypt:
        encryption["Encrypted"] = True
        if (key := settings.find_key(target.name)) is not None:
            encryption["KmsKeyId"] = key
    snapshot_tags = make_tag_list(get_tags(original.image))
    for number in range(_COPIES):
        words = (original.content, original.name, original.region.name, target.name, number)
        token = hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()
        try:
            answer = target.call(
                "CopyImage",
                SourceImageId=original.image["ImageId"],
                SourceRegion=original.region.name,
                Name=original.name,
                Description=original.description,
                ClientToken=token,
                CopyImageTags=True,
                TagSpecifications=[{"ResourceType": "snapshot", "Tags": snapshot_tags}],
                **encryption,
            )
        except Refused as refused:
            if refused.code == "IdempotentParameterMismatch":
                continue
            if refused.code != "InvalidAMIName.Duplicate":
                raise
            found = find_image(target, original.name, original.content)
            if found is None:
                raise
            return str(found["ImageId"])
        image_id = str(answer["ImageId"])
        copy = target.find_new_image(image_id)
        if copy is None:
            continue
        if copy.get("State") not in FAILED_STATES:
            return image_id
        target.deregister(image_id)
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


def check_sharing(region: Region, settings: Ec2Settings, optional: Optional) -> None:
    """Finds out before anything is sent whether images may be made public.

    Raises SharingBlockedError.
    """
    if not settings.public:
        return
    answer = optional("block public access", lambda: region.call("GetImageBlockPublicAccessState"))
    state = str((answer or {}).get("ImageBlockPublicAccessState", "unblocked"))
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
    image: Described, region: Region, settings: Ec2Settings, optional: Optional
) -> None:
    """Sets the day from which an image counts as deprecated, reckoned from its own making, so that
    a repeated run changes nothing."""
    if settings.deprecate_days is None:
        return
    made = parse_time(image["CreationDate"])
    at = (made + timedelta(days=settings.deprecate_days)).replace(second=0, microsecond=0)
    if image.get("DeprecationTime") and parse_time(image["DeprecationTime"]) == at:
        return
    optional(
        "deprecation",
        lambda: region.call(
            "EnableImageDeprecation",
            ImageId=str(image["ImageId"]),
            DeprecateAt=at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ),
    )


def run_in_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order. All are brought to their end, then the first error is
    raised: what works in one region is not lost to a fault in another."""
    if not jobs:
        return []
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
    return [future.result() for future in futures]
