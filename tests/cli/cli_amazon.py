"""An EC2 site under the test's control: the strict server, and its entry in `sites.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cli_runs import Project
from ec2_server import Ec2Server

BLOCK = 512 * 1024
_NOWHERE = "/nonexistent"


class AmazonSite:
    """The site `amazon`, in us-east-1; its server runs in the test's own process."""

    def __init__(self) -> None:
        self.server = Ec2Server()

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.__exit__(*args)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user who may publish at the site."""
        return {**NO_CREDENTIALS, **self.server.environ}

    def configure(self, project: Project, more: str = "", others: str = "") -> None:
        """Writes `sites.yaml`."""
        options = f"cloud: ec2, region: us-east-1, endpoint: '{self.server.endpoint}'{more}"
        project.write("sites.yaml", f"sites:\n  amazon: {{{options}}}\n{others}")

    def masked(self, project: Project, text: str) -> str:
        """A message with what differs from run to run replaced by words."""
        text = project.masked(text).replace(str(self.server.port), "PORT")
        return re.sub(r"\b(ami|snap|i|lt)-[0-9a-f]{8,17}\b", r"\1-ID", text)

    def count_puts(self) -> int:
        """The number of blocks that have arrived so far."""
        return self.server.count("ebs:PutSnapshotBlock", ok=True)


NO_CREDENTIALS = {
    "AWS_CONFIG_FILE": _NOWHERE,
    "AWS_SHARED_CREDENTIALS_FILE": _NOWHERE,
    "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
}


def read_blocks(image: Path) -> Mapping[int, bytes]:
    """The blocks of a raw image, without those that are all zeros."""
    found, zeros = {}, bytes(BLOCK)
    with image.open("rb") as file:
        for index in range(-(-image.stat().st_size // BLOCK)):
            block = file.read(BLOCK).ljust(BLOCK, b"\0")
            if block != zeros:
                found[index] = block
    return found


def without_zeros(blocks: Mapping[int, bytes]) -> Mapping[int, bytes]:
    """A snapshot's blocks, without those that were written as zeros."""
    return {index: data for index, data in blocks.items() if data.strip(b"\0")}
