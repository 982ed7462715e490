"""Checks a YAML file against a JSON Schema, and describes every mistake in plain English.

A schema may have an `errorMessage`, a phrase that starts with "must". Messages, and editors too,
show it instead of a pattern or an `anyOf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pipeline.definitions.bounds import MOST_CHARACTERS, MOST_KEYS, bounded
from pipeline.definitions.yaml import Keys, YamlDate, YamlFile, describe
from pipeline.errors import DefinitionError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Schema = dict[str, Any]
_Error = Any  # a jsonschema.ValidationError, whose stubs say that any attribute may be unset

_KINDS = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {"minimum": "must be at least", "maximum": "must be at most", "const": "must be"}
_COUNTS = {"maxItems": "entries", "maxProperties": "keys"}
_MOST_HINTS = 50  # that are searched for
_MOST_SHOWN = 100  # mistakes in one message
# Misspelt keys first, so that a key that is only misspelt is not reported as missing too.
_ABOUT_KEYS = ("additionalProperties", "required", "propertyNames", "uniqueItems")


def check_schema(file: YamlFile, schema: Schema, keys: Keys = ()) -> None:
    """Adds to the file's mistakes each violation of the schema in the value at `keys`.

    The values become `refused`, so that no other check reports them.
    """
    for error in sorted(_validate(bounded(schema), file.value(keys)), key=_rank):
        at, rule = (*keys, *error.absolute_path), _rule(error)
        file.unfit.update(at[:1])
        if rule == "additionalProperties":
            _add_unknown_keys(file, at, error, schema)
        elif rule == "required":
            _add_missing_keys(file, at, error)
        elif rule == "propertyNames":
            phrase = error.schema.get("errorMessage", error.message)
            file.add(f"the key {quote(error.instance)} {phrase}", (*at, error.instance), key=True)
        elif rule == "uniqueItems":
            _add_repeated_items(file, at, error.instance)
        elif at not in file.refused:
            file.refused.add(at)
            file.add(f"{repr(label(at)) if at else 'the file'} {_describe(file, at, error)}", at)


def raise_mistakes(files: Sequence[YamlFile], todo: str) -> None:
    """Raises a DefinitionError with all mistakes in the files, if there are any."""
    mistakes = [
        mistake
        for file in files
        for mistake in sorted(file.mistakes, key=attrgetter("line", "column"))
    ]
    if len(mistakes) == 1:
        raise DefinitionError(mistakes[0].text, where=mistakes[0].where, todo=todo)
    if mistakes:
        *others, last = dict.fromkeys(mistake.file for mistake in mistakes)
        names = f"{', '.join(others)} and {last}" if others else last
        lines = [str(mistake) for mistake in mistakes[:_MOST_SHOWN]]
        if len(mistakes) > len(lines):
            lines.append(f"and {len(mistakes) - len(lines):,} more")
        raise DefinitionError(
            f"{len(mistakes)} mistakes in {names}",
            detail="\n".join(lines),
            todo=todo.replace("correct it", "correct them"),
        )


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'name'?` with the most similar known word, or an empty text."""
    near = find_nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to a word, ignoring case; None if none is similar."""
    import difflib

    by_fold = {name.casefold().replace("-", "_"): name for name in known}
    fold = word.casefold().replace("-", "_")
    near = difflib.get_close_matches(fold, by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def choose(known: Sequence[str], otherwise: str) -> str:
    """The remedy for an unknown name: choose a known one, or `otherwise` if there are none."""
    return f"choose one of: {', '.join(known)}" if known else otherwise


def label(keys: Keys) -> str:
    """The path to a value as users write it: `files[0].to`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_short(key)}" for key in keys)
    return "".join(parts).removeprefix(".")


def _short(key: str) -> str:
    return key if len(key) <= 64 else key[:60] + "..."


