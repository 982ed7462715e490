"""Reads YAML files, with the line and column of every value.

`read_yaml` collects mistakes in `YamlFile.mistakes` instead of raising an error, so that all of
them are reported together. Besides invalid YAML, it refuses what people may read differently from
YAML (repeated keys, keys that are not text, control characters), and what definitions do not need:
a second document, tags, anchors, aliases and merge keys (`<<`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

Keys = tuple[str | int, ...]
"""The path to a value from the top of the file: keys of mappings and indexes of lists."""

MAX_BYTES = 1 << 20  # a hundred times a long definition
# libyaml's composer recurses on the C stack: 200,000 brackets cause a segmentation fault.
MAX_DEPTH = 50
MAX_VALUES = 20_000  # with keys
_MOST_FOUND = 100  # mistakes of one kind in one file
_LONGEST_TEXT = 2000  # characters of a mistake

_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_UNSUPPORTED = (
    "is not supported; write the value at each place, or share it between definitions by 'extends'"
)
# Clearer messages for the most frequent mistakes, by the start of PyYAML's.
_CLEAR_WORDS = {
    r"found character '\t' that": "a tab; YAML wants spaces here",
    "mapping values are not allowed here": "a ':' where no key can be; put text that holds ': ' in "
    "quotes, and indent the keys of one mapping alike",
    "expected <block end>, but found": "this line is not indented like the ones it belongs to",
    "could not find expected ':'": "a key without its ':'",
}


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A mistake in a file. Line and column count from 1; line 0 stands for the whole file."""

    line: int
    column: int
    text: str
    file: str

    @property
    def where(self) -> str:
        """`file:line:column`, or the file alone."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class YamlDate:
    """An unquoted value that YAML reads as a date."""

    text: str


@dataclass
class _Spot:
    line: int
    column: int
    value: object = None
    plain: str | None = None
    """The text of an unquoted scalar."""


class YamlFile:
    """The data of a file, the position of each value, and the file's mistakes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = shown(path)
        self.data: object = None
        self.broken = False
        """Whether the file cannot be read as YAML; then `data` is undefined."""
        self.mistakes: dict[Mistake, None] = {}
        """In the order in which they were found."""
        self.refused: set[Keys] = set()
        """The paths of the values that violate the schema."""
        self.unfit: set[str | int] = set()
        """The keys of the file whose values violate the schema somewhere."""
        self._values: dict[Keys, _Spot] = {}
        self._keys: dict[Keys, _Spot] = {}

    def add(self, text: str, keys: Keys = (), *, key: bool = False) -> None:
        """Adds a mistake at a value, or with `key=True` at its key."""
        spot = self._spot(keys, key=key)
        self._add(text, spot.line, spot.column)

    def where(self, keys: Keys = (), *, key: bool = False) -> str:
        """`file:line:column` of a value or its key; of the mapping or list that lacks it."""
        spot = self._spot(keys, key=key)
        return Mistake(line=spot.line, column=spot.column, text="", file=self._shown).where

    def positions(self) -> dict[Keys, str]:
        """`file:line:column` of each value. A text in a list can be looked up by itself too."""
        positions = {keys: self.where(keys) for keys in self._values}
        for keys, spot in self._values.items():
            if keys and isinstance(keys[-1], int) and isinstance(spot.value, str):
                positions.setdefault((*keys[:-1], spot.value), positions[keys])
        return positions

    def line(self, keys: Keys) -> int:
        """The line of a value."""
        return self._spot(keys, key=False).line

    def value(self, keys: Keys) -> object:
        """The value at a path, or None."""
        spot = self._values.get(keys)
        return spot.value if spot else None

    def text(self, keys: Keys) -> str | None:
        """The text at a path; None if the value is missing, is not text, or violates the schema."""
        value = self.value(keys)
        return value if isinstance(value, str) and keys not in self.refused else None

    def plain(self, keys: Keys) -> str | None:
        """The text of an unquoted scalar; None for any other value."""
        spot = self._values.get(keys)
        return spot.plain if spot else None

    def _spot(self, keys: Keys, *, key: bool) -> _Spot:
        if key and keys in self._keys:
            return self._keys[keys]
        while keys and keys not in self._values:
            keys = keys[:-1]
        return self._values.get(keys, _Spot(0, 0))

    def _add(self, text: str, line: int, column: int) -> None:
        if len(text) > _LONGEST_TEXT:
            text = text[: _LONGEST_TEXT - 3] + "..."
        mistake = Mistake(line=line, column=column, text=text, file=self._shown)
        self.mistakes[mistake] = None  # jsonschema reports `required` once per missing key


