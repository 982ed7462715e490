"""Rules of who may write a file, and as whom a program runs."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from pipeline.checks.root import Root
from pipeline.checks.rule import Found, Rule
from pipeline.disk.contents import File

_UNOWNED_PLACES = ("/usr/local", "/opt", "/home", "/root", "/srv", "/var", "/etc", "/tmp")  # noqa: S108
_DEVICES = (stat.S_ISBLK, stat.S_ISCHR)


def _find_setuid(root: Root) -> Iterator[Found]:
    for file in root.contents.files.values():
        bits = [(stat.S_ISUID, "setuid", file.uid), (stat.S_ISGID, "setgid", file.gid)]
        told = [f"{name} {owner}" for bit, name, owner in bits if file.mode & bit]
        if told and file.is_file and file.mode & 0o111 and not _is_known(root, file):
            yield Found(path=file.path, detail=f"{' and '.join(told)}, from no package")


def _is_known(root: Root, file: File) -> bool:
    """Whether a package brought a file; where packages' files are not known, whether it lies where
    packages put theirs."""
    known = root.belongs_to_package(file)
    if known is not None:
        return known
    return not file.path.startswith(tuple(f"{place}/" for place in _UNOWNED_PLACES))


def _find_writable(root: Root) -> Iterator[Found]:
    for file in root.contents.files.values():
        if not file.mode & stat.S_IWOTH:
            continue
        if file.is_file:
            yield Found(path=file.path, detail=f"anybody may write it ({file.mode & 0o7777:04o})")
        elif file.is_folder and not file.mode & stat.S_ISVTX:
            detail = f"anybody may replace what is in it ({file.mode & 0o7777:04o})"
            yield Found(path=file.path, detail=detail)


def _find_devices(root: Root) -> Iterator[Found]:
    for file in root.contents.files.values():
        if any(test(file.mode) for test in _DEVICES) and not file.path.startswith("/dev/"):
            yield Found(path=file.path, detail="a device outside /dev")


RULES = (
    Rule(
        id="setuid",
        severity="error",
        what="a setuid or setgid program that is from no package",
        reason="it gives whoever runs it another user's rights, and no package's update mends it",
        todo="take the bit away (`chmod a-s`), or install the program as a package",
        find=_find_setuid,
    ),
    Rule(
        id="world-writable",
        severity="error",
        what="a file or folder that anybody may write",
        reason="every user and every broken service can change what others run or read",
        todo="`chmod o-w`; a folder for everybody's files has the sticky bit (`chmod 1777`)",
        find=_find_writable,
    ),
    Rule(
        id="device",
        severity="error",
        what="a device outside /dev",
        reason="its owner reaches hardware past all other permissions",
        todo="remove it",
        find=_find_devices,
    ),
)
