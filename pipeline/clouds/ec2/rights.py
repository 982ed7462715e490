"""What a site will ask AWS for, tried out before anything is built: dry runs where EC2 has them,
and calls about things that do not exist where EBS and S3 have none."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.clouds.ec2.aws import Account, Cut, Refused
from pipeline.clouds.ec2.blocks import ZEROS, ZEROS_DIGEST
from pipeline.clouds.ec2.explain import explain, make_role_error
from pipeline.clouds.ec2.region import ROOT_DEVICE, Region, make_tag_list
from pipeline.clouds.ec2.settings import PIPELINE, PIPELINE_TAG, SITE_TAG, Ec2Settings
from pipeline.clouds.ec2.spread import check_sharing
from pipeline.errors import DefinitionError, RegionError
from pipeline.model import Site

NO_IMAGE, NO_SNAPSHOT = "ami-00000000000000000", "snap-00000000000000000"
"""Well formed, and nobody's."""

KEY_PREFIX = "phantom-image/"
"""What the keys of all S3 objects of ours start with."""

_DEFAULT_REGION = "us-east-1"  # of the partition `aws`; it can be asked about all the others


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A dry run that shows whether an action of EC2 is allowed."""

    operation: str
    parameters: dict[str, Any]


def make_probes(settings: Ec2Settings, region: str) -> Iterator[Probe]:
    """The dry runs for all that a site needs of EC2 in a region: first what every region is asked
    for, then what the site's options ask for."""
    tags = make_tag_list({PIPELINE_TAG: PIPELINE, SITE_TAG: settings.site})

    def probe(operation: str, **parameters: Any) -> Probe:
        return Probe(operation=operation, parameters=parameters)

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

    def __init__(
        self,
        account: Account,
        settings: Ec2Settings,
        site: Site,
        find_region: Callable[[str], Region],
    ) -> None:
        self._account = account
        self._settings = settings
        self._site = site
        self._find_region = find_region

    def run(self) -> None:
        """Raises what `explain` makes, RegionError, SharingBlockedError, ImportRoleError,
        DefinitionError."""
        self.check_regions()
        for region in self._settings.regions:
            self._check_actions(self._find_region(region))
        if self._settings.method == "import":
            self._check_bucket()
        else:
            self._check_blocks()

    # ---- regions

    def check_regions(self) -> None:
        """Proves credentials, and that all regions are there and enabled."""
        settings = self._settings
        home = self._find_region(settings.region)
        try:
            home.find_account()
            known = self._describe_regions(home)
        except Cut as cut:
            if settings.endpoint is None and not self._is_known(settings.region):
                raise self._make_region_error(settings.region, self._known()) from cut
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
                raise RegionError(
                    f"region {region} is not enabled for the account",
                    where=self._site.where,
                    todo="enable it in the account's settings, or leave it out of the site's "
                    "options",
                )

    def _describe_regions(self, region: Region) -> dict[str, str]:
        answer = region.call("DescribeRegions", AllRegions=True)
        return {each["RegionName"]: str(each.get("OptInStatus")) for each in answer["Regions"]}

    def _ask_default_region(self, refused: Refused) -> dict[str, str]:
        if self._settings.region == _DEFAULT_REGION:
            raise refused
        try:
            return self._describe_regions(self._find_region(_DEFAULT_REGION))
        except (Refused, Cut):
            raise refused from None

    def _known(self) -> dict[str, str]:
        session = self._account.session
        partitions = session.get_available_partitions()
        names = (
            name
            for each in partitions
            for name in session.get_available_regions("ec2", partition_name=each)
        )
        return dict.fromkeys(names, "")

    def _is_known(self, region: str) -> bool:
        return region in self._known()

    def _make_region_error(self, region: str, known: dict[str, str]) -> RegionError:
        import difflib

        near = difflib.get_close_matches(region, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return RegionError(
            f"there is no region {region!r}{hint}",
            where=self._site.where,
            todo="correct `region` or `copy_to` of the site; `aws ec2 describe-regions` lists all",
        )

    # ---- rights

    def _check_actions(self, region: Region) -> None:
        for probe in make_probes(self._settings, region.name):
            call = partial(region.call, probe.operation, DryRun=True, **probe.parameters)
            self._probe(call, region.name)
        check_sharing(region, self._settings)

    def _probe(self, call: Callable[[], object], region: str) -> None:
        """Makes a call that cannot succeed; how it is refused tells whether it is allowed."""
        try:
            call()
        except Refused as refused:
            if refused.denied or refused.expired or refused.unknown_credentials:
                raise explain(refused, self._settings, region) from refused
            if refused.action == "ec2:ImportSnapshot" and "role" in refused.message.lower():
                where = f"site {self._settings.site}"
                raise make_role_error(self._settings, where, refused.message) from refused

    def _check_blocks(self) -> None:
        """The EBS direct APIs have no dry run."""
        region = self._find_region(self._settings.region)
        checksum = base64.b64encode(ZEROS_DIGEST).decode()
        linear = base64.b64encode(hashlib.sha256(ZEROS_DIGEST).digest()).decode()

        def start() -> None:
            answer = region.call(
                "StartSnapshot",
                service="ebs",
                VolumeSize=1,
                ParentSnapshotId=NO_SNAPSHOT,
                ClientToken=str(uuid.uuid4()),
                Tags=make_tag_list({PIPELINE_TAG: PIPELINE, SITE_TAG: self._settings.site}),
                Timeout=10,
            )
            region.delete(str(answer["SnapshotId"]))  # of a service that minds no parents

        def put() -> None:
            region.call(
                "PutSnapshotBlock",
                service="ebs",
                SnapshotId=NO_SNAPSHOT,
                BlockIndex=0,
                BlockData=ZEROS,
                DataLength=len(ZEROS),
                Checksum=checksum,
                ChecksumAlgorithm="SHA256",
            )

        def complete() -> None:
            region.call(
                "CompleteSnapshot",
                service="ebs",
                SnapshotId=NO_SNAPSHOT,
                ChangedBlocksCount=1,
                Checksum=linear,
                ChecksumAlgorithm="SHA256",
                ChecksumAggregationMethod="LINEAR",
            )

        for call in (start, put, complete):
            self._probe(call, region.name)

    def _check_bucket(self) -> None:
        """That the bucket is there, and that objects can be written and removed."""
        settings = self._settings
        region = self._find_region(settings.region)
        bucket, key = settings.bucket, f"{KEY_PREFIX}{settings.site}/rights-check"
        try:
            head = region.call("HeadBucket", service="s3", Bucket=bucket)
            if head.get("BucketRegion") not in (None, region.name):
                raise self._make_bucket_error()
            region.call("PutObject", service="s3", Bucket=bucket, Key=key, Body=b"")
            region.call("GetObject", service="s3", Bucket=bucket, Key=key)["Body"].close()
            region.call("DeleteObject", service="s3", Bucket=bucket, Key=key)
            region.call("ListMultipartUploads", service="s3", Bucket=bucket, MaxUploads=1)
            self._probe(
                partial(
                    region.call,
                    "AbortMultipartUpload",
                    service="s3",
                    Bucket=bucket,
                    Key=key,
                    UploadId="none",
                ),
                region.name,
            )
        except Refused as refused:
            if refused.status == 404:
                raise self._make_bucket_error() from refused
            raise explain(refused, settings, region.name) from refused

    def _make_bucket_error(self) -> DefinitionError:
        settings = self._settings
        return DefinitionError(
            f"site {settings.site}: there is no bucket {settings.bucket} in {settings.region}",
            where=self._site.where,
            todo="make it there, or correct `bucket` of the site",
        )
