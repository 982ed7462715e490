"""The examples that start from scratch, built, booted and checked by their own scripts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_runs import EXAMPLES, REPOSITORY, Hello, make_project

IMAGES = REPOSITORY / "images"
OTHERS = sorted(folder.name for folder in IMAGES.iterdir() if folder.name not in EXAMPLES)


@pytest.mark.boot
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "web" else [pytest.mark.only_soak]) for name in OTHERS],
)
def test_an_example_is_built_and_serves(name: str, hello: Hello, tmp_path: Path) -> None:
    store = hello.copy_store(tmp_path / "store")
    project = make_project(tmp_path / "project", store)
    shutil.copytree(IMAGES / name, project.folder / "images" / name)
    done = project.run("build", name, "--cloud", "nimbus")
    assert done.status == 0, done.err
