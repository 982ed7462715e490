"""The strict server's table of EC2 actions, and the actions on regions, instances and tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ec2_images as images
import ec2_launches as launches
import ec2_snapshots as snapshots
from ec2_call import (
    Call,
    apply_filters,
    check_tag_count,
    check_tags,
    invalid,
)
from ec2_protocol import ServiceError
from ec2_state import DISABLED_REGION, Reference

__all__ = ["Call", "perform"]


def describe_regions(call: Call) -> dict[str, Any]:
    known = dict.fromkeys(call.state.regions, "opt-in-not-required")
    names = call.values.get("RegionNames", [])
    if call.values.get("AllRegions") or names:
        known[DISABLED_REGION] = "not-opted-in"
    for name in names:
        if name not in known:
            raise invalid(f"Invalid value '{name}' for RegionName. Region does not exist.")
    found = apply_filters(
        [name for name in known if not names or name in names],
        call.values.get("Filters", ()),
        {
            "endpoint": lambda name: [f"ec2.{name}.amazonaws.com"],
            "opt-in-status": lambda name: [known[name]],
            "region-name": lambda name: [name],
        },
    )
    described = [
        {
            "RegionName": name,
            "Endpoint": f"ec2.{name}.amazonaws.com",
            "OptInStatus": known[name],
        }
        for name in found
    ]
    return {"Regions": described}


def describe_instances(call: Call) -> dict[str, Any]:
    def read_id(reference: Reference) -> str:
        return reference.arn.rpartition("/")[2]

    mine = [
        each
        for each in call.region.references
        if each.type == "ec2:Instance" and each.owner == call.account.id
    ]
    ids = call.values.get("InstanceIds", [])
    missing = set(ids) - {read_id(each) for each in mine}
    if missing:
        raise ServiceError(
            "InvalidInstanceID.NotFound", f"The instance IDs '{missing}' do not exist"
        )
    page, token = call.list(
        [each for each in mine if not ids or read_id(each) in ids],
        {
            "image-id": lambda r: [r.image_id],
            "instance-id": lambda r: [read_id(r)],
            "instance-state-name": lambda r: ["running"],
        },
        ids=ids,
    )
    instances = [
        {
            "InstanceId": read_id(each),
            "ImageId": each.image_id,
            "State": {"Code": 16, "Name": "running"},
        }
        for each in page
    ]
    reservations = [{"Instances": instances, "OwnerId": call.account.id}] if instances else []
    return {"Reservations": reservations, "NextToken": token}


def _find_tags(call: Call, resource: str) -> dict[str, str]:
    """The tags of one of the caller's resources, as a dictionary to change."""
    if resource.startswith("snap-"):
        return call.find_own_snapshot(resource).tags
    if resource.startswith("ami-"):
        return call.find_own_image(resource).tags
    if resource in call.region.imports:
        return call.region.imports[resource].tags
    raise ServiceError("InvalidID", f"The ID '{resource}' is not valid")


def create_tags(call: Call) -> dict[str, Any]:
    given = check_tags(call.values["Tags"])
    found = [_find_tags(call, each) for each in call.values["Resources"]]
    for tags in found:
        check_tag_count(tags | given)
    call.end_dry_run()
    for tags in found:
        tags.update(given)
    return {}


def delete_tags(call: Call) -> dict[str, Any]:
    found = [_find_tags(call, each) for each in call.values["Resources"]]
    given = call.values.get("Tags")
    call.end_dry_run()
    for tags in found:
        if given is None:
            tags.clear()
        for each in given or ():
            if each.get("Value") in (None, tags.get(each["Key"])):
                tags.pop(each["Key"], None)
    return {}


_READS: Mapping[str, Callable[[Call], dict[str, Any]]] = {
    "DescribeImageAttribute": images.describe_image_attribute,
    "DescribeImageReferences": images.describe_image_references,
    "DescribeImages": images.describe_images,
    "DescribeImportSnapshotTasks": snapshots.describe_import_snapshot_tasks,
    "DescribeInstances": describe_instances,
    "DescribeLaunchTemplateVersions": launches.describe_launch_template_versions,
    "DescribeLaunchTemplates": launches.describe_launch_templates,
    "DescribeRegions": describe_regions,
    "DescribeSnapshotAttribute": snapshots.describe_snapshot_attribute,
    "DescribeSnapshots": snapshots.describe_snapshots,
    "GetEbsEncryptionByDefault": snapshots.get_ebs_encryption_by_default,
    "GetImageBlockPublicAccessState": images.get_image_block_public_access_state,
    "GetSnapshotBlockPublicAccessState": snapshots.get_snapshot_block_public_access_state,
}
_CHANGES: Mapping[str, Callable[[Call], dict[str, Any]]] = {
    "CancelImportTask": snapshots.cancel_import_task,
    "CopyImage": images.copy_image,
    "CreateLaunchTemplate": launches.create_launch_template,
    "CreateLaunchTemplateVersion": launches.create_launch_template_version,
    "CreateTags": create_tags,
    "DeleteLaunchTemplate": launches.delete_launch_template,
    "DeleteSnapshot": snapshots.delete_snapshot,
    "DeleteTags": delete_tags,
    "DeregisterImage": images.deregister_image,
    "DisableImageDeprecation": images.disable_image_deprecation,
    "DisableImageDeregistrationProtection": images.disable_image_deregistration_protection,
    "EnableImageDeprecation": images.enable_image_deprecation,
    "EnableImageDeregistrationProtection": images.enable_image_deregistration_protection,
    "ImportSnapshot": snapshots.import_snapshot,
    "ModifyImageAttribute": images.modify_image_attribute,
    "ModifySnapshotAttribute": snapshots.modify_snapshot_attribute,
    "RegisterImage": images.register_image,
    "RunInstances": launches.run_instances,
}


def perform(call: Call) -> dict[str, Any]:
    """Returns the answer's members. Raises ServiceError to refuse, or for a dry run that passed."""
    if call.action in _READS:
        call.end_dry_run()
        return _READS[call.action](call)
    if call.action not in _CHANGES:
        raise ServiceError("InvalidAction", f"The action {call.action} is not served here")
    if not call.state.dry_run_finds:
        call.end_dry_run()
    return _CHANGES[call.action](call)
