"""What commands that look into image files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import ApplianceError, PhantomError, UsageError
from pipeline.model import Progress
from pipeline.sources.base_disk import Looked, look, unpack_disk
from pipeline.stages.base import key_of
from pipeline.store import Store
from pipeline.tools.run import stop_all

FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vdi")
"""What people may say that an image file is."""
_MOST_BYTES = 2 << 40  # of the disk in the file; a larger one would take hours to unpack
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class OpenDisk:
    """An image file's disk, unpacked where it was packed."""

    looked: Looked
    disk: Path
    work: Path
    """A folder that nobody else uses, for as long as the disk is open."""
    log: Path


def stoppable(name: str, work: Callable[[], _Result]) -> _Result:
    """What `work` returns, on a thread of its own: a call of libguestfs would keep this one from
    hearing control-c."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) as pool:
        future = pool.submit(work)
        try:
            wait([future])
        except KeyboardInterrupt:
            while not future.done():
                stop_all()
                wait([future], timeout=0.05)
            raise
        return future.result()


@contextmanager
def opened_disk(
    name: str, file: Path, declared: str | None, store: Store, progress: Progress
) -> Iterator[OpenDisk]:
    """The disk in an image file of any format that base images may have, for the command of that
    name. The file is only read. Raises UsageError for anything but a readable file, and what
    `BaseDisk` raises; errors of the block that are about the file name it."""
    if not file.is_file():
        raise UsageError(
            f"{file} is {'no file' if file.exists() else 'not there'}",
            todo="name the file of a disk image: raw, qcow2, vmdk, vhd or vdi, packed or not",
        )
    if not os.access(file, os.R_OK):
        raise UsageError(f"{file} cannot be read", todo="see who may read it")
    looked = look(file, str(file), declared)
    disk = file.absolute()
    key = key_of([name, str(disk)])
    waiting = f"another command {name}s this image; waiting for it"
    lock = store.lock(f"{name}-{key}", lambda: progress.step(waiting))
    with lock, store.making(name, key) as folder, store.errors():
        log = store.new_log(name, key)
        if (looked.format, looked.compression) != ("raw", None):
            disk = unpack_disk(disk, declared, _MOST_BYTES, folder, log, store, progress)
        try:
            yield OpenDisk(looked=looked, disk=disk, work=folder, log=log)
        except PhantomError as error:
            if not isinstance(error, ApplianceError):  # that one is not about the file
                error.where = error.where or str(file)
            raise
        progress.finish("done")
