"""The files that a definition brings, as a source plans and hands them over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.file_copies import Copy, FileCopy, FolderCopy, LinkCopy, TextCopy
from pipeline.guest import files as guest_files
from pipeline.guest.files import ImageFiles
from pipeline.model import Appliance
from pipeline.stages.base import LocalFile, copy_unchanged, own_file


@dataclass(frozen=True, kw_only=True)
class CopiedFile:
    """A file that lands in the image, owned by root."""

    target: PurePosixPath
    mode: int
    content: LocalFile


@dataclass(frozen=True, kw_only=True)
class CopiedLink:
    """A symbolic link that lands in the image, owned by root."""

    target: PurePosixPath
    leads_to: str


@dataclass(frozen=True, kw_only=True)
class CopiedFolder:
    """A folder that is made where the image has none, owned by root."""

    target: PurePosixPath


Copied = CopiedFile | CopiedLink | CopiedFolder


def copied_files(appliance: Appliance) -> tuple[Copied, ...]:
    """The files of a definition, with their digests, except those whose content is in the
    definition: a step of its customizations writes these. Raises DefinitionError."""
    return tuple(filter(None, map(_plan, appliance.files)))


def _plan(copy: Copy) -> Copied | None:
    match copy:
        case TextCopy():
            return None
        case FileCopy():
            return CopiedFile(target=copy.target, mode=copy.mode, content=own_file(copy.source))
        case LinkCopy():
            return CopiedLink(target=copy.target, leads_to=copy.leads_to)
        case FolderCopy():
            return CopiedFolder(target=copy.target)


def write_tree(copies: Sequence[Copied], folder: Path) -> None:
    """Lays out copies in a folder as they land in the image. Raises StageFailedError if one is not
    what was planned."""
    # Links come last, so that nothing is written through one.
    for copy in sorted(copies, key=lambda copy: isinstance(copy, CopiedLink)):
        place = folder / copy.target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        match copy:
            case CopiedFile():
                copy_unchanged(copy.content, place).chmod(copy.mode)
            case CopiedLink():
                place.symlink_to(copy.leads_to)
            case CopiedFolder():
                place.mkdir(exist_ok=True)


def bring(files: ImageFiles, copies: Sequence[Copied], work: Path) -> None:
    """Copies what a definition brings into the image, by way of the folder `work`."""
    contents = []
    for number, file in enumerate(copies):
        if isinstance(file, CopiedFile):
            copy = copy_unchanged(file.content, work / str(number))
            contents.append(guest_files.Copy(target=file.target, mode=file.mode, source=copy))
    files.copy(contents)
    with files.alone():
        for other in copies:
            match other:
                case CopiedFolder():
                    files.make_folder(other.target)
                case CopiedLink():
                    files.link(other.target, other.leads_to)
