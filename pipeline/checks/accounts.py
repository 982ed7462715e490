"""Rules of who can log in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.disk.contents import File
from pipeline.disk.untrusted import lines_of, to_printable

_ELSEWHERE = ("x",)  # in place of a password: it stands in /etc/shadow
_KEY_FILES = ("authorized_keys", "authorized_keys2")


def _shadow(root: Root) -> Iterator[tuple[str, str]]:
    """Users, and what stands for their passwords; that may be in /etc/passwd itself."""
    shadowed = set()
    for path in ("/etc/shadow", "/etc/passwd"):
        for line in lines_of(root.contents.text(path)):
            name, colon, rest = line.partition(":")
            password = rest.partition(":")[0]
            is_user = bool(colon) and name[:1] not in ("#", "+", "-")
            if is_user and name not in shadowed and password not in _ELSEWHERE:
                yield to_printable(name), password
            if path == "/etc/shadow":
                shadowed.add(name)


def _find_passwords(root: Root) -> Iterator[Found]:
    for user, password in _shadow(root):
        if password and password[0] not in "*!":
            yield Found(path="/etc/shadow", detail=f"{user} has a password", subject=user)


def _find_empty_passwords(root: Root) -> Iterator[Found]:
    for user, password in _shadow(root):
        if not password:
            yield Found(path="/etc/shadow", detail=f"{user} has an empty password", subject=user)


def _find_further_roots(root: Root) -> Iterator[Found]:
    for user in root.users:
        if user.uid.strip("0") == "" and user.uid and user.name != "root":
            detail = f"{user.name} has root's number, 0"
            yield Found(path="/etc/passwd", detail=detail, subject=user.name)


def _find_keys(root: Root) -> Iterator[Found]:
    names = {user.home: user.name for user in root.users}
    for home in root.homes:
        for name in _KEY_FILES:
            file = root.contents.find(f"{home}/.ssh/{name}")
            if file is not None and file.is_file and _has_key(root, file):
                user = names.get(home, home)
                detail = f"the owner of a key can log in as {user}"
                yield Found(path=file.path, detail=detail, subject=user)
    for file in root.inside("/etc/ssh"):
        if file.name.startswith("authorized_keys"):
            inner = [file] if file.is_file else [*root.contents.below(file.path)]
            for each in inner:
                if each.is_file and _has_key(root, each):
                    yield Found(path=each.path, detail="the owner of a key can log in")


def _has_key(root: Root, file: File) -> bool:
    return bool(re.search(r"(?m)^[ \t]*[^#\s]", root.contents.text(file.path)))


RULES = (
    Rule(
        id="password-set",
        severity="error",
        what="a user has a password",
        reason="everybody who has the image can guess it offline, and it opens all machines",
        todo="lock the password (`passwd --lock USER`), or have the definition's `users` set it "
        "where that is wanted",
        find=_find_passwords,
    ),
    Rule(
        id="password-empty",
        severity="error",
        what="a user has an empty password",
        reason="anybody can log in as that user",
        todo="lock the password (`passwd --lock USER`)",
        find=_find_empty_passwords,
    ),
    Rule(
        id="second-root",
        severity="error",
        what="a user other than root has the number 0",
        reason="it is a second root, which settings for root do not concern",
        todo="give the user another number, or remove it",
        find=_find_further_roots,
    ),
    Rule(
        id="authorized-keys",
        severity="error",
        what="a public key can log in",
        reason="whoever has its private half can enter all machines of the image",
        todo="remove the file: keys come with the launch; or have the definition's `users` name "
        "them where that is wanted",
        find=_find_keys,
    ),
)
