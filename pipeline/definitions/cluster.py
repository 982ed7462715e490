"""Merges and checks the guests of `boot_check: cluster:`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster_policy import (
    ADDRESS,
    OF_PHANTOM,
    SECRET,
    ClusterGuest,
    ClusterPolicy,
    find_placeholders,
)
from pipeline.definitions.messages import label, suggest
from pipeline.definitions.yaml import Keys, YamlFile
from pipeline.realfile import open_file

MAX_BYTES = 16 * 1024
"""Of a guest's user-data: EC2's limit."""
_GUESTS: Keys = ("boot_check", "cluster", "guests")


def merge_guests(parent: Sequence[Any], child: Sequence[Any]) -> list[Any]:
    """The guests of both; of two with one name, the child's."""
    names = {guest["name"] for guest in child}
    return [*(guest for guest in parent if guest["name"] not in names), *child]


def make_cluster(data: Mapping[str, Any]) -> ClusterPolicy:
    """The model of what a definition says."""
    guests = tuple(ClusterGuest(**guest) for guest in data["guests"])
    return ClusterPolicy(**{**data, "guests": guests})


def check_cluster(files: Sequence[YamlFile], data: Mapping[str, Any]) -> None:
    """Adds to the files' mistakes what only all of them together tell of a cluster check. `data` is
    the whole definition in the model's terms."""
    cluster = data.get("boot_check", {}).get("cluster")
    if cluster is None:
        return
    by_name = {guest["name"]: guest for guest in cluster["guests"]}
    _check_names(files)
    if not any("script" in guest for guest in cluster["guests"]):
        text = "no guest has a 'script', which says whether the check has passed"
        nearest = next(filter(_guests_of, files))
        nearest.add(f"{label(_GUESTS)!r}: {text}", _GUESTS)
    for file, name, keys in _list_guests(files):
        path = by_name[name].get("user_data")
        if path is not None and file.value((*keys, "user_data")) is not None:
            at = (*keys, "user_data")
            for text in _find_faults(path, by_name, phantom=cluster.get("phantom", False)):
                file.add(f"{label(at)!r}: {file.value(at)!r} has {text}", at)


def _guests_of(file: YamlFile) -> list[Mapping[str, Any]]:
    guests: Any = file.value(_GUESTS)
    return guests or []


def _list_guests(files: Sequence[YamlFile]) -> Iterator[tuple[YamlFile, str, Keys]]:
    """The guests that count, with file and place: of two with one name, the nearest file's."""
    seen: set[str] = set()
    for file in files:
        names = [guest["name"] for guest in _guests_of(file)]
        for index, name in enumerate(names):
            if name not in seen:
                yield file, name, (*_GUESTS, index)
        seen.update(names)


def _check_names(files: Sequence[YamlFile]) -> None:
    for file in files:
        first: dict[str, int] = {}
        for index, guest in enumerate(_guests_of(file)):
            at = (*_GUESTS, index, "name")
            earlier = first.setdefault(guest["name"], index)
            if earlier < index:
                line = file.line((*_GUESTS, earlier))
                text = f"another guest has the name {guest['name']!r}, on line {line}"
                file.add(f"{label(at)!r}: {text}", at)


def _find_faults(path: Path, names: Collection[str], *, phantom: bool) -> Iterator[str]:
    """What is wrong with the placeholders of a file."""
    with open_file(path) as content:
        text = content.read(MAX_BYTES).decode("ascii")
    known = [SECRET, f"{ADDRESS}NAME", *(OF_PHANTOM if phantom else ())]
    for word, line in find_placeholders(text):
        place = f"@{word}@ on line {line}"
        name = word.removeprefix(ADDRESS)
        if word.startswith(ADDRESS):
            if name not in names:
                yield f"{place}, and no guest has the name {name!r}{suggest(name, names)}"
        elif word in OF_PHANTOM and not phantom:
            yield f"{place}, which needs 'phantom: true' in 'boot_check.cluster'"
        elif word not in known:
            hint = suggest(word, known) or f"; known are {', '.join(known)}"
            yield f"{place}, which is no placeholder{hint}"
