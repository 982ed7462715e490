"""Every manifest that a command of the tests writes is held against the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from pipeline.build.manifest_check import find_faults
from pipeline.build.manifest_schema import manifest_schema

Written = Mapping[Path, tuple[int, int]]
"""Manifests, and what tells that one was written again."""


def find_manifests(build: Path) -> Written:
    """The manifests of all builds in a build folder."""
    found = {}
    for path in build.glob("*/*/manifest.json"):
        try:
            status = path.stat()
        except OSError:  # of a build that another command removes, or nobody may read
            continue
        found[path] = (status.st_mtime_ns, status.st_ino)
    return found


def check_written(build: Path, before: Written) -> None:
    """Checks the manifests that were written since."""
    for path, status in find_manifests(build).items():
        if before.get(path) != status:
            check_manifest(json.loads(path.read_text()))


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Checks a manifest."""
    _validator().validate(manifest)
    assert find_faults(manifest) == []


@cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(manifest_schema())
