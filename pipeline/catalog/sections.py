"""What an appliance's page tells beyond the catalog's own records, from two manifests."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import records
from pipeline.build import differences
from pipeline.build.launch import UNLIMITED, params_of
from pipeline.catalog.model import Build
from pipeline.clouds import find_recipes
from pipeline.clouds.recipes import USER_DATA_FILE, Recipe, call, command, literal
from pipeline.model import Publication

LAUNCH_FILE = "launch-configuration.json"
_ENDPOINT = "https://PHANTOM.EXAMPLE.ORG"
_CHECKS = {
    "checks": {
        "findings": [{"rule": str, "severity": str, "path": str, "detail": str}],
        "waived": [{"rule": str, "path": str, "detail": str, "reason": str}],
    }
}
"""The shape of what the gate found, where the manifest has it."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A site as Phantom fills it."""

    site: str
    image_id: str
    instance_type: str
    most: str
    """How many machines it may have, for people."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A publication, and how its image is started there without Phantom."""

    publication: Publication
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One boot check."""

    site: str
    machine: str
    seconds: float | None
    facts: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]
    """What came of each kind of user-data."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A check of several guests of an image on one network."""

    site: str
    seconds: float
    guests: tuple[tuple[str, float, str], ...]
    """Each one's name, the seconds to its report, and what its script printed."""
    started: int | None
    """How many machines more Phantom started; None where there was no Phantom."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A package, or something else, that is not as in the build before."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs from the build before."""

    since: Build
    added: tuple[Change, ...]
    removed: tuple[Change, ...]
    changed: tuple[Change, ...]
    others: tuple[str, ...]
    """What else changed, in words."""

    @property
    def packages(self) -> int:
        return len(self.added) + len(self.removed) + len(self.changed)


def user_data_of(content: Manifest) -> str | None:
    """The user-data that the definition gives Phantom."""
    told: str | None = content["phantom"]["launch_configuration"]["user_data"]
    return told


def launch_configuration(content: Manifest) -> str:
    """The body of the request that creates the launch configuration, as a file."""
    told = content["phantom"]["launch_configuration"]
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


# ---- how it is started


def find_ranks(content: Manifest) -> list[Rank]:
    """The sites that Phantom starts machines on, in its order."""
    params = params_of(content["phantom"])
    return [
        Rank(
            site=site,
            image_id=param["image_id"],
            instance_type=param["instance_type"],
            most="any number" if param["max_vms"] == UNLIMITED else f"at most {param['max_vms']}",
        )
        for site, param in sorted(params.items(), key=lambda each: int(each[1]["rank"]))
    ]


def phantom_recipes(content: Manifest) -> list[Recipe]:
    """How Phantom is told of the build."""
    section = content["phantom"]
    if not params_of(section):
        return []
    has_user_data = user_data_of(content) is not None
    note = f"The file {USER_DATA_FILE} has the user-data." if has_user_data else ""
    curl = (
        "curl --user USER:TOKEN \\\n"
        "    --header 'Content-Type: application/json' \\\n"
        f"    --data @{LAUNCH_FILE} \\\n"
        f"    {_ENDPOINT}/api/dev/launchconfigurations\n"
    )
    own = command("phantom-image launch-config manifest.json", "--phantom YOUR-PHANTOM")
    return [
        Recipe(
            title="phantom-image",
            text=own,
            note="With the manifest below. Your sites.yaml describes the Phantom (phantoms); "
            "--dry-run tells what would be done.",
        ),
        Recipe(title="boto3", text=_phantom_boto3(content), note=note),
        Recipe(
            title="Web API", text=curl, note=f"The file {LAUNCH_FILE} has the launch configuration."
        ),
    ]


def _phantom_boto3(content: Manifest) -> str:
    has_user_data = user_data_of(content) is not None
    name = content["phantom"]["launch_configuration"]["name"]
    lines = ["from pathlib import Path", ""] if has_user_data else []
    lines += ["import boto3", "from botocore.config import Config", ""]
    client = {
        "endpoint_url": literal(_ENDPOINT),
        "region_name": literal("phantom"),
        "config": 'Config(signature_version="v2")',
    }
    head = 'phantom = boto3.client(\n    "autoscaling",\n'
    lines.append(call("", client).replace("(\n", head, 1).rstrip())
    for rank in find_ranks(content):
        arguments = {
            "LaunchConfigurationName": literal(f"{name}@{rank.site}"),
            "ImageId": literal(rank.image_id),
            "InstanceType": literal(rank.instance_type),
        }
        if has_user_data:
            arguments["UserData"] = f"Path({literal(USER_DATA_FILE)}).read_text()"
        lines.append(call("phantom.create_launch_configuration", arguments).rstrip())
    return "\n".join(lines) + "\n"


def find_places(build: Build, content: Manifest) -> list[Place]:
    """Each publication with its recipes."""
    templates = {
        (each["site"], each["region"]): each.get("data") for each in content["launch_templates"]
    }
    return [
        Place(
            publication=each,
            recipes=find_recipes(each, _launch_data(templates.get((each.site, each.region)))),
        )
        for each in build.publications
    ]


def _launch_data(told: object) -> dict[str, Any]:
    """A launch template's data; without user-data that cannot be decoded."""
    data = dict(told) if isinstance(told, Mapping) else {}
    try:
        base64.b64decode(data.get("UserData", ""), validate=True)
    except (TypeError, ValueError, binascii.Error):
        del data["UserData"]
    return data


# ---- what was checked


