"""The root file system that rules look at, with what several of them want to know of it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.checks.dpkg import Dpkg, read_dpkg
from pipeline.checks.search import Match, search
from pipeline.disk.contents import Contents, File
from pipeline.disk.os_release import Release, read_os_release
from pipeline.disk.untrusted import lines_of, to_printable

_UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


@dataclass(frozen=True)
class User:
    """An entry of /etc/passwd."""

    name: str
    uid: str
    home: str
    shell: str


class Root:
    """A root file system. `host_name` is that of the build host, which the image should not have;
    empty where that does not matter."""

    def __init__(self, contents: Contents, host_name: str = "") -> None:
        self.contents = contents
        self.host_name = host_name

    @cached_property
    def release(self) -> Release | None:
        """The distribution, as os-release has it."""
        return read_os_release(self.contents.read)

    @cached_property
    def dpkg(self) -> Dpkg | None:
        """The database of Debian's packages; None where there is none."""
        return read_dpkg(self.contents)

    @cached_property
    def users(self) -> tuple[User, ...]:
        """Those of /etc/passwd."""
        users = []
        for line in lines_of(self.contents.text("/etc/passwd")):
            fields = line.split(":")
            if len(fields) == 7:
                name, _, uid, _, _, home, shell = fields
                users.append(User(to_printable(name), uid, home, shell))
        return tuple(users)

    @cached_property
    def homes(self) -> tuple[str, ...]:
        """The folders of people: homes that are there, without those of the system's users in
        folders of the system."""
        system = re.compile(r"/(|usr(/.*)?|s?bin|dev|etc|proc|run(/.*)?|var(/(lib|cache|run)/.*)?)")
        homes = {posixpath.normpath(user.home) for user in self.users if user.home[:1] == "/"}
        homes = {home for home in homes if not system.fullmatch(home)} | {"/root"}
        homes |= {file.path for file in self.inside("/home") if file.is_folder}
        found = (self.contents.find(home) for home in homes)
        return tuple(sorted({file.path for file in found if file is not None and file.is_folder}))

    @cached_property
    def matches(self) -> tuple[Match, ...]:
        """What the contents of files hold that none should."""
        return tuple(search(self.contents, self.host_name))

    @cached_property
    def enabled(self) -> frozenset[str]:
        """The units of systemd, with their suffixes, and the scripts of other init systems, that
        start at boot."""
        names = set()
        folders = [each for folder in _UNIT_FOLDERS for each in self.inside(folder)]
        for folder in folders:
            if folder.is_folder and folder.path.endswith((".wants", ".requires")):
                names |= {file.name for file in self.contents.inside(folder)}
        for level in filter(lambda each: each.is_folder, self.inside("/etc/runlevels")):
            names |= {file.name for file in self.contents.inside(level)}
        for path in (f"/etc/{rc}rc{level}.d" for level in "2345" for rc in ("", "rc.d/")):
            scripts = [file.name for file in self.inside(path)]
            started = {name[3:] for name in scripts if re.match("S[0-9][0-9].", name)}
            # systemd takes no script of which it has a unit.
            names |= {name for name in started if not self.unit_text(f"{name}.service")}
        return frozenset(name for name in names if not self.is_masked(name))

    def is_masked(self, unit: str) -> bool:
        """Whether a unit of systemd cannot start."""
        file = self.contents.files.get(self.contents.locate(f"/etc/systemd/system/{unit}"))
        if file is None:
            return False
        return file.target == "/dev/null" or (file.is_file and not file.size)

    def unit_text(self, unit: str) -> str:
        """A unit's file, with its drop-ins; of an instance that of its template."""
        name, at, rest = unit.partition("@")
        names = [unit, f"{name}@.{rest.rpartition('.')[2]}"] if at else [unit]
        paths = (f"{folder}/{each}" for each in names for folder in _UNIT_FOLDERS)
        text = next(filter(None, map(self.contents.text, paths)), "")
        for folder in _UNIT_FOLDERS[1::-1]:
            for file in self.inside(f"{folder}/{unit}.d"):
                text += f"\n{self.contents.text(file.path)}" if file.path.endswith(".conf") else ""
        return text

    def inside(self, folder: str) -> Iterator[File]:
        """What lies directly in a folder, sorted; nothing where there is none."""
        place = self.contents.find(folder)
        if place is not None and place.is_folder:
            yield from self.contents.inside(place)

    def program(self, name: str) -> File | None:
        """A program by its name."""
        folders = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
        found = (self.contents.find(f"{folder}/{name}") for folder in folders)
        return next((file for file in found if file is not None and file.is_file), None)

    def belongs_to_package(self, file: File) -> bool | None:
        """Whether a package brought a file; None where that is not known."""
        return None if self.dpkg is None else file.path in self.dpkg.owners
