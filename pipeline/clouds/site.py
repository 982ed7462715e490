"""What the sites of all clouds have in common: how they are made and opened, and name images."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import BinaryIO, ClassVar, Generic, TypeVar

from pipeline.clouds.launching import Launch, LaunchOrder
from pipeline.errors import ImageNameError
from pipeline.model import Appliance, Disk, Site

Session = TypeVar("Session")
"""What the verbs of an opened site share."""


class CloudSite(ABC, Generic[Session]):
    """A site of a cloud. `open` comes before all verbs that need the network.

    `environ` (the process's own by default) gives the credentials, `clock` the time, and `pause`
    waits between tries.
    """

    cloud_name: ClassVar[str]
    """What people call the cloud."""
    default_image_name: ClassVar[str]
    """The template of image names where an appliance gives none."""
    usual_layout: ClassVar[str]
    """The layout that an image's name does not mention."""

    def __init__(
        self,
        site: Site,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.site = site
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._pause = pause
        self._session: Session | None = None

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Makes the site ready for the verbs. Raises what `_start_session` does."""
        with self._start_session(folder) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    @property
    @abstractmethod
    def disk(self) -> Disk:
        """The file that the site boots."""

    @abstractmethod
    def _start_session(self, folder: Path) -> AbstractContextManager[Session]:
        """Finds settings and credentials."""

    @property
    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__}.open comes first")
        return self._session

    def image_name(self, appliance: Appliance, build: str) -> str:
        """The name by the appliance's template for the cloud, and by the image's layout: images of
        different layouts have different names. Raises ImageNameError for a template that cannot be
        filled in, and for a name that the cloud refuses."""
        name = self._fill_template(appliance, build)
        self._check_image_name(name, appliance)
        return name

    def _fill_template(self, appliance: Appliance, build: str) -> str:
        cloud = self.site.cloud
        override = appliance.clouds.get(cloud)
        template = (override and override.image_name) or self.default_image_name
        layout = self.disk.layout
        fields = {
            "name": appliance.name,
            "version": appliance.version,
            "build": build,
            "layout": layout,
        }
        try:
            used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            unknown = sorted(used - fields.keys())
            if not unknown:
                name = template.format(**fields)
                marked = "layout" in used or layout == self.usual_layout
                return name if marked else self._add_layout(name, layout)
            mistake = f"has no field {', '.join(f'{{{name}}}' for name in unknown)}"
        except ValueError as error:
            mistake = f"cannot be read: {error}"
        except (KeyError, IndexError):
            mistake = "cannot be read: a field stands within another"
        raise ImageNameError(
            f"the template {template!r} of {self.cloud_name} image names {mistake}",
            where=str(appliance.definition),
            todo="use {name}, {version}, {build} and {layout} in "
            f"`clouds: {cloud}: image_name:`",
        )

    def _add_layout(self, name: str, layout: str) -> str:
        """An image's name with the layout in it."""
        return f"{name}-{layout}"

    def _check_image_name(self, name: str, appliance: Appliance | None = None) -> None:
        """Raises ImageNameError for a name that the cloud refuses."""
        mistake = self._find_name_mistake(name)
        if mistake is None:
            return
        error = ImageNameError(f"{self.cloud_name} refuses the image name {name!r}: {mistake}")
        if appliance is not None:
            error.where = str(appliance.definition)
            error.todo = (
                f"change `clouds: {self.site.cloud}: image_name:` (or name and version) of the "
                "appliance"
            )
        raise error

    def open_kept(self, folder: Path, image_id: str) -> BinaryIO | None:
        """None: the site keeps no images on this host."""
        return None

    def launch(self, order: LaunchOrder, *, dry_run: bool) -> Launch:
        """For clouds without launch data, which have nothing to launch by."""
        raise RuntimeError(f"{type(self).__name__} has no launch data")

    @abstractmethod
    def _find_name_mistake(self, name: str) -> str | None:
        """Why the cloud refuses a name; None when it takes it."""
