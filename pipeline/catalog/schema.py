"""The JSON Schemas (draft 2020-12) of catalog.json and of an appliance's appliance.json.

They are strict: a key that a later version adds comes with a new `schema` number.
"""

from __future__ import annotations

from pipeline.build.lifecycle import State
from pipeline.build.manifest_schema import publication
from pipeline.build.schema_terms import (
    BYTES,
    COUNT,
    FLAG,
    SECONDS,
    SHA256,
    TEXT,
    TIME,
    Schema,
    a_list,
    an_object,
    by_name,
    closed,
    or_null,
    told,
    whole,
)
from pipeline.catalog.feeds import SCHEMA

_PATH = told(TEXT, "Relative to this file.")


def catalog_schemas() -> dict[str, Schema]:
    """The schemas by their names on the command line."""
    return {
        "catalog": closed(whole("A catalog: catalog.json", **_catalog())),
        "appliance": closed(whole("An appliance of a catalog: appliance.json", **_appliance())),
        "cataloged": whole("What was written: `catalog --json`", **_written()),
    }


def _catalog() -> dict[str, Schema]:
    return {
        "schema": {"const": SCHEMA, "description": "The version of this schema."},
        "title": TEXT,
        "url": told(or_null(TEXT), "Where the catalog is on the web, without a slash at the end."),
        "updated": told(TIME, "When the newest build was published."),
        "appliances": a_list(
            an_object(
                name=TEXT,
                page=_PATH,
                data=told(TEXT, "Its appliance.json, relative to this file."),
                builds=told(COUNT, "How many there are."),
                current=told(_build(), "The newest of the builds that may be used."),
            )
        ),
    }


def _appliance() -> dict[str, Schema]:
    return {
        "schema": {"const": SCHEMA, "description": "The version of this schema."},
        "name": TEXT,
        "current": told(TEXT, "The newest of the builds that may be used."),
        "builds": told(a_list(_build()), "The newest first."),
    }


def _build() -> Schema:
    return an_object(
        version=TEXT,
        summary=TEXT,
        build=told(TEXT, "The build's name, which comes from its content."),
        labels=by_name(TEXT),
        date=told(TIME, "When it was published last, or built."),
        state={"enum": [state.value for state in State]},
        replacement=told(or_null(TEXT), "APPLIANCE or APPLIANCE/BUILD, to use in its place."),
        reason=told(TEXT, "Why it is deprecated or withdrawn."),
        release=told(TEXT, "What the guest calls its distribution."),
        codename=told(TEXT, "The release in one word; empty where it is not known."),
        architecture=TEXT,
        bytes=told(BYTES, "Of the smallest image file; 0 without images."),
        disk_bytes=told(BYTES, "Of the largest disk."),
        boot_seconds=told(or_null(SECONDS), "Of the slowest boot check."),
        emulated=told(FLAG, "Whether that machine was emulated, and so slower than a real one."),
        packages=told(COUNT, "How many there are."),
        sha256=told(SHA256, "Of the root file system."),
        publications=a_list(an_object(**publication())),
        manifest=_PATH,
        files=told(by_name(_PATH), "What is offered beside the manifest, by name."),
    )


def _written() -> dict[str, Schema]:
    return {
        "output": TEXT,
        "appliances": COUNT,
        "builds": COUNT,
        "written": told(COUNT, "Files that are new or have changed."),
        "removed": told(COUNT, "Files and folders of what is no longer there."),
        "skipped": told(a_list(TEXT), "Manifests that cannot be used, with --skip-broken."),
    }
