"""Checks the keys of a definition that customize the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.customizations import CUSTOMIZATIONS
from pipeline.customizations.customization import Keys
from pipeline.definitions.messages import label
from pipeline.definitions.yaml import YamlFile


def check_customizations(file: YamlFile, data: Mapping[str, Any]) -> None:
    """Adds to the file's mistakes what a schema cannot find. `data` is the file's, in the model's
    terms."""
    for key, customization in CUSTOMIZATIONS.items():
        if key not in data or key in file.unfit or () in file.refused:
            continue

        def report(at: Keys, text: str, key: str = key) -> None:
            file.add(f"{label((key, *at))!r}: {text}", (key, *at))

        customization.check(data[key], report)