def shown(path: Path) -> str:
    """A path for messages: relative if it lies below the current directory."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(os.getcwd()))
    except (OSError, ValueError):
        return str(path)


def read_yaml(path: Path) -> YamlFile:
    """Reads a file and collects its mistakes."""
    file = YamlFile(path)
    text = _read_text(file)
    node = None if text is None else _compose(file, text)
    if node is None:
        file.broken = True
    else:
        file.data = _Reader(file).value(node, ())
    return file


def _read_text(file: YamlFile) -> str | None:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        known: dict[type[Exception], str] = {
            IsADirectoryError: "is a folder; name the file in it",
            FileNotFoundError: "there is no such file",
        }
        file.add(known.get(type(error)) or f"cannot be read: {reason(error)}")
        return None
    if len(data) > MAX_BYTES:
        file.add(f"is larger than {MAX_BYTES:,} bytes, too large for a definition")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode("utf-8")
        byte = error.object[error.start]
        file._add(f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8", *_end(good))
        return None
    control = _CONTROL.search(text.replace("\r\n", "\n\n"))
    if control:
        name = f"U+{ord(control[0]):04X}"
        file._add(f"control character {name}; take it out", *_end(text[: control.start()]))
        return None
    return text


def reason(error: OSError | ValueError) -> str:
    """Why a file cannot be read."""
    return getattr(error, "strerror", None) or str(error)


def _end(text: str) -> tuple[int, int]:
    """The line and column behind a text."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def _compose(file: YamlFile, text: str) -> yaml.Node | None:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = _find_unsafe(yaml.parse(text, Loader=loader))
        unsafe = list(itertools.islice(found, _MOST_FOUND))
        for mark, words in unsafe:
            file._add(words, mark.line + 1, mark.column + 1)
        if unsafe:
            return None
        node: yaml.Node | None = yaml.compose(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        _add_syntax_error(file, text, error)
        return None
    if node is None:
        file.add("is empty" if not text.strip() else "contains only comments")
    return node


def _find_unsafe(events: Iterator[Any]) -> Iterator[tuple[yaml.Mark, str]]:
    """What makes a text unsafe to compose, with its position. This function does not recurse."""
    import yaml

    depth = documents = values = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        values += isinstance(event, yaml.NodeEvent)
        mark = event.start_mark
        if depth > MAX_DEPTH:
            yield mark, f"more than {MAX_DEPTH} levels deep"
            return
        if documents > 1:
            yield mark, "a second document starts here; one file is one document"
            return
        if values > MAX_VALUES:
            yield mark, f"more than {MAX_VALUES:,} keys and values"
            return
        if isinstance(event, yaml.AliasEvent):
            yield mark, f"the alias *{event.anchor} {_UNSUPPORTED}"
        elif getattr(event, "anchor", None):
            yield mark, f"the anchor &{event.anchor} {_UNSUPPORTED}"


def _add_syntax_error(file: YamlFile, text: str, error: Exception) -> None:
    import yaml

    # libyaml and PyYAML word errors differently. PyYAML's words are better, and messages must not
    # depend on how PyYAML was built.
    try:
        deque(yaml.parse(text, Loader=yaml.SafeLoader), maxlen=0)
    except yaml.YAMLError as other:
        error = other
    except ValueError:  # PyYAML's own, of an escape for no character
        pass
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        file.add(f"is not YAML: {error}")
        return
    problem = error.problem or "is not YAML"
    for start, clear_words in _CLEAR_WORDS.items():
        if problem.startswith(start):
            problem = clear_words
    if "cannot start any token" in problem:
        problem += "; put the text in quotes"
    mark, begin = error.problem_mark, error.context_mark
    if error.context and begin is not None and begin.line != mark.line:
        problem += f" ({error.context} that starts on line {begin.line + 1})"
    file._add(problem, mark.line + 1, mark.column + 1)


class _Reader:
    """Converts YAML nodes to values and records their positions."""

    def __init__(self, file: YamlFile) -> None:
        import yaml

        self._yaml = yaml
        self._file = file
        self._constructor = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, keys: Keys) -> object:
        """A node's value; records its position, then those of its content."""
        spot = self._file._values[keys] = _spot_of(node)
        if isinstance(node, self._yaml.MappingNode):
            self._check_tag(node, "map")
            spot.value = self._mapping(node, keys)
        elif isinstance(node, self._yaml.SequenceNode):
            self._check_tag(node, "seq")
            spot.value = [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        else:
            assert isinstance(node, self._yaml.ScalarNode)
            spot.value = self._scalar(node)
            # The style of an unquoted scalar is None in PyYAML's composer, "" in libyaml's.
            spot.plain = None if node.style else node.value
        return spot.value

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            spot = _spot_of(key_node)
            if key in result:
                first = self._file._keys[(*keys, key)].line
                self._add(key_node, f"{key!r} is written twice; the first is on line {first}")
                continue
            self._file._keys[(*keys, key)] = spot
            result[key] = self.value(value_node, (*keys, key))
            if not value_node.value and value_node.start_mark.index == value_node.end_mark.index:
                # PyYAML and libyaml disagree about the position of an empty value.
                self._file._values[(*keys, key)] = _Spot(spot.line, spot.column, result[key])
        return result

    def _key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, self._yaml.ScalarNode):
            self._add(node, "a key must be text, not a list or a mapping")
            return None
        if node.tag == f"{_TAG}merge":
            self._add(node, f"the merge key '<<' {_UNSUPPORTED}")
            return None
        value = self._scalar(node)
        if isinstance(value, str):
            return value
        quoted = f'put it in quotes: "{node.value}"' if node.value else "write it"
        self._add(
            node, f"a key must be text, and YAML reads {node.value} as {describe(value)}; {quoted}"
        )
        return None

    def _check_tag(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag.removeprefix(_TAG) not in kinds:
            tag = re.sub(f"^{_TAG}", "!!", node.tag)
            self._add(node, f"the tag {tag} means nothing here; take it away")

    def _scalar(self, node: yaml.ScalarNode) -> object:
        text: str = node.value
        control = _CONTROL.search(text)
        if control:
            name = f"U+{ord(control[0]):04X}"
            self._add(node, f"holds the control character {name}; take it out")
            return _CONTROL.sub("", text)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return self._constructor.construct_yaml_bool(node)
            if kind == "int":
                number: int = self._constructor.construct_yaml_int(node)
                return number if abs(number) < 1 << 63 else text
            if kind == "float":
                return self._constructor.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError):
            # `!!int x`, or more digits than Python converts: treat it as text.
            return text
        if kind == "timestamp":
            return YamlDate(text)
        self._check_tag(node, "str", "value", "merge")
        return text

    def _add(self, node: yaml.Node, text: str) -> None:
        self._file._add(text, node.start_mark.line + 1, node.start_mark.column + 1)


def _spot_of(node: yaml.Node) -> _Spot:
    return _Spot(node.start_mark.line + 1, node.start_mark.column + 1)


def describe(value: object) -> str:
    """A value in words: `the number 1.1`, `true`, `a date`, `a list`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    kinds = {type(None): "nothing", YamlDate: "a date", dict: "a mapping", list: "a list"}
    return kinds.get(type(value), "a string")
