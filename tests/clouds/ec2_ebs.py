"""The EBS direct APIs of the strict EC2 server."""

from __future__ import annotations

import base64
import bisect
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ec2_protocol import Answer, Request, ServiceError, write_ebs_answer
from ec2_state import BLOCK_BYTES, Account, Block, Ec2State, Region, Snapshot, make_token

LARGEST_VOLUME_GIB = 65_536  # docs/facts/ec2.md
MOST_TAGS = 50
TOKEN_SECONDS = 7 * 24 * 3600  # a block token's life: docs/facts/ec2.md
_PAGE = 10_000  # the list calls' maximum and default, from botocore's model


@dataclass(frozen=True, kw_only=True)
class EbsCall:
    """A well-formed request from an authenticated caller."""

    state: Ec2State
    region: Region
    account: Account
    values: Mapping[str, Any]
    request: Request

    def find_snapshot(self, key: str = "SnapshotId") -> Snapshot:
        """The snapshot that a parameter names, if the caller may see it."""
        snapshot = self.region.snapshots.get(self.values[key])
        if snapshot is None or self.state.is_hidden(snapshot):
            raise _not_found(self.values[key])
        if not snapshot.is_visible_to(self.account.id):
            raise ServiceError(
                "AccessDeniedException",
                f"You are not authorized to use snapshot '{snapshot.id}'",
                status=403,
                reason="UNAUTHORIZED_ACCOUNT",
            )
        self.state.settle(snapshot)
        return snapshot

    def find_pending(self) -> Snapshot:
        """One of the caller's snapshots that still takes blocks."""
        snapshot = self.find_snapshot()
        if snapshot.owner != self.account.id:
            raise ServiceError(
                "AccessDeniedException",
                f"Snapshot '{snapshot.id}' is another account's",
                status=403,
                reason="UNAUTHORIZED_ACCOUNT",
            )
        if snapshot.state != "pending" or snapshot.completing is not None:
            raise _invalid(f"Snapshot '{snapshot.id}' is not pending", "INVALID_SNAPSHOT_ID")
        return snapshot

    def find_completed(self, key: str = "SnapshotId") -> Snapshot:
        snapshot = self.find_snapshot(key)
        if snapshot.state != "completed":
            raise _invalid(f"Snapshot '{snapshot.id}' is not completed", "INVALID_SNAPSHOT_ID")
        return snapshot


def _invalid(message: str, reason: str = "INVALID_PARAMETER_VALUE") -> ServiceError:
    return ServiceError("ValidationException", message, reason=reason)


def _not_found(snapshot_id: str) -> ServiceError:
    return ServiceError(
        "ResourceNotFoundException",
        f"The snapshot '{snapshot_id}' does not exist.",
        status=404,
        reason="SNAPSHOT_NOT_FOUND",
    )


# --- StartSnapshot ------------------------------------------------------------------------------


def start_snapshot(call: EbsCall) -> Answer:
    state, values = call.state, call.values
    given = {k: v for k, v in values.items() if k != "ClientToken"}
    token = values.get("ClientToken")
    known = state.start_tokens.get((call.region.name, token)) if token else None
    if known is not None:
        if known[0] != given:
            raise ServiceError(
                "ConflictException",
                "The client token was used with other parameters",
                status=409,
            )
        snapshot = call.region.snapshots.get(known[1])
        if snapshot is None:
            raise _not_found(known[1])
        state.settle(snapshot)
        return _describe_start(snapshot)
    tags = _check_tags(values.get("Tags", ()))
    if values["VolumeSize"] > LARGEST_VOLUME_GIB:
        raise _invalid(f"VolumeSize is above {LARGEST_VOLUME_GIB}", "INVALID_VOLUME_SIZE")
    parent = _find_parent(call)
    encrypted = _check_encryption(call, parent)
    pending = [
        each
        for each in call.region.snapshots.values()
        if each.owner == call.account.id and _is_open(state, each)
    ]
    if len(pending) >= state.pending_limit:
        raise ServiceError(
            "ServiceQuotaExceededException",
            f"You have {len(pending)} pending snapshots, which is the quota",
            status=402,
            reason="DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
        )
    snapshot = state.add_snapshot(
        call.region.name, call.account.id, values["VolumeSize"], parent=parent
    )
    snapshot.tags, snapshot.description = tags, values.get("Description")
    snapshot.timeout_minutes = values.get("Timeout", snapshot.timeout_minutes)
    if encrypted:
        snapshot.encrypted, snapshot.kms_key = (
            True,
            values.get("KmsKeyArn", call.region.default_key),
        )
    snapshot.hidden_until = snapshot.started + state.faults.hidden_seconds
    snapshot.hidden_times = state.faults.hidden_times
    if token:
        state.start_tokens[call.region.name, token] = (given, snapshot.id)
    return _describe_start(snapshot)


