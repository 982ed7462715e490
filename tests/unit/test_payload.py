"""What an element says of itself for base images."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import REPOSITORY

from pipeline.errors import DefinitionError
from pipeline.guest.payload import DESCRIPTION, read_payload


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"services: {", "it cannot be read as YAML"),
        (b"\xff\xfe", "it cannot be read as YAML"),
        (b"[" * 100_000, "it cannot be read as YAML"),
        (b"- a\n", "it is not an object"),
        (b"services: web\n", "services is not a list"),
        (b"services: [1]\n", "services[0] is not text"),
        (b"runlevel: 3\n", "runlevel is not text"),
    ],
    ids=range(7),
)
def test_mistakes_in_a_description(text: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_bytes(text)
    with pytest.raises(DefinitionError) as caught:
        read_payload(tmp_path)
    assert (caught.value.where, caught.value.what) == (str(tmp_path / DESCRIPTION), what)


def test_the_elements_of_the_tree() -> None:
    for element in (REPOSITORY / "elements").iterdir():
        payload = read_payload(element)
        assert (payload is not None) == (element / DESCRIPTION).is_file()
