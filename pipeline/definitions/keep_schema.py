"""JSON Schema of `keep:`, the builds that `phantom-image prune` leaves."""

from __future__ import annotations

from typing import Any

_MOST = 10_000
_WORDS = {
    "last": "How many of the newest builds stay.",
    "daily": "Of how many days, the last ones that have builds, the newest build stays.",
    "weekly": "Of how many weeks, the last ones that have builds, the newest build stays.",
    "monthly": "Of how many months, the last ones that have builds, the newest build stays.",
}


def keep_schema() -> dict[str, Any]:
    """The schema of the key."""
    example = {"last": 3, "daily": 7, "weekly": 4, "monthly": 6}
    return {
        "description": "Which builds `phantom-image prune` leaves; without it, all of them.",
        "type": "object",
        "properties": {
            name: {
                "description": text,
                "type": "integer",
                "minimum": 0,
                "maximum": _MOST,
                "default": 0,
                "examples": [example[name]],
            }
            for name, text in _WORDS.items()
        },
        "additionalProperties": False,
        "examples": [example],
    }
