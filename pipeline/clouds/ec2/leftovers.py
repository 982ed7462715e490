"""What killed runs left at EC2 and S3, known by our tags and key prefix, and how to remove it.

A pending snapshot may belong to a run that is still going on, or that is to be taken up again:
`since` tells, and nothing is removed unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipeline.clouds.ec2.region import (
    FAILED_STATES,
    Described,
    Region,
    find_site,
    format_moment,
    get_snapshots,
    get_tags,
    is_ours,
    make_tag_filters,
    parse_time,
)
from pipeline.clouds.ec2.rights import KEY_PREFIX
from pipeline.clouds.ec2.settings import PIPELINE, PIPELINE_TAG, SITE_TAG, STARTED_TAG, Ec2Settings
from pipeline.errors import UsageError
from pipeline.model import Leftover
from pipeline.tools.aws import Refused, list_pages

PENDING = "pending snapshot"
FAILED = "failed snapshot"
UNUSED = "unused snapshot"
FAILED_IMAGE = "failed image"
OBJECT = "S3 object"
PARTS = "S3 upload"
TASK = "import task"

_REASONS = {
    "pending": (PENDING, "an upload that did not come to its end"),
    "error": (FAILED, "EC2 could not complete it"),
    "completed": (UNUSED, "no image uses it"),
}


_NEXT_OBJECTS = {"NextContinuationToken": "ContinuationToken"}
_NEXT_UPLOADS = {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"}


_Row = tuple[str, str, Any, str]
"""The kind, id, time of origin and reason of a leftover."""


def find_leftovers(region: Region, settings: Ec2Settings) -> Iterator[Leftover]:
    """The leftovers of a site in a region."""
    for kind, described, since, reason in _find(region, settings):
        yield Leftover(
            site=settings.site,
            kind=kind,
            id=described,
            region=region.name,
            since=format_moment(parse_time(since)),
            reason=reason,
        )


def _find(region: Region, settings: Ec2Settings) -> Iterator[_Row]:
    ours = make_tag_filters({PIPELINE_TAG: PIPELINE, SITE_TAG: settings.site})
    for image in region.find_images(ours):
        if image.get("State") in FAILED_STATES:
            yield FAILED_IMAGE, image["ImageId"], image["CreationDate"], "EC2 could not make it"
    for snapshot in region.find_snapshots(ours):
        kind, reason = _REASONS.get(snapshot["State"], ("", ""))
        if kind and not (kind == UNUSED and _is_used(region, snapshot)):
            yield kind, snapshot["SnapshotId"], snapshot["StartTime"], reason
    # Whatever the method is now, the bucket shows that it once was `import`.
    if settings.bucket is not None and region.name == settings.region:
        yield from _find_tasks(region, settings)
        yield from _find_objects(region, settings)


def _is_used(region: Region, snapshot: Described) -> bool:
    """Whether any image of the account uses a snapshot, whoever made the image."""
    snapshot_id = str(snapshot["SnapshotId"])
    wanted = [{"Name": "block-device-mapping.snapshot-id", "Values": [snapshot_id]}]
    return any(snapshot_id in get_snapshots(image) for image in region.find_images(wanted))


def _list_tasks(region: Region) -> Iterator[tuple[Described, Described]]:
    """The account's import tasks, each with what it tells of its snapshot."""
    for task in region.pages("DescribeImportSnapshotTasks", "ImportSnapshotTasks"):
        yield task, task.get("SnapshotTaskDetail") or {}


def _find_tasks(region: Region, settings: Ec2Settings) -> Iterator[_Row]:
    for task, detail in _list_tasks(region):
        if find_site(task) != settings.site:
            continue
        if detail.get("Status") in ("active", "pending"):
            since = get_tags(task).get(STARTED_TAG) or datetime.fromtimestamp(0, UTC)
            yield TASK, task["ImportTaskId"], since, "an import that nobody waits for"
        elif detail.get("Status") == "completed" and detail.get("SnapshotId"):
            snapshot = region.describe_snapshot(detail["SnapshotId"])
            # A snapshot with our tags is listed already.
            if snapshot is not None and not is_ours(snapshot) and not _is_used(region, snapshot):
                reason = f"of {task['ImportTaskId']}; no image uses it"
                yield UNUSED, snapshot["SnapshotId"], snapshot["StartTime"], reason


