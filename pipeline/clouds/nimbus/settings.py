"""Where a Nimbus site's settings and credentials come from.

Settings that are no secret (repository, bucket, ...): the site's options in `sites.yaml`, then the
site's `cloud.properties`, then the defaults of the schema below.

Credentials come as a whole from the first of these that has any, so that those of one site are
never sent to another:

1. `PHANTOM_<SITE>_S3ID`, `PHANTOM_<SITE>_S3KEY`, `PHANTOM_<SITE>_CANONICAL_ID`;
2. the `cloud.properties` that `PHANTOM_<SITE>_CLOUD_PROPERTIES`, or else the option
   `cloud_properties`, names;
3. `NIMBUS_S3ID`, `NIMBUS_S3KEY`, `NIMBUS_CANONICAL_ID`;
4. `~/.nimbus/cloud.properties`, unless it speaks of another repository than the site's options.

`<SITE>` is the site's name in capitals with `_` for all but letters and digits. The canonical id is
no secret: `PHANTOM_<SITE>_CANONICAL_ID`, then the option `canonical_id`, stand above the list.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CredentialsError, DefinitionError
from pipeline.model import MIB, Sha256, Site, SiteKernel

USUAL_PROPERTIES = ".nimbus/cloud.properties"
"""Below the home folder: where Nimbus's own cloud client looks."""

COMMON = "common"
"""The folder of the images that every user of a site sees."""

SANDBOX_HOST = "sandbox"
"""Stands for host and port in the locations of a sandbox, which has another port every time."""

SANDBOX_CANONICAL_ID = "00000000-0000-4000-8000-000000000000"
"""Always the same: the objects that a sandbox keeps belong to the next command's user too."""

_REPOSITORY = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
_CANONICAL_ID = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$"
_FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]{2,62}$"

SITE_SCHEMA: Mapping[str, object] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Options of a Nimbus site",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "repository": {
            "description": "Host and port of the image repository (Cumulus), such as "
            "cumulus.example.org:8888. Taken from cloud.properties when left out.",
            "type": "string",
            "pattern": _REPOSITORY,
        },
        "bucket": {
            "description": "The bucket that holds the site's images.",
            "type": "string",
            "pattern": _FOLDER,
            "default": "Repo",
        },
        "prefix": {
            "description": "What the keys of all images start with.",
            "type": "string",
            "pattern": _FOLDER,
            "default": "VMS",
        },
        "https": {
            "description": "Whether the repository speaks HTTPS.",
            "type": "boolean",
            "default": False,
        },
        "ca_bundle": {
            "description": "File with the certificates (PEM) that vouch for the repository's. "
            "A relative name starts at the working directory.",
            "type": "string",
            "minLength": 1,
        },
        "self_signed": {
            "description": "Accept any certificate of the repository. Whoever sits in between can "
            "then read and change images: naming the certificate with ca_bundle is better.",
            "type": "boolean",
            "default": False,
        },
        "canonical_id": {
            "description": "The canonical id of the account, which names its folder. It comes with "
            "the credentials and is no secret.",
            "type": "string",
            "pattern": _CANONICAL_ID,
            "not": {"const": COMMON},
        },
        "visibility": {
            "description": "Who may start the images: private, the account alone; common, every "
            "user of the site.",
            "enum": ["private", "common"],
            "default": "private",
        },
        "cloud_properties": {
            "description": "A cloud.properties file of Nimbus's cloud client, which gives the "
            "repository and the credentials. A relative name starts at the working directory.",
            "type": "string",
            "minLength": 1,
        },
        "root": {
            "description": "What the site boots: hda, a whole disk with its own boot loader, as "
            "KVM sites do, and Xen sites with pygrub; sda1, a bare file system, as Xen sites do "
            "that give kernel and ramdisk themselves.",
            "enum": ["hda", "sda1"],
            "default": "hda",
        },
        "kernel": {
            "description": "With sda1: a file of this host with the site's kernel, for the boot "
            "check, which otherwise takes a kernel of this host. It must boot in QEMU. A relative "
            "name starts at the working directory.",
            "type": "string",
            "minLength": 1,
        },
        "ramdisk": {
            "description": "The site's ramdisk, beside `kernel`.",
            "type": "string",
            "minLength": 1,
        },
    },
}


