"""`waive` of `appliance.yaml`: what of the gate's findings an appliance is meant to have."""

from __future__ import annotations

from typing import Any

from pipeline.waiver import Waiver


def waive_schema() -> dict[str, Any]:
    """The schema of the key."""
    from pipeline.checks import RULES

    return {
        "description": "What the image has on purpose of that which rules for images find "
        "(docs/checks.md). The manifest tells it with its reason.",
        "type": "array",
        "maxItems": 100,
        "items": {
            "description": "A rule that does not count, and why.",
            "type": "object",
            "required": ["rule", "reason"],
            "additionalProperties": False,
            "properties": {
                "rule": {
                    "description": "The rule's id.",
                    "type": "string",
                    "enum": list(RULES),
                    "errorMessage": "must be the id of a rule for images (docs/checks.md)",
                    "examples": ["private-key"],
                },
                "path": {
                    "description": "The only paths for which it does not count; '*' stands for any "
                    "text.",
                    "type": "string",
                    "pattern": "^/[^\\n]*$",
                    "maxLength": 1000,
                    "errorMessage": "must be an absolute path",
                    "examples": ["/opt/app/*/test.key"],
                },
                "reason": {
                    "description": "Why it may be so, for whoever starts the image.",
                    "type": "string",
                    "pattern": "^[^\\n]*[^ \\n][^\\n]*$",
                    "maxLength": 500,
                    "errorMessage": "must be one line of text",
                    "examples": ["the key of a test that comes with the library"],
                },
            },
        },
        "examples": [[{"rule": "listening-service", "reason": "it is a web server"}]],
    }


def make_waiver(entry: Any) -> Waiver:
    """An entry that fits the schema, in the model's terms."""
    return Waiver(rule=entry["rule"], reason=entry["reason"], path=entry.get("path"))
