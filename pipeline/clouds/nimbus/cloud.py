"""Nimbus: images go to its Cumulus repository, and nodes boot them: KVM nodes as whole disks, Xen
nodes as bare file systems, with the site's kernel, or as disks, by pygrub.

A private image is the object `VMS/<canonical id>/<name>`, a common one `VMS/common/<name>` with the
ACL `public-read`; `VMS.description/...` beside it holds the text that the cloud client shows. What
is said here of Cumulus was observed on the real server.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import ClassVar, NoReturn, TypeVar

from pipeline.clouds.naming import fill_template
from pipeline.clouds.nimbus.cumulus_client import (
    CumulusClient,
    Cut,
    Refused,
    StoredObject,
    WatchedFile,
)
from pipeline.clouds.nimbus.settings import (
    COMMON,
    SITE_SCHEMA,
    NimbusSettings,
    make_sandbox_settings,
    resolve_kernel,
    resolve_settings,
)
from pipeline.errors import (
    CredentialsError,
    DefinitionError,
    ImageNameError,
    PhantomError,
    QuotaError,
    SiteUnreachableError,
    StoreError,
    UploadError,
    UsageError,
)
from pipeline.model import (
    MIB,
    Appliance,
    BootedImage,
    Disk,
    Hardware,
    Image,
    Leftover,
    Machine,
    NodeEdit,
    Progress,
    Publication,
    Release,
    Sha256,
    Site,
    format_size,
)

T = TypeVar("T")

DEFAULT_IMAGE_NAME = "{name}-{version}-{build}.gz"
NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LONGEST_NAME = 128
LONGEST_KEY = 192  # bytes; of keys that are much longer Cumulus tells a wrong ETag, or takes none
USUAL_ID = 36  # characters of a canonical id, for names that are made before it is known

PAUSES = (1.0, 3.0)  # seconds before the second and the third try: a server restarts in less

WRITE_CHECK = "phantom-write-check"
"""The object that proves the right to write; among the descriptions it shows up nowhere."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class _Session:
    settings: NimbusSettings
    client: CumulusClient


