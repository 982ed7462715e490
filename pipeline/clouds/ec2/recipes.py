"""How people start machines from an AMI: by the AWS command line and by boto3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.clouds.recipes import USER_DATA_FILE, Recipe, call, command, literal, option
from pipeline.model import Publication

_KEY = "YOUR-KEY"
_NOTE = f"Put the name of your key pair in place of {_KEY}."


def make_recipes(publication: Publication, data: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """The recipes of an AMI, from RequestLaunchTemplateData."""
    wanted = {"ImageId": publication.image_id, **data}
    note = _NOTE
    if "UserData" in data:
        note += f" The file {USER_DATA_FILE} has the user-data."
    return (
        Recipe(title="AWS command line", text=_cli(publication, wanted), note=note),
        Recipe(title="boto3", text=_boto3(publication, wanted), note=note),
    )


def _cli(publication: Publication, data: Mapping[str, Any]) -> str:
    return command("aws ec2 run-instances", *_options(publication, data))


def _options(publication: Publication, data: Mapping[str, Any]) -> Iterator[str]:
    if publication.region is not None:
        yield option("--region", publication.region)
    yield option("--image-id", str(data["ImageId"]))
    if "InstanceType" in data:
        yield option("--instance-type", str(data["InstanceType"]))
    yield option("--key-name", _KEY)
    if isinstance(metadata := data.get("MetadataOptions"), Mapping):
        words = ",".join(f"{name}={value}" for name, value in metadata.items())
        yield option("--metadata-options", words)
    if "UserData" in data:
        yield option("--user-data", f"file://{USER_DATA_FILE}")


def _boto3(publication: Publication, data: Mapping[str, Any]) -> str:
    region = "" if publication.region is None else f", region_name={literal(publication.region)}"
    arguments = {name: literal(value) for name, value in data.items() if name != "UserData"}
    arguments |= {"KeyName": literal(_KEY), "MinCount": "1", "MaxCount": "1"}
    if "UserData" in data:
        arguments["UserData"] = f"Path({literal(USER_DATA_FILE)}).read_text()"
    imports = "from pathlib import Path\n\n" if "UserData" in data else ""
    return (
        f"{imports}import boto3\n\n"
        f'ec2 = boto3.client("ec2"{region})\n'
        f"{call('ec2.run_instances', arguments)}"
    )
