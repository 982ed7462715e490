"""What a build was made from: its definition, for the manifest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.model import Appliance, BaseImageSource
from pipeline.stages.base import digest_of_file, key_of
from pipeline.tools.git import find_commit


def describe_definition(appliance: Appliance) -> dict[str, Any]:
    """The digest of a definition, and the commit that it is of, if it is in a git repository.

    The digest is that of all its files: the definition, those that it extends, and those that they
    name, each by its path from the definition's folder. A base image has a digest of its own.
    """
    folder = appliance.definition.parent
    files = {path for path in _find_files(appliance) if path.is_file()}
    digests = {os.path.relpath(path, folder): digest_of_file(path) for path in files}
    commit = find_commit(appliance.definition, sorted(files - {appliance.definition}))
    return {
        "digest": key_of(digests),
        "commit": None if commit is None else commit.id,
        "dirty": None if commit is None else commit.dirty,
    }


def _find_files(value: object) -> Iterator[Path]:
    """The paths in a value of the model."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseImageSource):
        return
    elif dataclasses.is_dataclass(value):
        for member in dataclasses.fields(value):
            yield from _find_files(getattr(value, member.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _find_files(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _find_files(item)
