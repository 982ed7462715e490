"""`phantom-image pin`: computes a base image's digest and writes it into the definition.

Every other byte of the file stays as it is.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import sparse
from pipeline.commands import options as shared
from pipeline.commands.output import print_json, print_line
from pipeline.definitions.appliance import load_appliance
from pipeline.definitions.yaml import read_yaml, shown
from pipeline.disk import formats
from pipeline.errors import DefinitionError, StoreError, UsageError, located
from pipeline.model import Appliance, ApplianceBuild, BaseImageSource, Progress, Sha256, format_size
from pipeline.sources import base_disk, download
from pipeline.sources.base_disk import Looked
from pipeline.sources.transport import shown as shown_url
from pipeline.store import write_atomically
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import yaml

_KEYS = ("source", "base_image")

EXAMPLES = ("phantom-image pin mine",)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    shared.add(parser, "appliance", "json")


def run(options: Namespace) -> None:
    """Pins the base image, and prints what it is."""
    appliance = load_appliance(options.appliance, options.images, pinned=False)
    with shared.open_shown_workspace(options, uses_store=False) as workspace:
        pinned = _pin(appliance, workspace)
    if options.json:
        print_json(pinned)
    else:
        _print(pinned)


def _pin(appliance: Appliance, workspace: Workspace) -> dict[str, Any]:
    """Fetches a definition's base image, or reads it where it is a file, and writes its digest.

    The store keeps a fetched image for builds. Returns what the image is, the digest that the
    definition had before, and `file:line:column` of the digest that it has now. Raises UsageError
    without such an image, DownloadError, ImageFormatError for what is no disk image,
    DefinitionError where the digest cannot be written.
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
    with located(appliance.positions.find(*_KEYS, "location")):
        if isinstance(source.location, Path):
            location = shown(source.location)
            size, digest, looked = _read(source.location, source, progress)
        else:
            location = shown_url(source.location)
            size, digest, looked = _fetch(source.location, source, workspace, progress)
    place = appliance.positions.find(*_KEYS, "sha256")
    written = digest != source.sha256
    if written:
        place = _write(appliance, source, digest)
    return {
        "appliance": appliance.name,
        "location": location,
        "bytes": size,
        "format": formats.to_user_name(looked.format),
        "compression": looked.compression,
        "disk_bytes": looked.bytes,
        "sha256": digest,
        "previous": source.sha256,
        "file": place,
        "written": written,
    }


def _fetch(
    url: str, source: BaseImageSource, workspace: Workspace, progress: Progress
) -> tuple[int, Sha256, Looked]:
    """The size and the digest of the image at a URL, and what it is."""
    store, where = workspace.store, shown_url(url)
    waiting = "another command fetches this; waiting for it"
    lock = store.lock(f"pin-{download.digest_of_url(url)}", lambda: progress.step(waiting))
    with store.used(), lock:
        if source.sha256 is not None:
            stage = download.Download(sha256=source.sha256, url=url)
            kept = store.find(stage.name, stage.key)
            if kept is not None and download.is_current(url, kept):
                looked = base_disk.look(kept.file(download.FILE), where, source.format)
                return int(kept.facts["bytes"]), source.sha256, looked
        arrived = download.fetch(url, store, progress, expected=None)
        size, looked = arrived.size, base_disk.look(arrived.file, where, source.format)
        download.keep(arrived, url, store)
        return size, arrived.sha256, looked


def _read(path: Path, source: BaseImageSource, progress: Progress) -> tuple[int, Sha256, Looked]:
    """The size and the digest of an image of this host, and what it is."""
    where = shown(path)
    try:
        looked = base_disk.look(path, where, source.format)
        progress.step(f"computing the digest of {where}")
        return path.stat().st_size, sparse.sha256(path, progress.advance), looked
    except OSError as error:
        raise DefinitionError(
            f"the base image {where} cannot be read: {error.strerror}",
            todo="fetch it to there, or correct the location",
        ) from error


def _print(pinned: Mapping[str, Any]) -> None:
    packed = f", packed by {pinned['compression']}" if pinned["compression"] else ""
    disk = f", a disk of {format_size(pinned['disk_bytes'])}" if pinned["disk_bytes"] else ""
    print_line(f"{pinned['appliance']}: {pinned['location']}")
    print_line(f"  {format_size(pinned['bytes'])} of {pinned['format']}{packed}{disk}")
    same = "" if pinned["written"] else ", as the definition says"
    print_line(f"  sha256 {pinned['sha256']}{same}")
    if pinned["written"]:
        before = f", in place of {pinned['previous']}" if pinned["previous"] else ""
        print_line(f"  written to {pinned['file']}{before}")


# ---- the definition


def _write(appliance: Appliance, source: BaseImageSource, digest: Sha256) -> str:
    """Writes the digest in place of the old one or, where the definition has none, beside the
    location. Returns its `file:line:column`."""
    key = "location" if source.sha256 is None else "sha256"
    where = appliance.positions.find(*_KEYS, key)
    file = Path(where.rsplit(":", 2)[0])
    path = file.resolve()
    try:
        status, data = path.stat(), path.read_bytes()
        write_atomically(path, _edit(data.decode(), digest, where))  # PyYAML steps over a BOM
        path.chmod(status.st_mode & 0o7777)
        with suppress(PermissionError):
            os.chown(path, status.st_uid, status.st_gid)
    except OSError as error:
        raise StoreError(
            f"the definition cannot be written to: {error.strerror}",
            where=where,
            todo=f"write it there yourself: `sha256: {digest}`",
        ) from error
    return read_yaml(file).where((*_KEYS, "sha256"))


def _edit(text: str, digest: Sha256, where: str) -> str:
    """A definition's text with the digest in it. Raises DefinitionError where the edit would change
    anything else."""
    import yaml

    failed = DefinitionError(
        "the digest cannot be written into this definition",
        where=where,
        todo=f"write it there yourself: `sha256: {digest}`",
    )
    mapping: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in _KEYS:
        _, mapping = _pair(mapping, key) or (None, None)
    if not isinstance(mapping, yaml.MappingNode):
        raise failed
    edited = _edit_mapping(text, mapping, digest)
    expected = yaml.safe_load(text)
    expected["source"]["base_image"]["sha256"] = str(digest)
    with suppress(yaml.YAMLError):
        if edited is not None and yaml.safe_load(edited) == expected:
            return edited
    raise failed


def _edit_mapping(text: str, mapping: yaml.MappingNode, digest: Sha256) -> str | None:
    # YAML reads a digest without a letter as a number.
    word = str(digest) if re.search("[a-f]", digest) else f'"{digest}"'
    digest_pair = _pair(mapping, "sha256")
    if digest_pair is not None:
        start, end = digest_pair[1].start_mark.index, digest_pair[1].end_mark.index
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


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    """The nodes of a key and its value in a mapping; None where `node` has no such key."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)
