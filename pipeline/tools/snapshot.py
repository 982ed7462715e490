"""What plans that belong together share: archives and elements as they were at one moment."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import IndexMovedError

if TYPE_CHECKING:
    from pipeline.tools.apt_lists import Lists

_Found = TypeVar("_Found")


class Snapshot:
    """The indexes of archives as they were seen first, what apt answered from them, and what
    elements held.

    The index of an archive and its lists are fetched by two requests. Where the archive changes in
    between, or later, nothing of both states is mixed: IndexMovedError asks for a new snapshot.
    """

    def __init__(self, *, kept: bool = True) -> None:
        """What is not `kept` serves one request, which takes the archive as it is."""
        self._kept = kept
        self._found: dict[Hashable, Any] = {}
        self._updated: set[Path] = set()

    def once(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """What `find` returned when this key was asked for first."""
        if not self._kept:
            return find()
        if key not in self._found:
            self._found[key] = find()
        found: _Found = self._found[key]
        return found

    def update(self, lists: Lists, folder: Path, index: Mapping[str, str]) -> None:
        """Fetches the lists in a folder, unless this snapshot has. Raises MirrorError,
        IndexMovedError."""
        if folder in self._updated:
            return
        lists.update()
        if not self._kept:
            return
        if lists.indexes() != {*index.values()}:
            raise IndexMovedError(
                "the archive changed its index while packages were resolved",
                todo="run the same command again",
            )
        self._updated.add(folder)

    def forget(self, folder: Path) -> None:
        """Lets the lists in a folder be fetched again."""
        self._updated.discard(folder)
