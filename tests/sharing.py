"""Folders that the processes of one test run share, and locks so that one process fills them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run, the same in each of its processes."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def shared(folder: Path) -> Iterator[Path]:
    """A folder for several processes. The last one to leave the block removes it."""
    with folder.with_suffix(".users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the block while this one makes something in the folder."""
    with folder.with_suffix(".maker").open("w") as maker:
        fcntl.flock(maker, fcntl.LOCK_EX)
        yield