COMMAND_LINE = "ro root=/dev/sda1"
"""What a Xen node gives a kernel that boots a bare file system."""


def resolve_kernel(site: Site) -> SiteKernel | None:
    """The kernel that a site boots images with; None where it boots their own.

    Raises DefinitionError for files that are not there, or that fit no other option.
    """
    bare = site.options.get("root") == "sda1"
    named = {name: site.options[name] for name in ("kernel", "ramdisk") if name in site.options}
    if not bare:
        if named:
            raise DefinitionError(
                f"site {site.name} names a {' and a '.join(named)}, but boots whole disks, which "
                "have their own",
                where=site.where,
                todo="add `root: sda1`, or take these options out",
            )
        return None
    if "ramdisk" in named and "kernel" not in named:
        raise DefinitionError(
            f"site {site.name} names a ramdisk without the kernel that it belongs to",
            where=site.where,
            todo="add `kernel: FILE`, or take `ramdisk` out",
        )
    files = {name: Path(str(path)).expanduser().absolute() for name, path in named.items()}
    return SiteKernel(
        command_line=COMMAND_LINE,
        kernel=files.get("kernel"),
        ramdisk=files.get("ramdisk"),
        digests=tuple(_digest(site, name, path) for name, path in files.items()),
    )


def _digest(site: Site, name: str, path: Path) -> Sha256:
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(MIB):
                hashed.update(block)
    except OSError as error:
        raise DefinitionError(
            f"{name} of site {site.name} names {path}, which cannot be read: {error.strerror}",
            where=site.where,
            todo=f"name the file with the site's {name}, or take the option out: a {name} of this "
            "host is taken then",
        ) from error
    return Sha256(hashed.hexdigest())


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """An account of a Cumulus server."""

    s3id: str
    secret: str = field(repr=False)
    canonical_id: str
    source: str
    """Where they come from, for messages: names of variables, or a file."""


@dataclass(frozen=True, kw_only=True)
class NimbusSettings:
    """All that is needed to talk to a Nimbus site's image repository."""

    endpoint: str
    """URL of the server."""
    host: str
    """Host and port as messages and locations name them."""
    bucket: str
    prefix: str
    common: bool
    verify: bool | str
    """Of the server's certificate: True, False, or the file that vouches for it."""
    credentials: Credentials
    sandbox: bool = False

    @property
    def owner(self) -> str:
        """The folder that images go to. Never another user's: Cumulus would let us write there,
        and lock the folder's owner out."""
        return COMMON if self.common else self.credentials.canonical_id


def make_variable_name(site: str, word: str) -> str:
    """The environment variable that holds a setting of one site."""
    return f"PHANTOM_{re.sub(r'[^A-Z0-9]', '_', site.upper())}_{word}"


_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse_properties(text: str) -> dict[str, str]:
    """The keys and values of a Java properties file: `=`, `:` or a space between them, `#` and `!`
    for comments, a backslash at the end goes on with the next line."""
    properties = {}
    for line in _logical_lines(text):
        match = re.match(r"((?:\\.|[^\\=:\s])+)\s*[=:]?\s*(.*)", line, re.DOTALL)
        if match is not None:
            properties[_unescape(match[1])] = _unescape(match[2])
    return properties


def _logical_lines(text: str) -> Iterable[str]:
    pending = ""
    for raw in text.splitlines():
        line = pending + raw.lstrip()
        pending = ""
        if not line or line[0] in "#!":
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = line[:-1]
        else:
            yield line.rstrip()
    if pending:
        yield pending


