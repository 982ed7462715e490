"""The JSON Schemas of `appliance.yaml` and `sites.yaml`, for our own checks and for editors.

They say what a schema can say. What needs the disk, or more than one value, is `definition.py`'s.
`errorMessage` is the phrase that editors and we tell when a pattern does not match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFAULT_SOURCE = {"element": "phantom-debian", "release": "bookworm", "architecture": "amd64"}

BASE_FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vdi")

NAME_PATTERN = "^[a-z0-9][a-z0-9.-]*$"
DEBIAN_PACKAGE_PATTERN = "^[a-z0-9][a-z0-9+.-]+$"  # Debian Policy 5.6.1
PACKAGE_PATTERN = "^[A-Za-z0-9][A-Za-z0-9+._-]*$"  # of other distributions too
_ELEMENT_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._+-]*$"
# Phantom writes `name@site` and `site:max,site:max`: a site's name can hold none of these marks.
_SITE_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"


def make_appliance_schema(clouds: Iterable[str]) -> Schema:
    """The schema of `appliance.yaml`, for these clouds."""
    known = sorted(clouds)
    return {
        "$schema": DIALECT,
        "title": "An appliance: what an image holds, and how clouds start it",
        "description": "images/<name>/appliance.yaml. Relative paths start at this file's folder.",
        "type": "object",
        "required": ["name", "version", "summary"],
        "additionalProperties": False,
        "properties": {
            "extends": _text(
                "Another definition that this one adds to: the name of an appliance, or a path "
                "that holds '/' or ends in '.yaml'. Mappings are merged, lists are appended "
                "without repeats, everything else is replaced; of two 'files' entries with one "
                "target the one here wins. name, version and summary are never inherited.",
                ["hello-phantom", "../common/base.yaml"],
                minLength=1,
            ),
            "name": _text(
                "The appliance's name. In a file called appliance.yaml it is the folder's name.",
                ["hello-phantom"],
                pattern=NAME_PATTERN,
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
            "summary": _line("What the appliance is, in one line.", ["Debian 12 that says hello"]),
            "source": _source_schema(),
            "elements": _list(
                "Elements of diskimage-builder beside the operating-system element: ours, its own, "
                "or those of the folders in ELEMENTS_PATH.",
                _text(
                    "An element's name.",
                    ["phantom-user-data"],
                    pattern=_ELEMENT_PATTERN,
                    errorMessage="must be the name of an element, which is its folder's name",
                ),
                [["phantom-user-data", "phantom-grow-root"]],
            ),
            "packages": _list(
                "Packages to install beside those that the elements ask for: Debian's, or in a "
                "base image those of its distribution.",
                _text(
                    "A package's name, without a version.",
                    ["nginx-light"],
                    pattern=PACKAGE_PATTERN,
                    errorMessage="must be the name of a package, without a version",
                ),
                [["nginx-light", "rsync"]],
            ),
            "files": _files_schema(),
            "scripts": _list(
                "Programs of the definition's folder that are run in the image, as root and in "
                "this order, after packages and files are in it. Each begins with '#!'.",
                _path("A script's path, relative to this file's folder.", ["make-cache.sh"]),
                [["make-cache.sh"]],
            ),
            "disk_size": _size("The size of the disk."),
            "user_data": _mapping(
                "What the machine does with its user-data.",
                {
                    "frequency": _choice(
                        "Run it at each boot, or once per instance.",
                        ["boot", "instance"],
                        default="boot",
                    ),
                    "runner": _choice(
                        "Who runs it on clouds where cloud-init works, in base images that have "
                        "cloud-init: cloud-init, as everywhere else, or the user-data fetcher, "
                        "with cloud-init off.",
                        ["cloud-init", "fetcher"],
                        default="cloud-init",
                    ),
                },
            ),
            "kernel": _choice(
                "The kernel's flavour, from scratch; a base image has its own. generic has the "
                "drivers of all hardware, cloud those of the big clouds' virtual hardware only, "
                "which Nimbus does not have; auto takes the smaller one if it serves all sites of "
                "the run.",
                ["generic", "cloud", "auto"],
                default="generic",
            ),
            "clouds": _mapping(
                "What is otherwise on one cloud.", {cloud: _override_schema() for cloud in known}
            ),
            "boot_check": _mapping(
                "How the appliance proves that it came up, before it is published.",
                {
                    "script": _path(
                        "A script of the definition's folder that runs in the guest, as root, "
                        "after the default user-data ran; exit status 0 means that all is well.",
                        ["check.sh"],
                    ),
                    "seconds": {
                        "description": "Time limit from power-on to the guest's report. Without "
                        "it the limit fits the build host.",
                        "type": "integer",
                        "minimum": 1,
                        "maximum": 86400,
                        "examples": [600],
                    },
                },
            ),
            "phantom": _phantom_schema(known),
            "labels": {
                "description": "Words of your own for the catalog.",
                "type": "object",
                "propertyNames": {
                    "pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]*$",
                    "maxLength": 64,
                    "errorMessage": "must be letters, digits, '.', '_', '/' and '-'",
                },
                "additionalProperties": _line("What the label says.", ["debian"]),
                "examples": [{"os": "debian", "purpose": "example"}],
            },
        },
    }


def make_site_schema(cloud: str, options: Mapping[str, Any], *, sandbox: bool) -> Schema:
    """The schema of one site's mapping in `sites.yaml`, made from the options of its cloud.

    A sandbox stands in for a site, so what the cloud demands of one may be left out there.
    """
    schema = {key: value for key, value in options.items() if key not in ("$schema", "title")}
    required = [] if sandbox else list(options.get("required", []))
    return schema | {
        "type": "object",
        "required": ["cloud", *required],
        "additionalProperties": False,
        "properties": {
            "cloud": _choice("The type of the site's cloud.", [cloud]),
            "sandbox": _sandbox_schema(),
            **options.get("properties", {}),
        },
    }


def make_sites_check(clouds: Iterable[str]) -> Schema:
    """What all sites have in common; the options of each are checked by its cloud's schema."""
    return {
        "type": "object",
        "required": ["sites"],
        "additionalProperties": False,
        "properties": {
            "sites": {
                "type": "object",
                "propertyNames": {
                    "pattern": _SITE_PATTERN,
                    "maxLength": 64,
                    "errorMessage": "must be a site's name: letters, digits, '.', '_' and '-', "
                    "beginning with a letter or digit",
                },
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "cloud": {"type": "string", "enum": sorted(clouds)},
                        "sandbox": {"type": "boolean"},
                    },
                },
            }
        },
    }


