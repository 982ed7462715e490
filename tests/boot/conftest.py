from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Hello
from machines import copy_disk


@pytest.fixture(scope="session")
def stored(hello: Hello) -> Path:
    """The disk that the build of hello-phantom made."""
    return hello.artifact("disk") / "disk.raw"


@pytest.fixture
def disk(stored: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh disk with hello-phantom's image."""
    made = copy_disk(stored, tmp_path)
    yield made
    made.unlink()
