"""What tests of the catalog share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_kit import Demo, make_demo
from playwright.sync_api import Browser, sync_playwright

from pipeline.catalog.serve import serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests of a module."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A catalog with an appliance of each kind."""
    return make_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def served(demo: Demo) -> Iterator[str]:
    """The address at which that catalog is served."""
    with serving(Path(demo.output), 0) as url:
        yield url
