"""One package per cloud: the disk and virtual hardware it boots, and its verbs.

A new cloud is one package, whose `__init__.py` returns its classes, and one line in `_PACKAGES`.
Nothing outside this folder asks which cloud it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

from pipeline.clouds.held import Held
from pipeline.clouds.launching import Launch, LaunchOrder
from pipeline.clouds.recipes import Recipe
from pipeline.model import (
    Appliance,
    BootedImage,
    Disk,
    Hardware,
    Image,
    Leftover,
    Machine,
    Outlook,
    Progress,
    Publication,
    Release,
    Site,
)

if TYPE_CHECKING:
    from pipeline.machine.metadata import MetadataService


class Cloud(Protocol):
    """A site's cloud. Made from one `Site`, whose options were checked; no network yet."""

    site_schema: ClassVar[Mapping[str, object]]
    """JSON Schema of the site's options in `sites.yaml`."""

    default_instance_type: ClassVar[str]
    """What Phantom starts where a definition names no instance type for this cloud."""

    site_kinds: ClassVar[Mapping[str, Mapping[str, object]]]
    """The kinds of sites that boot images differently: options of a site, by what people call it.
    """

    site: Site

    def __init__(self, site: Site) -> None: ...

    @property
    def disk(self) -> Disk:
        """The file that the site boots."""

    @property
    def hardware(self) -> Hardware:
        """What the image's kernel must have drivers for."""

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The virtual hardware and metadata services that the boot checks imitate, one each."""

    @property
    def common(self) -> bool:
        """Whether published images are for all of the site's users."""

    def image_name(self, appliance: Appliance, build: str) -> str:
        """The image's name at the site. Raises ImageNameError where its rules forbid it."""

    def check_size(self, disk_size: int) -> None:
        """Looks whether the site's options leave room for a disk of so many bytes. Raises
        VolumeTooSmallError."""

    def find_risks(self) -> Sequence[str]:
        """What of the site's settings weakens its security, for people. Needs no network. Raises
        DefinitionError and CredentialsError where the settings cannot be read."""

    def find_credentials(self) -> str:
        """Where the site's credentials come from, for people. Raises CredentialsError,
        CredentialsExpiredError, DefinitionError."""

    def foresee(self, image: Image, release: Release, folder: Path) -> Outlook:
        """What `upload` would do with the image now, found out by calls that change nothing, here
        or at the site. Called without `open`; `folder` as there. Raises as `open` and `find`."""

    def open(self, folder: Path) -> AbstractContextManager[None]:
        """Makes the site ready for the verbs below. `folder` is the site's own on this host, made
        when needed: a sandbox site starts its own local server, which may keep things there, and
        stops it at the end."""

    def check(self) -> None:
        """Proves credentials and rights by cheap calls, before anything is built."""

    def find(self, image: Image, release: Release) -> Publication | None:
        """The publication of these very bytes under this name, if there is one."""

    def upload(self, booted: BootedImage, release: Release, progress: Progress) -> Publication:
        """Sends the image. Safe to repeat; sends nothing when the same bytes are there."""

    def publish(
        self, publication: Publication, release: Release, progress: Progress
    ) -> tuple[Publication, ...]:
        """Makes an uploaded image visible to its users. Returns it first, and then its copies in
        other regions. Safe to repeat."""

    def read_back(
        self, publication: Publication, disk_bytes: int, progress: Progress
    ) -> Held | None:
        """What the site holds as a published image of a disk of so many bytes, from all of its
        bytes; None where it has no such image."""

    def retire(self, publication: Publication) -> None:
        """Removes the image and what describes it. One that is gone already is no error."""

    def open_kept(self, folder: Path, image_id: str) -> BinaryIO | None:
        """The file of a published image, where the site keeps it in its folder on this host: None
        at any site that is no sandbox, and where it has no such image. Called without `open`."""

    def list(self) -> Sequence[Publication]:
        """The images that the site has and this account may see as its own."""

    def find_leftovers(self) -> Sequence[Leftover]:
        """What crashes left at the site and is proven to be this pipeline's own."""

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes one of them. One that is gone already is no error."""

    def launch_data(
        self, publication: Publication, instance_type: str, user_data: bytes | None
    ) -> Mapping[str, object] | None:
        """What starts the image by the cloud's own means, without Phantom; None where the cloud has
        nothing of the kind."""

    def launch(self, order: LaunchOrder, *, dry_run: bool) -> Launch:
        """Starts machines by what `launch_data` told, or with `dry_run` tells what would be done.
        After an interruption, the same order gets the machines that were started."""


@dataclass(frozen=True, kw_only=True)
class CloudClasses:
    """What a cloud's package has, as the `load` in its `__init__.py` returns it."""

    site: type[Cloud]
    sandbox: type[Cloud]
    """A site whose images go to a local server that the command starts."""
    metadata: type[MetadataService]
    """What machines of the cloud get their user-data from."""


_PACKAGES = {
    "nimbus": "pipeline.clouds.nimbus",
    "ec2": "pipeline.clouds.ec2",
}
"""Each cloud by its name, and the package that has it. The first one is meant where none is named.
"""


def _load(name: str) -> CloudClasses:
    """The classes of a cloud, imported when first asked for."""
    classes: CloudClasses = import_module(_PACKAGES[name]).load()
    return classes


def clouds() -> dict[str, type[Cloud]]:
    """The classes of all clouds' sites, by the name of the cloud."""
    return {name: _load(name).site for name in _PACKAGES}


def make_cloud(site: Site) -> Cloud:
    """The cloud of a site. That of a sandbox site starts a local server in the cloud's place."""
    classes = _load(site.cloud)
    return (classes.sandbox if site.sandbox else classes.site)(site)


def metadata_service(cloud: str) -> type[MetadataService]:
    """The metadata service of a cloud's machines."""
    return _load(cloud).metadata


def find_recipes(publication: Publication, data: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """How people start a published image without Phantom, by `make_recipes` of the module `recipes`
    in the cloud's package; nothing where that has no such module, and for a cloud that this program
    does not know. `data` is that of its launch template, empty where it has none."""
    module = f"{_PACKAGES.get(publication.cloud)}.recipes"
    if publication.cloud not in _PACKAGES or find_spec(module) is None:
        return ()
    made: tuple[Recipe, ...] = import_module(module).make_recipes(publication, data)
    return made
