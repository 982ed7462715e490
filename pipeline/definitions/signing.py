"""Who signs what a build's folder holds, and whose signatures count: `signing` of sites.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.definitions.schema import Schema
from pipeline.definitions.yaml import YamlFile, read_yaml

KEY = "PHANTOM_SIGNING_KEY"
"""The variable that names the key, whatever sites.yaml says."""


@dataclass(frozen=True, kw_only=True)
class Signing:
    """The settings; what is left out is None."""

    key: Path | None = None
    """Of OpenSSH: private, without passphrase; or of an agent, private or public."""
    where: str = ""
    """Where the key is named, for messages."""
    identity: str | None = None
    """Who signs with it, as allowed signers call them."""
    allowed_signers: Path | None = None


def signing_schema() -> Schema:
    """The schema of the key."""
    properties: dict[str, Schema] = {
        "key": {
            "description": "File with a key of OpenSSH: private and without passphrase, or one, "
            f"private or public, that an agent holds. {KEY} comes before it.",
            "type": "string",
            "minLength": 1,
            "examples": ["~/.ssh/image-signing"],
        },
        "identity": {
            "description": "Who signs with it, as allowed signers call them.",
            "type": "string",
            "pattern": '^[^\\s,"#!*?]+$',
            "errorMessage": "must be a name for allowed signers, such as images@example.org: "
            "without spaces, commas, quotes and wildcards",
            "examples": ["images@example.org"],
        },
        "allowed_signers": {
            "description": "File of allowed signers (ssh-keygen(1)), by which `verify` knows whose "
            "signatures count.",
            "type": "string",
            "minLength": 1,
            "examples": ["allowed-signers"],
        },
    }
    return {
        "description": "Who signs the manifests, bills of materials and provenance of builds. "
        "Relative names of files start at the working directory.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def load_signing(path: Path | None, environ: Mapping[str, str] = os.environ) -> Signing:
    """The settings of sites.yaml, if there is one, and of the environment. The file was checked
    when its sites were loaded (`sites.load_sites`)."""
    file = None if path is None or not os.path.exists(path) else read_yaml(path)
    told = Signing() if file is None else _read(file)
    named = environ.get(KEY)
    if not named:
        return told
    return Signing(
        key=_to_path(named),
        where=KEY,
        identity=told.identity,
        allowed_signers=told.allowed_signers,
    )


def _read(file: YamlFile) -> Signing:
    key, identity, signers = (
        file.text(("signing", name)) for name in ("key", "identity", "allowed_signers")
    )
    return Signing(
        key=_to_path(key) if key else None,
        where=file.where(("signing", "key")),
        identity=identity,
        allowed_signers=_to_path(signers) if signers else None,
    )


def _to_path(text: str) -> Path:
    return Path(text).expanduser().absolute()