def _is_open(state: Ec2State, snapshot: Snapshot) -> bool:
    state.settle(snapshot)
    return snapshot.state == "pending"


def _check_tags(given: Any) -> dict[str, str]:
    tags = {each.get("Key", ""): each.get("Value", "") for each in given}
    if len(given) > MOST_TAGS or len(tags) != len(given):
        raise _invalid(f"More than {MOST_TAGS} tags, or a key twice", "INVALID_TAG")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.lower().startswith("aws:"):
            raise _invalid(f"The tag {key!r} is not allowed", "INVALID_TAG")
    return tags


def _find_parent(call: EbsCall) -> Snapshot | None:
    if "ParentSnapshotId" not in call.values:
        return None
    if "Encrypted" in call.values or "KmsKeyArn" in call.values:
        raise _invalid("ParentSnapshotId cannot be given with Encrypted or KmsKeyArn")
    parent = call.find_completed("ParentSnapshotId")
    if call.values["VolumeSize"] < parent.volume_gib:
        raise _invalid("The volume is smaller than the parent's", "INVALID_VOLUME_SIZE")
    return parent


def _check_encryption(call: EbsCall, parent: Snapshot | None) -> bool:
    """Whether the request's parameters or the region's default encrypt the snapshot."""
    by_default = call.region.encryption_by_default
    if parent is not None:
        if by_default and not parent.encrypted:
            raise _invalid("Encryption by default forbids an unencrypted parent")
        return False
    wanted = call.values.get("Encrypted")
    if (wanted is False and by_default) or ("KmsKeyArn" in call.values and not wanted):
        raise _invalid("Encrypted must be true")
    return bool(wanted) or by_default


def _describe_start(snapshot: Snapshot) -> Answer:
    values = {
        "SnapshotId": snapshot.id,
        "OwnerId": snapshot.owner,
        "Status": snapshot.state,
        "StartTime": snapshot.started,
        "VolumeSize": snapshot.volume_gib,
        "BlockSize": BLOCK_BYTES,
        "Description": snapshot.description,
        "ParentSnapshotId": snapshot.parent_id,
        "KmsKeyArn": snapshot.kms_key,
        "SseType": "sse-kms" if snapshot.encrypted else "none",
        "Tags": [{"Key": k, "Value": v} for k, v in snapshot.tags.items()],
    }
    return write_ebs_answer("StartSnapshot", values)


# --- writing ------------------------------------------------------------------------------------


def put_snapshot_block(call: EbsCall) -> Answer:
    values, digest = call.values, call.request.body_digest
    snapshot = call.find_pending()
    data = call.request.body
    if values["DataLength"] != BLOCK_BYTES or len(data) != BLOCK_BYTES:
        raise _invalid(f"A block has {BLOCK_BYTES} bytes, not {len(data)}", "INVALID_BLOCK")
    if values["BlockIndex"] >= snapshot.block_count:
        raise _invalid(f"The volume has no block {values['BlockIndex']}", "INVALID_BLOCK")
    refused = call.state.faults.take_one("checksums_to_refuse")
    if refused or values["Checksum"] != base64.b64encode(digest).decode():
        raise _invalid("The checksum is not the data's", "INVALID_BLOCK")
    if call.state.faults.take_one("blocks_to_damage"):
        data = bytes([data[0] ^ 1]) + data[1:]
        digest = hashlib.sha256(data).digest()
    snapshot.written[values["BlockIndex"]] = call.state.blocks.add(data, digest)
    snapshot.last_used = call.state.clock.now()
    answer = {"Checksum": base64.b64encode(digest).decode(), "ChecksumAlgorithm": "SHA256"}
    return write_ebs_answer("PutSnapshotBlock", answer)


def complete_snapshot(call: EbsCall) -> Answer:
    values, snapshot = call.values, call.find_pending()
    if values["ChangedBlocksCount"] != len(snapshot.written):
        raise _invalid(
            f"ChangedBlocksCount is {values['ChangedBlocksCount']}, and {len(snapshot.written)}"
            " blocks were written"
        )
    if "Checksum" in values:
        if values.get("ChecksumAggregationMethod") != "LINEAR":
            raise _invalid("Checksum is given without ChecksumAggregationMethod")
        if values.get("ChecksumAlgorithm") != "SHA256":
            raise _invalid("Checksum is given without ChecksumAlgorithm")
        if values["Checksum"] != make_linear_checksum(snapshot.written):
            raise _invalid("The checksum is not that of the written blocks")
    snapshot.completing = call.state.make_pending()
    snapshot.completing.fails = call.state.faults.take_one("completions_to_fail")
    return write_ebs_answer("CompleteSnapshot", {"Status": "pending"})


