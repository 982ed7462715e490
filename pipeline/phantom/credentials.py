"""Where the credentials of a Phantom come from. They come as a whole from the first of these that
has any, so that one Phantom never gets another's:

1. `PHANTOM_<NAME>_ACCESS_KEY` with `PHANTOM_<NAME>_SECRET_KEY`, or for the web API
   `PHANTOM_<NAME>_TOKEN`;
2. the file that `PHANTOM_<NAME>_CREDENTIALS`, or else the option `credentials`, names;
3. `~/.phantom/credentials`.

`<NAME>` is the Phantom's name in capitals with `_` for all but letters and digits. A file has the
form of AWS's tools; of its sections the one with the Phantom's name counts, or else `default`.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CredentialsError
from pipeline.phantom.local import ACCESS_KEY, PROFILE, SECRET_KEY, TOKEN
from pipeline.phantom.named import WEB, PhantomService
from pipeline.phantom.signature import User

USUAL = ".phantom/credentials"
"""Below the home folder."""
_WORDS = {"ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY, "TOKEN": TOKEN}


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The account that a Phantom is used by."""

    user: User = field(repr=False)
    source: str
    """Where they come from, for messages."""
    ways: str
    """How to give others, for messages."""


def find_credentials(service: PhantomService, environ: Mapping[str, str]) -> Credentials:
    """The credentials of the first place that has an access key. Raises CredentialsError."""
    prefix = f"PHANTOM_{re.sub(r'[^A-Z0-9]', '_', service.name.upper())}"
    second = "TOKEN" if service.api == WEB else "SECRET_KEY"
    needed = ["ACCESS_KEY", second]
    ways = (
        f"set {prefix}_ACCESS_KEY and {prefix}_{second}, or let {prefix}_CREDENTIALS, or "
        f"`credentials:` in sites.yaml, name a file with {ACCESS_KEY} and {_WORDS[second]}"
    )
    source = "the environment"
    found = {word: environ.get(f"{prefix}_{word}", "").strip() for word in _WORDS}
    names = {word: f"{prefix}_{word}" for word in _WORDS}
    if not any(found[word] for word in needed):
        file = _find_file(service, environ, prefix)
        if file is None:
            raise _make_error(service, "no credentials", ways)
        source, names = str(file), _WORDS
        found = _read(service, file, ways)
    if missing := [names[word] for word in needed if not found[word]]:
        lacks = " and ".join(missing)
        what = f"the credentials of {source} are incomplete: {lacks} missing"
        raise _make_error(service, what, f"add {lacks}; or {ways}")
    user = User(
        access_key=found["ACCESS_KEY"], secret_key=found["SECRET_KEY"], token=found["TOKEN"]
    )
    return Credentials(user=user, source=source, ways=ways)


def _find_file(service: PhantomService, environ: Mapping[str, str], prefix: str) -> Path | None:
    named = environ.get(f"{prefix}_CREDENTIALS")
    if named:
        return Path(named).expanduser()
    usual = Path(environ.get("HOME") or "/") / USUAL
    return service.credentials or (usual if usual.is_file() else None)


def _read(service: PhantomService, file: Path, ways: str) -> dict[str, str]:
    said = configparser.ConfigParser(interpolation=None)
    try:
        said.read_string(file.read_text(), source=str(file))
    except (OSError, ValueError, configparser.Error) as error:
        # A parser's message shows the line, which may hold a secret.
        why = error.strerror if isinstance(error, OSError) else "it has not the form of AWS's tools"
        what = f"the credentials in {file} cannot be read: {why}"
        raise _make_error(service, what, ways) from None
    section = service.name if said.has_section(service.name) else PROFILE
    return {word: said.get(section, name, fallback="").strip() for word, name in _WORDS.items()}


def _make_error(service: PhantomService, what: str, todo: str) -> CredentialsError:
    return CredentialsError(what, where=f"Phantom {service.name}", todo=todo)
