"""Machines of a published image, started by a launch template.

The template carries the build's launch data and the tags that prove it ours; one whose data differs
gets a further version. A random token makes RunInstances take effect once: it is kept in a file of
the site's folder until the answer has come, so a command that was interrupted gets the machines
that it had started.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.clouds.ec2.region import Described, Region, find_site, make_tag_list
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import (
    APPLIANCE_TAG,
    BUILD_TAG,
    PIPELINE,
    PIPELINE_TAG,
    SITE_TAG,
    VERSION_TAG,
)
from pipeline.clouds.ec2.tokens import KeptToken
from pipeline.clouds.launching import Launch, LaunchOrder, Started
from pipeline.errors import NameTakenError, NotPublishedError
from pipeline.tools.aws import Refused

_FOLDER = "launches"  # of tokens, in the site's folder
_LONGEST_NAME = 128  # CreateLaunchTemplate
_GONE_STATES = ("terminated", "shutting-down")
_NO_IMAGE = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable")


class _Template(NamedTuple):
    """A launch template's version that has the data of an order."""

    id: str
    version: str


def launch_machines(session: Session, order: LaunchOrder, folder: Path, *, dry_run: bool) -> Launch:
    """Starts the machines, or with `dry_run` tells what would be done. `folder` is the site's own.
    Raises NameTakenError, NotPublishedError, what `make_error` makes."""
    region = session.region(order.region)
    name = f"{order.appliance}-{order.build}-{session.site.name}"[:_LONGEST_NAME]
    with session.translate_errors(region.name):
        known = _find_template(session, region, name)
        template = None if known is None else _find_version(region, known, order.data)
        action = "create" if known is None else "reuse" if template is not None else "change"
        if dry_run:
            return Launch(template=name, action=action)
        if template is None:
            template = _make_version(session, region, name, known, order)
        machines = _run(session, region, template, order, folder)
    return Launch(template=name, action=action, machines=machines)


# ---- the template


def _find_template(session: Session, region: Region, name: str) -> Described | None:
    """The launch template of a name. Raises NameTakenError for one that is not the site's."""
    wanted = [{"Name": "launch-template-name", "Values": [name]}]
    found = next(region.pages("DescribeLaunchTemplates", "LaunchTemplates", Filters=wanted), None)
    if found is not None and find_site(found) != session.site.name:
        raise NameTakenError(
            f"launch template {name} in {region.name} is another's: its tags do not say that this "
            "site made it",
            todo="rename or delete it in the EC2 console, then run the same command again",
        )
    return found


def _find_version(region: Region, template: Described, data: Mapping[str, Any]) -> _Template | None:
    """The newest version that has just this data."""
    template_id = str(template["LaunchTemplateId"])
    versions = region.pages(
        "DescribeLaunchTemplateVersions", "LaunchTemplateVersions", LaunchTemplateId=template_id
    )
    fitting = [
        int(version["VersionNumber"])
        for version in versions
        if _has(version["LaunchTemplateData"], data)
    ]
    return _Template(template_id, str(max(fitting))) if fitting else None


def _has(described: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether a version has this data and no other; EC2 adds to what stands within."""
    told = {key: value for key, value in described.items() if value not in (None, [], {}, "")}
    return told.keys() == data.keys() and all(_holds(told[key], data[key]) for key in data)


def _holds(told: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(told, Mapping):
        return all(told.get(key) == value for key, value in wanted.items())
    return bool(told == wanted)


def _make_version(
    session: Session, region: Region, name: str, known: Described | None, order: LaunchOrder
) -> _Template:
    """A further version of the template, or a new template."""
    once = str(uuid.uuid4())  # so that a lost answer can be asked for again
    if known is not None:
        template_id = str(known["LaunchTemplateId"])
        made = region.call(
            "CreateLaunchTemplateVersion",
            LaunchTemplateId=template_id,
            LaunchTemplateData=dict(order.data),
            ClientToken=once,
        )
        version = made["LaunchTemplateVersion"]["VersionNumber"]
        return _Template(template_id, str(version))
    tags = make_tag_list(_make_tags(session, order))
    made = region.call(
        "CreateLaunchTemplate",
        LaunchTemplateName=name,
        LaunchTemplateData=dict(order.data),
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
        ClientToken=once,
    )
    return _Template(str(made["LaunchTemplate"]["LaunchTemplateId"]), "1")


def _make_tags(session: Session, order: LaunchOrder) -> dict[str, str]:
    return {
        "Name": order.appliance,
        **session.settings.tags,
        PIPELINE_TAG: PIPELINE,
        APPLIANCE_TAG: order.appliance,
        VERSION_TAG: order.version,
        BUILD_TAG: order.build,
        SITE_TAG: session.site.name,
    }


# ---- the machines


def _run(
    session: Session, region: Region, template: _Template, order: LaunchOrder, folder: Path
) -> tuple[Started, ...]:
    tags = make_tag_list(_make_tags(session, order))
    parameters: dict[str, Any] = {
        "LaunchTemplate": {"LaunchTemplateId": template.id, "Version": template.version},
        "MinCount": order.count,
        "MaxCount": order.count,
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
        ],
        **order.options,
    }
    digest = hashlib.sha256(json.dumps([region.name, parameters], sort_keys=True).encode())
    token = KeptToken(folder / _FOLDER / f"{digest.hexdigest()[:16]}.token")
    repeated = token.is_kept()
    machines = _ask(region, order, parameters, token)
    if repeated and all(machine.state in _GONE_STATES for machine in machines):
        token.drop()  # they were started long ago, and have ended
        machines = _ask(region, order, parameters, token)
    token.drop()
    return machines


def _ask(
    region: Region, order: LaunchOrder, parameters: dict[str, Any], token: KeptToken
) -> tuple[Started, ...]:
    try:
        answer = region.call("RunInstances", ClientToken=token.get(parameters), **parameters)
    except Refused as refused:
        if refused.status < 500:
            token.drop()
        if refused.code not in _NO_IMAGE:
            raise
        raise make_gone(order) from refused
    return tuple(
        Started(id=str(each["InstanceId"]), state=str(each["State"]["Name"]))
        for each in answer["Instances"]
    )


def make_gone(order: LaunchOrder) -> NotPublishedError:
    """The error of an image that the region does not have."""
    return NotPublishedError(
        f"image {order.data['ImageId']} is not in {order.region} any more",
        todo=f"publish the build again: `phantom-image publish {order.appliance} --build "
        f"{order.build}`",
    )
