"""Fixtures for the tests of clouds: real clients against a real local server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2_kit import Kit
from harness import HARNESSES, Ec2Harness, Harness, NimbusHarness, Watched


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the developer's own settings for AWS, Nimbus and proxies."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "NIMBUS_", "PHANTOM_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(params=sorted(HARNESSES))
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    """Each cloud in turn."""
    with HARNESSES[request.param](tmp_path / "service") as made:
        yield made


@pytest.fixture
def nimbus(tmp_path: Path) -> Iterator[NimbusHarness]:
    with NimbusHarness(tmp_path / "service") as made:
        yield made


@pytest.fixture
def ec2() -> Iterator[Ec2Harness]:
    with Ec2Harness() as made:
        yield made


@pytest.fixture
def kit(ec2: Ec2Harness, tmp_path: Path) -> Kit:
    return Kit(ec2, tmp_path)


@pytest.fixture
def progress() -> Watched:
    return Watched()
