"""Reads `images/*/appliance.yaml` and `sites.yaml`: all of it is checked before anything runs.

Every mistake is told, with file, line and column, in one `DefinitionError`. How definitions that
extend each other are merged: mappings key by key; lists by appending what the parent has not got;
of two `files` entries with one target the child's wins; everything else, and a `source` of another
kind, is replaced. `name`, `version` and `summary` are a definition's own and never inherited: a
parent that changes does not rename or renumber what others made of it. Paths are relative to the
folder of the file that they stand in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.checking import Schema, check_schema, label, quote, suggest
from pipeline.errors import DefinitionError, UsageError
from pipeline.model import (
    Appliance,
    ApplianceBuild,
    BaseImageSource,
    BootCheckPolicy,
    CloudOverride,
    FileCopy,
    PhantomPolicy,
    ScratchSource,
    Sha256,
    Site,
    parse_size,
)
from pipeline.schema import (
    DEBIAN_PACKAGE_PATTERN,
    DEFAULT_SOURCE,
    PACKAGE_PATTERN,
    make_appliance_schema,
    make_cloudless_check,
    make_site_schema,
    make_sites_check,
    make_sites_schema,
)
from pipeline.tools import disk_formats
from pipeline.yaml_source import Keys, Mistake, YamlFile, read_yaml, shown

if TYPE_CHECKING:
    from pipeline.clouds import Cloud

FILE_NAME = "appliance.yaml"
BUILT_IN_SITE = Site(name="nimbus-sandbox", cloud="nimbus", sandbox=True, where="built in")
"""The one that is meant where nothing is named."""

BUILT_IN_SITES = (
    BUILT_IN_SITE,
    Site(name="ec2-sandbox", cloud="ec2", sandbox=True, where="built in"),
)

URL_SCHEMES = ("http", "https", "s3")
"""How a base image may come over a network."""

MAX_DISK = parse_size("2TiB")  # an MBR counts 512-byte sectors in 32 bits
MAX_USER_DATA = 1024  # the database column of Phantom's web application (facts: R)

_OF_ONE_FILE = ("sha256", "format")
_OWN_KEYS = ("name", "version", "summary")
_TEMPLATE_WORDS = ("name", "version", "build")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_SCANNED_BYTES = 1 << 16  # a private key's file has at most a few thousand bytes
_TODO = "correct it; `phantom-image schema` prints all that a definition can say"
_SITES_TODO = "correct it; sites.example.yaml shows what the file can say"


def appliance_schema(clouds: Iterable[str] | None = None) -> Schema:
    """The JSON Schema (draft 2020-12) of `appliance.yaml`; of all clouds unless some are named."""
    return make_appliance_schema(_cloud_names() if clouds is None else clouds)


def sites_schema(clouds: Mapping[str, type[Cloud]]) -> Schema:
    """The JSON Schema (draft 2020-12) of `sites.yaml`."""
    return make_sites_schema({name: cloud.site_schema for name, cloud in clouds.items()})


def list_appliances(images: Path) -> tuple[str, ...]:
    """The names of the appliances in a folder, sorted; none if there is no such folder."""
    return tuple(sorted(file.parent.name for file in images.glob(f"*/{FILE_NAME}")))


def load_appliance(
    path_or_name: Path | str,
    images: Path,
    *,
    clouds: Collection[str] | None = None,
    pinned: bool = True,
) -> Appliance:
    """The appliance of a definition, with what it extends merged in, and all its paths absolute.

    A `Path`, and text that holds `/` or ends in `.yaml`, is the definition or its folder; other
    text is a name: `images/<name>/appliance.yaml`. `clouds` are the clouds that it may name. With
    `pinned` false, a base image of the network may lack its digest.
    Raises UsageError for an unknown name, and DefinitionError with every mistake found.
    """
    path = _find_definition(path_or_name, images)
    loader = _Loader(images, _cloud_names() if clouds is None else clouds)
    data = loader.load(path)
    _check_base_image(loader.files, data, images, pinned=pinned)
    _raise_mistakes(loader.files, _TODO)
    return _make_appliance(data, path)


def load_sites(path: Path | None, clouds: Mapping[str, type[Cloud]]) -> tuple[Site, ...]:
    """The sites of `sites.yaml` in its order, then the built-in ones that it does not redefine.

    Without a file there are only those. Raises DefinitionError with every mistake.
    """
    built_in = tuple(one for one in BUILT_IN_SITES if one.cloud in clouds)
    if path is None or not os.path.exists(path):
        return built_in
    file = read_yaml(path)
    sites = [] if file.broken else _make_sites(file, clouds)
    _raise_mistakes([file], _SITES_TODO)
    names = [site.name for site in sites]
    return (*sites, *(one for one in built_in if one.name not in names))


def select_sites(
    sites: Sequence[Site], cloud: Sequence[str] | None, site: Sequence[str] | None
) -> tuple[Site, ...]:
    """The sites that the command line asks for, in the order of `sites`.

    `site` names sites. Without it all sites of the clouds in `cloud` are meant, and a built-in one
    where a cloud has no other; without that too, all that are configured, or `BUILT_IN_SITE` where
    none is. Both together must agree.
    Raises UsageError for a name that no site has, and for a site that is on none of the clouds.
    """
    _check_words("site", site or (), [one.name for one in sites])
    _check_words("cloud", cloud or (), list(dict.fromkeys(one.cloud for one in sites)))
    if site:
        chosen = tuple(one for one in sites if one.name in site)
        for one in chosen:
            if cloud and one.cloud not in cloud:
                raise UsageError(
                    f"site {one.name!r} is a site of cloud {one.cloud!r}, not of "
                    f"{' or '.join(map(repr, cloud))}",
                    todo="name the site alone, or the cloud alone",
                )
        return chosen
    configured = tuple(one for one in sites if one not in BUILT_IN_SITES)
    if not cloud:
        return configured or (BUILT_IN_SITE,)
    covered = {one.cloud for one in configured}
    return tuple(
        one
        for one in sites
        if one.cloud in cloud and (one in configured or one.cloud not in covered)
    )


def locate(definition: Path, *keys: str | int, images: Path | None = None) -> str:
    """`file:line:column` of a value, for the message of someone who finds fault with it later.

    Each key goes one step down: a mapping's key, a list's index, or the text of a list's item, as
    in `locate(appliance.definition, "elements", "phantom-user-data")`. What the file does not hold
    is looked for in those that it extends; the answer is the file alone when none holds it.
    `images` is the folder that names in `extends` mean, by default the definition's folder's
    parent. Raises nothing.
    """
    images = images or definition.parent.parent
    seen: set[str] = set()
    path: Path | None = definition
    while path is not None and _identity(path) not in seen:
        seen.add(_identity(path))
        file = read_yaml(path)
        found = _find_keys(file.data, keys)
        if found is not None:
            return file.where(found)
        parent = file.data.get("extends") if isinstance(file.data, dict) else None
        path = _parent_path(parent, path, images) if isinstance(parent, str) else None
    return shown(definition)


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
                todo=_choose(known, f"write {shown(path)}"),
            )
    else:
        path = Path(path_or_name)
        if os.path.isdir(path):
            path /= FILE_NAME
    if not os.path.exists(path):
        todo = _choose(list_appliances(images), "write it")
        raise DefinitionError("there is no such file", where=shown(path), todo=todo)
    return Path(os.path.abspath(path))


def _choose(known: Sequence[str], otherwise: str) -> str:
    return f"choose one of: {', '.join(known)}" if known else otherwise


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yaml", ".yml"))


def _parent_path(extends: str, child: Path, images: Path) -> Path:
    path = child.parent / extends if _is_path(extends) else images / extends / FILE_NAME
    return Path(os.path.abspath(path))


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _find_keys(data: object, keys: Sequence[str | int]) -> Keys | None:
    way: Keys = ()
    for key in keys:
        if isinstance(data, list):
            index = data.index(key) if isinstance(key, str) and key in data else key
            if not isinstance(index, int) or not 0 <= index < len(data):
                return None
            way, data = (*way, index), data[index]
        elif isinstance(data, dict) and key in data:
            way, data = (*way, key), data[key]
        else:
            return None
    return way


def _raise_mistakes(files: Sequence[YamlFile], todo: str) -> None:
    found = [one for file in files for one in sorted(file.mistakes, key=_place)]
    if len(found) == 1:
        raise DefinitionError(found[0].text, where=found[0].where, todo=todo)
    if found:
        names = list(dict.fromkeys(one.file for one in found))
        raise DefinitionError(
            f"{len(found)} mistakes in {_spell(names)}",
            detail="\n".join(str(one) for one in found),
            todo=todo.replace("correct it", "correct them"),
        )


def _place(mistake: Mistake) -> tuple[int, int]:
    return mistake.line, mistake.column


def _spell(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _check_base_image(
    files: Sequence[YamlFile], data: Mapping[str, Any], images: Path, *, pinned: bool
) -> None:
    """What a definition with a base image must say, wherever among the files it says it."""
    source = data.get("source")
    if not isinstance(source, dict) or "base_image" not in source:
        _check_debian_packages(files)
        return
    if _any_mistake(files):
        return
    base = source["base_image"]
    keys: Keys = ("source", "base_image")
    file = next(each for each in files if _find_keys(each.data, (*keys, "location")) is not None)
    location = base["location"]
    if "disk_size" not in data:
        file.add("'disk_size' is missing: a base image grows to the disk that is asked for", keys)
    if isinstance(location, ApplianceBuild):
        others = [one for one in list_appliances(images) if one != data["name"]]
        if location.name not in others:
            file.add(
                f"{label((*keys, 'location', 'appliance'))!r}: there is no other appliance "
                f"{quote(location.name)} in {shown(images)}" + suggest(location.name, others),
                (*keys, "location", "appliance"),
            )
        for key in _OF_ONE_FILE:
            if key in base:
                file.add(f"{label((*keys, key))!r}: an appliance's build has its own", (*keys, key))
    elif isinstance(location, str) and pinned and "sha256" not in base:
        name = file.path.parent.name
        file.add(
            f"{label((*keys, 'sha256'))!r} is missing, and what comes over a network needs it: "
            f"`phantom-image pin {name}` fetches the image and writes it",
            (*keys, "location"),
        )


def _check_debian_packages(files: Sequence[YamlFile]) -> None:
    """From scratch, packages are Debian's, whose names are narrower than those of others."""
    for file in files:
        said = file.data.get("packages") if isinstance(file.data, dict) else None
        for index, name in enumerate(said if isinstance(said, list) else ()):
            keys: Keys = ("packages", index)
            if not isinstance(name, str) or not re.search(PACKAGE_PATTERN, name):
                continue  # that has been told
            if not re.search(DEBIAN_PACKAGE_PATTERN, name):
                file.add(
                    f"{label(keys)!r} must be the name of a Debian package, not {name!r}", keys
                )


