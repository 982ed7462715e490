"""An EC2 site on the tests' strict server, with an image to publish there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ec2_state import BLOCK_BYTES
from harness import Ec2Harness, Watched, make_booted, make_release

from pipeline.clouds.ec2.cloud import Ec2
from pipeline.model import BootedImage, Disk, Publication

DATA = os.urandom(BLOCK_BYTES) + bytes(BLOCK_BYTES) + os.urandom(BLOCK_BYTES)
ACCOUNT, SECOND = "111122223333", "222233334444"


class Kit:
    """A cloud on the strict server, with an image and its release."""

    def __init__(self, ec2: Ec2Harness, folder: Path) -> None:
        self.ec2, self.folder = ec2, folder
        self.progress = Watched()
        self.booted = self.make(DATA)
        self.release = make_release(folder, "hello-1.2.0-4f2a9c01")

    def make(self, data: bytes) -> BootedImage:
        return make_booted(self.folder / f"disk-{len(os.listdir(self.folder))}", data, self.disk)

    @property
    def disk(self) -> Disk:
        return self.ec2.make_ec2().disk

    @contextmanager
    def open(self, **options: Any) -> Iterator[Ec2]:
        cloud = self.ec2.make_ec2(**options)
        with cloud.open(self.folder):
            yield cloud

    def upload(self, **options: Any) -> Publication:
        with self.open(**options) as cloud:
            return cloud.upload(self.booted, self.release, self.progress)

    def publish(self, **options: Any) -> tuple[Publication, ...]:
        with self.open(**options) as cloud:
            made = cloud.upload(self.booted, self.release, self.progress)
            return cloud.publish(made, self.release, self.progress)
