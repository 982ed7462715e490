"""What a stage is: a value whose fields decide its output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any, ClassVar

from pipeline.errors import DefinitionError, StageFailedError
from pipeline.model import ContentKey, Progress, Sha256
from pipeline.realfile import open_file
from pipeline.store import Artifact, Store

HERE_ONLY = {"key": False}
"""Metadata of fields that say where something lies on this host, and not what it is."""
IF_ANY = {"if_any": True}
"""Metadata of fields that are no part of the key while they are empty: definitions that do not use
them keep the artifacts that were made before there were such fields."""


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file or folder of the build host, known by the digest of its content."""

    digest: Sha256
    path: Path = field(metadata=HERE_ONLY)


@dataclass(frozen=True)
class Context:
    """What a running stage works with."""

    out: Path
    """An empty folder; the files in it at the end are the artifact."""
    work: Path
    """An empty folder for what is not kept."""
    log: Path
    """Where the output of programs goes."""
    store: Store
    """The store that the artifact goes to."""
    progress: Progress
    keep_failed: bool = False
    """Whether somebody will look at what it leaves when it fails."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One step. Its fields are everything that decides its output: `run` reads nothing else."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised when `run` changes what it makes of the same fields."""
    cores: ClassVar[int] = 1
    """How many of the host's cores it keeps busy."""

    inputs: tuple[Stage, ...] = ()
    after: tuple[Stage, ...] = field(default=(), metadata=HERE_ONLY)
    """Stages that run before this one because more depends on them; they do not decide its output.
    """
    label: str = field(default="", metadata=HERE_ONLY)
    """What tells this stage of a plan from others of its name, for people: a site, a layout."""

    @property
    def title(self) -> str:
        """What people call this stage of a plan."""
        return f"{self.name} {self.label}".rstrip()

    @property
    def requires(self) -> tuple[str, ...]:
        """What it needs of the host, in the words of `machine/requirements.py`."""
        return (self.name,)

    def check_host(self, store: Store) -> None:  # noqa: B027 (most need no more)
        """Checks, before anything is built, what the words of `requires` cannot name. Raises
        HostError, SudoError."""

    @property
    def memory(self) -> int:
        """Bytes of the host's memory that it takes; 0 for a stage that takes little."""
        return 0

    def fields(self) -> dict[str, Any]:
        """Everything that decides the output, besides the inputs, as JSON can hold it."""
        return {
            member.name: to_json(getattr(self, member.name))
            for member in dataclasses.fields(self)
            if member.name != "inputs" and member.metadata.get("key", True)
            if getattr(self, member.name) or not member.metadata.get("if_any")
        }

    @cached_property
    def key(self) -> ContentKey:
        """What would be built: a SHA-256 over name, revision, fields and the keys of inputs."""
        return key_of(
            {
                "stage": self.name,
                "revision": self.revision,
                "fields": self.fields(),
                "inputs": [stage.key for stage in self.inputs],
            }
        )

    @abstractmethod
    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        """Makes the output in `context.out` and returns facts of it, as JSON can hold them, or as a
        `Future` of that."""

    def find_remains(self, context: Context) -> Path | None:
        """Where the stage, if it fails, leaves the root file system (`.ext4`) or the disk (`.raw`)
        that it worked on. None for a stage that works on none."""
        return None


def key_of(value: object) -> ContentKey:
    """The SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return ContentKey(hashlib.sha256(text.encode()).hexdigest())


def to_json(value: object) -> Any:
    """A field's value as JSON can hold it. Raises TypeError for what does not belong in a key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            member.name: to_json(getattr(value, member.name))
            for member in dataclasses.fields(value)
            if member.metadata.get("key", True)
        }
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, PurePath) and not isinstance(value, Path):
        return str(value)  # a path in the image, which is no path of the host
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"{value!r} does not belong in a stage's key")


def digest_of_file(path: Path) -> Sha256:
    """The SHA-256 of a file's content and its executable bit."""
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BufferedReader) -> Sha256:
    mark = _mark(file)
    return Sha256(hashlib.file_digest(file, lambda: hashlib.sha256(mark)).hexdigest())


def _mark(file: BufferedReader) -> bytes:
    """What of a file's mode is part of its digest."""
    return b"x" if os.fstat(file.fileno()).st_mode & 0o100 else b"-"


def local_file(path: Path) -> LocalFile:
    """A file of the build host, with its digest."""
    return LocalFile(digest=digest_of_file(path), path=path)


def own_file(path: Path) -> LocalFile:
    """A file of a definition, by its canonical path, with its digest. Raises DefinitionError if it
    is no longer where the definition was checked with it."""
    with _own(path) as file:
        return LocalFile(digest=_digest(file), path=path)


def read_own(path: Path) -> bytes:
    """The content of a file of a definition. Raises DefinitionError as `own_file` does."""
    with _own(path) as file:
        return file.read()


def _own(path: Path) -> BufferedReader:
    try:
        return open_file(path)
    except OSError as error:
        raise DefinitionError(
            f"it was changed after the definition was read: {error.strerror}",
            where=str(path),
            todo="run the same command again",
        ) from error


def read_unchanged(file: LocalFile) -> bytes:
    """The content of a file of a definition. Raises StageFailedError if it is not what was
    planned."""
    with _opened(file) as stream:
        content = stream.read()
        if Sha256(hashlib.sha256(_mark(stream) + content).hexdigest()) != file.digest:
            raise _changed(file)
    return content


def copy_unchanged(file: LocalFile, copy: Path) -> Path:
    """Copies a file of a definition, and makes the folders of the copy, which it returns. Raises
    StageFailedError if the file is not what was planned."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with _opened(file) as stream, copy.open("xb") as written:
        shutil.copyfileobj(stream, written)
        copy.chmod(stat.S_IMODE(os.fstat(stream.fileno()).st_mode) | stat.S_IRUSR | stat.S_IWUSR)
    if digest_of_file(copy) != file.digest:
        raise _changed(file)
    return copy


def _opened(file: LocalFile) -> BufferedReader:
    try:
        return open_file(file.path)
    except OSError as error:
        raise _changed(file) from error


def _changed(file: LocalFile) -> StageFailedError:
    return StageFailedError(
        f"{file.path} was changed after the plan was made", todo="run the same command again"
    )


def digest_of_tree(folder: Path) -> Sha256:
    """The SHA-256 of the names, contents and executable bits below a folder.

    Links count as what they lead to, as diskimage-builder follows them.
    """
    hashed = hashlib.sha256()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(root, name) for name in sorted(files)):
            content = digest_of_file(path) if path.exists() else f"-> {path.readlink()}"
            hashed.update(f"{path.relative_to(folder)}\0{content}\0".encode())
    return Sha256(hashed.hexdigest())
