"""What tests of several folders start from; made when it is first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from base_images import Bases
from cli_runs import Hello, build_hello, remove_tree


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hello]:
    """hello-phantom, built once by each process that runs tests."""
    folder = tmp_path_factory.mktemp("hello")
    yield build_hello(folder)
    remove_tree(folder)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    """The session's base images, each made once, for all processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with Bases.shared(folder / "bases") as made:
        yield made
