"""Searches the contents of files for what no image should hold, in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.disk.contents import Contents, File, shown

PLACES = ("/etc", "/root", "/home", "/var", "/opt", "/srv", "/usr/local")
"""Where people, programs and packages' scripts write."""
_NOT_WRITTEN = ("/var/lib/dpkg/", "/var/lib/apt/lists/", "/var/cache/")
_MOST = 1 << 20  # bytes of a file: keys and settings lie in small ones
_SHORTEST_NAME = 5  # of a host: shorter ones are words of other meanings
_COMMON_NAMES = frozenset(
    {"localhost", "debian", "ubuntu", "builder", "build", "buildd", "server", "docker", "linux"}
)
_KEY_BODY = rb"-----\r?\n(?:[A-Za-z-]+: [^\n]*\n|\r?\n)*[A-Za-z0-9+/=]{16,}"
_PRIVATE_KEYS = {
    "an OpenSSH private key": rb"-----BEGIN OPENSSH PRIVATE KEY" + _KEY_BODY,
    "a PEM private key": rb"-----BEGIN (?:(?:RSA|DSA|EC|ENCRYPTED|ANY) )?PRIVATE KEY" + _KEY_BODY,
    "an OpenPGP private key": rb"-----BEGIN PGP PRIVATE KEY BLOCK" + _KEY_BODY,
    "a PuTTY private key": rb"PuTTY-User-Key-File-[23]: [^\n]+\n",
    "an age private key": rb"AGE-SECRET-KEY-1[0-9A-Z]{50,}",
    "a WireGuard private key": rb"(?m)^[ \t]*PrivateKey[ \t]*=[ \t]*[A-Za-z0-9+/]{43}=[ \t\r]*$",
}
_TOKENS = {
    "an access key of AWS": rb"\b(?:AKIA|ASIA)(?![0-9A-Z]{0,16}EXAMPLE)[0-9A-Z]{16}\b",
    "a token of GitHub": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{80,})\b",
    "a token of GitLab": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": rb"\bxox[abpr]-[0-9]{8,}-[A-Za-z0-9-]{20,}",
    "a token of Hugging Face": rb"\bhf_[A-Za-z]{34}\b",
    # Not what documentation and tests have in its place.
    "a password in a URL": rb"\b(?:https?|ftp)://[^/\s:@\"'<>$%{}]+:(?!(?i:pass|passwd|password|pwd"
    rb"|secret|token)@)[^/\s:@\"'<>$%{}]{4,}@[a-z0-9]",
}
_KINDS = {"private-key": _PRIVATE_KEYS, "token": _TOKENS}
_PATTERNS = [
    (kind, what, re.compile(pattern))
    for kind, patterns in _KINDS.items()
    for what, pattern in patterns.items()
]
# Of all patterns above: most files hold none of it.
_ANY = re.compile(
    rb"PRIVATE KEY|PuTTY-User|AGE-SECRET|PrivateKey|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox"
    rb"|hf_|://[^/\s]{1,200}@"
)
_RANDOM = re.compile(rb"\s*(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*", re.I)


@dataclass(frozen=True)
class Match:
    """Something in a file: a `private-key`, a `token`, a `random-id`, or the build host's name
    (`host-name`)."""

    kind: str
    file: File
    what: str


def search(contents: Contents, host_name: str) -> Iterator[Match]:
    """What the files in `PLACES` hold in their first MiB, at most one of a kind for each file."""
    name = _name_pattern(host_name)
    for place in PLACES:
        for file in contents.below(place):
            if file.is_file and file.size and not file.path.startswith(_NOT_WRITTEN):
                yield from _search(file, contents.head(file, _MOST), name)


def _search(file: File, content: bytes, name: re.Pattern[bytes] | None) -> Iterator[Match]:
    if _ANY.search(content) is not None:
        kinds = set()
        for kind, what, pattern in _PATTERNS:
            if kind not in kinds and pattern.search(content) is not None:
                kinds.add(kind)
                yield Match(kind, file, what)
    if len(content) < 100 and _RANDOM.fullmatch(content) is not None:
        yield Match("random-id", file, f"{shown(file.path)} is a random identity")
    if name is not None and name.search(content) is not None:
        yield Match("host-name", file, "the name of the host that built the image")


def _name_pattern(host_name: str) -> re.Pattern[bytes] | None:
    """A host's name as a word of its own; None for one that may stand there by chance."""
    name = host_name.partition(".")[0]
    if len(name) < _SHORTEST_NAME or name.lower() in _COMMON_NAMES:
        return None
    return re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(name.encode()) + rb"(?![A-Za-z0-9_-])")
