"""The EC2 actions on launch templates and instances."""

from __future__ import annotations

import re
from typing import Any

from ec2_call import Call, describe_tags, invalid, tag_keys
from ec2_protocol import ServiceError
from ec2_state import Instance, Reference, Template, make_id

_NAME = re.compile(r"[a-zA-Z0-9()./_-]{3,128}")
_VERSIONS = ("$Latest", "$Default")


def create_launch_template(call: Call) -> dict[str, Any]:
    if (repeated := call.find_repeated()) is not None:
        return {"LaunchTemplate": _describe(call.region.templates[repeated])}
    name = call.values["LaunchTemplateName"]
    if not _NAME.fullmatch(name):
        raise ServiceError("InvalidLaunchTemplateName.MalformedException", f"{name!r} is no name")
    if any(each.name == name for each in call.region.templates.values()):
        raise ServiceError(
            "InvalidLaunchTemplateName.AlreadyExistsException",
            "Launch template name already in use.",
        )
    tags = call.take_tags("launch-template")["launch-template"]
    call.end_dry_run()
    made = Template(
        id=make_id("lt"),
        owner=call.account.id,
        name=name,
        created=call.state.clock.now(),
        tags=tags,
        versions=[dict(call.values["LaunchTemplateData"])],
    )
    call.region.templates[made.id] = made
    _refer(call, made)
    call.remember(made.id)
    return {"LaunchTemplate": _describe(made)}


def create_launch_template_version(call: Call) -> dict[str, Any]:
    template = _find(call)
    if (repeated := call.find_repeated()) is not None:
        return {"LaunchTemplateVersion": _describe_version(template, int(repeated))}
    call.end_dry_run()
    template.versions.append(dict(call.values["LaunchTemplateData"]))
    _refer(call, template)
    call.remember(str(len(template.versions)))
    return {"LaunchTemplateVersion": _describe_version(template, len(template.versions))}


def describe_launch_templates(call: Call) -> dict[str, Any]:
    page, token = call.list(
        call.region.templates.values(),
        {"launch-template-name": lambda each: [each.name], "tag-key": tag_keys},
    )
    return {"LaunchTemplates": [*map(_describe, page)], "NextToken": token}


def describe_launch_template_versions(call: Call) -> dict[str, Any]:
    if "LaunchTemplateId" in call.values:
        found = [_find(call)]
    else:
        if not set(call.values.get("Versions", ("1",))) <= set(_VERSIONS):
            raise ServiceError("MissingParameter", "A template, or $Latest and $Default")
        found = [*call.region.templates.values()]
    latest = bool(call.values.get("Versions"))
    versions = [
        (template, number)
        for template in found
        for number in range(1, len(template.versions) + 1)
        if not latest or number in (1, len(template.versions))
    ]
    page, token = call.list(
        versions, {"image-id": lambda each: [str(each[0].versions[each[1] - 1].get("ImageId"))]}
    )
    described = [_describe_version(template, number) for template, number in page]
    return {"LaunchTemplateVersions": described, "NextToken": token}


def delete_launch_template(call: Call) -> dict[str, Any]:
    template = _find(call)
    call.end_dry_run()
    del call.region.templates[template.id]
    call.region.references[:] = [
        each for each in call.region.references if not each.arn.endswith(template.id)
    ]
    return {"LaunchTemplate": _describe(template)}


def run_instances(call: Call) -> dict[str, Any]:
    repeated = call.find_repeated()
    if repeated is not None:
        return _describe_reservation(call, repeated)
    values = call.values
    said = values["LaunchTemplate"]
    template = _find(call, said["LaunchTemplateId"])
    version = int(said.get("Version", 1))
    if not 1 <= version <= len(template.versions):
        raise ServiceError("InvalidLaunchTemplateId.VersionNotFound", "There is no such version.")
    data = {**template.versions[version - 1], **values}
    image = call.find_image(data["ImageId"])
    if image.state != "available":
        raise ServiceError("InvalidAMIID.Unavailable", f"'{image.id}' is not available")
    if not 1 <= values["MinCount"] <= values["MaxCount"]:
        raise invalid("MinCount is not between 1 and MaxCount")
    tags = call.take_tags("instance", "volume")
    call.end_dry_run()
    reservation = make_id("r")
    for _ in range(values["MaxCount"]):
        made = Instance(id=make_id("i"), reservation=reservation, data=data, tags=tags["instance"])
        call.region.instances[made.id] = made
        arn = f"arn:aws:ec2:{call.region.name}:{call.account.id}:instance/{made.id}"
        call.region.references.append(
            Reference(image_id=image.id, type="ec2:Instance", arn=arn, owner=call.account.id)
        )
    call.remember(reservation)
    return _describe_reservation(call, reservation)


def _find(call: Call, template_id: str | None = None) -> Template:
    wanted = template_id or call.values["LaunchTemplateId"]
    template = call.region.templates.get(wanted)
    if template is None:
        raise ServiceError("InvalidLaunchTemplateId.NotFound", f"There is no template {wanted}.")
    return template


def _refer(call: Call, template: Template) -> None:
    """Notes that a template uses an image, as DescribeImageReferences tells."""
    image_id = str(template.versions[-1].get("ImageId"))
    arn = f"arn:aws:ec2:{call.region.name}:{call.account.id}:launch-template/{template.id}"
    call.region.references.append(
        Reference(image_id=image_id, type="ec2:LaunchTemplate", arn=arn, owner=call.account.id)
    )


def _describe(template: Template) -> dict[str, Any]:
    return {
        "LaunchTemplateId": template.id,
        "LaunchTemplateName": template.name,
        "CreateTime": template.created,
        "DefaultVersionNumber": 1,
        "LatestVersionNumber": len(template.versions),
        "Tags": describe_tags(template.tags),
    }


def _describe_version(template: Template, number: int) -> dict[str, Any]:
    return {
        "LaunchTemplateId": template.id,
        "LaunchTemplateName": template.name,
        "VersionNumber": number,
        "DefaultVersion": number == 1,
        "LaunchTemplateData": template.versions[number - 1],
    }


def _describe_reservation(call: Call, reservation: str) -> dict[str, Any]:
    codes = {"pending": 0, "running": 16, "terminated": 48}
    instances = [
        {
            "InstanceId": each.id,
            "ImageId": each.data["ImageId"],
            "State": {"Code": codes[each.state], "Name": each.state},
            "Tags": describe_tags(each.tags),
        }
        for each in call.region.instances.values()
        if each.reservation == reservation
    ]
    return {"ReservationId": reservation, "OwnerId": call.account.id, "Instances": instances}
