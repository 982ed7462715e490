"""One module per source of a root file system.

A new source is one module with a class that follows `Source`, and one case in `plan_source`.
Nothing outside this folder asks which source it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.clouds import Cloud
from pipeline.errors import UnknownElementError
from pipeline.model import Appliance, ApplianceBuild, BaseImageSource, ScratchSource, Sha256
from pipeline.stages.base import Stage
from pipeline.store import Artifact, Store
from pipeline.tools.apt_pins import Pins
from pipeline.tools.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class BaseFile:
    """A base image that lies on this host."""

    path: Path
    sha256: Sha256
    stamp: str
    """What `stamp_of` said when the digest was taken."""
    build: str | None = None
    """The build of another appliance that it is of."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a source plans a root file system for."""

    appliance: Appliance
    clouds: Sequence[Cloud]
    store: Store
    keep: bool
    """Whether what planning finds out may be written to the store."""
    pins: Pins | None = None
    """Packages of an earlier build, which is made once more; of the archive's own, none else."""
    find_build: Callable[[ApplianceBuild], BaseFile]
    """Finds an image of another appliance's build. Raises BaseNotBuiltError."""
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(kept=False))
    """What earlier requests found in archives and elements."""


class Source(Protocol):
    """The source of one appliance's root file system, planned."""

    @property
    def from_base_image(self) -> bool:
        """Whether the root file system starts from a base image."""

    @property
    def root(self) -> Stage:
        """The stage that makes the root file system."""

    @property
    def base(self) -> BaseFile | None:
        """The base image, where it lies on this host already."""

    def plan_contents(self, images: Sequence[Stage]) -> Stage | None:
        """The stage that tells what the root file system holds and its digest, to be run after the
        images are made; None where the plan and the images say it."""

    def describe_inputs(self, contents: Artifact | None) -> dict[str, Any]:
        """What a manifest says of what the image was made of. `contents` is the artifact of the
        stage that `plan_contents` gives."""


def plan_source(request: Request) -> Source:
    """Plans the root file system that an appliance asks for.

    Raises UnknownElementError, UnknownPackageError, MirrorError, DefinitionError, KernelError,
    DiskTooSmallError, ChecksumError, BaseNotBuiltError.
    """
    from pipeline.sources.base_image import plan_base_image
    from pipeline.sources.scratch import plan_scratch

    match request.appliance.source:
        case ScratchSource() as source:
            return plan_scratch(source, request)
        case BaseImageSource() as source:
            return plan_base_image(source, request)


@contextmanager
def elements_located(appliance: Appliance) -> Iterator[None]:
    """Adds to an error about an element where the definition names it."""
    try:
        yield
    except UnknownElementError as error:
        named = ("elements", error.element) if error.element in appliance.elements else ()
        error.where = error.where or appliance.positions.find(*named)
        raise
