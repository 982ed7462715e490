"""The image in the appliance, as the modules that change it get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from pipeline.disk.system import System
from pipeline.errors import InitSystemError
from pipeline.guest.appliance import Guest
from pipeline.guest.files import ImageFiles

_PROGRAMS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class Image:
    """An image whose root file system is mounted at / in the appliance, and writable."""

    guest: Guest
    files: ImageFiles
    system: System
    """What the last inspection found in it."""

    @property
    def init(self) -> str:
        """The init system: `systemd`, `sysv` or `openrc`. Raises InitSystemError."""
        if self.system.init is None:
            raise InitSystemError(
                "the base image has no init system that is known, so that nothing in it would "
                "fetch user-data at boot",
                todo="take a base image with systemd, SysV init or OpenRC",
            )
        return self.system.init

    @cached_property
    def programs(self) -> Mapping[str, PurePosixPath]:
        """The image's programs by name, each where its root would find it, as they are when this is
        first asked for. `inspection.look_again` gives an image that asks anew."""
        programs: dict[str, PurePosixPath] = {}
        for folder in map(PurePosixPath, _PROGRAMS):
            for name in self.files.names(folder):
                programs.setdefault(name, folder / name)
        return programs
