"""A disk becomes a snapshot by way of S3 and EC2's import service, where EBS direct is not allowed.

The object in the bucket costs money, so it is removed when the task that reads it has ended,
however it did; what a run leaves that was stopped, `leftovers.py` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.clouds.ec2.aws import (
    Account,
    Cut,
    NoCredentials,
    Outage,
    Refused,
    is_transient,
    retrying,
    translated,
)
from pipeline.clouds.ec2.explain import make_role_error
from pipeline.clouds.ec2.region import Described, Region, format_moment, get_tags, make_tag_list
from pipeline.clouds.ec2.rights import KEY_PREFIX
from pipeline.clouds.ec2.settings import STARTED_TAG, Ec2Settings
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.errors import UploadError
from pipeline.model import MIB, Progress, Sha256

IMPORT_SECONDS = 3 * 3600.0  # users report from minutes to over an hour
_FIRST_POLL, _LONGEST_POLL = 2.0, 30.0
_PART = 32 * MIB  # of a multipart upload; at most 10,000 make an object of up to 312 GiB
_THREADS = 8
_TRIES = 3  # tasks, where earlier ones failed
_CONTENT_NOTE = "sha256"


@dataclass(frozen=True, kw_only=True)
class ImportOrder:
    """What shall become a snapshot."""

    disk: Path
    content: Sha256
    build: str
    description: str
    tags: Mapping[str, str]
    token: KeptToken
    """Of the task."""


class Importer:
    """The import service of one region. Raises Refused, Cut and NoCredentials beside its own."""

    def __init__(
        self,
        account: Account,
        region: Region,
        settings: Ec2Settings,
        *,
        pause: Callable[[float], None],
        clock: Callable[[], Any],
    ) -> None:
        self._account = account
        self._region = region
        self._settings = settings
        self._pause = pause
        self._clock = clock
        self._reading = False
        """Whether a task may read the object."""

    def run(self, order: ImportOrder, progress: Progress) -> str:
        """The id of a completed snapshot of the disk. Raises UploadError, ImportRoleError."""
        key = f"{KEY_PREFIX}{self._settings.site}/{order.build}/{order.content}.raw"
        try:
            self._send(order, key, progress)
            snapshot_id = self._import(order, key, progress)
        finally:
            if not self._reading:
                self._remove(key, progress)
        self._region.wait_snapshot(snapshot_id, progress)
        self._region.ensure_tags(snapshot_id, {}, order.tags)
        order.token.drop()
        return snapshot_id

    # ---- to S3

    def _send(self, order: ImportOrder, key: str, progress: Progress) -> None:
        size = order.disk.stat().st_size
        if self._has(order, key, size):
            return
        from boto3.s3.transfer import TransferConfig

        progress.step(f"uploading {order.disk.name} to s3://{self._settings.bucket}/{key}")
        client = self._account.client("s3", self._region.name, connections=_THREADS)
        config = TransferConfig(
            multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=_THREADS
        )

        outage = Outage()
        stopped: list[BaseException] = []

        def send() -> None:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                if stopped:
                    raise stopped[0]
                try:
                    progress.advance(max(0, done), size)
                except BaseException as stop:
                    stopped.append(stop)
                    raise
                outage.succeeded()  # bytes flow

            try:
                with translated("s3:PutObject"):
                    client.upload_file(
                        str(order.disk),
                        self._settings.bucket,
                        key,
                        ExtraArgs={"Metadata": {_CONTENT_NOTE: order.content}},
                        Callback=advance,
                        Config=config,
                    )
            finally:
                # boto3 takes no notice of a KeyboardInterrupt in its threads, and ends as if it had
                # sent all.
                if stopped:
                    raise stopped[0]

        retrying(send, outage=outage, progress=progress, pause=self._pause)

    def _has(self, order: ImportOrder, key: str, size: int) -> bool:
        """Whether an earlier run sent it all."""
        try:
            head = self._region.call(
                "HeadObject", service="s3", Bucket=self._settings.bucket, Key=key
            )
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        same = head.get("Metadata", {}).get(_CONTENT_NOTE) == order.content
        return bool(same and head.get("ContentLength") == size)

    def _remove(self, key: str, progress: Progress) -> None:
        try:
            self._region.call("DeleteObject", service="s3", Bucket=self._settings.bucket, Key=key)
        except (Refused, Cut, NoCredentials) as error:
            # What the import came to matters more; `clean` finds the object.
            progress.step(f"s3://{self._settings.bucket}/{key} could not be removed ({error})")

    # ---- from S3

    def _import(self, order: ImportOrder, key: str, progress: Progress) -> str:
        """Starts a task, or finds the one that a killed run started by its token, and waits. The
        token of one that failed is dropped, as it would bring back the same task."""
        said = "no task was started"
        for _ in range(_TRIES):
            task = self._start(order, key)
            task_id = str(task["ImportTaskId"])
            progress.step(f"EC2 imports the snapshot ({task_id}): this takes minutes to an hour")
            detail = self._wait(task_id, progress)
            self._reading = False
            snapshot_id = detail.get("SnapshotId")
            if detail.get("Status") == "completed" and snapshot_id:
                if self._region.state(str(snapshot_id)) is not None:
                    return str(snapshot_id)
                said = f"its snapshot {snapshot_id} is gone"  # of an earlier run's task
                order.token.drop()
                continue
            order.token.drop()
            said = str(detail.get("StatusMessage") or "no reason is told")
            if _is_about_role(said):
                raise make_role_error(self._settings, f"site {self._settings.site}", said)
        raise UploadError(
            f"EC2 did not import the snapshot: {said}",
            todo="run the same command again; if it happens again, try `method: ebs-direct`",
        )

    def _start(self, order: ImportOrder, key: str) -> Described:
        settings = self._settings
        parameters: dict[str, Any] = {
            "Description": order.description,
            "RoleName": settings.import_role,
            "DiskContainer": {
                "Description": order.description,
                "Format": "RAW",
                "UserBucket": {"S3Bucket": settings.bucket, "S3Key": key},
            },
            "TagSpecifications": [
                {"ResourceType": "import-snapshot-task", "Tags": make_tag_list(order.tags)}
            ],
        }
        if settings.encrypt:
            parameters["Encrypted"] = True
            if settings.kms_key is not None:
                parameters["KmsKeyId"] = settings.kms_key
        token = order.token.get(parameters)
        self._reading = True
        try:
            answer = self._region.call("ImportSnapshot", ClientToken=token, **parameters)
        except Refused as refused:
            self._reading = is_transient(refused)  # then an earlier try may have been heard
            if not (self._reading or refused.denied or refused.expired):
                order.token.drop()
            if refused.denied or not _is_about_role(refused.message):
                raise
            where = f"site {settings.site}"
            raise make_role_error(settings, where, refused.message) from refused
        # A repeated token must come with the same parameters, and a time would be another.
        tags = get_tags(answer)
        if STARTED_TAG not in tags:
            started = {STARTED_TAG: format_moment(self._clock())}
            self._region.ensure_tags(str(answer["ImportTaskId"]), tags, started)
        return dict(answer)

    def _wait(self, task_id: str, progress: Progress) -> Described:
        waited, seconds, told = 0.0, _FIRST_POLL, ""
        while waited < IMPORT_SECONDS:
            answer = self._region.call("DescribeImportSnapshotTasks", ImportTaskIds=[task_id])
            tasks = answer.get("ImportSnapshotTasks") or [{}]
            detail: Described = tasks[0].get("SnapshotTaskDetail") or {}
            if detail.get("Status") not in (None, "active", "pending"):
                return detail
            done = f"{detail.get('Progress') or 0}% {detail.get('StatusMessage') or ''}".strip()
            if done != told:
                told = done
                progress.step(f"EC2 imports the snapshot ({task_id}): {done}")
            self._pause(seconds)
            waited, seconds = waited + seconds, min(seconds * 1.5, _LONGEST_POLL)
        raise UploadError(
            f"import task {task_id} has not ended after {IMPORT_SECONDS / 3600:.0f} hours",
            todo="run the same command again: it goes on waiting; `phantom-image clean` cancels it",
        )


def _is_about_role(message: str) -> bool:
    words = message.lower()
    return "service role" in words or "sufficient permissions" in words or "access denied" in words
