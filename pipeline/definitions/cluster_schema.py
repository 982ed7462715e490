"""JSON Schema of `boot_check: cluster:`."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

MOST_GUESTS = 16  # of one name; more than any build host boots beside each other
_FILE: Schema = {
    "type": "string",
    "pattern": "^[^/\\n][^\\n]*$",
    "errorMessage": "must be a path relative to this file's folder",
}


def cluster_schema() -> Schema:
    """The schema of the key."""
    guests = [{"name": "head", "script": "check-cluster.sh"}, {"name": "worker", "count": 2}]
    return {
        "description": "A further check: several guests of the image on a private network.",
        "type": "object",
        "required": ["guests"],
        "additionalProperties": False,
        "properties": {
            "phantom": {
                "description": "Whether a local Phantom runs beside the guests, which can reach it "
                "and have it start more of them.",
                "type": "boolean",
                "default": False,
                "examples": [True],
            },
            "seconds": {
                "description": "The time limit from power-on until all guests have reported. The "
                "default depends on the build host.",
                "type": "integer",
                "minimum": 1,
                "maximum": 86400,
                "examples": [1800],
            },
            "guests": {
                "description": "The machines that are started, all at once.",
                "type": "array",
                "minItems": 1,
                "items": _guest(),
                "examples": [guests],
            },
        },
        "examples": [{"guests": guests}],
    }


def _guest() -> Schema:
    return {
        "description": "Guests that are alike.",
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {
                "description": "Their name, as in @address:NAME@.",
                "type": "string",
                "pattern": "^[a-z0-9][a-z0-9-]*$",
                "maxLength": 32,
                "errorMessage": "must be lower-case letters, digits and '-', beginning with a "
                "letter or digit",
                "examples": ["head"],
            },
            "count": {
                "description": "How many of them there are.",
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_GUESTS,
                "default": 1,
                "examples": [2],
            },
            "user_data": {
                "description": "Their user-data: a file with placeholders, such as "
                "@address:head@, in place of which values are put.",
                "examples": ["head.sh"],
                **_FILE,
            },
            "script": {
                "description": "A script that runs in the first of them, as root, after its "
                "user-data; exit status 0 means success.",
                "examples": ["check-cluster.sh"],
                **_FILE,
            },
        },
    }
