"""Files of the image: the only way to write into it.

An image is not trusted: anything can be a symbolic link. libguestfs's calls follow links inside the
image, and its bulk calls follow them even into the appliance. So every folder on the path to a file
is checked before anything is written below it, and a file is written under a random name beside its
place and then renamed. Programs of the image may run between two calls, so no call relies on what
an earlier one saw, unless `alone` promises that none runs.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import FileSystemError, UnsafeImageError
from pipeline.guest.appliance import Guest
from pipeline.guest.tree import PIECE, MountedTree, is_regular

TEMPORARY = ".phantom-"
"""What the names of our own temporary files and folders in the image begin with."""

_LEVELS = {str(level): f"/etc/rc.d/rc{level}.d" for level in (*range(7), "S")}
# Links of distributions in the place of folders, and what they lead to.
_USUAL_LINKS: Mapping[str, tuple[str, ...]] = {
    # one /usr: Debian, Fedora, SUSE; Arch and Fedora 42 have one folder for programs, too
    "/bin": ("/usr/bin",),
    "/sbin": ("/usr/sbin", "/usr/bin", "/bin"),
    "/lib": ("/usr/lib", "/lib64"),
    "/lib32": ("/usr/lib32", "/usr/lib"),
    "/lib64": ("/usr/lib64", "/usr/lib", "/lib"),
    "/libx32": ("/usr/libx32",),
    "/usr/sbin": ("/usr/bin",),
    "/usr/lib": ("/usr/lib64",),
    "/usr/lib64": ("/usr/lib",),
    # what moved to /run
    "/var/run": ("/run",),
    "/var/lock": ("/run/lock", "/run"),
    "/var/tmp": ("/tmp",),  # noqa: S108
    "/usr/tmp": ("/var/tmp",),  # noqa: S108
    "/var/mail": ("/var/spool/mail",),
    "/var/spool/mail": ("/var/mail",),
    # init scripts of Red Hat, SUSE and Slackware
    "/etc/init.d": ("/etc/rc.d/init.d",),
    "/etc/rc.d": ("/etc/init.d",),
    **{f"/etc/rc{level}.d": (folder,) for level, folder in _LEVELS.items()},
    # boot loaders
    "/boot/boot": ("/boot",),
    "/boot/grub": ("/boot/grub2",),
    "/boot/grub2": ("/boot/grub",),
    # trees that are read-only but for /var
    "/home": ("/usr/home", "/var/home"),
    "/root": ("/var/roothome",),
    "/opt": ("/var/opt",),
    "/srv": ("/var/srv",),
    "/mnt": ("/var/mnt",),
    "/usr/local": ("/var/usrlocal",),
}
_OUR_FOLDERS = ("/usr/lib/phantom/", "/var/lib/phantom/", "/etc/phantom/")
_UNIT_FOLDERS = ("/etc/systemd/", "/usr/lib/systemd/", "/lib/systemd/")
_OF_UNITS = (".wants", ".requires", ".d")
_FULL = ("No space left on device", "Disk quota exceeded", "Wrote only")  # the last says tar
_MOST_LINKS = 16  # on the way to one file


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file of this host that lands in the image, owned by root."""

    target: PurePosixPath
    mode: int
    source: Path


