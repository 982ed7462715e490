"""`users`: users that the image is to have, and who may log in as them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.customizations.accounts import NAME, NUMBER, listed, repeated, text
from pipeline.customizations.customization import (
    Customization,
    Keys,
    Report,
    UnreadyError,
    merge_named,
)
from pipeline.file_copies import TextFile

_Users = Sequence[Mapping[str, Any]]

_PUBLIC_KEY = re.compile(
    r"([^#]{0,2000}[ \t])?(ssh-(rsa|dss|ed25519)|ecdsa-sha2-nistp(256|384|521)"
    r"|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) AAAA[A-Za-z0-9+/=]{16,16000}([ \t].*)?"
)
_HASH = re.compile(r"\$(y|gy|7|6|5|2[aby])\$[./A-Za-z0-9$=,]{10,300}")
_EVERYTHING = "ALL=(ALL:ALL) NOPASSWD: ALL"


def _check(users: _Users, report: Report) -> None:
    repeated(users, report, by=("name", "uid"))
    for index, user in enumerate(users):
        keys = user.get("ssh_authorized_keys")
        if isinstance(keys, TextFile):
            _check_keys(keys, (index, "ssh_authorized_keys"), report)
        if user.get("create_home") is False and keys is not None and user["name"] != "root":
            report((index, "ssh_authorized_keys"), "keys lie in a home, and 'create_home' is false")
        password = user.get("password", {})
        if len(password) > 1:
            report((index, "password"), "give either 'environment' or 'file'")
        if not Path(password.get("file", "/")).is_absolute():
            told = "must be an absolute path: the hash does not belong beside the definition"
            report((index, "password", "file"), told)


def _check_keys(keys: TextFile, at: Keys, report: Report) -> None:
    lines = [line.strip() for line in keys.text.splitlines()]
    if not any(line and not line.startswith("#") for line in lines):
        report(at, f"{keys.path.name!r} holds no key")
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#") and not _PUBLIC_KEY.fullmatch(line):
            report(at, f"line {number} of {keys.path.name!r} is not a public key of OpenSSH")
            return


def _script(users: _Users) -> str:
    parts = [_FUNCTIONS]
    for index, user in enumerate(users):
        parts.append(_add(user))
        if "password" in user:
            parts.append(
                f"chpasswd --encrypted <<'END'\n{user['name']}:{_find_hash(index, user)}\nEND\n"
            )
        if "sudo" in user and user["sudo"] is not False:
            rule: str = _EVERYTHING if user["sudo"] is True else user["sudo"]
            parts.append(f"sudo_rule {user['name']} {quote(rule)}\n")
        if "ssh_authorized_keys" in user:
            keys = user["ssh_authorized_keys"].text.rstrip("\n")
            parts.append(f"log_in {user['name']} <<'END OF KEYS'\n{keys}\nEND OF KEYS\n")
    return "".join(parts)


def _add(user: Mapping[str, Any]) -> str:
    """The lines that add a user, or change one who is there."""
    both: list[str] = []
    for key, option in (("uid", "--uid"), ("group", "--gid"), ("shell", "--shell")):
        if key in user:
            both += [option, str(user[key])]
    if "home" in user:
        both += ["--home", user["home"]]
    if "description" in user:
        both += ["--comment", user["description"]]
    new = list(both)
    if user.get("system"):
        new.append("--system")
    if user.get("groups"):
        new += ["--groups", ",".join(user["groups"])]
        both += ["--append", "--groups", ",".join(user["groups"])]
    create = user.get("create_home", not user.get("system"))
    new.append("--create-home" if create else "--no-create-home")
    name = user["name"]
    change = f"usermod {' '.join(map(quote, both))} {name}" if both else ":"
    return (
        f"if getent passwd {name} >/dev/null; then\n"
        f"    {change}\n"
        f"else\n    useradd {' '.join(map(quote, new))} {name}\nfi\n"
        + (f"own_home {name}\n" if create else "")
    )


def _find_hash(index: int, user: Mapping[str, Any]) -> str:
    """The hash of a password, from where the definition says that it is. Raises UnreadyError,
    which never has the hash in its text."""
    password = user["password"]
    if "environment" in password:
        name = password["environment"]
        found = os.environ.get(name)
        if not found:
            raise UnreadyError(
                (index, "password"),
                f"the environment variable {name} is not set",
                todo=f"set {name} to a hash that `mkpasswd` or `openssl passwd -6` made",
            )
    else:
        name = password["file"]
        try:
            found = Path(name).read_text().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UnreadyError(
                (index, "password"),
                f"{name} cannot be read: {reason}",
                todo="put the hash of the password there, readable by you alone",
            ) from error
    if not _HASH.fullmatch(found):
        raise UnreadyError(
            (index, "password"),
            f"{name} does not hold the hash of a password",
            todo="make one with `mkpasswd` or `openssl passwd -6`",
        )
    return found


def _packages(users: _Users) -> Iterable[str]:
    if any(user.get("sudo", False) is not False for user in users):
        return ["sudo"]
    return ()


def _kept(users: _Users) -> Iterable[str]:
    """Keys that cleaning would take for those of whoever made the image."""
    if any(user["name"] == "root" and "ssh_authorized_keys" in user for user in users):
        yield "/root/.ssh/authorized_keys"


_FUNCTIONS = """\
need useradd passwd
home_of() {
    getent passwd "$1" | cut -d : -f 6
}
# The definition's files may have made the home, as root's.
own_home() {
    home=$(home_of "$1")
    [ -d "$home" ] || (umask 022 && mkdir -p "$home")
    chown "$1:$(id -g "$1")" "$home"
}
# sudo_rule NAME RULE
sudo_rule() {
    need visudo sudo
    file=/etc/sudoers.d/50-phantom-$1
    mkdir -p -m 0750 /etc/sudoers.d
    printf '%s %s\\n' "$1" "$2" >"$file"
    chmod 0440 "$file"
    visudo --check --quiet --file="$file" || fail "sudo does not understand the rule of $1"
}
# log_in NAME, with the keys on standard input
log_in() {
    home=$(home_of "$1")
    [ -d "$home" ] || fail "$1 has no home for its keys: $home"
    (umask 077 && mkdir -p "$home/.ssh" && cat >"$home/.ssh/authorized_keys")
    chmod 0700 "$home/.ssh"
    chmod 0600 "$home/.ssh/authorized_keys"
    chown -R "$1:$(id -g "$1")" "$home/.ssh"
}
"""

_PASSWORD = {
    "description": "The hash of the user's password: where it is found when the image is built. "
    "No password, and no hash, goes into a definition.",
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "environment": text(
            "The environment variable that holds it.",
            ["OPS_PASSWORD_HASH"],
            pattern="^[A-Za-z_][A-Za-z0-9_]*$",
            errorMessage="must be the name of an environment variable",
        ),
        "file": text(
            "The absolute path of the file that holds it.", ["/etc/phantom/ops.hash"], minLength=1
        ),
    },
    "examples": [{"environment": "OPS_PASSWORD_HASH"}],
}

_PATH = {"pattern": "^/[^:\\n]*$", "errorMessage": "must be an absolute path without ':'"}

_USER: dict[str, Any] = {
    "description": "A user.",
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"description": "The user's name.", "examples": ["ops"], **NAME},
        "description": text(
            "The user's full name, or what the user is for.",
            ["Operators"],
            pattern="^[^:,\\n]*$",
            maxLength=200,
            errorMessage="must be one line without ':' and ','",
        ),
        "system": {
            "description": "Whether this is a user of the system: a number below 1000, no home "
            "unless 'create_home' asks for one.",
            "type": "boolean",
            "default": False,
            "examples": [True],
        },
        "uid": {"description": "The user's number.", "examples": [2000], **NUMBER},
        "group": {
            "description": "The user's own group, which must be there; without it, a group with "
            "the user's name.",
            "examples": ["web"],
            **NAME,
        },
        "groups": listed(
            "Further groups, which must be there or among 'groups'.",
            {"description": "A group's name.", "examples": ["adm"], **NAME},
            ["adm"],
        ),
        "shell": text("The login shell.", ["/bin/bash", "/usr/sbin/nologin"], **_PATH),
        "home": text("The home folder; by default /home and the name.", ["/srv/web"], **_PATH),
        "create_home": {
            "description": "Whether the home is made; by default for all but users of the system.",
            "type": "boolean",
            "examples": [True],
        },
        "sudo": {
            "description": "What sudo lets the user do: true for everything, without a password; "
            "or a rule of sudoers(5), without the user's name at its beginning.",
            "type": ["boolean", "string"],
            "pattern": "^[^\\n]*[^ \\n][^\\n]*$",
            "maxLength": 1000,
            "errorMessage": "must be true or a rule of one line",
            "examples": [True, "ALL=(root) NOPASSWD: /usr/bin/systemctl restart nginx"],
        },
        "ssh_authorized_keys": text(
            "A file of public keys that may log in, as OpenSSH's authorized_keys has them.",
            ["ops.pub"],
            minLength=1,
        ),
        "password": _PASSWORD,
    },
}

CUSTOMIZATION = Customization(
    key="users",
    schema=listed(
        "Users to add. One that the image has already is changed to what is said here.",
        _USER,
        [{"name": "ops", "groups": ["adm"], "sudo": True, "ssh_authorized_keys": "ops.pub"}],
    ),
    check=_check,
    merge=merge_named,
    packages=_packages,
    script=_script,
    kept=_kept,
    text_files=(("*", "ssh_authorized_keys"),),
)
