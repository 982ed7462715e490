"""Checks and merges the packages of a definition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.definitions.messages import label
from pipeline.definitions.schema import DEBIAN_PACKAGE_PATTERN
from pipeline.definitions.yaml import Keys, YamlFile
from pipeline.model import split_pin


def check_packages(files: Sequence[YamlFile]) -> None:
    """Adds to the files' mistakes packages that one file lists twice, and, without a base image,
    names that are none of Debian's, which are stricter than others."""
    sources = (file.value(("source",)) for file in files)
    source = next((source for source in sources if isinstance(source, dict)), {})
    for file in files:
        packages = file.value(("packages",))
        first: dict[str, tuple[str, Keys]] = {}
        for index in range(len(packages) if isinstance(packages, list) else 0):
            keys: Keys = ("packages", index)
            text = file.text(keys)
            if text is None:
                continue
            if "base_image" not in source and not re.search(DEBIAN_PACKAGE_PATTERN, text):
                must = "must be the name of a Debian package"
                file.add(f"{label(keys)!r} {must}, not {text!r}", keys)
                continue
            name = split_pin(text)[0]
            other, at = first.setdefault(name, (text, keys))
            if other != text:  # the schema reports what is simply repeated
                where = f"line {file.line(at)}"
                file.add(f"{label(keys)!r}: {where} asks for the same package, {other!r}", keys)
        without = file.value(("without_packages",))
        for index in range(len(without) if isinstance(without, list) else 0):
            keys = ("without_packages", index)
            if (text := file.text(keys)) in first:
                where = f"line {file.line(first[text][1])}"
                file.add(f"{label(keys)!r}: {where} asks for it", keys)


def keep_out(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a definition's packages, and of those that it keeps out, for one that extends
    it: what the child says of a package replaces what the parent says of it."""
    left = dict(parent)
    for key, other in (("packages", "without_packages"), ("without_packages", "packages")):
        theirs = {split_pin(package)[0] for package in child.get(other, ())}
        if theirs and key in left:
            left[key] = [each for each in left[key] if split_pin(each)[0] not in theirs]
    return left


def merge_packages(parent: Sequence[str], child: Sequence[str]) -> list[str]:
    """The packages of a definition and of the one that it extends: of two entries of one package,
    the child's is taken."""
    again, ours = {*child}, {split_pin(package)[0] for package in child}
    kept = [each for each in parent if each in again or split_pin(each)[0] not in ours]
    known = {*kept}
    return kept + [package for package in child if package not in known]
