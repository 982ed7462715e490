"""EC2 in one region, as a site uses it. Calls that may succeed later are repeated.

All raise Refused, Cut and NoCredentials, as `aws.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipeline.clouds.ec2.settings import PIPELINE, PIPELINE_TAG, SITE_TAG
from pipeline.errors import SiteUnreachableError, UploadError
from pipeline.model import NoProgress, Progress
from pipeline.tools.aws import Account, Outage, Refused, list_pages, retrying

ROOT_DEVICE = "/dev/xvda"
FIRST_POLL, LONGEST_POLL = 1.0, 15.0  # seconds between two calls that ask for a state
SNAPSHOT_SECONDS = 3600.0  # to complete a snapshot takes seconds to minutes
IMAGE_SECONDS = 3 * 3600.0  # to copy an image between regions takes minutes to an hour

UNKNOWN_SECONDS = 120.0
"""For how long EC2 may not know what it has just made."""

UNREACHED_SECONDS = 5.0
"""For how long calls are repeated until one has succeeded: a wrong endpoint is reported soon."""

Described = Mapping[str, Any]
"""An image, snapshot or task as EC2 describes it."""

FAILED_STATES = ("failed", "error", "invalid")
"""States of an image that will never be available."""

_GONE = frozenset(
    {
        "InvalidAMIID.NotFound",
        "InvalidAMIID.Unavailable",
        "InvalidAMIID.Malformed",
        "InvalidSnapshot.NotFound",
        "InvalidSnapshotID.Malformed",
    }
)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """An image to be made of a snapshot."""

    name: str
    description: str
    snapshot_id: str
    volume_gib: int
    volume_type: str
    tags: Mapping[str, str]


def get_tags(described: Described) -> dict[str, str]:
    """The tags of what EC2 describes."""
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags") or ()}


def is_ours(described: Described) -> bool:
    """Whether its tags prove that this pipeline made it."""
    return get_tags(described).get(PIPELINE_TAG) == PIPELINE


def find_site(described: Described) -> str | None:
    """The site that its tags prove it to be of; None for what is not ours."""
    return get_tags(described).get(SITE_TAG) if is_ours(described) else None


def get_snapshots(image: Described) -> list[str]:
    """The ids of an image's snapshots."""
    mappings = image.get("BlockDeviceMappings") or ()
    snapshot_ids = [mapping.get("Ebs", {}).get("SnapshotId") for mapping in mappings]
    return [str(snapshot_id) for snapshot_id in snapshot_ids if snapshot_id]


