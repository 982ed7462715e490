"""The payload of an element, for images that the element's hooks do not make.

An element's `static/` is its one payload: its hooks install it where an image is made from scratch,
and the same files are copied into base images if `base-image.yaml` lies beside them:

    services: [phantom-user-data]   started at boot, by whichever init system the image has
    runlevel: default               OpenRC's, for these services
    needs: [resize2fs]              programs of the image
    needs_one_of: [curl, wget]

`openrc/` has init scripts for OpenRC, in place of those for SysV init.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import records
from pipeline.errors import DefinitionError
from pipeline.guest import services
from pipeline.guest.files import Copy

DESCRIPTION = "base-image.yaml"

_INIT_SCRIPTS = f"{services.INIT_SCRIPTS}/"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What an element brings into a base image."""

    name: str
    files: tuple[Copy, ...]
    """As they land in the image."""
    openrc_files: tuple[Copy, ...] = ()
    """In place of init scripts, where OpenRC is."""
    services: tuple[str, ...] = ()
    runlevel: str = "default"
    needs: tuple[str, ...] = ()
    """Programs."""
    needs_one_of: tuple[str, ...] = ()

    def files_for(self, init: str) -> tuple[Copy, ...]:
        """The files that an image with this init system needs."""
        if init == "systemd":
            return tuple(copy for copy in self.files if not _is_script(copy))
        others = tuple(copy for copy in self.files if "/systemd/system/" not in str(copy.target))
        if init != "openrc":
            return others
        return (*(copy for copy in others if not _is_script(copy)), *self.openrc_files)


_SHAPE = {"services?": [str], "runlevel?": str, "needs?": [str], "needs_one_of?": [str]}


def read_payload(element: Path) -> Payload | None:
    """The payload of an element's folder; None if the element has none for base images. Raises
    DefinitionError for a description with mistakes."""
    import yaml

    description = element / DESCRIPTION
    if not description.is_file():
        return None
    try:
        told = yaml.safe_load(description.read_text()) or {}
        fault = records.find_fault(told, _SHAPE)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        fault = "it cannot be read as YAML"
    if fault is not None:
        raise DefinitionError(fault, where=str(description), todo="correct the element")
    return Payload(
        name=element.name,
        files=_read_tree(element / "static"),
        openrc_files=_read_tree(element / "openrc"),
        services=tuple(told.get("services", ())),
        runlevel=told.get("runlevel", "default"),
        needs=tuple(told.get("needs", ())),
        needs_one_of=tuple(told.get("needs_one_of", ())),
    )


def _is_script(copy: Copy) -> bool:
    return str(copy.target).startswith(_INIT_SCRIPTS)


def _read_tree(folder: Path) -> tuple[Copy, ...]:
    """A folder's files as they land in the image, whatever their modes are in the checkout."""
    return tuple(
        Copy(
            target=PurePosixPath("/", path.relative_to(folder)),
            mode=0o755 if path.read_bytes().startswith(b"#!") else 0o644,
            source=path,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
