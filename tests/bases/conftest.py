from __future__ import annotations

from collections.abc import Iterator

import pytest
from base_images import Bases, make_bases, remove_bases


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    """The session's base images, each made when it is first asked for."""
    base = tmp_path_factory.getbasetemp()
    yield make_bases(base)
    remove_bases(base)
