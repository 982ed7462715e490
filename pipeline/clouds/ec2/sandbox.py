"""The sandbox of EC2: the command's own emulator, and the records of rehearsals.

The emulator (moto) forgets all when it is stopped, at the end of `Ec2.open`. What was rehearsed
there is read back and compared, and a small record of it stays in the site's folder: so the same
image under the same name counts as there, is listed, and can be retired. A record is no image:
nothing can be started from it, and its manifest says `sandbox: true`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline import records
from pipeline.clouds.ec2.blocks import ZEROS, find_blocks
from pipeline.clouds.ec2.ebs import Ebs
from pipeline.clouds.ec2.proof import find_difference
from pipeline.clouds.ec2.tokens import make_space_error, written
from pipeline.disk.untrusted import to_number
from pipeline.errors import HostError, StageFailedError, UploadError
from pipeline.files import make_folder
from pipeline.model import MIB, Progress, Publication, format_size
from pipeline.resources import setup_hint
from pipeline.store import write_atomically
from pipeline.tools import run
from pipeline.tools.tails import tail

CONNECTIONS = 4  # to an emulator that has the same cores as we

_PACKAGES = ("moto", "flask", "flask_cors")  # of moto's extra "server"
_ROOT = Path(__file__).resolve().parents[3]
_ENVIRONMENT = {
    "PYTHONPATH": str(_ROOT),
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",  # some hundred images of Amazon's that nobody asks for
}

_RECORD = {
    "name": str,
    "content": records.HEX64,
    "publications": [records.PUBLICATION],
    "published": bool,
}


def check_emulator() -> None:
    """Looks for the emulator's package. Raises HostError."""
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise _make_missing(f"there is no {missing[0]}")


def check_space(folder: Path, disk: Path) -> None:
    """Looks whether there is room for the blocks of a disk, which the emulator keeps in a file of
    the folder. Raises NoSpaceError."""
    with disk.open("rb") as opened:
        needed = sum(1 for _ in find_blocks(opened.fileno())) * len(ZEROS)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise make_space_error(
            str(folder), f"the rehearsal needs {format_size(needed)}, {format_size(free)} are free"
        )


@contextmanager
def start_emulator(folder: Path) -> Iterator[str]:
    """The URL of an emulator that lives for as long as the block, and no longer than we.

    Raises HostError where moto is not installed, and StageFailedError.
    """
    with written(folder):
        make_folder(folder)
    argv = [sys.executable, "-P", "-m", "pipeline.clouds.ec2.sandbox_server", str(folder)]
    with run.start(argv, env=_ENVIRONMENT, lifeline=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline().strip()
        if to_number(told) is None:
            raise _explain_start(told + "\n" + process.stdout.read(), folder)
        yield f"http://127.0.0.1:{told}"


def _explain_start(output: str, folder: Path) -> HostError | StageFailedError:
    if "ModuleNotFoundError" in output or "ImportError" in output:
        return _make_missing(output.strip().splitlines()[-1])
    return StageFailedError(
        "the EC2 emulator (moto) did not start",
        todo=f"see whether {folder} can be written; `make setup` renews the installation",
        detail=tail(output.strip().splitlines()),
    )


def _make_missing(detail: str) -> HostError:
    return HostError(
        "the EC2 emulator (moto) is not installed",
        todo=f"{setup_hint()}; with a site of cloud ec2 in sites.yaml it is not needed",
        detail=detail,
    )


def compare_blocks(
    ebs: Ebs, snapshot_id: str, disk: Path, progress: Progress, *, log: Path
) -> None:
    """Reads a snapshot back, and compares every block that it has, or should have, with the disk.
    Raises UploadError at the first that differs."""
    number = find_difference(ebs, snapshot_id, disk, progress, time.sleep, connections=CONNECTIONS)
    if number is not None:
        raise UploadError(
            f"block {number} of snapshot {snapshot_id} is not the disk's "
            f"(at {number * len(ZEROS) // MIB} MiB)",
            todo="run the same command again; if it happens again, it is a defect of "
            "phantom-image or of its emulator: tell its maintainers",
            log=log,
        )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """An image that was made in the emulator, with its copies."""

    name: str
    content: str
    """SHA-256 of the disk."""
    publications: tuple[Publication, ...]
    """The site's own first."""
    published: bool = False
    """False where a command was killed before it had rehearsed everything."""


class Rehearsals:
    """The records in a site's folder, a file each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "rehearsed"

    def find(self, name: str) -> Rehearsal | None:
        """The rehearsal of an image of this name."""
        return self._read(self._file(name))

    def list(self) -> list[Rehearsal]:
        """All of them, by name."""
        read = filter(None, map(self._read, self._folder.glob("*.json")))
        return sorted(read, key=lambda rehearsal: rehearsal.name)

    def write(self, rehearsal: Rehearsal) -> None:
        """Writes one, in the place of any older one of its name.

        Raises NoSpaceError, StoreError."""
        said = {**asdict(rehearsal), "format": 1}
        with written(self._folder):
            make_folder(self._folder)
            write_atomically(self._file(rehearsal.name), json.dumps(said, indent=2) + "\n")

    def remove(self, publication: Publication) -> None:
        """Forgets a publication, and the record with its last one."""
        for rehearsal in self.list():
            left = tuple(
                other for other in rehearsal.publications if other.location != publication.location
            )
            if len(left) == len(rehearsal.publications):
                continue
            if left:
                self.write(replace(rehearsal, publications=left))
            else:
                with written(self._folder):
                    self._file(rehearsal.name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        # Names of images hold slashes and more.
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def _read(self, file: Path) -> Rehearsal | None:
        said = records.read(file, _RECORD)
        if said is None or not said["publications"]:
            return None  # it only saves a rehearsal
        return Rehearsal(
            name=said["name"],
            content=said["content"],
            publications=tuple(map(records.to_publication, said["publications"])),
            published=said["published"],
        )
