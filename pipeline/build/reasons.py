"""What differs between two descriptions of a stage, in words for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.model import Machine, format_size
from pipeline.stages.base import LocalFile, Stage, to_json

_SIZES = {"size", "disk_size", "most_bytes", "memory", "spare", "root_start", "tail"}
_ITEMS = {
    "packages": "package",
    "package_files": "package",
    "elements": "element",
    "payloads": "element",
    "requirements": "Python package",
    "customizations": "",
    "secrets": "secret",
    "certificates": "certificate",
}
_UNNAMED = {"environment", "tools"}  # what is in them has names that say enough
_WORDS = {"apt_sources": "the image's package sources", "sha256": "its digest"}
_LONGEST = 60  # characters of a value that a reason quotes


@dataclass(frozen=True)
class Reason:
    """Why a stage will run."""

    text: str
    """What changed, in a person's words."""
    digests: str = ""
    """The digests of what changed, before and now."""

    @property
    def full(self) -> str:
        """The text, with the digests that it leaves out."""
        return f"{self.text} ({self.digests})" if self.digests else self.text


def describe_fields(stage: Stage) -> dict[str, Any]:
    """Everything that decides a stage's output, as JSON can hold it, with the names of files, which
    decide nothing."""
    return {
        member.name: _describe(getattr(stage, member.name))
        for member in dataclasses.fields(stage)
        if member.name != "inputs" and member.metadata.get("key", True)
    }


def describe_machine(machine: Machine) -> Any:
    """What `describe_fields` says of a boot check's machine."""
    return _describe(machine)


def _describe(value: object) -> Any:
    if isinstance(value, LocalFile):
        return {"name": value.path.name, "digest": value.digest}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = (each for each in dataclasses.fields(value) if each.metadata.get("key", True))
        return {member.name: _describe(getattr(value, member.name)) for member in members}
    if isinstance(value, Mapping):
        return {str(name): _describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    return to_json(value)


def find_differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    inputs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = (),
) -> Iterator[Reason]:
    """One reason for each field, or part of one, that differs. `inputs` are the fields of the
    stage's inputs, old and new, which have reasons of their own."""
    moved = {name for _, fields in inputs for name in fields} - {*new}
    for name in sorted({*old, *new} - moved):
        if name == "requested":
            yield from _requested(old, new, [(old, new), *inputs])
        else:
            yield from _field(name, old.get(name), new.get(name))


def _field(name: str, old: Any, new: Any) -> Iterator[Reason]:
    if old == new:
        return
    where = "" if name in _UNNAMED else _WORDS.get(name, name.replace("_", " "))
    if _is_file(old) or _is_file(new):
        yield from _file("", old, new)
    elif name in _ITEMS:
        yield from _items(_ITEMS[name], _by_name(old), _by_name(new))
    elif name in ("files", "scripts"):
        yield from _files(name, _list(old), _list(new))
    else:
        yield from _value(where, name, old, new)


def _value(where: str, name: str, old: Any, new: Any) -> Iterator[Reason]:
    """What differs in a value, down to its parts; `name` is that of the innermost field."""
    if old == new:
        return
    if _is_file(old) or _is_file(new):
        yield from _file(where, old, new)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for part in sorted({*old, *new}):
            inner = f"{where} {part.replace('_', ' ')}".strip() if part.islower() else part
            if part in old and part in new:
                yield from _value(inner, part, old[part], new[part])
            else:
                yield Reason(f"{inner} is {'new' if part in new else 'gone'}")
    elif _is_words(old) and _is_words(new) and {*old} != {*new}:
        yield from (Reason(f"{where}: {each} is new") for each in new if each not in old)
        yield from (Reason(f"{where}: {each} is gone") for each in old if each not in new)
    elif _is_digest(old) or _is_digest(new):
        yield Reason(f"{where} changed", _digests(old, new))
    elif (texts := (_quote(name, old), _quote(name, new))) and None not in texts:
        yield Reason(f"{where} {texts[0]} -> {texts[1]}")
    else:
        yield Reason(f"{where} changed")


