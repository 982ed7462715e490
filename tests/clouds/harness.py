"""What the contract suite needs of a cloud beside the Cloud protocol: a service that it can count,
break and look into. A new cloud joins by one class here and one line in `HARNESSES`."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from pipeline.clouds import Cloud
from pipeline.clouds.cumulus_server import CumulusServer, CumulusUser, Faults
from pipeline.clouds.nimbus import Nimbus
from pipeline.model import BootedImage, BootReport, Disk, Image, Sha256, Site


def make_booted(path: Path, data: bytes, disk: Disk) -> BootedImage:
    """An image of these bytes, with a passed boot check."""
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
    return BootedImage(image=image, report=BootReport(passed=True, facts={}))


@dataclass
class Watched:
    """Progress that is remembered."""

    steps: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    done: list[tuple[int, int | None]] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def advance(self, done: int, total: int | None) -> None:
        self.done.append((done, total))

    def output(self, line: str) -> None:
        self.lines.append(line)


class Harness(Protocol):
    """A cloud's service under the test's control. Verbs of the clouds that it makes never wait."""

    def make_cloud(self) -> Cloud: ...

    def make_cloud_with_wrong_secret(self) -> Cloud: ...

    def make_cloud_without_credentials(self) -> Cloud: ...

    def make_unreachable_cloud(self) -> Cloud: ...

    def make_sandbox_cloud(self) -> Cloud: ...

    def count_sent(self) -> int:
        """Bytes of bodies that the service got so far."""

    def read(self, name: str) -> bytes | None:
        """The image as the service has it."""

    def cut_uploads(self, count: int) -> None: ...

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
    def __init__(self, folder: Path) -> None:
        self.user = CumulusUser(s3id=S3ID, secret=SECRET, canonical_id=CANONICAL_ID)
        self.faults = Faults()
        self.server = CumulusServer(folder, [self.user, OTHER], faults=self.faults)
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
        return Nimbus(site, environ={}, pause=lambda _: None)

    def count_sent(self) -> int:
        return sum(each.body_bytes for each in self.server.requests)

    def read(self, name: str) -> bytes | None:
        opened = self.server.store.open(f"VMS/{CANONICAL_ID}/{name}")
        if opened is None:
            return None
        with opened[1] as file:
            return file.read()

    def cut_uploads(self, count: int) -> None:
        self.faults.cut_puts, self.faults.cut_after = count, 300_000

    def damage_uploads(self, count: int) -> None:
        self.faults.damage_puts = count

    def set_quota(self, size: int) -> None:
        self.server.users[S3ID] = CumulusUser(
            s3id=S3ID, secret=SECRET, canonical_id=CANONICAL_ID, quota=size
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        return (SECRET, "wr0ng-secret")


@contextmanager
def open_nimbus(folder: Path) -> Iterator[NimbusHarness]:
    with NimbusHarness(folder) as harness:
        yield harness


HARNESSES: Mapping[str, Callable[[Path], Any]] = {"nimbus": open_nimbus}
