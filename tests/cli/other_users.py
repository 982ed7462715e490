"""A user of this host who has no rights, for as long as a command runs.

The files that know him are shown in place of the host's in a mount namespace of the command's own:
nothing of the host is changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NAME, USER, FIRST, COUNT = "phantom-tester", 61_021, 1_800_000_000, 65_536

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

_BECOME = f"""
for name in passwd group subuid subgid; do mount --bind "$0/$name" "/etc/$name"; done
exec setpriv --reuid={USER} --regid={USER} --clear-groups -- "$@"
"""


@dataclass(frozen=True, kw_only=True)
class OtherUser:
    """The user, and a folder of his that he reaches."""

    folder: Path
    prefix: tuple[str, ...]
    """The words that run a command as he."""


@contextmanager
def other_user(*, ids: int = COUNT) -> Iterator[OtherUser]:
    """A user with so many subordinate ids; what he leaves is removed as root."""
    folder = Path(tempfile.mkdtemp(prefix="phantom-user-"))
    folder.chmod(0o755)
    etc, own = folder / "etc", folder / "own"
    etc.mkdir()
    own.mkdir()
    os.chown(own, USER, USER)
    for name, line in (
        ("passwd", f"{NAME}:x:{USER}:{USER}::{own}:/bin/sh"),
        ("group", f"{NAME}:x:{USER}:"),
    ):
        (etc / name).write_text(Path("/etc", name).read_text() + f"{line}\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"{NAME}:{FIRST}:{ids}\n" if ids else "")
    try:
        prefix = ("unshare", "--mount", "sh", "-euc", _BECOME, str(etc))
        yield OtherUser(folder=own, prefix=prefix)
    finally:
        shutil.rmtree(folder)
