"""YAML files whose every value knows its line and column.

`read_yaml` never raises for what a file says: each mistake is kept in `YamlFile.mistakes`, so that
a file's mistakes can be told all at once. Beyond YAML's own rules it refuses what would read one
way and mean another: keys written twice, keys that are not text, a second document, tags, control
characters. Anchors, aliases and merge keys (`<<`) are understood; a mistake in an aliased value is
reported where the value is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

Keys = tuple[str | int, ...]
"""The way to a value: keys of mappings and indexes of lists, from the top of the file."""

MAX_BYTES = 1 << 20  # a hundred times the longest definition that anyone would write by hand
MAX_DEPTH = (
    50  # libyaml's composer recurses on the C stack: 200,000 brackets are a segmentation fault
)
MAX_VALUES = 20_000  # after aliases: nine lines of nested aliases are a billion values

_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
# PyYAML's own words for what people get wrong most, and what they would rather be told.
_PLAIN_WORDS = (
    (r"found character '\t' that", "a tab; YAML wants spaces here"),
    (
        "mapping values are not allowed here",
        "a ':' where no key can be; put text that holds ': ' in quotes, and indent the keys of one "
        "mapping alike",
    ),
    ("expected <block end>, but found", "this line is not indented like the ones it belongs to"),
    ("could not find expected ':'", "a key without its ':'"),
    ("found undefined alias", "no anchor (&) of this name comes before this alias (*)"),
)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake in one file; line and column count from 1, line 0 means the file as a whole."""

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
    """A plain value that YAML reads as a date; nothing here wants one."""

    text: str


@dataclass(frozen=True)
class _Spot:
    line: int
    column: int
    plain: str | None = None
    """The text of a scalar that was written without quotes."""


class YamlFile:
    """What a file says, where each value of it stands, and its mistakes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: object = None
        self.broken = False
        """True when `data` says nothing, because the file could not be read as YAML."""
        self.mistakes: list[Mistake] = []
        self._values: dict[Keys, _Spot] = {}
        self._keys: dict[Keys, _Spot] = {}

    def add(self, text: str, keys: Keys = (), *, key: bool = False) -> None:
        """Notes a mistake at a value, or with `key=True` at its key."""
        spot = self._spot(keys, key=key)
        self._add(text, spot.line, spot.column)

    def where(self, keys: Keys = (), *, key: bool = False) -> str:
        """`file:line:column` of a value or its key, or of what would hold one that is not there."""
        spot = self._spot(keys, key=key)
        return Mistake(line=spot.line, column=spot.column, text="", file=shown(self.path)).where

    def line(self, keys: Keys) -> int:
        """The line of a value."""
        return self._spot(keys, key=False).line

    def plain(self, keys: Keys) -> str | None:
        """The text of a scalar as written without quotes; None for everything else."""
        spot = self._values.get(keys)
        return spot.plain if spot else None

    def _spot(self, keys: Keys, *, key: bool) -> _Spot:
        if key and keys in self._keys:
            return self._keys[keys]
        while keys and keys not in self._values:
            keys = keys[:-1]
        return self._values.get(keys, _Spot(0, 0))

    def _add(self, text: str, line: int, column: int) -> None:
        mistake = Mistake(line=line, column=column, text=text, file=shown(self.path))
        # An aliased value is met once for each alias; its mistake is one.
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)


def shown(path: Path) -> str:
    """A path for messages: relative to the current directory where it lies below it."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(os.getcwd()))
    except (OSError, ValueError):
        return str(path)


def read_yaml(path: Path) -> YamlFile:
    """Reads a file; what is wrong with it is in the result's `mistakes`."""
    file = YamlFile(path)
    text = _read_text(file)
    node = None if text is None else _compose(file, text)
    if node is None:
        file.broken = True
    else:
        _Reader(file).read(node)
    return file


