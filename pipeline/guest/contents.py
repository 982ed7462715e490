"""All files of a system that libguestfs has mounted, listed once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

from pipeline.disk.contents import Contents, File
from pipeline.disk.system import System
from pipeline.guest.appliance import Guest, NotTextError
from pipeline.model import MIB

_PIECE = MIB  # libguestfs's answers hold less than 4 MiB
_AT_ONCE = 1000  # names of a question to libguestfs
_HASHED = "/usr"  # nearly all files of packages lie there


class GuestContents(Contents):
    """The files of the system that is mounted. `work` is a folder for lists. What has a name that
    is not UTF-8 is left out: libguestfs cannot ask for it. Raises RuntimeError too."""

    def __init__(self, guest: Guest, system: System, work: Path) -> None:
        self._guest = guest
        self._work = work
        super().__init__(_walk(guest, work), _identify(system))

    def chunks(self, file: File) -> Iterator[bytes]:
        for at in range(0, file.size, _PIECE):
            yield bytes(self._guest.handle.pread(file.path, _PIECE, at))

    def md5(self, file: File) -> str:
        found = self._digests.get(file.path)
        return found or str(self._guest.handle.checksum("md5", file.path))

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Those below /usr, in one call: one for each file would take ten times as long."""
        place = self.find(_HASHED)
        if place is None or not place.is_folder:
            return {}
        sums = self._work / "sums"
        self._guest.handle.checksums_out("md5", place.path, str(sums))
        lines = os.fsdecode(sums.read_bytes()).splitlines()
        # md5sum escapes odd names, after a backslash: those are asked for one by one.
        pairs = (line.split("  ", 1) for line in lines if line[:1] != "\\")
        return {f"{place.path}{name.removeprefix('.')}": digest for digest, name in pairs}


def _identify(system: System) -> Iterator[str]:
    for each in system.file_systems:
        yield f"UUID={each.uuid}"
        yield f"LABEL={each.label}"
    for partition in system.partitions:
        yield f"PARTUUID={partition.uuid}"
        yield f"PARTLABEL={partition.name}"


def _walk(guest: Guest, work: Path) -> Iterator[File]:
    listed = work / "names"
    guest.handle.find0("/", str(listed))
    folders: dict[str, list[str]] = {}
    for path in listed.read_bytes().split(b"\0"):
        try:
            folder, _, last = f"/{path.decode().lstrip('/')}".rpartition("/")
        except UnicodeDecodeError:
            continue
        if last and f"{folder}/{last}" != "/lost+found":
            folders.setdefault(folder, []).append(last)
    root = guest.handle.lstatns("/")
    yield File("", root["st_mode"], root["st_uid"], root["st_gid"], 0)
    for folder, names in folders.items():
        rest = iter(names)
        while some := [*islice(rest, _AT_ONCE)]:
            yield from _describe(guest, folder, some)


def _describe(guest: Guest, folder: str, names: list[str]) -> Iterator[File]:
    """The files of these names in a folder."""
    statuses = guest.handle.lstatnslist(folder or "/", names)
    links = [*_read_links(guest, folder or "/", names, statuses)]
    for name, status, target in zip(names, statuses, links, strict=True):
        if status["st_ino"] != -1:
            owner = status["st_uid"], status["st_gid"]
            yield File(f"{folder}/{name}", status["st_mode"], *owner, status["st_size"], target)


def _read_links(
    guest: Guest, folder: str, names: list[str], statuses: list[dict[str, int]]
) -> Iterator[str | None]:
    """The targets of those names that are links."""
    pairs = zip(names, statuses, strict=True)
    links = [name for name, status in pairs if stat.S_ISLNK(status["st_mode"])]
    try:
        targets = dict(zip(links, guest.handle.readlinklist(folder, links), strict=True))
    except NotTextError:
        targets = {name: guest.read_link(f"{folder.rstrip('/')}/{name}") for name in links}
    for name in names:
        yield targets.get(name)
