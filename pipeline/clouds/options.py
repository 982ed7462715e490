"""How the options of a site are described, and the one file that sites of every cloud may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DefinitionError
from pipeline.model import Site

Schema = dict[str, Any]


def site_schema(title: str, properties: Schema, **rules: object) -> Schema:
    """The JSON Schema of a site's options."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **rules,
    }


def text(description: str, **rules: object) -> Schema:
    """An option that is a string."""
    return {"description": description, "type": "string", **rules}


def file_name(description: str) -> Schema:
    """An option that names a file of this host."""
    return text(f"{description} A relative name starts at the working directory.", minLength=1)


def choice(description: str, *words: str) -> Schema:
    """An option that is one of a few words, by default the first."""
    return {"description": description, "enum": list(words), "default": words[0]}


def flag(description: str) -> Schema:
    """An option that is true or false, by default false."""
    return {"description": description, "type": "boolean", "default": False}


def check_bundle(site: Site, path: Path, holds: str) -> str:
    """The file that a site's `ca_bundle` names. Raises DefinitionError when it is not there;
    `holds` says what is in it."""
    if not path.is_file():
        raise DefinitionError(
            f"ca_bundle of site {site.name} names {path}, which is no file",
            where=site.where,
            todo=f"name the file that holds the {holds}",
        )
    return str(path)
