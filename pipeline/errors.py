"""The table of errors: what went wrong, where, and what to do, with an exit status each.

Every error that a user can meet derives from `PhantomError` and has an exit status of its own, so
that a build server can tell them apart; `tests/unit/test_errors.py` holds them unique. Statuses 1
(a defect of ours), 2 (wrong command line) and 130 (interrupted) belong to `cli.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pipeline.resources import locate
from pipeline.terminal import escape


class PhantomError(Exception):
    """Base of all errors that are shown to people.

    `what` is one line; `where` names file and line, stage or site; `todo` says what to do; `log`
    is the file with the full output; `detail` holds further lines, such as the end of a console.
    They are kept as they came; as text, the error is safe to print.
    `published` has the publications that a site had finished when it raised the error.
    """

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, *, status: int | None = None) -> None:
        """`status` is the exit status of the class; without it, that of its base applies."""
        if status is not None:
            cls.exit_code = status

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
        self.todo = None if todo is None else locate(todo)
        self.log = log
        self.detail = detail
        self.published: tuple[Any, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.detail:
            lines += [f"  | {line}" for line in self.detail.rstrip().splitlines()]
        if self.todo:
            lines.append(f"  do: {self.todo}")
        if self.log:
            lines.append(f"  log: {self.log}")
        return "\n".join(map(escape, lines))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Adds `where` to an error that leaves the block, unless the error has a place already."""
    try:
        yield
    except PhantomError as error:
        error.where = error.where or where
        raise


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The kernel's numbers for a full disk, a full quota and a file at its size limit."""


@contextmanager
def translated(
    full: Callable[[OSError], PhantomError], refused: Callable[[OSError], PhantomError | None]
) -> Iterator[None]:
    """Turns an error of the file system into one that says what to do: `full` makes it for a full
    disk, `refused` for anything else. Where `refused` returns None, the error stays as it is."""
    try:
        yield
    except OSError as error:
        told = full(error) if error.errno in NO_SPACE else refused(error)
        if told is None:
            raise
        raise told from error


class DefinitionError(PhantomError, status=10):
    """A definition or `sites.yaml` is missing or has mistakes; `detail` lists every one."""


class UnknownElementError(PhantomError, status=11):
    """No folder of the elements path has the element, or it is not for this source. `element` is
    its name, or None if the path itself is wrong."""

    def __init__(self, what: str, *, element: str | None = None, **more: Any) -> None:
        super().__init__(what, **more)
        self.element = element


class UnknownPackageError(PhantomError, status=12):
    """The archive, or the index of Python packages, has no such package, or it conflicts with the
    others. `packages` are the names that the message mentions."""

    def __init__(self, what: str, *, packages: Collection[str] = (), **more: Any) -> None:
        super().__init__(what, **more)
        self.packages = packages


class MirrorError(PhantomError, status=13):
    """A package mirror, or the index of Python packages, cannot be reached, or sends what its
    signature does not cover."""


class IndexMovedError(MirrorError):
    """An archive changed its index while plans of one snapshot were made."""


class HostError(PhantomError, status=14):
    """The build host lacks a program, a package or a kernel feature that a stage needs."""


class SudoError(PhantomError, status=15):
    """A stage needs root's rights, and the user is not root and has no usable sudo."""


class DiskTooSmallError(PhantomError, status=16):
    """The content does not fit on the disk that the definition asks for."""


class NoSpaceError(PhantomError, status=17):
    """The build host has no space left."""


class StageFailedError(PhantomError, status=18):
    """A program that a stage runs failed; the error carries its last lines and its log."""


class StageLimitError(StageFailedError):
    """A stage took longer than it may."""


class StoreError(PhantomError, status=19):
    """The store cannot be used: not a directory, not writable, or of another layout."""


class GuestSilentError(PhantomError, status=20):
    """The guest did not boot: nothing on its console says that it came up."""


class GuestNetworkError(PhantomError, status=21):
    """The guest came up, but never reached the metadata service."""


class GuestUserDataError(PhantomError, status=22):
    """The guest got its user-data, but running it failed or the guest never said how it ended."""


class GuestCheckError(PhantomError, status=23):
    """The guest ran, and its report or the appliance's own check script found a fault."""


class UsageError(PhantomError, status=24):
    """Words on the command line that fit no appliance, site or build."""


class KernelError(PhantomError, status=25):
    """The image's kernel, or its initramfs, lacks a driver that a site's machines need."""


class CredentialsError(PhantomError, status=30):
    """A site's credentials are missing, incomplete or refused."""


class SiteUnreachableError(PhantomError, status=31):
    """A site's end point does not answer."""


class ImageNameError(PhantomError, status=32):
    """A site's rules forbid the name that an image would have."""


class UploadError(PhantomError, status=33):
    """A site did not take an image whole: cut, refused, or stored with another digest."""


class QuotaError(PhantomError, status=34):
    """A site has no room left for this account."""


class CredentialsExpiredError(PhantomError, status=35):
    """A site's credentials were valid once, and have expired."""


class RightsError(PhantomError, status=36):
    """The account lacks a right; the message names the action."""


