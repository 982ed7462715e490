"""A content-addressed directory of artifacts: atomic, with a lock per key, checked before reuse.

    STORE/artifacts/<stage>-<key>/   the files of one artifact and `artifact.json`, its record
    STORE/locks/                     a lock per key, held while its artifact is made
    STORE/work                       work in progress; folders without a live process are debris
    STORE/downloads/                 base images, and downloads to continue
    STORE/packages/                  Debian packages by SHA-256
    STORE/archives/                  apt's lists for each set of mirrors
    STORE/resolutions/               resolved package sets
    STORE/logs/                      the full log of each stage's last run
    STORE/keys/                      each user's random key for digests of secrets

A single rename puts an artifact in place once all of it is on the disk. Several checkouts, several
commands at once, and the users of a group that may write to the store's folder may share it. What
is damaged is as good as absent. Nothing outside the store is changed or removed, whatever links
somebody puts into it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import records, sparse
from pipeline.errors import NoSpaceError, PhantomError, StoreError, translated
from pipeline.files import (
    discard,
    disk_usage,
    make_folder,
    open_lock,
    protect,
    share,
    sync,
    temporary_name,
    write_atomically,
)
from pipeline.model import MIB, ContentKey, Sha256, format_size

__all__ = ["Artifact", "Store", "sync", "temporary_name", "write_atomically"]

_RECORD = "artifact.json"
_IN_USE = "in-use"
_FORMAT = 3
_SHAPE = {
    "format": int,
    "facts": {str: object},
    "facts_sha256": records.HEX64,
    "files": {str: {"bytes": int, "mtime_ns": int, "digest": records.HEX64}},
}
_SMALL = MIB  # a file that is read whenever its artifact is looked up, instead of before its use
_NOT_USABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ENOTEMPTY, errno.ELOOP, errno.EIO, errno.ENAMETOOLONG, errno.EINVAL),
}

_EVICTED = ("artifacts", "packages", "wheels", "resolutions", "archives", "downloads", "logs")

RESERVE = 256 * MIB
"""Bytes that large files leave free."""
DOWNLOAD_DAYS = 7.0
"""How long an incomplete download is kept to be continued."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The stored output of a stage."""

    stage: str
    key: ContentKey
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the stage reports about its output, as JSON values."""
    digests: Mapping[str, Sha256] = field(default_factory=dict)
    """The sparse digest of each file, by name."""

    def file(self, name: str) -> Path:
        """One of the artifact's files."""
        return self.folder / name

    def check(self) -> bool:
        """Whether all files still have the stored content. Reads all data."""
        try:
            return all(
                self.file(name).is_file() and sparse.digest(self.file(name)) == digest
                for name, digest in self.digests.items()
            )
        except OSError:  # a failing disk
            return False


