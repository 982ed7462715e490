from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from machines import copy_disk

# The image that machines boot here is the one that the tests of the command line build.
sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """hello-phantom (a `cli_runs.Hello`), built once in this session."""
    runs = import_module("cli_runs")
    base = tmp_path_factory.getbasetemp()
    yield runs.build_hello(base)
    runs.remove_hello(base)


@pytest.fixture(scope="session")
def stored(hello: Any) -> Path:
    """The disk of hello-phantom, as it was built."""
    disk = hello.artifact("disk") / "disk.raw"
    assert isinstance(disk, Path)
    return disk


@pytest.fixture
def disk(stored: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh disk with hello-phantom's image."""
    made = copy_disk(stored, tmp_path)
    yield made
    made.unlink()
