"""Whatever a file holds, loading gives an appliance or a DefinitionError, never a traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak import SOAKING, examples

from pipeline.clouds import Cloud
from pipeline.definitions.appliance import appliance_schema, load_appliance
from pipeline.definitions.sites import load_sites
from pipeline.errors import DefinitionError
from pipeline.model import Appliance

SCHEMA = appliance_schema(["nimbus"])


def known_words(schema: Any) -> set[str]:
    words = set(schema.get("properties", {})) | set(schema.get("enum", []))
    words |= {str(one) for one in schema.get("examples", []) if isinstance(one, str)}
    for below in [*schema.get("properties", {}).values(), schema.get("items", {})]:
        words |= known_words(below) if below else set()
    return words


WORDS = st.sampled_from(sorted(known_words(SCHEMA)))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.dates()
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


def values_like(schema: Any) -> st.SearchStrategy[Any]:
    """Values that mostly fit a schema, so that they reach the checks that follow it."""
    kind = schema.get("type")
    fitting: st.SearchStrategy[Any] = SCALARS
    if kind == "object":
        optional = {key: values_like(one) for key, one in schema.get("properties", {}).items()}
        fitting = st.fixed_dictionaries({}, optional=optional)
    elif kind == "array":
        fitting = st.lists(values_like(schema["items"]), max_size=3)
    elif schema.get("examples"):
        fitting = st.sampled_from(schema["examples"])
    # One value in eight is arbitrary.
    return st.integers(0, 7).flatmap(lambda dice: VALUES if dice == 0 else fitting)


NAMED = "name: hello-phantom\nversion: '1'\nsummary: s\n"
DEFINITIONS = values_like(SCHEMA)


@pytest.fixture(scope="module")
def definition() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path = Path("images/hello-phantom/appliance.yaml")
        (path.parent / "root").mkdir(parents=True)
        for name in ("motd", "check.sh", "user-data.sh", "make-cache.sh", "root/a"):
            (path.parent / name).write_text("#!/bin/sh\n")
        base = Path("images/common/base.yaml")
        base.parent.mkdir()
        base.write_text("packages: [vim]\nfiles: [{from: base.yaml, to: /etc/motd}]\n")
        yield path
        os.chdir(before)


def check(path: Path, content: bytes) -> Appliance | None:
    path.write_bytes(content)
    try:
        appliance = load_appliance("hello-phantom", Path("images"), clouds=["nimbus"])
        assert appliance.positions.find("version").startswith(f"{path}:")
        return appliance
    except DefinitionError as error:
        check_error(error)
        return None


def check_error(error: DefinitionError) -> None:
    assert error.where or error.detail
    assert str(error).encode()


def dump(value: object) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode(errors="replace")


LIMITS = settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not SOAKING,
)


@LIMITS
@given(VALUES)
def test_random_yaml_values_give_no_crash(definition: Path, value: object) -> None:
    check(definition, dump(value))


@LIMITS
@given(DEFINITIONS)
def test_values_like_a_definition(definition: Path, value: object) -> None:
    check(definition, dump(value))


@LIMITS
@given(DEFINITIONS)
def test_whole_definitions(definition: Path, value: object) -> None:
    own = {"name": "hello-phantom", "version": "1", "summary": "s"}
    check(definition, dump({**value, **own} if isinstance(value, dict) else own))


@LIMITS
@given(st.text(max_size=200))
@example("a: &a [*a]")
@example("? ? ?")
@example("<<: {}")
@example("<<: [[]]")
@example("a: 0x" + "f" * 5000)
@example("a: " + "9" * 5000)
@example("a: 2026-99-99")
@example("a: !!int x")
@example("a: !!float x")
@example("a: !!bool x")
@example("a: !!timestamp x")
@example("a: 0b_")
@example("disk_size: 99999999999999999999GiB")
@example("extends: ./\n")
@example("extends: /\n")
@example('extends: "' + "x/" * 5000 + '"\n')
@example('a: "\\U00110000"')
@example('a: "\\uD800"')
@example("a: !!int ''")
@example("a: !!float ''")
@example(f"{NAMED}disk_size: {'9' * 5000}GiB\n")
@example(f"{NAMED}disk_size: \u0663GiB\n")
@example(f"{NAMED}files: [{{from: motd, to: /x, mode: '{'7' * 5000}'}}]\n")
@example("%TAG ! tag:x,2000:\n---\n!a b: c\n")
@example("\ufeff\ufeffa: b")
@example("a: '\u2028'\nb: \u0085")
def test_random_text_gives_no_crash(definition: Path, text: str) -> None:
    check(definition, text.encode(errors="surrogatepass"))


@LIMITS
@given(st.binary(max_size=100))
def test_random_bytes_give_no_crash(definition: Path, content: bytes) -> None:
    check(definition, content)


@LIMITS
@given(st.data())
def test_the_example_with_a_piece_cut_out_or_put_in(definition: Path, data: st.DataObject) -> None:
    here = Path(__file__).parents[2] / "images/hello-phantom/appliance.yaml"
    text = here.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    piece = data.draw(st.sampled_from(["", "\t", ": ", "- ", "{", "]", "&a ", "*a", "!x ", "\n"]))
    check(definition, (text[:start] + piece + text[end:]).encode())


@LIMITS
@given(
    st.fixed_dictionaries(
        {"sites": st.dictionaries(st.text(max_size=5), st.dictionaries(WORDS, VALUES)) | VALUES}
    )
    | VALUES
)
def test_random_sites_files_give_no_crash(definition: Path, value: object) -> None:
    cloud = type("Cloud", (), {"site_schema": SCHEMA})
    path = definition.with_name("sites.yaml")
    path.write_bytes(dump(value))
    try:
        load_sites(path, {"boot": cast(type[Cloud], cloud)})
    except DefinitionError as error:
        check_error(error)
