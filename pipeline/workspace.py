"""Where a command keeps things, and how it tells that it goes on."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import sparse
from pipeline.errors import NoSpaceError, StoreError
from pipeline.model import Progress
from pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where things are kept, and how work tells that it goes on."""

    build: Path
    """Manifests and images, by appliance and build."""
    store: Store
    progress: Callable[[str], Progress]

    def folder(self, appliance: str) -> Path:
        """Where an appliance's builds lie."""
        return self.build / appliance

    def site_folder(self, site: str) -> Path:
        """Where a site keeps what is its own on this host, such as a sandbox its objects."""
        return self.build / "sites" / site

    def manifests(self, appliance: str) -> AbstractContextManager[None]:
        """Held while an appliance's manifest is read, changed and written."""
        return self.store.lock(f"manifest-{appliance}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the file system says of this folder into errors that say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(
                    "no space for images and manifests",
                    where=str(self.build),
                    todo="free some space there, or name a folder with more by --build, then run "
                    "the same command again: what is built is kept",
                ) from error
            raise StoreError(
                f"the folder of builds cannot be written to: {error.strerror}",
                where=str(error.filename or self.build),
                todo="let --build name a folder that this user may write to",
            ) from error


def link(stored: Path, named: Path) -> None:
    """Gives a stored file its name in the build's folder, without a second copy where it can be."""
    named.parent.mkdir(parents=True, exist_ok=True)
    if named.exists() and (named.samefile(stored) or _is_copy(named, stored)):
        return
    # Two sites may want the same name at the same time, each on a thread of its own.
    temporary = named.with_name(f".{named.name}.{os.getpid()}-{threading.get_ident()}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(stored, temporary)
    except OSError:  # the store is on another file system
        try:
            _copy(stored, temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.rename(named)
    temporary.unlink(missing_ok=True)  # it stays where the other name is the same file by now


def _copy(stored: Path, copy: Path) -> None:
    """A copy with the holes, the times and the mode of a stored file."""
    with copy.open("wb") as file:
        file.truncate(stored.stat().st_size)
        sparse.copy_into(stored, file.fileno(), 0)
    shutil.copystat(stored, copy)


def _is_copy(named: Path, stored: Path) -> bool:
    one, other = named.stat(), stored.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
