"""The terms in which the JSON Schemas (draft 2020-12) of outputs and manifests are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
BYTES: Schema = {"type": "integer", "minimum": 0}
COUNT: Schema = {"type": "integer"}
SECONDS: Schema = {"type": "number", "minimum": 0}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
BUILD: Schema = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
TIME: Schema = {"type": "string", "pattern": "^[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z$"}


def whole(title: str, /, **properties: Schema) -> Schema:
    """A schema on its own, of an object with these keys."""
    return {"$schema": DRAFT, "title": title, **an_object(**properties)}


def an_object(optional: Mapping[str, Schema] | None = None, /, **properties: Schema) -> Schema:
    """A mapping that has all of these keys, and may have the optional ones."""
    known = {**properties, **(optional or {})}
    return {"type": "object", "properties": known, "required": list(properties)}


def by_name(items: Schema) -> Schema:
    """An object with any keys and such values."""
    return {"type": "object", "additionalProperties": items}


def a_list(items: Schema) -> Schema:
    """A list of such values."""
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    """Such a value, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def told(schema: Schema, description: str) -> Schema:
    """A schema with what it says to people."""
    return {**schema, "description": description}


def closed(schema: Any) -> Any:
    """A schema whose objects take no keys but those that it describes."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    only = {"additionalProperties": False} if "properties" in schema else {}
    return {**{key: closed(value) for key, value in schema.items()}, **only}