class ImageFiles(MountedTree):
    """The files of the image whose root is mounted at /.

    Nothing is written through a symbolic link of the image. A link in the place of a file, or of
    one of our own folders, is replaced. A link in the place of another folder is followed if
    distributions have such a link (`/bin` to `usr/bin`); any other raises UnsafeImageError. Reading
    follows the same links and no others: what lies behind another link counts as absent.

    Paths are absolute. What is written belongs to root. No program of the image is run. All methods
    raise FileSystemError, for instance when the file system is damaged or full.
    """

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self._seen: dict[str, dict[str, int] | None] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Promises that nothing else changes the image during the block, neither its programs nor
        calls of libguestfs's own, so that each place is looked at only once."""
        outer, self._seen = self._seen, self._seen or {}
        try:
            yield
        finally:
            self._seen = outer

    def write(self, path: PurePosixPath, content: bytes | str, mode: int = 0o644) -> None:
        """Makes or replaces a file, in a folder that is made where it is missing."""
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        with self._explained(path):
            place = self._free_place(path)
            temporary = self._handle.mktemp(f"{posixpath.dirname(place)}/{TEMPORARY}XXXXXX")
            with self._removed_on_failure(temporary):
                for start in range(0, len(data), PIECE):
                    self._handle.write_append(temporary, data[start : start + PIECE])
                self._handle.chmod(mode, temporary)
                self._rename(temporary, place)

    def make_folder(self, path: PurePosixPath, mode: int = 0o755) -> None:
        """Makes a folder, and those above it; one that is there keeps its mode."""
        with self._explained(path):
            self._enter(path, mode)

    def link(self, path: PurePosixPath, target: str) -> None:
        """Makes or replaces a symbolic link."""
        with self._explained(path):
            place = self._free_place(path)
            temporary = f"{posixpath.dirname(place)}/{temporary_name()}"
            self._handle.ln_s(target, temporary)
            with self._removed_on_failure(temporary):
                self._rename(temporary, place)

    def move(self, path: PurePosixPath, new: PurePosixPath) -> None:
        """Gives a file, link or folder another place; a file or link there is replaced."""
        with self._explained(path):
            place = self.locate(path)
            if place is None:
                raise FileSystemError(f"the image has no {path} of its own")
            self._rename(place, self._free_place(new))

    def set_aside(self, path: PurePosixPath) -> PurePosixPath | None:
        """Gives what lies at a path another name beside it; None if nothing lies there."""
        if not self.exists(path):
            return None
        aside = path.with_name(temporary_name())
        self.move(path, aside)
        return aside

    def remove(self, path: PurePosixPath) -> None:
        """Removes a file, a link itself, or a folder with all in it. What is absent is no error."""
        with self._explained(path):
            place, status = self._look(path)
            if place is None or status is None:
                return
            self._forget(place)
            if stat.S_ISDIR(status["st_mode"]):
                self._handle.rm_rf(place)
            else:
                self._handle.rm(place)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Makes or replaces files, all at once: hundreds take a second or two."""
        if not copies:
            return
        by_target = {copy.target: copy for copy in copies}
        with self._explained(PurePosixPath("/")):
            staging = self._handle.mkdtemp(f"/{TEMPORARY}XXXXXX")
            with self._removed_on_failure(staging):
                self._upload(list(by_target.values()), staging)
                self._move(list(by_target), staging)
                self._handle.rmdir(staging)

    def read_to_edit(self, path: PurePosixPath) -> str:
        """A text file, which `write` writes back byte for byte even if it is not UTF-8; empty if it
        is absent."""
        return (self.read_bytes(path) or b"").decode("utf-8", "surrogateescape")

    def is_folder(self, path: PurePosixPath) -> bool:
        """Whether a folder lies at this place."""
        return self.locate_folder(path) is not None

    def mode(self, path: PurePosixPath) -> int | None:
        """The permission bits of a regular file; None if there is no such file."""
        _, status = self._look(path)
        return stat.S_IMODE(status["st_mode"]) if is_regular(status) else None

    def owner(self, path: PurePosixPath) -> tuple[int, int] | None:
        """User and group of a regular file; None if there is no such file."""
        _, status = self._look(path)
        return (status["st_uid"], status["st_gid"]) if is_regular(status) else None

    def locate(self, path: PurePosixPath) -> str | None:
        """The place of a file or folder, reached without any link, so that it can be given to calls
        of libguestfs. The last part may be absent, or be a link itself. None if its folder is
        absent, or lies behind a link that distributions do not have."""
        folder = self._find_folder(path.parent)
        return None if folder is None else posixpath.join(folder, path.name)

    def locate_folder(self, path: PurePosixPath) -> str | None:
        """The place of a folder, reached only by links that distributions have; None if it is
        absent."""
        with self._explained(path):
            return self._find_folder(path)

    def _find_folder(self, path: PurePosixPath) -> str | None:
        try:
            return self._walk(path, make=None)
        except UnsafeImageError:
            return None

    def _enter(self, path: PurePosixPath, mode: int = 0o755) -> str:
        """The place of a folder, made where it is missing."""
        place = self._walk(path, make=mode)
        assert place is not None
        return place

    def _walk(self, path: PurePosixPath, *, make: int | None) -> str | None:
        """The place of a folder, reached without any link. With `make`, missing folders are made,
        the last with that mode; else None for them. Raises UnsafeImageError."""
        place, parts, links = "/", _parts(path), 0
        while parts:
            part = parts.pop(0)
            here = posixpath.join(place, part)
            kind = self._kind(here)
            if kind is not None and stat.S_ISLNK(kind):
                target = self._follow(here)
                links += 1
                if target is not None and links <= _MOST_LINKS:
                    place, parts = "/", [*_parts(PurePosixPath(target)), *parts]
                    continue
                if not _is_ours(here):
                    raise UnsafeImageError(
                        f"the image's {here} is a link to {self._guest.read_link(here)}, and files "
                        "are to be written below it",
                        todo="make it a folder in the base image, or name files by the folder that "
                        "it leads to",
                    )
            if kind is None or not stat.S_ISDIR(kind):
                if make is None:
                    return None
                self._make(here, kind, make if not parts else 0o755)
            place = here
        return place

    def _make(self, here: str, kind: int | None, mode: int) -> None:
        if kind is not None:
            if not _is_ours(here):
                raise FileSystemError(
                    f"the image's {here} is no folder, and files are to be written into it"
                )
            self._handle.rm(here)
        self._forget(here)
        self._handle.mkdir_mode(here, mode)
        self._handle.chmod(mode, here)

    def _follow(self, here: str) -> str | None:
        """The target of a link that distributions have; None for any other link."""
        folder, target = posixpath.dirname(here), self._guest.read_link(here)
        target = posixpath.normpath(posixpath.join(folder, target))
        return target if target in _USUAL_LINKS.get(here, ()) else None

    def _free_place(self, path: PurePosixPath) -> str:
        """The place for a new file, cleared of a folder of ours."""
        place = posixpath.join(self._enter(path.parent), path.name)
        self._clear(place, self._kind(place))
        return place

    def _clear(self, place: str, kind: int | None) -> None:
        if kind is None or not stat.S_ISDIR(kind):
            return
        if not _is_ours(place):
            raise FileSystemError(f"the image's {place} is a folder, and to be made a file")
        self._forget(place)
        self._handle.rm_rf(place)

    def _rename(self, place: str, new: str) -> None:
        self._forget(place)
        self._forget(new)
        self._handle.rename(place, new)

    def _forget(self, place: str) -> None:
        """Forgets what was seen at a place and below it, because it is about to change."""
        seen = self._seen or {}
        for known in [known for known in seen if f"{known}/".startswith(f"{place}/")]:
            del seen[known]

    def _kind(self, place: str) -> int | None:
        status = self._status(place)
        return None if status is None else int(status["st_mode"])

    def _status(self, place: str, *, file: bool = False) -> dict[str, int] | None:
        """What lstat says of a place whose folder was looked at: no link to a file is followed."""
        if self._seen is not None and place in self._seen:
            return self._seen[place]
        status = self._guest.status(place)
        if self._seen is not None:
            self._seen[place] = status
        return status

    def _upload(self, copies: Sequence[Copy], staging: str) -> None:
        """Uploads files to a folder of ours, where their names are numbers."""
        with tempfile.TemporaryFile(dir=self._guest.log.parent) as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                for number, copy in enumerate(copies):
                    with copy.source.open("rb") as content:
                        status = os.fstat(content.fileno())
                        member = tarfile.TarInfo(str(number))
                        member.mode, member.size = copy.mode, status.st_size
                        member.mtime = int(status.st_mtime)
                        archive.addfile(member, content)
            packed.flush()
            self._handle.tar_in(f"/dev/fd/{packed.fileno()}", staging)

    def _move(self, targets: Sequence[PurePosixPath], staging: str) -> None:
        numbers: dict[PurePosixPath, list[tuple[int, str]]] = {}
        for number, target in enumerate(targets):
            numbers.setdefault(target.parent, []).append((number, target.name))
        for folder, files in numbers.items():
            place = self._enter(folder)
            statuses = self._handle.lstatnslist(place, [name for _number, name in files])
            for (number, name), status in zip(files, statuses, strict=True):
                here = posixpath.join(place, name)
                self._clear(here, None if status["st_ino"] == -1 else status["st_mode"])
                self._rename(f"{staging}/{number}", here)

    def _explained(self, path: PurePosixPath) -> AbstractContextManager[object]:
        """Turns libguestfs's errors into FileSystemError."""

        def explain(error: RuntimeError) -> FileSystemError:
            if any(text in str(error) for text in _FULL):
                return full()
            reason = str(error).strip().rpartition(": ")[2]
            return FileSystemError(f"the image's file system fails at {path}: {reason}")

        return self._guest.explained(explain)

    @contextmanager
    def _removed_on_failure(self, temporary: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                self._handle.rm_rf(temporary)
            raise


def temporary_name() -> str:
    """A new name for a file or folder of ours in the image."""
    return f"{TEMPORARY}{secrets.token_hex(8)}"


def full() -> FileSystemError:
    """The error for an image whose file system is full."""
    return FileSystemError(
        "the image's root file system is full",
        todo="give the appliance a larger disk_size, or remove something from the base",
    )


def _parts(path: PurePosixPath) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part]


def _is_ours(place: str) -> bool:
    """Whether a place is ours alone, so that what lies there may be replaced."""
    name = posixpath.basename(place)
    if name.startswith("phantom-") or f"{place}/".startswith(_OUR_FOLDERS):
        return True
    return place.startswith(_UNIT_FOLDERS) and name.endswith(_OF_UNITS)
