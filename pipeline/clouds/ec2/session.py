"""A site of EC2 that is open: its account, its regions, and the names of its publications."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.clouds.ec2.errors import make_error
from pipeline.clouds.ec2.region import Described, Region, format_moment, get_snapshots, parse_time
from pipeline.clouds.ec2.settings import Ec2Settings
from pipeline.errors import UploadError, UsageError, located
from pipeline.model import NoProgress, Progress, Publication, Sha256, Site
from pipeline.tools.aws import Account, Cut, NoCredentials, Refused

_LOCATION = re.compile(
    r"ec2://(?P<account>[0-9]{12}|sandbox)/(?P<region>[a-z0-9-]+)"
    r"/(?P<image>ami-[0-9a-f]+)/(?P<snapshot>snap-[0-9a-f]+)"
)


class Location(NamedTuple):
    """Where a publication lies: `ec2://<account>/<region>/<image>/<snapshot>`."""

    account: str
    region: str
    image: str
    snapshot: str


@dataclass(eq=False)
class Session:
    """What the verbs of an open site share. `clock` gives the time, and `pause` waits between
    calls."""

    site: Site
    settings: Ec2Settings
    account: Account
    clock: Callable[[], datetime]
    pause: Callable[[float], None]
    progress: Progress = field(default_factory=NoProgress)
    """That of the verb at work: calls that wait for the network report to it."""
    made: dict[str, str] = field(default_factory=dict)
    """The snapshot of each image that this session registered: moto reports another one."""
    proven: set[str] = field(default_factory=set)
    """Snapshots and images that this session has found to hold its disk."""
    disk: Path | None = None
    """The file that is to be published, as `find` or `upload` was given it."""
    _regions: dict[str, Region] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The site, as messages name it."""
        return f"site {self.site.name}"

    @property
    def home(self) -> Region:
        """The region that images are made in."""
        return self.region(self.settings.region)

    def region(self, name: str) -> Region:
        """One region of the account."""
        if name not in self._regions:
            self._regions[name] = Region(self.account, name, self.pause, lambda: self.progress)
        return self._regions[name]

    @cached_property
    def account_id(self) -> str:
        """The number of the account."""
        return self.home.find_account()

    @contextmanager
    def translate_errors(self, region: str | None = None) -> Iterator[None]:
        """Turns failed calls into errors that say what to do, located at the site."""
        with located(self.where):
            try:
                yield
            except (Refused, Cut, NoCredentials) as failure:
                raise make_error(failure, self.settings, region) from failure

    # ---- publications

    def make_publication(self, image: Described, region: Region, sha256: str) -> Publication:
        """The publication that an image is. Raises UploadError for one without a snapshot."""
        image_id = str(image["ImageId"])
        snapshot_id = self.made.get(image_id) or next(iter(get_snapshots(image)), None)
        if snapshot_id is None:
            raise UploadError(
                f"image {image_id} in {region.name} has no snapshot",
                todo="deregister it, and run the same command again",
            )
        return Publication(
            site=self.site.name,
            cloud=self.site.cloud,
            region=region.name,
            image_id=image_id,
            location=f"ec2://{self.account_id}/{region.name}/{image_id}/{snapshot_id}",
            sha256=Sha256(sha256),
            published_at=format_moment(parse_time(image["CreationDate"])),
            sandbox=self.site.sandbox,
        )

    def parse_location(self, publication: Publication) -> Location:
        """Where a publication lies. Raises UsageError for what is no image of EC2."""
        match = _LOCATION.fullmatch(publication.location)
        if match is None or publication.image_id != match["image"]:
            raise self.make_foreign(publication, "it is no image of EC2")
        return Location(**match.groupdict())

    def make_foreign(self, publication: Publication, reason: str) -> UsageError:
        """The error of a publication that is not the site's own."""
        return UsageError(
            f"{publication.location} is no image of {self.where}: {reason}",
            where=self.where,
            todo="name a site and account that the publication belongs to",
        )