class Store:
    """The store in a directory, which the first write creates.

    Raises StoreError if the directory cannot be used, and NoSpaceError if it is full.
    """

    def __init__(self, folder: Path, remove_tree: Callable[[Path], None] = shutil.rmtree) -> None:
        """`remove_tree` removes a folder that may contain root's files."""
        self.folder = folder
        self._remove_tree = remove_tree

    def path(self, kind: str) -> Path:
        """One of the store's folders, created if necessary. Raises StoreError."""
        folder = self.folder / kind
        with translated(lambda _: self.full(), self._unusable):
            if folder.is_symlink():
                raise StoreError(
                    "is a link, and the store changes nothing outside its folder",
                    where=str(folder),
                    todo="remove the link; PHANTOM_STORE names another folder for all of the store",
                )
            make_folder(folder)
        return folder

    def log(self, stage: str, key: ContentKey) -> Path:
        """The path of a stage's log."""
        return self.path("logs") / f"{stage}-{key[:16]}.log"

    def new_log(self, stage: str, key: ContentKey) -> Path:
        """The path of a stage's log, after that of an earlier run was removed."""
        log = self.log(stage, key)
        with self.errors():
            self._discard(log)
        return log

    def find(self, stage: str, key: ContentKey) -> Artifact | None:
        """The artifact if it exists, its record is whole, and its files' sizes and times are
        unchanged; of small files, the content."""
        folder = self.folder / "artifacts" / f"{stage}-{key}"
        record = records.read(folder / _RECORD, _SHAPE)
        if record is None or record["format"] != _FORMAT or folder.is_symlink():
            return None
        if record["facts_sha256"] != records.digest(record["facts"]):
            return None
        if not all(_is_unchanged(folder, *item) for item in record["files"].items()):
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
        """Holds the named lock; the kernel releases it if this process dies.

        `waiting` is called if another process holds the lock. Many may hold a `shared` lock.
        """
        with self._lock_file(name) as file:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            if not _try_lock(file, kind):
                if waiting is not None:
                    waiting()
                fcntl.flock(file, kind)
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Prevents eviction while the block runs; many processes may use a store."""
        with self.lock(_IN_USE, shared=True):
            yield

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        locks = self.path("locks")
        with translated(lambda _: self.full(), self._unusable):
            descriptor = open_lock(locks / name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def temporary(self, purpose: str) -> Iterator[Path]:
        """An empty folder that exists while the block runs."""
        name = f"{purpose}-{os.getpid()}-{threading.get_ident()}"
        with self.lock(name):
            try:
                with self._work_folder(name) as folder:
                    yield folder
            finally:
                (self.path("locks") / name).unlink(missing_ok=True)

    def making(self, stage: str, key: ContentKey) -> AbstractContextManager[Path]:
        """An empty folder to make an artifact in; the caller holds the key's lock.

        It is removed after the block, as are remains of a killed run before it.
        """
        return self._work_folder(f"{stage}-{key}")

    @contextmanager
    def _work_folder(self, name: str) -> Iterator[Path]:
        folder = self.path("work") / name
        self._clear(folder)
        with self.errors():
            make_folder(folder)
        try:
            yield folder
        finally:
            self._discard(folder)

    def _clear(self, folder: Path) -> None:
        """Removes what a killed run left in a folder, or moves it aside where only another user may
        remove it."""
        try:
            self._discard(folder)
        except (OSError, PhantomError):
            with self.errors():
                folder.rename(folder.with_name(f"{folder.name}.{time.time_ns()}"))

    def add(self, stage: str, key: ContentKey, folder: Path, facts: Mapping[str, Any]) -> Artifact:
        """Moves `folder` into the store as the artifact of a key. A fact that takes long to find
        may be a `Future`, and is found beside the digests of the files."""
        final = self.path("artifacts") / f"{stage}-{key}"
        with self.errors(), ThreadPoolExecutor(1) as disk:
            share(folder)
            files = {}
            for path in sorted(folder.iterdir()):
                protect(path)
                share(path)
                written = disk.submit(sync, path)
                status = path.stat()
                files[path.name] = {
                    "bytes": status.st_size,
                    "mtime_ns": status.st_mtime_ns,
                    "digest": sparse.digest(path),
                }
                written.result()
            facts = {
                name: fact.result() if isinstance(fact, Future) else fact
                for name, fact in facts.items()
            }
            record = {
                "format": _FORMAT,
                "stage": stage,
                "key": key,
                "facts": facts,
                "facts_sha256": records.digest(facts),
                "files": files,
            }
            write_atomically(folder / _RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
            self._clear(final)  # it is damaged, or it would have been reused
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
        """Records that an artifact was used: the least recently used are evicted first."""
        with suppress(OSError):  # in a shared store it may belong to another user
            os.utime(artifact.folder / _RECORD)

    def remove(self, artifact: Artifact) -> None:
        """Removes an artifact."""
        self._discard(artifact.folder)

    def sweep(self) -> tuple[int, int]:
        """Removes what killed runs left, except downloads. Returns how many entries and bytes it
        removed."""
        removed = [
            size
            for path in self.path("work").iterdir()
            if (size := self._remove_debris(path)) is not None
        ]
        return len(removed), sum(removed)

    def _remove_old_downloads(self) -> tuple[int, int]:
        """Removes abandoned downloads. Returns how many files and bytes it removed."""
        oldest = time.time() - DOWNLOAD_DAYS * 86_400
        old = [(size, path) for used, size, path in self._entries(["downloads"]) if used < oldest]
        for _, path in old:
            self._discard(path)
        return len(old), sum(size for size, _ in old)

    def _remove_debris(self, path: Path) -> int | None:
        """Removes a folder of `work/` unless a process holds its lock. Returns the freed bytes, or
        None if the folder stays."""
        with self._lock_file(path.name) as file:
            if not _try_lock(file):
                return None
            size = disk_usage(path)
            try:
                self._discard(path)
            except (OSError, PhantomError):  # another user's
                return None
            return size

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets no other command begin to use the store while the block runs. Raises StoreError
        where one uses it already."""
        with self._lock_file(_IN_USE) as file, self.errors():
            if not _try_lock(file):
                raise StoreError(
                    "another command is using the store, so nothing is evicted",
                    where=str(self.folder),
                    todo="run this again when that one has ended",
                )
            yield

    def evict(self, limit: int) -> tuple[int, int]:
        """Sweeps, then removes the least recently used entries until `limit` bytes are left.

        Returns how many entries and bytes it removed. Raises StoreError while another command uses
        the store, which might need them, and where another user's cannot be removed.
        """
        with self.alone():
            count, freed = map(sum, zip(self.sweep(), self._remove_old_downloads(), strict=True))
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            for _, size, path in entries:
                if total <= limit and limit > 0:  # with 0, what takes no space goes as well
                    break
                self._discard(path)
                count, freed, total = count + 1, freed + size, total - size
            return count, freed

    def _entries(self, kinds: Sequence[str] = _EVICTED) -> list[tuple[float, int, Path]]:
        """The time of last use, bytes and path of all entries of these folders."""
        entries = []
        for kind in kinds:
            for path in self.path(kind).iterdir():
                with suppress(OSError):
                    used = path.lstat().st_mtime
                    if not path.is_symlink():
                        with suppress(OSError):
                            used = (path / _RECORD).lstat().st_mtime
                    entries.append((used, disk_usage(path), path))
        return entries

    def _discard(self, path: Path) -> None:
        """Removes a file or folder. An artifact is first moved aside, so that it never exists in
        part."""
        if path.parent.name == "artifacts" and path.is_dir() and not path.is_symlink():
            aside = self.path("work") / f"{path.name}.old"
            discard(aside, self._remove_tree)
            path.rename(aside)
            path = aside
        discard(path, self._remove_tree)

    def errors(self) -> AbstractContextManager[None]:
        """Turns errors of the file system into ones that say what to do."""
        return translated(lambda _: self.full(), self._refused)

    def _refused(self, error: OSError) -> StoreError | None:
        return self._unusable(error) if error.errno in _NOT_USABLE else None

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the store cannot be written to: {error.strerror}",
            where=str(error.filename or self.folder),
            todo="set PHANTOM_STORE to a folder that this user may write to",
        )

    def check_space(self, needed: int = 0) -> None:
        """Raises NoSpaceError if fewer than `needed` bytes are free, beside a reserve for all else
        that writes to the file system: `RESERVE`, or less on a small one."""
        usage = shutil.disk_usage(self.path("work"))
        reserve = min(RESERVE, usage.total // 20)
        if usage.free >= needed + reserve:
            return
        if not needed:
            raise self.full(f"what is left free, {format_size(usage.free)}, is kept as a reserve")
        free, wanted = format_size(usage.free), f"about {format_size(needed)} are needed"
        if usage.free >= needed:
            wanted += f" beside a reserve of {format_size(reserve)}"
        raise self.full(f"{free} are free, and {wanted}")

    def full(self, figures: str = "nothing is left free") -> NoSpaceError:
        """The error for a store whose file system is full."""
        return NoSpaceError(
            f"no space for the artifacts: {figures}",
            where=str(self.folder),
            todo="free some space there (`phantom-image gc` evicts old artifacts) or set "
            "PHANTOM_STORE to a folder with more, then run the same command again",
        )


def _is_unchanged(folder: Path, name: str, told: Mapping[str, Any]) -> bool:
    """Whether a file of an artifact is as its record tells; of a large one, its size and time."""
    file = folder / name
    try:
        if not records.FILE_NAME.fullmatch(name) or file.is_symlink() or not file.is_file():
            return False
        status = file.stat()
        if (status.st_size, status.st_mtime_ns) != (told["bytes"], told["mtime_ns"]):
            return False
        return status.st_size > _SMALL or sparse.digest(file) == told["digest"]
    except (OSError, ValueError):
        return False


def _try_lock(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Locks a file unless another process holds the lock. Returns whether it did."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
