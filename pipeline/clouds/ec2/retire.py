"""What must be true before an image is removed: it is ours, and nothing in the account uses it."""

from __future__ import annotations

from typing import Any

from pipeline.clouds.ec2.region import Described, Region, find_site, is_ours
from pipeline.clouds.ec2.session import Session
from pipeline.errors import InUseError
from pipeline.model import Publication
from pipeline.tools.aws import Refused

_GONE_STATES = ("terminated", "shutting-down")
_UNKNOWN_ACTION = ("InvalidAction", "UnknownOperation", "UnsupportedOperation")


def check_own(
    session: Session, publication: Publication, image: Described | None, snapshot: Described | None
) -> None:
    """Raises UsageError unless tags prove that image and snapshot are the site's own."""
    for described in filter(None, (image, snapshot)):
        if not is_ours(described):
            raise session.make_foreign(publication, "its tags do not say that we made it")
        if find_site(described) != session.site.name:
            reason = f"its tags say that it is of site {find_site(described)}"
            raise session.make_foreign(publication, reason)


def check_unused(region: Region, image_id: str) -> None:
    """Raises InUseError for an image that something in this account refers to."""
    users = _find_users(region, image_id)
    if users:
        raise InUseError(
            f"{image_id} in {region.name} is used by {', '.join(users)}",
            todo="let them use another image, or end them, then run the same command again",
        )


def _find_users(region: Region, image_id: str) -> list[str]:
    references = _list_if_known(
        region,
        "DescribeImageReferences",
        "ImageReferences",
        ImageIds=[image_id],
        IncludeAllResourceTypes=True,
    )
    users = [str(reference["Arn"]) for reference in references or ()]
    wanted = [{"Name": "image-id", "Values": [image_id]}]
    # References may leave out what the account may not describe; this call is refused then.
    versions = _list_if_known(
        region,
        "DescribeLaunchTemplateVersions",
        "LaunchTemplateVersions",
        Versions=["$Latest", "$Default"],
        Filters=wanted,
    )
    templates = dict.fromkeys(str(version["LaunchTemplateId"]) for version in versions or ())
    users += [
        template for template in templates if not any(user.endswith(template) for user in users)
    ]
    if references is not None:
        return users
    # A service that does not know the first call knows its instances.
    reservations = region.pages("DescribeInstances", "Reservations", Filters=wanted)
    return users + [
        str(instance["InstanceId"])
        for reservation in reservations
        for instance in reservation.get("Instances", ())
        if instance.get("State", {}).get("Name") not in _GONE_STATES
    ]


def _list_if_known(
    region: Region, operation: str, key: str, **parameters: Any
) -> list[Described] | None:
    """What a listing has; None from a service that does not know the call."""
    try:
        return [*region.pages(operation, key, **parameters)]
    except Refused as refused:
        if refused.code not in _UNKNOWN_ACTION:
            raise
        return None
