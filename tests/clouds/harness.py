"""What the contract suite needs beside the protocol Cloud: a service whose traffic it can count and
break, and whose images it can read. A new cloud needs one class here and one line in
`HARNESSES`."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from ec2_server import Ec2Server
from ec2_state import BLOCK_BYTES
from strict_cumulus import StrictCumulus

from pipeline.clouds import Cloud
from pipeline.clouds.ec2.cloud import Ec2
from pipeline.clouds.ec2.sandbox_site import Ec2Sandbox
from pipeline.clouds.nimbus.cloud import Nimbus
from pipeline.clouds.nimbus.sandbox_site import NimbusSandbox
from pipeline.clouds.nimbus.settings import CumulusUser
from pipeline.model import BootedImage, BootReport, Disk, Image, Release, Sha256, Site
from pipeline.tools import run


def make_booted(path: Path, data: bytes, disk: Disk) -> BootedImage:
    """An image of these bytes that has passed its boot check."""
    path.write_bytes(data)
    image = Image(
        site="site",
        cloud="cloud",
        file=path,
        disk=disk,
        bytes=len(data),
        sha256=Sha256(hashlib.sha256(data).hexdigest()),
        md5=hashlib.md5(data).hexdigest(),
        disk_bytes=len(data),
        disk_sha256=Sha256(hashlib.sha256(data).hexdigest()),
    )
    report = BootReport(machine="bios", passed=True, facts={})
    return BootedImage(image=image, reports=(report,))


def make_release(folder: Path, name: str, *, summary: str = "Says hello") -> Release:
    """The release of a build whose folder is in `folder`."""
    return Release(
        appliance="hello-phantom",
        version="1.2.0",
        build="4f2a9c01",
        name=name,
        summary=summary,
        labels={"os": "debian"},
        folder=folder / "builds" / hashlib.sha256(name.encode()).hexdigest()[:8],
    )


@dataclass
class Watched:
    """Records the progress."""

    steps: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    done: list[tuple[int, int | None]] = field(default_factory=list)

    def step(self, text: str, *, seconds: float | None = None) -> None:
        self.steps.append(text)

    def finish(self, text: str) -> None:
        self.steps.append(text)

    def fail(self, text: str) -> None:
        self.steps.append(text)

    def advance(self, done: int, total: int | None) -> None:
        self.done.append((done, total))

    def output(self, line: str) -> None:
        self.lines.append(line)


class Harness(Protocol):
    """A cloud's service under the test's control. The clouds that it makes never pause."""

    replaces: bool
    """Whether an upload may replace another image of the same name."""

    repairs: bool
    """Whether the client sends only the damaged part of an image again."""

    def make_cloud(self) -> Cloud: ...

    def make_cloud_with_wrong_secret(self) -> Cloud: ...

    def make_cloud_without_credentials(self) -> Cloud: ...

    def make_unreachable_cloud(self) -> Cloud: ...

    def make_sandbox_cloud(self) -> Cloud: ...

    def count_sent(self) -> int:
        """The number of body bytes that the service has received so far."""

    def read(self, name: str) -> bytes | None:
        """The image's bytes, as the service stores them."""

    def cut_uploads(self, count: int | None) -> None:
        """Cuts this many uploads; with None, all of them until a call with 0."""

    def count_servers(self) -> int:
        """The number of sandbox servers that are running."""

    def damage_uploads(self, count: int) -> None: ...

    def set_quota(self, size: int) -> None: ...

    @property
    def secrets(self) -> tuple[str, ...]: ...


