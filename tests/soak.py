"""How many examples property tests try: few in `make test`, many in `make soak`."""

from __future__ import annotations

import os

SOAKING = "SOAK" in os.environ


def examples(count: int) -> int:
    """How many examples to try, where `make test` tries `count`."""
    return 50 * count if SOAKING else count
