"""One module per cloud: the disk and virtual hardware it boots, and five verbs.

A new cloud is one module with a class that follows `Cloud`, and one line in `CLOUDS`. Nothing
outside this folder asks which cloud it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

from pipeline.model import Appliance, BootedImage, Disk, Image, Machine, Progress, Publication, Site


class Cloud(Protocol):
    """A site's cloud. Made from one `Site`, whose options were checked; no network yet."""

    site_schema: ClassVar[Mapping[str, object]]
    """JSON Schema of the site's options in `sites.yaml`."""

    default_instance_type: ClassVar[str]
    """What Phantom starts where a definition names no instance type for this cloud."""

    site: Site

    def __init__(self, site: Site) -> None: ...

    @property
    def disk(self) -> Disk:
        """The file that the site boots."""

    @property
    def machine(self) -> Machine:
        """The virtual hardware and metadata service that the boot check imitates."""

    @property
    def common(self) -> bool:
        """Whether published images are for all of the site's users."""

    def image_name(self, appliance: Appliance, build: str) -> str:
        """The image's name at the site. Raises ImageNameError where its rules forbid it."""

    def open(self, sandbox: Path) -> AbstractContextManager[None]:
        """Makes the site ready for the verbs below. A sandbox site starts its own local server,
        keeping its objects in the folder `sandbox`, and stops it at the end."""

    def check(self) -> None:
        """Proves credentials and rights by cheap calls, before anything is built."""

    def find(self, image: Image, name: str) -> Publication | None:
        """The publication of these very bytes under this name, if there is one."""

    def upload(
        self, booted: BootedImage, name: str, summary: str, progress: Progress
    ) -> Publication:
        """Sends the image. Safe to repeat; sends nothing when the same bytes are there."""

    def publish(self, publication: Publication, summary: str) -> Publication:
        """Makes an uploaded image visible to its users."""

    def retire(self, publication: Publication) -> None:
        """Removes the image and what describes it. One that is gone already is no error."""

    def list(self) -> list[Publication]:
        """The images that the site has and this account may see as its own."""


def clouds() -> dict[str, type[Cloud]]:
    """All clouds by the name of their type, imported when first asked for."""
    from pipeline.clouds.nimbus import Nimbus

    return {"nimbus": Nimbus}
