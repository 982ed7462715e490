"""Signs what a build's folder holds with the key that the settings name, and finds out before a
build whether it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.definitions.signing import Signing
from pipeline.errors import DefinitionError, UsageError
from pipeline.tools import ssh_keygen

OWN = "own-key"
"""Who signs with the settings' key, where they do not say it."""
Sign = Callable[[bytes], str]
"""Makes the signature of a document, as its `.sig` file has it. Raises DefinitionError."""


def plan_signing(signing: Signing) -> Sign | None:
    """What signs documents, tried out once; None where no key is configured. Raises
    DefinitionError."""
    key = signing.key
    if key is None:
        return None

    def sign(data: bytes) -> str:
        return _sign(data, key, signing.where)

    sign(b"")
    return sign


def _sign(data: bytes, key: Path, where: str) -> str:
    _check_readable(key, where)
    try:
        return ssh_keygen.sign(data, key)
    except ssh_keygen.Refusal as refusal:
        raise _cannot_sign(key, where, refusal) from refusal


def _cannot_sign(key: Path, where: str, refusal: ssh_keygen.Refusal) -> DefinitionError:
    if refusal.encrypted:
        return DefinitionError(
            f"the signing key {key} has a passphrase, and no agent holds it",
            where=where,
            todo=f"`ssh-add {key}` gives it to the agent that SSH_AUTH_SOCK names",
        )
    return DefinitionError(
        f"the signing key {key} cannot sign: {refusal.why}",
        where=where,
        todo="name a private key of OpenSSH that only its owner may read, or a public one whose "
        "private half an agent holds",
    )


def _check_readable(key: Path, where: str) -> None:
    try:
        with key.open("rb"):
            return
    except OSError as error:
        raise DefinitionError(
            f"the signing key {key} cannot be read: {error.strerror}",
            where=where,
            todo="name a key that is there, or leave `signing: key:` out",
        ) from error


@contextmanager
def allowed_signers(signing: Signing, named: Path | None) -> Iterator[Path | None]:
    """The file that says whose signatures count: `named`, or that of the settings, or one with the
    settings' own key; None where nothing is configured. Raises UsageError, DefinitionError."""
    chosen = named or signing.allowed_signers
    if chosen is not None:
        if not chosen.is_file():
            raise UsageError(
                f"there is no file of allowed signers {str(chosen)!r}",
                todo="write one line for each signer, as ssh-keygen(1) says below ALLOWED SIGNERS: "
                "`images@example.org ssh-ed25519 AAAA...`",
            )
        yield chosen
        return
    if signing.key is None:
        yield None
        return
    _check_readable(signing.key, signing.where)
    try:
        public = ssh_keygen.find_public_key(signing.key)
    except ssh_keygen.Refusal as refusal:
        raise _cannot_sign(signing.key, signing.where, refusal) from refusal
    with TemporaryDirectory(prefix="phantom-image-") as folder:
        file = Path(folder, "allowed_signers")
        file.write_text(f"{signing.identity or OWN} {public}\n")
        yield file
