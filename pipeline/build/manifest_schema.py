"""The JSON Schema (draft 2020-12) of manifests.

It is strict: where the content is ours, there are no keys but these, so a key that a later version
adds is a new `schema` number. What a cloud's own means of starting machines take (`data` of a
launch template) and what the definition says (`source`, `customizations`) is not described here.
"""

from __future__ import annotations

from pipeline.build.manifest import SCHEMA
from pipeline.build.schema_terms import (
    BUILD,
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
from pipeline.customizations import CUSTOMIZATIONS
from pipeline.model import MAX_USER_DATA

_NAME: Schema = {"type": "string", "pattern": "^[-_.0-9A-Za-z ]{1,128}$"}
"""What Phantom's web application takes as a launch configuration's name."""
_USER_DATA: Schema = {
    "type": "string",
    "pattern": "^[\\t\\n\\r -~]*$",
    "minLength": 1,
    "maxLength": MAX_USER_DATA,
    "errorMessage": f"must be ASCII text of 1 to {MAX_USER_DATA:,} characters",
    "description": "Plain text, which clients encode as base64 where a request wants it so.",
}


def manifest_schema() -> Schema:
    """The whole schema."""
    schema: Schema = closed(
        whole("A build's manifest: manifest.json, `show --json`", **_manifest()),
    )
    return schema


def _manifest() -> dict[str, Schema]:
    return {
        "schema": {"const": SCHEMA, "description": "The version of this schema."},
        "appliance": an_object(
            name=TEXT,
            version=TEXT,
            summary=TEXT,
            build=told(BUILD, "The build's name, which comes from its content."),
            labels=by_name(TEXT),
        ),
        "inputs": _inputs(),
        "root_filesystem": an_object(sha256=SHA256, identities=identities()),
        "sbom": told(
            or_null(_document()),
            "The bill of materials, CycloneDX as JSON; null in builds of earlier versions.",
        ),
        "provenance": told(
            or_null(_document()),
            "How it was made, an in-toto statement; null in builds of earlier versions.",
        ),
        "checks": checks(),
        "images": a_list(an_object(cluster_check(), **image_of_site())),
        "publications": a_list(an_object(**publication())),
        "phantom": _phantom(),
        "launch_templates": told(
            a_list(an_object(site=TEXT, region=or_null(TEXT), data={"type": "object"})),
            "What starts images by their cloud's own means; for EC2, RequestLaunchTemplateData.",
        ),
    }


def _document() -> Schema:
    return an_object(file=told(TEXT, "Its name in the folder of the manifest."), sha256=SHA256)


def _phantom() -> Schema:
    return an_object(
        sandbox=told(FLAG, "Whether all sites are sandboxes, unknown to Phantom."),
        launch_configuration=told(
            an_object(
                name=_NAME,
                cloud_params=by_name(_cloud_param()),
                contextualization_method={"enum": ["none", "user_data"]},
                user_data=or_null(_USER_DATA),
                appliance={"type": "null"},
            ),
            "The body of `POST /launchconfigurations` of Phantom's web API, for all sites.",
        ),
        auto_scaling=told(
            by_name(
                an_object(
                    {"UserData": _USER_DATA},
                    LaunchConfigurationName=told(
                        {"type": "string", "pattern": "^[-_.0-9A-Za-z ]{1,128}@."}, "name@site"
                    ),
                    ImageId=TEXT,
                    InstanceType=TEXT,
                )
            ),
            "By site, the parameters of CreateLaunchConfiguration of the AutoScaling query API.",
        ),
    )


def _cloud_param() -> Schema:
    limit: Schema = {
        "type": "integer",
        "anyOf": [{"const": -1}, {"minimum": 1}],
        "errorMessage": "must be -1 (no limit) or at least 1",
    }
    rank: Schema = {"type": "integer", "minimum": 1}
    return an_object(
        image_id=TEXT,
        instance_type=TEXT,
        max_vms=told(limit, "-1: no limit."),
        common=FLAG,
        rank=told(rank, "Phantom fills sites of lower rank first."),
    )


def _inputs() -> Schema:
    one_key: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1}
    of_git = {
        "commit": told(TEXT, "Where it lies in a git repository."),
        "dirty": told(FLAG, "Whether files differ from those of the commit."),
    }
    digest = told(or_null(SHA256), "Null in base images, whose package managers know none.")
    return an_object(
        {
            "customizations": told(
                {"type": "object", "propertyNames": {"enum": sorted(CUSTOMIZATIONS)}},
                "What the definition's keys say of the image beside packages, files and scripts; "
                "of files that they name, the digest.",
            ),
            "build_secrets": told(
                a_list(TEXT), "The names of what scripts and hooks could read while it was made."
            ),
            "build_certificates": told(
                a_list(an_object(file=TEXT, sha256=SHA256)),
                "Files whose certificates programs trusted while it was made.",
            ),
            "repeatable": told(
                FLAG,
                "Whether the same inputs are known to give the same bytes: from scratch, and where "
                "hooks and scripts had no network.",
            ),
            "archive": told(
                an_object(validity_checked=FLAG), "Said of Debian's archive, from scratch."
            ),
            "package_files": told(
                a_list(an_object(file=TEXT, name=TEXT, version=TEXT, sha256=SHA256)),
                "Those of the packages that are files of the definition.",
            ),
            "pinned_packages": told(a_list(TEXT), "Those whose version the definition sets."),
            "python": told(
                an_object(
                    version=TEXT,
                    wheels=a_list(an_object(name=TEXT, version=TEXT, file=TEXT, sha256=SHA256)),
                ),
                "What the virtual environment was made of, where the definition asks for one.",
            ),
            "left_out_packages": told(
                a_list(TEXT), "Those that elements prefer, and the definition's rule out."
            ),
        },
        definition=an_object(
            digest=told(or_null(SHA256), "Of all files that say what the appliance is."),
            commit=told(
                or_null(TEXT), "That of the definition's git repository; null without one."
            ),
            dirty=told(or_null(FLAG), "Whether files differ from those of the commit."),
        ),
        source=told(one_key, "The definition's source: scratch or base_image."),
        packages=a_list(an_object(name=TEXT, version=TEXT, architecture=TEXT, sha256=digest)),
        elements=a_list(an_object(of_git, name=TEXT, digest=SHA256)),
    )


