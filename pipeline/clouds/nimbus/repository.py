"""A Nimbus site's image repository: its keys, the few requests that work on Cumulus, small ones
repeated when the connection fails, and errors that say what people can do.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, TypeVar

from pipeline.clouds.nimbus.cumulus_client import (
    INSECURE,
    REPORT_BYTES,
    WatchedFile,
    answered,
    make_s3,
)
from pipeline.clouds.nimbus.settings import NimbusSettings
from pipeline.errors import (
    CredentialsError,
    DefinitionError,
    PhantomError,
    QuotaError,
    SiteUnreachableError,
)
from pipeline.model import Sha256, Site
from pipeline.tools.aws import Cut, Refused, checked

T = TypeVar("T")

PAUSES = (1.0, 3.0)  # seconds before the second and the third try: a server restarts in less


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as the server lists it."""

    key: str
    size: int
    md5: str
    modified: datetime | None


class Repository:
    """The repository of a site that was opened. Its methods raise CredentialsError, QuotaError,
    DefinitionError and SiteUnreachableError. `pause` waits between tries.
    """

    def __init__(
        self, site: Site, settings: NimbusSettings, pause: Callable[[float], None]
    ) -> None:
        self.settings = settings
        self._s3 = make_s3(settings)
        self._site = site
        self._pause = pause

    @property
    def where(self) -> str:
        """The site, as error messages name it."""
        return f"site {self._site.name}"

    @property
    def root(self) -> str:
        """What every location in the repository begins with."""
        return f"cumulus://{self.settings.host}/{self.settings.bucket}"

    def image_key(self, name: str, owner: str | None = None) -> str:
        """The key of an image; in the site's own folder unless an owner is named."""
        return f"{self.settings.prefix}/{owner or self.settings.owner}/{name}"

    def description_key(self, name: str, owner: str) -> str:
        """The key of the text that the cloud client shows for an image."""
        return f"{self.settings.prefix}.description/{owner}/{name}"

    def list_folder(self, owner: str) -> list[StoredObject]:
        """The images in an owner's folder."""
        folder = self.image_key("", owner)
        return [
            stored for stored in self._list(folder) if "/" not in stored.key.removeprefix(folder)
        ]

    def find(self, key: str) -> StoredObject | None:
        """The object of a key."""
        return next((stored for stored in self._list(key) if stored.key == key), None)

    def _list(self, prefix: str) -> list[StoredObject]:
        """The objects whose keys really start with `prefix`: the server takes it for an SQL LIKE,
        so more may come back. One reply holds all; Marker and MaxKeys must not be used."""
        reply = self._try(lambda: self._call("list_objects", Prefix=prefix))
        return [
            StoredObject(
                key=item["Key"],
                size=int(item["Size"]),
                md5=_get_md5(item),
                modified=item.get("LastModified"),
            )
            for item in reply.get("Contents", ())
            if item["Key"].startswith(prefix)
        ]

    def fetch_digest(self, key: str, advance: Callable[[int], None]) -> Sha256:
        """The SHA-256 of an object, which is fetched whole; a cut one is fetched from the start."""

        def fetch() -> Sha256:
            hashed, done = hashlib.sha256(), 0
            body = self._call("get_object", Key=key)["Body"]
            with answered(), closing(body):
                while chunk := body.read(REPORT_BYTES):
                    hashed.update(chunk)
                    done += len(chunk)
                    advance(done)
            return Sha256(hashed.hexdigest())

        return self._try(fetch)

    def is_own(self, key: str) -> bool:
        """Whether an object belongs to this account, or is gone: the server tells the ACL of an
        object to its owner alone."""

        def ask() -> bool:
            try:
                self._call("get_object_acl", Key=key)
            except Refused as refused:
                if refused.status not in (403, 404):
                    raise
                return refused.status == 404
            return True

        return self._try(ask)

    def make_public(self, key: str) -> None:
        """Lets everybody read an object of our own."""
        self._try(lambda: self._call("put_object_acl", Key=key, ACL="public-read"))

    def delete(self, key: str) -> None:
        """Removes an object, if it is there."""
        self._try(lambda: self.delete_once(key))

    def delete_once(self, key: str) -> None:
        """Removes an object, if it is there, in one try. Raises Refused and Cut."""
        try:
            self._call("delete_object", Key=key)
        except Refused as refused:
            if refused.status != 404:
                raise

    def put_text(self, key: str, text: bytes, *, public: bool) -> None:
        """Stores a small object."""
        self._try(lambda: self._put(key, io.BytesIO(text), len(text), public=public))

    def put_once(self, key: str, body: WatchedFile, size: int) -> str:
        """Sends an image in one try and returns the md5 that the server took of it. Raises Cut."""
        try:
            return self._put(key, body, size, public=self.settings.common)
        except Refused as refused:
            raise self._make_refusal(refused) from None

    def copy(self, source: str, key: str) -> bool:
        """Lets the server copy an object to a new key; whether it did. Raises QuotaError."""
        acl = {"ACL": "public-read"} if self.settings.common else {}
        origin = {"Bucket": self.settings.bucket, "Key": source}
        try:
            self._call("copy_object", CopySource=origin, Key=key, **acl)
        except Refused as refused:
            if refused.code == "AccountProblem":  # the same bytes, sent, would find no room either
                raise self._make_refusal(refused) from None
            return False
        except Cut:
            return False
        return True

    def _put(self, key: str, body: BinaryIO | WatchedFile, size: int, *, public: bool) -> str:
        """Sends an object in one request and returns the md5 that the server took of it. `public`
        must be said every time: a put without it takes the right to read away."""
        acl = {"ACL": "public-read"} if public else {}
        return _get_md5(self._call("put_object", Key=key, Body=body, ContentLength=size, **acl))

    def _call(self, operation: str, **parameters: Any) -> Any:
        """One request, sent once. Raises Refused and Cut."""
        with answered():
            reply = getattr(self._s3, operation)(Bucket=self.settings.bucket, **parameters)
            return checked(reply, f"s3:{operation}")

    def _try(self, request: Callable[[], T]) -> T:
        """Makes a small request, up to three times when the connection fails."""
        for pause in (*PAUSES, None):
            try:
                return request()
            except Refused as refused:
                raise self._make_refusal(refused) from None
            except Cut as cut:
                if pause is None:
                    raise self.make_unreachable(cut) from cut
                self._pause(pause)
        raise AssertionError("the last try returns or raises")

    def make_unreachable(self, cut: Cut) -> SiteUnreachableError:
        """The error for a server that gave no answer."""
        todo = (
            "compare `repository`, `https` and the certificate options of the site with the "
            "account's cloud.properties, and look whether a firewall or proxy is in between"
        )
        if cut.reason.startswith(INSECURE):
            todo = (
                "if this is the site's own certificate, name it in sites.yaml with `ca_bundle` or "
                "`certificate_sha256` of the site (`openssl s_client -connect "
                f"{self.settings.host}` shows it; ask the site whether it is right); else look "
                "who is in between"
            )
        return SiteUnreachableError(
            f"{self.settings.endpoint} does not answer: {cut.reason}", where=self.where, todo=todo
        )

    def _make_refusal(self, refused: Refused) -> PhantomError:
        """The error for an answer that was no success."""
        host, where = self.settings.host, self.where
        if refused.code == "AccountProblem":
            return QuotaError(
                f"{host} has no room left for this account",
                where=where,
                todo="retire images that are not needed any more (`phantom-image list` names them),"
                " or ask the site for a larger quota",
            )
        if refused.status in (401, 403):
            return CredentialsError(
                f"{host} refuses the credentials of {self.settings.credentials.source}, or the "
                "account has no right to do this (it answers the same to both)",
                where=where,
                todo="compare access key id, secret and canonical id with those of the account; "
                "if they are right, ask the site for the right to write to its bucket "
                f"{self.settings.bucket}",
            )
        if refused.status == 404:  # Cumulus calls a missing bucket a missing key
            return DefinitionError(
                f"{host} has no bucket {self.settings.bucket}",
                where=self._site.where,
                todo="set the site's option `bucket` to vws.repository.s3bucket of its "
                "cloud.properties",
            )
        return SiteUnreachableError(
            f"{self.settings.endpoint} does not answer as a Cumulus server: "
            f"{refused.status} {refused.code}",
            where=where,
            todo="compare `repository` and `https` of the site with the account's "
            "cloud.properties; if they are right, the server is ill: ask the site",
        )


def _get_md5(reply: Mapping[str, Any]) -> str:
    return str(reply.get("ETag", "")).strip('"')