def make_linear_checksum(blocks: Mapping[int, Block]) -> str:
    """SHA-256, in base64, of the blocks' raw digests in the order of their index."""
    digests = b"".join(blocks[index].digest for index in sorted(blocks))
    return base64.b64encode(hashlib.sha256(digests).digest()).decode()


# --- reading ------------------------------------------------------------------------------------


def list_snapshot_blocks(call: EbsCall) -> Answer:
    snapshot = call.find_completed()
    indexes = sorted(snapshot.blocks)
    found, following = _take_page(call, f"blocks {snapshot.id}", indexes)
    values = _describe_list(call, snapshot, following)
    values["Blocks"] = [
        {"BlockIndex": index, "BlockToken": _make_block_token(call, snapshot, index)}
        for index in found
    ]
    return write_ebs_answer("ListSnapshotBlocks", values)


def list_changed_blocks(call: EbsCall) -> Answer:
    second = call.find_completed("SecondSnapshotId")
    first = None
    if "FirstSnapshotId" in call.values:
        first = call.find_completed("FirstSnapshotId")
        if first.lineage != second.lineage:
            raise _invalid("The snapshots are not of one volume", "UNRELATED_SNAPSHOTS")
    before, after = {} if first is None else first.blocks, second.blocks
    changed = sorted(i for i in before.keys() | after.keys() if before.get(i) != after.get(i))
    what = f"changed {first.id if first else ''} {second.id}"
    found, following = _take_page(call, what, changed)
    values = _describe_list(call, second, following)
    values["ChangedBlocks"] = [
        _describe_change(call, first if index in before else None, second, index) for index in found
    ]
    return write_ebs_answer("ListChangedBlocks", values)


def _describe_change(
    call: EbsCall, first: Snapshot | None, second: Snapshot, index: int
) -> dict[str, Any]:
    values: dict[str, Any] = {"BlockIndex": index}
    if first is not None:
        values["FirstBlockToken"] = _make_block_token(call, first, index)
    if index in second.blocks:
        values["SecondBlockToken"] = _make_block_token(call, second, index)
    return values


def _take_page(call: EbsCall, what: str, indexes: list[int]) -> tuple[list[int], str | None]:
    limit = call.values.get("MaxResults", _PAGE)
    start = bisect.bisect_left(indexes, call.values.get("StartingBlockIndex", 0))
    try:
        return call.state.take_page(what, indexes, call.values.get("NextToken"), limit, start)
    except LookupError:
        raise _invalid("The page token is not valid", "INVALID_PAGE_TOKEN") from None


def _describe_list(call: EbsCall, snapshot: Snapshot, following: str | None) -> dict[str, Any]:
    return {
        "ExpiryTime": call.state.clock.now() + TOKEN_SECONDS,
        "VolumeSize": snapshot.volume_gib,
        "BlockSize": BLOCK_BYTES,
        "NextToken": following,
    }


def _make_block_token(call: EbsCall, snapshot: Snapshot, index: int) -> str:
    token = make_token()
    expires = call.state.clock.now() + TOKEN_SECONDS
    call.state.block_tokens[token] = (snapshot.id, index, expires)
    return token


def get_snapshot_block(call: EbsCall) -> Answer:
    snapshot, index = call.find_completed(), call.values["BlockIndex"]
    known = call.state.block_tokens.get(call.values["BlockToken"])
    if known is None or known[:2] != (snapshot.id, index) or known[2] < call.state.clock.now():
        raise _invalid("The block token is not valid", "INVALID_BLOCK_TOKEN")
    block = snapshot.blocks[index]
    values = {
        "DataLength": BLOCK_BYTES,
        "BlockData": call.state.blocks.read(block),
        "Checksum": base64.b64encode(block.digest).decode(),
        "ChecksumAlgorithm": "SHA256",
    }
    return write_ebs_answer("GetSnapshotBlock", values)


ACTIONS: Mapping[str, Callable[[EbsCall], Answer]] = {
    "StartSnapshot": start_snapshot,
    "PutSnapshotBlock": put_snapshot_block,
    "CompleteSnapshot": complete_snapshot,
    "ListSnapshotBlocks": list_snapshot_blocks,
    "ListChangedBlocks": list_changed_blocks,
    "GetSnapshotBlock": get_snapshot_block,
}
