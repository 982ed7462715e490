"""The commit that the program itself is of."""

from __future__ import annotations

from pipeline import resources
from pipeline.tools import git

_SHOWN = 12  # characters


def describe_commit() -> str | None:
    """`commit 0123456789ab`, with `, dirty` where files differ from it: of the checkout, or as the
    wheel was made. None where nobody knows."""
    if resources.INSTALLED:
        stamp = resources.find("commit")
        return stamp.read_text().strip() if stamp.is_file() else None
    commit = git.find_commit(resources.find("ARCHITECTURE.md"))
    if commit is None:
        return None
    return f"commit {commit.id[:_SHOWN]}{', dirty' if commit.dirty else ''}"
