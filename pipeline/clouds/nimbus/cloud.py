"""Nimbus: images go to its Cumulus repository, and nodes boot them: KVM nodes as whole disks, Xen
nodes as bare file systems, with the site's kernel, or as disks, by pygrub.

A private image is the object `VMS/<canonical id>/<name>`, a common one `VMS/common/<name>` with the
ACL `public-read`; `VMS.description/...` beside it holds the text that the cloud client shows. What
is said here of Cumulus was observed on the real server (docs/facts/nimbus.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import ClassVar, NoReturn, Protocol

from pipeline.clouds.held import Held
from pipeline.clouds.nimbus.cumulus_client import WatchedFile
from pipeline.clouds.nimbus.repository import PAUSES, Repository
from pipeline.clouds.nimbus.settings import (
    COMMON,
    SITE_SCHEMA,
    find_risks,
    resolve_kernel,
    resolve_settings,
)
from pipeline.clouds.site import CloudSite
from pipeline.errors import CredentialsError, UploadError, UsageError
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
    Outlook,
    Progress,
    Publication,
    Release,
    Sha256,
    format_size,
)
from pipeline.tools.aws import Cut, Refused

NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LONGEST_NAME = 128
LONGEST_KEY = 192  # bytes; of keys that are much longer Cumulus tells a wrong ETag, or takes none
USUAL_ID = 36  # characters of a canonical id, for names that are made before it is known

WRITE_CHECK = "phantom-write-check"
"""The object that proves the right to write; among the descriptions it shows up nowhere."""


class Nimbus(CloudSite[Repository]):
    """A Nimbus site."""

    cloud_name: ClassVar[str] = "Nimbus"
    default_image_name: ClassVar[str] = "{name}-{version}-{build}.gz"
    usual_layout: ClassVar[str] = "mbr"
    site_schema: ClassVar[Mapping[str, object]] = SITE_SCHEMA
    default_instance_type: ClassVar[str] = "m1.small"
    site_kinds: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "Nimbus on KVM (root: hda)": {"root": "hda"},
        "Nimbus on Xen (root: sda1)": {"root": "sda1"},
    }

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
            disks=("ata_piix", "virtio_blk"), networks=("8139cp", "virtio_net"), console="ttyS0"
        )

    @property
    def machines(self) -> tuple[Machine, ...]:
        """What libvirt gives when nothing is named, and what a node writes into the image.

        For `sda1` the site's kernel, or one of this host's, boots the file system directly. QEMU
        does not imitate Xen, so that kernel's drivers prove nothing.
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

    def _fill_template(self, appliance: Appliance, build: str) -> str:
        """A name without `.gz` gets it at the end: by it a node knows that it has to unpack."""
        name = super()._fill_template(appliance, build)
        return name if ".gz" in name else f"{name}.gz"

    def _add_layout(self, name: str, layout: str) -> str:
        stem, gz, end = name.partition(".gz")
        return f"{stem}-{layout}{gz}{end}"

    def _find_name_mistake(self, name: str) -> str | None:
        return _find_mistake(name) or self._find_long_key(name)

    def check_size(self, disk_size: int) -> None:
        """A node boots a disk of any size."""

    def _find_long_key(self, name: str) -> str | None:
        owner = str(self.site.options.get("canonical_id", "x" * USUAL_ID))
        prefix = str(self.site.options.get("prefix", "VMS"))
        size = len(f"{prefix}.description/{owner}/{name}".encode())
        return f"its key has {size} bytes of at most {LONGEST_KEY}" if size > LONGEST_KEY else None

    # ---- the session

    @contextmanager
    def _start_session(self, folder: Path) -> Iterator[Repository]:
        """Finds settings and credentials. Raises CredentialsError and DefinitionError."""
        yield Repository(self.site, resolve_settings(self.site, self._environ), self._pause)

    @property
    def _own_id(self) -> str:
        return self._opened.settings.credentials.canonical_id

    def find_risks(self) -> Sequence[str]:
        """What of the site's settings weakens the connection to its repository."""
        return find_risks(self.site, self._environ)

    def find_credentials(self) -> str:
        """The variables or the file that the account comes from."""
        return resolve_settings(self.site, self._environ).credentials.source

    # ---- the verbs

    def check(self) -> None:
        """Proves the credentials by a list and the right to write by an empty object, which it
        removes again. No reply tells whether a canonical id is the account's own; images of another
        owner in its folder show that it is not.

        Raises CredentialsError, SiteUnreachableError, QuotaError, DefinitionError.
        """
        repository = self._opened
        images = repository.list_folder(self._own_id)
        if images and not any(repository.is_own(image.key) for image in images[:3]):
            raise CredentialsError(
                f"the images in the folder {self._own_id} belong to another account",
                where=repository.where,
                todo="compare the canonical id with the one in the account's cloud.properties",
            )
        repository.put_text(self._probe_key, b"", public=False)
        repository.delete(self._probe_key)

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication whose object has this name, size and md5. By a list, not by HEAD:
        the date that HEAD tells is malformed for an object stored on a Monday."""
        key = self._opened.image_key(release.name)
        stored = self._opened.find(key)
        if stored is None or (stored.size, stored.md5) != (image.bytes, image.md5):
            return None
        return self._make_publication(key, image.sha256, stored.modified)

    def foresee(self, image: Image, release: Release, folder: Path) -> Outlook:
        """What `upload` would do, by a list of the folder that the image would lie in."""
        with self.open(folder):
            repository = self._opened
            objects = repository.list_folder(repository.settings.owner)
            return foresee_upload(image, repository.image_key(release.name), objects)

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """Sends the image in one streamed PUT, unless the same bytes are there: under another name,
        the server copies them.

        A broken connection is tried twice more, each time after a look whether the server has all
        of it by now. Raises UploadError, QuotaError, CredentialsError, SiteUnreachableError,
        ImageNameError.
        """
        image, name = booted.image, release.name
        key = self._opened.image_key(name)
        self._check_image_name(name)
        self._check_replaceable(key, name)
        self._copy_twin(image, key, progress)
        for pause in (*PAUSES, None):
            same = self.find(image, release)
            if same is not None:
                progress.output(f"{same.location} has the same bytes: nothing to send")
                return same
            progress.step(f"uploading {name} ({format_size(image.bytes)}) to {self.site.name}")
            try:
                with image.file.open("rb") as file:
                    body = WatchedFile(file, lambda done: progress.advance(done, image.bytes))
                    md5 = self._opened.put_once(key, body, image.bytes)
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
        """Writes the description, with the file's digest, and lets all read a common image: the ACL
        may have been lost to somebody's later PUT.

        Raises UploadError when the image is not there, CredentialsError, SiteUnreachableError.
        """
        owner, name = self._parse_location(publication)
        repository = self._opened
        key, public = repository.image_key(name, owner), owner == COMMON
        if repository.find(key) is None:
            raise UploadError(
                f"{publication.location} is not there, so it cannot be published",
                where=repository.where,
                todo="upload the image first: run `phantom-image publish` again",
            )
        if public:
            repository.make_public(key)
        summary = " ".join(release.summary.split())
        text = f"{summary} (sha256 {publication.sha256})\n".encode()
        described = repository.description_key(name, owner)
        stored = repository.find(described)
        md5 = hashlib.md5(text, usedforsecurity=False).hexdigest()
        if stored is None or stored.md5 != md5 or public:
            repository.put_text(described, text, public=public)
        return (publication,)

    def read_back(
        self, publication: Publication, disk_bytes: int, progress: Progress
    ) -> Held | None:
        """The file, fetched whole: what Cumulus says of it is its own.

        Raises UsageError as `retire` does, CredentialsError, SiteUnreachableError.
        """
        owner, name = self._parse_location(publication)
        repository = self._opened
        key = repository.image_key(name, owner)
        stored = repository.find(key)
        if stored is None:
            return None
        progress.step(f"fetching {publication.image_id} ({format_size(stored.size)})")
        digest = repository.fetch_digest(key, lambda done: progress.advance(done, stored.size))
        return Held(sha256=digest, of_disk=False)

    def retire(self, publication: Publication) -> None:
        """Removes image and description, whichever is there.

        Raises UsageError for a location outside of this site's own folders, CredentialsError,
        SiteUnreachableError.
        """
        owner, name = self._parse_location(publication)
        self._opened.delete(self._opened.image_key(name, owner))
        self._opened.delete(self._opened.description_key(name, owner))

    def list(self) -> Sequence[Publication]:
        """The images of the account's own folder and of `common`. The site knows no sha256: it is
        empty here."""
        return [
            self._make_publication(image.key, Sha256(""), image.modified)
            for owner in (self._own_id, COMMON)
            for image in self._opened.list_folder(owner)
        ]

    def find_leftovers(self) -> Sequence[Leftover]:
        """The object of a rights check that was killed between writing and deleting it."""
        probe = self._opened.find(self._probe_key)
        if probe is None:
            return []
        return [
            Leftover(
                site=self.site.name,
                kind="rights check",
                id=probe.key,
                since=self._format_moment(probe.modified),
                reason="an empty object that proved the right to write",
            )
        ]

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes it. Raises UsageError for anything that a crash did not leave."""
        if leftover.id != self._probe_key:
            raise UsageError(
                f"{leftover.id} is nothing that a crash left", where=self._opened.where
            )
        self._opened.delete(leftover.id)

    @property
    def _probe_key(self) -> str:
        return self._opened.description_key(WRITE_CHECK, self._own_id)

    def launch_data(
        self, publication: Publication, instance_type: str, user_data: bytes | None
    ) -> None:
        """Nimbus has nothing that starts an image but its client's own command."""

    # ---- publications

    def _make_publication(self, key: str, sha256: Sha256, at: datetime | None) -> Publication:
        return Publication(
            site=self.site.name,
            cloud=self.site.cloud,
            image_id=key.rsplit("/", 1)[1],
            location=f"{self._opened.root}/{key}",
            sha256=sha256,
            published_at=self._format_moment(at),
            sandbox=self.site.sandbox,
        )

    def _format_moment(self, at: datetime | None) -> str:
        """A moment as manifests write it; now, where the site does not tell it."""
        return (at or self._clock()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _parse_location(self, publication: Publication) -> tuple[str, str]:
        """Folder and name of a publication. Only what lies in our own folder or `common` counts:
        nothing else is ours to change."""
        repository = self._opened
        for owner in (self._own_id, COMMON):
            folder = f"{repository.root}/{repository.image_key('', owner)}"
            name = publication.location.removeprefix(folder)
            if publication.location.startswith(folder) and _find_mistake(name) is None:
                return owner, name
        raise UsageError(
            f"{publication.location} is no image of this account at site {self.site.name}",
            where=repository.where,
            todo="name a site and account that the publication belongs to",
        )

    # ---- sending

    def _copy_twin(self, image: Image, key: str, progress: Progress) -> None:
        """Has the server copy the image from another name of the same folder, if it has it there.
        What it copied is found by its size and md5, as what was sent is."""
        repository = self._opened
        objects = repository.list_folder(repository.settings.owner)
        twin = find_twin(image, key, objects)
        if twin is None or not repository.is_own(twin):
            return
        progress.step(f"{self.site.name} copies {twin.rsplit('/', 1)[1]}, which has the same bytes")
        if not repository.copy(twin, key):
            return
        made = repository.find(key)
        if made is not None and (made.size, made.md5) != (image.bytes, image.md5):
            repository.delete(key)

    def _check_replaceable(self, key: str, name: str) -> None:
        """Finds out before the bytes are sent what Cumulus would say after them."""
        repository = self._opened
        if repository.find(key) is not None and not repository.is_own(key):
            raise UploadError(
                f"{repository.root}/{key} belongs to another account, which alone can replace it",
                where=repository.where,
                todo=f"raise the appliance's version, or give it another image_name than {name!r}",
            )

    def _check_digest(self, key: str, name: str, md5: str, image: Image) -> None:
        if md5 == image.md5:
            return
        try:
            self._opened.delete_once(key)
            left = "what it stored was removed"
        except (Refused, Cut):
            left = f"what it stored is still there, as {self._opened.root}/{key}"
        raise UploadError(
            f"{name} came to {self.site.name} with md5 {md5 or 'unknown'} in place of {image.md5}; "
            f"{left}",
            where=self._opened.where,
            todo="run the same command again; if it happens again, look for a proxy in between, "
            "and whether the file changed while it was sent",
        )

    def _raise_cut(self, cut: Cut, name: str) -> NoReturn:
        if not cut.connected:
            raise self._opened.make_unreachable(cut)
        raise UploadError(
            f"the upload of {name} was cut {len(PAUSES) + 1} times: {cut.reason}",
            where=self._opened.where,
            todo="run the same command again: the site kept what it had under this name, and "
            "nothing of the new image",
        )


class _Listed(Protocol):
    """An object as a repository lists it."""

    @property
    def key(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def md5(self) -> str: ...


def foresee_upload(image: Image, key: str, objects: Sequence[_Listed]) -> Outlook:
    """What happens to an image that is to have this key, where its folder has these objects."""
    name = key.rsplit("/", 1)[1]
    held = next((stored for stored in objects if stored.key == key), None)
    if held is not None and (held.size, held.md5) == (image.bytes, image.md5):
        return Outlook(action="reuse", bytes=0, detail="is there already")
    twin = find_twin(image, key, objects)
    if twin is not None:
        detail = f"the site copies {twin.rsplit('/', 1)[1]}, which has the same bytes"
        return Outlook(action="copy", bytes=0, detail=detail)
    detail = "not there yet" if held is None else f"replaces what is there as {name}"
    return Outlook(action="send", bytes=image.bytes, detail=detail)


def find_twin(image: Image, key: str, objects: Sequence[_Listed]) -> str | None:
    """The key of an object with an image's bytes, where it can be copied to `key`: Cumulus copies
    to no key that it has."""
    if any(stored.key == key for stored in objects):
        return None
    same = (each.key for each in objects if (each.size, each.md5) == (image.bytes, image.md5))
    return next(same, None)


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
