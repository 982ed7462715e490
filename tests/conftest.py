"""Fixtures that several folders share, where temporary files go, and the order of the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_images import Bases
from cli_runs import Hello, build_hello, copy_hello, remove_tree
from conversions import Conversions
from hypothesis import is_hypothesis_test
from sharing import alone, session_folder, shared
from soak import SOAKING

from pipeline.machine.accelerator import available_memory
from pipeline.model import GIB

_STARTED = time.monotonic()
_LEFT_OUT = Path("build/tests-left-out.txt")
_MEMORY = Path("/dev/shm")
_MEMORY_NEEDED = 32 * GIB
"""Twice what base images, their builds and two copies of hello-phantom add up to; the most that a
whole run takes was not measured."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes",
        type=float,
        help="begin no slow test later than that: a run has an end on any machine",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keeps temporary files in memory where the host has enough of it."""
    if hasattr(config, "workerinput"):
        return
    (config.rootpath / _LEFT_OUT).unlink(missing_ok=True)
    if config.option.basetemp is None and _has_room():
        folder = tempfile.mkdtemp(prefix="phantom-tests-", dir=_MEMORY)
        config.option.basetemp = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _has_room() -> bool:
    if not os.access(_MEMORY, os.W_OK):
        return False
    return min(available_memory(), shutil.disk_usage(_MEMORY).free) >= _MEMORY_NEEDED


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks slow tests and puts them first, so that the quick ones keep all processes busy to the
    end. Where time is limited, boots come after the other slow tests: more tests run then."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if {"hello", "bases"}.intersection(names):
            item.add_marker("slow")
        if is_hypothesis_test(getattr(item, "function", None)) or item.get_closest_marker(
            "only_soak"
        ):
            item.add_marker("soak")
    if not SOAKING:
        long = [item for item in items if item.get_closest_marker("only_soak")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    limited = config.getoption("minutes") is not None
    items.sort(key=lambda item: (1, 0, 2)[_order(item)] if limited else _order(item))
    # Nearly all slow tests start from `hello` or `bases`, so two processes make these first.
    for number, name in enumerate(("hello", "bases")):
        for item in items:
            if name in getattr(item, "fixturenames", ()):
                items.remove(item)
                items.insert(number, item)
                break


def _order(item: pytest.Item) -> int:
    if item.get_closest_marker("boot"):
        return 0
    return 1 if item.get_closest_marker("slow") else 2


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Skips and records a slow test when the time for slow tests is over."""
    minutes = item.config.getoption("minutes")
    if minutes is None or time.monotonic() < _STARTED + 60 * minutes or _order(item) == 2:
        return None
    file = item.config.rootpath / _LEFT_OUT
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as left_out:
        left_out.write(f"{item.nodeid}\n")
    # The test before kept what this one would have used.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    file = config.rootpath / _LEFT_OUT
    if hasattr(config, "workerinput") or not file.exists():
        return
    count = len(file.read_text().splitlines())
    print(f"left out for want of time: {count} slow tests, listed in {_LEFT_OUT}")


@pytest.fixture(scope="session")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hello]:
    """hello-phantom, built once; a copy for each process, as tests run commands in its store."""
    folder = tmp_path_factory.mktemp("hello")
    with shared(session_folder(tmp_path_factory) / "built-hello") as built:
        with alone(built):
            if not (built / "done").exists():
                build_hello(built)
        yield copy_hello(built, folder)
    remove_tree(folder)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    """The session's base images, each made once, for all processes that run tests."""
    with shared(session_folder(tmp_path_factory) / "bases") as folder:
        yield Bases(folder)


@pytest.fixture(scope="session")
def conversions(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversions]:
    """Builds of base images, each made once, for all processes that run tests."""
    with shared(session_folder(tmp_path_factory) / "conversions") as folder:
        yield Conversions(folder, bases)
