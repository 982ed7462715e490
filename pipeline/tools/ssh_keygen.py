"""ssh-keygen, which signs files and checks signatures (OpenSSH's PROTOCOL.sshsig).

Neither a terminal nor a window is asked for a passphrase: a key that has one is used by an agent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.terminal import escape
from pipeline.tools import run

NAMESPACE = "phantom-image"
"""What the signatures are for: those that a key made for other ends do not count."""
_AGENT = "SSH_AUTH_SOCK"
_SECONDS = 60.0  # a key on a token waits for a touch
_GOOD = re.compile(r'Good "\S+" signature (?:for (?P<identity>.+) )?with (?P<key>\S+ key \S+)')
_ANY_FAILURE = "Could not verify signature"
_NO_KEY = "Couldn't load public key"
# What is signed or checked comes from standard input, as ssh-keygen has it for checks.
_FROM_FILE = ("sh", "-c", 'exec ssh-keygen "$@" <"$0"')


class Refusal(Exception):
    """ssh-keygen did not sign, or a signature is not good; `why` is what it says, and `encrypted`
    whether it is for want of a passphrase."""

    def __init__(self, why: str, *, encrypted: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.encrypted = encrypted


def sign(data: bytes, key: Path) -> str:
    """The signature of data, as a `.sig` file has it. The key is a private one without passphrase,
    or one, private or public, that the agent holds. Raises Refusal, HostError."""
    with _written(data) as file:
        # With an empty passphrase on the command line, none is asked for.
        words = ["ssh-keygen", "-q", "-P", "", "-Y", "sign", "-f", str(key), "-n", NAMESPACE]
        try:
            run.capture([*words, str(file)], env=_environment(), timeout=_SECONDS)
        except run.ToolError as error:
            raise _refuse(error) from error
        return file.with_name(f"{file.name}.sig").read_text()


def find_key(data: bytes, signature: bytes) -> str:
    """The key that made a good signature of data, as in `ED25519 key SHA256:...`, whoever has it.
    Raises Refusal where it is not good, HostError."""
    return _check(data, signature, "check-novalidate")["key"]


def find_identity(data: bytes, signature: bytes, allowed: Path) -> str:
    """Who made a good signature of data, of those that a file of allowed signers (ssh-keygen(1))
    names. Raises Refusal where it is not good, or its key is nobody's, HostError."""
    with _written(signature) as file:
        words = ["ssh-keygen", "-Y", "find-principals", "-s", str(file), "-f", str(allowed)]
        try:
            found = run.capture(words, timeout=_SECONDS).splitlines()
        except run.ToolError as error:
            raise _refuse(error) from error
    identity = found[0].split(",")[0] if found else ""
    told = _check(data, signature, "verify", "-f", str(allowed), "-I", identity)
    return told["identity"] or identity


def find_public_key(key: Path) -> str:
    """The public key of a private one, as lines of allowed signers have it, or of a public one.
    Raises Refusal, HostError, OSError."""
    text = key.read_bytes()[:8].decode(errors="replace")
    if not text.startswith("-----"):
        return " ".join(key.read_text().split()[:2])
    try:
        told = run.capture(["ssh-keygen", "-P", "", "-y", "-f", str(key)], timeout=_SECONDS)
    except run.ToolError as error:
        raise _refuse(error) from error
    return " ".join(told.split()[:2])


def _check(data: bytes, signature: bytes, verb: str, *more: str) -> Mapping[str, str]:
    with _written(data) as file, _written(signature) as signed:
        words = ["-Y", verb, "-n", NAMESPACE, "-s", str(signed), *more]
        try:
            told = run.capture([*_FROM_FILE, str(file), *words], timeout=_SECONDS)
        except run.ToolError as error:
            raise _refuse(error) from error
    match = _GOOD.search(told)
    if match is None:
        raise Refusal(_last_line(told.splitlines()))
    return match.groupdict(default="")


@contextmanager
def _written(data: bytes) -> Iterator[Path]:
    with TemporaryDirectory(prefix="phantom-image-") as folder:
        file = Path(folder, "signed")
        file.write_bytes(data)
        yield file


def _environment() -> dict[str, str]:
    return {_AGENT: os.environ[_AGENT]} if _AGENT in os.environ else {}


def _refuse(error: run.ToolError) -> Refusal:
    if _NO_KEY in error.output:
        return Refusal("it is no key of OpenSSH")
    why = _last_line(error.output.splitlines())
    return Refusal(why, encrypted="incorrect passphrase" in error.output)


def _last_line(lines: Sequence[str]) -> str:
    """What tells most: the last line, except one that every failure has."""
    said = [escape(line.strip().rstrip(".")) for line in lines if line.strip()]
    telling = [line for line in said if line != _ANY_FAILURE]
    return (telling or said or ["it says nothing"])[-1]
