"""What must be true before an image is removed: it is ours, and nothing in the account uses it."""

from __future__ import annotations

from typing import Any

from pipeline.clouds.ec2.region import Described, Region, find_site, is_ours, make_tag_filters
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import PIPELINE, PIPELINE_TAG, SITE_TAG
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


def check_unused(region: Region, image_id: str, site: str) -> list[str]:
    """Raises InUseError for an image that something in this account refers to, but for launch
    templates that `phantom-image launch` made for the site. Returns their ids."""
    users = {user.rpartition("/")[2]: user for user in _find_users(region, image_id)}
    own: list[str] = []
    if any(user.startswith("lt-") for user in users):
        wanted = make_tag_filters({PIPELINE_TAG: PIPELINE, SITE_TAG: site})
        found = region.pages("DescribeLaunchTemplates", "LaunchTemplates", Filters=wanted)
        own = [template for each in found if (template := str(each["LaunchTemplateId"])) in users]
    others = [user for name, user in users.items() if name not in own]
    if others:
        raise InUseError(
            f"{image_id} in {region.name} is used by {', '.join(others)}",
            todo="let them use another image, or end them, then run the same command again",
        )
    return own


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