def make_cloudless_check(clouds: Iterable[Mapping[str, Any]]) -> Schema:
    """What is wrong with a site that names no cloud: that, and keys that no cloud knows."""
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
    is_sandbox = {"properties": {"sandbox": {"const": True}}, "required": ["sandbox"]}
    site["description"] = "A place to publish to."
    site["required"] = ["cloud"]
    site["properties"] = {
        "cloud": _choice("The type of the site's cloud.", sorted(clouds)),
        "sandbox": _sandbox_schema(),
    }
    site["allOf"] = [
        {
            "if": {"properties": {"cloud": {"const": cloud}}, "required": ["cloud"]},
            "then": {
                "if": is_sandbox,
                "then": make_site_schema(cloud, options, sandbox=True),
                "else": make_site_schema(cloud, options, sandbox=False),
            },
        }
        for cloud, options in sorted(clouds.items())
    ]
    sites["description"] = (
        "The sites by name; the name is the one that Phantom knows the site by. The built-in sites "
        "nimbus-sandbox and ec2-sandbox are there beside them unless they are defined here."
    )
    sites["examples"] = [{"nimbus-sandbox": {"cloud": "nimbus", "sandbox": True}}]
    return {"$schema": DIALECT, "title": "The sites that images are published to", **schema} | {
        "description": "sites.yaml. It names credentials by reference and holds none."
    }


def _source_schema() -> Schema:
    scratch = _mapping(
        "From packages, by diskimage-builder.",
        {
            "element": _text(
                "The operating-system element.",
                [DEFAULT_SOURCE["element"]],
                pattern=_ELEMENT_PATTERN,
                default=DEFAULT_SOURCE["element"],
                errorMessage="must be the name of an element, which is its folder's name",
            ),
            "release": _text(
                "The release's code name; the element knows which there are.",
                ["bookworm", "trixie"],
                pattern="^[a-z0-9][a-z0-9.-]*$",
                default=DEFAULT_SOURCE["release"],
                errorMessage="must be a release's code name, such as bookworm",
            ),
            "architecture": _text(
                "Debian's name of the architecture.",
                [DEFAULT_SOURCE["architecture"]],
                pattern="^[a-z0-9][a-z0-9-]*$",
                default=DEFAULT_SOURCE["architecture"],
                errorMessage="must be Debian's name of an architecture, such as amd64",
            ),
        },
    )
    return _mapping(
        "Where the root file system comes from; one kind of source.",
        {"scratch": scratch, "base_image": _base_image_schema()},
    ) | {"minProperties": 1, "maxProperties": 1, "examples": [{"scratch": DEFAULT_SOURCE}]}