def identities() -> Schema:
    """What packages drew while they were installed."""
    made = a_list(an_object(package=TEXT, files=a_list(TEXT)))
    shared = a_list(an_object(file=TEXT, what=TEXT))
    return told(
        or_null(
            an_object(
                made_at_boot=told(made, "Files that each machine makes for itself."),
                shared=told(shared, "Files that all machines share and perhaps should not."),
            )
        ),
        "Keys, ids and names that packages made while they were installed; null: not known.",
    )


def checks() -> Schema:
    """What the gate found in a build's root file system."""
    waived = an_object(
        rule=TEXT, path=TEXT, detail=TEXT, reason=told(TEXT, "The definition's, why it may be so.")
    )
    return told(
        or_null(
            an_object(
                findings=told(a_list(finding()), "What counts, errors first."),
                waived=told(a_list(waived), "What the image has on purpose."),
            )
        ),
        "What the image has that no image that others boot should have; null: not looked for.",
    )


def finding() -> Schema:
    """Something that the gate found in an image."""
    return an_object(
        rule=told(TEXT, "The rule's id."),
        severity={"enum": ["error", "warning"]},
        path=TEXT,
        detail=TEXT,
        reason=told(TEXT, "Why an image that others boot should not be so."),
        todo=told(TEXT, "How to mend it."),
    )


def image_of_site() -> dict[str, Schema]:
    """One site's image, with its boot checks."""
    return {
        "site": TEXT,
        "cloud": TEXT,
        "file": told(TEXT, "The file's name in the folder of the manifest."),
        "layout": TEXT,
        "format": TEXT,
        "compression": or_null(TEXT),
        "bytes": BYTES,
        "sha256": SHA256,
        "disk_bytes": told(BYTES, "Of the disk that is in the file."),
        "disk_sha256": SHA256,
        "boot_checks": a_list(an_object(**_boot_check())),
    }


def cluster_check() -> dict[str, Schema]:
    """What an image has where its definition asks for a cluster check."""
    guest = an_object(
        name=told(TEXT, "With a number behind it where several are alike: worker.2"),
        address=told(TEXT, "In the private network."),
        seconds=told(SECONDS, "From power-on to its report."),
        printed=told(or_null(TEXT), "The last lines of its script; null for a guest without one."),
    )
    check = an_object(
        passed={"const": True},
        accelerator={"enum": ["kvm", "tcg"]},
        seconds=told(SECONDS, "Until all guests had reported."),
        guests=a_list(guest),
        started_by_phantom=told(
            or_null(COUNT), "Machines beside these guests; null where there was no Phantom."
        ),
    )
    return {"cluster_check": check}


def _boot_check() -> dict[str, Schema]:
    return {
        "machine": TEXT,
        "passed": {"const": True},
        "accelerator": {"enum": ["kvm", "tcg"]},
        "release": TEXT,
        "kernel": TEXT,
        "firmware": TEXT,
        "addresses": a_list(TEXT),
        "failed_units": a_list(TEXT),
        "root_bytes": BYTES,
        "disk_driver": TEXT,
        "network_driver": TEXT,
        "ssh_host_keys": a_list(TEXT),
        "user_data_by": TEXT,
        "fetcher_tries": COUNT,
        "fetcher_protocol": TEXT,
        "boot_seconds": SECONDS,
        "user_data_status": or_null(COUNT),
        "check_status": or_null(COUNT),
        "user_data": told(
            or_null(by_name(TEXT)), "What came of each answer of the metadata service."
        ),
    }


def publication() -> dict[str, Schema]:
    """One image at one site."""
    return {
        "site": TEXT,
        "cloud": TEXT,
        "region": or_null(TEXT),
        "image_id": TEXT,
        "location": TEXT,
        "sha256": SHA256,
        "published_at": TIME,
        "sandbox": told(FLAG, "Whether a local server stood in for the site."),
    }
