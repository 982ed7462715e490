"""Base images that lie on this host, or in another appliance's build."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import records, sparse
from pipeline.errors import ChecksumError, DefinitionError
from pipeline.model import ApplianceBuild, BaseImageSource, Sha256
from pipeline.sources import BaseFile, Request
from pipeline.sources.base_disk import digest_memory, look, stamp_of
from pipeline.store import Store, write_atomically


def find_base(source: BaseImageSource, request: Request) -> BaseFile | None:
    """The base image, where it lies on this host already; its headers are checked.

    Raises DefinitionError, BaseNotBuiltError, ImageFormatError, ChecksumError.
    """
    location = source.location
    if isinstance(location, Path):
        base = _find_file(location, request.store, keep=request.keep)
        look(base.path, str(base.path), source.format)
    elif isinstance(location, ApplianceBuild):
        base = request.find_build(location)
    else:
        return None
    if source.sha256 not in (None, base.sha256):
        raise ChecksumError(
            f"the base image {base.path} is not the one that is pinned: its SHA-256 is "
            f"{base.sha256}, and the definition says {source.sha256}",
            todo="fetch the pinned image again, or take this one: `phantom-image pin "
            f"{request.appliance.name}` writes its digest into the definition",
        )
    return base


def _find_file(path: Path, store: Store, *, keep: bool) -> BaseFile:
    """A file of the user's. Its digest is computed once for as long as its size and times stay as
    they are; with `keep` false, it is not kept. Raises DefinitionError."""
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DefinitionError(
            f"the base image {path} cannot be read: {error.strerror}",
            todo="fetch it to there, or correct the location",
        ) from error
    if not path.is_file():
        raise DefinitionError(f"the base image {path} is no file", todo="correct the location")
    memory = digest_memory(store, path, stamp)
    kept = records.read(memory, {"sha256": records.HEX64}, sealed=True)
    if kept is not None:
        return BaseFile(path=path, sha256=Sha256(kept["sha256"]), stamp=stamp)
    digest = sparse.sha256(path)
    if keep:
        with store.errors():
            store.path("digests")
            write_atomically(memory, json.dumps(records.seal({"sha256": digest})) + "\n")
    return BaseFile(path=path, sha256=digest, stamp=stamp)