def _base_image_schema() -> Schema:
    location: Schema = {
        "description": "The image: a file, relative to this file's folder or absolute; a URL "
        "(http, https, s3), with sha256; or another appliance of the tree, by name and build.",
        "type": ["string", "object"],
        "minLength": 1,
        "required": ["appliance"],
        "additionalProperties": False,
        "properties": {
            "appliance": _text(
                "An appliance of this tree, which was built on this host.",
                ["hello-phantom"],
                pattern=NAME_PATTERN,
                maxLength=64,
                errorMessage="must be the name of an appliance",
            ),
            "build": _text(
                "Its build: the twelve digits that the manifest tells, or latest.",
                ["latest", "13951b764f17"],
                pattern="^(latest|[0-9a-f]{12})$",
                default="latest",
                errorMessage="must be 'latest' or the twelve digits of a build",
            ),
        },
        "examples": ["base.qcow2", {"appliance": "hello-phantom"}],
    }
    return _mapping(
        "From an image that exists, changed by libguestfs.",
        {
            "location": location,
            "sha256": _text(
                "The digest of the file as it is fetched. Required of a URL; `phantom-image pin` "
                "writes it.",
                ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
                pattern="^[0-9a-f]{64}$",
                errorMessage="must be 64 hexadecimal digits in lower case",
            ),
            "format": _choice(
                "The image's format, for one that does not tell it itself; another one is refused.",
                list(BASE_FORMATS),
            ),
            "network": {
                "description": "Whether packages and scripts reach the network while the image is "
                "changed.",
                "type": "boolean",
                "default": False,
                "examples": [True],
            },
            "remove_packages": _list(
                "Packages of the image to remove.",
                _text(
                    "A package's name.",
                    ["snapd"],
                    pattern=PACKAGE_PATTERN,
                    errorMessage="must be the name of a package, without a version",
                ),
                [["snapd"]],
            ),
            "script_seconds": {
                "description": "How long each script may run.",
                "type": "integer",
                "minimum": 1,
                "maximum": 86400,
                "default": 3600,
                "examples": [600],
            },
        },
    ) | {"required": ["location"]}


def _files_schema() -> Schema:
    entry = _mapping(
        "A file, or a folder with all that is in it.",
        {
            "from": _path(
                "A file or folder, relative to this file's folder. Of a folder each file is "
                "copied, those in folders below it too.",
                ["motd", "root/"],
            ),
            "to": _text(
                "Where it lands in the image: the file's own path, or the path of the folder.",
                ["/etc/motd", "/"],
                pattern="^/([^/\\n]+(/[^/\\n]+)*)?$",
                errorMessage="must be an absolute path, without '/' at its end",
            ),
            "mode": _text(
                "The files' mode, in quotes. Without it a file that its owner may execute gets "
                "0755 and any other 0644.",
                ["0644", "0755"],
                pattern="^(0[0-7]{3}|0?[0-7]{4})$",
                errorMessage="must be an octal mode such as '0644'",
            ),
        },
    )
    return {
        "description": "Files of the definition's folder that land in the image, owned by root.",
        "type": "array",
        "items": entry | {"required": ["from", "to"]},
        "examples": [[{"from": "motd", "to": "/etc/motd", "mode": "0644"}]],
    }


def _override_schema() -> Schema:
    return _mapping(
        "What is otherwise on this cloud.",
        {
            "disk_size": _size("The size of the disk on this cloud."),
            "image_name": _line(
                "The image's name on this cloud; {name}, {version} and {build} are filled in.",
                ["{name}-{version}-{build}"],
            ),
        },
    )


def _phantom_schema(clouds: list[str]) -> Schema:
    return _mapping(
        "What Phantom's launch configuration says beside the image.",
        {
            "instance_type": _mapping(
                "The size of machine, by cloud.",
                {cloud: _line("As this cloud names it.", ["m1.small"]) for cloud in clouds},
            ),
            "max_vms": {
                "description": "The most machines on a site; -1 means no limit.",
                "type": "integer",
                "anyOf": [{"const": -1}, {"minimum": 1}],
                "errorMessage": "must be -1 (no limit) or at least 1",
                "default": -1,
                "examples": [-1, 20],
            },
            "rank": {
                "description": "The order in which Phantom fills sites; 1 comes first.",
                "type": "integer",
                "minimum": 1,
                "default": 1,
                "examples": [1],
            },
            "user_data": _path(
                "The machines' default user-data: a file of the definition's folder, ASCII text "
                "of at most 1,024 characters.",
                ["user-data.sh"],
            ),
        },
    )


def _sandbox_schema() -> Schema:
    return {
        "description": "true: the command starts, uses and stops a local server of its own in the "
        "site's place.",
        "type": "boolean",
        "default": False,
        "examples": [True],
    }


def _text(description: str, examples: list[str], **more: object) -> Schema:
    return {"description": description, "type": "string", "examples": examples, **more}


def _line(description: str, examples: list[str]) -> Schema:
    return _text(
        description,
        examples,
        pattern="^[^\\n]*[^ \\n][^\\n]*$",
        maxLength=200,
        errorMessage="must be one line of text (with '>' YAML adds a line feed, with '>-' not)",
    )


def _path(description: str, examples: list[str]) -> Schema:
    return _text(
        description,
        examples,
        pattern="^[^/\\n][^\\n]*$",
        errorMessage="must be a path relative to this file's folder",
    )


def _size(description: str) -> Schema:
    return _text(
        description + " A whole number of MiB, from 1MiB to 2TiB.",
        ["2GiB", "512MiB"],
        pattern="^[0-9]{1,9} ?(MiB|GiB|TiB)$",
        errorMessage="must be a number and MiB, GiB or TiB, such as 2GiB",
    )


def _choice(description: str, words: list[str], **more: object) -> Schema:
    return _text(description, words, enum=words, **more)


def _list(description: str, items: Schema, examples: list[list[str]]) -> Schema:
    return {
        "description": description,
        "type": "array",
        "items": items,
        "uniqueItems": True,
        "examples": examples,
    }


def _mapping(description: str, properties: dict[str, Schema]) -> Schema:
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
