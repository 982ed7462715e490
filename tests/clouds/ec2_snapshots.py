"""The EC2 actions on snapshots, including imports from S3."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ec2_call import (
    Call,
    Fields,
    check_id,
    describe_tags,
    invalid,
    make_block,
    tag_keys,
    yes_no,
)
from ec2_protocol import ServiceError
from ec2_state import ALL, BLOCK_BYTES, GIB, Ec2State, ImportTask, Snapshot, is_default_key, make_id

_FORMATS = ("RAW", "VHD", "VMDK")  # of ImportSnapshot: docs/facts/ec2.md
_BAD_ROLE = "The service role {} provided does not exist or does not have sufficient permissions"

_FIELDS: Fields[Snapshot] = {
    "description": lambda s: [s.description or ""],
    "encrypted": lambda s: [yes_no(s.encrypted)],
    "owner-id": lambda s: [s.owner],
    "snapshot-id": lambda s: [s.id],
    "status": lambda s: [s.state],
    "tag-key": tag_keys,
    "volume-size": lambda s: [str(s.volume_gib)],
}


def describe_snapshots(call: Call) -> dict[str, Any]:
    ids = call.values.get("SnapshotIds", [])
    if ids:
        found: Iterable[Snapshot] = [call.find_snapshot(each) for each in ids]
    else:
        found = [
            each
            for each in call.region.snapshots.values()
            if each.is_visible_to(call.account.id) and not call.state.is_hidden(each)
        ]
    owners = _resolve_self(call, call.values.get("OwnerIds"))
    users = _resolve_self(call, call.values.get("RestorableByUserIds"))
    for each in found:
        call.state.settle(each)
    found = [
        each
        for each in found
        if (owners is None or each.owner in owners)
        and (users is None or any(each.is_visible_to(user) for user in users))
    ]
    page, token = call.list(found, _FIELDS, ids=ids)
    described = [_describe_snapshot(each) for each in page]
    for each in page:
        if each.completing is not None:
            each.completing.looks -= 1
    return {"Snapshots": described, "NextToken": token}


def _resolve_self(call: Call, owners: list[str] | None) -> list[str] | None:
    if owners is None:
        return None
    for each in owners:
        if each not in ("self", "amazon", "aws-marketplace", ALL) and not each.isdigit():
            raise ServiceError("InvalidUserID.Malformed", f'Invalid user id: "{each}"')
    return [call.account.id if each == "self" else each for each in owners]


def _describe_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "SnapshotId": snapshot.id,
        "VolumeId": "vol-ffffffff",
        "State": snapshot.state,
        "StateMessage": snapshot.message,
        "StartTime": snapshot.started,
        "Progress": "100%" if snapshot.state == "completed" else "0%",
        "OwnerId": snapshot.owner,
        "Description": snapshot.description or "",
        "VolumeSize": snapshot.volume_gib,
        "Encrypted": snapshot.encrypted,
        "KmsKeyId": snapshot.kms_key,
        "StorageTier": "standard",
        "Tags": describe_tags(snapshot.tags),
    }


def delete_snapshot(call: Call) -> dict[str, Any]:
    snapshot = call.find_own_snapshot(call.values["SnapshotId"])
    user = find_user(call, snapshot.id)
    if user is not None:
        raise ServiceError(
            "InvalidSnapshot.InUse",
            f"The snapshot {snapshot.id} is currently in use by {user}",
        )
    call.end_dry_run()
    del call.region.snapshots[snapshot.id]
    return {}


def find_user(call: Call, snapshot_id: str) -> str | None:
    """The id of the image that uses a snapshot."""
    images = call.region.images.values()
    return next((each.id for each in images if snapshot_id in each.snapshot_ids), None)


def modify_snapshot_attribute(call: Call) -> dict[str, Any]:
    values = call.values
    snapshot = call.find_own_snapshot(values["SnapshotId"])
    add, remove = _read_permissions(values)
    if not (add or remove):
        raise ServiceError("InvalidParameterCombination", "Nothing to change is given")
    if add and snapshot.encrypted and (ALL in add or is_default_key(snapshot.kms_key)):
        raise ServiceError(
            "OperationNotPermitted", "Encrypted snapshots with EBS default key cannot be shared"
        )
    if ALL in add and call.region.snapshot_block_public != "unblocked":
        raise ServiceError(
            "OperationNotPermitted",
            "Public sharing of snapshots is blocked by block public access",
        )
    if snapshot.state != "completed":
        raise ServiceError("IncorrectState", f"The snapshot {snapshot.id} is not completed")
    call.end_dry_run()
    snapshot.shared_with = (snapshot.shared_with | add) - remove
    return {}


def _read_permissions(values: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Reads whom to add and whom to remove, from either form of the request."""
    if values.get("Attribute", "createVolumePermission") != "createVolumePermission":
        raise invalid("Only createVolumePermission can be changed")
    changes = values.get("CreateVolumePermission", {})
    add = _read_grantees(changes.get("Add", ()))
    remove = _read_grantees(changes.get("Remove", ()))
    if "OperationType" in values:
        plain = [{"UserId": each} for each in values.get("UserIds", ())]
        plain += [{"Group": each} for each in values.get("GroupNames", ())]
        (add if values["OperationType"] == "add" else remove).update(_read_grantees(plain))
    elif "UserIds" in values or "GroupNames" in values:
        raise ServiceError("MissingParameter", "OperationType is missing")
    return add, remove


