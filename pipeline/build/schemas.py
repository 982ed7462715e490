"""JSON Schemas (draft 2020-12) of what commands print for programs.

Later versions may add keys; they change none and take none away. The manifest's schema is strict:
any change of its keys is a new `schema` number.
"""

from __future__ import annotations

from pipeline.build.differences import PARTS
from pipeline.build.manifest_schema import (
    checks,
    cluster_check,
    finding,
    identities,
    image_of_site,
    manifest_schema,
    publication,
)
from pipeline.build.schema_terms import (
    BUILD,
    BYTES,
    COUNT,
    DRAFT,
    FLAG,
    SECONDS,
    SHA256,
    TEXT,
    TIME,
    Schema,
    a_list,
    an_object,
    or_null,
    told,
    whole,
)
from pipeline.definitions.tracker import SEVERITIES


def output_schemas() -> dict[str, Schema]:
    """The schemas by their names on the command line."""
    return {
        "manifest": manifest_schema(),
        "plan": whole("What a build will do: `plan --json`", **_plan()),
        "image": whole("What a build has done: `image --json` and `build --json`", **_image()),
        "part": whole(
            "Some stages of a build: `build --json` with `--stop-after` or `--no-boot`", **_part()
        ),
        "list": {
            "$schema": DRAFT,
            "title": "The builds on this host, or the images at sites: `list --json`",
            **a_list({"anyOf": [an_object(**_build_row()), an_object(**_image_row())]}),
        },
        "validation": {
            "$schema": DRAFT,
            "title": "What is wrong with manifests: `manifest validate --json`",
            **a_list(_validation()),
        },
        "verification": whole("Whether a build is as signed: `verify --json`", **_verification()),
        "vulnerabilities": {
            "$schema": DRAFT,
            "title": "What is known to be open in a build: `vulnerabilities --json`",
            **a_list(_vulnerability()),
        },
        "changes": whole("What differs between builds or images: `diff --json`", **_changes()),
        "check": whole("What an image file should not have: `check FILE --json`", **_check()),
        "reproduce": whole(
            "A build made once more, and compared: `reproduce --json`", **_reproduce()
        ),
        "prune": whole("Which builds stay, and why: `prune --json`", **_prune()),
        "launch-config": whole(
            "What a Phantom was sent: `launch-config --json`", **_launch_config()
        ),
        "domain": {
            "$schema": DRAFT,
            "title": "A Phantom's domains, one of them, or what was done: `domain --json`",
            "anyOf": [a_list(_domain()), _domain(), an_object(**_domain_change())],
        },
        "launch": whole("Machines that a cloud was to start: `launch --json`", **_launch()),
        "diff": whole("What differs between manifests: `manifest diff --json`", **_diff()),
    }


def _check() -> dict[str, Schema]:
    return {
        "file": TEXT,
        "rules": told(COUNT, "How many there are."),
        "errors": COUNT,
        "warnings": COUNT,
        "findings": told(a_list(finding()), "Errors first."),
    }


def _validation() -> Schema:
    return an_object(
        {"todo": told(TEXT, "What to do, where there are faults.")},
        file=TEXT,
        schema=told(or_null({"type": "integer"}), "Null where the file says none."),
        valid=FLAG,
        faults=a_list(TEXT),
    )


def _vulnerability() -> Schema:
    fixed = told(or_null(TEXT), "The version with the correction; null: there is none yet.")
    severity = told({"enum": list(SEVERITIES)}, "unknown: nobody has judged it.")
    return an_object(
        source=TEXT, version=TEXT, issue=TEXT, severity=severity, fixed=fixed, packages=a_list(TEXT)
    )


def _verification() -> dict[str, Schema]:
    check = an_object(
        of=told(TEXT, "The document, the file, or the site's image."),
        passed=FLAG,
        said=told(TEXT, "What came of it, for people."),
        error=told(or_null(TEXT), "The kind of the failure."),
    )
    return {"manifest": TEXT, "verified": FLAG, "checks": a_list(check)}


