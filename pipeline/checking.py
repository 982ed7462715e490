"""Holds a YAML file against a JSON Schema and says every mistake in words for people.

A schema may carry `errorMessage`, a phrase that begins with "must", as editors read it too: it is
told in place of a pattern or an `anyOf` that nobody wants to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.yaml_source import Keys, YamlDate, YamlFile, spoken

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Schema = dict[str, Any]

_KINDS = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_ABOUT_KEYS = ("additionalProperties", "required", "propertyNames", "uniqueItems")


def check_schema(file: YamlFile, data: object, schema: Schema, keys: Keys = ()) -> set[Keys]:
    """Adds to the file's mistakes whatever in `data`, which stands at `keys`, breaks the schema.

    Returns where the values stand that do, so that nobody looks at them a second time.
    """
    told: set[Keys] = set()
    for fault in sorted(_find_faults(schema, data), key=_rank):
        at = (*keys, *fault.at)
        if fault.rule == "additionalProperties":
            _add_unknown_keys(file, at, fault, schema)
        elif fault.rule == "required":
            _add_missing_keys(file, at, fault)
        elif fault.rule == "propertyNames":
            _add_bad_key(file, at, fault)
        elif fault.rule == "uniqueItems":
            _add_repeated_items(file, at, fault.value)
        elif at not in told:
            told.add(at)
            file.add(_words(file, at, fault), at)
    return told


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'name'?` with the nearest known word, or nothing when none is near."""
    near = find_nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def find_nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like a word, whatever its case; None when none is near."""
    import difflib

    by_fold = {one.casefold().replace("-", "_"): one for one in known}
    fold = word.casefold().replace("-", "_")
    near = difflib.get_close_matches(fold, by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


def label(keys: Keys) -> str:
    """The way to a value as people write it: `files[0].to`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{key}" if text else key
    return text


