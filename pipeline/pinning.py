"""A base image's digest: computed of what lies at its location, and written into the definition.

The file keeps every byte but the digest's own.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import sparse
from pipeline.definition import locate
from pipeline.errors import DefinitionError, PhantomError, StoreError, UsageError
from pipeline.model import Appliance, ApplianceBuild, BaseImageSource, Progress, Sha256
from pipeline.sources import base_disk, download
from pipeline.sources.base_disk import Looked
from pipeline.sources.transport import shown as shown_url
from pipeline.store import write_atomically
from pipeline.tools import disk_formats
from pipeline.workspace import Workspace
from pipeline.yaml_source import shown

if TYPE_CHECKING:
    import yaml

_KEYS = ("source", "base_image")


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """What lies at a base image's location, and where its digest is written."""

    location: str
    bytes: int
    format: str
    """As definitions call it."""
    compression: str | None
    disk_bytes: int | None
    """The size of the disk in it, where the file's beginning tells it."""
    sha256: Sha256
    previous: Sha256 | None
    """What the definition said before."""
    file: str
    """`file:line:column` of the digest."""
    written: bool
    """False: the definition said so already."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    location: str
    bytes: int
    sha256: Sha256
    looked: Looked


def pin(appliance: Appliance, workspace: Workspace) -> Pinned:
    """Fetches a definition's base image, or reads it where it is a file, and writes its digest.

    What was fetched is kept for the builds. Raises UsageError without such an image, DownloadError,
    ImageFormatError for what is no disk image, DefinitionError where the digest cannot be written.
    """
    source = appliance.source
    if not isinstance(source, BaseImageSource):
        raise UsageError(
            f"{appliance.name} starts from no base image, so there is nothing to pin",
            todo="name an appliance whose definition says source: base_image:",
        )
    if isinstance(source.location, ApplianceBuild):
        raise UsageError(
            f"{appliance.name} starts from a build of {source.location.name}, which has a digest "
            "of its own",
            todo="there is nothing to pin; `phantom-image plan` tells which build is taken",
        )
    progress = workspace.progress("pin")
    try:
        if isinstance(source.location, Path):
            found = _read(source.location, source, progress)
        else:
            found = _fetch(source.location, source, workspace, progress)
    except PhantomError as error:
        raise error.located(locate(appliance.definition, *_KEYS, "location")) from error
    written = found.sha256 != source.sha256
    if written:
        _write(appliance, source, found.sha256)
    return Pinned(
        location=found.location,
        bytes=found.bytes,
        format=disk_formats.called(found.looked.format),
        compression=found.looked.compression,
        disk_bytes=found.looked.bytes,
        sha256=found.sha256,
        previous=source.sha256,
        file=locate(appliance.definition, *_KEYS, "sha256"),
        written=written,
    )


def _fetch(url: str, source: BaseImageSource, workspace: Workspace, progress: Progress) -> _Found:
    store, where = workspace.store, shown_url(url)
    name = download.Download.name
    with (
        store.used(),
        store.lock(
            f"pin-{download.digest_of_url(url)}",
            lambda: progress.step("another command fetches this; waiting for it"),
        ),
    ):
        if source.sha256 is not None:
            key = download.Download(sha256=source.sha256, url=url).key
            kept = store.find(name, key)
            if kept is not None and download.is_current(url, kept):
                looked = base_disk.look(kept.file(download.FILE), where, source.format)
                size = int(kept.facts["bytes"])
                return _Found(location=where, bytes=size, sha256=source.sha256, looked=looked)
        fetched = download.fetch(url, store, progress, expected=None)
        looked = base_disk.look(fetched.file, where, source.format)
        download.keep(fetched, url, store)
        return _Found(location=where, bytes=fetched.bytes, sha256=fetched.sha256, looked=looked)


def _read(path: Path, source: BaseImageSource, progress: Progress) -> _Found:
    where = shown(path)
    try:
        looked = base_disk.look(path, where, source.format)
        progress.step(f"computing the digest of {where}")
        digest = sparse.sha256(path, progress.advance)
        return _Found(location=where, bytes=path.stat().st_size, sha256=digest, looked=looked)
    except OSError as error:
        raise DefinitionError(
            f"the base image {where} cannot be read: {error.strerror}",
            todo="fetch it to there, or correct the location",
        ) from error


# ---- the definition


def _write(appliance: Appliance, source: BaseImageSource, digest: Sha256) -> None:
    """Writes the digest where it is read from, or else beside the location."""
    key = "location" if source.sha256 is None else "sha256"
    where = locate(appliance.definition, *_KEYS, key)
    path = Path(where.rsplit(":", 2)[0]).resolve()
    try:
        status, data = path.stat(), path.read_bytes()
        text = data.decode("utf-8-sig")
        mark = "\ufeff" if data.startswith(b"\xef\xbb\xbf") else ""
        write_atomically(path, mark + _edit(text, digest, where))
        path.chmod(status.st_mode & 0o7777)
        with suppress(PermissionError):
            os.chown(path, status.st_uid, status.st_gid)
    except OSError as error:
        raise StoreError(
            f"the definition cannot be written to: {error.strerror}",
            where=where,
            todo=f"write it there yourself: `sha256: {digest}`",
        ) from error


def _edit(text: str, digest: Sha256, where: str) -> str:
    """A definition's text with the digest in it. Raises DefinitionError where it would change more
    than that."""
    import yaml

    failed = DefinitionError(
        "the digest cannot be written into this definition",
        where=where,
        todo=f"write it there yourself: `sha256: {digest}`",
    )
    mapping = _find(yaml.compose(text, Loader=yaml.SafeLoader), _KEYS)
    if not isinstance(mapping, yaml.MappingNode):
        raise failed
    edited = _edit_mapping(text, mapping, digest)
    expected = yaml.safe_load(text)
    expected["source"]["base_image"]["sha256"] = str(digest)
    try:
        if edited is not None and yaml.safe_load(edited) == expected:
            return edited
    except yaml.YAMLError as error:
        raise failed from error
    raise failed


def _edit_mapping(text: str, mapping: yaml.MappingNode, digest: Sha256) -> str | None:
    # Without a letter it would be read as a number.
    word = str(digest) if re.search("[a-f]", digest) else f'"{digest}"'
    said = _pair(mapping, "sha256")
    if said is not None:
        start, end = said[1].start_mark.index, said[1].end_mark.index
        return text[:start] + word + text[end:]
    location = _pair(mapping, "location")
    if location is None:
        return None
    end = location[1].end_mark.index
    if mapping.flow_style:
        return f"{text[:end]}, sha256: {word}{text[end:]}"
    if text[end - 1] != "\n":
        end = text.find("\n", end) + 1 or len(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    before = "" if text[end - 1] == "\n" else newline
    indent = " " * location[0].start_mark.column
    return f"{text[:end]}{before}{indent}sha256: {word}{newline}{text[end:]}"


def _find(node: Any, keys: tuple[str, ...]) -> Any:
    """The node that keys lead to, from a document's top."""
    for key in keys:
        found = None if node is None else _pair(node, key)
        node = None if found is None else found[1]
    return node


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    """The nodes of a key and its value; a mapping's own go before merged ones."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return None
    merged: list[Any] = []
    for name, value in node.value:
        if name.tag.endswith(":merge"):
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        elif name.value == key:
            return name, value
    return next(filter(None, (_pair(each, key) for each in merged)), None)