def _unescape(text: str) -> str:
    return re.sub(
        r"\\(u[0-9A-Fa-f]{4}|.)",
        lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else _ESCAPES.get(m[1], m[1]),
        text,
    )


@dataclass(frozen=True)
class _Account:
    """What one place says of the credentials; parts of it may be missing."""

    names: tuple[str, str, str]
    source: str
    values: Mapping[str, str] = field(repr=False)

    def get(self, index: int) -> str:
        return self.values.get(self.names[index], "").strip()

    @property
    def speaks(self) -> bool:
        return bool(self.get(0) or self.get(1))


_PROPERTY_NAMES = (
    "vws.repository.s3id",
    "vws.repository.s3key",
    "vws.repository.canonicalid",
)


class _Resolver:
    def __init__(self, site: Site, environ: Mapping[str, str]) -> None:
        self.site = site
        self.environ = environ
        self.home = Path(environ.get("HOME") or "/")
        self.named = self._read_named_properties()
        self.usual = self._read_usual_properties()

    def _variable(self, word: str) -> str:
        return make_variable_name(self.site.name, word)

    def _option(self, name: str) -> str | None:
        value = self.site.options.get(name)
        return None if value is None else str(value)

    def _read_named_properties(self) -> tuple[Path, dict[str, str]] | None:
        variable = self._variable("CLOUD_PROPERTIES")
        if self.environ.get(variable):
            path = self._path(self.environ[variable])
            found = _read_properties(path)
            if found is None:
                raise CredentialsError(
                    f"{variable} names {path}, which cannot be read",
                    where=f"site {self.site.name}",
                    todo=f"let {variable} name a cloud.properties file, or unset it",
                )
            return path, found
        option = self._option("cloud_properties")
        if option is None:
            return None
        path = self._path(option)
        found = _read_properties(path)
        if found is None:
            raise DefinitionError(
                f"cloud_properties of site {self.site.name} names {path}, which cannot be read",
                where=self.site.where,
                todo="name the cloud.properties file that came with the account",
            )
        return path, found

    def _read_usual_properties(self) -> tuple[Path, dict[str, str]] | None:
        path = self.home / USUAL_PROPERTIES
        found = _read_properties(path)
        if found is None:
            return None
        stated = self._option("repository") or (self.named or (path, found))[1].get(
            "vws.repository"
        )
        return (path, found) if found.get("vws.repository") == stated else None

    def _path(self, text: str) -> Path:
        return self.home / text[2:] if text.startswith("~/") else Path(text)

    def _setting(self, option: str, key: str, default: str | None = None) -> str | None:
        value = self._option(option)
        if value is not None:
            return value
        for file in (self.named, self.usual):
            if file is not None and file[1].get(key):
                return file[1][key]
        return default

    def _flag(self, option: str, key: str) -> bool:
        return (self._setting(option, key) or "").strip().lower() in ("true", "yes", "1")

    def _accounts(self) -> Iterable[_Account]:
        words = ("S3ID", "S3KEY", "CANONICAL_ID")
        own = tuple(self._variable(word) for word in words)
        yield _Account((own[0], own[1], own[2]), "the environment", self.environ)
        if self.named is not None:
            yield _Account(_PROPERTY_NAMES, str(self.named[0]), self.named[1])
        names = tuple(f"NIMBUS_{word}" for word in words)
        yield _Account((names[0], names[1], names[2]), "the environment", self.environ)
        if self.usual is not None:
            yield _Account(_PROPERTY_NAMES, str(self.usual[0]), self.usual[1])

    def _todo(self) -> str:
        own = [self._variable(word) for word in ("S3ID", "S3KEY", "CANONICAL_ID")]
        return (
            f"set {own[0]}, {own[1]} and {own[2]} (for every site at once: NIMBUS_S3ID, "
            "NIMBUS_S3KEY, NIMBUS_CANONICAL_ID), or let "
            f"{self._variable('CLOUD_PROPERTIES')} name the site's cloud.properties"
        )

    def credentials(self) -> Credentials:
        account = next((each for each in self._accounts() if each.speaks), None)
        if account is None:
            raise CredentialsError(
                "no Nimbus credentials", where=f"site {self.site.name}", todo=self._todo()
            )
        canonical_id = (
            self.environ.get(self._variable("CANONICAL_ID"), "").strip()
            or self._option("canonical_id")
            or account.get(2)
        )
        values = (account.get(0), account.get(1), canonical_id)
        missing = [name for name, value in zip(account.names, values, strict=True) if not value]
        if missing:
            raise CredentialsError(
                f"Nimbus credentials of {account.source} are incomplete: "
                f"{' and '.join(missing)} missing",
                where=f"site {self.site.name}",
                todo=f"add {' and '.join(missing)}; or {self._todo()}",
            )
        if re.match(_CANONICAL_ID, canonical_id) is None or canonical_id == COMMON:
            raise CredentialsError(
                "the canonical id is none: letters, digits and `-` make one, and `common` is taken",
                where=f"site {self.site.name}",
                todo="copy it from the account's cloud.properties to "
                f"{self._variable('CANONICAL_ID')}",
            )
        return Credentials(
            s3id=values[0], secret=values[1], canonical_id=canonical_id, source=account.source
        )

    def settings(self) -> NimbusSettings:
        repository = self._setting("repository", "vws.repository")
        if repository is None or re.match(_REPOSITORY, repository.strip()) is None:
            raise DefinitionError(
                f"site {self.site.name} names no repository (HOST:PORT)",
                where=self.site.where,
                todo="give it the option `repository: HOST:PORT`, or `cloud_properties: FILE`",
            )
        host = repository.strip()
        https = self._flag("https", "vws.repository.s3https")
        return NimbusSettings(
            endpoint=f"{'https' if https else 'http'}://{host}",
            host=host,
            bucket=self._setting("bucket", "vws.repository.s3bucket") or "Repo",
            prefix=(self._setting("prefix", "vws.repository.s3basekey") or "VMS").strip("/"),
            common=self._option("visibility") == "common",
            verify=self._verify(),
            credentials=self.credentials(),
        )

    def _verify(self) -> bool | str:
        bundle = self._option("ca_bundle")
        if bundle is None:
            return not self._flag("self_signed", "vws.repository.s3selfsigned")
        path = self._path(bundle)
        if not path.is_file():
            raise DefinitionError(
                f"ca_bundle of site {self.site.name} names {path}, which is no file",
                where=self.site.where,
                todo="name the file that holds the repository's certificate",
            )
        return str(path)


def _read_properties(path: Path) -> dict[str, str] | None:
    try:
        return parse_properties(path.read_text("latin-1"))
    except OSError:
        return None


def resolve_settings(site: Site, environ: Mapping[str, str]) -> NimbusSettings:
    """The settings of a real site; see the top of this file for what outranks what.

    Raises CredentialsError, which names the variables to set, and DefinitionError.
    """
    return _Resolver(site, environ).settings()


def make_sandbox_settings(site: Site, port: int, s3id: str, secret: str) -> NimbusSettings:
    """The settings of the command's own server: the site's options count as far as they say how
    images are filed; neither environment nor files are read."""
    options = site.options
    return NimbusSettings(
        endpoint=f"http://127.0.0.1:{port}",
        host=SANDBOX_HOST,
        bucket=str(options.get("bucket", "Repo")),
        prefix=str(options.get("prefix", "VMS")),
        common=options.get("visibility") == "common",
        verify=True,
        credentials=Credentials(
            s3id=s3id,
            secret=secret,
            canonical_id=str(options.get("canonical_id", SANDBOX_CANONICAL_ID)),
            source="this command",
        ),
        sandbox=True,
    )
