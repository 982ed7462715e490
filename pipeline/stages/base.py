"""What a stage is: a value whose fields decide its output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, ClassVar

from pipeline.model import MIB, ContentKey, Progress, Sha256
from pipeline.store import Artifact

HERE_ONLY = {"key": False}
"""Metadata of fields that say where something lies on this host, and not what it is."""


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file or folder of the build host, known by the digest of its content."""

    digest: Sha256
    path: Path = field(metadata=HERE_ONLY)


@dataclass(frozen=True)
class Context:
    """What a stage gets to work with."""

    out: Path
    """An empty folder; the files in it at the end are the artifact."""
    work: Path
    """An empty folder for what is not kept."""
    log: Path
    """Where the output of programs goes."""
    store: Path
    """Where what was found out about this host is kept."""
    progress: Progress


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
    """Stages that go first, since more waits for them; they decide nothing of the output."""
    label: str = field(default="", metadata=HERE_ONLY)
    """Tells stages of one plan apart for people, where their name does not: a site, a layout."""

    @property
    def title(self) -> str:
        """What people call this stage of a plan."""
        return f"{self.name} {self.label}".rstrip()

    @property
    def requires(self) -> tuple[str, ...]:
        """What it needs of the host, in the words of `host.require`."""
        return (self.name,)

    @property
    def memory(self) -> int:
        """Bytes of the host's memory that it takes, where they count; what is small counts as
        nothing."""
        return 0

    def fields(self) -> dict[str, Any]:
        """Everything that decides the output, besides the inputs, as JSON can hold it."""
        return {
            each.name: to_json(getattr(self, each.name))
            for each in dataclasses.fields(self)
            if each.name != "inputs" and each.metadata.get("key", True)
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
        """Makes the output in `context.out` and returns facts of it, as JSON can hold them."""


def key_of(value: object) -> ContentKey:
    """The SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return ContentKey(hashlib.sha256(text.encode()).hexdigest())


def to_json(value: object) -> Any:
    """A field's value as JSON can hold it. Raises TypeError for what does not belong in a key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: to_json(getattr(value, each.name))
            for each in dataclasses.fields(value)
            if each.metadata.get("key", True)
        }
    if isinstance(value, Mapping):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, PurePath) and not isinstance(value, Path):
        return str(value)  # a path in the image, which is no path of the host
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"{value!r} does not belong in a stage's key")


def digest_of_file(path: Path) -> Sha256:
    """The SHA-256 of a file's content and its executable bit."""
    hashed = hashlib.sha256(b"x" if path.stat().st_mode & 0o100 else b"-")
    with path.open("rb") as file:
        while block := file.read(MIB):
            hashed.update(block)
    return Sha256(hashed.hexdigest())


def local_file(path: Path) -> LocalFile:
    """A file of the build host, with its digest."""
    return LocalFile(digest=digest_of_file(path), path=path)


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