def _read_grantees(given: Iterable[Mapping[str, str]]) -> set[str]:
    found = set()
    for each in given:
        user, group = each.get("UserId"), each.get("Group")
        if group not in (None, ALL) or (user is not None and not _is_account(user)):
            raise ServiceError("InvalidParameterValue", f"'{user or group}' is no account or group")
        found.add(group or user or "")
    return found


def _is_account(text: str) -> bool:
    return len(text) == 12 and text.isdigit()


def describe_snapshot_attribute(call: Call) -> dict[str, Any]:
    snapshot = call.find_own_snapshot(call.values["SnapshotId"])
    if call.values["Attribute"] == "productCodes":
        return {"SnapshotId": snapshot.id, "ProductCodes": []}
    permissions = [
        {"Group": ALL} if each == ALL else {"UserId": each} for each in sorted(snapshot.shared_with)
    ]
    return {"SnapshotId": snapshot.id, "CreateVolumePermissions": permissions}


def get_snapshot_block_public_access_state(call: Call) -> dict[str, Any]:
    return {"State": call.region.snapshot_block_public, "ManagedBy": "account"}


def get_ebs_encryption_by_default(call: Call) -> dict[str, Any]:
    return {"EbsEncryptionByDefault": call.region.encryption_by_default}


# --- ImportSnapshot -----------------------------------------------------------------------------


def import_snapshot(call: Call) -> dict[str, Any]:
    values = call.values
    repeated = call.find_repeated()
    if repeated is not None:
        return _describe_started(call.region.imports[repeated])
    tags = call.take_tags("import-snapshot-task")["import-snapshot-task"]
    container = values.get("DiskContainer", {})
    if container.get("Format", "").upper() not in _FORMATS:
        raise ServiceError("InvalidParameter", "The disk container's format is not supported")
    encrypted = values.get("Encrypted", False)
    check_key(values, encrypted)
    role = values.get("RoleName", "vmimport")
    if role not in call.state.roles:
        raise ServiceError("InvalidParameter", _BAD_ROLE.format(role))
    bucket, key, content = _find_object(call, container)
    call.end_dry_run()
    task = ImportTask(
        id=make_id("import-snap"),
        owner=call.account.id,
        description=values.get("Description"),
        format=container["Format"].upper(),
        bucket=bucket,
        key=key,
        content=content,
        tags=tags,
        encrypted=encrypted or call.region.encryption_by_default,
        kms_key=values.get("KmsKeyId"),
        pending=call.state.make_pending(),
    )
    assert task.pending is not None
    task.pending.fails = call.state.faults.take_one("imports_to_fail")
    call.region.imports[task.id] = task
    call.remember(task.id)
    return _describe_started(task)


def check_key(values: Mapping[str, Any], encrypted: bool) -> None:
    if "KmsKeyId" in values and not encrypted:
        raise ServiceError(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        )


