"""Tokens that make a call of EC2's take effect once, however often it is repeated.

A token is random and lies in a small file beside the build until what it stands for came to its
end: one that is reckoned from the content would bring back a thing that failed or was removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import NoSpaceError, StoreError
from pipeline.store import write_atomically

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class KeptToken:
    """The token in a file, for as long as the call's parameters stay the same: EC2 refuses a token
    with others. Raises NoSpaceError, StoreError."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, parameters: Mapping[str, Any]) -> str:
        """The token that the file holds, or a new one, which it holds from now on."""
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
        try:
            said = json.loads(self._file.read_text())
            if said["parameters"] == digest:
                return str(said["token"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        token = str(uuid.uuid4())
        with written(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            said = {"token": token, "parameters": digest}
            write_atomically(self._file, json.dumps(said) + "\n")
        return token

    def drop(self) -> None:
        """The next token is another."""
        with written(self._file):
            self._file.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns what the file system says of a file of ours into NoSpaceError or StoreError."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or path)
        if error.errno in NO_SPACE:
            raise make_space_error(where) from error
        raise StoreError(
            f"a file cannot be written: {error.strerror}",
            where=where,
            todo="let this user write to that folder, then run the same command again",
        ) from error


def make_space_error(where: str, figures: str = "nothing is left free") -> NoSpaceError:
    """That the disk of this host is full."""
    return NoSpaceError(
        f"no space on the disk of this host: {figures}",
        where=where,
        todo="free some (`phantom-image gc` evicts from the store), then run the same command "
        "again",
    )