class RegionError(PhantomError, status=37):
    """A region does not exist, or is not enabled for the account."""


class NameTakenError(PhantomError, status=38):
    """Another image, which is not ours or has other content, has the name already."""


class SharingBlockedError(PhantomError, status=39):
    """The account or region forbids sharing images as the site's options ask."""


class ImportRoleError(PhantomError, status=40):
    """The role that a site's import service works under is missing or may not read the image."""


class VolumeTooSmallError(PhantomError, status=41):
    """The image is larger than the volume that a site's options ask for."""


class InUseError(PhantomError, status=42):
    """Something else still uses what was to be removed."""


class ApplianceError(PhantomError, status=43):
    """libguestfs's appliance does not start, or ended while it worked."""


class ChecksumError(PhantomError, status=44):
    """A base image, or a package of Python, is not the one that its definition pins."""


class DownloadError(PhantomError, status=45):
    """A base image cannot be fetched completely."""


class ImageFormatError(PhantomError, status=46):
    """A base image is no disk image, is damaged, has another format than declared, or names other
    files."""


class NoSystemError(PhantomError, status=47):
    """A base image holds no operating system."""


class SeveralSystemsError(PhantomError, status=48):
    """A base image holds more than one operating system."""


class UnknownSystemError(PhantomError, status=49):
    """A base image's operating system is of a distribution that is not known."""


class PackageManagerError(PhantomError, status=50):
    """A base image has no package manager to do what the definition asks."""


class InitSystemError(PhantomError, status=51):
    """A base image has no init system that can start the user-data fetcher."""


class ClientError(PhantomError, status=52):
    """A base image has neither curl nor wget, and the user-data fetcher needs one."""


class EncryptedError(PhantomError, status=53):
    """A base image's root is encrypted."""


class ScriptError(PhantomError, status=54):
    """A definition's script failed in a base image; the error has its last lines."""


class ScriptHungError(PhantomError, status=55):
    """A definition's script did not end in its time."""


class ScriptRebootError(PhantomError, status=56):
    """A definition's script shut down the machine that it ran in."""


class ArchitectureError(PhantomError, status=57):
    """A base image's programs are for another architecture, so they cannot run to change it."""


class FileSystemError(PhantomError, status=58):
    """A base image's file system is damaged or has no room for what is to be written."""


class UnsafeImageError(PhantomError, status=59):
    """A base image has links on the way to files that the pipeline would write."""


class PackagesFailedError(PhantomError, status=60):
    """A base image's package manager failed."""


class BaseNotBuiltError(PhantomError, status=61):
    """A definition starts from another appliance's build, which does not exist."""


class CustomizationError(PhantomError, status=62):
    """What a key of the definition says could not be done in the image."""

    @classmethod
    def make(
        cls, key: str, *, where: str | None, log: Path | None, detail: str
    ) -> CustomizationError:
        """The error of a key, with the last lines that were printed."""
        return cls(
            f"{key!r} could not be applied to the image",
            where=where or None,
            todo="correct it; the log has all that was printed",
            log=log,
            detail=detail,
        )


class SecretError(PhantomError, status=63):
    """A secret of the build is in the finished root file system."""


class PhantomServiceError(PhantomError, status=64):
    """A Phantom refuses a call, fails, or answers what is none of its API's."""


class ClockError(PhantomError, status=65):
    """A service refuses what is signed by this host's clock."""


class NotPublishedError(PhantomError, status=66):
    """A build is not published where its machines are to start."""


class ClusterCheckError(PhantomError, status=67):
    """Several machines of an image did not work together: one did not come up, its user-data or
    its check script failed, or it was late."""


class ManifestError(PhantomError, status=70):
    """The manifest that a command is to read is damaged, or of another version."""


class NightFailedError(PhantomError, status=71):
    """A night ran, and something of it failed; the report names it."""


class NightNotRunError(PhantomError, status=72):
    """A night could not run: another one does, or there is nothing to run it with."""


class InstallError(PhantomError, status=74):
    """What runs the nightly every night could not be installed."""


class GateError(PhantomError, status=75):
    """An image has what no image that others boot may have: a password, a key, an identity, a known
    vulnerability."""


class UnsignedError(PhantomError, status=78):
    """A manifest is not signed, and only signed ones count."""


class SignatureError(PhantomError, status=79):
    """A document is signed, but by nobody whose signature counts."""


class TamperedError(PhantomError, status=80):
    """A document or an image, here or at its site, is not what was signed or recorded."""


class GoneError(PhantomError, status=81):
    """What a manifest promises, a file or a site's image, is not there."""


class CatalogManifestsError(PhantomError, status=82):
    """Manifests that a catalog was to be made from cannot be used; `detail` lists them."""


class CatalogFolderError(PhantomError, status=83):
    """The folder of a catalog cannot be written to, or has something else in it."""


class InputsDifferError(PhantomError, status=86):
    """The inputs of a build are not here any more as its manifest names them."""


class NotReproducedError(PhantomError, status=87):
    """A build made once more from the same inputs has other bytes."""
