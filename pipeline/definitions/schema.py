"""The JSON Schema of `appliance.yaml`, for our checks and for editors.

`files.py` and `appliance.py` check what needs the disk or concerns several values. Editors and our
messages show `errorMessage` when a pattern does not match.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.customizations import CUSTOMIZATIONS
from pipeline.customizations.accounts import OWNER
from pipeline.definitions.build_certificates import BUILD_CERTIFICATES
from pipeline.definitions.build_secrets import BUILD_SECRETS
from pipeline.definitions.cluster_schema import cluster_schema
from pipeline.definitions.environment import ENVIRONMENT
from pipeline.definitions.keep_schema import keep_schema
from pipeline.definitions.login import LOGIN
from pipeline.definitions.waivers import waive_schema
from pipeline.model import COMPONENTS

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFAULT_SOURCE = {"element": "phantom-debian", "release": "bookworm", "architecture": "amd64"}

_NAME_PATTERN = "^[a-z0-9][a-z0-9.-]*$"
# Debian Policy 5.6.1, 5.6.12
DEBIAN_PACKAGE_PATTERN = "^[a-z0-9][a-z0-9+.-]+(=[0-9][A-Za-z0-9.+:~-]*)?$"
# Phantom writes `name@site` and `site:max,site:max`, so a site's name must not contain @ : or ,
_SITE_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"

SITE_NAME: Schema = {
    "pattern": _SITE_PATTERN,
    "maxLength": 64,
    "errorMessage": "must be a site's name: letters, digits, '.', '_' and '-', beginning with a "
    "letter or digit",
}

# Kinds of text.
_LINE: Schema = {
    "pattern": "^[^\\n]*[^ \\n][^\\n]*$",
    "maxLength": 200,
    "errorMessage": "must be one line of text (with '>' YAML adds a line feed, with '>-' not)",
}
_PATH: Schema = {
    "pattern": "^[^/\\n][^\\n]*$",
    "errorMessage": "must be a path relative to this file's folder",
}
_ELEMENT: Schema = {
    "pattern": "^[A-Za-z0-9][A-Za-z0-9._+-]*$",
    "errorMessage": "must be the name of an element, which is its folder's name",
}
_PACKAGE: Schema = {
    "pattern": "^[A-Za-z0-9][A-Za-z0-9+._-]*$",  # of any distribution
    "errorMessage": "must be the name of a package, without a version",
}
_PINNED_PACKAGE: Schema = {
    "pattern": "^([A-Za-z0-9][A-Za-z0-9+._-]*(=[A-Za-z0-9][A-Za-z0-9.+:~^_-]*)?|\\.{1,2}/[^\\n]+)$",
    "errorMessage": "must be the name of a package, name=version, or the path of a .deb file that "
    "begins with './'",
}
_SECONDS: Schema = {"minimum": 1, "maximum": 86400}


def make_appliance_schema(clouds: Iterable[str]) -> Schema:
    """The schema of `appliance.yaml` for these clouds."""
    known = sorted(clouds)
    return {
        "$schema": DIALECT,
        "title": "An appliance: what an image holds, and how clouds start it",
        "description": "images/<name>/appliance.yaml. Relative paths start at this file's folder.",
        "type": "object",
        "required": ["name", "version", "summary"],
        "additionalProperties": False,
        "properties": _names() | _contents() | _customizations() | _machine() | _uses(known),
    }


def _names() -> dict[str, Schema]:
    return {
        "extends": _text(
            "The definition that this one extends: an appliance's name, or a path that contains "
            "'/' or ends in '.yaml'. Mappings are merged, lists are appended without repeats, "
            "everything else is replaced; of two 'files' entries with the same target this file's "
            "wins. name, version and summary are never inherited.",
            ["hello-phantom", "../common/base.yaml"],
            minLength=1,
        ),
        "name": _text(
            "The appliance's name; in appliance.yaml it must be the folder's.",
            ["hello-phantom"],
            pattern=_NAME_PATTERN,
            maxLength=64,
            errorMessage="must be lower-case letters, digits, '.' and '-', beginning with a "
            "letter or digit",
        ),
        "version": _text(
            "The appliance's version, always in quotes: YAML reads 1.10 as the number 1.1.",
            ["1.0", "2026.1"],
            pattern="^[0-9A-Za-z][0-9A-Za-z._-]*$",
            maxLength=32,
            errorMessage="must be letters, digits, '.', '_' and '-', beginning with a letter "
            "or digit",
        ),
        "summary": _text("What the appliance is.", ["Debian 12 that says hello"], **_LINE),
    }


def _contents() -> dict[str, Schema]:
    return {
        "source": _source_schema(),
        "elements": _list(
            "Elements of diskimage-builder beside the operating-system element: ours, its own, or "
            "those in the folders of ELEMENTS_PATH.",
            _text("An element's name.", ["phantom-user-data"], **_ELEMENT),
            ["phantom-user-data", "phantom-grow-root"],
        ),
        "packages": _list(
            "Packages to install beside those of the elements: Debian's, in a base image its "
            "distribution's, or files.",
            _text(
                "A package's exact name; with =version, no other version will do. Or a .deb file, "
                "by its path from this file's folder, which begins with './'.",
                ["nginx-light", "rsync=3.2.7-1+deb12u2", "./mytool.deb"],
                **_PINNED_PACKAGE,
            ),
            ["nginx-light", "rsync=3.2.7-1+deb12u2", "./mytool.deb"],
        ),
        "without_packages": _list(
            "Packages that the image is not to have, whoever asks for them: an element, a "
            "definition that this one extends, or the base image.",
            _text("A package's exact name.", ["systemd-timesyncd"], **_PACKAGE),
            ["systemd-timesyncd"],
        ),
        "files": _files_schema(),
        "scripts": _list(
            "Programs in the definition's folder that run in the image, as root and in this order, "
            "after packages and files were added. Each starts with '#!'.",
            _text("A script's path, relative to this file's folder.", ["make-cache.sh"], **_PATH),
            ["make-cache.sh"],
        ),
        "environment": ENVIRONMENT,
        "build_certificates": BUILD_CERTIFICATES,
        "build_secrets": BUILD_SECRETS,
    }


def _customizations() -> dict[str, Schema]:
    return {key: each.schema for key, each in CUSTOMIZATIONS.items()}


def _machine() -> dict[str, Schema]:
    return {
        "disk_size": _size("The size of the disk."),
        "user_data": _mapping(
            "How the machine runs its user-data.",
            {
                "frequency": choice(
                    "Run user-data at each boot, or once per instance.",
                    ["boot", "instance"],
                    default="boot",
                ),
                "runner": choice(
                    "What runs user-data in images with cloud-init, on clouds where "
                    "cloud-init works: cloud-init, or the user-data fetcher, which turns "
                    "cloud-init off.",
                    ["cloud-init", "fetcher"],
                    default="cloud-init",
                ),
            },
        ),
        "login": LOGIN,
        "kernel": choice(
            "The kernel's flavour; a base image keeps its own kernel. generic has drivers for all "
            "hardware, cloud only for the virtual hardware of the big clouds, not for Nimbus's; "
            "auto is the smaller one if it serves all sites of the run.",
            ["generic", "cloud", "auto"],
            default="generic",
        ),
    }


def _uses(clouds: list[str]) -> dict[str, Schema]:
    return {
        "clouds": _mapping(
            "What differs on one cloud.", {cloud: _override_schema() for cloud in clouds}
        ),
        "boot_check": _mapping(
            "How to check a booted image before it is published.",
            {
                "script": _text(
                    "A script that runs in the guest, as root, after the default user-data; exit "
                    "status 0 means success.",
                    ["check.sh"],
                    **_PATH,
                ),
                "seconds": _integer(
                    "The time limit from power-on to the guest's report. The default depends on "
                    "the build host.",
                    [600],
                    **_SECONDS,
                ),
                "cluster": cluster_schema(),
            },
        ),
        "phantom": _phantom_schema(clouds),
        "keep": keep_schema(),
        "waive": waive_schema(),
        "labels": {
            "description": "Your own labels for the catalog.",
            "type": "object",
            "propertyNames": {
                "pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]*$",
                "maxLength": 64,
                "errorMessage": "must be letters, digits, '.', '_', '/' and '-'",
            },
            "additionalProperties": _text("The label's value.", ["debian"], **_LINE),
            "examples": [{"os": "debian", "purpose": "example"}],
        },
    }


def _source_schema() -> Schema:
    scratch = _mapping(
        "From packages, by diskimage-builder.",
        {
            "element": _text(
                "The operating-system element.",
                [DEFAULT_SOURCE["element"]],
                default=DEFAULT_SOURCE["element"],
                **_ELEMENT,
            ),
            "release": _text(
                "The code name of a release that the element supports.",
                ["bullseye", "bookworm", "trixie", "forky", "sid"],
                pattern="^[a-z0-9][a-z0-9.-]*$",
                default=DEFAULT_SOURCE["release"],
                errorMessage="must be a release's code name, such as bookworm",
            ),
            "architecture": _text(
                "Debian's name for the architecture.",
                [DEFAULT_SOURCE["architecture"]],
                pattern="^[a-z0-9][a-z0-9-]*$",
                default=DEFAULT_SOURCE["architecture"],
                errorMessage="must be Debian's name of an architecture, such as amd64",
            ),
            "components": {
                "description": "The components of Debian's archive that packages may come from, "
                "beside main.",
                "type": "array",
                "uniqueItems": True,
                "items": {
                    "description": "A component.",
                    "enum": list(COMPONENTS[1:]),
                    "examples": ["contrib"],
                },
                "examples": [["contrib", "non-free"]],
            },
            "network": flag(
                "Whether elements' hooks and scripts have network access. What they fetch is not "
                "known to be the same in each build."
            ),
        },
    )
    return _mapping(
        "Where the root file system comes from: one of these.",
        {"scratch": scratch, "base_image": _base_image_schema()},
    ) | {"minProperties": 1, "maxProperties": 1, "examples": [{"scratch": DEFAULT_SOURCE}]}


def _base_image_schema() -> Schema:
    return _mapping(
        "From an existing image, which libguestfs changes.",
        {
            "location": _location_schema(),
            "sha256": _text(
                "The digest of the fetched file; required with a URL. `phantom-image pin` writes "
                "it.",
                ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
                pattern="^[0-9a-f]{64}$",
                errorMessage="must be 64 hexadecimal digits in lower case",
            ),
            "format": choice(
                "The image's format; an image of another format is refused.",
                ["raw", "qcow2", "vmdk", "vhd", "vdi"],
            ),
            "network": flag("Whether package managers and scripts have network access."),
            "remove_packages": _list(
                "Packages to remove from the image.",
                _text("A package's name.", ["snapd"], **_PACKAGE),
                ["snapd"],
            ),
            "script_seconds": _integer(
                "The time limit of each script.", [600], **_SECONDS, default=3600
            ),
        },
    ) | {"required": ["location"]}


def _location_schema() -> Schema:
    return {
        "description": "The image: a file, relative to this file's folder or absolute; a URL "
        "(http, https, s3), with sha256; or a build of another appliance.",
        "type": ["string", "object"],
        "minLength": 1,
        "required": ["appliance"],
        "additionalProperties": False,
        "properties": {
            "appliance": _text(
                "Another appliance, built on this host.",
                ["hello-phantom"],
                pattern=_NAME_PATTERN,
                maxLength=64,
                errorMessage="must be the name of an appliance",
            ),
            "build": _text(
                "Its build: twelve digits, as in its manifest, or latest.",
                ["latest", "13951b764f17"],
                pattern="^(latest|[0-9a-f]{12})$",
                default="latest",
                errorMessage="must be 'latest' or the twelve digits of a build",
            ),
        },
        "examples": ["base.qcow2", {"appliance": "hello-phantom"}],
    }


def _files_schema() -> Schema:
    entry = _mapping(
        "A file, or a folder with its content.",
        {
            "from": _text(
                "A file, or a folder with all below it; relative to this file's folder. It must "
                "lie in that folder or in the folder of all definitions. Links in a folder stay "
                "links, and lead to what the image has there.",
                ["motd", "root/"],
                **_PATH,
            ),
            "to": _text(
                "The absolute path of the file or folder in the image. A file goes into the folder "
                "that a path with '/' at its end names.",
                ["/etc/motd", "/usr/local/bin/", "/"],
                pattern="^/([^/\\n]+(/[^/\\n]+)*/?)?$",
                errorMessage="must be an absolute path",
            ),
            "content": {
                "description": "The file's content, in place of 'from'.",
                "type": "string",
                "maxLength": 65536,
                "examples": ["Welcome\n"],
            },
            **OWNER,
            "mode": _text(
                "The files' mode, in quotes. The default is 0755 for files that their owner may "
                "execute, else 0644.",
                ["0644", "0755"],
                pattern="^(0[0-7]{3}|0?[0-7]{4})$",
                errorMessage="must be an octal mode such as '0644'",
            ),
        },
    )
    return {
        "description": "Files to copy from the definition's folder into the image, or to write.",
        "type": "array",
        "items": entry | {"required": ["to"]},
        "examples": [[{"from": "motd", "to": "/etc/motd", "mode": "0644"}]],
    }


def _override_schema() -> Schema:
    return _mapping(
        "What differs on this cloud.",
        {
            "disk_size": _size("The size of the disk on this cloud."),
            "image_name": _text(
                "The image's name on this cloud; {name}, {version}, {build} and {layout} are "
                "filled in. A name without {layout} gets the layout at its end where that is not "
                "the cloud's usual one.",
                ["{name}-{version}-{build}"],
                **_LINE,
            ),
        },
    )


def _phantom_schema(clouds: list[str]) -> Schema:
    return _mapping(
        "What Phantom's launch configuration contains beside the image.",
        {
            "instance_type": _mapping(
                "The instance type, by cloud.",
                {
                    cloud: _text("The cloud's name of it.", ["m1.small"], **_LINE)
                    for cloud in clouds
                },
            ),
            "max_vms": _limit_schema(
                "The largest number of machines on each site; -1 means no limit. Phantom leaves a "
                "site only when it has as many: after a site without a limit no other is used.",
                default=-1,
            ),
            "rank": _integer(
                "The rank of the site that Phantom fills first; each further site has the next "
                "rank, in the order of sites.yaml unless `sites` gives another one.",
                [1],
                minimum=1,
                default=1,
            ),
            "sites": {
                "description": "What differs on single sites, by their names in sites.yaml.",
                "type": "object",
                "propertyNames": SITE_NAME,
                "additionalProperties": _mapping(
                    "What differs on this site.",
                    {
                        "rank": _integer(
                            "Where Phantom puts the site among those that have a rank here; 1 "
                            "comes first, and sites without one come last.",
                            [1],
                            minimum=1,
                        ),
                        "max_vms": _limit_schema(
                            "The largest number of machines on this site; -1 means no limit."
                        ),
                    },
                ),
                "examples": [{"hotel": {"rank": 1, "max_vms": 20}, "sierra": {"rank": 2}}],
            },
            "user_data": _text(
                "The default user-data: a file in the definition's folder, ASCII text of at most "
                "1,024 characters.",
                ["user-data.sh"],
                **_PATH,
            ),
        },
    )


def _limit_schema(description: str, **more: object) -> Schema:
    return _integer(
        description,
        [-1, 20],
        anyOf=[{"const": -1}, {"minimum": 1}],
        errorMessage="must be -1 (no limit) or at least 1",
        **more,
    )


def _text(description: str, examples: list[str], **more: object) -> Schema:
    return {"description": description, "type": "string", "examples": examples, **more}


def _size(description: str) -> Schema:
    return _text(
        description + " From 1MiB to 2TiB: MiB, GiB and TiB are units of 1,024, MB, GB and TB of "
        "1,000.",
        ["2GiB", "512MiB", "20GB"],
        pattern="^[0-9]{1,9} ?(MiB|GiB|TiB|MB|GB|TB)$",
        errorMessage="must be a number and MiB, GiB or TiB, such as 2GiB",
    )


def choice(description: str, words: list[str], **more: object) -> Schema:
    """A text that is one of a few words."""
    return _text(description, words, enum=words, **more)


def _integer(description: str, examples: list[int], **more: object) -> Schema:
    return {"description": description, "type": "integer", **more, "examples": examples}


def flag(description: str) -> Schema:
    """True or false, by default false."""
    return {"description": description, "type": "boolean", "default": False, "examples": [True]}


def _list(description: str, items: Schema, example: list[str]) -> Schema:
    return {
        "description": description,
        "type": "array",
        "items": items,
        "uniqueItems": True,
        "examples": [example],
    }


def _mapping(description: str, properties: dict[str, Schema]) -> Schema:
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
