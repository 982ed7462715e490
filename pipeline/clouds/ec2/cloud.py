"""EC2: a raw disk becomes an EBS snapshot, and the snapshot an Amazon Machine Image.

An image is found again by its name and by the tag with the SHA-256 of its disk; the tags of
`settings.py` prove that it, its snapshot and its copies are ours. A publication's location,
`ec2://<account>/<region>/<image>/<snapshot>`, is all that `retire` needs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pipeline.clouds.ec2.errors import make_error
from pipeline.clouds.ec2.foresight import foresee_upload
from pipeline.clouds.ec2.launch import launch_machines
from pipeline.clouds.ec2.leftovers import find_leftovers, remove_leftover
from pipeline.clouds.ec2.metadata import EC2_USER_DATA_BYTES
from pipeline.clouds.ec2.read_back import read_disk
from pipeline.clouds.ec2.region import Described, Region, get_tags, make_tag_filters
from pipeline.clouds.ec2.register import find_same_image, make_snapshot, upload_image
from pipeline.clouds.ec2.replicate import deprecate_image, publish_image
from pipeline.clouds.ec2.retire import check_own, check_unused
from pipeline.clouds.ec2.rights import Checker
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import (
    CONTENT_TAG,
    PIPELINE,
    PIPELINE_TAG,
    SITE_SCHEMA,
    SITE_TAG,
    Ec2Settings,
    find_volume_gib,
    resolve_settings,
)
from pipeline.clouds.held import Held
from pipeline.clouds.launching import Launch, LaunchOrder
from pipeline.clouds.site import CloudSite
from pipeline.errors import DefinitionError, NameTakenError, UploadError
from pipeline.model import (
    GIB,
    MIB,
    Appliance,
    BootedImage,
    Disk,
    Hardware,
    Image,
    Leftover,
    Machine,
    Outlook,
    Progress,
    Publication,
    Release,
)
from pipeline.tools.aws import Account, Cut, NoCredentials, Refused
from pipeline.tools.aws_session import find_configured_endpoints, make_session

NAME_RULE = r"[A-Za-z0-9 ()\[\]./\-'@_]{3,128}"  # RegisterImage


class Ec2(CloudSite[Session]):
    """A site of EC2."""

    cloud_name: ClassVar[str] = "EC2"
    default_image_name: ClassVar[str] = "{name}-{version}-{build}"
    usual_layout: ClassVar[str] = "hybrid"
    site_schema: ClassVar[Mapping[str, object]] = SITE_SCHEMA
    default_instance_type: ClassVar[str] = "t3.micro"
    """Of 2018: launch configurations take no type that is newer than 2022."""
    site_kinds: ClassVar[Mapping[str, Mapping[str, object]]] = {"EC2": {}}

    # ---- what the site boots

    @property
    def disk(self) -> Disk:
        """A whole disk that boots by BIOS and by UEFI: instance types have the one or the other."""
        return Disk(layout="hybrid", format="raw")

    @property
    def hardware(self) -> Hardware:
        """Nitro's, and Xen's of older instance types."""
        return Hardware(
            disks=("nvme", "xen_blkfront"), networks=("ena", "xen_netfront"), console="ttyS0"
        )

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Nitro's disk, and its metadata service with tokens required, under either firmware."""
        bios = Machine(
            name="bios",
            firmware="bios",
            board="q35",
            disk_bus="nvme",
            network_card="virtio-net-pci",  # QEMU has no ENA
            memory=512 * MIB,
            cpus=2,
            metadata="ec2",
            metadata_address="169.254.169.254:80",
            network="169.254.169.0/24",
            vendor="Amazon EC2",
            spare=GIB,  # root must grow: volumes are larger than images
        )
        return (bios, replace(bios, name="uefi", firmware="uefi"))

    @property
    def common(self) -> bool:
        """Whether everybody may start the images."""
        shared = self.site.options.get("share_with")
        return isinstance(shared, list | tuple) and "all" in shared

    def image_name(self, appliance: Appliance, build: str) -> str:
        """As `CloudSite.image_name`. Raises DefinitionError for labels that cannot be tags."""
        name = super().image_name(appliance, build)
        wrong = self._resolve().find_tag_mistake(appliance.labels)
        if wrong is not None:
            raise DefinitionError(
                f"the labels cannot be tags at site {self.site.name}: {wrong}",
                where=str(appliance.definition),
                todo="change `labels` of the appliance, or `tags` of the site",
            )
        return name

    def _find_name_mistake(self, name: str) -> str | None:
        if re.fullmatch(NAME_RULE, name) is not None:
            return None
        if not 3 <= len(name) <= 128:
            return f"it has {len(name)} characters, and must have from 3 to 128"
        return "it may hold letters, digits, spaces and ()[]./-'@_ only"

    def check_size(self, disk_size: int) -> None:
        """Looks whether the disk fits on the site's volumes, and whether its options go together.

        Raises VolumeTooSmallError, DefinitionError."""
        find_volume_gib(self._resolve(), disk_size, self.site)

    # ---- the session

    _folder: Path
    """The site's own, once it is open."""

    @contextmanager
    def _start_session(self, folder: Path) -> Iterator[Session]:
        """Finds settings and credentials. `folder` keeps the tokens of launches.

        Raises DefinitionError, CredentialsError, CredentialsExpiredError.
        """
        self._folder = folder
        settings = self._resolve()
        try:
            session = make_session(settings.profile, self._environ)
            account = Account(session, endpoint=settings.endpoint, verify=settings.verify)
            account.credentials()
        except (NoCredentials, Cut, Refused) as failure:
            raise make_error(failure, settings) from failure
        yield Session(self.site, settings, account, clock=self._clock, pause=self._pause)

    def _resolve(self) -> Ec2Settings:
        return resolve_settings(self.site)

    def find_risks(self) -> Sequence[str]:
        """What leads requests elsewhere than to Amazon by TLS."""
        settings = self._resolve()
        if settings.endpoint is not None:
            if settings.endpoint.lower().startswith("https:"):
                return ()
            where = f"`endpoint: {settings.endpoint}`"
            return (f"requests and images go without TLS ({where}): others can read them",)
        try:
            named = find_configured_endpoints(settings.profile, self._environ)
        except NoCredentials:  # the profile is in no file: `find_credentials` tells
            return ()
        return tuple(f"requests and images go to {url}, which {name} names" for name, url in named)

    def find_credentials(self) -> str:
        """The kind of place that the credentials come from, by botocore's name for it."""
        settings = self._resolve()
        try:
            session = make_session(settings.profile, self._environ)
            Account(session, endpoint=settings.endpoint, verify=settings.verify).credentials()
        except (NoCredentials, Cut, Refused) as failure:
            raise make_error(failure, settings) from failure
        profile = f", profile {settings.profile}" if settings.profile is not None else ""
        return f"{session.get_credentials().method}{profile}"

    # ---- checking and finding

    def check(self) -> None:
        """Proves credentials, regions and every right that the site's options ask for, by calls
        that change nothing.

        Raises CredentialsError, CredentialsExpiredError, RegionError, RightsError,
        SharingBlockedError, ImportRoleError, SiteUnreachableError, DefinitionError.
        """
        session = self._opened
        with session.translate_errors():
            Checker(session).run()

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication whose image has this name and these bytes. None too where the name is
        another's, or the volume is not as the site has it now: `upload` says what to do then."""
        session = self._opened
        with session.translate_errors():
            try:
                session.disk = image.file
                same = find_same_image(session, image, release)
            except NameTakenError:
                return None
            if same is None:
                return None
            return session.make_publication(same, session.home, image.sha256)

    def foresee(self, image: Image, release: Release, folder: Path) -> Outlook:
        """What `upload` would do, by what the site's own region lists."""
        with self.open(folder):
            session = self._opened
            with session.translate_errors():
                return foresee_upload(session, image, release)

    # ---- uploading and publishing

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """Makes the snapshot, or goes on with it, and registers it as an image; each only where it
        is not there already.

        Raises NameTakenError, UploadError, QuotaError, RightsError, CredentialsError,
        CredentialsExpiredError, SiteUnreachableError, ImportRoleError, VolumeTooSmallError,
        ImageNameError.
        """
        session = self._opened
        self._check_image_name(release.name)
        find_volume_gib(session.settings, booted.image.disk_bytes, self.site)
        session.progress, session.disk = progress, booted.image.file
        with session.translate_errors():
            try:
                return upload_image(session, booted.image, release, self._make_snapshot)
            except Cut as cut:
                if not cut.connected:
                    raise
                raise UploadError(
                    f"the upload of {release.name} was cut: {cut.reason}",
                    todo="run the same command again: it goes on where it was",
                ) from cut

    def _make_snapshot(self, image: Image, release: Release, tags: Mapping[str, str]) -> str:
        return make_snapshot(self._opened, image, release, tags)

    def publish(
        self, publication: Publication, release: Release, progress: Progress
    ) -> tuple[Publication, ...]:
        """Waits until the image can be started, copies it to the other regions in parallel, shares
        it as the site asks, and sets its deprecation. After all regions were tried, raises the
        first error with the others in it; its `published` has what was published all the same."""
        self._opened.progress = progress
        return publish_image(self._opened, publication, release, self._deprecate)

    def _deprecate(self, image: Described, region: Region, _progress: Progress) -> None:
        deprecate_image(image, region, self._opened.settings, self._clock())

    # ---- reading back, retiring and listing

    def read_back(
        self, publication: Publication, disk_bytes: int, progress: Progress
    ) -> Held | None:
        """The disk, from every block of the image's snapshot: its tags prove nothing."""
        session = self._opened
        session.progress = progress
        with session.translate_errors(publication.region):
            digest = read_disk(session, publication, disk_bytes, progress)
        return None if digest is None else Held(sha256=digest, of_disk=True)

    def retire(self, publication: Publication) -> None:
        """Deregisters the image and deletes its snapshot, in the publication's own region, unless
        something of this account uses it. What one of the account's other images is made of stays.

        Raises UsageError for what is not proven to be ours, and InUseError.
        """
        session = self._opened
        with session.translate_errors(publication.region):
            where = session.parse_location(publication)
            if where.account != session.account_id:
                raise session.make_foreign(publication, f"it is account {where.account}'s")
            region = session.region(where.region)
            image = region.describe_image(where.image)
            snapshot = region.describe_snapshot(where.snapshot)
            check_own(session, publication, image, snapshot)
            if image is not None:
                for template in self._check_unused(region, where.image):
                    region.call("DeleteLaunchTemplate", LaunchTemplateId=template)
                region.deregister(where.image)
            if snapshot is not None:
                region.delete_unused(where.snapshot)

    def _check_unused(self, region: Region, image_id: str) -> Sequence[str]:
        return check_unused(region, image_id, self.site.name)

    def list(self) -> Sequence[Publication]:
        """The images that the site's tag names, in all its regions."""
        session = self._opened
        wanted = make_tag_filters({PIPELINE_TAG: PIPELINE, SITE_TAG: self.site.name})
        publications: list[Publication] = []
        for name in session.settings.regions:
            region = session.region(name)
            with session.translate_errors(name):
                publications += [
                    session.make_publication(image, region, get_tags(image).get(CONTENT_TAG, ""))
                    for image in region.find_images(wanted)
                    if image.get("State") in ("available", "pending")
                ]
        return publications

    def find_leftovers(self) -> Sequence[Leftover]:
        """Snapshots that no image uses, failed images, and what an import left, in all regions of
        the site."""
        session = self._opened
        leftovers: list[Leftover] = []
        for name in session.settings.regions:
            with session.translate_errors(name):
                leftovers += find_leftovers(session.region(name), session.settings)
        return leftovers

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes one of them. Raises UsageError for what the site's tags do not prove."""
        session = self._opened
        region = leftover.region or session.settings.region
        with session.translate_errors(region):
            remove_leftover(leftover, session.region(region), session.settings)

    def launch(self, order: LaunchOrder, *, dry_run: bool) -> Launch:
        """Makes the launch template, unless the site has it, and starts machines by it.

        Raises NameTakenError, NotPublishedError, QuotaError, RightsError, CredentialsError,
        CredentialsExpiredError, SiteUnreachableError."""
        return launch_machines(self._opened, order, self._folder, dry_run=dry_run)

    def launch_data(
        self, publication: Publication, instance_type: str, user_data: bytes | None
    ) -> Mapping[str, object]:
        """The data of a launch template (RequestLaunchTemplateData): accounts made since October
        2024 have no launch configurations. Raises ValueError for more than 16 KiB of user-data."""
        data: dict[str, object] = {
            "ImageId": publication.image_id,
            "InstanceType": instance_type,
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        }
        if user_data is not None:
            if len(user_data) > EC2_USER_DATA_BYTES:
                raise ValueError(f"{len(user_data)} bytes of user-data, of at most 16 KiB")
            data["UserData"] = base64.b64encode(user_data).decode()
        return data
