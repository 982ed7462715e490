"""A definition's secrets: read for a build, known to stages by keyed digests, and looked for in
what was made."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.disk.secret_search import Found, find_secrets
from pipeline.errors import DefinitionError, SecretError
from pipeline.model import KIB, Appliance, BuildSecret
from pipeline.secret_forms import SHORTEST, core
from pipeline.stages.base import HERE_ONLY, Context
from pipeline.store import Store

_MOST_BYTES = 64 * KIB
_KEY_BYTES = 32
_MOST_PLACES = 5  # that an error names


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A secret of one build."""

    name: str
    digest: str
    """Keyed: it says nothing to whoever has not the store's key."""
    value: bytes = field(compare=False, repr=False, metadata=HERE_ONLY)
    where: str = field(default="", compare=False, metadata=HERE_ONLY)
    """`file:line:column` in the definition."""


def read_secrets(appliance: Appliance, store: Store, *, keep: bool) -> tuple[Secret, ...]:
    """The secrets that a definition names, as they are now. Their digests are keyed by the store's
    key, which is made where it is missing, and written if `keep` says so.

    Raises DefinitionError, which never holds a secret, for one that is missing, shorter than 8
    bytes without the white space around it, or larger than 64 KiB.
    """
    if not appliance.build_secrets:
        return ()
    values = {each.name: _read(each) for each in appliance.build_secrets}
    key = _find_key(store, keep=keep)
    return tuple(
        Secret(
            name=each.name,
            digest=hmac.digest(key, each.name.encode() + b"\0" + values[each.name], "sha256").hex(),
            value=values[each.name],
            where=each.where,
        )
        for each in appliance.build_secrets
    )


def handed(found: Sequence[Secret]) -> dict[str, bytes]:
    """The secrets by their names, for what runs scripts."""
    return {secret.name: secret.value for secret in found}


def describe_secrets(found: Sequence[Secret]) -> dict[str, list[str]]:
    """What a manifest says of them: their names, if there are any."""
    return {"build_secrets": sorted(secret.name for secret in found)} if found else {}


def check_left(found: Sequence[Secret], context: Context) -> None:
    """Looks for secrets in all files that a stage has made. Raises SecretError."""
    if not found:
        return
    context.progress.step("looking for secrets in what was made")
    for file in sorted(context.out.iterdir()):
        left = find_secrets(file, handed(found))
        for secret in found:
            if secret.name in left:
                raise _left(secret, left[secret.name], context)


def _left(secret: Secret, places: Sequence[Found], context: Context) -> SecretError:
    told = list(dict.fromkeys(map(str, places)))
    return SecretError(
        f"the secret {secret.name!r} is in the finished image: {', '.join(told[:_MOST_PLACES])}"
        + (", and elsewhere" if len(told) > _MOST_PLACES else ""),
        where=secret.where or None,
        todo="let scripts read it from /run/secrets and write it to nothing that the image keeps; "
        "what was built is not stored",
        log=context.log,
    )


# ---- reading


def _read(secret: BuildSecret) -> bytes:
    if secret.variable is not None:
        source = secret.variable
        value = os.environb.get(os.fsencode(source), b"")
        if not value:
            told = f"the environment variable {source} is not set"
            raise _missing(secret, told, f"set {source}, or take the secret out")
    else:
        assert secret.file is not None
        source = str(secret.file)
        value = _read_file(secret, secret.file)
    if len(core(value)) < SHORTEST:
        raise DefinitionError(
            f"the secret {secret.name!r} is too short: {source} holds fewer than {SHORTEST} bytes, "
            "which would be found in any image",
            where=secret.where or None,
            todo="take a longer one",
        )
    if len(value) > _MOST_BYTES:
        raise DefinitionError(
            f"the secret {secret.name!r} is too long: {source} holds more than {_MOST_BYTES:,} "
            "bytes",
            where=secret.where or None,
            todo="take a shorter one",
        )
    return value


def _read_file(secret: BuildSecret, path: Path) -> bytes:
    todo = "put the secret there, readable by you alone, or take it out"
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise _missing(secret, f"{path} is no file", todo)
        with path.open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _missing(secret, f"{path} cannot be read: {reason}", todo) from error


def _missing(secret: BuildSecret, what: str, todo: str) -> DefinitionError:
    return DefinitionError(
        f"the secret {secret.name!r} is missing: {what}", where=secret.where or None, todo=todo
    )


# ---- the store's key


def _find_key(store: Store, *, keep: bool) -> bytes:
    """This user's key in the store. Nobody else can read it, so that in a store that a group shares
    each user has one."""
    place = Path(store.folder, "keys", f"build-secrets-{os.getuid()}")
    known = _read_key(place)
    if known is not None:
        return known
    made = secrets.token_bytes(_KEY_BYTES)
    if not keep:
        return made
    return _write_key(store, place, made)


def _read_key(place: Path) -> bytes | None:
    """The key in a file; None if there is none, or not one that only this user may read."""
    with suppress(OSError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(place, flags), "rb") as file:
            status = os.fstat(file.fileno())
            ours = status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o600
            key = file.read(_KEY_BYTES + 1) if ours and stat.S_ISREG(status.st_mode) else b""
            if len(key) == _KEY_BYTES:
                return key
    return None


def _write_key(store: Store, place: Path, made: bytes) -> bytes:
    """Puts a key where there is no good one, and returns the one that is there then: two commands
    may make one at the same time."""
    store.path("keys")
    with store.lock(place.name), store.errors():
        known = _read_key(place)
        if known is not None:
            return known
        new = place.with_name(f".{place.name}.new")
        for left in (new, place):
            left.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        new.rename(place)
    return made
