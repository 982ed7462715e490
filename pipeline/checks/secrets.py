"""Rules of keys, credentials, and what was typed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.guest import identities
from pipeline.guest.cleaning import HISTORIES

_HOST_KEYS = (
    ("/etc/ssh", re.compile(r"ssh_host_[a-z0-9_]+_key")),
    ("/etc/openssh", re.compile(r"ssh_host_[a-z0-9_]+_key")),
)
# In homes; where a file may be there without a secret, what in it is one.
_CREDENTIALS = {
    ".aws/credentials": "",
    ".azure/accessTokens.json": "",
    ".azure/msal_token_cache.json": "",
    ".boto": r"(?m)^[ \t]*(aws_secret_access_key|gs_oauth2_refresh_token)[ \t]*=[ \t]*\S",
    ".cargo/credentials": "",
    ".cargo/credentials.toml": "",
    ".config/containers/auth.json": r'"auth"\s*:',
    ".config/gcloud/credentials.db": "",
    ".config/gcloud/application_default_credentials.json": "",
    ".config/gh/hosts.yml": r"oauth_token",
    ".config/openstack/clouds.yaml": r"(?m)^\s*(password|application_credential_secret)\s*:",
    ".config/rclone/rclone.conf": "",
    ".docker/config.json": r'"auth"\s*:',
    ".gem/credentials": "",
    ".git-credentials": "",
    ".kube/config": r"(?m)^\s*(token|client-key-data|password)\s*:",
    ".my.cnf": r"(?m)^\s*password\s*=\s*\S",
    ".netrc": r"\bpassword\s+\S",
    ".npmrc": r"_(authToken|auth|password)\s*=\s*[^$\s]",
    ".pgpass": "",
    ".pypirc": r"(?m)^\s*password\s*[=:]\s*\S",
    ".s3cfg": r"(?m)^\s*secret_key\s*=\s*\S",
    ".smbcredentials": "",
    ".terraform.d/credentials.tfrc.json": "",
    ".vault-token": "",
}
_SYSTEM_CREDENTIALS = ("/etc/apt/auth.conf", "/etc/apt/auth.conf.d", "/etc/smbcredentials")


def _find_host_keys(root: Root) -> Iterator[Found]:
    for folder, pattern in _HOST_KEYS:
        for file in root.inside(folder):
            if file.is_file and pattern.fullmatch(file.name):
                yield Found(path=file.path, detail="an SSH host key")


def _find_private_keys(root: Root) -> Iterator[Found]:
    known = {found.path for found in _find_host_keys(root)}
    known |= {root.contents.locate(str(path)) for path in identities.find(root.contents)}
    for match in root.matches:
        if match.kind == "private-key" and match.file.path not in known:
            yield Found(path=match.file.path, detail=match.what)
    for home in root.homes:
        for file in root.inside(f"{home}/.gnupg/private-keys-v1.d"):
            yield Found(path=file.path, detail="a private key of GnuPG")


def _find_credentials(root: Root) -> Iterator[Found]:
    for home in root.homes:
        for name, pattern in _CREDENTIALS.items():
            file = root.contents.find(f"{home}/{name}")
            if file is None or not file.is_file or not file.size:
                continue
            if re.search(pattern, root.contents.text(file.path)):
                yield Found(path=file.path, detail="credentials")
    for path in _SYSTEM_CREDENTIALS:
        place = root.contents.find(path)
        files = [] if place is None else [place] if place.is_file else [*root.inside(path)]
        for each in files:
            if each.is_file and each.size:
                yield Found(path=each.path, detail="credentials")


def _find_tokens(root: Root) -> Iterator[Found]:
    for match in root.matches:
        if match.kind == "token":
            yield Found(path=match.file.path, detail=match.what)


def _find_histories(root: Root) -> Iterator[Found]:
    for home in root.homes:
        for file in root.inside(home):
            if file.is_file and file.size and file.name in HISTORIES:
                yield Found(path=file.path, detail="what somebody typed")


RULES = (
    Rule(
        id="ssh-host-key",
        severity="error",
        what="an SSH host key",
        reason="all machines would share it, so that each can pass for any other",
        todo="remove it; the element phantom-ssh has each machine make its own at boot",
        find=_find_host_keys,
    ),
    Rule(
        id="private-key",
        severity="error",
        what="a private key",
        reason="everybody who has the image has the key, and all machines share it",
        todo="remove it, and have each machine make or fetch its own at boot",
        find=_find_private_keys,
    ),
    Rule(
        id="credentials",
        severity="error",
        what="somebody's credentials",
        reason="everybody who has the image can use them",
        todo="remove the file, and revoke what is in it; scripts read secrets of a build by "
        "`build_secrets`",
        find=_find_credentials,
    ),
    Rule(
        id="token",
        severity="error",
        what="a token or a password in a file",
        reason="everybody who has the image can use it",
        todo="remove it, and revoke it; scripts read secrets of a build by `build_secrets`",
        find=_find_tokens,
    ),
    Rule(
        id="shell-history",
        severity="error",
        what="a history of commands",
        reason="it tells what somebody did, and often holds passwords",
        todo="remove the file",
        find=_find_histories,
    ),
)
