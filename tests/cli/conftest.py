from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_runs import Hello, Project, make_project, remove_tree

MakeProject = Callable[..., Project]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with a store of its own."""
    made = make_project(tmp_path / "project", tmp_path / "store")
    yield made
    remove_tree(tmp_path)


@pytest.fixture
def shared(tmp_path: Path, hello: Hello) -> Iterator[Project]:
    """A project whose store is the one in which hello-phantom was built."""
    yield make_project(tmp_path / "project", hello.store)
    remove_tree(tmp_path)


@pytest.fixture
def copied(tmp_path: Path, hello: Hello) -> Iterator[Callable[..., Project]]:
    """Makes a project with a copy of that store that has the artifacts of the named stages."""

    def make(*stages: str, **environ: str) -> Project:
        store = hello.copy_store(tmp_path / "store", *stages)
        return make_project(tmp_path / "project", store, **environ)

    yield make
    remove_tree(tmp_path)
