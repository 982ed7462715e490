"""What killed runs left at EC2 and S3: found by our tags and key prefix, and removed one by one.

A pending snapshot may be of a run that goes on right now, or that is to be taken up again: `since`
tells, and nothing is removed unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline.clouds.ec2.aws import Refused
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
from pipeline.clouds.ec2.settings import (
    PIPELINE,
    PIPELINE_TAG,
    SITE_TAG,
    STARTED_TAG,
    Ec2Settings,
)
from pipeline.errors import UsageError
from pipeline.model import Leftover

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


def find_leftovers(region: Region, settings: Ec2Settings) -> Iterator[Leftover]:
    """What the site left in a region."""
    ours = make_tag_filters({PIPELINE_TAG: PIPELINE, SITE_TAG: settings.site})
    images = region.find_images(ours)
    for image in images:
        if image.get("State") in FAILED_STATES:
            made = parse_time(image["CreationDate"])
            reason = "EC2 could not make it"
            yield _make(settings, region, FAILED_IMAGE, str(image["ImageId"]), made, reason)
    for snapshot in region.find_snapshots(ours):
        known = _REASONS.get(str(snapshot["State"]))
        if known is None or (known[0] == UNUSED and _is_used(region, snapshot)):
            continue
        made = parse_time(snapshot["StartTime"])
        yield _make(settings, region, known[0], str(snapshot["SnapshotId"]), made, known[1])
    # Whatever the method is now: the bucket tells that it was `import` once.
    if settings.bucket is not None and region.name == settings.region:
        yield from _find_tasks(region, settings)
        yield from _find_objects(region, settings)


def _is_used(region: Region, snapshot: Described) -> bool:
    """Whether any image of the account uses a snapshot, whoever made the image."""
    snapshot_id = str(snapshot["SnapshotId"])
    wanted = [{"Name": "block-device-mapping.snapshot-id", "Values": [snapshot_id]}]
    return any(snapshot_id in get_snapshots(each) for each in region.find_images(wanted))


def _find_tasks(region: Region, settings: Ec2Settings) -> Iterator[Leftover]:
    for task in region.pages("DescribeImportSnapshotTasks", "ImportSnapshotTasks"):
        if find_site(task) != settings.site:
            continue
        task_id, detail = str(task["ImportTaskId"]), task.get("SnapshotTaskDetail") or {}
        if detail.get("Status") in ("active", "pending"):
            since = parse_time(get_tags(task).get(STARTED_TAG) or datetime.fromtimestamp(0, UTC))
            reason = "an import that nobody waits for"
            yield _make(settings, region, TASK, task_id, since, reason)
        elif detail.get("Status") == "completed" and detail.get("SnapshotId"):
            snapshot = region.describe_snapshot(str(detail["SnapshotId"]))
            # With our tags it was found already.
            if snapshot is None or is_ours(snapshot) or _is_used(region, snapshot):
                continue
            made, reason = parse_time(snapshot["StartTime"]), f"of {task_id}; no image uses it"
            yield _make(settings, region, UNUSED, str(snapshot["SnapshotId"]), made, reason)


def _find_objects(region: Region, settings: Ec2Settings) -> Iterator[Leftover]:
    prefix = f"{KEY_PREFIX}{settings.site}/"
    token: dict[str, str] = {}
    while True:
        page = region.call(
            "ListObjectsV2", service="s3", Bucket=settings.bucket, Prefix=prefix, **token
        )
        for each in page.get("Contents") or ():
            reason = "an image on its way through the import service"
            yield _make(settings, region, OBJECT, each["Key"], each["LastModified"], reason)
        if not page.get("NextContinuationToken"):
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    token = {}
    while True:
        page = region.call(
            "ListMultipartUploads", service="s3", Bucket=settings.bucket, Prefix=prefix, **token
        )
        for each in page.get("Uploads") or ():
            described = f"{each['Key']}?uploadId={each['UploadId']}"
            reason = "parts of an upload that did not come to its end"
            yield _make(settings, region, PARTS, described, each["Initiated"], reason)
        if not page.get("IsTruncated"):
            break
        token = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _make(
    settings: Ec2Settings, region: Region, kind: str, described: str, since: datetime, reason: str
) -> Leftover:
    return Leftover(
        site=settings.site,
        kind=kind,
        id=described,
        region=region.name,
        since=format_moment(since),
        reason=reason,
    )


def remove_leftover(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    """Removes one, after another look at whether it is ours. One that is gone is no error.

    Raises UsageError for what is not ours, or is in use by now.
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
    """Whether a task of the site made a snapshot: the import service gives it no tags."""
    if settings.bucket is None or region.name != settings.region:
        return False
    return any(
        find_site(task) == settings.site
        and (task.get("SnapshotTaskDetail") or {}).get("SnapshotId") == leftover.id
        for task in region.pages("DescribeImportSnapshotTasks", "ImportSnapshotTasks")
    )


def _cancel_task(leftover: Leftover, region: Region, settings: Ec2Settings) -> None:
    tasks = region.pages("DescribeImportSnapshotTasks", "ImportSnapshotTasks")
    task = next((each for each in tasks if each["ImportTaskId"] == leftover.id), None)
    if task is None:
        return
    _check_ours(leftover, task, settings)
    try:
        region.call("CancelImportTask", ImportTaskId=leftover.id)
    except Refused as refused:
        # It ended, or is forgotten, since it was found.
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
