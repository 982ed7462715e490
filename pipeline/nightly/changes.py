"""What differs between two builds, as far as their manifests tell, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import records
from pipeline.build import differences


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Packages and elements that came, went or changed, the appliance's version, and the sizes of
    images."""
    if any(records.find_fault(each, differences.SHAPE) for each in (before, after)):
        return ()  # by an earlier version
    return tuple(_lines(differences.compare(before, after)))


def _lines(found: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    for part, word in (("packages", "package"), ("elements", "element")):
        for change in found[part]:
            name = change["name"].partition(":")[0]
            old, new = (_version(change[side]) for side in ("before", "after"))
            if change["before"] is None:
                yield f"{word} {name} {new} is new".replace("  ", " ")
            elif change["after"] is None:
                yield f"{word} {name} is gone"
            elif old != new:
                yield f"{word} {name} {old} -> {new}"
            else:
                yield f"{word} {name} changed"
    for change in found["appliance"]:
        if change["name"] != "build":
            yield f"{change['name']} {change['before']} -> {change['after']}"


def _version(value: Any) -> str:
    return str(value.get("version", "")) if isinstance(value, Mapping) else ""
