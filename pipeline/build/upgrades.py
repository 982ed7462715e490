"""Manifests of earlier schemas, put into today's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline import records
from pipeline.build import launch

CONFIGURATION: Mapping[str, Any] = {
    "name": str,
    "cloud_params": {str: {"image_id": str, "instance_type": str, "rank": int, "max_vms": int}},
    "user_data": (str, None),
}
"""The shape of what is read of a launch configuration."""
_FIRST = {
    "images": [{"boot_check": dict}],
    "publications": [{"site": str, "cloud": str}],
}
"""What was otherwise in schema 1."""
_SECOND = {
    "inputs": dict,
    "publications": [records.PUBLICATION],
    "phantom": {"cloud_params": {str: {"rank": int}}},
}
"""What was otherwise in schema 2."""
_THIRD = {"phantom": CONFIGURATION}
"""What was otherwise in schema 3."""


def upgrade(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of an earlier schema as one of today's; any other as it is. Raises Unfit where it
    lacks what its own schema has."""
    told = dict(manifest)
    while told["schema"] in _STEPS:
        shape, step = _STEPS[told["schema"]]
        fault = records.find_fault(told, shape)
        if fault is not None:
            raise records.Unfit(fault)
        told = step(told)
    return told


def _upgrade_from_1(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 1 knew neither regions nor several machines."""
    return {
        **manifest,
        "schema": 2,
        "images": [
            {
                **{key: value for key, value in image.items() if key != "boot_check"},
                "boot_checks": [{"machine": "bios", **image["boot_check"]}],
            }
            for image in manifest["images"]
        ],
        "publications": [
            {"site": each["site"], "cloud": each["cloud"], "region": None, **each}
            for each in manifest["publications"]
        ],
        "launch_templates": [],
    }


def _upgrade_from_2(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 2 knew nothing of the definition, and had sandboxes beside real sites and one rank for
    all."""
    section = manifest["phantom"]
    params = section["cloud_params"]
    sandboxes = {each["site"] for each in manifest["publications"] if each["sandbox"]}
    real = [site for site in params if site not in sandboxes]
    ranked = sorted(real or params, key=lambda site: int(params[site]["rank"]))
    kept = {site: {**params[site], "rank": rank} for rank, site in enumerate(ranked, 1)}
    told = {} if real or not params else {"sandbox": True}
    nothing = {"digest": None, "commit": None, "dirty": None}
    return {
        **manifest,
        "schema": 3,
        "inputs": {"definition": nothing, **manifest["inputs"]},
        "phantom": {**section, "cloud_params": kept, **told},
    }


def _upgrade_from_3(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 3 had the launch configuration alone, with `sandbox` in it where that was so."""
    configuration = {key: each for key, each in manifest["phantom"].items() if key != "sandbox"}
    sandbox = manifest["phantom"].get("sandbox") is True
    section = launch.complete(configuration, sandbox=sandbox)
    return {**manifest, "schema": 4, "phantom": section}


def _upgrade_from_4(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Builds of schema 4 had neither bill of materials, provenance, nor gate."""
    return {**manifest, "schema": 5, "sbom": None, "provenance": None, "checks": None}


_Step = Callable[[Mapping[str, Any]], dict[str, Any]]
_STEPS: Mapping[int, tuple[Mapping[str, Any], _Step]] = {
    1: (_FIRST, _upgrade_from_1),
    2: (_SECOND, _upgrade_from_2),
    3: (_THIRD, _upgrade_from_3),
    4: ({}, _upgrade_from_4),
}
