"""The catalog's folder: files are written whole or not at all, and only where they change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import CatalogFolderError, NoSpaceError, translated
from pipeline.files import make_folder, share, temporary_name
from pipeline.workspace import link

RECORDS = ".catalog"
"""The folder in it that tells what was written, and that the folder is ours."""


class Target:
    """The folder that a catalog is written to. Counts files that were written, and that were as
    they should be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = self.unchanged = self.removed = 0

    def prepare(self) -> None:
        """Makes the folder. Raises CatalogFolderError for one that has files and no catalog, and
        where it cannot be written to."""
        with self.errors():
            make_folder(self.folder)
            names = os.listdir(self.folder)
            if names and RECORDS not in names:
                raise CatalogFolderError(
                    "the folder has files that are no catalog",
                    where=str(self.folder),
                    todo="let --output name a new folder, or an earlier catalog",
                )
            make_folder(self.folder / RECORDS)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13), str(self.folder))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of the file system about the folder into ones that say what to do."""
        with translated(
            lambda _: NoSpaceError(
                "no space for the catalog",
                where=str(self.folder),
                todo="free some space there, then run the same command again",
            ),
            lambda error: CatalogFolderError(
                f"the catalog cannot be written: {error.strerror}",
                where=str(error.filename or self.folder),
                todo="let --output name a folder that this user may write to",
            ),
        ):
            yield

    def put(self, name: str, content: str | bytes) -> None:
        """Writes a file in one step, unless it has this content. It is not waited for until it is
        on the disk: what a power failure takes is made again from the manifests."""
        data = content.encode() if isinstance(content, str) else content
        path = self.folder / name
        if _read(path, len(data)) == data:
            self.unchanged += 1
            return
        make_folder(path.parent)
        temporary = temporary_name(path)
        try:
            temporary.write_bytes(data)
            share(temporary)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        self.written += 1

    def link(self, name: str, source: Path) -> None:
        """Puts a file of a build's folder there, as a link to it where that can be."""
        path = self.folder / name
        before = _identity(path)
        if before is not None and before == _identity(source):
            self.unchanged += 1
            return
        link(source, path)
        if _identity(path) == before:
            self.unchanged += 1
        else:
            self.written += 1

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.folder / name).is_file()

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it."""
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self.removed += 1

    def keep_only(self, folder: str, names: set[str]) -> None:
        """Removes all but these files and folders from a folder."""
        with suppress(FileNotFoundError):
            for name in sorted(set(os.listdir(self.folder / folder)) - names):
                self.remove(f"{folder}/{name}")


def _read(path: Path, size: int) -> bytes | None:
    """A file's content; None where it has another size, or cannot be read."""
    try:
        if path.stat().st_size != size or path.is_symlink():
            return None
        return path.read_bytes()
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
