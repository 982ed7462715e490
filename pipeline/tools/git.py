"""git, which tells of which commit a file of a definition is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import HostError
from pipeline.tools import run

_SECONDS = 30.0  # a work tree of a million files takes less
# The caller may be a hook of another repository; and looking writes nothing.
_COMMAND = (
    *("env", "--unset=GIT_DIR", "--unset=GIT_WORK_TREE", "--unset=GIT_INDEX_FILE"),
    *("git", "--no-optional-locks", "-c", "core.fsmonitor=false"),
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The state of a work tree."""

    id: str
    dirty: bool
    """Whether the files differ from those of the commit."""


def find_commit(file: Path, others: Sequence[Path] = ()) -> Commit | None:
    """The commit that a file's work tree has checked out; None where there is none, or no git.

    The tree is dirty where a file that git knows was changed, and where one of `others`, or the
    file itself, is not one that git knows.
    """
    folder = file.parent
    try:
        commit = _ask(folder, "rev-parse", "--verify", "--quiet", "HEAD")
        changed = _ask(folder, "status", "--porcelain", "--untracked-files=no")
    except (run.ToolError, HostError):
        return None
    return Commit(id=commit, dirty=bool(changed) or not _are_known(folder, [file, *others]))


def find_folder_commits(parent: Path, names: Sequence[str]) -> dict[str, Commit]:
    """The commit of each folder in `parent` of which git knows a file; dirty are those in which a
    file is not as in the commit."""
    try:
        commit, _, prefix = _ask(parent, "rev-parse", "HEAD", "--show-prefix").partition("\n")
        known = _ask(parent, "ls-files", "-z", "--full-name", "--", *names).split("\0")
        changed = _ask(parent, "status", "--porcelain", "-z", "--", *names).split("\0")
    except (run.ToolError, HostError):
        return {}
    places = {name: f"{prefix}{name}/" for name in names}
    return {
        name: Commit(id=commit, dirty=any(place in entry for entry in changed))
        for name, place in places.items()
        if any(path.startswith(place) for path in known)
    }


def _are_known(folder: Path, files: Sequence[Path]) -> bool:
    names = [str(file) for file in files]
    try:
        _ask(folder, "ls-files", "--error-unmatch", "--", *names)
    except (run.ToolError, HostError):
        return False
    return True


def _ask(folder: Path, *words: str) -> str:
    return run.capture([*_COMMAND, "-C", str(folder), *words], timeout=_SECONDS).strip()
