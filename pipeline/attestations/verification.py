"""Whether a build's documents and images are those that somebody signed, here and at a site."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import records, sparse
from pipeline.attestations.documents import read_document, signature_of
from pipeline.clouds import Cloud
from pipeline.definitions.yaml import shown
from pipeline.errors import (
    GoneError,
    PhantomError,
    SignatureError,
    TamperedError,
    UnsignedError,
    UsageError,
)
from pipeline.model import MIB, Progress, Publication
from pipeline.tools import ssh_keygen

_GZIP = b"\x1f\x8b"
_CHUNK = 4 * MIB


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one check."""

    what: str
    """The document, the file, or the site's image."""
    said: str
    """In words; of a check that failed, the error's."""
    error: PhantomError | None = None


def find(what: str, check: Callable[[], str]) -> Finding:
    """What comes of a check, which says what is so or raises what it finds."""
    try:
        return Finding(what=what, said=check())
    except (GoneError, SignatureError, TamperedError, UnsignedError) as error:
        return Finding(what=what, said=error.what, error=error)


# ---- documents


def check_signature(data: bytes, path: Path, allowed: Path | None) -> str:
    """Who has signed a document, of those that the file `allowed` names; without it, with which key
    it is signed, if it is. Raises UnsignedError, SignatureError, TamperedError, HostError."""
    signature = _read_signature(path)
    if signature is None:
        if allowed is None:
            return "not signed"
        raise UnsignedError(
            "it is not signed, and only what an allowed signer has signed counts",
            where=shown(path),
            todo=f"take {signature_of(path).name} from where it comes from, or leave out who may "
            "sign, which then nothing vouches for",
        )
    try:
        key = ssh_keygen.find_key(data, signature)
    except ssh_keygen.Refusal as refusal:
        raise TamperedError(
            f"its signature is not good: {refusal.why}",
            where=shown(path),
            todo="take both anew from where they come from; one of them was changed",
        ) from refusal
    if allowed is None:
        return f"signed with {key}, whose owner nobody here vouches for"
    try:
        return f"signed by {ssh_keygen.find_identity(data, signature, allowed)} with {key}"
    except ssh_keygen.Refusal as refusal:
        raise SignatureError(
            f"it is signed with {key}, and by no allowed signer ({refusal.why})",
            where=shown(path),
            todo=f"ask its publisher for the key; {shown(allowed)} says whose signatures count",
        ) from refusal


def check_document(folder: Path, told: Mapping[str, str], allowed: Path | None) -> str:
    """What is so of a document that a manifest in this folder names. A signature of its own is no
    duty: the manifest's covers it. Raises as `read_document` and `check_signature`."""
    data, path = read_document(folder, told), folder / told["file"]
    if not signature_of(path).exists():
        return "as the manifest says"
    return f"as the manifest says, {check_signature(data, path, allowed)}"


def _read_signature(path: Path) -> bytes | None:
    try:
        return records.read_bytes(signature_of(path))
    except FileNotFoundError:
        return None
    except (OSError, records.Unfit) as error:
        raise TamperedError(
            "its signature cannot be read", where=shown(signature_of(path))
        ) from error


# ---- images


def check_image(file: Path, images: list[Mapping[str, Any]], progress: Progress) -> str:
    """Which of a manifest's images a file is: byte for byte, or the disk in one. Raises GoneError,
    TamperedError."""
    try:
        digest = sparse.sha256(file, progress.advance)
        disk = _digest_unpacked(file) or digest
    except OSError as error:
        raise GoneError(
            f"the image cannot be read: {error.strerror}",
            where=shown(file),
            todo="fetch it, or check the documents alone (`verify --documents`)",
        ) from error
    for image in images:
        if image["sha256"] == digest and image["disk_sha256"] == disk:
            return f"the image of site {image['site']}, sha256 {digest}"
    for image in images:
        if image["disk_sha256"] == disk:
            return f"the disk of site {image['site']}'s image, sha256 {disk}"
    raise TamperedError(
        f"it is no image of this build: the manifest has another SHA-256 than its {digest}",
        where=shown(file),
        todo="fetch it anew; never start it",
    )


def _digest_unpacked(file: Path) -> str | None:
    """The SHA-256 of what a gzipped file unpacks to; None for any other, and a damaged one."""
    from isal import igzip

    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        if opened.read(len(_GZIP)) != _GZIP:
            return None
    try:
        with igzip.open(file, "rb") as unpacked:  # type: ignore[no-untyped-call]
            while chunk := unpacked.read(_CHUNK):
                hashed.update(chunk)
    except (EOFError, igzip.BadGzipFile):
        return None
    return hashed.hexdigest()


# ---- sites


def check_published(
    cloud: Cloud, publication: Publication, image: Mapping[str, Any], progress: Progress
) -> str:
    """What a site holds as a published image, read back and compared. The site is open. Raises
    GoneError, TamperedError, and what reading raises."""
    held = cloud.read_back(publication, image["disk_bytes"], progress)
    place = f"site {cloud.site.name}"
    if held is None:
        raise GoneError(
            f"the site no longer has {publication.image_id}",
            where=place,
            todo="`phantom-image publish --build` sends the build again",
        )
    wanted = image["disk_sha256" if held.of_disk else "sha256"]
    if held.sha256 != wanted:
        raise TamperedError(
            f"what it has as {publication.image_id} is not the manifest's image: its SHA-256 is "
            f"{held.sha256} in place of {wanted}",
            where=place,
            todo="start no machine of it; retire it, and see who may write there",
        )
    if not held.read:
        return "rehearsed with these bytes; the sandbox keeps none of them"
    return f"{'every block' if held.of_disk else 'every byte'} read back: sha256 {held.sha256}"


def published_at(
    manifest: Mapping[str, Any], site: str
) -> Iterator[tuple[Publication, Mapping[str, Any]]]:
    """A build's publications at a site, each with its image. Raises UsageError where there are
    none."""
    images = {image["site"]: image for image in manifest["images"]}
    publications = [
        records.to_publication(each) for each in manifest["publications"] if each["site"] == site
    ]
    if not publications or site not in images:
        known = ", ".join(dict.fromkeys(each["site"] for each in manifest["publications"]))
        raise UsageError(
            f"this build is not published at site {site!r}",
            todo=f"it is at {known}" if known else "it is published nowhere",
        )
    for publication in publications:
        yield publication, images[site]
