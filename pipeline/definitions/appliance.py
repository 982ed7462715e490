"""Reads `images/*/appliance.yaml` and checks it completely before anything runs.

One `DefinitionError` lists all mistakes with file, line and column. A definition that extends
another is merged with it: mappings key by key; lists by appending new items; of two `files` entries
with the same target, two `packages` entries of one package, or two secrets of one name, the child's
wins; everything else, and a `source` of another kind, is replaced. `name`, `version` and `summary`
are never inherited, so that changes in a parent do not rename or renumber its children. Paths are
relative to the folder of the file that contains them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.customizations import CUSTOMIZATIONS
from pipeline.definitions.bounds import bounded
from pipeline.definitions.build_secrets import merge_secrets
from pipeline.definitions.cluster import check_cluster, make_cluster, merge_guests
from pipeline.definitions.copies import Grounds, merge_copies
from pipeline.definitions.customizations import check_customizations
from pipeline.definitions.environment import check_environment
from pipeline.definitions.files import missing, resolve
from pipeline.definitions.messages import (
    Schema,
    check_schema,
    choose,
    label,
    quote,
    raise_mistakes,
    suggest,
)
from pipeline.definitions.packages import check_packages, keep_out, merge_packages, split_files
from pipeline.definitions.schema import DEFAULT_SOURCE, make_appliance_schema
from pipeline.definitions.yaml import Keys, YamlFile, read_yaml, shown
from pipeline.disk import formats
from pipeline.errors import DefinitionError, UsageError
from pipeline.model import (
    COMPONENTS,
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    BootCheckPolicy,
    CloudOverride,
    Keep,
    PhantomPolicy,
    Positions,
    ScratchSource,
    Sha256,
    SitePolicy,
)
from pipeline.workspace import RESERVED

FILE_NAME = "appliance.yaml"

_OF_ONE_FILE = ("sha256", "format")
_MOST_PARENTS = 20  # more than anybody keeps in mind
_OWN_KEYS = ("name", "version", "summary")
_LIST_KEYS = (
    *("elements", "packages", "without_packages", "files", "scripts"),
    *("build_certificates", "build_secrets", "waive"),
)
_TODO = "correct it; `phantom-image schema` prints all that a definition can say"


def appliance_schema(clouds: Iterable[str] | None = None) -> Schema:
    """The JSON Schema (draft 2020-12) of `appliance.yaml` for the named clouds, or for all."""
    return bounded(make_appliance_schema(_cloud_names() if clouds is None else clouds))


def list_appliances(images: Path) -> tuple[str, ...]:
    """The sorted names of the appliances in a folder; empty if the folder does not exist."""
    return tuple(sorted(file.parent.name for file in images.glob(f"*/{FILE_NAME}")))


def load_appliance(
    path_or_name: Path | str,
    images: Path,
    *,
    clouds: Collection[str] | None = None,
    pinned: bool = True,
) -> Appliance:
    """Loads a definition, merged with those that it extends; all its paths become absolute.

    A `Path`, or text that contains `/` or ends in `.yaml`, is the definition or its folder; other
    text is a name: `images/<name>/appliance.yaml`. The definition may name only these `clouds`. If
    `pinned` is false, a base image with a URL needs no digest.
    Raises UsageError for an unknown name, and DefinitionError with all mistakes.
    """
    path = _find_definition(path_or_name, images)
    parts = _load_parts(path, images, _cloud_names() if clouds is None else clouds)
    files = [part.file for part in parts]
    check_packages(files, [part.data for part in parts])
    check_environment(files)
    raise_mistakes(files, _TODO)
    data = reduce(_merge, (part.data for part in reversed(parts)))
    _check_base_image(files, data, images, pinned=pinned)
    check_cluster(files, data)
    raise_mistakes(files, _TODO)
    return _make_appliance(data, [file.path for file in files], _merge_positions(files))


def _cloud_names() -> list[str]:
    from pipeline.clouds import clouds

    return list(clouds())


def _find_definition(path_or_name: Path | str, images: Path) -> Path:
    if isinstance(path_or_name, str) and not _is_path(path_or_name):
        path = images / path_or_name / FILE_NAME
        known = list_appliances(images)
        if path_or_name not in known and not (path_or_name and os.path.isdir(path.parent)):
            raise UsageError(
                f"there is no appliance {path_or_name!r} in {shown(images)}"
                + suggest(path_or_name, known),
                todo=choose(known, f"write {shown(path)}"),
            )
    else:
        path = Path(path_or_name)
        if os.path.isdir(path):
            path /= FILE_NAME
    if not os.path.exists(path):
        todo = choose(list_appliances(images), "write it")
        raise DefinitionError("there is no such file", where=shown(path), todo=todo)
    return Path(os.path.abspath(path))


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yaml", ".yml"))


@dataclass(frozen=True, kw_only=True)
class _Part:
    file: YamlFile
    data: dict[str, Any]
    """The file's data in the model's terms; complete only if the file has no mistake."""


def _load_parts(path: Path, images: Path, clouds: Collection[str]) -> list[_Part]:
    """A definition and those that it extends, in order. Mistakes are collected in the files."""
    schema = make_appliance_schema(clouds)
    files: list[YamlFile] = []
    next_path: Path | None = path
    while next_path is not None:
        file = read_yaml(next_path)
        # A parent under another file name may be incomplete.
        complete = not files or next_path.name == FILE_NAME
        if not file.broken:
            check_schema(file, schema if complete else {**schema, "required": []})
        if isinstance(file.data, dict):
            _check_name(file)
        files.append(file)
        next_path = _find_parent(files, images)
    folders = [*(file.path.parent for file in files), images]
    parts: list[_Part] = []
    for number, file in enumerate(files):
        data: dict[str, Any] = {}
        if isinstance(file.data, dict):
            data = resolve(file, Grounds(file.path.parent, folders[number + 1 :]))
            check_customizations(file, data)
        if number:
            data = {key: value for key, value in data.items() if key not in _OWN_KEYS}
        parts.append(_Part(file=file, data=data))
    return parts


def _check_name(file: YamlFile) -> None:
    name, folder = file.text(("name",)), file.path.parent.name
    if file.path.name == FILE_NAME and name not in (None, folder):
        text = f"'name': {name!r} is not the name of the definition's folder, {folder!r}"
        file.add(text, ("name",))
    elif name in RESERVED:
        *others, last = (word for word in RESERVED if word != name)
        words = f"{', '.join(others)} and {last}"
        text = f"'name': {name!r} is kept for a folder beside those of the builds, as {words} are"
        file.add(text, ("name",))


def _find_parent(files: Sequence[YamlFile], images: Path) -> Path | None:
    """The definition that the last file extends; None if it extends none, or by mistake."""
    file = files[-1]
    extends = file.text(("extends",))
    if extends is None:
        return None
    folder, at = file.path.parent, ("extends",)
    by_path = _is_path(extends)
    path = Path(os.path.abspath(folder / extends if by_path else images / extends / FILE_NAME))
    if len(files) > _MOST_PARENTS:
        file.add(f"'extends': more than {_MOST_PARENTS} definitions, one after the other", at)
        return None
    real_paths = [os.path.realpath(earlier.path) for earlier in files]
    if os.path.realpath(path) in real_paths:
        first = real_paths.index(os.path.realpath(path))
        circle = [*(shown(earlier.path) for earlier in files[first:]), shown(path)]
        file.add(f"'extends' goes in a circle: {' -> '.join(circle)}", ("extends",))
    elif os.path.isfile(path):  # unlike Path.is_file, it accepts any text
        return path
    elif by_path:
        file.add(f"'extends': {missing(folder, extends)}", ("extends",))
    else:
        text = f"'extends': there is no appliance {quote(extends)} in {shown(images)}"
        others = [name for name in list_appliances(images) if name != folder.name]
        file.add(text + suggest(extends, others), ("extends",))
    return None


def _check_base_image(
    files: Sequence[YamlFile], data: Mapping[str, Any], images: Path, *, pinned: bool
) -> None:
    """Checks the keys that belong to a base image, across all files of the definition."""
    base = data.get("source", {}).get("base_image")
    if base is None:
        return
    keys: Keys = ("source", "base_image")
    file = next(file for file in files if file.value((*keys, "location")) is not None)
    location = base["location"]
    if "disk_size" not in data:
        file.add("'disk_size' is missing: a base image grows to the disk that is asked for", keys)
    if isinstance(location, ApplianceBuild):
        others = [name for name in list_appliances(images) if name != data["name"]]
        if location.name not in others:
            at = (*keys, "location", "appliance")
            text = f"{label(at)!r}: there is no other appliance {quote(location.name)} in "
            file.add(text + shown(images) + suggest(location.name, others), at)
        for key in _OF_ONE_FILE:
            if key in base:
                file.add(f"{label((*keys, key))!r}: an appliance's build has its own", (*keys, key))
    elif isinstance(location, str) and pinned and "sha256" not in base:
        file.add(
            f"{label((*keys, 'sha256'))!r} is missing, and what comes over a network needs it: "
            f"`phantom-image pin {file.path.parent.name}` fetches the image and writes it",
            (*keys, "location"),
        )


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    parent = keep_out(parent, child)
    merged = dict(parent)
    for key, value in child.items():
        merged[key] = _merge_value(key, parent[key], value) if key in parent else value
    return merged


def _merge_value(key: str, parent: Any, child: Any) -> Any:
    if key in CUSTOMIZATIONS:
        return CUSTOMIZATIONS[key].merge(parent, child)
    if isinstance(parent, dict) and isinstance(child, dict):
        if key == "source" and parent.keys() != child.keys():
            return child
        if key == "base_image" and "location" in child:  # digest and format are the old image's
            parent = {name: value for name, value in parent.items() if name not in _OF_ONE_FILE}
        return _merge(parent, child)
    if isinstance(parent, list) and isinstance(child, list):
        if key == "files":
            return merge_copies(parent, child)
        if key == "packages":
            return merge_packages(parent, child)
        if key == "build_secrets":
            return merge_secrets(parent, child)
        if key == "guests":
            return merge_guests(parent, child)
        known = set(parent)
        return parent + [item for item in child if item not in known]
    return child


def _merge_positions(files: Sequence[YamlFile]) -> Positions:
    """The positions of all values: for a value in several files, that in the first."""
    places: dict[Keys, str] = {}
    for file in reversed(files):
        places |= file.positions()
    return Positions(file=shown(files[0].path), places=MappingProxyType(places))


def _make_appliance(data: dict[str, Any], paths: Sequence[Path], positions: Positions) -> Appliance:
    optional: dict[str, Any] = {key: data[key] for key in ("disk_size", "kernel") if key in data}
    for key in ("frequency", "runner"):
        if key in data.get("user_data", {}):
            optional[f"user_data_{key}"] = data["user_data"][key]
    if "user" in data.get("login", {}):
        optional["login_user"] = data["login"]["user"]
    overrides = {name: CloudOverride(**keys) for name, keys in data.get("clouds", {}).items()}
    boot_check = dict(data.get("boot_check", {}))
    if "cluster" in boot_check:
        boot_check["cluster"] = make_cluster(boot_check["cluster"])
    phantom = dict(data.get("phantom", {}))
    phantom["instance_type"] = MappingProxyType(phantom.get("instance_type", {}))
    of_sites = {name: SitePolicy(**keys) for name, keys in phantom.get("sites", {}).items()}
    phantom["sites"] = MappingProxyType(of_sites)
    lists: dict[str, Any] = {key: tuple(data.get(key, ())) for key in _LIST_KEYS}
    lists["packages"], lists["package_files"] = split_files(lists["packages"])
    return Appliance(
        **{key: data[key] for key in _OWN_KEYS},
        **lists,
        source=_make_source(data.get("source", {})),
        clouds=MappingProxyType(overrides),
        boot_check=BootCheckPolicy(**boot_check),
        phantom=PhantomPolicy(**phantom),
        keep=Keep(**data["keep"]) if "keep" in data else None,
        environment=MappingProxyType(dict(data.get("environment", {}))),
        customizations=MappingProxyType({key: data[key] for key in CUSTOMIZATIONS if key in data}),
        labels=MappingProxyType(dict(data.get("labels", {}))),
        definition=paths[0],
        extended=tuple(paths[1:]),
        positions=positions,
        **optional,
    )


def _make_source(source: Mapping[str, Any]) -> ScratchSource | BaseImageSource:
    if "base_image" not in source:
        scratch = DEFAULT_SOURCE | source.get("scratch", {})
        if "components" in scratch:
            asked = {"main", *scratch["components"]}
            scratch["components"] = tuple(name for name in COMPONENTS if name in asked)
        return ScratchSource(**scratch)
    convert: dict[str, Any] = {
        "sha256": Sha256,
        "format": formats.from_user_name,
        "remove_packages": tuple,
    }
    base = source["base_image"].items()
    return BaseImageSource(
        **{key: convert.get(key, lambda same: same)(value) for key, value in base}
    )
