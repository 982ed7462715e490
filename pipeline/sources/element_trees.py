"""Elements as inputs of stages and in manifests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.stages.base import LocalFile, digest_of_tree


@dataclass(frozen=True, kw_only=True)
class ElementTree:
    """An element, with the folder that holds it on this host."""

    name: str
    tree: LocalFile

    @staticmethod
    def read(name: str, folder: Path) -> ElementTree:
        """The element in a folder, with its digest."""
        return ElementTree(name=name, tree=LocalFile(digest=digest_of_tree(folder), path=folder))


def describe_elements(elements: Iterable[ElementTree]) -> list[dict[str, str]]:
    """Elements as a manifest lists them, sorted by name."""
    return [
        {"name": element.name, "digest": element.tree.digest}
        for element in sorted(elements, key=lambda element: element.name)
    ]
