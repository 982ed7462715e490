"""The secrets that a definition names for the time of the build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.definitions.copies import Grounds, OutsideError
from pipeline.definitions.messages import label
from pipeline.definitions.yaml import Keys, YamlFile
from pipeline.model import BuildSecret

_KEY = "build_secrets"

BUILD_SECRETS: dict[str, Any] = {
    "description": "Secrets that scripts and elements' hooks read while the image is made, each as "
    "the file /run/secrets/NAME. A build whose image holds one fails.",
    "type": "array",
    "maxItems": 100,
    "items": {
        "description": "A secret, and where it is found when the image is built.",
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {
                "description": "The file's name in /run/secrets.",
                "type": "string",
                "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
                "maxLength": 64,
                "errorMessage": "must be letters, digits, '.', '_' and '-', beginning with a "
                "letter or digit",
                "examples": ["registry-token"],
            },
            "env": {
                "description": "The environment variable of the command that holds it.",
                "type": "string",
                "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                "maxLength": 100,
                "errorMessage": "must be the name of an environment variable",
                "examples": ["REGISTRY_TOKEN"],
            },
            "file": {
                "description": "The absolute path of the file that holds it, outside the "
                "definition.",
                "type": "string",
                "minLength": 1,
                "examples": ["/etc/phantom/registry-token"],
            },
        },
    },
    "examples": [[{"name": "registry-token", "env": "REGISTRY_TOKEN"}]],
}
"""The JSON Schema of `build_secrets`."""


def resolve_secrets(file: YamlFile, grounds: Grounds, entries: Sequence[object]) -> Any:
    """The secrets of a definition's file; adds mistakes for those that cannot be."""
    found: dict[str, BuildSecret] = {}
    first: dict[str, int] = {}
    for index in range(len(entries)):
        keys: Keys = (_KEY, index)
        if keys in file.refused:
            continue
        name, variable, path = (file.text((*keys, part)) for part in ("name", "env", "file"))
        given = [part for part in ("env", "file") if file.value((*keys, part)) is not None]
        if len(given) != 1:
            told = "'env' and 'file': give one of them" if given else "'env' or 'file' is missing"
            file.add(f"{label(keys)!r}: {told}", keys)
        elif path is not None:
            _check_path(file, grounds, (*keys, "file"), path)
        if name is None:
            continue
        if first.setdefault(name, index) != index:
            at = (*keys, "name")
            told = f"entry {first[name] + 1} has the same name, {name!r}"
            file.add(f"{label(at)!r}: {told}", at)
            continue
        found[name] = BuildSecret(
            name=name,
            variable=variable,
            file=None if path is None else Path(os.path.expanduser(path)),
            where=file.where((*keys, given[0])) if given else file.where(keys),
        )
    return list(found.values())


def _check_path(file: YamlFile, grounds: Grounds, keys: Keys, text: str) -> None:
    path = os.path.expanduser(text)
    if not os.path.isabs(path):
        told = "must be an absolute path: a secret does not belong beside the definition"
        file.add(f"{label(keys)!r}: {told}", keys)
        return
    try:
        inside = grounds.resolve(path)
    except (OutsideError, OSError):
        return
    except ValueError:
        file.add(f"{label(keys)!r}: is no path", keys)
        return
    told = f"{str(inside)!r} lies among the definitions, where no secret belongs; move it"
    file.add(f"{label(keys)!r}: {told}", keys)


def merge_secrets(parent: Sequence[BuildSecret], child: Sequence[BuildSecret]) -> Any:
    """The secrets of a definition and of the one that it extends: of two with one name, the
    child's is taken."""
    ours = {secret.name for secret in child}
    return [*(secret for secret in parent if secret.name not in ours), *child]
