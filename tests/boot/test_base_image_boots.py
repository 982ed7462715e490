"""Base images of all shapes, built for sites of all kinds, and booted by their boot checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_images import Bases
from cli_runs import Hello, Project, make_project, remove_tree
from conversions import BOOTED, SHAPES, SITES, Conversions


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with a store of its own."""
    made = make_project(tmp_path / "project", tmp_path / "store")
    made.write("sites.yaml", SITES)
    yield made
    remove_tree(tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=[] if shape in BOOTED else [pytest.mark.only_soak])
        for shape in SHAPES
    ],
)
def test_shape_at_its_sites(shape: str, conversions: Conversions) -> None:
    project, _ = conversions.build(shape)
    assert len(project.artifacts("boot")) == len(SHAPES[shape])


@pytest.mark.only_soak
def test_cloud_image_at_kvm_and_amazon(bases: Bases, project: Project) -> None:
    """The definition for Debian's cloud images, with an image made like them: cloud-init runs
    user-data at Amazon, and the fetcher runs it at Nimbus."""
    base = project.folder / "images/debian-cloud-base/debian-12-generic-amd64.qcow2"
    base.symlink_to(bases.path("cloud-init.qcow2"))
    project.succeed("build", "debian-cloud-base", "--site", "kvm", "--site", "amazon")


@pytest.mark.only_soak
def test_the_example_that_starts_from_a_build(hello: Hello, project: Project) -> None:
    shutil.copytree(hello.project.build, project.build, symlinks=True)
    project.succeed("build", "hello-base", "--site", "kvm")
