"""Where a command keeps things, and how it tells that it goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    temporary = named.with_name(f".{named.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(stored, temporary)
    except OSError:  # the store is on another file system
        try:
            shutil.copy2(stored, temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.rename(named)


def _is_copy(named: Path, stored: Path) -> bool:
    one, other = named.stat(), stored.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
