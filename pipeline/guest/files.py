"""Files of the image: the only way to write into it.

An image is not trusted: anything can be a symbolic link, and libguestfs's calls follow the image's
links inside the image (bulk calls even out of it, into the appliance). So each folder on the way to
a file is looked at before anything is written below it, and a file is written under a random name
beside its place and renamed into it. Between two calls of ours programs of the image may have run,
so nothing that was seen is remembered from call to call, unless `alone` says that none runs.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import FileSystemError, UnsafeImageError
from pipeline.guest.appliance import Guest
from pipeline.model import MIB, format_size

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
_OUR_FOLDERS = ("/usr/lib/phantom", "/var/lib/phantom", "/etc/phantom")
_UNIT_FOLDERS = ("/etc/systemd/", "/usr/lib/systemd/", "/lib/systemd/")
_OF_UNITS = (".wants", ".requires", ".d")
_FULL = ("No space left on device", "Disk quota exceeded", "Wrote only")  # the last says tar
_MOST_LINKS = 16  # on the way to one file
_LONGEST_READ = 16 * MIB
_READ_PIECE = MIB  # libguestfs's answers hold less than 4 MiB


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file of this host that lands in the image, owned by root."""

    target: PurePosixPath
    mode: int
    source: Path


class ImageFiles:
    """The files of the image whose root is mounted at /.

    Nothing is written through a symbolic link of the image. A link in the place of a file or of
    one of our own folders is replaced; one in the place of another folder is followed where
    distributions have it so (`/bin` to `usr/bin`), else UnsafeImageError. What is read is what
    lies at its own place too: whatever is behind another link counts as not there.

    Paths are absolute. What is written belongs to root. No program of the image is run. They
    raise FileSystemError, such as when the file system is damaged or full.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._handle = guest.handle
        self._seen: dict[str, dict[str, int] | None] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts nothing else changes the image, neither a program of its own nor a
        call of libguestfs's: each place is looked at once."""
        outer, self._seen = self._seen, self._seen or {}
        try:
            yield
        finally:
            self._seen = outer

    def write(self, path: PurePosixPath, content: bytes | str, mode: int = 0o644) -> None:
        """Makes or replaces a file, in a folder that is made where it is missing."""
        data = content.encode() if isinstance(content, str) else content
        with self._explained(path):
            place = self._free_place(path)
            temporary = self._handle.mktemp(f"{posixpath.dirname(place)}/{TEMPORARY}XXXXXX")
            with self._removed_on_failure(temporary):
                for start in range(0, len(data), _READ_PIECE):
                    self._handle.write_append(temporary, data[start : start + _READ_PIECE])
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
            temporary = f"{posixpath.dirname(place)}/{TEMPORARY}{secrets.token_hex(8)}"
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

    def remove(self, path: PurePosixPath) -> None:
        """Removes a file, a link itself, or a folder with all in it; nothing where none is."""
        with self._explained(path):
            place = self.locate(path)
            kind = None if place is None else self._kind(place)
            if place is None or kind is None:
                return
            self._forget(place)
            if stat.S_ISDIR(kind):
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
            try:
                self._upload(list(by_target.values()), staging)
                self._move(list(by_target), staging)
                self._handle.rmdir(staging)
            except BaseException:
                with suppress(RuntimeError):
                    self._handle.rm_rf(staging)
                raise

    def read(self, path: PurePosixPath) -> bytes | None:
        """The content of a regular file; None where none lies at this place. Raises
        FileSystemError for one that is too large to be a file of settings."""
        with self._explained(path):
            place = self.locate(path)
            found = None if place is None else self._status(place)
            if found is None or not stat.S_ISREG(found["st_mode"]):
                return None
            size = found["st_size"]
            if size > _LONGEST_READ:
                raise FileSystemError(f"the image's {path} has {format_size(size)}")
            pieces = range(0, size, _READ_PIECE)
            return b"".join(self._handle.pread(place, _READ_PIECE, start) for start in pieces)

    def exists(self, path: PurePosixPath) -> bool:
        """Whether anything lies at this place, be it a link that leads nowhere."""
        with self._explained(path):
            place = self.locate(path)
            return place is not None and self._kind(place) is not None

    def is_folder(self, path: PurePosixPath) -> bool:
        """Whether a folder lies at this place."""
        return self.locate_folder(path) is not None

    def mode(self, path: PurePosixPath) -> int | None:
        """The permission bits of a regular file; None where none lies at this place."""
        with self._explained(path):
            place = self.locate(path)
            kind = None if place is None else self._kind(place)
            return stat.S_IMODE(kind) if kind is not None and stat.S_ISREG(kind) else None

    def names(self, folder: PurePosixPath) -> list[str]:
        """What lies in a folder, sorted; empty where there is none. Names that are not UTF-8 are
        left out: nobody here asks for one."""
        with self._explained(folder):
            place = self.locate_folder(folder)
            return [] if place is None else sorted(self._guest.names(place))

    def read_link(self, path: PurePosixPath) -> str | None:
        """Where a symbolic link leads, as it is written; None where none lies at this place."""
        with self._explained(path):
            place = self.locate(path)
            kind = None if place is None else self._kind(place)
            if kind is None or not stat.S_ISLNK(kind):
                return None
            return self._guest.read_link(str(place))

    def locate(self, path: PurePosixPath) -> str | None:
        """The place of a file or folder, reached without any link: what calls of libguestfs's own
        may be given. The last part may be absent, or be a link itself. None where the folder that
        holds it is not there, or only behind a link that is not usual."""
        if path == PurePosixPath("/"):
            return "/"
        try:
            with self._explained(path):
                folder = self._walk(path.parent, make=None)
        except UnsafeImageError:
            return None
        return None if folder is None else posixpath.join(folder, path.name)

    def locate_folder(self, path: PurePosixPath) -> str | None:
        """The place of a folder, reached without any link but usual ones; None where there is
        none."""
        try:
            with self._explained(path):
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
                    raise _unsafe(here, self._guest.read_link(here))
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
        """Where a usual link leads to; None for any other."""
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(here), self._guest.read_link(here))
        )
        return target if target in _USUAL_LINKS.get(here, ()) else None

    def _free_place(self, path: PurePosixPath) -> str:
        """The place of a file that is to be made, where no folder lies."""
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
        """Says that what lies at a place, and below it, changes now."""
        seen = self._seen or {}
        for each in [each for each in seen if f"{each}/".startswith(f"{place}/")]:
            del seen[each]

    def _kind(self, place: str) -> int | None:
        found = self._status(place)
        return None if found is None else int(found["st_mode"])

    def _status(self, place: str) -> dict[str, int] | None:
        """What lstat says of a place whose folder was looked at."""
        if self._seen is not None and place in self._seen:
            return self._seen[place]
        found = self._guest.status(place)
        if self._seen is not None:
            self._seen[place] = found
        return found

    def _upload(self, copies: Sequence[Copy], staging: str) -> None:
        """Puts files into our own folder, named by their number."""
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
            found = self._handle.lstatnslist(place, [name for _number, name in files])
            for (number, name), status in zip(files, found, strict=True):
                here = posixpath.join(place, name)
                self._clear(here, None if status["st_ino"] == -1 else status["st_mode"])
                self._rename(f"{staging}/{number}", here)

    @contextmanager
    def _explained(self, path: PurePosixPath) -> Iterator[None]:
        """Makes sentences of what libguestfs says."""
        try:
            yield
        except RuntimeError as error:
            if self._guest.ended:
                raise
            if any(text in str(error) for text in _FULL):
                raise full() from error
            reason = str(error).strip().rpartition(": ")[2]
            raise FileSystemError(f"the image's file system fails at {path}: {reason}") from error

    @contextmanager
    def _removed_on_failure(self, temporary: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                self._handle.rm_f(temporary)
            raise


def full() -> FileSystemError:
    """That the image's file system has no room left."""
    return FileSystemError(
        "the image's root file system is full",
        todo="give the appliance a larger disk_size, or remove something from the base",
    )


def _parts(path: PurePosixPath) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part]


def _is_ours(place: str) -> bool:
    """Whether nobody else has a use for what lies there."""
    if any(place == folder or place.startswith(f"{folder}/") for folder in _OUR_FOLDERS):
        return True
    name = posixpath.basename(place)
    if name.startswith("phantom-"):
        return True
    return place.startswith(_UNIT_FOLDERS) and name.endswith(_OF_UNITS)


def _unsafe(link: str, target: str) -> UnsafeImageError:
    return UnsafeImageError(
        f"the image's {link} is a link to {target}, and files are to be written below it",
        todo="make it a folder in the base image, or name files by the folder that it leads to",
    )
