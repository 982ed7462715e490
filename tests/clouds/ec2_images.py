"""The EC2 actions on images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ec2_call import (
    Call,
    Fields,
    describe_tags,
    invalid,
    missing_images,
    tag_keys,
    yes_no,
)
from ec2_protocol import ServiceError, format_time
from ec2_snapshots import check_key, find_user
from ec2_state import ALL, Device, Image, Pending, Snapshot, is_default_key, make_id

_NAME = re.compile(r"[A-Za-z0-9 ()\[\]./\-'@_]{3,128}")  # docs/facts/ec2.md
_VOLUME_TYPES = ("standard", "io1", "io2", "gp2", "gp3", "sc1", "st1")
_DAY = 24 * 3600
_FURTHEST_DEPRECATION = 10 * 366 * _DAY  # "at most 10 years", and leap days
_FURTHEST_PUBLIC_DEPRECATION = 2 * 366 * _DAY  # of public images, from botocore's model
_COOLDOWN = "enabled-with-cooldown"

_FIELDS: Fields[Image] = {
    "architecture": lambda i: [i.architecture],
    "block-device-mapping.device-name": lambda i: [each.device for each in i.mappings],
    "block-device-mapping.snapshot-id": lambda i: i.snapshot_ids,
    "description": lambda i: [i.description or ""],
    "image-id": lambda i: [i.id],
    "image-type": lambda i: ["machine"],
    "is-public": lambda i: [yes_no(i.is_public)],
    "name": lambda i: [i.name],
    "owner-id": lambda i: [i.owner],
    "root-device-name": lambda i: [i.root_device],
    "root-device-type": lambda i: ["ebs"],
    "source-image-id": lambda i: [i.source_id],
    "source-image-region": lambda i: [i.source_region],
    "state": lambda i: [i.state],
    "tag-key": tag_keys,
    "virtualization-type": lambda i: [i.virtualization],
}


# --- RegisterImage ------------------------------------------------------------------------------


def register_image(call: Call) -> dict[str, Any]:
    values = call.values
    check_name(call, values["Name"])
    tags = call.take_tags("image")["image"]
    _check_hardware(values)
    mappings = [_read_mapping(call, each) for each in values.get("BlockDeviceMappings", ())]
    root = values.get("RootDeviceName")
    if root is None:
        raise ServiceError("MissingParameter", "The request must contain RootDeviceName")
    if not any(each.device == root and each.snapshot_id for each in mappings):
        raise ServiceError(
            "InvalidBlockDeviceMapping", f"The root device {root} has no snapshot in the mapping"
        )
    if len({each.device for each in mappings}) != len(mappings):
        raise ServiceError("InvalidBlockDeviceMapping", "A device is mapped twice")
    call.end_dry_run()
    image = Image(
        id=make_id("ami"),
        owner=call.account.id,
        region=call.region.name,
        name=values["Name"],
        created=call.state.clock.now(),
        description=values.get("Description"),
        architecture=values.get("Architecture", "i386"),
        virtualization=values.get("VirtualizationType", "paravirtual"),
        boot_mode=values.get("BootMode"),
        tpm=values.get("TpmSupport"),
        imds=values.get("ImdsSupport"),
        ena=values.get("EnaSupport"),
        sriov=values.get("SriovNetSupport"),
        root_device=root,
        mappings=mappings,
        tags=tags,
    )
    call.region.images[image.id] = image
    return {"ImageId": image.id}


def check_name(call: Call, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ServiceError(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters,"
            " numbers, and only the following characters: ( ) . - / _ [ ] ' @ and space",
        )
    for each in call.region.images.values():
        if each.owner == call.account.id and each.name == name:
            raise ServiceError(
                "InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {each.id}"
            )


def _check_hardware(values: Mapping[str, Any]) -> None:
    virtualization = values.get("VirtualizationType", "paravirtual")
    boot, architecture = values.get("BootMode"), values.get("Architecture", "i386")
    if virtualization not in ("hvm", "paravirtual"):
        raise invalid(f"Value ({virtualization}) for parameter virtualizationType is invalid.")
    if values.get("SriovNetSupport", "simple") != "simple":
        raise invalid("Value for parameter sriovNetSupport is invalid.")
    needs_hvm = ("EnaSupport", "SriovNetSupport", "BootMode", "TpmSupport")
    if virtualization != "hvm" and any(name in values for name in needs_hvm):
        raise ServiceError("InvalidParameterCombination", f"{needs_hvm} need hvm")
    if "TpmSupport" in values and boot != "uefi":
        raise ServiceError("InvalidParameterCombination", "TpmSupport needs BootMode uefi")
    if boot in ("uefi", "uefi-preferred") and architecture == "i386":
        raise ServiceError("InvalidParameterCombination", f"BootMode {boot} needs x86_64 or arm64")
    if architecture == "arm64" and boot in ("legacy-bios", "uefi-preferred"):
        raise ServiceError("InvalidParameterCombination", f"arm64 has no BootMode {boot}")


def _read_mapping(call: Call, given: Mapping[str, Any]) -> Device:
    device, ebs = given.get("DeviceName"), given.get("Ebs")
    if device is None:
        raise ServiceError("MissingParameter", "The mapping has no DeviceName")
    if ebs is None:
        return Device(device=device, virtual_name=given.get("VirtualName"))
    kind = ebs.get("VolumeType", "gp2")
    if kind not in _VOLUME_TYPES:
        raise invalid(f"Value ({kind}) for parameter VolumeType is invalid.")
    if kind in ("io1", "io2") and "Iops" not in ebs:
        raise ServiceError("MissingParameter", f"The parameter iops must be specified for {kind}")
    if ("Iops" in ebs and kind in ("gp2", "standard", "sc1", "st1")) or (
        "Throughput" in ebs and kind != "gp3"
    ):
        raise ServiceError("InvalidParameterCombination", f"Iops or Throughput with {kind}")
    size = ebs.get("VolumeSize")
    if "SnapshotId" in ebs:
        size = _check_source(call, ebs, size)
    elif size is None:
        raise ServiceError("MissingParameter", "The mapping has neither snapshot nor size")
    return Device(
        device=device,
        snapshot_id=ebs.get("SnapshotId"),
        volume_gib=size,
        volume_type=kind,
        delete_on_termination=ebs.get("DeleteOnTermination", True),
        iops=ebs.get("Iops"),
        throughput=ebs.get("Throughput"),
    )


def _check_source(call: Call, ebs: Mapping[str, Any], size: int | None) -> int:
    snapshot = call.find_own_snapshot(ebs["SnapshotId"])
    if snapshot.state != "completed":
        raise ServiceError(
            "IncorrectState", f"The snapshot {snapshot.id} is {snapshot.state}, not completed"
        )
    if "Encrypted" in ebs or "KmsKeyId" in ebs:
        raise ServiceError(
            "InvalidBlockDeviceMapping", "Encrypted cannot be given together with a snapshot"
        )
    if size is not None and size < snapshot.volume_gib:
        raise ServiceError(
            "InvalidBlockDeviceMapping",
            f"Volume of size {size}GB is smaller than snapshot '{snapshot.id}', expect size >="
            f" {snapshot.volume_gib}GB",
        )
    return size or snapshot.volume_gib


# --- DescribeImages -----------------------------------------------------------------------------


def describe_images(call: Call) -> dict[str, Any]:
    ids = call.values.get("ImageIds", [])
    visible = {
        each.id: each for each in call.region.images.values() if each.is_visible_to(call.account.id)
    }
    missing = [each for each in ids if each not in visible]
    if missing:
        raise missing_images(missing)
    found = [visible[each] for each in ids] if ids else list(visible.values())
    for image in found:
        settle_image(call, image)
    found = [image for image in found if _is_asked_for(call, image, by_id=bool(ids))]
    page, token = call.list(found, _FIELDS, ids=ids, least=1)
    described = [_describe_image(call, image) for image in page]
    for image in page:
        if image.pending is not None:
            image.pending.looks -= 1
    return {"Images": described, "NextToken": token}


def _is_asked_for(call: Call, image: Image, *, by_id: bool) -> bool:
    """Whether Owners, ExecutableUsers and deprecation let the list show the image."""
    mine = image.owner == call.account.id
    owners = call.values.get("Owners")
    users = call.values.get("ExecutableUsers", ())
    if owners is not None and image.owner not in owners and not (mine and "self" in owners):
        return False
    for user in users:
        account = call.account.id if user == "self" else user
        wanted = {"Group": ALL} if user == ALL else {"UserId": account}
        if wanted not in image.launch_permissions:
            return False
    deprecated = image.deprecation is not None and image.deprecation <= call.state.clock.now()
    return mine or by_id or not deprecated or call.values.get("IncludeDeprecated", False)


def settle_image(call: Call, image: Image) -> None:
    """Makes a copy available, or failed, when it is due."""
    pending = image.pending
    if pending is None or not pending.is_due(call.state.clock.now()):
        return
    image.pending = None
    image.state = "failed" if pending.fails else "available"


def _describe_image(call: Call, image: Image) -> dict[str, Any]:
    return {
        "ImageId": image.id,
        "ImageLocation": f"{image.owner}/{image.name}",
        "State": image.state,
        "StateReason": _describe_failure(image),
        "OwnerId": image.owner,
        "CreationDate": format_time(image.created),
        "Public": image.is_public,
        "Architecture": image.architecture,
        "ImageType": "machine",
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "BlockDeviceMappings": _describe_mappings(call, image),
        "Description": image.description,
        "EnaSupport": image.ena,
        "Hypervisor": "xen",
        "Name": image.name,
        "RootDeviceName": image.root_device,
        "RootDeviceType": "ebs",
        "SriovNetSupport": image.sriov,
        "Tags": describe_tags(image.tags),
        "VirtualizationType": image.virtualization,
        "BootMode": image.boot_mode,
        "TpmSupport": image.tpm,
        "ImdsSupport": image.imds,
        "DeprecationTime": None if image.deprecation is None else format_time(image.deprecation),
        "DeregistrationProtection": image.protection,
        "SourceImageId": image.source_id,
        "SourceImageRegion": image.source_region,
    }


def _describe_failure(image: Image) -> dict[str, str] | None:
    if image.state != "failed":
        return None
    return {"Code": "Client.InternalError", "Message": "The copy failed"}


def _describe_mappings(call: Call, image: Image) -> list[dict[str, Any]]:
    """The block device mappings; an unfinished copy shows no snapshot yet."""
    described: list[dict[str, Any]] = []
    for each in image.mappings:
        snapshot = call.region.snapshots.get(each.snapshot_id or "")
        shown = snapshot is not None and image.state != "pending"
        if each.virtual_name is not None:
            described.append({"DeviceName": each.device, "VirtualName": each.virtual_name})
            continue
        ebs = {
            "DeleteOnTermination": each.delete_on_termination,
            "Iops": each.iops,
            "SnapshotId": each.snapshot_id if shown else None,
            "VolumeSize": each.volume_gib,
            "VolumeType": each.volume_type,
            "Throughput": each.throughput,
            "Encrypted": snapshot is not None and snapshot.encrypted,
        }
        described.append({"DeviceName": each.device, "Ebs": ebs})
    return described


# --- CopyImage ----------------------------------------------------------------------------------


def copy_image(call: Call) -> dict[str, Any]:
    values = call.values
    repeated = call.find_repeated()
    if repeated is not None:
        return {"ImageId": repeated}
    source = call.state.regions.get(values["SourceRegion"])
    if source is None:
        raise invalid(f"Invalid region: {values['SourceRegion']}")
    original = source.images.get(values["SourceImageId"])
    if original is None or not original.is_visible_to(call.account.id):
        raise missing_images([values["SourceImageId"]])
    if original.state != "available":
        raise ServiceError("IncorrectState", f"The image {original.id} is {original.state}")
    check_name(call, values["Name"])
    check_key(values, values.get("Encrypted", False))
    tags = call.take_tags("image", "snapshot")
    call.end_dry_run()
    pending = call.state.make_pending()
    pending.fails = call.state.faults.take_one("completions_to_fail")
    image = Image(
        id=make_id("ami"),
        owner=call.account.id,
        region=call.region.name,
        name=values["Name"],
        created=call.state.clock.now(),
        description=values.get("Description", original.description),
        architecture=original.architecture,
        virtualization=original.virtualization,
        boot_mode=original.boot_mode,
        tpm=original.tpm,
        imds=original.imds,
        ena=original.ena,
        sriov=original.sriov,
        root_device=original.root_device,
        mappings=[
            _copy_mapping(call, each, source.snapshots, tags["snapshot"], pending)
            for each in original.mappings
        ],
        tags=(original.tags if values.get("CopyImageTags") else {}) | tags["image"],
        state="pending",
        pending=pending,
        source_id=original.id,
        source_region=source.name,
    )
    call.region.images[image.id] = image
    call.remember(image.id)
    return {"ImageId": image.id}


def _copy_mapping(
    call: Call,
    mapping: Device,
    snapshots: Mapping[str, Snapshot],
    tags: Mapping[str, str],
    pending: Pending,
) -> Device:
    copied = Device(**vars(mapping))
    if mapping.snapshot_id is None:
        return copied
    original = snapshots[mapping.snapshot_id]
    made = call.state.add_snapshot(call.region.name, call.account.id, original.volume_gib)
    made.inherited, made.tags = original.blocks, dict(tags)
    made.description = f"Copied for DestinationAmi from SourceSnapshot {original.id}"
    made.completing = pending
    wanted = call.values.get("Encrypted", False) or call.region.encryption_by_default
    made.encrypted = original.encrypted or wanted
    if made.encrypted:
        made.kms_key = call.values.get("KmsKeyId", original.kms_key or call.region.default_key)
    copied.snapshot_id = made.id
    return copied


# --- attributes ---------------------------------------------------------------------------------


def modify_image_attribute(call: Call) -> dict[str, Any]:
    values = call.values
    image = call.find_own_image(values["ImageId"])
    changes = {"Description", "ImdsSupport", "LaunchPermission"} & set(values)
    plain = _read_plain_permissions(values)
    if len(changes) + bool(plain) != 1:
        raise ServiceError("InvalidParameterCombination", "Exactly one attribute can be changed")
    add, remove = plain or (
        _read_permissions(values.get("LaunchPermission", {}).get("Add", ())),
        _read_permissions(values.get("LaunchPermission", {}).get("Remove", ())),
    )
    _check_sharing(call, image, add)
    call.end_dry_run()
    if "Description" in values:
        image.description = values["Description"].get("Value")
    if "ImdsSupport" in values:
        image.imds = values["ImdsSupport"].get("Value")
    kept = [each for each in image.launch_permissions if each not in remove]
    image.launch_permissions = kept + [each for each in add if each not in kept]
    return {}


def _read_plain_permissions(
    values: Mapping[str, Any],
) -> tuple[list[dict[str, str]], list[dict[str, str]]] | None:
    """From the older form: Attribute, OperationType and lists."""
    kinds = {
        "UserIds": "UserId",
        "UserGroups": "Group",
        "OrganizationArns": "OrganizationArn",
        "OrganizationalUnitArns": "OrganizationalUnitArn",
    }
    given = _read_permissions(
        {kind: each} for name, kind in kinds.items() for each in values.get(name, ())
    )
    if not given:
        return None
    if values.get("Attribute") != "launchPermission" or "OperationType" not in values:
        raise ServiceError("MissingParameter", "Attribute or OperationType is missing")
    return (given, []) if values["OperationType"] == "add" else ([], given)


def _read_permissions(given: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    patterns = {
        "UserId": r"\d{12}",
        "Group": ALL,
        "OrganizationArn": r"arn:aws:organizations::\d{12}:organization/o-[a-z0-9]+",
        "OrganizationalUnitArn": r"arn:aws:organizations::\d{12}:ou/o-[a-z0-9]+/ou-[a-z0-9-]+",
    }
    found = []
    for each in given:
        for kind, value in each.items():
            if not re.fullmatch(patterns[kind], value):
                raise ServiceError(
                    "InvalidAMIAttributeItemValue",
                    f'Invalid attribute item value "{value}" for {kind} item type.',
                )
        if len(each) != 1:
            raise ServiceError("InvalidParameterCombination", "One grantee per permission")
        found.append(dict(each))
    return found


def _check_sharing(call: Call, image: Image, add: list[dict[str, str]]) -> None:
    if {"Group": ALL} in add and call.region.image_block_public:
        raise ServiceError(
            "OperationNotPermitted",
            "You can't publicly share this image because block public access for AMIs is enabled"
            " for this account in this Region.",
        )
    snapshots = [call.region.snapshots[each] for each in image.snapshot_ids]
    for each in snapshots:
        if add and each.encrypted and (is_default_key(each.kms_key) or {"Group": ALL} in add):
            raise ServiceError(
                "InvalidParameter", f"Snapshot {each.id} is encrypted and cannot be shared"
            )


def describe_image_attribute(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    read: Mapping[str, tuple[str, Any]] = {
        "bootMode": ("BootMode", {"Value": image.boot_mode}),
        "blockDeviceMapping": ("BlockDeviceMappings", _describe_mappings(call, image)),
        "deregistrationProtection": ("DeregistrationProtection", {"Value": image.protection}),
        "description": ("Description", {"Value": image.description}),
        "imdsSupport": ("ImdsSupport", {"Value": image.imds}),
        "launchPermission": ("LaunchPermissions", image.launch_permissions),
        "productCodes": ("ProductCodes", []),
        "sriovNetSupport": ("SriovNetSupport", {"Value": image.sriov}),
        "tpmSupport": ("TpmSupport", {"Value": image.tpm}),
    }
    attribute = call.values["Attribute"]
    if attribute not in read:
        raise ServiceError("InvalidRequest", f"The attribute {attribute} is not served here")
    name, value = read[attribute]
    return {"ImageId": image.id, name: value}


def get_image_block_public_access_state(call: Call) -> dict[str, Any]:
    state = "block-new-sharing" if call.region.image_block_public else "unblocked"
    return {"ImageBlockPublicAccessState": state, "ManagedBy": "account"}


def enable_image_deprecation(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    at, now = call.values["DeprecateAt"], call.state.clock.now()
    if at < now:
        raise invalid("DeprecateAt is in the past")
    if at > now + _FURTHEST_DEPRECATION:
        raise invalid("DeprecateAt is more than 10 years away")
    if image.is_public and at > image.created + _FURTHEST_PUBLIC_DEPRECATION:
        raise invalid("DeprecateAt of a public image is at most 2 years after its creation")
    call.end_dry_run()
    image.deprecation = round(at / 60) * 60
    return {"Return": True}


def disable_image_deprecation(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    call.end_dry_run()
    image.deprecation = None
    return {"Return": True}


def enable_image_deregistration_protection(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    call.end_dry_run()
    cooldown = call.values.get("WithCooldown", False)
    image.protection = _COOLDOWN if cooldown else "enabled-without-cooldown"
    return {"Return": image.protection}


def disable_image_deregistration_protection(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    call.end_dry_run()
    image.protection = "disable-in-progress" if image.protection == _COOLDOWN else "disabled"
    return {"Return": image.protection}


# --- DeregisterImage ----------------------------------------------------------------------------


def deregister_image(call: Call) -> dict[str, Any]:
    image = call.find_own_image(call.values["ImageId"])
    if image.protection != "disabled":
        raise ServiceError(
            "OperationNotPermitted", f"The image {image.id} is protected from deregistration"
        )
    call.end_dry_run()
    del call.region.images[image.id]
    call.region.deregistered.add(image.id)
    values: dict[str, Any] = {"Return": True}
    if call.values.get("DeleteAssociatedSnapshots"):
        values["DeleteSnapshotResults"] = [
            {"SnapshotId": each, "ReturnCode": _delete_associated(call, each)}
            for each in image.snapshot_ids
        ]
    return values


def _delete_associated(call: Call, snapshot_id: str) -> str:
    snapshot = call.region.snapshots.get(snapshot_id)
    if snapshot is None:
        return "client-error"
    if call.state.faults.is_denied("ec2:DeleteSnapshot", call.region.name):
        return "missing-permissions"
    if find_user(call, snapshot_id) is not None or snapshot.owner != call.account.id:
        return "skipped"
    del call.region.snapshots[snapshot_id]
    return "success"


# --- references ---------------------------------------------------------------------------------


def describe_image_references(call: Call) -> dict[str, Any]:
    values = call.values
    types = {each.get("ResourceType") for each in values.get("ResourceTypes", ())}
    if bool(types) == values.get("IncludeAllResourceTypes", False):
        raise ServiceError(
            "InvalidParameterCombination",
            "Either ResourceTypes or IncludeAllResourceTypes must be given",
        )
    if len(values["ImageIds"]) > 10:
        raise invalid("At most 10 image ids can be given")
    found = [
        each
        for each in call.region.references
        if each.image_id in values["ImageIds"]
        and each.owner == call.account.id
        and (not types or each.type in types)
    ]
    page, token = call.list(found, {})
    described = [
        {"ImageId": each.image_id, "ResourceType": each.type, "Arn": each.arn} for each in page
    ]
    return {"ImageReferences": described, "NextToken": token}