def quote(value: object) -> str:
    """A value for a message, cut when it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "..." + text[0]


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """What jsonschema found, as far as we tell it."""

    rule: str
    limit: Any
    """What the rule says: the pattern, the keys that are required."""
    at: Keys
    value: Any
    schema: Mapping[str, Any]
    """The part of the schema that has the rule."""
    message: str


def _find_faults(schema: Schema, data: Any) -> list[_Fault]:
    import jsonschema

    def pattern(
        validator: object, wanted: str, instance: object, schema: object
    ) -> Iterable[ValidationError]:
        # Python's `$` also matches before a last line feed; JSON Schema's does not.
        exact = re.sub(r"\$$", r"\\Z", wanted)
        if isinstance(instance, str) and not re.search(exact, instance):
            yield jsonschema.ValidationError(f"does not match {wanted}")

    extend: Any = jsonschema.validators.extend
    validator = extend(jsonschema.Draft202012Validator, {"pattern": pattern})(schema)
    return [_make_fault(error) for error in validator.iter_errors(data)]


def _make_fault(error: Any) -> _Fault:
    # An error of a key's name is told with the words of `propertyNames`, which holds the rule.
    about_key = "propertyNames" in error.absolute_schema_path
    return _Fault(
        rule="propertyNames" if about_key else str(error.validator),
        limit=error.validator_value,
        at=tuple(error.absolute_path),
        value=error.instance,
        schema=error.schema,
        message=error.message,
    )


def _rank(fault: _Fault) -> tuple[int, int, str]:
    """Faults in the order of telling; of several about one value the first alone is told."""
    order = {"type": 0, "enum": 1, "const": 1, "anyOf": 3, "oneOf": 3}
    # Misspelt keys go first: a key that is only misspelt is not told as missing too.
    first = _ABOUT_KEYS.index(fault.rule) if fault.rule in _ABOUT_KEYS else len(_ABOUT_KEYS)
    return first, order.get(fault.rule, 2), label(fault.at)


def _unknown_keys(instance: Mapping[str, object], schema: Mapping[str, Any]) -> list[str]:
    patterns = schema.get("patternProperties", {})
    return [
        key
        for key in instance
        if key not in schema.get("properties", {})
        and not any(re.search(pattern, key) for pattern in patterns)
    ]


def _add_unknown_keys(file: YamlFile, at: Keys, fault: _Fault, schema: Schema) -> None:
    known = list(fault.schema.get("properties", {}))
    for key in _unknown_keys(fault.value, fault.schema):
        text = f"unknown key {key!r}" + (f" in {label(at)!r}" if at else "")
        hint = suggest(key, known) or _elsewhere(key, schema)
        file.add(text + (hint or f"; known here: {', '.join(known)}"), (*at, key), key=True)


def _elsewhere(key: str, schema: Schema) -> str:
    """Where a key that is known, but not at this place, belongs."""
    places = [place for place in _places(key, schema, ()) if place]
    return f"; it belongs in {label(places[0])!r}" if len(places) == 1 else ""


def _places(key: str, schema: Schema, way: Keys) -> list[Keys]:
    properties: dict[str, Schema] = schema.get("properties", {})
    found = [way] if key in properties else []
    for name, below in properties.items():
        found += _places(key, below, (*way, name))
    return found


def _add_missing_keys(file: YamlFile, at: Keys, fault: _Fault) -> None:
    misspelt: list[str | None] = []
    if fault.schema.get("additionalProperties") is False:  # then unknown keys are told
        unknown = _unknown_keys(fault.value, fault.schema)
        misspelt = [find_nearest(key, fault.schema["properties"]) for key in unknown]
    for key in fault.limit:
        if key not in fault.value and key not in misspelt:
            text = f"{key!r} is missing" + (f" in {label(at)!r}" if at else "")
            file.add(text, at)


def _add_bad_key(file: YamlFile, at: Keys, fault: _Fault) -> None:
    phrase = fault.schema.get("errorMessage", fault.message)
    file.add(f"the key {quote(fault.value)} {phrase}", (*at, fault.value), key=True)


def _add_repeated_items(file: YamlFile, at: Keys, items: list[object]) -> None:
    for index, item in enumerate(items):
        first = items.index(item)
        if first < index:
            line = file.line((*at, first))
            text = f"{quote(item)} is listed twice in {label(at)!r}; the first is on line {line}"
            file.add(text, (*at, index))


def _words(file: YamlFile, at: Keys, fault: _Fault) -> str:
    name = repr(label(at)) if at else "the file"
    if fault.rule == "type":
        return f"{name} {_type_words(file, at, fault)}"
    if fault.rule == "enum":
        return f"{name} {_enum_words(file, at, fault.limit, fault.value)}"
    if "errorMessage" in fault.schema:
        return f"{name} {fault.schema['errorMessage']}, not {quote(fault.value)}"
    limits = {
        "minimum": "must be at least",
        "maximum": "must be at most",
        "const": "must be",
    }
    if fault.rule in limits:
        wanted_value = fault.limit
        return f"{name} {limits[fault.rule]} {wanted_value}, not {quote(fault.value)}"
    if fault.rule == "maxLength":
        return f"{name} must have at most {fault.limit:,} characters, and has {len(fault.value):,}"
    if fault.rule in ("minProperties", "minItems", "minLength"):
        return f"{name} must not be empty"
    # A cloud's schema of its sites may say in its description alone what a value is.
    meaning = str(fault.schema.get("description", fault.message)).split(". ")[0].rstrip(".")
    return f"{name} cannot be {quote(fault.value)}; it is: {meaning}"


def _type_words(file: YamlFile, at: Keys, fault: _Fault) -> str:
    wanted = fault.limit
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    must = "must be " + " or ".join(_KINDS.get(kind, kind) for kind in kinds)
    value = fault.value
    plain = file.plain(at)
    if value is None:
        return f"has no value; it {must}"
    if "string" in kinds and plain and isinstance(value, bool | int | float | YamlDate):
        if "enum" in fault.schema:
            return _enum_words(file, at, fault.schema["enum"], value)
        if not re.search(fault.schema.get("pattern", ""), plain):
            return f"{fault.schema.get('errorMessage', must)}, not {plain}"
        return f'{must}, and YAML reads {plain} as {spoken(value)}; put it in quotes: "{plain}"'
    if "array" in kinds and isinstance(value, str):
        return f"{must}, not a string; write one item a line, each after '- '"
    if kinds == ["integer"] and isinstance(value, str) and re.fullmatch("-?[0-9]+", value):
        return f"{must}; take the quotes away"
    if kinds == ["boolean"] and value in ("true", "false", "yes", "no", "on", "off"):
        return f"{must}; take the quotes away"
    return f"{must}, not {spoken(value)}"


def _enum_words(file: YamlFile, at: Keys, wanted: Iterable[object], value: object) -> str:
    words = [str(one) for one in wanted]
    must = f"must be one of {', '.join(words)}" if len(words) > 1 else f"must be {words[0]}"
    plain = file.plain(at)
    written = plain if plain and not isinstance(value, str) else quote(value)
    return f"{must}, not {written}" + suggest(plain or str(value), words)