def _read_text(file: YamlFile) -> str | None:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        file.add("is a folder; name the file in it")
        return None
    except FileNotFoundError:
        file.add("there is no such file")
        return None
    except (OSError, ValueError) as error:
        file.add(f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return None
    if len(data) > MAX_BYTES:
        file.add(f"is larger than {MAX_BYTES:,} bytes; that is no definition")
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


def _end(text: str) -> tuple[int, int]:
    """Line and column of the character after a text."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def _compose(file: YamlFile, text: str) -> yaml.Node | None:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if not _check_events(file, yaml.parse(text, Loader=loader)):
            return None
        node: yaml.Node | None = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        _add_syntax_error(file, text, error)
        return None
    if node is None:
        file.add("is empty" if not text.strip() else "holds nothing but comments")
    return node


def _check_events(file: YamlFile, events: Iterator[Any]) -> bool:
    """Whether a text is one document that is safe to compose; composing recurses, this does not."""
    import yaml

    depth = documents = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        mark = event.start_mark
        if depth > MAX_DEPTH:
            file._add(f"more than {MAX_DEPTH} levels deep", mark.line + 1, mark.column + 1)
            return False
        if documents > 1:
            text = "a second document starts here; one file is one document"
            file._add(text, mark.line + 1, mark.column + 1)
            return False
    return True


def _add_syntax_error(file: YamlFile, text: str, error: yaml.YAMLError) -> None:
    import yaml

    # libyaml and PyYAML word the same error differently; PyYAML's words are the better ones, and
    # messages must not depend on how PyYAML was built.
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as other:
        error = other
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        file.add(f"is no YAML: {error}")
        return
    problem = error.problem or "is no YAML"
    for start, words in _PLAIN_WORDS:
        if problem.startswith(start):
            problem = words
    if "cannot start any token" in problem:
        problem += "; put the text in quotes"
    mark, begin = error.problem_mark, error.context_mark
    if error.context and begin is not None and begin.line != mark.line:
        problem += f" ({error.context} that starts on line {begin.line + 1})"
    file._add(problem, mark.line + 1, mark.column + 1)


class _Reader:
    """Makes plain values of YAML's nodes and writes down where each stands."""

    def __init__(self, file: YamlFile) -> None:
        import yaml

        self._yaml = yaml
        self._file = file
        self._constructor = yaml.constructor.SafeConstructor()
        self._open: set[int] = set()
        self._left = MAX_VALUES

    def read(self, node: yaml.Node) -> None:
        try:
            self._file.data = self._value(node, ())
        except _TooManyValuesError:
            self._file.broken = True
            self._add(node, f"more than {MAX_VALUES:,} values, aliases counted each time")

    def _add(self, node: yaml.Node, text: str) -> None:
        self._file._add(text, node.start_mark.line + 1, node.start_mark.column + 1)

    def _add_circle(self, node: yaml.Node) -> None:
        self._file.broken = True
        self._add(node, "this value holds itself through an alias (*)")

    def _value(self, node: yaml.Node, keys: Keys) -> object:
        self._left -= 1
        if self._left < 0:
            raise _TooManyValuesError
        # PyYAML's own composer says None for a scalar without quotes, libyaml's says "".
        is_plain = isinstance(node, self._yaml.ScalarNode) and not node.style
        plain = node.value if is_plain else None
        mark = node.start_mark
        self._file._values[keys] = _Spot(mark.line + 1, mark.column + 1, plain)
        if isinstance(node, self._yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self._add_circle(node)
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, self._yaml.MappingNode):
                self._check_tag(node, "map")
                return self._mapping(node, keys)
            assert isinstance(node, self._yaml.SequenceNode)
            self._check_tag(node, "seq")
            return [self._value(item, (*keys, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, object]:
        result: dict[str, object] = {}
        written: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged.append(value_node)
                continue
            key = self._key(key_node)
            if key is None:
                continue
            line = key_node.start_mark.line + 1
            if key in written:
                self._add(
                    key_node, f"{key!r} is written twice; the first is on line {written[key]}"
                )
                continue
            written[key] = line
            self._keep(result, keys, key, key_node, value_node)
        for value_node in merged:
            self._merge(result, keys, value_node)
        return result

    def _keep(
        self,
        result: dict[str, object],
        keys: Keys,
        key: str,
        key_node: yaml.Node,
        value_node: yaml.Node,
    ) -> None:
        spot = _Spot(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        self._file._keys[(*keys, key)] = spot
        result[key] = self._value(value_node, (*keys, key))
        if not value_node.value and value_node.start_mark.index == value_node.end_mark.index:
            # Nothing is written: where it would stand, PyYAML and libyaml do not agree.
            self._file._values[(*keys, key)] = spot

    def _merge(self, result: dict[str, object], keys: Keys, node: yaml.Node) -> None:
        """Adds the pairs of `<<`: what the mapping says itself goes first, then the earlier one."""
        nodes = node.value if isinstance(node, self._yaml.SequenceNode) else [node]
        for one in nodes:
            if not isinstance(one, self._yaml.MappingNode):
                self._add(one, "'<<' takes a mapping, mostly an alias (*name), or a list of them")
            elif id(one) in self._open:
                self._add_circle(one)
            else:
                self._open.add(id(one))
                self._merge_mapping(result, keys, one)
                self._open.discard(id(one))

    def _merge_mapping(self, result: dict[str, object], keys: Keys, node: yaml.MappingNode) -> None:
        later = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                later.append(value_node)
            elif isinstance(key_node, self._yaml.ScalarNode) and key_node.value not in result:
                key = self._key(key_node)
                if key is not None:
                    self._keep(result, keys, key, key_node, value_node)
        for value_node in later:
            self._merge(result, keys, value_node)

    def _key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, self._yaml.ScalarNode):
            self._add(node, "a key must be text, not a list or a mapping")
            return None
        value = self._scalar(node)
        if isinstance(value, str):
            return value
        self._add(
            node,
            f"a key must be text, and YAML reads {node.value} as {spoken(value)}; {_quote(node)}",
        )
        return None

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            self._add(node, f"the tag {_short(node.tag)} means nothing here; take it away")

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
            # `!!int x`, or a number of more digits than Python turns: no number, so it is text.
            return text
        if kind == "timestamp":
            return YamlDate(text)
        if kind not in ("str", "value", "merge"):
            self._add(node, f"the tag {_short(node.tag)} means nothing here; take it away")
        return text


class _TooManyValuesError(Exception):
    pass


def spoken(value: object) -> str:
    """A value that YAML made, in words: `the number 1.1`, `true`, `a date`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, YamlDate):
        return "a date"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return "a string"


def _quote(node: yaml.ScalarNode) -> str:
    return f'put it in quotes: "{node.value}"' if node.value else "write it"


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
