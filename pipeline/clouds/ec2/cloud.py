"""EC2: a raw disk becomes an EBS snapshot, and the snapshot an Amazon Machine Image.

An image is found again by its name and by the tag with the SHA-256 of its disk; the tags of
`settings.py` prove that it, its snapshot and its copies are ours. A publication's location,
`ec2://<account>/<region>/<image>/<snapshot>`, is all that `retire` needs.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pipeline.clouds.ec2.aws import (
    Account,
    Cut,
    NoCredentials,
    Refused,
    make_dummy_session,
    make_session,
)
from pipeline.clouds.ec2.blocks import BlockIndex, find_parent
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.explain import explain
from pipeline.clouds.ec2.journal import journal_file
from pipeline.clouds.ec2.leftovers import find_leftovers, remove_leftover
from pipeline.clouds.ec2.region import (
    Described,
    Region,
    Registration,
    find_site,
    format_moment,
    get_snapshots,
    get_tags,
    is_ours,
    make_tag_filters,
    parse_time,
)
from pipeline.clouds.ec2.rights import Checker
from pipeline.clouds.ec2.sandbox import (
    CONNECTIONS,
    Rehearsal,
    Rehearsals,
    check_emulator,
    check_space,
    compare_blocks,
    emulator_log,
    start_emulator,
)
from pipeline.clouds.ec2.sandbox_server import NO_SPACE
from pipeline.clouds.ec2.settings import (
    CONTENT_TAG,
    PIPELINE,
    PIPELINE_TAG,
    SANDBOX_ACCOUNT,
    SITE_SCHEMA,
    SITE_TAG,
    Ec2Settings,
    find_volume_gib,
    resolve_settings,
)
from pipeline.clouds.ec2.spread import (
    Original,
    check_volume,
    copy_image,
    deprecate_image,
    find_holder,
    find_image,
    run_in_parallel,
    share_image,
)
from pipeline.clouds.ec2.tokens import KeptToken, make_space_error, written
from pipeline.clouds.ec2.upload import SnapshotOrder, upload_snapshot
from pipeline.clouds.ec2.vm_import import Importer, ImportOrder
from pipeline.clouds.naming import fill_template
from pipeline.errors import (
    DefinitionError,
    ImageNameError,
    InUseError,
    NameTakenError,
    PhantomError,
    UploadError,
    UsageError,
)
from pipeline.metadata_server import EC2_USER_DATA_BYTES
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
    NoProgress,
    Progress,
    Publication,
    Release,
    Sha256,
    Site,
    format_size,
)

DEFAULT_IMAGE_NAME = "{name}-{version}-{build}"
NAME_RULE = r"[A-Za-z0-9 ()\[\]./\-'@_]{3,128}"  # RegisterImage
LONGEST_DESCRIPTION = 255  # characters, of images and of snapshots

_LOCATION = re.compile(
    r"ec2://(?P<account>[0-9]{12}|sandbox)/(?P<region>[a-z0-9-]+)"
    r"/(?P<image>ami-[0-9a-f]+)/(?P<snapshot>snap-[0-9a-f]+)"
)
_GONE_STATES = ("terminated", "shutting-down")
_UNKNOWN_ACTION = ("InvalidAction", "UnknownOperation", "UnsupportedOperation")


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class _Session:
    """A site that was opened."""

    settings: Ec2Settings
    account: Account
    folder: Path
    regions: dict[str, Region] = field(default_factory=dict)
    account_id: str | None = None
    progress: Progress = field(default_factory=NoProgress)
    """Of the verb that works: whoever waits for the network tells it."""
    made: dict[str, str] = field(default_factory=dict)
    """In a sandbox: the snapshots of the images that its emulator has."""


class Ec2:
    """A site of EC2. `open` comes before all verbs that need the network.

    `environ` (the process's own by default) gives the credentials, `clock` the time, and `pause`
    waits between tries and looks.
    """

    site_schema: ClassVar[Mapping[str, object]] = SITE_SCHEMA
    default_instance_type: ClassVar[str] = "t3.micro"
    """Of 2018: launch configurations take no type that is newer than 2022."""
    site_kinds: ClassVar[Mapping[str, Mapping[str, object]]] = {"EC2": {}}

    def __init__(
        self,
        site: Site,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = _now,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.site = site
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._pause = pause
        self._session: _Session | None = None

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
        """The template filled in. Raises ImageNameError for an unknown field or a name that EC2
        refuses, and DefinitionError for labels that cannot be tags."""
        name = fill_template(appliance, build, cloud="ec2", title="EC2", default=DEFAULT_IMAGE_NAME)
        where = str(appliance.definition)
        wrong = _find_name_mistake(name)
        if wrong is not None:
            raise ImageNameError(
                f"EC2 refuses the image name {name!r}: {wrong}",
                where=where,
                todo="change `clouds: ec2: image_name:` (or name and version) of the appliance",
            )
        wrong = resolve_settings(self.site).find_tag_mistake(appliance.labels)
        if wrong is not None:
            raise DefinitionError(
                f"the labels cannot be tags at site {self.site.name}: {wrong}",
                where=where,
                todo="change `labels` of the appliance, or `tags` of the site",
            )
        return name

    def check_size(self, disk_size: int) -> None:
        """Looks whether the disk fits on the site's volumes, whether its options go together, and
        whether a sandbox's emulator is installed: no earlier verb could tell.

        Raises VolumeTooSmallError, DefinitionError, HostError."""
        find_volume_gib(resolve_settings(self.site), disk_size, self.site)
        if self.site.sandbox:
            check_emulator()

    # ---- the session

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Finds settings and credentials. A sandbox site starts an emulator of its own, with keys
        of nobody: no call can reach Amazon. It forgets all at the end; `folder` keeps records.

        Raises DefinitionError, CredentialsError, CredentialsExpiredError.
        """
        settings = resolve_settings(self.site)
        with ExitStack() as stack:
            if self.site.sandbox:
                endpoint = stack.enter_context(start_emulator(folder))
                account = Account(make_dummy_session(), endpoint=endpoint, isolated=True)
            else:
                account = self._find_account(settings)
            self._session = _Session(settings=settings, account=account, folder=folder)
            try:
                yield
            finally:
                self._session = None

    def _find_account(self, settings: Ec2Settings) -> Account:
        try:
            session = make_session(settings.profile, self._environ)
            account = Account(session, endpoint=settings.endpoint, verify=settings.verify)
            account.credentials()
        except (NoCredentials, Cut, Refused) as failure:
            raise explain(failure, settings) from failure
        return account

    def _opened(self) -> _Session:
        if self._session is None:
            raise RuntimeError("Ec2.open comes first")
        return self._session

    @property
    def _settings(self) -> Ec2Settings:
        return self._opened().settings

    @property
    def _home(self) -> Region:
        return self._region(self._settings.region)

    def _region(self, name: str) -> Region:
        session = self._opened()
        if name not in session.regions:
            session.regions[name] = Region(
                session.account, name, pause=self._pause, find_progress=lambda: session.progress
            )
        return session.regions[name]

    @property
    def _account_id(self) -> str:
        session = self._opened()
        if session.account_id is None:
            found = self._home.find_account()  # in a sandbox too: it shows that it answers
            session.account_id = SANDBOX_ACCOUNT if self.site.sandbox else found
        return session.account_id

    @property
    def _rehearsals(self) -> Rehearsals:
        return Rehearsals(self._opened().folder)

    @contextmanager
    def _explained(self, region: str | None = None) -> Iterator[None]:
        """Turns what AWS and the network say into what people can act on, located at the site."""
        try:
            yield
        except (Refused, Cut, NoCredentials) as failure:
            raise explain(failure, self._settings, region) from failure
        except PhantomError as error:
            error.located(f"site {self.site.name}")
            raise

    # ---- checking and finding

    def check(self) -> None:
        """Proves credentials, regions and every right that the site's options ask for, by calls
        that change nothing. A sandbox has no rights to prove.

        Raises CredentialsError, CredentialsExpiredError, RegionError, RightsError,
        SharingBlockedError, ImportRoleError, SiteUnreachableError, DefinitionError.
        """
        with self._explained():
            if self.site.sandbox:
                _ = self._account_id
                return
            session = self._opened()
            Checker(session.account, session.settings, self.site, self._region).run()

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication whose image has this name and these bytes. None too where the name is
        another's, or the volume is not as the site has it now: `upload` says what to do then."""
        if self.site.sandbox and (known := self._find_rehearsed(image, release)) is not None:
            return known
        with self._explained():
            try:
                found = self._find_image(image, release.name)
            except NameTakenError:
                return None
            return None if found is None else self._publish_as(found, self._home, image.sha256)

    def _find_image(self, image: Image, name: str) -> Described | None:
        """The site's image of this name and these bytes. Raises NameTakenError where the name is
        another's, and where the image was made with other options."""
        found = find_image(self._home, name, image.disk_sha256, self._settings)
        if found is not None:
            volume_gib = find_volume_gib(self._settings, image.disk_bytes, self.site)
            check_volume(found, self._home, self._settings, volume_gib)
        return found

    def _find_rehearsed(self, image: Image, release: Release) -> Publication | None:
        known = self._rehearsals.find(release.name)
        if known is None or known.content != image.disk_sha256:
            return None
        here = known.publications[0].image_id in self._opened().made
        return known.publications[0] if known.published or here else None

    # ---- uploading

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """Makes the snapshot, or goes on with it, and registers it as an image; each only where it
        is not there already.

        Raises NameTakenError, UploadError, QuotaError, RightsError, CredentialsError,
        CredentialsExpiredError, SiteUnreachableError, ImportRoleError, VolumeTooSmallError,
        ImageNameError.
        """
        image = booted.image
        wrong = _find_name_mistake(release.name)
        if wrong is not None:
            raise ImageNameError(f"EC2 refuses the image name {release.name!r}: {wrong}")
        volume_gib = find_volume_gib(self._settings, image.disk_bytes, self.site)
        self._opened().progress = progress
        with self._explained():
            try:
                return self._upload(image, release, volume_gib, progress)
            except Cut as cut:
                if not cut.connected:
                    raise
                raise UploadError(
                    f"the upload of {release.name} was cut: {cut.reason}",
                    todo="run the same command again: it goes on where it was",
                ) from cut

    def _upload(
        self, image: Image, release: Release, volume_gib: int, progress: Progress
    ) -> Publication:
        if self.site.sandbox:
            known = self._find_rehearsed(image, release)
            if known is not None:
                progress.output(f"{known.location} was rehearsed with the same bytes")
                return known
            self._check_rehearsed_name(image, release)
        _ = self._account_id  # wrong credentials are found out before the image is read
        found = self._find_image(image, release.name)
        if found is not None:
            progress.output(f"{found['ImageId']} has the same bytes: nothing to send")
            return self._publish_as(found, self._home, image.sha256)
        progress.step(
            f"uploading {release.name} ({format_size(image.disk_bytes)}) to {self.site.name}"
        )
        tags = self._settings.make_tags(release, image.disk_sha256)
        snapshot_id = self._make_snapshot(image, release, tags, progress)
        registration = Registration(
            name=release.name,
            description=_describe(release),
            snapshot_id=snapshot_id,
            volume_gib=volume_gib,
            volume_type=self._settings.volume_type,
            tags=tags,
        )
        progress.step(f"registering {release.name}")
        made = self._register(registration, image, progress)
        if self.site.sandbox:
            self._opened().made[str(made["ImageId"])] = snapshot_id
        publication = self._publish_as(made, self._home, image.sha256)
        if self.site.sandbox:
            self._remember(release, image.disk_sha256, (publication,), published=False)
        return publication

    def _make_snapshot(
        self, image: Image, release: Release, tags: Mapping[str, str], progress: Progress
    ) -> str:
        """The completed snapshot of an image: one that is there, or a new one."""
        if self.site.sandbox:
            return self._rehearse_snapshot(image, release, tags, progress)
        records = release.folder / self.site.name
        # What its own journal tells of comes first: it is to be brought to an end.
        direct = self._settings.method == "ebs-direct"
        if not (direct and journal_file(records).exists()):
            known = self._find_snapshot(image)
            if known is not None:
                progress.step(f"snapshot {known} has the same bytes: nothing to send")
                return known
        if not direct:
            return self._import_snapshot(image, release, tags, progress)
        release.folder.mkdir(parents=True, exist_ok=True)
        order = self._make_order(image, release, tags, records)
        order = replace(order, parent=self._find_parent(release, order.volume_gib))
        ebs = Ebs(self._opened().account, self._home.name)
        return upload_snapshot(ebs, order, self._home, progress, pause=self._pause).snapshot_id

    def _make_order(
        self, image: Image, release: Release, tags: Mapping[str, str], records: Path
    ) -> SnapshotOrder:
        return SnapshotOrder(
            disk=image.file,
            volume_gib=max(1, -(-image.disk_bytes // GIB)),
            description=_describe(release),
            tags=tags,
            encrypted=self._settings.encrypt,
            kms_key=self._settings.kms_key,
            parent=None,
            records=records,
            content=image.disk_sha256,
        )

    def _rehearse_snapshot(
        self, image: Image, release: Release, tags: Mapping[str, str], progress: Progress
    ) -> str:
        """Sends all of it, for an emulator knows no parents, and reads it back. Nothing that would
        be of use the next time is left."""
        session = self._opened()
        ebs = Ebs(session.account, self._home.name, connections=CONNECTIONS)
        scratch = session.folder / "upload"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        check_space(session.folder, image.file)
        with written(scratch):
            scratch.mkdir()
        try:
            order = self._make_order(image, release, tags, scratch / "records")
            sent = upload_snapshot(ebs, order, self._home, progress, pause=self._pause)
        except Refused as refused:
            if refused.code != NO_SPACE:
                raise
            raise make_space_error(str(session.folder), refused.message) from refused
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        progress.step(f"reading {sent.snapshot_id} back")
        log = emulator_log(session.folder)
        compare_blocks(ebs, sent.snapshot_id, image.file, progress, log=log)
        return sent.snapshot_id

    def _import_snapshot(
        self, image: Image, release: Release, tags: Mapping[str, str], progress: Progress
    ) -> str:
        session = self._opened()
        importer = Importer(
            session.account, self._home, session.settings, pause=self._pause, clock=self._clock
        )
        order = ImportOrder(
            disk=image.file,
            content=image.disk_sha256,
            build=release.build,
            description=_describe(release),
            tags=tags,
            token=KeptToken(release.folder / f"{self.site.name}.import"),
        )
        return importer.run(order, progress)

    def _find_snapshot(self, image: Image) -> str | None:
        """A completed snapshot of ours with these bytes: of a run that was stopped before it
        registered it, or of an image with another name."""
        wanted = {
            PIPELINE_TAG: PIPELINE,
            SITE_TAG: self.site.name,
            CONTENT_TAG: image.disk_sha256,
        }
        for each in self._home.find_snapshots(make_tag_filters(wanted)):
            if each["State"] == "completed" and self._is_encrypted_alike(each):
                return str(each["SnapshotId"])
        return None

    def _find_parent(self, release: Release, volume_gib: int) -> BlockIndex | None:
        """The snapshot that this one can be a delta to."""
        settings = self._settings

        def usable(snapshot_id: str) -> bool:
            found = self._home.describe_snapshot(snapshot_id)
            return (
                found is not None
                and found["State"] == "completed"
                and found.get("OwnerId") == self._account_id
                and is_ours(found)
                and self._is_encrypted_alike(found)
            )

        parent = find_parent(
            release.folder.parent, self.site.name, settings.region, volume_gib, usable
        )
        if parent is None or parent.kms_key != settings.kms_key:
            return None
        return parent

    def _is_encrypted_alike(self, snapshot: Described) -> bool:
        settings = self._settings
        if bool(snapshot.get("Encrypted")) != settings.encrypt:
            return False
        return settings.kms_key is None or snapshot.get("KmsKeyId") == settings.kms_key

    def _register(self, registration: Registration, image: Image, progress: Progress) -> Described:
        """Makes the image. RegisterImage has no token: where its answer was not heard, or another
        command was faster, the name shows what came of it."""
        try:
            image_id = self._home.register(registration)
        except Refused as refused:
            if refused.code != "InvalidAMIName.Duplicate":
                raise
            image_id = self._find_winner(registration, image)
        made = self._home.wait_image(image_id, progress)
        self._home.ensure_tags(image_id, get_tags(made), registration.tags)
        return made

    def _find_winner(self, registration: Registration, image: Image) -> str:
        """The image that holds the name that was to be registered. The snapshot that was made for
        it goes, unless that image uses it. Raises NameTakenError."""
        home, name = self._home, registration.name
        try:
            found = find_holder(home, name, image.disk_sha256, self._settings)
            if found is None:
                raise NameTakenError(
                    f"an image in {home.name} has the name {name!r} already",
                    where=f"site {self.site.name}",
                    todo="run the same command again; if it stays so, raise the appliance's "
                    "version",
                )
        except NameTakenError:
            home.delete_unused(registration.snapshot_id)
            raise
        if registration.snapshot_id not in get_snapshots(found):
            home.delete_unused(registration.snapshot_id)
        return str(found["ImageId"])

    # ---- publishing

    def publish(
        self, publication: Publication, release: Release, progress: Progress
    ) -> tuple[Publication, ...]:
        """Waits until the image can be started, copies it to the further regions side by side,
        shares each with those whom the site names, and sets its deprecation.

        Raises UploadError when the image is not there, NameTakenError, SharingBlockedError,
        QuotaError, RightsError, CredentialsError, SiteUnreachableError: the first, when all regions
        were tried, with the others in it. Its `published` has the image and the copies that are
        there all the same.
        """
        self._opened().progress = progress
        if self.site.sandbox:
            known = self._rehearsals.find(release.name)
            if known is not None and known.published:
                return known.publications
        original = self._find_original(publication, release, progress)
        jobs = [
            partial(self._publish_in, region, original, publication, progress)
            for region in self._settings.regions
        ]
        outcomes = run_in_parallel(jobs)
        published = tuple(made for made, _ in outcomes if made is not None)
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            raise _join(errors, published)
        if self.site.sandbox:
            self._remember(release, original.content, published, published=True)
        return published

    def _find_original(
        self, publication: Publication, release: Release, progress: Progress
    ) -> Original:
        """The image to be published, when it can be started."""
        _, _, image_id, _ = self._parse(publication)
        with self._explained():
            if self._home.describe_image(image_id) is None:
                raise UploadError(
                    f"{publication.location} is not there, so it cannot be published",
                    where=f"site {self.site.name}",
                    todo="upload the image first: run `phantom-image publish` again",
                )
        try:
            with self._explained():
                image = self._home.wait_image(image_id, progress)
        except PhantomError as error:
            error.published = (publication,)
            raise
        content = get_tags(image).get(CONTENT_TAG) or self._find_content(release)
        folder = self._opened().folder if self.site.sandbox else release.folder
        return Original(
            image=image,
            region=self._home,
            name=release.name,
            description=_describe(release),
            content=content,
            records=folder / self.site.name,
        )

    def _find_content(self, release: Release) -> str:
        known = self._rehearsals.find(release.name) if self.site.sandbox else None
        return known.content if known is not None else ""

    def _publish_in(
        self, region_name: str, original: Original, publication: Publication, progress: Progress
    ) -> tuple[Publication | None, PhantomError | None]:
        """Copies where it is not the image's own region, then shares and sets the deprecation. What
        is there in the end, and what went wrong."""
        region, settings = self._region(region_name), self._settings
        optional = partial(self._make_optional, progress)
        home = region is original.region
        made = publication if home else None
        try:
            with self._explained(region_name):
                image = original.image
                if not home:
                    image = copy_image(original, region, settings, progress)
                    made = self._publish_as(image, region, publication.sha256)
                if _is_encrypted(image) and not settings.encrypt:
                    progress.output(
                        f"{image['ImageId']} in {region_name} is encrypted, as the account's "
                        "default may be: the site does not ask for it"
                    )
                share_image(image, region, settings)
                deprecate_image(image, region, settings, optional, self._clock())
        except PhantomError as error:
            return made, error
        return made, None

    def _make_optional(self, progress: Progress, step: str, call: Callable[[], Any]) -> Any:
        """Makes a step. One that a sandbox's emulator has not got is skipped."""
        try:
            return call()
        except Refused as refused:
            if not (self.site.sandbox and refused.code == "InvalidAction"):
                raise
            progress.output(f"skipped: the emulator has no {refused.action} ({step})")
            return None

    def _publish_as(self, image: Described, region: Region, sha256: str) -> Publication:
        image_id = str(image["ImageId"])
        snapshots = get_snapshots(image)
        snapshot_id = self._opened().made.get(image_id) or (snapshots[0] if snapshots else None)
        if snapshot_id is None:
            raise UploadError(
                f"image {image_id} in {region.name} has no snapshot",
                where=f"site {self.site.name}",
                todo="deregister it, and run the same command again",
            )
        return Publication(
            site=self.site.name,
            cloud=self.site.cloud,
            region=region.name,
            image_id=image_id,
            location=f"ec2://{self._account_id}/{region.name}/{image_id}/{snapshot_id}",
            sha256=Sha256(sha256),
            published_at=format_moment(parse_time(image["CreationDate"])),
            sandbox=self.site.sandbox,
        )

    def _remember(
        self,
        release: Release,
        content: str,
        publications: tuple[Publication, ...],
        *,
        published: bool,
    ) -> None:
        rehearsal = Rehearsal(
            name=release.name, content=content, publications=publications, published=published
        )
        self._rehearsals.write(rehearsal)

    def _check_rehearsed_name(self, image: Image, release: Release) -> None:
        known = self._rehearsals.find(release.name)
        if known is not None and known.published and known.content != image.disk_sha256:
            raise NameTakenError(
                f"{known.publications[0].image_id} has the name {release.name!r} already, and "
                "other content",
                where=f"site {self.site.name}",
                todo="retire it (`phantom-image retire`), raise the appliance's version, or put "
                "{build} into `clouds: ec2: image_name:`",
            )

    # ---- retiring and listing

    def retire(self, publication: Publication) -> None:
        """Deregisters the image and deletes its snapshot, in the publication's own region, unless
        something of this account uses it. What one of the account's other images is made of stays.

        Raises UsageError for what is not proven to be ours, and InUseError.
        """
        with self._explained(publication.region):
            account, region_name, image_id, snapshot_id = self._parse(publication)
            if account != self._account_id:
                raise self._make_foreign(publication, f"it is account {account}'s")
            if self.site.sandbox:
                self._rehearsals.remove(publication)
            region = self._region(region_name)
            image = region.describe_image(image_id)
            snapshot = region.describe_snapshot(snapshot_id)
            for described in (image, snapshot):
                if described is not None and not is_ours(described):
                    raise self._make_foreign(publication, "its tags do not say that we made it")
                if described is not None and find_site(described) != self.site.name:
                    reason = f"its tags say that it is of site {find_site(described)}"
                    raise self._make_foreign(publication, reason)
            if image is not None:
                self._check_unused(region, image_id)
                region.deregister(image_id)
            if snapshot is not None:
                region.delete_unused(snapshot_id)

    def _check_unused(self, region: Region, image_id: str) -> None:
        users = self._find_users(region, image_id)
        if users:
            raise InUseError(
                f"{image_id} in {region.name} is used by {', '.join(users)}",
                where=f"site {self.site.name}",
                todo="let them use another image, or end them, then run the same command again",
            )

    def _find_users(self, region: Region, image_id: str) -> list[str]:
        """What in this account refers to an image."""
        if self.site.sandbox:
            return []
        listed = self._list_if_known(
            region,
            "DescribeImageReferences",
            "ImageReferences",
            ImageIds=[image_id],
            IncludeAllResourceTypes=True,
        )
        users = [str(each["Arn"]) for each in listed or ()]
        wanted = [{"Name": "image-id", "Values": [image_id]}]
        # References may leave out what the account may not describe; this call is refused then.
        versions = self._list_if_known(
            region,
            "DescribeLaunchTemplateVersions",
            "LaunchTemplateVersions",
            Versions=["$Latest", "$Default"],
            Filters=wanted,
        )
        templates = dict.fromkeys(str(each["LaunchTemplateId"]) for each in versions or ())
        users += [each for each in templates if not any(user.endswith(each) for user in users)]
        if listed is not None:
            return users
        # A service that does not know the first call knows its instances.
        reservations = region.pages("DescribeInstances", "Reservations", Filters=wanted)
        return users + [
            str(each["InstanceId"])
            for reservation in reservations
            for each in reservation.get("Instances", ())
            if each.get("State", {}).get("Name") not in _GONE_STATES
        ]

    def _list_if_known(
        self, region: Region, operation: str, key: str, **parameters: Any
    ) -> list[Described] | None:
        """What a listing has; None from a service that does not know the call."""
        try:
            return [*region.pages(operation, key, **parameters)]
        except Refused as refused:
            if refused.code not in _UNKNOWN_ACTION:
                raise
            return None

    def list(self) -> Sequence[Publication]:
        """The images that the site's tag names, in all its regions; of a sandbox, what its records
        tell."""
        if self.site.sandbox:
            known = self._rehearsals.list()
            return [one for each in known if each.published for one in each.publications]
        wanted = make_tag_filters({PIPELINE_TAG: PIPELINE, SITE_TAG: self.site.name})
        found: list[Publication] = []
        for name in self._settings.regions:
            region = self._region(name)
            with self._explained(name):
                found += [
                    self._publish_as(each, region, get_tags(each).get(CONTENT_TAG, ""))
                    for each in region.find_images(wanted)
                    if each.get("State") in ("available", "pending")
                ]
        return found

    def find_leftovers(self) -> Sequence[Leftover]:
        """Snapshots that no image uses, failed images, and what an import left, in all regions of
        the site. A sandbox leaves nothing."""
        if self.site.sandbox:
            return []
        found: list[Leftover] = []
        for name in self._settings.regions:
            with self._explained(name):
                found += find_leftovers(self._region(name), self._settings)
        return found

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes one of them. Raises UsageError for what the site's tags do not prove."""
        region = leftover.region or self._settings.region
        with self._explained(region):
            remove_leftover(leftover, self._region(region), self._settings)

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

    def _parse(self, publication: Publication) -> tuple[str, str, str, str]:
        """Account, region, image and snapshot of a publication."""
        match = _LOCATION.fullmatch(publication.location)
        if match is None or publication.image_id != match["image"]:
            raise self._make_foreign(publication, "it is no image of EC2")
        return match["account"], match["region"], match["image"], match["snapshot"]

    def _make_foreign(self, publication: Publication, reason: str) -> UsageError:
        return UsageError(
            f"{publication.location} is no image of site {self.site.name}: {reason}",
            where=f"site {self.site.name}",
            todo="name a site and account that the publication belongs to",
        )


def _join(errors: Sequence[PhantomError], published: tuple[Publication, ...]) -> PhantomError:
    """The first error, with what the others say, and with what is there all the same."""
    first, *others = errors
    if others:
        first.detail = "\n".join([*filter(None, [first.detail]), *(f"also: {e}" for e in others)])
    first.published = published
    return first


def _is_encrypted(image: Described) -> bool:
    mappings = image.get("BlockDeviceMappings") or ()
    return any(each.get("Ebs", {}).get("Encrypted") for each in mappings)


def _describe(release: Release) -> str:
    # EC2 takes ASCII only.
    return release.summary.encode("ascii", "replace").decode()[:LONGEST_DESCRIPTION]


def _find_name_mistake(name: str) -> str | None:
    """What EC2 has against a name, or None."""
    if re.fullmatch(NAME_RULE, name) is not None:
        return None
    if not 3 <= len(name) <= 128:
        return f"it has {len(name)} characters, and must have from 3 to 128"
    return "it may hold letters, digits, spaces and ()[]./-'@_ only"
