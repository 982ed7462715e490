"""Reads `phantoms:` of `sites.yaml`: the Phantom services that commands talk to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.definitions.messages import check_schema, choose, raise_mistakes, suggest
from pipeline.definitions.schema import SITE_NAME, Schema, choice, flag
from pipeline.definitions.yaml import read_yaml
from pipeline.errors import UsageError
from pipeline.phantom.named import LOCAL, QUERY, SECONDS, WEB, PhantomService

_TODO = "correct it; sites.example.yaml shows what the file can say"


def phantoms_schema() -> Schema:
    """The schema of the key."""
    properties: dict[str, Schema] = {
        "url": {
            "description": "The service's address: for the query API its end point, for the web "
            "API what stands before /api/dev.",
            "type": "string",
            "pattern": "^https?://[^/?#\\s]+(/[^?#\\s]*)?$",
            "errorMessage": "must be a URL such as https://phantom.example.org:8445",
            "examples": ["https://phantom.example.org:8445"],
        },
        "api": choice(
            "Which of Phantom's APIs the address has: query, that of AutoScaling; or web, the web "
            "application's.",
            [QUERY, WEB],
            default=QUERY,
        ),
        "credentials": _file(
            "File with the credentials, in the form of AWS's tools: aws_access_key_id, "
            "aws_secret_access_key and, for the web API, phantom_token. The section with the "
            "service's name counts, or else `default`.",
            "phantom-credentials",
        ),
        "ca_bundle": _file(
            "File with the certificates (PEM) that vouch for the service's.", "phantom-ca.pem"
        ),
        "seconds": {
            "description": "How long each request may take.",
            "type": "integer",
            "minimum": 1,
            "maximum": 3600,
            "default": SECONDS,
            "examples": [120],
        },
        "sandbox": flag("true: a local Phantom, which starts machines at sandbox sites."),
    }
    return {
        "description": "The Phantom services that `launch-config` and `domain` talk to. "
        f"`{LOCAL}` is the one that `phantom-sandbox` runs, unless this file redefines it.",
        "type": "object",
        "propertyNames": SITE_NAME | {"errorMessage": _NAME},
        "additionalProperties": {
            "type": "object",
            "required": ["url"],
            "additionalProperties": False,
            "properties": properties,
        },
    }


_NAME = "must be a name: letters, digits, '.', '_' and '-', beginning with a letter or digit"


def _file(description: str, example: str) -> Schema:
    text = f"{description} A relative name starts at the working directory."
    return {"description": text, "type": "string", "minLength": 1, "examples": [example]}


def load_phantoms(path: Path | None) -> dict[str, PhantomService]:
    """The services of `sites.yaml`, if there is one, by name. Raises DefinitionError with all
    mistakes of the key."""
    if path is None or not os.path.exists(path):
        return {}
    file = read_yaml(path)
    if not file.broken:
        check_schema(file, {"type": "object", "properties": {"phantoms": phantoms_schema()}})
    said = file.value(("phantoms",))
    known = said if isinstance(said, dict) else {}
    for name in known:
        # No pattern of the schema's: its message would show the password.
        if "@" in (file.text(("phantoms", name, "url")) or ""):
            file.add("the URL holds credentials: take them out", ("phantoms", name, "url"))
    raise_mistakes([file], _TODO)
    return {
        name: _make(name, options, file.where(("phantoms", name), key=True))
        for name, options in known.items()
    }


def _make(name: str, options: Mapping[str, Any], where: str) -> PhantomService:
    files: dict[str, Any] = {
        key: Path(options[key]).expanduser()
        for key in ("credentials", "ca_bundle")
        if key in options
    }
    rest = {key: options[key] for key in ("api", "seconds", "sandbox") if key in options}
    url = options["url"].rstrip("/").removesuffix("/api/dev")
    return PhantomService(name=name, url=url, where=where, **files, **rest)


def make_unknown(name: str, known: Mapping[str, PhantomService]) -> UsageError:
    """The error of a name that no Phantom has."""
    names = [*dict.fromkeys((*known, LOCAL))]
    return UsageError(
        f"there is no Phantom {name!r}{suggest(name, names)}",
        todo=f"{choose(names, '')}; `phantoms:` of sites.yaml describes others",
    )
