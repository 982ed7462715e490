"""`login` of `appliance.yaml`: who logs in with the public key of a launch."""

from __future__ import annotations

from typing import Any

LOGIN: dict[str, Any] = {
    "description": "Who logs in with the public key of the launch (element phantom-user-data).",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "user": {
            "description": "The user; one that the image lacks is made at boot, with sudo's rights "
            "where sudo is installed.",
            "type": "string",
            "pattern": "^[a-z_][a-z0-9_-]{0,31}$",
            "errorMessage": "must be a user's name: lower-case letters, digits, '_' and '-'",
            "default": "root",
            "examples": ["root", "ops"],
        }
    },
}