def _requested(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    places: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> Iterator[Reason]:
    """Packages that were in the set already, and are asked for by name now, or no longer. One of
    the `places` has the set."""
    asked, named = _by_name(old.get("requested")), _by_name(new.get("requested"))
    before = {name for fields, _ in places for name in _by_name(fields.get("packages"))}
    now = {name for _, fields in places for name in _by_name(fields.get("packages"))}
    for name in sorted(asked.keys() ^ named.keys()):
        if (name in before) == (name in now):  # otherwise its own reason says so
            longer = "" if name in named else " no longer"
            yield Reason(f"package {name} is{longer} asked for by name")


def _items(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Reason]:
    """What differs in a set of packages or elements, by their names."""
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        versions = [_version(each) for each in (before, now)]
        if name not in old:
            yield Reason(" ".join(filter(None, (kind, name, versions[1], "is new"))))
        elif name not in new:
            yield Reason(f"{kind} {name} is gone")
        elif versions[0] != versions[1]:
            yield Reason(f"{kind} {name} {versions[0]} -> {versions[1]}")
        else:
            yield Reason(f"{kind} {name} changed", _digests(_digest(before), _digest(now)))


def _files(field: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[Reason]:
    """What differs in a list of the definition's files or scripts."""
    if old and not any(_is_named(each) for each in old):  # by an earlier version
        if [_digest(each) for each in old] != [_digest(each) for each in new]:
            yield Reason(f"{field} changed")
        return
    before, now = _by_name(old), _by_name(new)
    found = False
    for name in sorted({*before, *now}):
        for reason in _file(f"{field}: {name}", before.get(name), now.get(name)):
            found = True
            yield reason
    if not found:
        ordered = len(before) == len(old) and len(now) == len(new)
        yield Reason(f"{field}: in another order" if ordered else f"{field} changed")


def _file(where: str, old: Any, new: Any) -> Iterator[Reason]:
    """What differs in a file: in its content, or in what is said of it besides."""
    if old == new:
        return
    known = new if isinstance(new, Mapping) else old  # one of them is a file
    where = where or str(known.get("name", "a file"))
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        yield Reason(f"{where} is {'new' if known is new else 'gone'}")
        return
    if {*old} - {"name"} != {*new} - {"name"}:  # a link or a folder in the place of a file
        yield Reason(f"{where} changed")
        return
    if _digest(old) != _digest(new):
        yield Reason(f"{where} changed", _digests(_digest(old), _digest(new)))
    told = {"name", "target", "digest", "content", "tree"}
    for part in sorted({*old} - told):
        yield from _value(f"{where}: {part.replace('_', ' ')}", part, old[part], new[part])


# ---- values


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _by_name(items: Any) -> dict[str, Any]:
    """Named items by their names. Of two files with one name, the second has its place too."""
    named: dict[str, Any] = {}
    for number, item in enumerate(_list(items), 1):
        told = item if isinstance(item, Mapping) else {"name": item}
        name = str(told.get("target") or told.get("name") or f"number {number}")
        named[f"{name} (number {number})" if name in named else name] = told
    return named


def _is_named(item: Any) -> bool:
    return isinstance(item, Mapping) and ("target" in item or "name" in item)


def _is_file(value: Any) -> bool:
    return isinstance(value, Mapping) and "digest" in value and set(value) <= {"name", "digest"}


def _digest(item: Any) -> Any:
    """The digest of a file, an element or a package."""
    for part in ("content", "tree", "digest", "sha256"):
        item = item.get(part, item) if isinstance(item, Mapping) else item
    return item if isinstance(item, str) else None


def _version(item: Any) -> str:
    return str(item.get("version", "")) if isinstance(item, Mapping) else ""


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not {*value} - {*"0123456789abcdef"}


def _digests(old: Any, new: Any) -> str:
    return " -> ".join(str(each)[:12] if each else "none" for each in (old, new))


def _quote(name: str, value: Any) -> str | None:
    """A short value as people write it; None for what is too long to be quoted."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if name in _SIZES:
            return format_size(value)
        if name == "mode":
            return f"{value:o}"
        if name == "epoch" and 0 <= value < 1 << 32:
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d}"
        return str(value)
    if isinstance(value, str) and len(value) <= _LONGEST and value.isprintable():
        return value
    return None
