"""Where a command keeps its files, and how it reports progress."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipeline import sparse
from pipeline.errors import NoSpaceError, StoreError, translated
from pipeline.files import make_folder
from pipeline.model import Progress
from pipeline.store import Store, temporary_name

STORE, SITES, LATEST = "store", "sites", "latest"
NIGHTLY, CATALOG = "nightly", "catalog"
RESERVED = (STORE, SITES, LATEST, NIGHTLY, CATALOG)
"""Names in the folder of builds that no appliance can have."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a command keeps its files, and how it reports progress."""

    build: Path
    """Manifests and images, by appliance and build."""
    store: Store
    progress: Callable[[str], Progress]
    failed: Path | None = None
    """Where what failed stages leave is kept; None: nowhere."""
    sign: Callable[[bytes], str] | None = None
    """Makes the signatures of documents, where a key is configured."""
    identity: str | None = None
    """Who builds and signs, where that is configured."""

    def folder(self, appliance: str) -> Path:
        """The folder of an appliance's builds."""
        return self.build / appliance

    def site_folder(self, site: str) -> Path:
        """Where a site keeps its own files on this host, such as the objects of a sandbox."""
        return self.build / SITES / site

    def manifests(self, appliance: str) -> AbstractContextManager[None]:
        """The lock to hold while reading, changing and writing an appliance's manifest."""
        return self.store.lock(f"manifest-{appliance}")

    def errors(self) -> AbstractContextManager[None]:
        """Turns errors of the file system about this folder into ones that say what to do."""
        return translated(
            lambda _: NoSpaceError(
                "no space for images and manifests",
                where=str(self.build),
                todo="free some space there, or name a folder with more by --build, then run "
                "the same command again: what is built is kept",
            ),
            lambda error: StoreError(
                f"the folder of builds cannot be written to: {error.strerror}",
                where=str(error.filename or self.build),
                todo="let --build name a folder that this user may write to",
            ),
        )


def link(stored: Path, named: Path) -> None:
    """Links a stored file into a build's folder, or copies it if the store is on another file
    system."""
    make_folder(named.parent)
    if named.exists() and is_copy(named, stored):
        return
    # The threads of two sites may make the same name at the same time.
    temporary = temporary_name(named)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(stored, temporary)
        except OSError:  # the store is on another file system
            _copy(stored, temporary)
        temporary.rename(named)
    finally:  # a rename to another link of the same file leaves both names
        temporary.unlink(missing_ok=True)


def _copy(stored: Path, copy: Path) -> None:
    """Copies a stored file with its holes, times and mode."""
    with copy.open("wb") as file:
        file.truncate(stored.stat().st_size)
        sparse.copy_into(stored, file.fileno(), 0)
    shutil.copystat(stored, copy)


def is_copy(named: Path, stored: Path) -> bool:
    """Whether a file is a link to a stored one, or the copy that `link` made of it."""
    if named.samefile(stored):
        return True
    one, other = named.stat(), stored.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
