from __future__ import annotations

from pathlib import Path

import pytest
from fetcher_guest import PLATFORMS, Guest, Platform, make_guest


@pytest.fixture(params=PLATFORMS, ids=str)
def platform(request: pytest.FixtureRequest) -> Platform:
    """Each shell with a different client; a test may ask for more by parametrizing `platform`."""
    chosen = request.param
    assert isinstance(chosen, Platform)
    return chosen


@pytest.fixture
def guest(tmp_path: Path, platform: Platform) -> Guest:
    return make_guest(tmp_path, platform)