def _find_objects(region: Region, settings: Ec2Settings) -> Iterator[_Row]:
    prefix = f"{KEY_PREFIX}{settings.site}/"
    call = partial(region.call, service="s3", Bucket=settings.bucket, Prefix=prefix)
    for stored in list_pages(partial(call, "ListObjectsV2"), "Contents", _NEXT_OBJECTS):
        reason = "an image on its way through the import service"
        yield OBJECT, stored["Key"], stored["LastModified"], reason
    for upload in list_pages(partial(call, "ListMultipartUploads"), "Uploads", _NEXT_UPLOADS):
        described = f"{upload['Key']}?uploadId={upload['UploadId']}"
        reason = "parts of an upload that did not come to its end"
        yield PARTS, described, upload["Initiated"], reason


def remove_leftover(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    """Removes a leftover after checking again that it is ours. One that is gone is no error.

    Raises UsageError for what is not ours, or is now in use.
    """
    if leftover.kind in (PENDING, FAILED, UNUSED):
        _remove_snapshot(leftover, region, settings)
    elif leftover.kind == FAILED_IMAGE:
        image = region.describe_image(leftover.id)
        if image is not None:
            _check_ours(leftover, image, settings)
            region.remove_failed(image, settings.site)
    elif leftover.kind == TASK:
        _cancel_task(leftover, region, settings)
    elif leftover.kind in (OBJECT, PARTS):
        _remove_object(leftover, region, settings)
    else:
        raise _make_foreign(leftover, settings)


def _remove_snapshot(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    snapshot = region.describe_snapshot(leftover.id)
    if snapshot is None:
        return
    if find_site(snapshot) is not None or not _is_imported(leftover, region, settings):
        _check_ours(leftover, snapshot, settings)
    if _is_used(region, snapshot):
        raise UsageError(
            f"{leftover.kind} {leftover.id} is in use by an image now",
            where=f"site {settings.site}",
            todo="leave it: it is no leftover any more",
        )
    region.delete(leftover.id)


def _is_imported(leftover: Leftover, region: Region, settings: Ec2Settings) -> bool:
    """Whether an import task of the site made a snapshot: such snapshots have no tags."""
    if settings.bucket is None or region.name != settings.region:
        return False
    return any(
        find_site(task) == settings.site and detail.get("SnapshotId") == leftover.id
        for task, detail in _list_tasks(region)
    )


def _cancel_task(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    tasks = (task for task, _ in _list_tasks(region))
    task = next((task for task in tasks if task["ImportTaskId"] == leftover.id), None)
    if task is None:
        return
    _check_ours(leftover, task, settings)
    try:
        region.call("CancelImportTask", ImportTaskId=leftover.id)
    except Refused as refused:
        # The task has ended since it was listed, or EC2 has forgotten it.
        if refused.code != "IncorrectState" and "ConversionTask" not in refused.code:
            raise


def _remove_object(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    key, _, upload = leftover.id.partition("?uploadId=")
    if not key.startswith(f"{KEY_PREFIX}{settings.site}/") or settings.bucket is None:
        raise _make_foreign(leftover, settings)
    named = {"service": "s3", "Bucket": settings.bucket, "Key": key}
    try:
        if upload:
            region.call("AbortMultipartUpload", UploadId=upload, **named)
        else:
            region.call("DeleteObject", **named)
    except Refused as refused:
        if refused.status != 404:
            raise


def _check_ours(leftover: Leftover, described: Described, settings: Ec2Settings) -> None:
    if find_site(described) != settings.site:
        raise _make_foreign(leftover, settings)


def _make_foreign(leftover: Leftover, settings: Ec2Settings) -> UsageError:
    return UsageError(
        f"{leftover.kind} {leftover.id} is nothing that site {settings.site} left",
        where=f"site {settings.site}",
        todo="name the site that it is of",
    )
