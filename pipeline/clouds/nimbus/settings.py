"""Where a Nimbus site's settings and credentials come from.

Settings that are not secret (repository, bucket, ...) come from the site's options in `sites.yaml`,
then from its `cloud.properties`, then from the schema's defaults. Credentials come as a whole from
the first of these that has any, so that one site never gets another's:

1. `PHANTOM_<SITE>_S3ID`, `PHANTOM_<SITE>_S3KEY`, `PHANTOM_<SITE>_CANONICAL_ID`;
2. the `cloud.properties` that `PHANTOM_<SITE>_CLOUD_PROPERTIES`, or else the option
   `cloud_properties`, names;
3. `NIMBUS_S3ID`, `NIMBUS_S3KEY`, `NIMBUS_CANONICAL_ID`;
4. `~/.nimbus/cloud.properties`, unless it speaks of another repository than the site's options.

`<SITE>` is the site's name in capitals with `_` for all but letters and digits. The canonical id is
not secret: `PHANTOM_<SITE>_CANONICAL_ID`, then the option `canonical_id`, come before the list.

Only `sites.yaml` can turn off the check of the repository's certificate: a `cloud.properties` that
says `s3selfsigned` does not count, and `find_risks` tells of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clouds.options import check_bundle, choice, file_name, flag, site_schema, text
from pipeline.errors import CredentialsError, DefinitionError
from pipeline.model import Sha256, Site, SiteKernel

USUAL_PROPERTIES = ".nimbus/cloud.properties"
"""Below the home folder: where Nimbus's own cloud client looks."""

COMMON = "common"
"""The folder of the images that every user of a site sees."""

_REPOSITORY = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
_CANONICAL_ID = r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$"
_FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]{2,62}$"

