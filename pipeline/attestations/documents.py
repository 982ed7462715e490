"""The documents in a build's folder: the manifest, and those beside it whose digests it has.

Where a key is configured, each has a signature of its own, `<document>.sig`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pipeline import records
from pipeline.attestations.signing import Sign
from pipeline.definitions.yaml import shown
from pipeline.errors import GoneError, TamperedError
from pipeline.files import make_folder, write_atomically


def signature_of(path: Path) -> Path:
    """The file with a document's signature, as ssh-keygen calls it."""
    return path.with_name(f"{path.name}.sig")


def write_document(path: Path, text: str, sign: Sign | None) -> dict[str, str]:
    """Writes a document unless it is there as it is, and its signature. Without `sign`, a signature
    stays where the document does, and is removed where it is of other content. Returns what the
    manifest says of the document: the file's name and its SHA-256. Raises DefinitionError before
    anything is written."""
    data = text.encode()
    signature = None if sign is None else sign(data)
    make_folder(path.parent)
    if not _is_as(path, data):
        if signature is None:
            signature_of(path).unlink(missing_ok=True)
        write_atomically(path, text)
    if signature is not None and not _is_as(signature_of(path), signature.encode()):
        write_atomically(signature_of(path), signature)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def read_document(folder: Path, told: Mapping[str, str]) -> bytes:
    """The document that a manifest in this folder tells of. Raises GoneError where it is not there,
    TamperedError where it has another digest."""
    path = folder / told["file"]
    try:
        data = records.read_bytes(path)
    except FileNotFoundError as error:
        raise GoneError(
            f"there is no {path.name}, which the manifest names",
            where=shown(folder),
            todo="take it from where the manifest comes from, or build the appliance again",
        ) from error
    except (OSError, records.Unfit) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TamperedError(
            f"it is not what its manifest says: it cannot be read ({why})", where=shown(path)
        ) from error
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise TamperedError(
            "it is not what its manifest says: it has another SHA-256",
            where=shown(path),
            todo="take it from where the manifest comes from, or build the appliance again",
        )
    return data


def _is_as(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
