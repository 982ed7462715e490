"""Sparse files and contexts for tests of stages."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import strategies

from pipeline.model import NoProgress
from pipeline.sparse import CHUNK
from pipeline.stages.base import Context
from pipeline.store import Store

extents = strategies.lists(
    strategies.tuples(
        strategies.integers(min_value=0, max_value=3 * CHUNK),  # offset
        strategies.binary(min_size=1, max_size=64),
        strategies.integers(min_value=1, max_value=2000),  # repeats
    ),
    max_size=5,
)
sizes = strategies.integers(min_value=0, max_value=3 * CHUNK + 12345)


def write_sparse(path: Path, size: int, data: list[tuple[int, bytes, int]]) -> None:
    """Writes a file of `size` bytes with holes between the given data, which may be zeros."""
    with path.open("wb") as file:
        for offset, content, repeats in data:
            os.pwrite(file.fileno(), content * repeats, offset)
        file.truncate(size)


def make_context(folder: Path) -> Context:
    """A context with empty folders."""
    out, work = folder / "out", folder / "work"
    out.mkdir()
    work.mkdir()
    return Context(
        out=out, work=work, log=folder / "log", store=Store(folder), progress=NoProgress()
    )
