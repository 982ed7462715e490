"""Launched appliances for tests, and the description of the image in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.disk.system import FileSystem, Place, System
from pipeline.errors import ApplianceError
from pipeline.guest.appliance import Drive, Guest, launched
from pipeline.guest.files import ImageFiles
from pipeline.guest.image import Image
from pipeline.model import NoProgress


class Heard(NoProgress):
    """Progress that remembers what programs printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def output(self, line: str) -> None:
        self.lines.append(line)


def image_of(guest: Guest, **changes: object) -> Image:
    """The image that is mounted at /, with the description from `debian`."""
    return Image(guest, ImageFiles(guest), debian(**changes))


@contextmanager
def mounted(root: Path, folder: Path, *, network: bool = False) -> Iterator[tuple[Guest, Heard]]:
    """An appliance with a root file system mounted at /. The appliance may end before the
    block does."""
    heard = Heard()
    drive = Drive(file=root, name="root", writable=True)
    with (
        suppress(ApplianceError),
        launched(
            [drive],
            store=folder,
            log=folder / "log",
            progress=heard,
            network=network,
        ) as guest,
    ):
        guest.handle.mount(drive.device, "/")
        yield guest, heard


def debian(**changes: object) -> System:
    """The description of the tests' base images, with changes."""
    place = Place(partition=1, start=1 << 20, size=900 << 20)
    known: dict[str, object] = {
        "disk_bytes": 901 << 20,
        "table": "mbr",
        "partitions": (),
        "boot_code": True,
        "file_systems": (FileSystem(place=place, type="ext4", mount="/"),),
        "root_bytes": 900 << 20,
        "root_features": (),
        "distribution": "debian",
        "family": "debian",
        "release": "12",
        "codename": "bookworm",
        "product": "Debian GNU/Linux 12 (bookworm)",
        "architecture": "x86_64",
        "package_manager": "apt",
        "init": "systemd",
        "boot_loaders": ("grub2",),
        "kernels": (),
        "cloud_init": None,
        "selinux": None,
        "networks": ("ifupdown",),
        "clients": ("curl",),
        "fetcher": False,
    }
    return System(**{**known, **changes})  # type: ignore[arg-type]
