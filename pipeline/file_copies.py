"""What the files of a definition become in an image: values, as in `model.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who owns what an entry of `files` brings, if not root."""

    name: str
    """As chown takes it: `user`, `user:`, `:group` or `user:group`."""
    paths: tuple[PurePosixPath, ...]
    """The copy's own path, and the folders above it that the entry copies."""


@dataclass(frozen=True, kw_only=True)
class FileCopy:
    """A file of the definition's folder that is copied into the image."""

    source: Path
    """Canonical, so that `realfile` opens no other file."""
    target: PurePosixPath
    mode: int = 0o644
    owner: Owner | None = None


@dataclass(frozen=True, kw_only=True)
class TextCopy:
    """A file whose content stands in the definition itself."""

    target: PurePosixPath
    text: str
    mode: int = 0o644
    owner: Owner | None = None


@dataclass(frozen=True, kw_only=True)
class LinkCopy:
    """A symbolic link of a copied folder: it stays one, and leads to what the image has there."""

    target: PurePosixPath
    leads_to: str
    owner: Owner | None = None


@dataclass(frozen=True, kw_only=True)
class FolderCopy:
    """An empty folder in a copied folder. It is made where the image has none."""

    target: PurePosixPath
    owner: Owner | None = None


Copy = FileCopy | TextCopy | LinkCopy | FolderCopy
"""What an entry of `files` brings."""


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text file of the definition's folder that customizes the image."""

    path: Path
    """Canonical."""
    text: str
    sha256: str
    """The file's, which may have been decoded."""


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A Debian package of the definition's folder, and what it says of itself."""

    path: Path
    """Canonical."""
    name: str
    version: str
    architecture: str
    where: str = field(default="", compare=False)
    """`file:line:column` of its entry in the definition."""
