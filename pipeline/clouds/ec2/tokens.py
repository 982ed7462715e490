"""Tokens that make a call to EC2 take effect once, however often it is repeated.

A token is random, and kept in a small file beside the build until the work that it stands for has
ended. A token computed from the content would bring back an image that failed or was removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import records
from pipeline.errors import NoSpaceError, StoreError, translated
from pipeline.files import make_folder
from pipeline.store import write_atomically

# EC2 takes at most 64 characters.
_SHAPE = {"parameters": records.HEX64, "token": re.compile("[!-~]{1,64}")}


@dataclass
class KeptToken:
    """The token in a file, for as long as the call's parameters stay the same: EC2 refuses a token
    with others. Raises NoSpaceError, StoreError."""

    file: Path

    def get(self, parameters: Mapping[str, Any]) -> str:
        """The token that the file holds, or a new one, which it holds from now on."""
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
        kept = records.read(self.file, _SHAPE)
        if kept is not None and kept["parameters"] == digest:
            return str(kept["token"])
        token = str(uuid.uuid4())
        with written(self.file):
            make_folder(self.file.parent)
            said = {"token": token, "parameters": digest}
            write_atomically(self.file, json.dumps(said) + "\n")
        return token

    def is_kept(self) -> bool:
        """Whether there is a token already."""
        return self.file.is_file()

    def drop(self) -> None:
        """Forgets the token, so that the next one is new."""
        with written(self.file):
            self.file.unlink(missing_ok=True)


def written(path: Path) -> AbstractContextManager[None]:
    """Turns an error of the file system about a file of ours into NoSpaceError or StoreError."""
    return translated(
        lambda error: make_space_error(str(error.filename or path)),
        lambda error: StoreError(
            f"a file cannot be written: {error.strerror}",
            where=str(error.filename or path),
            todo="let this user write to that folder, then run the same command again",
        ),
    )


def make_space_error(where: str, figures: str = "nothing is left free") -> NoSpaceError:
    """The error of a full disk on this host."""
    return NoSpaceError(
        f"no space on the disk of this host: {figures}",
        where=where,
        todo="free some (`phantom-image gc` evicts from the store), then run the same command "
        "again",
    )