def _any_mistake(files: Sequence[YamlFile]) -> bool:
    return any(file.broken or file.mistakes for file in files)


class _Loader:
    """Reads a definition and what it extends, and keeps each file with its mistakes."""

    def __init__(self, images: Path, clouds: Collection[str]) -> None:
        self.files: list[YamlFile] = []
        self._images = images
        self._schema = make_appliance_schema(clouds)

    def load(self, path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
        """What a file says, merged with its parents', its paths resolved.

        The result is whole only when no file has a mistake.
        """
        file = read_yaml(path)
        self.files.append(file)
        if file.broken:
            return {}
        # What others extend by its path may be a part of a definition; what has a name may not.
        whole = not children or path.name == FILE_NAME
        schema = self._schema if whole else {**self._schema, "required": []}
        bad = check_schema(file, file.data, schema)
        if not isinstance(file.data, dict):
            return {}
        data = _Resolver(file, bad).resolve()
        parent = self._load_parent(file, bad, (*children, path))
        return _merge(parent, data)

    def _load_parent(
        self, file: YamlFile, bad: set[Keys], chain: tuple[Path, ...]
    ) -> dict[str, Any]:
        assert isinstance(file.data, dict)
        extends = file.data.get("extends")
        if not isinstance(extends, str) or ("extends",) in bad:
            return {}
        path = _parent_path(extends, file.path, self._images)
        identities = [_identity(one) for one in chain]
        if _identity(path) in identities:
            circle = [*chain[identities.index(_identity(path)) :], path]
            words = " -> ".join(shown(one) for one in circle)
            file.add(f"'extends' goes in a circle: {words}", ("extends",))
            return {}
        if not os.path.isfile(path):  # unlike Path.is_file it takes any text
            own = file.path.parent.name
            if _is_path(extends):
                text = f"'extends': {_missing(file.path.parent, extends)}"
            else:
                text = f"'extends': there is no appliance {quote(extends)} in {shown(self._images)}"
                others = [one for one in list_appliances(self._images) if one != own]
                text += suggest(extends, others)
            file.add(text, ("extends",))
            return {}
        parent = self.load(path, chain)
        return {key: value for key, value in parent.items() if key not in _OWN_KEYS}


@dataclass
class _Resolver:
    """Checks in one file what a schema cannot say, and turns its text into the model's values."""

    file: YamlFile
    bad: set[Keys]
    """Where the values stand that the schema has refused."""
    targets: dict[PurePosixPath, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.file.path.parent

    def resolve(self) -> dict[str, Any]:
        """The file's mapping with sizes, paths and file copies in place of their text."""
        assert isinstance(self.file.data, dict)
        data: dict[str, Any] = _copy(self.file.data)
        self._check_name()
        for keys in ((), *(("clouds", cloud) for cloud in self._mapping("clouds"))):
            self._replace(data, (*keys, "disk_size"), self._size)
            self._replace(data, (*keys, "image_name"), self._template)
        for index in range(len(self._list("scripts"))):
            self._replace(data, ("scripts", index), self._script)
        self._replace(data, ("boot_check", "script"), self._script)
        self._locate_base(data)
        self._replace(data, ("phantom", "user_data"), self._user_data)
        if "files" in data:
            data["files"] = [
                copy
                for index in range(len(self._list("files")))
                for copy in self._copies(("files", index))
            ]
        return data

    def _mapping(self, key: str) -> dict[str, Any]:
        assert isinstance(self.file.data, dict)
        value = self.file.data.get(key)
        return value if isinstance(value, dict) else {}

    def _list(self, key: str) -> list[Any]:
        assert isinstance(self.file.data, dict)
        value = self.file.data.get(key)
        return value if isinstance(value, list) else []

    def _text(self, keys: Keys) -> str | None:
        """The text at a place, when it is there and the schema has nothing against it."""
        found = _find_keys(self.file.data, keys)
        if found != keys or keys in self.bad:
            return None
        value: Any = self.file.data
        for key in keys:
            value = value[key]
        return value if isinstance(value, str) else None

    def _replace(self, data: Any, keys: Keys, make: Any) -> None:
        text = self._text(keys)
        if text is None:
            return
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = make(keys, text)

    def _add(self, keys: Keys, text: str) -> None:
        self.file.add(f"{label(keys)!r}: {text}", keys)

    def _check_name(self) -> None:
        name = self._text(("name",))
        folder = self.folder.name
        if name is not None and self.file.path.name == FILE_NAME and name != folder:
            self._add(("name",), f"{name!r} is not the name of the definition's folder, {folder!r}")

    def _size(self, keys: Keys, text: str) -> int:
        size = parse_size(text)
        if not 0 < size <= MAX_DISK:
            self._add(keys, f"{text} is no size of a disk; it must be from 1MiB to 2TiB")
        return size

    def _template(self, keys: Keys, text: str) -> str:
        import string

        try:
            parts = list(string.Formatter().parse(text))
        except ValueError:
            self._add(keys, f"{text!r} has a brace without its other half")
            return text
        for _, word, form, conversion in parts:
            if word is None:
                continue
            if word not in _TEMPLATE_WORDS or form or conversion:
                known = ", ".join(f"{{{one}}}" for one in _TEMPLATE_WORDS)
                written = (
                    word + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                )
                self._add(keys, f"nothing is known to fill in for {{{written}}}; known are {known}")
        return text

    def _locate_base(self, data: dict[str, Any]) -> None:
        keys: Keys = ("source", "base_image", "location")
        self._replace(data, keys, self._location)
        if _find_keys(self.file.data, (*keys, "appliance")) and keys not in self.bad:
            base = data["source"]["base_image"]
            said = base["location"]
            base["location"] = ApplianceBuild(
                name=said["appliance"], build=said.get("build", "latest")
            )

    def _location(self, keys: Keys, text: str) -> Path | str:
        """A URL as it is, a file's path absolute. Whether the image is there is asked later: one
        that others have to fetch first is no mistake of the definition."""
        from urllib.parse import urlsplit

        scheme, colon, rest = text.partition("://")
        if not colon:
            return Path(os.path.abspath(self.folder / os.path.expanduser(text)))
        scheme = scheme.lower()
        text = f"{scheme}://{rest}"
        if scheme not in URL_SCHEMES:
            known = ", ".join(f"{one}://" for one in URL_SCHEMES)
            self._add(keys, f"{scheme}:// is not known; known are {known} and paths of files")
        elif "@" in rest.partition("/")[0]:
            self._add(keys, "holds a user's name or password; no secret goes into a definition")
        else:
            try:
                host = urlsplit(text).hostname
            except ValueError:
                host = None
            if not host:
                self._add(keys, f"{quote(text)} names no host")
        return text

    def _script(self, keys: Keys, text: str) -> Path:
        path = self.folder / text
        content = self._read(keys, text)
        if content is not None:
            first = content.split(b"\n", 1)[0]
            if not first.startswith(b"#!"):
                self._add(keys, f"{text!r} does not begin with '#!' and an interpreter")
            elif first.endswith(b"\r"):
                self._add(keys, f"{text!r} has Windows line ends; save it with Unix ones")
        return path

    def _user_data(self, keys: Keys, text: str) -> Path:
        content = self._read(keys, text)
        if content is None:
            return self.folder / text
        alien = re.search(rb"[^\t\n\r\x20-\x7e]", content)
        if not content.strip():
            self._add(keys, f"{text!r} is empty; leave 'user_data' out")
        elif alien:
            line = content.count(b"\n", 0, alien.start()) + 1
            self._add(
                keys,
                f"{text!r} has byte 0x{alien[0][0]:02x} on line {line}; Phantom takes ASCII text "
                "only, others break its answers",
            )
        elif b"\r\n" in content:
            self._add(keys, f"{text!r} has Windows line ends; save it with Unix ones")
        elif (size := (self.folder / text).stat().st_size) > MAX_USER_DATA:
            self._add(
                keys,
                f"{text!r} has {size:,} characters; Phantom's database holds "
                f"{MAX_USER_DATA:,}: put the rest into the image",
            )
        return self.folder / text

    def _read(self, keys: Keys, text: str) -> bytes | None:
        """The start of a file that must be there and fit to copy; else None, and a mistake."""
        path = self.folder / text
        try:
            if path.is_dir():
                self._add(keys, f"{text!r} is a folder; name a file")
                return None
            if not path.is_file():
                self._add(keys, _missing(self.folder, text))
                return None
            with path.open("rb") as stream:
                content = stream.read(_SCANNED_BYTES)
        except (OSError, ValueError) as error:
            self._add(keys, f"{quote(text)} cannot be read: {_reason(error)}")
            return None
        if _PRIVATE_KEY.search(content):
            self._add(
                keys,
                f"{text!r} holds a private key; no secret goes into a definition or an image",
            )
            return None
        return content

    def _copies(self, keys: Keys) -> list[FileCopy]:
        source, target = self._text((*keys, "from")), self._text((*keys, "to"))
        mode_text = self._text((*keys, "mode"))
        if source is None or target is None:
            return []
        if {".", ".."} & set(target.split("/")):
            self._add((*keys, "to"), f"{target!r} must not hold '.' or '..'")
            return []
        at = (*keys, "from")
        try:
            is_folder = (self.folder / source).is_dir()
            names = self._walk(at, source) if is_folder else [source]
        except (OSError, ValueError) as error:
            self._add(at, f"{quote(source)} cannot be read: {_reason(error)}")
            return []
        if not is_folder and target == "/":
            self._add((*keys, "to"), f"'/' is a folder, and {source!r} is a file; name the file")
            return []
        copies = []
        for name in names:
            if self._read(at, name) is None:
                continue
            path = Path(os.path.normpath(self.folder / name))
            below = PurePosixPath(os.path.relpath(path, self.folder / source)) if is_folder else ""
            mode = int(mode_text, 8) if mode_text else 0o755 if _is_program(path) else 0o644
            copies.append(FileCopy(source=path, target=PurePosixPath(target) / below, mode=mode))
        self._check_targets(keys, copies)
        return copies

    def _walk(self, keys: Keys, source: str) -> list[str]:
        """The files in a folder and below it, sorted, relative to the definition's folder."""
        found = []
        for folder, folders, files in os.walk(self.folder / source, onerror=_raise):
            folders.sort()
            below = os.path.relpath(folder, self.folder)
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    link = os.path.normpath(os.path.join(below, name))
                    self._add(keys, f"{link!r} is a link to a folder, and would not be copied")
            for name in sorted(files):
                if name.isprintable():
                    found.append(os.path.normpath(os.path.join(below, name)))
                else:
                    self._add(keys, f"{below!r} holds a file whose name is no text: {name!a}")
        if not found:
            self._add(keys, f"there is no file in {source!r}")
        return sorted(found)

    def _check_targets(self, keys: Keys, copies: list[FileCopy]) -> None:
        line = self.file.line(keys)
        for copy in copies:
            if copy.target in self.targets:
                first = self.targets[copy.target]
                self._add(keys, f"{str(copy.target)!r} is written by the entry on line {first} too")
            self.targets.setdefault(copy.target, line)


def _raise(error: OSError) -> None:
    raise error


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_program(path: Path) -> bool:
    # git keeps no more of a file's mode, and what it drops differs with everybody's umask.
    return bool(path.stat().st_mode & 0o100)


def _missing(folder: Path, text: str) -> str:
    """That a file is not there, with the nearest name in the folder where it would be."""
    path = folder / text
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        names = []
    return f"there is no {quote(text)} in {shown(folder)}" + suggest(path.name, names)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list) else value


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        merged[key] = _merge_value(key, parent[key], value) if key in parent else value
    return merged


def _merge_value(key: str, parent: Any, child: Any) -> Any:
    if isinstance(parent, dict) and isinstance(child, dict):
        if key == "source" and parent.keys() != child.keys():
            return child
        if key == "base_image" and "location" in child:  # digest and format are of the other one
            parent = {name: one for name, one in parent.items() if name not in _OF_ONE_FILE}
        return _merge(parent, child)
    if isinstance(parent, list) and isinstance(child, list):
        if key == "files":
            ours = {copy.target for copy in child}
            return [copy for copy in parent if copy.target not in ours] + child
        return parent + [item for item in child if item not in parent]
    return child


def _make_appliance(data: dict[str, Any], path: Path) -> Appliance:
    optional: dict[str, Any] = {key: data[key] for key in ("disk_size", "kernel") if key in data}
    for key in ("frequency", "runner"):
        if key in data.get("user_data", {}):
            optional[f"user_data_{key}"] = data["user_data"][key]
    overrides = {cloud: CloudOverride(**said) for cloud, said in data.get("clouds", {}).items()}
    phantom = dict(data.get("phantom", {}))
    phantom["instance_type"] = MappingProxyType(phantom.get("instance_type", {}))
    return Appliance(
        name=data["name"],
        version=data["version"],
        summary=data["summary"],
        source=_make_source(data.get("source", {})),
        elements=tuple(data.get("elements", ())),
        packages=tuple(data.get("packages", ())),
        files=tuple(data.get("files", ())),
        scripts=tuple(data.get("scripts", ())),
        clouds=MappingProxyType(overrides),
        boot_check=BootCheckPolicy(**data.get("boot_check", {})),
        phantom=PhantomPolicy(**phantom),
        labels=MappingProxyType(dict(data.get("labels", {}))),
        definition=path,
        **optional,
    )


def _make_source(said: Mapping[str, Any]) -> ScratchSource | BaseImageSource:
    if "base_image" not in said:
        return ScratchSource(**(DEFAULT_SOURCE | said.get("scratch", {})))
    base = dict(said["base_image"])
    if "sha256" in base:
        base["sha256"] = Sha256(base["sha256"])
    if "format" in base:
        base["format"] = disk_formats.named(base["format"])
    if "remove_packages" in base:
        base["remove_packages"] = tuple(base["remove_packages"])
    return BaseImageSource(**base)


def _make_sites(file: YamlFile, clouds: Mapping[str, type[Cloud]]) -> list[Site]:
    bad = check_schema(file, file.data, make_sites_check(clouds))
    data = file.data.get("sites") if isinstance(file.data, dict) else None
    sites = []
    for name, said in (data if isinstance(data, dict) else {}).items():
        keys: Keys = ("sites", name)
        if isinstance(said, dict) and "cloud" not in said:
            check_schema(
                file, said, make_cloudless_check(each.site_schema for each in clouds.values()), keys
            )
        cloud = said.get("cloud") if isinstance(said, dict) else None
        if not isinstance(cloud, str) or (*keys, "cloud") in bad:
            continue
        sandbox = said.get("sandbox", False) is True
        schema = make_site_schema(cloud, clouds[cloud].site_schema, sandbox=sandbox)
        check_schema(file, said, schema, keys)
        options = {key: one for key, one in said.items() if key not in ("cloud", "sandbox")}
        sites.append(
            Site(
                name=name,
                cloud=cloud,
                options=MappingProxyType(options),
                where=file.where(keys, key=True),
                sandbox=sandbox,
            )
        )
    return sites


def _check_words(kind: str, words: Iterable[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            what = f"there is no site {word!r}" if kind == "site" else f"no site has cloud {word!r}"
            raise UsageError(what + suggest(word, known), todo=_choose(known, "write sites.yaml"))
