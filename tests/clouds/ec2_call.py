"""What the strict server's EC2 actions share: ids, filters, pages and dry runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ec2_protocol import ServiceError
from ec2_state import BLOCK_BYTES, Account, Block, Ec2State, Image, Region, Snapshot

T = TypeVar("T")
MOST_TAGS = 50
Fields = Mapping[str, Callable[[T], Iterable[str | None]]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A well-formed request from an authenticated and authorized caller."""

    action: str
    state: Ec2State
    region: Region
    account: Account
    values: Mapping[str, Any]
    dry_run: bool

    def end_dry_run(self) -> None:
        """Ends a dry run. Every action that changes something calls this after its checks."""
        if self.dry_run:
            raise ServiceError(
                "DryRunOperation",
                "Request would have succeeded, but DryRun flag is set.",
                status=412,
            )

    def require_right(self, action: str) -> None:
        """Refuses the request if the caller lacks this further right."""
        if self.state.faults.is_denied(action, self.region.name):
            raise ServiceError(
                "UnauthorizedOperation",
                "You are not authorized to perform this operation. User:"
                f" {self.account.arn} is not authorized to perform: {action}",
                status=403,
            )

    # ---- looking up

    def find_snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot that the caller may see, brought up to date."""
        check_id(snapshot_id, "snap", "InvalidSnapshotID.Malformed")
        snapshot = self.region.snapshots.get(snapshot_id)
        hidden = snapshot is None or self.state.is_hidden(snapshot)
        if snapshot is None or hidden or not snapshot.is_visible_to(self.account.id):
            raise ServiceError(
                "InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist."
            )
        self.state.settle(snapshot)
        return snapshot

    def find_own_snapshot(self, snapshot_id: str) -> Snapshot:
        snapshot = self.find_snapshot(snapshot_id)
        if snapshot.owner != self.account.id:
            raise ServiceError(
                "AuthFailure", f"Not authorized for snapshot: {snapshot_id}", status=401
            )
        return snapshot

    def find_image(self, image_id: str) -> Image:
        """An image that the caller may see."""
        check_id(image_id, "ami", "InvalidAMIID.Malformed")
        image = self.region.images.get(image_id)
        if image_id in self.region.deregistered:
            raise ServiceError(
                "InvalidAMIID.Unavailable", f"The image ID '{image_id}' is no longer available"
            )
        if image is None or not image.is_visible_to(self.account.id):
            raise missing_images([image_id])
        return image

    def find_own_image(self, image_id: str) -> Image:
        image = self.find_image(image_id)
        if image.owner != self.account.id:
            raise ServiceError("AuthFailure", f"Not authorized for image:{image_id}", status=401)
        return image

    # ---- tags

    def take_tags(self, *allowed: str) -> dict[str, dict[str, str]]:
        """The tags of TagSpecifications by type of resource."""
        tags: dict[str, dict[str, str]] = {kind: {} for kind in allowed}
        for each in self.values.get("TagSpecifications", ()):
            kind = each.get("ResourceType")
            if kind not in allowed:
                raise invalid(f"'{kind}' is not a valid taggable resource type for this operation.")
            tags[kind] |= check_tags(each.get("Tags", ()))
        if any(tags.values()):
            self.require_right("ec2:CreateTags")
        return tags

    # ---- tokens

    def find_repeated(self) -> str | None:
        """The id that a request with the same client token made earlier.

        ServiceError: that request had other parameters.
        """
        token = self.values.get("ClientToken")
        known = self.state.ec2_tokens.get((self.region.name, self.action, token)) if token else None
        if known is None:
            return None
        if known[0] != self.values:
            raise ServiceError(
                "IdempotentParameterMismatch",
                "The client token has already been used with other parameters",
            )
        return known[1]

    def remember(self, made: str) -> None:
        token = self.values.get("ClientToken")
        if token:
            key = (self.region.name, self.action, token)
            self.state.ec2_tokens[key] = (dict(self.values), made)

    # ---- lists

    def list(
        self,
        items: Iterable[T],
        fields: Fields[T],
        *,
        ids: Sequence[str] | None = None,
        least: int = 5,
        most: int = 1000,
    ) -> tuple[list[T], str | None]:
        """A page of the items that pass Filters, and the next page's token.

        `ids`: the ids in the request, which must not come with MaxResults. `least`, `most`: the
        bounds of MaxResults.
        """
        limit = self.values.get("MaxResults")
        if limit is not None and ids:
            raise ServiceError(
                "InvalidParameterCombination", "MaxResults cannot be used with a list of ids"
            )
        if limit is not None and not least <= limit <= most:
            raise invalid(f"Value ( {limit} ) for parameter maxResults is invalid.")
        found = apply_filters(items, self.values.get("Filters", ()), fields)
        what = json.dumps(
            [self.action, self.region.name, self.account.id]
            + [{k: v for k, v in self.values.items() if k not in ("NextToken", "MaxResults")}],
            sort_keys=True,
        )
        try:
            return self.state.take_page(what, found, self.values.get("NextToken"), limit)
        except LookupError:
            raise invalid("Unable to parse pagination token") from None


def invalid(message: str) -> ServiceError:
    return ServiceError("InvalidParameterValue", message)


def missing_images(image_ids: Sequence[str]) -> ServiceError:
    words = "image id '[{}]' does" if len(image_ids) == 1 else "image ids '[{}]' do"
    named = words.format(", ".join(image_ids))
    return ServiceError("InvalidAMIID.NotFound", f"The {named} not exist")


def check_id(text: str, kind: str, code: str) -> None:
    if not re.fullmatch(rf"{kind}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", text):
        raise ServiceError(code, f'Invalid id: "{text}"')


def check_tags(given: Iterable[Mapping[str, str]]) -> dict[str, str]:
    tags = {}
    for each in given:
        key, value = each.get("Key", ""), each.get("Value", "")
        if key.lower().startswith("aws:"):
            raise invalid("Tag keys starting with 'aws:' are reserved for internal use")
        if not 1 <= len(key) <= 128 or len(value) > 256 or key in tags:
            raise invalid(f"The tag {key!r} is too long, empty, or given twice")
        tags[key] = value
    return tags


def check_tag_count(tags: Mapping[str, str]) -> None:
    if len(tags) > MOST_TAGS:
        raise ServiceError(
            "TagLimitExceeded", f"The maximum number of Tags for a resource is {MOST_TAGS}"
        )


def apply_filters(
    items: Iterable[T], filters: Iterable[Mapping[str, Any]], fields: Fields[T]
) -> list[T]:
    """The items that match at least one value of every filter; `*` and `?` are wildcards."""
    found = list(items)
    for each in filters:
        name, values = each.get("Name", ""), each.get("Values", [])
        read = _find_field(name, fields)
        if not values:
            raise invalid(f"The filter '{name}' has no values")
        patterns = [re.compile(_translate(value), re.DOTALL) for value in values]
        found = [
            item
            for item in found
            if any(
                pattern.fullmatch(text)
                for text in read(item)
                if text is not None
                for pattern in patterns
            )
        ]
    return found


def _find_field(name: str, fields: Fields[T]) -> Callable[[T], Iterable[str | None]]:
    if name in fields:
        return fields[name]
    if name.startswith("tag:") and "tag-key" in fields:
        key = name.removeprefix("tag:")
        return lambda item: [getattr(item, "tags", {}).get(key)]
    raise invalid(f"The filter '{name}' is invalid")


def _translate(value: str) -> str:
    parts = re.findall(r"\\.|\*|\?|[^*?\\]+|\\", value, re.DOTALL)
    return "".join(
        {"*": ".*", "?": "."}.get(part)
        or re.escape(part[1:] if part.startswith("\\") and len(part) > 1 else part)
        for part in parts
    )


def describe_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_keys(item: Any) -> Iterable[str]:
    return list(item.tags)


def yes_no(value: bool) -> str:
    return "true" if value else "false"


def make_block(state: Ec2State, data: bytes) -> Block:
    """Stores a block as PutSnapshotBlock would."""
    assert len(data) == BLOCK_BYTES
    return state.blocks.add(data, hashlib.sha256(data).digest())