def quote(value: object) -> str:
    """A value for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "..." + text[0]


def _validate(schema: Schema, data: Any) -> Iterable[_Error]:
    import jsonschema

    def pattern(
        validator: object, wanted: str, instance: object, schema: object
    ) -> Iterable[ValidationError]:
        # Unlike JSON Schema's `$`, Python's also matches before a final line feed.
        exact = re.sub(r"\$$", r"\\Z", wanted)
        most = schema.get("maxLength", MOST_CHARACTERS) if isinstance(schema, dict) else 0
        # What is too long is reported as such, and might take a pattern quadratic time.
        short = isinstance(instance, str) and len(instance) <= most
        if short and not re.search(exact, str(instance)):
            yield jsonschema.ValidationError(f"does not match {wanted}")

    def unique(
        validator: object, wanted: bool, instance: object, schema: object
    ) -> Iterable[ValidationError]:
        # jsonschema's own compares each item with each.
        items = instance if wanted and isinstance(instance, list) else []
        if len(set(map(_identity, items))) < len(items):
            yield jsonschema.ValidationError("has repeated items")

    extend: Any = jsonschema.validators.extend
    ours = {"pattern": pattern, "uniqueItems": unique}
    validator = extend(jsonschema.Draft202012Validator, ours)(schema)
    errors: Iterable[_Error] = validator.iter_errors(data)
    return errors


def _identity(item: object) -> str:
    return json.dumps(item, sort_keys=True, default=repr)


def _rule(error: _Error) -> str:
    about_key = "propertyNames" in error.absolute_schema_path
    return "propertyNames" if about_key else str(error.validator)


def _rank(error: _Error) -> tuple[int, int, str]:
    """A sort key: of several errors in one value, only the first is reported."""
    rule, order = _rule(error), {"type": 0, "enum": 1, "const": 1, "anyOf": 3, "oneOf": 3}
    first = _ABOUT_KEYS.index(rule) if rule in _ABOUT_KEYS else len(_ABOUT_KEYS)
    return first, order.get(rule, 2), label(tuple(error.absolute_path))


def _unknown_keys(instance: Mapping[str, object], schema: Mapping[str, Any]) -> list[str]:
    patterns = schema.get("patternProperties", {})
    return [
        key
        for key in instance
        if key not in schema.get("properties", {})
        and not any(re.search(pattern, key) for pattern in patterns)
    ]


def _add_unknown_keys(file: YamlFile, at: Keys, error: _Error, schema: Schema) -> None:
    known = list(error.schema.get("properties", {}))
    for number, key in enumerate(_unknown_keys(error.instance, error.schema)):
        text = f"unknown key {quote(key)}" + (f" in {label(at)!r}" if at else "")
        hint = (suggest(key, known) or _elsewhere(key, schema)) if number < _MOST_HINTS else ""
        file.add(text + (hint or f"; known here: {', '.join(known)}"), (*at, key), key=True)
        file.refused.add((*at, key))


def _elsewhere(key: str, schema: Schema) -> str:
    """Where a misplaced key belongs, if it is only known in one other mapping."""
    parents = [parent for parent in _parents(key, schema, ()) if parent]
    return f"; it belongs in {label(parents[0])!r}" if len(parents) == 1 else ""


def _parents(key: str, schema: Schema, keys: Keys) -> Iterator[Keys]:
    properties: dict[str, Schema] = schema.get("properties", {})
    if key in properties:
        yield keys
    for name, below in properties.items():
        yield from _parents(key, below, (*keys, name))


def _add_missing_keys(file: YamlFile, at: Keys, error: _Error) -> None:
    misspelt: list[str | None] = []
    if error.schema.get("additionalProperties") is False:  # then unknown keys are reported
        unknown = _unknown_keys(error.instance, error.schema)[:_MOST_HINTS]
        misspelt = [find_nearest(key, error.schema["properties"]) for key in unknown]
    for key in error.validator_value:
        if key not in error.instance and key not in misspelt:
            text = f"{key!r} is missing" + (f" in {label(at)!r}" if at else "")
            file.add(text, at)


def _add_repeated_items(file: YamlFile, at: Keys, items: list[object]) -> None:
    places: dict[str, int] = {}
    for index, item in enumerate(items):
        first = places.setdefault(_identity(item), index)
        if first < index:
            line = file.line((*at, first))
            text = f"{quote(item)} is listed twice in {label(at)!r}; the first is on line {line}"
            file.add(text, (*at, index))


def _describe(file: YamlFile, at: Keys, error: _Error) -> str:
    rule, limit, value, schema = _rule(error), error.validator_value, error.instance, error.schema
    if rule == "type":
        return _describe_type(file, at, error)
    if rule == "enum":
        return _describe_choice(file, at, schema, value)
    if "errorMessage" in schema and limit != MOST_CHARACTERS:
        return f"{schema['errorMessage']}, not {quote(value)}"
    if rule in _LIMITS:
        return f"{_LIMITS[rule]} {limit}, not {quote(value)}"
    if rule in _COUNTS and limit >= MOST_KEYS:
        return f"must have at most {limit:,} {_COUNTS[rule]}, and has {len(value):,}"
    if rule == "maxLength":
        return f"must have at most {limit:,} characters, and has {len(value):,}"
    if rule in ("minProperties", "minItems", "minLength"):
        return "must not be empty"
    # A cloud's schema may explain an option only in its description.
    meaning = str(schema.get("description", error.message)).split(". ")[0].rstrip(".")
    return f"cannot be {quote(value)}; it is: {meaning}"


def _describe_type(file: YamlFile, at: Keys, error: _Error) -> str:
    wanted, value, schema = error.validator_value, error.instance, error.schema
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    must = "must be " + " or ".join(_KINDS.get(kind, kind) for kind in kinds)
    plain = file.plain(at)
    if value is None:
        return f"has no value; it {must}"
    if "string" in kinds and plain and isinstance(value, bool | int | float | YamlDate):
        if "enum" in schema:
            return _describe_choice(file, at, schema, value)
        if not re.search(schema.get("pattern", ""), plain):
            return f"{schema.get('errorMessage', must)}, not {plain}"
        return f'{must}, and YAML reads {plain} as {describe(value)}; put it in quotes: "{plain}"'
    if "array" in kinds and isinstance(value, str):
        return f"{must}, not a string; write one item a line, each after '- '"
    is_number = isinstance(value, str) and re.fullmatch("-?[0-9]+", value)
    is_truth = value in ("true", "false", "yes", "no", "on", "off")
    if (kinds == ["integer"] and is_number) or (kinds == ["boolean"] and is_truth):
        return f"{must}; take the quotes away"
    return f"{must}, not {describe(value)}"


def _describe_choice(file: YamlFile, at: Keys, schema: Schema, value: object) -> str:
    words = [str(word) for word in schema["enum"]]
    must = f"must be one of {', '.join(words)}" if len(words) > 1 else f"must be {words[0]}"
    must = schema.get("errorMessage", must)
    plain = file.plain(at)
    written = plain if plain and not isinstance(value, str) else quote(value)
    return f"{must}, not {written}" + suggest(plain or str(value), words)
