"""What a local Cumulus keeps: objects as files of random names, and an index of their keys.

A body goes straight to a file, and the file becomes an object when all of it is there. Files and
index (SQLite) stay in a folder, which several servers may share.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline import records
from pipeline.clouds.nimbus.cumulus_index import INDEX, open_index, size_of
from pipeline.files import discard, make_folder

OBJECTS = "objects"
"""The name of the files' folder in the store's."""
MD5_OF_NOTHING = hashlib.md5(usedforsecurity=False).hexdigest()
READ, WRITE = 1, 2
"""What an object's ACL grants to other users."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as the index knows it."""

    key: str
    owner: str
    file: str
    size: int
    md5: str
    stored: float
    grants: int
    """What other users may do: READ, READ | WRITE, or 0."""

    @property
    def public(self) -> bool:
        """Whether others may read it."""
        return bool(self.grants & READ)


@dataclass
class Incoming:
    """A body on its way; its lock keeps other servers of the folder from clearing it away."""

    path: Path
    file: BinaryIO
    size: int = 0
    md5: str = MD5_OF_NOTHING

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()


class Store:
    """The objects of one bucket: files of random names, and the index that gives them keys."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / OBJECTS
        make_folder(self.files)
        self._lock = threading.Lock()
        self._db = open_index(folder)
        with self._transaction():
            self._clear()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._db:  # which commits, or rolls back after an error
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _clear(self) -> None:
        """Forgets objects whose file a crash took or cut, and removes files that one left over."""
        known = set()
        for stored in self._select(""):
            if size_of(self.files / stored.file) == stored.size:
                known.add(stored.file)
            else:
                self._db.execute("DELETE FROM object WHERE key = ?", (stored.key,))
        for path in self.files.iterdir():
            if path.name not in known and not _is_locked(path):
                discard(path, shutil.rmtree)

    def _select(self, where: str, *values: object) -> list[StoredObject]:
        return _select(self._db, where, *values)

    def get(self, key: str) -> StoredObject | None:
        with self._transaction():
            return next(iter(self._select("WHERE key = ?", key)), None)

    def open(self, key: str) -> tuple[StoredObject, BinaryIO] | None:
        with self._transaction():
            stored = next(iter(self._select("WHERE key = ?", key)), None)
            return None if stored is None else (stored, (self.files / stored.file).open("rb"))

    def list(self, prefix: str) -> list[StoredObject]:
        with self._transaction():
            return self._select("WHERE key LIKE ? ORDER BY key", f"{prefix}%")

    def receive(self) -> Incoming:
        with self._transaction():
            path = self.files / secrets.token_hex(16)
            file = path.open("w+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            return Incoming(path, file)

    def put(self, key: str, owner: str, incoming: Incoming, stored: float, grants: int) -> None:
        """Gives a body its key, in the place of what had it."""
        incoming.file.flush()
        with self._transaction():
            old = self._select("WHERE key = ?", key)
            self._db.execute(
                "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, owner, incoming.path.name, incoming.size, incoming.md5, stored, grants),
            )
        incoming.file.close()
        self._remove(old)

    def grant(self, key: str, grants: int) -> None:
        """Adds grants to an object; none is taken away."""
        with self._transaction():
            self._db.execute("UPDATE object SET public = public | ? WHERE key = ?", (grants, key))

    def delete(self, key: str) -> None:
        with self._transaction():
            old = self._select("WHERE key = ?", key)
            self._db.execute("DELETE FROM object WHERE key = ?", (key,))
        self._remove(old)

    def _remove(self, objects: Sequence[StoredObject]) -> None:
        for stored in objects:
            (self.files / stored.file).unlink(missing_ok=True)


def read_index(folder: Path) -> list[StoredObject]:
    """The objects of a store, which is not changed by it; none where its index is damaged: the
    server makes it anew."""
    file = folder / INDEX
    if size_of(file) is None:
        return []
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return [stored for stored in _select(database, "") if isinstance(stored.key, str)]
    except (sqlite3.Error, ValueError, TypeError):
        return []


def open_object(folder: Path, key: str) -> BinaryIO | None:
    """The file of an object, by the index alone; None where there is none."""
    for stored in read_index(folder):
        if stored.key == key and records.FILE_NAME.fullmatch(stored.file):
            with suppress(OSError):
                return (folder / OBJECTS / stored.file).open("rb")
    return None


def _select(database: sqlite3.Connection, where: str, *values: object) -> list[StoredObject]:
    rows = database.execute(
        f"SELECT key, owner, file, size, md5, stored, public FROM object {where}", values
    )
    return [
        StoredObject(key=k, owner=o, file=f, size=s, md5=m, stored=t, grants=int(g))
        for k, o, f, s, m, t, g in rows
    ]


def _is_locked(path: Path) -> bool:
    if size_of(path) is None:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