_FACTS = (
    ("release", "Distribution"),
    ("kernel", "Kernel"),
    ("firmware", "Firmware"),
    ("accelerator", "Machine"),
    ("disk_driver", "Disk driver"),
    ("network_driver", "Network driver"),
    ("addresses", "Addresses"),
    ("user_data_by", "User-data run by"),
    ("fetcher_protocol", "Metadata service"),
    ("fetcher_tries", "Tries to fetch it"),
    ("user_data_status", "User-data's exit status"),
    ("check_status", "Check script's exit status"),
    ("ssh_host_keys", "SSH host keys made"),
    ("failed_units", "Failed units"),
)
_WORDS = {"kvm": "virtual, by KVM", "tcg": "emulated, so slower than a real one"}


def find_boots(content: Manifest) -> list[Boot]:
    """Every boot check of every image."""
    return [
        Boot(
            site=image["site"],
            machine=check["machine"],
            seconds=check.get("boot_seconds"),
            facts=tuple(_facts(check)),
            answers=tuple(_answers(check.get("user_data"))),
        )
        for image in content["images"]
        for check in image["boot_checks"]
    ]


def find_clusters(content: Manifest) -> list[Cluster]:
    """The cluster check of each image that had one."""
    return [
        Cluster(
            site=image["site"],
            seconds=check["seconds"],
            guests=tuple(
                (
                    guest["name"],
                    float(guest.get("seconds") or 0),
                    str(guest.get("printed") or "").strip(),
                )
                for guest in check["guests"]
            ),
            started=check.get("started_by_phantom"),
        )
        for image in content["images"]
        if (check := image.get("cluster_check")) is not None
    ]


def _facts(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, title in _FACTS:
        value = check.get(key)
        if value is None:
            continue
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        yield title, _WORDS.get(text, text)


def _answers(told: object) -> Iterator[tuple[str, str]]:
    if isinstance(told, Mapping):
        for kind, outcome in told.items():
            yield str(kind), str(outcome)


def find_checks(content: Manifest) -> Mapping[str, Any] | None:
    """What the gate found, and what the definition waived; None where no gate looked."""
    if records.find_fault(content, _CHECKS) is not None:
        return None
    checks: Mapping[str, Any] = content["checks"]
    return checks


# ---- what is in it


def find_packages(content: Manifest) -> list[tuple[str, str, str]]:
    """Name, version and architecture of each package."""
    return [
        (str(each.get("name", "")), str(each.get("version", "")), str(each.get("architecture", "")))
        for each in content["inputs"]["packages"]
        if isinstance(each, Mapping)
    ]


def find_wheels(content: Manifest) -> list[tuple[str, str]]:
    """Name and version of each package of the virtual environment."""
    python = content["inputs"].get("python")
    wheels = python.get("wheels") if isinstance(python, Mapping) else None
    return [
        (str(each.get("name", "")), str(each.get("version", "")))
        for each in (wheels if isinstance(wheels, list) else ())
        if isinstance(each, Mapping)
    ]


def find_origin(content: Manifest) -> list[tuple[str, str]]:
    """What it was made from, in a few lines."""
    return [*_origin(content["inputs"])]


def _origin(inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    source = inputs.get("source")
    for kind, told in source.items() if isinstance(source, Mapping) else ():
        words = told if isinstance(told, Mapping) else {"": told}
        texts = [str(each) for each in words.values() if isinstance(each, str | int)]
        yield "Source", f"{str(kind).replace('_', ' ')}: {', '.join(texts)}"
    if isinstance(definition := inputs.get("definition"), Mapping):
        if commit := definition.get("commit"):
            yield "Commit", f"{commit}{', with changes' if definition.get('dirty') else ''}"
        if digest := definition.get("digest"):
            yield "Definition", f"sha256 {digest}"
    elements = inputs.get("elements")
    names = [each.get("name") for each in elements or () if isinstance(each, Mapping)]
    if names:
        yield "Elements", ", ".join(map(str, names))
    if (repeatable := inputs.get("repeatable")) is not None:
        told = "the same inputs give the same bytes" if repeatable else "not known"
        yield "Repeatable", told


def find_changes(content: Manifest, older: Manifest | None, since: Build | None) -> Changes | None:
    """What differs from the build before; None where that is not known."""
    if older is None or since is None:
        return None
    if any(records.find_fault(each, differences.SHAPE) for each in (older, content)):
        return None
    parts = differences.compare(older, content)
    rows = [_change(row) for row in parts["packages"]]
    return Changes(
        since=since,
        added=tuple(row for row in rows if not row.before),
        removed=tuple(row for row in rows if not row.after),
        changed=tuple(row for row in rows if row.before and row.after),
        others=tuple(_others(parts)),
    )


def _change(row: Mapping[str, Any]) -> Change:
    before, after = (str(row[key]["version"]) if row[key] else "" for key in ("before", "after"))
    return Change(name=row["name"].rpartition(":")[0], before=before, after=after)


def _others(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for row in parts["appliance"]:
        if row["name"] == "version":
            yield f"version {row['before']} became {row['after']}"
    if names := [str(row["name"]) for row in parts["elements"]]:
        yield f"elements changed: {', '.join(names)}"
    named = {str(row["name"]).partition(".")[0] for row in parts["definition"]}
    if "definition" in named:
        yield "the definition changed"
    if "source" in named:
        yield "the source changed"
    if any(row["name"] == "user_data" for row in parts["phantom"]):
        yield "the user-data changed"
