"""The variables that a definition sets for elements' hooks and for its scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.definitions.yaml import YamlFile
from pipeline.tools import dib_environment

ENVIRONMENT: dict[str, Any] = {
    "description": "Variables for the hooks of elements and for scripts, from scratch. No secrets: "
    "they are in the build's log. docs/elements.md names those of diskimage-builder's elements.",
    "type": "object",
    "propertyNames": {
        "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
        "maxLength": 100,
        "errorMessage": "must be a variable's name: letters, digits and '_'",
    },
    "additionalProperties": {
        "description": "The variable's value.",
        "type": "string",
        "maxLength": 10000,
        "examples": ["alice"],
    },
    "maxProperties": 200,
    "examples": [{"DIB_DEV_USER_USERNAME": "alice"}],
}
"""The JSON Schema of `environment`."""


def check_environment(files: Sequence[YamlFile]) -> None:
    """Adds to the files' mistakes variables that a definition cannot set, and all of them where
    no hooks run: with a base image."""
    sources = (file.value(("source",)) for file in files)
    source = next((source for source in sources if isinstance(source, dict)), {})
    for file in files:
        variables = file.value(("environment",))
        if not isinstance(variables, dict):
            continue
        if variables and "base_image" in source:
            text = "'environment' has no use with a base image: elements' hooks only run from "
            file.add(f"{text}scratch", ("environment",), key=True)
        for name in variables:
            if (reason := dib_environment.refuse(name)) is not None:
                text = f"'environment.{name}' cannot be set here: {reason}"
                file.add(text, ("environment", name), key=True)
