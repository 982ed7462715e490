"""What tests of several folders start from; made when it is first asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import pytest
from base_images import Bases
from cli_runs import Hello, build_hello, remove_tree

_STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes",
        type=float,
        help="begin no slow test later than that: a run of all others has an end on any machine",
    )


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if {"hello", "bases"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("minutes")
    if minutes is None or time.monotonic() < _STARTED + 60 * minutes:
        return
    if any(item.get_closest_marker(name) for name in ("slow", "boot")):
        pytest.skip(f"the {minutes:g} minutes for slow tests are over")


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
