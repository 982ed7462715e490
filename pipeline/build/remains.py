"""What failed stages leave: their file systems, kept for whoever looks for the reason.

BUILD/APPLIANCE/failed/root.ext4               the root file system as it was
BUILD/APPLIANCE/failed/boot/SITE/MACHINE.raw   the disk of a machine that failed its boot check
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline import sparse
from pipeline.disk.superblock import is_ext_at
from pipeline.errors import StageFailedError
from pipeline.files import discard, make_folder
from pipeline.machine.node import find_root
from pipeline.stages.base import Context, Stage
from pipeline.store import temporary_name
from pipeline.tools import run

FOLDER = "failed"
"""Its name, in the folder of an appliance's builds."""
_REPAIRED = (1, 2, 3)  # e2fsck's exit status: errors were there, and are no more


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What one stage left."""

    file: Path
    site: str | None = None
    """Where `file` is a machine's disk: the site."""
    machine: str | None = None


def keep_remains(stage: Stage, context: Context, folder: Path) -> None:
    """Moves what a failed stage left into a folder, as it is; nothing if it left nothing."""
    left = stage.find_remains(context)
    if left is None or not left.is_file():
        return
    context.progress.step("keeping what it left")
    place = folder.joinpath(*stage.title.split()).with_suffix(left.suffix)
    make_folder(place.parent)
    folder.chmod(0o700)  # a script may have written there what nobody else may read
    new = temporary_name(place)
    try:
        sparse.copy_data(left, new, left.stat().st_size)
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)


def forget_remains(folder: Path) -> None:
    """Removes what earlier builds left."""
    discard(folder, shutil.rmtree)


def find_remains(folder: Path) -> list[Remains]:
    """What was kept, the newest first."""
    files = [*folder.glob("*.ext4"), *folder.glob("boot/*/*.raw")]
    files.sort(key=lambda file: (-file.stat().st_mtime_ns, file))
    return [
        Remains(file=file, site=file.parent.name, machine=file.stem)
        if file.suffix == ".raw"
        else Remains(file=file)
        for file in files
    ]


def copy_root(remains: Remains, copy: Path) -> None:
    """Copies the root file system of what was kept, and puts it in order: whatever wrote it was
    ended in the middle. Raises StageFailedError."""
    size = remains.file.stat().st_size
    if remains.machine is None or is_ext_at(remains.file, 0):
        sparse.copy_data(remains.file, copy, size)
    else:
        start = find_root(remains.file).offset
        with remains.file.open("rb") as source, copy.open("wb") as target:
            target.truncate(size - start)
            for _ in sparse.copy_range(source.fileno(), start, size - start, target.fileno(), 0):
                pass
    _repair(copy)


def _repair(file: Path) -> None:
    try:
        run.capture(["e2fsck", "-f", "-y", str(file)])
    except run.ToolError as error:
        if error.status not in _REPAIRED:
            raise StageFailedError(
                "the file system that is kept is damaged beyond repair", detail=error.detail
            ) from error