def _diff() -> dict[str, Schema]:
    build = an_object(name=TEXT, version=TEXT, build=TEXT)
    nothing = "Null where it was not there, or is null."
    change = an_object(name=TEXT, before=told({}, nothing), after=told({}, nothing))
    return {
        "before": build,
        "after": build,
        "same": FLAG,
        "changes": told(an_object(**dict.fromkeys(PARTS, a_list(change))), "By part."),
    }


def _launch_config() -> dict[str, Schema]:
    return {
        "phantom": told(TEXT, "Its name in sites.yaml."),
        "url": TEXT,
        "appliance": TEXT,
        "build": BUILD,
        "launch_configuration": TEXT,
        "dry_run": told(FLAG, "Whether nothing was sent."),
        "user_data_changes": told(FLAG, "At all sites that Phantom has already."),
        "domains": told(a_list(TEXT), "Those that use the launch configuration."),
        "sites": a_list(
            an_object(
                site=TEXT,
                name=told(TEXT, "name@site"),
                action={"enum": ["create", "replace", "unchanged", "keep"]},
                image_id=TEXT,
                instance_type=TEXT,
                changes=told(a_list(TEXT), "What differs from what Phantom had."),
            )
        ),
    }


def _domain() -> Schema:
    return an_object(
        name=TEXT,
        launch_configuration=told(TEXT, "Without @site."),
        size=told(COUNT, "How many machines it is to have."),
        clouds=told(
            or_null(a_list(an_object(site=TEXT, max_vms=told(COUNT, "-1: no limit.")))),
            "In the order in which they are filled; null where Phantom does not tell.",
        ),
        machines=told(
            or_null(a_list(an_object(id=TEXT, site=TEXT, state=TEXT))),
            "Null in a list by the web API.",
        ),
    )


def _domain_change() -> dict[str, Schema]:
    return {
        "action": {"enum": ["create", "resize", "delete", "unchanged"]},
        "domain": told(or_null(_domain()), "As it is now; null where there is none."),
    }


def _launch() -> dict[str, Schema]:
    return {
        "site": TEXT,
        "region": or_null(TEXT),
        "sandbox": told(FLAG, "Whether an emulator started them, which ended with the command."),
        "appliance": TEXT,
        "build": BUILD,
        "count": COUNT,
        "dry_run": told(FLAG, "Whether nothing was started."),
        "launch_template": an_object(name=TEXT, action={"enum": ["create", "change", "reuse"]}),
        "machines": a_list(an_object(id=TEXT, state=TEXT)),
    }


def _prune() -> dict[str, Schema]:
    return {
        "removed": told(FLAG, "Whether builds were removed, or would be."),
        "freed_bytes": BYTES,
        "retired": a_list(
            an_object(
                appliance=TEXT,
                build=TEXT,
                site=TEXT,
                image_id=TEXT,
                error=told(or_null(TEXT), "Why the site still has it."),
            )
        ),
        "builds": a_list(
            an_object(
                appliance=TEXT,
                build=TEXT,
                keep=FLAG,
                reason=TEXT,
                artifacts=told(a_list(TEXT), "Of a build that goes, what the store has of it."),
            )
        ),
    }


def _changes() -> dict[str, Schema]:
    number, text = or_null({"type": "number"}), or_null(TEXT)
    package = an_object(name=TEXT, version=TEXT)
    side = an_object(
        name=told(TEXT, "APPLIANCE/BUILD, or the file."),
        version=text,
        definition=told(text, "The definition's digest."),
        commit=text,
        root_bytes=told(BYTES, "Of the root file system."),
        used_bytes=told(BYTES, "Of them, those that are not free."),
        kernels=a_list(TEXT),
    )
    entry = an_object(
        kind={"enum": ["file", "folder", "link", "device", "pipe", "socket", "unknown"]},
        mode=told(COUNT, "Permissions, and the bits above them."),
        uid=COUNT,
        gid=COUNT,
        size=told(BYTES, "0 for a folder."),
        target=told(text, "Of a link."),
    )
    return {
        "old": side,
        "new": side,
        "packages": an_object(
            added=a_list(package),
            removed=a_list(package),
            changed=a_list(
                an_object(
                    name=TEXT,
                    old=TEXT,
                    new=TEXT,
                    changelog=told(
                        a_list(TEXT), "Its lines between the versions, where the image has them."
                    ),
                )
            ),
        ),
        "files": a_list(
            an_object(
                path=TEXT,
                old=or_null(entry),
                new=or_null(entry),
                content=told(FLAG, "Whether the contents of a file of both differ."),
            )
        ),
        "units": told(
            an_object(added=a_list(TEXT), removed=a_list(TEXT)),
            "Of systemd, that boots start from now on, or no more.",
        ),
        "boots": a_list(
            an_object(
                site=TEXT,
                machine=TEXT,
                boot_seconds=an_object(old=number, new=number),
                kernel=an_object(old=text, new=text),
                accelerator=an_object(old=text, new=text),
            )
        ),
    }


