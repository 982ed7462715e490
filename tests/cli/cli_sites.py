"""A Nimbus site under the test's control: a Cumulus server, and its entry in `sites.yaml`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from cli_runs import Project
from strict_cumulus import StrictCumulus

from pipeline.clouds.nimbus.settings import CumulusUser

S3ID, SECRET = "AKexampleid", "s3cr3t/+of=hotel"
CANONICAL_ID = "6f1c2d3e-0000-4000-8000-00000000abcd"


class CumulusSite:
    """The site `hotel`; its server runs in the test's own process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        user = CumulusUser(s3id=S3ID, secret=SECRET, canonical_id=CANONICAL_ID)
        self.server = StrictCumulus(folder, [user])
        self.environ = {
            "PHANTOM_HOTEL_S3ID": S3ID,
            "PHANTOM_HOTEL_S3KEY": SECRET,
            "PHANTOM_HOTEL_CANONICAL_ID": CANONICAL_ID,
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.__exit__(*args)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def configure(self, project: Project) -> None:
        """Writes `sites.yaml`."""
        configure(project, self.host)

    def images(self) -> dict[str, int]:
        """Names and sizes of the account's images."""
        prefix = f"VMS/{CANONICAL_ID}/"
        return {each.key.removeprefix(prefix): each.size for each in self.server.store.list(prefix)}

    def read(self, name: str) -> bytes:
        opened = self.server.store.open(f"VMS/{CANONICAL_ID}/{name}")
        assert opened is not None
        with opened[1] as file:
            return file.read()

    def puts(self) -> list[tuple[str, int, int]]:
        """Path, status and bytes of each PUT of an image; the status is 0 if it was cut."""
        return [
            (each.path, each.status, each.body_bytes)
            for each in self.server.requests
            if each.method == "PUT" and each.path.startswith(f"/Repo/VMS/{CANONICAL_ID}/")
        ]

    def count_sent(self) -> int:
        """Bytes of all request bodies so far."""
        return sum(each.body_bytes for each in self.server.requests)

    def has_half(self) -> bool:
        """Whether the server has a part of an image, but no whole image."""
        return not self.images() and any(
            path.stat().st_size > 1 << 20 for path in (self.folder / "objects").iterdir()
        )


def configure(project: Project, host: str, more: str = "") -> None:
    """Writes a `sites.yaml` with the site `hotel`."""
    project.write("sites.yaml", f"sites:\n  hotel: {{cloud: nimbus, repository: '{host}'{more}}}\n")


def find_dead_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
