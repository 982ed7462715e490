"""The tree of errors: what went wrong, where, and what to do, with an exit status each.

Every error that a user can meet derives from `PhantomError` and has an exit status of its own, so
that a build server can tell them apart; `tests/unit/test_errors.py` holds them unique. Statuses 1
(a defect of ours), 2 (wrong command line) and 130 (interrupted) belong to `cli.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar


class PhantomError(Exception):
    """Base of all errors that are shown to people.

    `what` is one line; `where` names file and line, stage or site; `todo` says what to do; `log`
    is the file with the full output; `detail` holds further lines, such as the end of a console.
    `published` has the publications that a site had finished when it raised the error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        todo: str | None = None,
        log: Path | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo
        self.log = log
        self.detail = detail
        self.published: tuple[Any, ...] = ()

    def located(self, where: str) -> PhantomError:
        """This error, with `where` filled in unless the raiser knew better."""
        self.where = self.where or where
        return self

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.detail:
            lines += [f"  | {line}" for line in self.detail.rstrip().splitlines()]
        if self.todo:
            lines.append(f"  do: {self.todo}")
        if self.log:
            lines.append(f"  log: {self.log}")
        return "\n".join(lines)


class DefinitionError(PhantomError):
    """A definition or `sites.yaml` is missing or has mistakes; `detail` lists every one."""

    exit_code = 10


class UnknownElementError(PhantomError):
    """An element is in none of the folders of the elements path, or not for this source."""

    exit_code = 11


class UnknownPackageError(PhantomError):
    """The archive has no such package, or not one that can be installed with the others."""

    exit_code = 12


class MirrorError(PhantomError):
    """A package mirror cannot be reached or sends what its signature does not cover."""

    exit_code = 13


class HostError(PhantomError):
    """The build host lacks a program, a package or a kernel feature that a stage needs."""

    exit_code = 14


class SudoError(PhantomError):
    """A stage needs root's rights, and neither root nor a usable sudo is there."""

    exit_code = 15


class DiskTooSmallError(PhantomError):
    """The content does not fit on the disk that the definition asks for."""

    exit_code = 16


class NoSpaceError(PhantomError):
    """The build host has no space left."""

    exit_code = 17


class StageFailedError(PhantomError):
    """A program that a stage runs failed; the error carries its last lines and its log."""

    exit_code = 18


class StoreError(PhantomError):
    """The store cannot be used: not a directory, not writable, or of another layout."""

    exit_code = 19


class GuestSilentError(PhantomError):
    """The guest did not boot: nothing on its console says that it came up."""

    exit_code = 20


class GuestNetworkError(PhantomError):
    """The guest came up, but never reached the metadata service."""

    exit_code = 21


class GuestUserDataError(PhantomError):
    """The guest got its user-data and did not run it well, or never said so."""

    exit_code = 22


class GuestCheckError(PhantomError):
    """The guest ran, and its report or the appliance's own check script found a fault."""

    exit_code = 23


class UsageError(PhantomError):
    """Words on the command line that fit no appliance, site or build."""

    exit_code = 24


class KernelError(PhantomError):
    """The image's kernel, or its initramfs, lacks a driver that a site's machines need."""

    exit_code = 25


class CredentialsError(PhantomError):
    """A site's credentials are missing, incomplete or refused."""

    exit_code = 30


class SiteUnreachableError(PhantomError):
    """A site's end point does not answer."""

    exit_code = 31


class ImageNameError(PhantomError):
    """A site's rules forbid the name that an image would have."""

    exit_code = 32


class UploadError(PhantomError):
    """A site did not take an image whole: cut, refused, or stored with another digest."""

    exit_code = 33


class QuotaError(PhantomError):
    """A site has no room left for this account."""

    exit_code = 34


class CredentialsExpiredError(PhantomError):
    """A site's credentials were valid once, and have expired."""

    exit_code = 35


class RightsError(PhantomError):
    """The account lacks a right; the message names the action."""

    exit_code = 36


class RegionError(PhantomError):
    """A region does not exist, or is not enabled for the account."""

    exit_code = 37


class NameTakenError(PhantomError):
    """Another image, which is not ours or has other content, has the name already."""

    exit_code = 38


class SharingBlockedError(PhantomError):
    """The account or region forbids to share images as the site's options ask."""

    exit_code = 39


class ImportRoleError(PhantomError):
    """The role that a site's import service works under is missing or may not read the image."""

    exit_code = 40


class VolumeTooSmallError(PhantomError):
    """The image is larger than the volume that a site's options ask for."""

    exit_code = 41


class InUseError(PhantomError):
    """What should be removed is in use by something else."""

    exit_code = 42


class ApplianceError(PhantomError):
    """libguestfs's appliance does not start, or ended while it worked."""

    exit_code = 43


class ChecksumError(PhantomError):
    """A base image is not the one that its definition pins."""

    exit_code = 44


class DownloadError(PhantomError):
    """A base image cannot be fetched whole."""

    exit_code = 45


class ImageFormatError(PhantomError):
    """A base image is none, is damaged, is not of its declared format, or names other files."""

    exit_code = 46


class NoSystemError(PhantomError):
    """A base image holds no operating system."""

    exit_code = 47


class SeveralSystemsError(PhantomError):
    """A base image holds more than one operating system."""

    exit_code = 48


class UnknownSystemError(PhantomError):
    """A base image's operating system is of a distribution that is not known."""

    exit_code = 49


class PackageManagerError(PhantomError):
    """A base image has no package manager to do what the definition asks."""

    exit_code = 50


class InitSystemError(PhantomError):
    """A base image has no init system that the user-data fetcher can be started by."""

    exit_code = 51


class ClientError(PhantomError):
    """A base image has neither curl nor wget, and the user-data fetcher needs one."""

    exit_code = 52


class EncryptedError(PhantomError):
    """A base image's root is encrypted."""

    exit_code = 53


class ScriptError(PhantomError):
    """A definition's script failed in a base image; the error has its last lines."""

    exit_code = 54


class ScriptHungError(PhantomError):
    """A definition's script did not end in its time."""

    exit_code = 55


class ScriptRebootError(PhantomError):
    """A definition's script shut the machine down that it ran in."""

    exit_code = 56


class ArchitectureError(PhantomError):
    """A base image's programs are for another architecture, and cannot be run to change it."""

    exit_code = 57


class FileSystemError(PhantomError):
    """A base image's file system is damaged or has no room for what is to be written."""

    exit_code = 58


class UnsafeImageError(PhantomError):
    """A base image has links where files are to be written, and what they lead to is not theirs."""

    exit_code = 59


class PackagesFailedError(PhantomError):
    """A base image's package manager failed."""

    exit_code = 60


class BaseNotBuiltError(PhantomError):
    """A definition starts from another appliance's build, which is not there."""

    exit_code = 61
