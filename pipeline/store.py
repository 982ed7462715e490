"""A content-addressed directory of artifacts: atomic, locked per key, checked before reuse.

    STORE/artifacts/<stage>-<key>/   the files of one artifact and `artifact.json`, its record
    STORE/locks/                     a lock per key, held while its artifact is made
    STORE/work                       what is being made; a folder without a live owner is debris
    STORE/downloads/                 what has arrived of base images, to go on with
    STORE/packages/                  Debian packages by their SHA-256
    STORE/archives/                  apt's lists, per set of mirrors
    STORE/resolutions/               resolved package sets
    STORE/logs/                      the full log of each stage's last run

An artifact appears under its name by one rename, when all of it is on the disk. Several checkouts,
and several commands at once, may share a store.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline import sparse
from pipeline.errors import NoSpaceError, StoreError
from pipeline.model import ContentKey, Sha256, format_size

_RECORD = "artifact.json"
_IN_USE = "in-use"
_FORMAT = 2

DOWNLOAD_DAYS = 7.0
"""So long a part of a file is kept for a download to go on with."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The stored output of a stage."""

    stage: str
    key: ContentKey
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage says of its output, as far as it fits in JSON."""
    digests: Mapping[str, Sha256] = field(default_factory=dict)
    """The sparse digest of each file, by its name in the folder."""

    def file(self, name: str) -> Path:
        """One of the artifact's files."""
        return self.folder / name

    def check(self) -> bool:
        """Whether every byte is still what was stored. Reads all the data."""
        return all(
            self.file(name).is_file() and sparse.digest(self.file(name)) == digest
            for name, digest in self.digests.items()
        )