class Nimbus:
    """A Nimbus site. `open` comes before all verbs that need the network.

    `environ` (the process's own by default) gives the credentials, `clock` the time of
    publication, and `pause` waits between tries.
    """

    site_schema: ClassVar[Mapping[str, object]] = SITE_SCHEMA
    default_instance_type: ClassVar[str] = "m1.small"
    site_kinds: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "Nimbus on KVM (root: hda)": {"root": "hda"},
        "Nimbus on Xen (root: sda1)": {"root": "sda1"},
    }

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
        """A whole disk with one partition, or for `sda1` what would lie in that partition. Every
        node takes gzipped raw; only some take qcow2."""
        layout = "bare" if self._boots_partition else "mbr"
        return Disk(layout=layout, format="raw", compression="gzip")

    @property
    def hardware(self) -> Hardware:
        """What libvirt gives when nothing is named, and the virtio devices of sites that ask. A Xen
        site's kernel brings its own drivers."""
        if self._boots_partition:
            return Hardware(disks=(), networks=(), console="ttyS0", own_kernel=False)
        return Hardware(
            disks=("ata_piix", "virtio_blk"),
            networks=("8139cp", "virtio_net"),
            console="ttyS0",
        )

    @property
    def machines(self) -> tuple[Machine, ...]:
        """What libvirt gives when nothing is named, and what a node writes into the image.

        For `sda1` the site's kernel, or one of this host's, boots the file system directly. What it
        has drivers for is its own business: no Xen is imitated.
        """
        kernel = resolve_kernel(self.site)
        machine = Machine(
            name="bios" if kernel is None else "xen",
            kernel=kernel,
            board="pc",
            disk_bus="ide",  # of which Linux says sda
            network_card="rtl8139" if kernel is None else "virtio-net-pci",
            memory=512 * MIB,
            cpus=2,  # a real instance may have one; without KVM two boot in less time
            metadata="nimbus",
            metadata_address="10.0.2.100:8080",
            network="10.0.2.0/24",
            edits=(
                NodeEdit(
                    path=PurePosixPath("/root/.ssh/authorized_keys"),
                    text="{public_key}\n",
                    mode=0o600,
                ),
                # No slash and no newline at the end, as Nimbus writes it.
                NodeEdit(
                    path=PurePosixPath("/var/nimbus-metadata-server-url"),
                    text="{metadata_url}",
                    mode=0o644,
                ),
            ),
        )
        return (machine,)

    @property
    def _boots_partition(self) -> bool:
        return self.site.options.get("root") == "sda1"

    @property
    def common(self) -> bool:
        """Whether the site's images go to the folder that all its users see."""
        return self.site.options.get("visibility") == "common"

    def image_name(self, appliance: Appliance, build: str) -> str:
        """The template filled in. A name without `.gz` gets it at the end: by it a node knows that
        it has to unpack. Raises ImageNameError for an unknown field or a name that Nimbus
        refuses."""
        name = fill_template(
            appliance, build, cloud="nimbus", title="Nimbus", default=DEFAULT_IMAGE_NAME
        )
        if ".gz" not in name:
            name += ".gz"
        wrong = _find_mistake(name) or self._find_long_key(name)
        if wrong:
            raise ImageNameError(
                f"Nimbus refuses the image name {name!r}: {wrong}",
                where=str(appliance.definition),
                todo="change `clouds: nimbus: image_name:` (or name and version) of the appliance",
            )
        return name

    def check_size(self, disk_size: int) -> None:
        """A node boots a disk of any size."""

    def _find_long_key(self, name: str) -> str | None:
        owner = str(self.site.options.get("canonical_id", "x" * USUAL_ID))
        prefix = str(self.site.options.get("prefix", "VMS"))
        size = len(f"{prefix}.description/{owner}/{name}".encode())
        return f"its key has {size} bytes of at most {LONGEST_KEY}" if size > LONGEST_KEY else None

    # ---- the session

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Finds settings and credentials. A sandbox site starts a server of its own, with
        credentials that die with it; what it stores stays in `folder`.

        Raises CredentialsError and DefinitionError.
        """
        if self.site.sandbox:
            with self._open_sandbox(folder):
                yield
            return
        with self._using(resolve_settings(self.site, self._environ)):
            yield

    @contextmanager
    def _open_sandbox(self, folder: Path) -> Iterator[None]:
        from pipeline.clouds.nimbus.cumulus_server import CumulusServer, CumulusUser

        s3id, secret = secrets.token_hex(10), secrets.token_hex(20)
        canonical_id = make_sandbox_settings(self.site, 0, s3id, secret).credentials.canonical_id
        user = CumulusUser(s3id=s3id, secret=secret, canonical_id=canonical_id)
        bucket = str(self.site.options.get("bucket", "Repo"))
        with ExitStack() as stack:
            try:
                server = stack.enter_context(CumulusServer(folder, [user], bucket=bucket))
            except (OSError, sqlite3.Error) as error:
                raise StoreError(
                    f"the sandbox's folder cannot be used: {error}",
                    where=f"site {self.site.name}",
                    todo=f"see who owns {folder}, or remove it: it holds only copies",
                ) from error
            settings = make_sandbox_settings(self.site, server.port, s3id, secret)
            stack.enter_context(self._using(settings))
            yield

    @contextmanager
    def _using(self, settings: NimbusSettings) -> Iterator[None]:
        self._session = _Session(settings, CumulusClient(settings))
        try:
            yield
        finally:
            self._session = None

    @property
    def _settings(self) -> NimbusSettings:
        return self._opened().settings

    @property
    def _client(self) -> CumulusClient:
        return self._opened().client

    def _opened(self) -> _Session:
        if self._session is None:
            raise RuntimeError("Nimbus.open comes first")
        return self._session

    # ---- the verbs

    def check(self) -> None:
        """Proves the credentials by a list and the right to write by an empty object, which it
        removes again. That a canonical id is the account's own no reply tells; that it is another
        one's can be seen by images in the folder that are not ours.

        Raises CredentialsError, SiteUnreachableError, QuotaError, DefinitionError.
        """
        own_id = self._settings.credentials.canonical_id
        images = self._list_folder(own_id)
        if images and not any(self._is_own(each.key) for each in images[:3]):
            raise CredentialsError(
                f"the images in the folder {own_id} belong to another account",
                where=self._where,
                todo="compare the canonical id with the one in the account's cloud.properties",
            )
        probe = self._description_key(WRITE_CHECK, own_id)
        self._try(lambda: self._client.put(probe, io.BytesIO(b""), 0, public=False))
        self._delete(probe)

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication whose object has this name, size and md5. By a list, not by HEAD: the
        date that HEAD tells cannot be read when the object is of a Monday."""
        return self._find_same(image, release.name)

    def _find_same(self, image: Image, name: str) -> Publication | None:
        key = self._image_key(name)
        stored = self._find_stored(key)
        if stored is None or not _is_same(stored, image):
            return None
        return self._make_publication(key, image.sha256, stored.modified)

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """Sends the image in one streamed PUT, unless the same bytes are there.

        A broken connection is tried twice more, each time after a look whether the server has all
        of it by now. Raises UploadError, QuotaError, CredentialsError, SiteUnreachableError,
        ImageNameError.
        """
        image, name = booted.image, release.name
        key = self._image_key(name)
        wrong = _find_mistake(name) or self._find_long_key(name)
        if wrong:
            raise ImageNameError(f"Nimbus refuses the image name {name!r}: {wrong}")
        self._check_replaceable(key, name)
        for pause in (*PAUSES, None):
            found = self._find_same(image, name)
            if found is not None:
                progress.output(f"{found.location} has the same bytes: nothing to send")
                return found
            progress.step(f"uploading {name} ({format_size(image.bytes)}) to {self.site.name}")
            try:
                md5 = self._send(key, image, progress)
            except Cut as cut:
                if pause is None:
                    self._raise_cut(cut, name)
                progress.step(f"the upload was cut ({cut.reason}); again in {pause:.0f} s")
                self._pause(pause)
            else:
                self._check_digest(key, name, md5, image)
                return self._make_publication(key, image.sha256, None)
        raise AssertionError("the last try returns or raises")

    def publish(
        self, publication: Publication, release: Release, progress: Progress
    ) -> tuple[Publication, ...]:
        """Writes the description and, for a common image, makes sure that all may read it: the ACL
        may have been lost to somebody's later PUT.

        Raises UploadError when the image is not there, CredentialsError, SiteUnreachableError.
        """
        owner, name = self._parse_location(publication)
        key, public = self._image_key(name, owner), owner == COMMON
        if self._find_stored(key) is None:
            raise UploadError(
                f"{publication.location} is not there, so it cannot be published",
                where=self._where,
                todo="upload the image first: run `phantom-image publish` again",
            )
        if public:
            self._try(lambda: self._client.make_public(key))
        text = f"{' '.join(release.summary.split())}\n".encode()
        described = self._description_key(name, owner)
        stored = self._find_stored(described)
        if stored is None or stored.md5 != _md5(text) or public:
            self._try(
                lambda: self._client.put(described, io.BytesIO(text), len(text), public=public)
            )
        return (publication,)

    def retire(self, publication: Publication) -> None:
        """Removes image and description, whichever is there.

        Raises UsageError for a location outside of this site's own folders, CredentialsError,
        SiteUnreachableError.
        """
        owner, name = self._parse_location(publication)
        for key in (self._image_key(name, owner), self._description_key(name, owner)):
            self._delete(key)

    def list(self) -> Sequence[Publication]:
        """The images of the account's own folder and of `common`. The site knows no sha256: it is
        empty here."""
        return [
            self._make_publication(each.key, Sha256(""), each.modified)
            for owner in (self._settings.credentials.canonical_id, COMMON)
            for each in self._list_folder(owner)
        ]

    def find_leftovers(self) -> Sequence[Leftover]:
        """The object of a rights check that was killed between writing and deleting it."""
        own_id = self._settings.credentials.canonical_id
        probe = self._find_stored(self._description_key(WRITE_CHECK, own_id))
        if probe is None:
            return []
        moment = (probe.modified or self._clock()).astimezone(UTC)
        return [
            Leftover(
                site=self.site.name,
                kind="rights check",
                id=probe.key,
                since=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                reason="an empty object that proved the right to write",
            )
        ]

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes it. Raises UsageError for what is none."""
        own_id = self._settings.credentials.canonical_id
        if leftover.id != self._description_key(WRITE_CHECK, own_id):
            raise UsageError(f"{leftover.id} is nothing that a crash left", where=self._where)
        self._delete(leftover.id)

    def launch_data(
        self, publication: Publication, instance_type: str, user_data: bytes | None
    ) -> None:
        """Nimbus has nothing that starts an image but its client's own command."""

    # ---- keys and publications

    def _image_key(self, name: str, owner: str | None = None) -> str:
        return f"{self._settings.prefix}/{owner or self._settings.owner}/{name}"

    def _description_key(self, name: str, owner: str) -> str:
        return f"{self._settings.prefix}.description/{owner}/{name}"

    def _list_folder(self, owner: str) -> Sequence[StoredObject]:
        folder = self._image_key("", owner)
        found = self._try(lambda: self._client.list(folder))
        return [each for each in found if "/" not in each.key.removeprefix(folder)]

    def _find_stored(self, key: str) -> StoredObject | None:
        listed = self._try(lambda: self._client.list(key))
        return next((each for each in listed if each.key == key), None)

    @property
    def _root(self) -> str:
        return f"cumulus://{self._settings.host}/{self._settings.bucket}"

    def _make_publication(self, key: str, sha256: Sha256, at: datetime | None) -> Publication:
        moment = (at or self._clock()).astimezone(UTC)
        return Publication(
            site=self.site.name,
            cloud=self.site.cloud,
            image_id=key.rsplit("/", 1)[1],
            location=f"{self._root}/{key}",
            sha256=sha256,
            published_at=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            sandbox=self.site.sandbox,
        )

    def _parse_location(self, publication: Publication) -> tuple[str, str]:
        """Folder and name of a publication. Only what lies in our own folder or `common` counts:
        nothing else is ours to change."""
        for owner in (self._settings.credentials.canonical_id, COMMON):
            folder = f"{self._root}/{self._image_key('', owner)}"
            name = publication.location.removeprefix(folder)
            if publication.location.startswith(folder) and _find_mistake(name) is None:
                return owner, name
        raise UsageError(
            f"{publication.location} is no image of this account at site {self.site.name}",
            where=self._where,
            todo="name a site and account that the publication belongs to",
        )

    # ---- sending

    def _send(self, key: str, image: Image, progress: Progress) -> str:
        with image.file.open("rb") as file:
            body = WatchedFile(file, lambda done: progress.advance(done, image.bytes))
            try:
                return self._client.put(key, body, image.bytes, public=self._settings.common)
            except Refused as refused:
                self._raise_refused(refused)

    def _check_replaceable(self, key: str, name: str) -> None:
        """Finds out before the bytes are sent what Cumulus would say after them."""
        if self._find_stored(key) is not None and not self._is_own(key):
            raise UploadError(
                f"{self._root}/{key} belongs to another account, which alone can replace it",
                where=self._where,
                todo=f"raise the appliance's version, or give it another image_name than {name!r}",
            )

    def _check_digest(self, key: str, name: str, md5: str, image: Image) -> None:
        if md5 == image.md5:
            return
        try:
            self._client.delete(key)
            left = "what it stored was removed"
        except (Refused, Cut):
            left = f"what it stored is still there, as {self._root}/{key}"
        raise UploadError(
            f"{name} came to {self.site.name} with md5 {md5 or 'unknown'} in place of {image.md5}; "
            f"{left}",
            where=self._where,
            todo="run the same command again; if it happens again, look for a proxy in between, "
            "and whether the file changed while it was sent",
        )

    def _raise_cut(self, cut: Cut, name: str) -> NoReturn:
        if not cut.connected:
            self._raise_unreachable(cut)
        raise UploadError(
            f"the upload of {name} was cut {len(PAUSES) + 1} times: {cut.reason}",
            where=self._where,
            todo="run the same command again: the site kept what it had under this name, and "
            "nothing of the new image",
        )

    # ---- trying, and saying what went wrong

    @property
    def _where(self) -> str:
        return f"site {self.site.name}"

    def _try(self, request: Callable[[], T]) -> T:
        """Makes a small request, up to three times when the connection fails."""
        for pause in (*PAUSES, None):
            try:
                return request()
            except Refused as refused:
                self._raise_refused(refused)
            except Cut as cut:
                if pause is None:
                    self._raise_unreachable(cut)
                self._pause(pause)
        raise AssertionError("the last try returns or raises")

    def _is_own(self, key: str) -> bool:
        return self._try(lambda: self._client.is_own(key))

    def _delete(self, key: str) -> None:
        self._try(lambda: self._client.delete(key))

    def _raise_unreachable(self, cut: Cut) -> NoReturn:
        raise SiteUnreachableError(
            f"{self._settings.endpoint} does not answer: {cut.reason}",
            where=self._where,
            todo="compare `repository`, `https` and the certificate options of the site with the "
            "account's cloud.properties, and look whether a firewall or proxy is in between",
        )

    def _raise_refused(self, refused: Refused) -> NoReturn:
        raise self._make_refusal(refused) from None

    def _make_refusal(self, refused: Refused) -> PhantomError:
        host, where = self._settings.host, self._where
        if refused.code == "AccountProblem":
            return QuotaError(
                f"{host} has no room left for this account",
                where=where,
                todo="retire images that are not needed any more (`phantom-image list` names them),"
                " or ask the site for a larger quota",
            )
        if refused.status in (401, 403):
            return CredentialsError(
                f"{host} refuses the credentials of {self._settings.credentials.source}, or the "
                "account has no right to do this (it answers the same to both)",
                where=where,
                todo="compare access key id, secret and canonical id with those of the account; "
                "if they are right, ask the site for the right to write to its bucket "
                f"{self._settings.bucket}",
            )
        if refused.code == "NoSuchBucket":
            return DefinitionError(
                f"{host} has no bucket {self._settings.bucket}",
                where=self.site.where,
                todo="set the site's option `bucket` to vws.repository.s3bucket of its "
                "cloud.properties",
            )
        return SiteUnreachableError(
            f"{self._settings.endpoint} does not answer as a Cumulus server: {refused}",
            where=where,
            todo="compare `repository` and `https` of the site with the account's "
            "cloud.properties; if they are right, the server is ill: ask the site",
        )


def _find_mistake(name: str) -> str | None:
    """What Nimbus has against a name, or None."""
    if re.fullmatch(NAME_RULE, name) is None:
        return (
            "it may hold letters, digits, `.`, `_` and `-` only, and starts with a letter or digit"
        )
    if ".." in name:
        return "it holds `..`"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name)} characters of at most {LONGEST_NAME}"
    return None


def _is_same(stored: StoredObject, image: Image) -> bool:
    return stored.size == image.bytes and stored.md5 == image.md5


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
