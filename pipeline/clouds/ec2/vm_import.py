"""Makes a snapshot of a disk through S3 and EC2's import service, where EBS direct is not allowed.

The object in the bucket costs money, so it is removed as soon as the task that reads it has ended,
well or not. What a killed run leaves, `leftovers.py` finds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline import records
from pipeline.clouds.ec2.errors import make_role_error
from pipeline.clouds.ec2.region import Described, format_moment, get_tags, make_tag_list
from pipeline.clouds.ec2.rights import KEY_PREFIX
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import STARTED_TAG, describe_release
from pipeline.clouds.ec2.tokens import KeptToken, written
from pipeline.errors import UploadError
from pipeline.files import make_folder, write_atomically
from pipeline.model import MIB, Image, Release
from pipeline.tools.aws import (
    Cut,
    NoCredentials,
    Outage,
    Refused,
    is_transient,
    retrying,
    translated,
)

IMPORT_SECONDS = 3 * 3600.0  # users report from minutes to over an hour
_FIRST_POLL, _LONGEST_POLL = 2.0, 30.0
_PART = 32 * MIB  # of a multipart upload; at most 10,000 make an object of up to 312 GiB
_THREADS = 8
_TRIES = 3  # tasks, where earlier ones failed


class Importer:
    """Imports one image into the site's own region."""

    def __init__(
        self, session: Session, image: Image, release: Release, tags: Mapping[str, str]
    ) -> None:
        self._session = session
        self._settings = session.settings
        self._region = session.home
        self._image = image
        self._description = describe_release(release)
        self._tags = tags
        self._token = KeptToken(release.folder / f"{session.site.name}.import")
        self._progress = session.progress
        self._key = f"{KEY_PREFIX}{session.site.name}/{release.build}/{image.disk_sha256}.raw"
        self._note = release.folder / f"{session.site.name}.object"
        """What S3 said of the object that this host has sent whole."""
        self._object = {"Bucket": self._settings.bucket, "Key": self._key}
        self._url = f"s3://{self._settings.bucket}/{self._key}"
        self._reading = False
        """Whether a task may read the object."""

    def run(self) -> str:
        """The id of a completed snapshot of the disk. Raises UploadError, ImportRoleError, Refused,
        Cut and NoCredentials."""
        try:
            self._send()
            snapshot_id = self._import()
        finally:
            if not self._reading:
                self._remove()
        self._region.wait_snapshot(snapshot_id, self._progress)
        self._region.ensure_tags(snapshot_id, {}, self._tags)
        self._token.drop()
        return snapshot_id

    # ---- to S3

    def _send(self) -> None:
        disk, progress = self._image.file, self._progress
        size = disk.stat().st_size
        if self._is_sent():
            return
        from boto3.s3.transfer import TransferConfig

        progress.step(f"uploading {disk.name} to {self._url}")
        client = self._session.account.client("s3", self._region.name, connections=_THREADS)
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
                        str(disk),
                        **self._object,
                        Callback=advance,
                        Config=config,
                    )
            finally:
                # boto3 takes no notice of a KeyboardInterrupt in its threads, and ends as if it had
                # sent all.
                if stopped:
                    raise stopped[0]

        retrying(send, outage=outage, progress=progress, pause=self._session.pause)
        with written(self._note):
            make_folder(self._note.parent)
            write_atomically(self._note, json.dumps(self._describe()) + "\n")

    def _is_sent(self) -> bool:
        """Whether an earlier run on this host sent the whole object, and it is still the same. What
        the object's metadata say would be no proof of its content."""
        said = records.read(self._note, {"url": str, "etag": str, "sha256": str})
        if said is None:
            return False
        try:
            return bool(said == self._describe())
        except Refused as refused:
            if refused.status == 404:
                return False
            raise

    def _describe(self) -> dict[str, str]:
        """The object's identity: its ETag changes with its content."""
        head = self._region.call("HeadObject", service="s3", **self._object)
        return {"url": self._url, "etag": str(head["ETag"]), "sha256": self._image.disk_sha256}

    def _remove(self) -> None:
        try:
            self._region.call("DeleteObject", service="s3", **self._object)
        except (Refused, Cut, NoCredentials) as error:
            # The result of the import matters more, and `clean` finds the object.
            self._progress.step(f"{self._url} could not be removed ({error})")
        with written(self._note):
            self._note.unlink(missing_ok=True)

    # ---- from S3

    def _import(self) -> str:
        """Starts a task, or finds by its token the task that a killed run started, and waits. After
        a failure the token is dropped: it would bring back the same task."""
        said = "no task was started"
        for _ in range(_TRIES):
            task_id = self._start()
            self._progress.step(
                f"EC2 imports the snapshot ({task_id}): this takes minutes to an hour"
            )
            detail = self._wait(task_id)
            self._reading = False
            snapshot_id = detail.get("SnapshotId")
            if detail.get("Status") == "completed" and snapshot_id:
                if self._region.state(str(snapshot_id)) is not None:
                    return str(snapshot_id)
                said = f"its snapshot {snapshot_id} is gone"  # of an earlier run's task
                self._token.drop()
                continue
            self._token.drop()
            said = str(detail.get("StatusMessage") or "no reason is told")
            if _is_about_role(said):
                raise make_role_error(self._settings, self._session.where, said)
        raise UploadError(
            f"EC2 did not import the snapshot: {said}",
            todo="run the same command again; if it happens again, try `method: ebs-direct`",
        )

    def _start(self) -> str:
        settings = self._settings
        parameters: dict[str, Any] = {
            "Description": self._description,
            "RoleName": settings.import_role,
            "DiskContainer": {
                "Description": self._description,
                "Format": "RAW",
                "UserBucket": {"S3Bucket": settings.bucket, "S3Key": self._key},
            },
            "TagSpecifications": [
                {"ResourceType": "import-snapshot-task", "Tags": make_tag_list(self._tags)}
            ],
            **settings.make_encryption(self._region.name),
        }
        token = self._token.get(parameters)
        self._reading = True
        try:
            answer = self._region.call("ImportSnapshot", ClientToken=token, **parameters)
        except Refused as refused:
            self._reading = is_transient(refused)  # EC2 may have acted on an earlier try
            if not (self._reading or refused.denied or refused.expired):
                self._token.drop()
            if refused.denied or not _is_about_role(refused.message):
                raise
            raise make_role_error(settings, self._session.where, refused.message) from refused
        # A repeated token must come with the same parameters, so the time cannot be one of them.
        task_id, tags = str(answer["ImportTaskId"]), get_tags(answer)
        if STARTED_TAG not in tags:
            started = {STARTED_TAG: format_moment(self._session.clock())}
            self._region.ensure_tags(task_id, tags, started)
        return task_id

    def _wait(self, task_id: str) -> Described:
        told = ""
        for seconds in self._region.polls(IMPORT_SECONDS, _FIRST_POLL, _LONGEST_POLL):
            answer = self._region.call("DescribeImportSnapshotTasks", ImportTaskIds=[task_id])
            tasks = answer.get("ImportSnapshotTasks") or [{}]
            detail: Described = tasks[0].get("SnapshotTaskDetail") or {}
            if detail.get("Status") not in (None, "active", "pending"):
                return detail
            done = f"{detail.get('Progress') or 0}% {detail.get('StatusMessage') or ''}".strip()
            if done != told:
                told = done
                self._progress.step(f"EC2 imports the snapshot ({task_id}): {done}")
            self._session.pause(seconds)
        raise UploadError(
            f"import task {task_id} has not ended after {IMPORT_SECONDS / 3600:.0f} hours",
            todo="run the same command again: it goes on waiting; `phantom-image clean` cancels it",
        )


def _is_about_role(message: str) -> bool:
    words = message.lower()
    return "service role" in words or "sufficient permissions" in words or "access denied" in words
