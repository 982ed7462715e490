"""Limits of what a definition may hold, so that reading one takes no longer than it is long.

`yaml.py` limits a file's size, its values and their depth.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

MOST_CHARACTERS = 4096  # of a text: the longest path that Linux takes
MOST_ENTRIES = 5000  # of a list: more packages than any one machine has
MOST_KEYS = 1000  # of a mapping whose keys are free


def bounded(schema: Schema) -> Schema:
    """A schema with a limit for each text, list and mapping that has none of its own."""
    result = {name: _bounded_below(name, part) for name, part in schema.items()}
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if "string" in kinds and "enum" not in schema:
        result.setdefault("maxLength", MOST_CHARACTERS)
    if "array" in kinds:
        result.setdefault("maxItems", MOST_ENTRIES)
    if "object" in kinds and schema.get("additionalProperties", True) is not False:
        result.setdefault("maxProperties", MOST_KEYS)
    return result


def _bounded_below(name: str, part: Any) -> Any:
    if name in ("items", "additionalProperties", "if", "then", "else") and isinstance(part, dict):
        return bounded(part)
    if name in ("properties", "patternProperties"):
        return {key: bounded(inner) for key, inner in part.items()}
    if name in ("allOf", "anyOf", "oneOf"):
        return [bounded(inner) for inner in part]
    return part
