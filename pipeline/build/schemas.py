"""JSON Schemas (draft 2020-12) of what commands print for programs, and of manifests.

Later versions may add keys; they change none and take none away without a new `schema` number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.build.manifest import SCHEMA

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_BYTES: Schema = {"type": "integer", "minimum": 0}
_COUNT: Schema = {"type": "integer"}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_BUILD: Schema = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
_TIME: Schema = {"type": "string", "pattern": "^[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z$"}


def output_schemas() -> dict[str, Schema]:
    """The schemas by their names on the command line."""
    return {
        "manifest": _whole("A build's manifest: manifest.json, `show --json`", **_manifest()),
        "plan": _whole("What a build will do: `plan --json`", **_plan()),
        "image": _whole("What a build has done: `image --json` and `build --json`", **_image()),
        "part": _whole(
            "Some stages of a build: `build --json` with `--stop-after` or `--no-boot`", **_part()
        ),
        "list": {
            "$schema": _DRAFT,
            "title": "The builds on this host, or the images at sites: `list --json`",
            **_list({"anyOf": [_object(**_build_row()), _object(**_image_row())]}),
        },
    }


def _manifest() -> dict[str, Schema]:
    return {
        "schema": {"const": SCHEMA, "description": "The version of this schema."},
        "appliance": _object(
            name=_TEXT,
            version=_TEXT,
            summary=_TEXT,
            build=_told(_BUILD, "The build's name, which comes from its content."),
            labels=_by_name(_TEXT),
        ),
        "inputs": _inputs(),
        "root_filesystem": _object(sha256=_SHA256, identities=_identities()),
        "images": _list(_object(**_image_of_site())),
        "publications": _list(_object(**_publication())),
        "phantom": _told(
            _object(
                {
                    "sandbox": _told(
                        {"const": True}, "Said where all sites are sandboxes, unknown to Phantom."
                    )
                },
                name=_TEXT,
                cloud_params=_by_name(
                    _object(
                        image_id=_TEXT,
                        instance_type=_TEXT,
                        max_vms=_told(_COUNT, "-1: no limit."),
                        common=_FLAG,
                        rank=_told(_COUNT, "Phantom fills sites of lower rank first."),
                    )
                ),
                contextualization_method={"enum": ["none", "user_data"]},
                user_data=_or_null(_TEXT),
                appliance={"type": "null"},
            ),
            "The body of the request that makes Phantom's launch configuration.",
        ),
        "launch_templates": _list(
            _object(site=_TEXT, region=_or_null(_TEXT), data={"type": "object"})
        ),
    }


def _inputs() -> Schema:
    return _object(
        {
            "customizations": _told(
                {"type": "object"},
                "What the definition's keys say of the image beside packages, files and scripts; "
                "of files that they name, the digest.",
            ),
            "build_secrets": _told(
                _list(_TEXT), "The names of what scripts and hooks could read while it was made."
            ),
            "build_certificates": _told(
                _list(_object(file=_TEXT, sha256=_SHA256)),
                "Files whose certificates programs trusted while it was made.",
            ),
            "repeatable": _told(
                _FLAG,
                "Whether the same inputs are known to give the same bytes: from scratch, and where "
                "hooks and scripts had no network.",
            ),
            "archive": _told(
                _object(validity_checked=_FLAG), "Said of Debian's archive, from scratch."
            ),
            "package_files": _told(
                _list(_object(file=_TEXT, name=_TEXT, version=_TEXT, sha256=_SHA256)),
                "Those of the packages that are files of the definition.",
            ),
            "pinned_packages": _told(_list(_TEXT), "Those whose version the definition sets."),
            "python": _told(
                _object(
                    version=_TEXT,
                    wheels=_list(_object(name=_TEXT, version=_TEXT, file=_TEXT, sha256=_SHA256)),
                ),
                "What the virtual environment was made of, where the definition asks for one.",
            ),
            "left_out_packages": _told(
                _list(_TEXT), "Those that elements prefer, and the definition's rule out."
            ),
        },
        definition=_object(
            digest=_told(_or_null(_SHA256), "Of all files that say what the appliance is."),
            commit=_told(
                _or_null(_TEXT), "That of the definition's git repository; null without one."
            ),
            dirty=_told(_or_null(_FLAG), "Whether files differ from those of the commit."),
        ),
        source=_told({"type": "object"}, "The definition's source: scratch or base_image."),
        packages=_list(_object(name=_TEXT, version=_TEXT, architecture=_TEXT, sha256=_SHA256)),
        elements=_list(_object(name=_TEXT, digest=_SHA256)),
    )


def _identities() -> Schema:
    made = _list(_object(package=_TEXT, files=_list(_TEXT)))
    shared = _list(_object(file=_TEXT, what=_TEXT))
    return _told(
        _or_null(
            _object(
                made_at_boot=_told(made, "Files that each machine makes for itself."),
                shared=_told(shared, "Files that all machines share and perhaps should not."),
            )
        ),
        "Keys, ids and names that packages made while they were installed; null: not known.",
    )


def _image_of_site() -> dict[str, Schema]:
    return {
        "site": _TEXT,
        "cloud": _TEXT,
        "file": _told(_TEXT, "The file's name in the folder of the manifest."),
        "layout": _TEXT,
        "format": _TEXT,
        "compression": _or_null(_TEXT),
        "bytes": _BYTES,
        "sha256": _SHA256,
        "disk_bytes": _told(_BYTES, "Of the disk that is in the file."),
        "disk_sha256": _SHA256,
        "boot_checks": _list(_object(**_boot_check())),
    }


def _boot_check() -> dict[str, Schema]:
    return {
        "machine": _TEXT,
        "passed": {"const": True},
        "accelerator": {"enum": ["kvm", "tcg"]},
        "release": _TEXT,
        "kernel": _TEXT,
        "firmware": _TEXT,
        "addresses": _list(_TEXT),
        "failed_units": _list(_TEXT),
        "root_bytes": _BYTES,
        "disk_driver": _TEXT,
        "network_driver": _TEXT,
        "ssh_host_keys": _list(_TEXT),
        "user_data_by": _TEXT,
        "fetcher_tries": _COUNT,
        "fetcher_protocol": _TEXT,
        "boot_seconds": _SECONDS,
        "user_data_status": _or_null(_COUNT),
        "check_status": _or_null(_COUNT),
        "user_data": _told(
            _or_null(_by_name(_TEXT)), "What came of each answer of the metadata service."
        ),
    }


def _publication() -> dict[str, Schema]:
    return {
        "site": _TEXT,
        "cloud": _TEXT,
        "region": _or_null(_TEXT),
        "image_id": _TEXT,
        "location": _TEXT,
        "sha256": _SHA256,
        "published_at": _TIME,
        "sandbox": _told(_FLAG, "Whether a local server stood in for the site."),
    }


def _plan() -> dict[str, Schema]:
    return {
        "appliance": _TEXT,
        "base_image": _told(_or_null(_TEXT), "The file of the base image that it starts from."),
        "stages": _list(
            _object(
                stage=_TEXT,
                key=_told(_SHA256, "What would be built."),
                action={"enum": ["reuse", "build", "skip"]},
                reasons=_told(_list(_TEXT), "Why, with digests."),
            )
        ),
        "publications": _list(_object(**_prospect())),
        "warnings": _list(_TEXT),
    }


def _prospect() -> dict[str, Schema]:
    return {
        "site": _TEXT,
        "cloud": _TEXT,
        "sandbox": _FLAG,
        "image_name": _told(_TEXT, "With <build> in it where that is not known yet."),
        "file": _told(_TEXT, "The file's name in the build's folder."),
        "action": {"enum": ["reuse", "copy", "send", "refuse", "unknown"]},
        "bytes": _told(_or_null(_BYTES), "To be sent, at most; null where that is not known."),
        "detail": _TEXT,
        "credentials": _told(_or_null(_TEXT), "Where they come from; null where there are none."),
    }


def _image() -> dict[str, Schema]:
    return {
        "appliance": _TEXT,
        "build": _BUILD,
        "manifest": _told(_TEXT, "The manifest's path; the images lie in its folder."),
        "stages": _list(_object(**_stage_made())),
        "images": _list(_object(**_image_of_site())),
        "publications": _list(_object(**_publication())),
        "identities": _identities(),
    }


def _part() -> dict[str, Schema]:
    return {
        "appliance": _TEXT,
        "stages": _list(_object(**_stage_made())),
        "artifacts": _told(
            _list(
                _object(
                    stage=_TEXT,
                    key=_SHA256,
                    files=_told(_list(_TEXT), "Paths in the store, which `gc` may evict."),
                )
            ),
            "Of the stages that were asked for.",
        ),
    }


def _stage_made() -> dict[str, Schema]:
    return {"stage": _TEXT, "reused": _FLAG, "seconds": _SECONDS}


def _build_row() -> dict[str, Schema]:
    return {
        "appliance": _TEXT,
        "version": _TEXT,
        "build": _BUILD,
        "date": _told(_TIME, "When its manifest was last written."),
        "bytes": _told(_BYTES, "Of all its images."),
        "latest": _FLAG,
        "sites": _list(_TEXT),
    }


def _image_row() -> dict[str, Schema]:
    return {"site": _TEXT, "image_id": _TEXT, "location": _TEXT}


def _whole(title: str, **properties: Schema) -> Schema:
    return {"$schema": _DRAFT, "title": title, **_object(**properties)}


def _object(optional: Mapping[str, Schema] | None = None, /, **properties: Schema) -> Schema:
    """A mapping that has all of these keys, and may have the optional ones."""
    known = {**properties, **(optional or {})}
    return {"type": "object", "properties": known, "required": list(properties)}


def _by_name(items: Schema) -> Schema:
    return {"type": "object", "additionalProperties": items}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}
