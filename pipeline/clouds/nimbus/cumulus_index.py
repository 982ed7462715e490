"""The index of a local Cumulus: an SQLite file that says which object has which key.

It holds only what can be sent again, so one that is damaged, or of another version, is made anew.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
from pathlib import Path

from pipeline.files import discard, share

INDEX = "index.sqlite"
"""The name of the index in the store's folder."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS object (key TEXT PRIMARY KEY, owner TEXT, file TEXT,"
    " size INTEGER, md5 TEXT, stored REAL, public INTEGER)"
)
# SQLite holds any kind of value in any column, and the names of files lead to files.
_FOREIGN = (
    "DELETE FROM object WHERE typeof(key) != 'text' OR typeof(owner) != 'text'"
    " OR typeof(file) != 'text' OR file GLOB '*[^0-9a-f]*' OR file = ''"
    " OR typeof(size) != 'integer' OR typeof(md5) != 'text'"
    " OR typeof(stored) != 'real' OR typeof(public) != 'integer'"
)
# SQLITE_ERROR: a table of that name has other columns.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_SCHEMA", "SQLITE_ERROR")


def open_index(folder: Path) -> sqlite3.Connection:
    """The index in a folder, sound and with rows of ours only. Raises OSError, sqlite3.Error."""
    index = folder / INDEX
    if index.is_symlink():
        index.unlink()  # SQLite would follow it
    try:
        made = _open(index)
    except sqlite3.Error as error:
        if not _is_damaged(index, error):
            raise
        for path in folder.glob(f"{INDEX}*"):  # its journal, too
            discard(path, shutil.rmtree)
        made = _open(index)
    share(index)
    return made


def size_of(path: Path) -> int | None:
    """The size of a file; None for anything else."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _open(index: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(index, isolation_level=None, timeout=30, check_same_thread=False)
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            for (told,) in connection.execute("PRAGMA quick_check(1)").fetchall():
                if told != "ok":
                    raise sqlite3.DatabaseError(told)
            connection.execute(_FOREIGN)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damaged(index: Path, error: sqlite3.Error) -> bool:
    """Whether an error says that a file is no index of ours, and not that it is in use, or that the
    disk is full."""
    name = getattr(error, "sqlite_errorname", _DAMAGE[0])
    return name.startswith(_DAMAGE) or (index.exists() and size_of(index) is None)
