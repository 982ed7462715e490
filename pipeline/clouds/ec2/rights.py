"""The rights that a site needs, tested before anything is built: EC2's by dry runs; those of EBS
and S3, which have none, by calls about things that do not exist."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.clouds.ec2.blocks import ZEROS, ZEROS_DIGEST
from pipeline.clouds.ec2.errors import make_disabled_region, make_error, make_role_error
from pipeline.clouds.ec2.region import ROOT_DEVICE, Region, make_tag_list
from pipeline.clouds.ec2.replicate import check_sharing
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import PIPELINE, PIPELINE_TAG, SITE_TAG, Ec2Settings
from pipeline.errors import DefinitionError, RegionError
from pipeline.tools.aws import Cut, Refused

NO_IMAGE, NO_SNAPSHOT = "ami-00000000000000000", "snap-00000000000000000"
"""Well-formed ids that no account has."""

KEY_PREFIX = "phantom-image/"
"""The start of the keys of all our S3 objects."""

_DEFAULT_REGION = "us-east-1"  # of the partition `aws`; it can be asked about all the others


def make_probes(settings: Ec2Settings, region: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Operations and parameters of the dry runs for all that a site needs of EC2 in a region: first
    what it needs in every region, then what its options ask for."""
    tags = make_tag_list({PIPELINE_TAG: PIPELINE, SITE_TAG: settings.site})

    def probe(operation: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
        return operation, parameters

    yield probe("DescribeImages", Owners=["self"])
    yield probe("DescribeSnapshots", OwnerIds=["self"])
    yield probe("CreateTags", Resources=[NO_SNAPSHOT], Tags=tags)
    yield probe("DeleteSnapshot", SnapshotId=NO_SNAPSHOT)
    yield probe("DeregisterImage", ImageId=NO_IMAGE)
    yield probe("DescribeImageReferences", ImageIds=[NO_IMAGE], IncludeAllResourceTypes=True)
    yield probe("DescribeInstances")
    yield probe("DescribeLaunchTemplateVersions", Versions=["$Latest", "$Default"])
    if region == settings.region:
        yield probe(
            "RegisterImage",
            Name=f"phantom-image rights check {uuid.uuid4()}",
            Architecture="x86_64",
            VirtualizationType="hvm",
            RootDeviceName=ROOT_DEVICE,
            BlockDeviceMappings=[{"DeviceName": ROOT_DEVICE, "Ebs": {"SnapshotId": NO_SNAPSHOT}}],
            TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
        )
        if settings.method == "import":
            yield probe("DescribeImportSnapshotTasks")
            yield probe("CancelImportTask", ImportTaskId="import-snap-00000000000000000")
            yield probe(
                "ImportSnapshot",
                RoleName=settings.import_role,
                DiskContainer={
                    "Format": "RAW",
                    "UserBucket": {"S3Bucket": settings.bucket, "S3Key": f"{KEY_PREFIX}none"},
                },
            )
    else:
        yield probe(
            "CopyImage",
            Name="phantom-image rights check",
            SourceImageId=NO_IMAGE,
            SourceRegion=settings.region,
        )
    if settings.share_with:
        yield probe("ModifyImageAttribute", ImageId=NO_IMAGE, LaunchPermission={"Add": []})
        yield probe(
            "ModifySnapshotAttribute",
            SnapshotId=NO_SNAPSHOT,
            Attribute="createVolumePermission",
            OperationType="add",
            UserIds=["000000000000"],
        )
    if settings.deprecate_days is not None:
        yield probe("EnableImageDeprecation", ImageId=NO_IMAGE, DeprecateAt="2100-01-01T00:00:00Z")


class Checker:
    """Proves credentials, regions and rights of a site."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings

    def run(self) -> None:
        """Raises what `make_error` makes, RegionError, SharingBlockedError, ImportRoleError,
        DefinitionError."""
        self._check_regions()
        for region in self._settings.regions:
            self._check_actions(self._session.region(region))
        if self._settings.method == "import":
            self._check_bucket()
        else:
            self._check_blocks()

    # ---- regions

    def _check_regions(self) -> None:
        """Proves that the credentials are good, and that all regions exist and are enabled."""
        settings = self._settings
        home = self._session.home
        try:
            home.find_account()
            known = self._describe_regions(home)
        except Cut as cut:
            if settings.endpoint is None and settings.region not in (known := self._known()):
                raise self._make_region_error(settings.region, known) from cut
            raise
        except Refused as refused:
            # To a region that is not enabled, all credentials are unknown.
            if not refused.unknown_credentials:
                raise
            known = self._ask_default_region(refused)
            if known.get(settings.region, "not-opted-in") != "not-opted-in":
                raise
        for region in settings.regions:
            if region not in known:
                raise self._make_region_error(region, known)
            if known[region] == "not-opted-in":
                raise make_disabled_region(self._session.site.where, region)

    def _describe_regions(self, region: Region) -> dict[str, str]:
        answer = region.call("DescribeRegions", AllRegions=True)
        return {
            region["RegionName"]: str(region.get("OptInStatus")) for region in answer["Regions"]
        }

    def _ask_default_region(self, refused: Refused) -> dict[str, str]:
        if self._settings.region == _DEFAULT_REGION:
            raise refused
        try:
            return self._describe_regions(self._session.region(_DEFAULT_REGION))
        except (Refused, Cut):
            raise refused from None

    def _known(self) -> dict[str, str]:
        session = self._session.account.session
        return {
            name: ""
            for partition in session.get_available_partitions()
            for name in session.get_available_regions("ec2", partition_name=partition)
        }

    def _make_region_error(self, region: str, known: dict[str, str]) -> RegionError:
        import difflib

        near = difflib.get_close_matches(region, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return RegionError(
            f"there is no region {region!r}{hint}",
            where=self._session.site.where,
            todo="correct `region` or `copy_to` of the site; `aws ec2 describe-regions` lists all",
        )

    # ---- rights

    def _check_actions(self, region: Region) -> None:
        for operation, parameters in make_probes(self._settings, region.name):
            call = partial(region.call, operation, DryRun=True, **parameters)
            self._probe(call, region.name)
        check_sharing(region, self._settings)

    def _probe(self, call: Callable[[], object], region: str) -> None:
        """Makes a call that cannot succeed: the refusal shows whether the account has the right."""
        try:
            call()
        except Refused as refused:
            if refused.denied or refused.expired or refused.unknown_credentials:
                raise make_error(refused, self._settings, region) from refused
            if refused.action == "ec2:ImportSnapshot" and "role" in refused.message.lower():
                where = self._session.where
                raise make_role_error(self._settings, where, refused.message) from refused

    def _check_blocks(self) -> None:
        """Calls the EBS direct APIs, which have no dry runs, about a snapshot that does not
        exist."""
        region = self._session.home
        call = partial(region.call, service="ebs")

        def start() -> None:
            answer = call(
                "StartSnapshot",
                VolumeSize=1,
                ParentSnapshotId=NO_SNAPSHOT,
                ClientToken=str(uuid.uuid4()),
                Tags=make_tag_list({PIPELINE_TAG: PIPELINE, SITE_TAG: self._settings.site}),
                Timeout=10,
            )
            region.delete(str(answer["SnapshotId"]))  # for a service that ignores parents

        put = partial(
            call,
            "PutSnapshotBlock",
            SnapshotId=NO_SNAPSHOT,
            BlockIndex=0,
            BlockData=ZEROS,
            DataLength=len(ZEROS),
            Checksum=base64.b64encode(ZEROS_DIGEST).decode(),
            ChecksumAlgorithm="SHA256",
        )
        complete = partial(
            call,
            "CompleteSnapshot",
            SnapshotId=NO_SNAPSHOT,
            ChangedBlocksCount=1,
            Checksum=base64.b64encode(hashlib.sha256(ZEROS_DIGEST).digest()).decode(),
            ChecksumAlgorithm="SHA256",
            ChecksumAggregationMethod="LINEAR",
        )
        for attempt in (start, put, complete):
            self._probe(attempt, region.name)

    def _check_bucket(self) -> None:
        """Proves that the bucket exists, and that objects can be written to it and removed."""
        settings = self._settings
        region = self._session.home
        call = partial(region.call, service="s3", Bucket=settings.bucket)
        key = f"{KEY_PREFIX}{settings.site}/rights-check"
        try:
            if call("HeadBucket").get("BucketRegion") not in (None, region.name):
                raise self._make_bucket_error()
            call("PutObject", Key=key, Body=b"")
            call("GetObject", Key=key)["Body"].close()
            call("DeleteObject", Key=key)
            call("ListMultipartUploads", MaxUploads=1)
            abort = partial(call, "AbortMultipartUpload", Key=key, UploadId="none")
            self._probe(abort, region.name)
        except Refused as refused:
            if refused.status == 404:
                raise self._make_bucket_error() from refused
            raise make_error(refused, settings, region.name) from refused

    def _make_bucket_error(self) -> DefinitionError:
        settings = self._settings
        return DefinitionError(
            f"site {settings.site}: there is no bucket {settings.bucket} in {settings.region}",
            where=self._session.site.where,
            todo="make it there, or correct `bucket` of the site",
        )