S3ID, SECRET, CANONICAL_ID = (
    "AKexampleid",
    "s3cr3t/+of=hotel",
    "6f1c2d3e-0000-4000-8000-00000000abcd",
)
OTHER = CumulusUser(s3id="AKother", secret="other/secret", canonical_id="other-canonical-id")


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NimbusHarness:
    replaces, repairs = True, False

    def __init__(self, folder: Path) -> None:
        self.user = CumulusUser(s3id=S3ID, secret=SECRET, canonical_id=CANONICAL_ID)
        self.server = StrictCumulus(folder, [self.user, OTHER])
        self.environ = {
            "PHANTOM_HOTEL_S3ID": S3ID,
            "PHANTOM_HOTEL_S3KEY": SECRET,
            "PHANTOM_HOTEL_CANONICAL_ID": CANONICAL_ID,
        }

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.__exit__(*args)

    def make_site(self, **options: object) -> Site:
        given = {"repository": f"127.0.0.1:{self.server.port}", **options}
        return Site(name="hotel", cloud="nimbus", options=given, where="sites.yaml:3")

    def make_nimbus(self, environ: Mapping[str, str] | None = None, **options: object) -> Nimbus:
        return Nimbus(
            self.make_site(**options),
            environ=self.environ if environ is None else environ,
            pause=lambda _: None,
        )

    def make_cloud(self) -> Cloud:
        return self.make_nimbus()

    def make_cloud_with_wrong_secret(self) -> Cloud:
        return self.make_nimbus({**self.environ, "PHANTOM_HOTEL_S3KEY": "wr0ng-secret"})

    def make_cloud_without_credentials(self) -> Cloud:
        return self.make_nimbus({})

    def make_unreachable_cloud(self) -> Cloud:
        return self.make_nimbus(repository=f"127.0.0.1:{find_free_port()}")

    def make_sandbox_cloud(self) -> Cloud:
        site = Site(name="nimbus-sandbox", cloud="nimbus", where="built in", sandbox=True)
        return NimbusSandbox(site, environ={}, pause=lambda _: None)

    def count_sent(self) -> int:
        return sum(each.body_bytes for each in self.server.requests)

    def read(self, name: str) -> bytes | None:
        opened = self.server.store.open(f"VMS/{CANONICAL_ID}/{name}")
        if opened is None:
            return None
        with opened[1] as file:
            return file.read()

    def cut_uploads(self, count: int | None) -> None:
        self.server.cut_puts, self.server.cut_after = 3 if count is None else count, 300_000

    def count_servers(self) -> int:
        return threading.active_count()

    def damage_uploads(self, count: int) -> None:
        self.server.damage_puts = count

    def set_quota(self, size: int) -> None:
        self.server.quotas[CANONICAL_ID] = size

    @property
    def secrets(self) -> tuple[str, ...]:
        return (SECRET, "wr0ng-secret")


@contextmanager
def open_nimbus(folder: Path) -> Iterator[NimbusHarness]:
    with NimbusHarness(folder) as harness:
        yield harness


class Ec2Harness:
    """The tests' strict server in Amazon's place."""

    replaces, repairs = False, True

    def __init__(self) -> None:
        self.server = Ec2Server()
        self.faults = self.server.faults

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.environ = {**self.server.environ}
        return self

    def __exit__(self, *args: object) -> None:
        self.server.__exit__(*args)

    def make_site(self, **options: object) -> Site:
        given = {"region": "us-east-1", "endpoint": self.server.endpoint, **options}
        return Site(name="virginia", cloud="ec2", options=given, where="sites.yaml:3:3")

    def make_ec2(self, environ: Mapping[str, str] | None = None, **options: object) -> Ec2:
        return Ec2(
            self.make_site(**options),
            environ=self.environ if environ is None else environ,
            pause=lambda _: None,
        )

    def make_cloud(self) -> Cloud:
        return self.make_ec2()

    def make_cloud_with_wrong_secret(self) -> Cloud:
        return self.make_ec2({**self.environ, "AWS_SECRET_ACCESS_KEY": "wr0ng-secret"})

    def make_cloud_without_credentials(self) -> Cloud:
        return self.make_ec2({})

    def make_unreachable_cloud(self) -> Cloud:
        return self.make_ec2(endpoint=f"http://127.0.0.1:{find_free_port()}")

    def make_sandbox_cloud(self) -> Cloud:
        site = Site(name="ec2-sandbox", cloud="ec2", where="built in", sandbox=True)
        return Ec2Sandbox(site, environ={}, pause=lambda _: None)

    def count_sent(self) -> int:
        return sum(
            each.body_bytes
            for each in self.server.requests
            if each.action in ("ebs:PutSnapshotBlock", "s3:PutObject", "s3:UploadPart")
        )

    def read(self, name: str) -> bytes | None:
        for image in self.server.images("us-east-1"):
            if image.name == name:
                blocks = self.server.content(image.snapshot_ids[0])
                zeros = bytes(BLOCK_BYTES)
                return b"".join(blocks.get(each, zeros) for each in range(max(blocks) + 1))
        return None

    def cut_uploads(self, count: int | None) -> None:
        if count == 0:
            self.faults.clear()
        else:
            self.faults.reset("ebs:PutSnapshotBlock", times=count)

    def count_servers(self) -> int:
        return len(run._running)

    def damage_uploads(self, count: int) -> None:
        self.faults.wrong_checksum(count)

    def set_quota(self, size: int) -> None:
        self.faults.quota("ebs:StartSnapshot")

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.server.account.secret, "wr0ng-secret")


@contextmanager
def open_ec2(folder: Path) -> Iterator[Ec2Harness]:
    with Ec2Harness() as harness:
        yield harness


HARNESSES: Mapping[str, Callable[[Path], Any]] = {"ec2": open_ec2, "nimbus": open_nimbus}
