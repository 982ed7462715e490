"""What differs between two manifests, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.build import manifest as manifests

SHAPE = {
    **manifests.SHAPE,
    "inputs": {
        "packages": [{"name": str, "version": str, "architecture": str}],
        "elements": [{"name": str, "digest": str}],
    },
}
"""What is read of a manifest."""

_DEEPEST = 16  # objects in objects; ours have a few

Manifest = Mapping[str, Any]
Entries = Mapping[str, Any]


def compare(before: Manifest, after: Manifest) -> dict[str, list[dict[str, Any]]]:
    """The changes by part: `appliance`, `definition`, `packages` and so on. A change has the `name`
    of what changed, and its values `before` and `after`, None where it was not there."""
    return {part: _changes(find(before), find(after)) for part, find in _PARTS.items()}


def _changes(before: Entries, after: Entries) -> list[dict[str, Any]]:
    names = sorted({*before, *after})
    return [
        {"name": name, "before": before.get(name), "after": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    ]


def _appliance(manifest: Manifest) -> Entries:
    return _flat(manifest["appliance"])


def _definition(manifest: Manifest) -> Entries:
    """What the definition says, but for packages and elements, which are parts of their own."""
    inputs = manifest["inputs"]
    return _flat({key: each for key, each in inputs.items() if key not in ("packages", "elements")})


def _packages(manifest: Manifest) -> Entries:
    return _named(
        manifest["inputs"]["packages"],
        lambda each: f"{each['name']}:{each['architecture']}",
        "version",
        "sha256",
    )


def _elements(manifest: Manifest) -> Entries:
    return {each["name"]: each["digest"] for each in manifest["inputs"]["elements"]}


def _digests(manifest: Manifest) -> Entries:
    digests = {"root file system": manifest["root_filesystem"]["sha256"]}
    for image in manifest["images"]:
        digests[f"disk of {image['site']}"] = image["disk_sha256"]
        digests[f"image of {image['site']}"] = image["sha256"]
    return digests


def _images(manifest: Manifest) -> Entries:
    keys = ("file", "layout", "format", "compression", "bytes", "disk_bytes")
    return {f"{image['site']}.{key}": image[key] for image in manifest["images"] for key in keys}


def _publications(manifest: Manifest) -> Entries:
    return _named(
        manifest["publications"], _place, "image_id", "location", "published_at", "sandbox"
    )


def _phantom(manifest: Manifest) -> Entries:
    """The launch configuration; the parameters of the query API say the same."""
    section = manifest["phantom"]
    return _flat({"sandbox": section["sandbox"], **section["launch_configuration"]})


def _templates(manifest: Manifest) -> Entries:
    return _flat({_place(each): each.get("data") for each in manifest["launch_templates"]})


_PARTS: Mapping[str, Callable[[Manifest], Entries]] = {
    "appliance": _appliance,
    "definition": _definition,
    "packages": _packages,
    "elements": _elements,
    "digests": _digests,
    "images": _images,
    "publications": _publications,
    "phantom": _phantom,
    "launch_templates": _templates,
}
PARTS = tuple(_PARTS)
"""The parts of manifests."""


def _place(entry: Mapping[str, Any]) -> str:
    region = entry["region"]
    return f"{entry['site']} ({region})" if region else str(entry["site"])


def _named(
    entries: Iterable[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str], *keys: str
) -> Entries:
    return {name(each): {key: each.get(key) for key in keys} for each in entries}


def _flat(value: Any, at: str = "", depth: int = 0) -> dict[str, Any]:
    """The values in objects of objects, by their paths; a list is one value."""
    if not isinstance(value, Mapping) or (at and not value) or depth == _DEEPEST:
        return {at: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= _flat(each, f"{at}.{key}" if at else str(key), depth + 1)
    return found