def make_tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as EC2 writes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def make_tag_filters(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Filters for what has all these tags."""
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]


@dataclass(eq=False)
class Region:
    """One region of an account. Threads may share it."""

    account: Account
    name: str
    pause: Callable[[float], None] = time.sleep
    find_progress: Callable[[], Progress] = NoProgress
    _reached: bool = False

    def call(self, operation: str, *, service: str = "ec2", **parameters: Any) -> Any:
        """One call, repeated while it is cut or throttled, for as long as an outage may last."""
        outage = Outage() if self._reached else Outage(seconds=UNREACHED_SECONDS)
        answer = retrying(
            lambda: self.account.call(service, self.name, operation, **parameters),
            outage=outage,
            progress=self.find_progress(),
            pause=self.pause,
        )
        self._reached = True
        return answer

    def pages(self, operation: str, key: str, **parameters: Any) -> Iterator[Described]:
        """What is under `key` in all pages of a listing."""
        return list_pages(partial(self.call, operation, **parameters), key)

    def _call_unless_gone(self, operation: str, **parameters: Any) -> Any:
        """As `call`; None where there is no such image or snapshot."""
        try:
            return self.call(operation, **parameters)
        except Refused as refused:
            if refused.code not in _GONE:
                raise
            return None

    def find_account(self) -> str:
        """The number of the account that the credentials are of."""
        return str(self.call("GetCallerIdentity", service="sts")["Account"])

    # ---- images

    def find_images(self, filters: Sequence[Mapping[str, Any]]) -> list[Described]:
        """The account's own images, also those that are deprecated or disabled."""
        wanted = {"Owners": ["self"], "Filters": [*filters], "IncludeDisabled": True}
        return [*self.pages("DescribeImages", "Images", **wanted)]

    def describe_image(self, image_id: str) -> Described | None:
        """One image, whoever owns it; None where there is no such image."""
        answer = self._call_unless_gone("DescribeImages", ImageIds=[image_id])
        images = answer["Images"] if answer else ()
        return images[0] if images and images[0].get("State") != "deregistered" else None

    def find_new_image(self, image_id: str) -> Described | None:
        """The image whose id EC2 has just returned; None where it is gone. EC2 may not know a new
        image for a while, and a repeated token returns the id of one that was removed."""
        for seconds in self.polls(UNKNOWN_SECONDS):
            try:
                images = self.call("DescribeImages", ImageIds=[image_id])["Images"]
            except Refused as refused:
                if refused.code == "InvalidAMIID.Unavailable":
                    return None
                if refused.code not in _GONE:
                    raise
            else:
                if images:
                    return images[0] if images[0].get("State") != "deregistered" else None
            self.pause(seconds)
        return None

    def register(self, wanted: Registration) -> str:
        """Makes an image of a snapshot and returns its id. Nothing is left to EC2's older defaults.

        No TPM: an image with one starts only where UEFI does, and `uefi-preferred` starts anywhere.
        """
        answer = self.call(
            "RegisterImage",
            Name=wanted.name,
            Description=wanted.description,
            Architecture="x86_64",
            VirtualizationType="hvm",
            BootMode="uefi-preferred",
            EnaSupport=True,
            SriovNetSupport="simple",
            ImdsSupport="v2.0",
            RootDeviceName=ROOT_DEVICE,
            BlockDeviceMappings=[
                {
                    "DeviceName": ROOT_DEVICE,
                    "Ebs": {
                        "SnapshotId": wanted.snapshot_id,
                        "VolumeSize": wanted.volume_gib,
                        "VolumeType": wanted.volume_type,
                        "DeleteOnTermination": True,
                    },
                }
            ],
            TagSpecifications=[{"ResourceType": "image", "Tags": make_tag_list(wanted.tags)}],
        )
        return str(answer["ImageId"])

    def deregister(self, image_id: str) -> None:
        """Removes an image; its snapshots stay. One that is gone is no error."""
        self._call_unless_gone("DeregisterImage", ImageId=image_id)

    def wait_image(self, image_id: str, progress: Progress) -> Described:
        """Waits until an image can be started. Raises UploadError when it never will."""
        image = self.find_new_image(image_id)
        for seconds in self.polls(IMAGE_SECONDS):
            state = image.get("State") if image else "gone"
            if image is not None and state == "available":
                return image
            if state == "disabled":
                raise UploadError(
                    f"image {image_id} in {self.name} is disabled",
                    todo="enable it in the EC2 console or retire it (`phantom-image retire`), then "
                    "run the same command again",
                )
            if state in ("gone", *FAILED_STATES):
                reason = (image or {}).get("StateReason", {}).get("Message", "no reason is told")
                raise UploadError(
                    f"image {image_id} in {self.name} is {state}: {reason}",
                    todo="run the same command again; `phantom-image clean` removes what is left",
                )
            progress.output(f"{image_id} in {self.name} is {state}")
            self.pause(seconds)
            image = self.describe_image(image_id)
        raise self._late("image", image_id, IMAGE_SECONDS, "is not available")

    # ---- snapshots

    def find_snapshots(self, filters: Sequence[Mapping[str, Any]]) -> list[Described]:
        """The account's own snapshots."""
        wanted = {"OwnerIds": ["self"], "Filters": [*filters]}
        return [*self.pages("DescribeSnapshots", "Snapshots", **wanted)]

    def describe_snapshot(self, snapshot_id: str) -> Described | None:
        """One of the account's own snapshots; None where there is no such snapshot."""
        answer = self._call_unless_gone(
            "DescribeSnapshots", SnapshotIds=[snapshot_id], OwnerIds=["self"]
        )
        return answer["Snapshots"][0] if answer and answer["Snapshots"] else None

    def state(self, snapshot_id: str) -> str | None:
        """`pending`, `completed` or `error`; None where there is no such snapshot."""
        snapshot = self.describe_snapshot(snapshot_id)
        return None if snapshot is None else str(snapshot["State"])

    def delete(self, snapshot_id: str) -> None:
        """Removes a snapshot. One that is gone is no error."""
        self._call_unless_gone("DeleteSnapshot", SnapshotId=snapshot_id)

    def delete_unused(self, snapshot_id: str) -> None:
        """Removes a snapshot unless an image uses it. Images of several names may share one: it
        goes with the last of them."""
        try:
            self.delete(snapshot_id)
        except Refused as refused:
            if refused.code != "InvalidSnapshot.InUse":
                raise

    def remove_failed(self, image: Described, site: str) -> None:
        """Removes an image that failed, with those of its snapshots that their tags prove to be the
        site's."""
        self.deregister(str(image["ImageId"]))
        for snapshot_id in get_snapshots(image):
            snapshot = self.describe_snapshot(snapshot_id)
            if snapshot is not None and find_site(snapshot) == site:
                self.delete_unused(snapshot_id)

    def wait_snapshot(self, snapshot_id: str, progress: Progress) -> None:
        """Waits until a snapshot is completed. Raises UploadError when it never will be."""
        told = ""
        for seconds in self.polls(SNAPSHOT_SECONDS):
            snapshot = self.describe_snapshot(snapshot_id)
            state = str(snapshot["State"]) if snapshot else "unknown"
            if state == "completed":
                return
            if state == "error":
                reason = (snapshot or {}).get("StateMessage") or "no reason is told"
                raise UploadError(
                    f"snapshot {snapshot_id} in {self.name} failed: {reason}",
                    todo="run the same command again: it makes a new one; `phantom-image clean` "
                    "removes this one",
                )
            done = str((snapshot or {}).get("Progress") or "")
            if done != told:
                told = done
                progress.step(f"EC2 completes snapshot {snapshot_id} ({done or state})")
            self.pause(seconds)
        raise self._late("snapshot", snapshot_id, SNAPSHOT_SECONDS, "is not completed")

    # ---- tags

    def ensure_tags(
        self, described_id: str, has: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Adds the tags that an image or snapshot lacks."""
        missing = {key: value for key, value in tags.items() if has.get(key) != value}
        if missing:
            self.call("CreateTags", Resources=[described_id], Tags=make_tag_list(missing))

    def polls(
        self, limit: float, first: float = FIRST_POLL, longest: float = LONGEST_POLL
    ) -> Iterator[float]:
        """Growing pauses between calls that ask for a state, `limit` seconds in all. botocore's
        waiters would neither report progress meanwhile, nor tell why a state is final."""
        waited, seconds = 0.0, first
        while waited < limit:
            yield seconds
            waited, seconds = waited + seconds, min(seconds * 1.5, longest)

    def _late(self, kind: str, described_id: str, limit: float, state: str) -> UploadError:
        return UploadError(
            f"{kind} {described_id} in {self.name} {state} after {limit / 60:.0f} minutes",
            todo="run the same command again: it goes on waiting for it; if it stays so, ask AWS",
        )


def parse_time(value: object) -> datetime:
    """A time as EC2 writes it, or as boto3 gives it, in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise SiteUnreachableError(
            f"an answer of EC2 cannot be understood: {str(value)[:40]!r} is no time",
            todo="see which service or proxy answers at the site's end point",
        ) from None


def format_moment(moment: datetime) -> str:
    """UTC, ISO 8601, seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