def _plan() -> dict[str, Schema]:
    return {
        "appliance": TEXT,
        "base_image": told(or_null(TEXT), "The file of the base image that it starts from."),
        "stages": a_list(
            an_object(
                stage=TEXT,
                key=told(SHA256, "What would be built."),
                action={"enum": ["reuse", "build", "skip"]},
                reasons=told(a_list(TEXT), "Why, with digests."),
            )
        ),
        "publications": a_list(an_object(**_prospect())),
        "warnings": a_list(TEXT),
    }


def _prospect() -> dict[str, Schema]:
    return {
        "site": TEXT,
        "cloud": TEXT,
        "sandbox": FLAG,
        "image_name": told(TEXT, "With <build> in it where that is not known yet."),
        "file": told(TEXT, "The file's name in the build's folder."),
        "action": {"enum": ["reuse", "copy", "send", "refuse", "unknown"]},
        "bytes": told(or_null(BYTES), "To be sent, at most; null where that is not known."),
        "detail": TEXT,
        "credentials": told(or_null(TEXT), "Where they come from; null where there are none."),
    }


def _image() -> dict[str, Schema]:
    return {
        "appliance": TEXT,
        "build": BUILD,
        "manifest": told(TEXT, "The manifest's path; the images lie in its folder."),
        "stages": a_list(an_object(**_stage_made())),
        "images": a_list(an_object(cluster_check(), **image_of_site())),
        "publications": a_list(an_object(**publication())),
        "identities": identities(),
        "checks": checks(),
    }


def _part() -> dict[str, Schema]:
    return {
        "appliance": TEXT,
        "stages": a_list(an_object(**_stage_made())),
        "artifacts": told(
            a_list(
                an_object(
                    stage=TEXT,
                    key=SHA256,
                    files=told(a_list(TEXT), "Paths in the store, which `gc` may evict."),
                )
            ),
            "Of the stages that were asked for.",
        ),
        "checks": checks(),
    }


def _reproduce() -> dict[str, Schema]:
    digest = an_object(
        what={"enum": ["root file system", "disk", "image"]},
        site=told(or_null(TEXT), "Null for the root file system, which all sites share."),
        expected=told(SHA256, "That of the manifest."),
        found=SHA256,
        same=FLAG,
    )
    return {
        "build": told(TEXT, "APPLIANCE/BUILD"),
        "reproduced": told(FLAG, "Whether every digest is the same."),
        "digests": a_list(digest),
        "difference": told(
            or_null(an_object(path=TEXT, lines=a_list(TEXT))),
            "The first file that differs, and how; null where there is none, or the old root file "
            "system is gone.",
        ),
        "reasons": told(a_list(TEXT), "What else than the inputs is not as it was."),
    }


def _stage_made() -> dict[str, Schema]:
    return {"stage": TEXT, "reused": FLAG, "seconds": SECONDS}


def _build_row() -> dict[str, Schema]:
    return {
        "appliance": TEXT,
        "version": TEXT,
        "build": BUILD,
        "date": told(TIME, "When its manifest was last written."),
        "bytes": told(BYTES, "Of all its images."),
        "latest": FLAG,
        "sites": a_list(TEXT),
    }


def _image_row() -> dict[str, Schema]:
    return {"site": TEXT, "image_id": TEXT, "location": TEXT}