_OPTIONS = {
    "repository": text(
        "Host and port of the image repository (Cumulus), such as cumulus.example.org:8888. Taken "
        "from cloud.properties when left out.",
        pattern=_REPOSITORY,
    ),
    "bucket": text("The bucket that holds the site's images.", pattern=_FOLDER, default="Repo"),
    "prefix": text("What the keys of all images start with.", pattern=_FOLDER, default="VMS"),
    "https": flag("Whether the repository speaks HTTPS."),
    "ca_bundle": file_name("File with the certificates (PEM) that vouch for the repository's."),
    "self_signed": flag(
        "Accept any certificate of the repository. Whoever sits in between can then read and "
        "change images: naming the certificate with ca_bundle or certificate_sha256 is better. "
        "vws.repository.s3selfsigned of a cloud.properties does not count."
    ),
    "certificate_sha256": text(
        "The SHA-256 of the repository's own certificate, as `openssl x509 -noout -fingerprint "
        "-sha256` prints it. The repository must have this very certificate, whoever signed it and "
        "whatever name it holds.",
        pattern="^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$",
        errorMessage="must be 64 hexadecimal digits, with or without colons between pairs",
    ),
    "canonical_id": text(
        "The canonical id of the account, which names its folder. It comes with the credentials "
        "and is no secret.",
        **{"pattern": _CANONICAL_ID, "not": {"const": COMMON}},
    ),
    "visibility": choice(
        "Who may start the images: private, the account alone; common, every user of the site.",
        "private",
        "common",
    ),
    "cloud_properties": file_name(
        "A cloud.properties file of Nimbus's cloud client, which gives the repository and the "
        "credentials."
    ),
    "root": choice(
        "What the site boots: hda, a whole disk with its own boot loader, as KVM sites do, and Xen "
        "sites with pygrub; sda1, a bare file system, as Xen sites do that give kernel and ramdisk "
        "themselves.",
        "hda",
        "sda1",
    ),
    "kernel": file_name(
        "With sda1: a file of this host with the site's kernel, for the boot check, which "
        "otherwise takes a kernel of this host. It must boot in QEMU."
    ),
    "ramdisk": text("The site's ramdisk, beside `kernel`.", minLength=1),
}
SITE_SCHEMA = site_schema("Options of a Nimbus site", _OPTIONS)

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
    try:
        with path.open("rb") as file:
            return Sha256(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise DefinitionError(
            f"{name} of site {site.name} names {path}, which cannot be read: {error.strerror}",
            where=site.where,
            todo=f"name the file with the site's {name}, or take the option out: a {name} of this "
            "host is taken then",
        ) from error


@dataclass(frozen=True, kw_only=True)
class CumulusUser:
    """An account of a Cumulus server."""

    s3id: str
    secret: str = field(repr=False)
    canonical_id: str


@dataclass(frozen=True, kw_only=True)
class Credentials(CumulusUser):
    """The account that a site is used by."""

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
    fingerprint: str | None = None
    """The SHA-256 that the server's certificate must have, in hexadecimal digits. Nothing else of
    the certificate is then checked, and `verify` is False."""
    credentials: Credentials
    local: bool = False
    """Whether the server is one of this command's own, which no proxy leads to."""

    @property
    def owner(self) -> str:
        """The folder that images go to. Never another user's: Cumulus would let us write there,
        and lock the folder's owner out."""
        return COMMON if self.common else self.credentials.canonical_id


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


def _logical_lines(text: str) -> Iterator[str]:
    pending: list[str] = []
    for raw in text.splitlines():
        line = raw.lstrip()
        if not pending and line[:1] in ("", "#", "!"):
            continue
        goes_on = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        pending += filter(None, [line[:-1] if goes_on else line])
        if not goes_on:
            yield "".join(pending).rstrip()
            pending = []
    if pending:
        yield "".join(pending)


def _unescape(text: str) -> str:
    return re.sub(
        r"\\(u[0-9A-Fa-f]{4}|.)",
        lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 5 else _ESCAPES.get(m[1], m[1]),
        text,
    )


_SELF_SIGNED = "vws.repository.s3selfsigned"
_HTTPS = "vws.repository.s3https"
_WORDS = ("S3ID", "S3KEY", "CANONICAL_ID")
_PROPERTY_NAMES = [f"vws.repository.{name}" for name in ("s3id", "s3key", "canonicalid")]


@dataclass(frozen=True)
class _Place:
    """What may hold credentials, or parts of them: the environment, or a `cloud.properties`."""

    name: str
    """For messages."""
    keys: Sequence[str]
    """Those of the access key id, the secret and the canonical id."""
    values: Mapping[str, str] = field(repr=False)

    def read(self) -> list[str]:
        """Access key id, secret and canonical id; empty where one is missing."""
        return [self.values.get(key, "").strip() for key in self.keys]


class _Resolver:
    def __init__(self, site: Site, environ: Mapping[str, str]) -> None:
        self.site = site
        self.environ = environ
        self.home = Path(environ.get("HOME") or "/")
        self.named = self._read_named_properties()
        self.usual = self._read_usual_properties()

    def _variable(self, word: str) -> str:
        """The environment variable that holds a setting of the site."""
        return f"PHANTOM_{re.sub(r'[^A-Z0-9]', '_', self.site.name.upper())}_{word}"

    def _option(self, name: str) -> str | None:
        value = self.site.options.get(name)
        return None if value is None else str(value)

    def _path(self, text: str) -> Path:
        return self.home / text[2:] if text.startswith("~/") else Path(text)

    # ---- cloud.properties

    def _read_named_properties(self) -> _Place | None:
        variable = self._variable("CLOUD_PROPERTIES")
        name = self.environ.get(variable) or self._option("cloud_properties")
        if name is None:
            return None
        path = self._path(name)
        properties = _read_properties(path)
        if properties is not None:
            return properties
        if self.environ.get(variable):
            raise CredentialsError(
                f"{variable} names {path}, which cannot be read",
                where=f"site {self.site.name}",
                todo=f"let {variable} name a cloud.properties file, or unset it",
            )
        raise DefinitionError(
            f"cloud_properties of site {self.site.name} names {path}, which cannot be read",
            where=self.site.where,
            todo="name the cloud.properties file that came with the account",
        )

    def _read_usual_properties(self) -> _Place | None:
        properties = _read_properties(self.home / USUAL_PROPERTIES)
        if properties is None:
            return None
        stated = self._option("repository") or (self.named or properties).values.get(
            "vws.repository"
        )
        return properties if properties.values.get("vws.repository") == stated else None

    def _setting(self, option: str, key: str) -> str | None:
        value = self._option(option)
        if value is not None:
            return value
        values = (file.values.get(key) for file in (self.named, self.usual) if file is not None)
        return next(filter(None, values), None)

    @property
    def _https(self) -> bool:
        return _is_true(self._setting("https", _HTTPS))

    # ---- credentials

    def _accounts(self) -> Iterator[_Place]:
        """All places that may have credentials, in the order of their precedence."""
        own = _Place("the environment", [self._variable(word) for word in _WORDS], self.environ)
        general = _Place("the environment", [f"NIMBUS_{word}" for word in _WORDS], self.environ)
        return filter(None, (own, self.named, general, self.usual))

    def _make_error(self, what: str, todo: str) -> CredentialsError:
        return CredentialsError(what, where=f"site {self.site.name}", todo=todo)

    def credentials(self) -> Credentials:
        """The account of the first place that has an access key id or a secret."""
        account = next((place for place in self._accounts() if any(place.read()[:2])), None)
        own = [self._variable(word) for word in _WORDS]
        ways = (
            f"set {own[0]}, {own[1]} and {own[2]} (for every site at once: NIMBUS_S3ID, "
            "NIMBUS_S3KEY, NIMBUS_CANONICAL_ID), or let "
            f"{self._variable('CLOUD_PROPERTIES')} name the site's cloud.properties"
        )
        if account is None:
            raise self._make_error("no Nimbus credentials", ways)
        s3id, secret, stored_id = account.read()
        stated = self.environ.get(own[2], "").strip() or self._option("canonical_id")
        canonical_id = stated or stored_id
        values = (s3id, secret, canonical_id)
        missing = [name for name, value in zip(account.keys, values, strict=True) if not value]
        if missing:
            lacks = " and ".join(missing)
            raise self._make_error(
                f"Nimbus credentials of {account.name} are incomplete: {lacks} missing",
                f"add {lacks}; or {ways}",
            )
        if re.match(_CANONICAL_ID, canonical_id) is None or canonical_id == COMMON:
            raise self._make_error(
                "the canonical id is not valid: it consists of letters, digits and `-`, and is not "
                "`common`",
                f"copy it from the account's cloud.properties to {own[2]}",
            )
        return Credentials(s3id=s3id, secret=secret, canonical_id=canonical_id, source=account.name)

    # ---- all together

    def settings(self) -> NimbusSettings:
        repository = self._setting("repository", "vws.repository")
        if repository is None or re.match(_REPOSITORY, repository.strip()) is None:
            raise DefinitionError(
                f"site {self.site.name} names no repository (HOST:PORT)",
                where=self.site.where,
                todo="give it the option `repository: HOST:PORT`, or `cloud_properties: FILE`",
            )
        host = repository.strip()
        return NimbusSettings(
            endpoint=f"{'https' if self._https else 'http'}://{host}",
            host=host,
            bucket=self._setting("bucket", "vws.repository.s3bucket") or "Repo",
            prefix=(self._setting("prefix", "vws.repository.s3basekey") or "VMS").strip("/"),
            common=self._option("visibility") == "common",
            verify=self._verify(),
            fingerprint=self._fingerprint,
            credentials=self.credentials(),
        )

    # ---- TLS

    @property
    def _fingerprint(self) -> str | None:
        option = self._option("certificate_sha256")
        return None if option is None else option.replace(":", "").lower()

    def _verify(self) -> bool | str:
        if self._fingerprint is not None:
            return False
        bundle = self._option("ca_bundle")
        if bundle is None:
            return self.site.options.get("self_signed") is not True
        return check_bundle(self.site, self._path(bundle), "repository's certificate")

    def find_risks(self) -> Iterator[str]:
        """What weakens the connection to the repository."""
        files = [place for place in (self.named, self.usual) if place is not None]
        told = next((place for place in files if place.values.get(_HTTPS)), None)
        if not self._https:
            why = "nothing says `https: true`"
            if self._option("https") is not None:
                why = "`https: false`"
            elif told is not None:
                why = f"{_HTTPS}={told.values[_HTTPS].strip()} in {told.name}"
            yield f"requests and images go without TLS ({why}): others can read and change them"
            return
        pinned = self._fingerprint is not None or self._option("ca_bundle") is not None
        if not pinned and self.site.options.get("self_signed") is True:
            yield (
                "the repository's certificate is not checked (`self_signed: true`): whoever sits "
                "in between can read and change images; name it with `certificate_sha256`"
            )
        elif not pinned:
            for place in files:
                if _is_true(place.values.get(_SELF_SIGNED)):
                    yield (
                        f"{_SELF_SIGNED} in {place.name} does not count, and the repository's "
                        "certificate is checked: if it is self-signed, name it with "
                        "`certificate_sha256` or `ca_bundle` of the site in sites.yaml"
                    )


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "yes", "1")


def _read_properties(path: Path) -> _Place | None:
    try:
        return _Place(str(path), _PROPERTY_NAMES, parse_properties(path.read_text("latin-1")))
    except OSError:
        return None


def resolve_settings(site: Site, environ: Mapping[str, str]) -> NimbusSettings:
    """The settings of a real site; see the top of this file for what outranks what.

    Raises CredentialsError, which names the variables to set, and DefinitionError.
    """
    return _Resolver(site, environ).settings()


def find_risks(site: Site, environ: Mapping[str, str]) -> list[str]:
    """What weakens the security of a site: settings of its options and of its cloud.properties.

    Raises CredentialsError and DefinitionError for files that cannot be read.
    """
    return list(_Resolver(site, environ).find_risks())
