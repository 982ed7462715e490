"""The JSON Schema of `sites.yaml`, for our checks and for editors. Each cloud has its own of the
options of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.definitions.nightly import nightly_schema
from pipeline.definitions.phantoms import phantoms_schema
from pipeline.definitions.schema import DIALECT, SITE_NAME, Schema, choice, flag
from pipeline.definitions.signing import signing_schema
from pipeline.definitions.tracker import tracker_schema


def make_site_schema(cloud: str, options: Mapping[str, Any], *, sandbox: bool) -> Schema:
    """The schema of one site in `sites.yaml`, from the options of its cloud.

    A sandbox needs none of the options that the cloud requires of a real site.
    """
    schema = {key: value for key, value in options.items() if key not in ("$schema", "title")}
    required = [] if sandbox else list(options.get("required", []))
    return schema | {
        "type": "object",
        "required": ["cloud", *required],
        "additionalProperties": False,
        "properties": {
            "cloud": choice("The type of the site's cloud.", [cloud]),
            "sandbox": _sandbox_schema(),
            **options.get("properties", {}),
        },
    }


def make_sites_check(clouds: Iterable[str]) -> Schema:
    """The schema of what all sites have in common; each cloud's own schema checks its options."""
    return {
        "type": "object",
        "required": ["sites"],
        "additionalProperties": False,
        "properties": {
            "signing": signing_schema(),
            "vulnerabilities": tracker_schema(),
            "sites": {
                "type": "object",
                "propertyNames": SITE_NAME,
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "cloud": {"type": "string", "enum": sorted(clouds)},
                        "sandbox": {"type": "boolean"},
                    },
                },
            },
            "phantoms": phantoms_schema(),
            "nightly": nightly_schema(),
        },
    }


def make_cloudless_check(clouds: Iterable[Mapping[str, Any]]) -> Schema:
    """A schema that reports a missing `cloud`, and options that no cloud has."""
    known: Schema = {name: {} for options in clouds for name in options.get("properties", {})}
    return {
        "type": "object",
        "required": ["cloud"],
        "additionalProperties": False,
        "properties": {**known, "cloud": {}, "sandbox": {}},
    }


def make_sites_schema(clouds: Mapping[str, Mapping[str, Any]]) -> Schema:
    """The schema of `sites.yaml`, from the options of each cloud."""
    schema = make_sites_check(clouds)
    sites = schema["properties"]["sites"]
    site = sites["additionalProperties"]
    site["description"] = "A place to publish to."
    site["required"] = ["cloud"]
    site["properties"] = {
        "cloud": choice("The type of the site's cloud.", sorted(clouds)),
        "sandbox": _sandbox_schema(),
    }
    site["allOf"] = [
        {
            "if": {"properties": {"cloud": {"const": cloud}}, "required": ["cloud"]},
            "then": {
                "if": {"properties": {"sandbox": {"const": True}}, "required": ["sandbox"]},
                "then": make_site_schema(cloud, options, sandbox=True),
                "else": make_site_schema(cloud, options, sandbox=False),
            },
        }
        for cloud, options in sorted(clouds.items())
    ]
    sandboxes = {f"{cloud}-sandbox": {"cloud": cloud, "sandbox": True} for cloud in clouds}
    sites["description"] = (
        "The sites by Phantom's names of them. The built-in sites "
        f"{' and '.join(sandboxes)} exist too, unless this file redefines them."
    )
    sites["examples"] = [{name: site} for name, site in list(sandboxes.items())[:1]]
    return {"$schema": DIALECT, "title": "The sites that images are published to", **schema} | {
        "description": "sites.yaml. It refers to credentials and contains none."
    }


def _sandbox_schema() -> Schema:
    return flag("true: the command starts and stops a local server that stands in for the site.")
