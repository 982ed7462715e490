"""What publishing an image would do at EC2, found out without changing anything there or here."""

from __future__ import annotations

from pathlib import Path

from pipeline.clouds.ec2.blocks import BLOCK, find_blocks, reading
from pipeline.clouds.ec2.journal import journal_file
from pipeline.clouds.ec2.proof import Proofs
from pipeline.clouds.ec2.region import FAILED_STATES, find_site, get_snapshots, get_tags
from pipeline.clouds.ec2.register import find_snapshots
from pipeline.clouds.ec2.session import Session
from pipeline.clouds.ec2.settings import CONTENT_TAG
from pipeline.model import Image, Outlook, Release

_COMPARED = "no record of this host names it, so its blocks are compared first"


def foresee_upload(session: Session, image: Image, release: Release) -> Outlook:
    """What becomes of an image that is to have the release's name. Raises Refused, Cut,
    NoCredentials, StoreError."""
    home, site = session.home, session.site.name
    proofs = Proofs(session, release, image.disk_sha256, image.file)
    gone = (*FAILED_STATES, "deregistered")
    for made in home.find_images([{"Name": "name", "Values": [release.name]}]):
        if made.get("State") in gone:
            continue
        image_id = str(made["ImageId"])
        if find_site(made) != site or get_tags(made).get(CONTENT_TAG) != image.disk_sha256:
            return Outlook(action="refuse", bytes=0, detail=f"{image_id} has this name already")
        detail = f"is there already as {image_id}"
        if not proofs.is_noted(home.name, [image_id, *get_snapshots(made)]):
            detail += f"; {_COMPARED}"
        return Outlook(action="reuse", bytes=0, detail=detail)
    full = _count_bytes(image.file)
    if journal_file(release.folder / site).exists():
        return Outlook(action="send", bytes=full, detail="goes on with an upload that was ended")
    snapshots = [str(snapshot["SnapshotId"]) for snapshot in find_snapshots(session, image)]
    if snapshots:
        known = [one for one in snapshots if proofs.is_noted(home.name, [one])]
        detail = f"registers {(known or snapshots)[0]}, which has the same bytes"
        return Outlook(action="copy", bytes=0, detail=detail if known else f"{detail}; {_COMPARED}")
    if session.settings.method == "ebs-direct":
        detail = "blocks that are not zeros; less where an earlier build's snapshot has them"
        return Outlook(action="send", bytes=full, detail=detail)
    return Outlook(action="send", bytes=image.bytes, detail=f"by way of {session.settings.bucket}")


def foresee_rehearsal(image: Image, content: str | None) -> Outlook:
    """What becomes of an image in a sandbox whose record of its name is of this content."""
    if content == image.disk_sha256:
        return Outlook(action="reuse", bytes=0, detail="was rehearsed already")
    if content is not None:
        return Outlook(action="refuse", bytes=0, detail="other content has this name already")
    detail = "blocks that are not zeros, to a local emulator"
    return Outlook(action="send", bytes=_count_bytes(image.file), detail=detail)


def _count_bytes(disk: Path) -> int:
    """Bytes of the blocks of a disk that hold data."""
    with reading(disk), disk.open("rb") as opened:
        return sum(1 for _ in find_blocks(opened.fileno())) * BLOCK
