"""Elements as inputs of stages and in manifests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stages.base import LocalFile, digest_of_tree
from pipeline.tools import git


@dataclass(frozen=True, kw_only=True)
class ElementTree:
    """An element, with the folder that holds it on this host."""

    name: str
    tree: LocalFile

    @staticmethod
    def read(name: str, folder: Path) -> ElementTree:
        """The element in a folder, with its digest."""
        return ElementTree(name=name, tree=LocalFile(digest=digest_of_tree(folder), path=folder))


def describe_elements(elements: Iterable[ElementTree]) -> list[dict[str, Any]]:
    """Elements as a manifest lists them, sorted by name. Those in a git repository have its commit,
    and whether they differ from that."""
    ordered = sorted(elements, key=lambda element: element.name)
    folders: dict[Path, list[str]] = {}
    for element in ordered:
        folders.setdefault(element.tree.path.parent, []).append(element.tree.path.name)
    commits = {
        parent / name: commit
        for parent, names in folders.items()
        for name, commit in git.find_folder_commits(parent, names).items()
    }
    return [{**_describe(each), **_origin(commits.get(each.tree.path))} for each in ordered]


def _describe(element: ElementTree) -> dict[str, Any]:
    return {"name": element.name, "digest": element.tree.digest}


def _origin(commit: git.Commit | None) -> dict[str, Any]:
    return {} if commit is None else {"commit": commit.id, "dirty": commit.dirty}
