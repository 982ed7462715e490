"""Debian packages that are files of a definition (deb(5)), and an archive of them for apt."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from pipeline.errors import DefinitionError, StageFailedError
from pipeline.file_copies import PackageFile
from pipeline.model import KIB, MIB, Package, Sha256
from pipeline.realfile import open_file
from pipeline.tools import run

_MAGIC = b"!<arch>\ndebian-binary"
_MOST = 16 * MIB  # of all that describes a package; Debian's largest has 2 MiB
_MOST_CONTROL = 256 * KIB
_EXPANSION = 4  # how much larger a package is once it is installed, where it does not say
_ORIGIN = "phantom-image definition"
_PRIORITY = 1001  # the file is what the definition names, even where an archive has a newer version
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Debian Policy 5.6.1, 5.6.8, 5.6.12
_REQUIRED = {
    "Package": re.compile(r"[a-z0-9][a-z0-9+.-]+"),
    "Version": re.compile(r"[0-9][A-Za-z0-9.+:~-]*"),
    "Architecture": re.compile(r"[a-z0-9][a-z0-9-]*"),
}
_OF_THE_ARCHIVE = {"filename", "size", "md5sum", "sha1", "sha256", "sha512", "status"}
"""What an archive says of a package, and a package itself has no business to say."""


class NotPackageError(ValueError):
    """A file is no Debian package; the text says why."""


@dataclass(frozen=True, kw_only=True)
class LocalPackage(Package):
    """A package that is a file of the definition, as the plan found it."""

    path: Path = field(compare=False, metadata={"key": False})
    """Canonical."""
    stanza: str = field(compare=False, repr=False, metadata={"key": False})
    """Its entry in an archive's index, which calls the file `./<sha256>.deb`."""
    where: str = field(default="", compare=False, metadata={"key": False})
    """`file:line:column` of its entry in the definition."""

    @property
    def file(self) -> str:
        """What the file is called in an archive."""
        return f"{self.sha256}.deb"


def read_control(file: BufferedReader) -> dict[str, str]:
    """The fields of a package's control file; values of several lines keep these. The file is not
    trusted: it must have a name, a version and an architecture as Debian's policy writes them.

    Raises NotPackageError.
    """
    if file.read(len(_MAGIC)) != _MAGIC:
        raise NotPackageError("is no Debian package")
    # Another name may lead to another file by now; the descriptor does not.
    opened = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    try:
        packed = run.capture_head(["dpkg-deb", "--ctrl-tarfile", opened], _MOST)
    except run.ToolError as error:
        said = error.output.strip().splitlines()[-1:] or [error.what]
        reason = said[0].removeprefix("dpkg-deb: error: ").replace(opened, "it")
        raise NotPackageError(f"is no sound Debian package: {reason}") from error
    return _parse(_unpack(packed))


def _unpack(packed: bytes) -> str:
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            for member in tar:
                if member.name in ("control", "./control") and member.isreg():
                    opened = tar.extractfile(member)
                    assert opened is not None
                    content = opened.read(_MOST_CONTROL + 1)
                    if len(content) > _MOST_CONTROL:
                        raise NotPackageError("has a control file that is too large")
                    return content.decode()
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise NotPackageError("is no sound Debian package: its control file is damaged") from error
    raise NotPackageError("is no sound Debian package: it has no control file")


def _parse(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in text.strip("\n").split("\n"):
        found = _FIELD.fullmatch(line)
        if line[:1] in (" ", "\t") and line.strip() and name:
            fields[name] += f"\n{line}"
        elif found and found[1].lower() not in map(str.lower, fields):
            name = next((each for each in _REQUIRED if each.lower() == found[1].lower()), found[1])
            fields[name] = found[2].rstrip()
        else:  # a second paragraph would be a second package
            raise NotPackageError("is no sound Debian package: its control file is malformed")
    if _CONTROL.search(text):
        raise NotPackageError("is no sound Debian package: its control file is no text")
    for name, form in _REQUIRED.items():
        if not form.fullmatch(fields.get(name, "")):
            raise NotPackageError(
                f"is no sound Debian package: its control file has no valid {name}"
            )
    return fields


def read_packages(files: Iterable[PackageFile]) -> tuple[LocalPackage, ...]:
    """The packages of a definition's files, with their digests. Raises DefinitionError for a file
    that was changed after the definition was read."""
    return tuple(map(_read, files))


def _read(file: PackageFile) -> LocalPackage:
    try:
        with open_file(file.path) as opened:
            fields = read_control(opened)
            opened.seek(0)
            digest = Sha256(hashlib.file_digest(opened, "sha256").hexdigest())
            size = os.fstat(opened.fileno()).st_size
    except (OSError, NotPackageError) as error:
        raise _changed(file) from error
    found = (fields["Package"], fields["Version"], fields["Architecture"])
    if found != (file.name, file.version, file.architecture):
        raise _changed(file)
    return LocalPackage(
        name=file.name,
        version=file.version,
        architecture=file.architecture,
        sha256=digest,
        path=file.path,
        stanza=_stanza(fields, digest, size),
        where=file.where,
    )


def _changed(file: PackageFile) -> DefinitionError:
    return DefinitionError(
        f"{file.path.name} was changed after the definition was read",
        where=file.where or None,
        todo="run the same command again",
    )


def _stanza(fields: Mapping[str, str], digest: Sha256, size: int) -> str:
    told = {name: value for name, value in fields.items() if name.lower() not in _OF_THE_ARCHIVE}
    told.setdefault("Installed-Size", str(_EXPANSION * size // KIB + 1))
    told |= {"Filename": f"./{digest}.deb", "Size": str(size), "SHA256": digest}
    return "".join(f"{name}: {value}\n" for name, value in told.items())


def copy(local: LocalPackage, place: Path) -> None:
    """Copies a package's file. Raises StageFailedError if it is not what was planned."""
    try:
        with open_file(local.path) as opened, place.open("xb") as written:
            shutil.copyfileobj(opened, written)
        with place.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
    except FileNotFoundError:
        digest = ""
    if digest != local.sha256:
        raise StageFailedError(
            f"{local.path} was changed after the plan was made", todo="run the same command again"
        )


def write_index(packages: Sequence[LocalPackage], folder: Path) -> None:
    """Writes the index of an archive of these packages, in one folder; the packages themselves are
    not put there."""
    folder.mkdir(parents=True, exist_ok=True)
    index = "\n".join(local.stanza for local in packages).encode()
    (folder / "Packages").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    (folder / "Release").write_text(
        f"Origin: {_ORIGIN}\nSHA256:\n {digest} {len(index)} Packages\n"
    )


def source_line(folder: str, options: str = "") -> str:
    """The line of a `sources.list` for the archive in a folder, which nobody signed."""
    return f"deb [{f'{options} trusted=yes'.strip()}] file:{folder} ./\n"


def preferences(packages: Iterable[LocalPackage]) -> str:
    """What apt's preferences say: these files are taken, and not what another archive has."""
    return "".join(
        f"Package: {local.name}\nPin: release o={_ORIGIN}\nPin-Priority: {_PRIORITY}\n\n"
        for local in packages
    )


def describe(packages: Iterable[LocalPackage]) -> list[dict[str, str]]:
    """The packages as a manifest lists them, with the names of their files."""
    return [
        {
            "file": local.path.name,
            "name": local.name,
            "version": local.version,
            "sha256": local.sha256,
        }
        for local in packages
    ]