def _find_object(call: Call, container: Mapping[str, Any]) -> tuple[str, str, bytes]:
    where = container.get("UserBucket")
    if where is None:
        raise ServiceError("MissingParameter", "The disk container has no UserBucket")
    name, key = where.get("S3Bucket", ""), where.get("S3Key", "")
    bucket = call.state.buckets.get(name)
    if bucket is None:
        raise ServiceError("InvalidParameter", f"The given S3 bucket {name} does not exist")
    if bucket.region != call.region.name:
        raise ServiceError("InvalidParameter", "The given S3 bucket is not local to the region")
    if key not in bucket.objects:
        raise ServiceError("InvalidParameter", f"The given S3 object {key} does not exist")
    return name, key, bucket.objects[key].data


def _describe_started(task: ImportTask) -> dict[str, Any]:
    return {
        "ImportTaskId": task.id,
        "Description": task.description,
        "SnapshotTaskDetail": _describe_task(task),
        "Tags": describe_tags(task.tags),
    }


def _describe_task(task: ImportTask) -> dict[str, Any]:
    return {
        "Description": task.description,
        "DiskImageSize": float(len(task.content)),
        "Encrypted": task.encrypted,
        "Format": task.format,
        "KmsKeyId": task.kms_key,
        "Progress": None if task.status == "completed" else "3",
        "SnapshotId": task.snapshot_id,
        "Status": task.status,
        "StatusMessage": task.message or ("pending" if task.status == "active" else None),
        "UserBucket": {"S3Bucket": task.bucket, "S3Key": task.key},
    }


def describe_import_snapshot_tasks(call: Call) -> dict[str, Any]:
    ids = call.values.get("ImportTaskIds", [])
    tasks = call.region.imports
    for each in ids:
        if each not in tasks:
            raise ServiceError(
                "InvalidConversionTaskId.Malformed", f"There is no import task {each}"
            )
    found = [tasks[each] for each in ids] if ids else list(tasks.values())
    for each in found:
        _settle_task(call, each)
    page, token = call.list(
        found,
        {
            "import-task-id": lambda t: [t.id],
            "task-state": lambda t: [t.status],
            "tag-key": tag_keys,
        },
        ids=ids,
        least=1,
    )
    described = [
        {
            "ImportTaskId": each.id,
            "Description": each.description,
            "SnapshotTaskDetail": _describe_task(each),
            "Tags": describe_tags(each.tags),
        }
        for each in page
    ]
    for each in page:
        if each.pending is not None:
            each.pending.looks -= 1
    return {"ImportSnapshotTasks": described, "NextToken": token}


def _settle_task(call: Call, task: ImportTask) -> None:
    pending = task.pending
    if pending is None or not pending.is_due(call.state.clock.now()):
        return
    task.pending = None
    if pending.fails:
        task.status, task.message = "deleted", "ClientError: Disk validation failed"
        return
    size = max(1, math.ceil(len(task.content) / GIB))
    snapshot = call.state.add_snapshot(call.region.name, task.owner, size)
    snapshot.description = f"Created by AWS-VMImport service for {task.id}"
    snapshot.encrypted = task.encrypted
    snapshot.kms_key = (task.kms_key or call.region.default_key) if task.encrypted else None
    snapshot.state = "completed"
    _fill(call.state, snapshot, task.content)
    task.status, task.snapshot_id = "completed", snapshot.id


def _fill(state: Ec2State, snapshot: Snapshot, content: bytes) -> None:
    for start in range(0, len(content), BLOCK_BYTES):
        data = content[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        if any(data):
            snapshot.written[start // BLOCK_BYTES] = make_block(state, data)


def cancel_import_task(call: Call) -> dict[str, Any]:
    task_id = call.values.get("ImportTaskId", "")
    check_id(task_id, "import-snap", "InvalidParameter")
    task = call.region.imports.get(task_id)
    if task is None:
        raise ServiceError("InvalidConversionTaskId", f"There is no import task {task_id}")
    if task.pending is None:
        raise ServiceError("IncorrectState", f"The import task {task_id} is {task.status}")
    call.end_dry_run()
    previous, task.status, task.pending = task.status, "deleted", None
    return {"ImportTaskId": task_id, "PreviousState": previous, "State": "deleting"}