class Store:
    """The store in one directory, made when first written to.

    Raises StoreError where the directory cannot be used, and NoSpaceError where it is full.
    """

    def __init__(self, folder: Path, remove_tree: Callable[[Path], None] = shutil.rmtree) -> None:
        """`remove_tree` removes a folder in which root may have left files."""
        self.folder = folder
        self._remove_tree = remove_tree

    def path(self, kind: str) -> Path:
        """One of the store's own folders, made if it is not there."""
        folder = self.folder / kind
        with self.errors():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, stage: str, key: ContentKey) -> Path:
        """Where a stage's log goes."""
        return self.path("logs") / f"{stage}-{key[:16]}.log"

    def find(self, stage: str, key: ContentKey) -> Artifact | None:
        """The artifact, if it is there and looks as it was left (sizes and times of its files)."""
        folder = self.folder / "artifacts" / f"{stage}-{key}"
        try:
            record = json.loads((folder / _RECORD).read_text())
            if record["format"] != _FORMAT:
                return None
            for name, file in record["files"].items():
                status = (folder / name).stat()
                if (status.st_size, status.st_mtime_ns) != (file["bytes"], file["mtime_ns"]):
                    return None
        except (OSError, ValueError, KeyError):
            return None
        return Artifact(
            stage=stage,
            key=key,
            folder=folder,
            facts=record["facts"],
            digests={name: Sha256(file["digest"]) for name, file in record["files"].items()},
        )

    @contextmanager
    def lock(
        self, name: str, waiting: Callable[[], None] | None = None, *, shared: bool = False
    ) -> Iterator[None]:
        """Holds the lock of that name; the kernel lets go of it if this process dies.

        `waiting` is called once if another process holds it. Many may hold a `shared` lock at once.
        """
        with self._lock_file(name) as file:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(file, kind)
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keeps everything from being evicted while the block lasts; many may use a store."""
        with self.lock(_IN_USE, shared=True):
            yield

    def _lock_file(self, name: str) -> IO[str]:
        with self.errors():
            return (self.path("locks") / name).open("a")

    @contextmanager
    def temporary(self, purpose: str) -> Iterator[Path]:
        """An empty folder of the store for as long as the block lasts."""
        name = f"{purpose}-{os.getpid()}-{threading.get_ident()}"
        folder = self.path("work") / name
        with self.lock(name):
            self._discard(folder)
            with self.errors():
                folder.mkdir()
            try:
                yield folder
            finally:
                self._discard(folder)
                (self.path("locks") / name).unlink(missing_ok=True)

    @contextmanager
    def making(self, stage: str, key: ContentKey) -> Iterator[Path]:
        """An empty folder to make an artifact in; the caller holds the key's lock.

        It is gone when the block is left, and what a killed run left of it goes first.
        """
        folder = self.path("work") / f"{stage}-{key}"
        self._discard(folder)
        with self.errors():
            folder.mkdir()
        try:
            yield folder
        finally:
            self._discard(folder)

    def add(self, stage: str, key: ContentKey, folder: Path, facts: Mapping[str, Any]) -> Artifact:
        """Stores what lies in `folder`, which is moved, as the artifact of that key."""
        final = self.path("artifacts") / f"{stage}-{key}"
        with self.errors(), ThreadPoolExecutor(1) as disk:
            files = {}
            for path in sorted(folder.iterdir()):
                path.chmod(0o444)
                written = disk.submit(sync, path)
                status = path.stat()
                files[path.name] = {
                    "bytes": status.st_size,
                    "mtime_ns": status.st_mtime_ns,
                    "digest": sparse.digest(path),
                }
                written.result()
            record = {"format": _FORMAT, "stage": stage, "key": key, "facts": facts, "files": files}
            write_atomically(folder / _RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
            if final.exists():  # found damaged, or it would have been reused
                self._discard(final)
            folder.rename(final)
            sync(final.parent)
        artifact = self.find(stage, key)
        if artifact is None:
            raise StoreError(
                f"{final.name} changed while it was stored",
                where=str(self.folder),
                todo="see what else writes to this folder, then run the same command again",
            )
        return artifact

    def touch(self, artifact: Artifact) -> None:
        """Notes that an artifact was used: what was used longest ago is evicted first."""
        with suppress(OSError):  # somebody else's, in a store that several users share
            os.utime(artifact.folder / _RECORD)

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact."""
        self._discard(artifact.folder)

    def sweep(self) -> tuple[int, int]:
        """Removes what killed runs left, but for downloads, which go on for some days. Returns how
        many entries and bytes that were."""
        removed = [
            size
            for path in self.path("work").iterdir()
            if (size := self._remove_debris(path)) is not None
        ]
        return len(removed), sum(removed)

    def _remove_old_downloads(self) -> tuple[int, int]:
        """Removes parts of downloads that nobody went on with; how many and how many bytes."""
        removed = []
        for path in self.path("downloads").iterdir():
            if path.stat().st_mtime < time.time() - DOWNLOAD_DAYS * 86_400:
                removed.append(_disk_usage(path))
                path.unlink()
        return len(removed), sum(removed)

    def _remove_debris(self, path: Path) -> int | None:
        """Removes a folder of `work/` whose lock nobody holds; the bytes, or None if it stays."""
        with self._lock_file(path.name) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            size = _disk_usage(path)
            self._discard(path)
            return size

    def evict(self, limit: int) -> tuple[int, int]:
        """Sweeps, and then removes what was used longest ago until `limit` bytes are left.

        Returns how many entries and bytes were removed. Raises StoreError while a command uses the
        store: what it needs must not go.
        """
        with self._lock_file(_IN_USE) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    "another command is using the store, so nothing is evicted",
                    where=str(self.folder),
                    todo="run this again when that one has ended",
                ) from error
            count, freed = map(sum, zip(self.sweep(), self._remove_old_downloads(), strict=True))
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            for _, size, path in entries:
                if total <= limit:
                    break
                self._discard(path)
                count, freed, total = count + 1, freed + size, total - size
            return count, freed

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of all that can be evicted."""
        found = []
        kinds = ("artifacts", "packages", "resolutions", "archives", "downloads", "logs")
        for kind in kinds:
            for path in self.path(kind).iterdir():
                record = path / _RECORD
                used = (record if record.exists() else path).stat().st_mtime
                found.append((used, _disk_usage(path), path))
        return found

    def _discard(self, path: Path) -> None:
        """Removes a file or folder. An artifact is first moved aside, so that no half of it is
        ever found under its name."""
        if not path.exists():
            return
        if path.is_file():
            path.unlink()
            return
        if path.parent.name == "artifacts":
            aside = self.path("work") / f"{path.name}.old"
            if aside.exists():
                self._remove_tree(aside)
            path.rename(aside)
            path = aside
        self._remove_tree(path)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what the file system says into errors that say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self.full() from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise StoreError(
                    f"the store cannot be written to: {error.strerror}",
                    where=str(error.filename or self.folder),
                    todo="set PHANTOM_STORE to a folder that this user may write to",
                ) from error
            raise

    def check_space(self, needed: int) -> None:
        """Raises NoSpaceError if the store's file system has not `needed` bytes free."""
        free = shutil.disk_usage(self.path("work")).free
        if free < needed:
            raise self.full(
                f"{format_size(free)} are free, and about {format_size(needed)} are needed"
            )

    def full(self, figures: str = "nothing is left free") -> NoSpaceError:
        """The error for a store whose file system is full."""
        return NoSpaceError(
            f"no space for the artifacts: {figures}",
            where=str(self.folder),
            todo="free some space there (`phantom-image gc` evicts old artifacts) or set "
            "PHANTOM_STORE to a folder with more, then run the same command again",
        )


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it has its old content or the new, whenever the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_usage(path: Path) -> int:
    """Bytes that removing a path frees: blocks of files that no other name holds."""
    files = [path] if path.is_file() else path.rglob("*")
    total = 0
    for file in files:
        with suppress(FileNotFoundError, PermissionError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                total += status.st_blocks * 512
    return total
