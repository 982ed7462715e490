"""An archive whose index moves while plans are made of it: real apt on small archives."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from archives import make_lists, sign, write_archive

from pipeline.errors import IndexMovedError
from pipeline.tools.snapshot import Snapshot


def publish(folder: Path, version: str) -> dict[str, str]:
    """Lets an archive have one version of a package, and returns its index's digest."""
    archive = folder / "archive"
    shutil.rmtree(archive, ignore_errors=True)
    write_archive(archive, {"main": {f"web={version}": ""}})
    sign(archive, folder / "home")
    index = (archive / "dists/toy/InRelease").read_bytes()
    return {"toy": hashlib.sha256(index).hexdigest()}


def test_a_night_sees_one_state_of_the_archive(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    index = publish(tmp_path, "1.0")
    night = Snapshot()
    trust = f"signed-by={tmp_path}/home/archive.gpg"
    lists = make_lists(tmp_path / "archive", first, trust=trust)
    night.update(lists, first, night.once("index", lambda: index))
    assert lists.versions(["web"])["web"][0][0] == "1.0"

    moved = publish(tmp_path, "2.0")
    assert night.once("index", lambda: moved) == index
    night.update(lists, first, index)
    assert lists.versions(["web"])["web"][0][0] == "1.0"  # not fetched again

    # Lists that are fetched for the first time would be of another state than the others.
    late = make_lists(tmp_path / "archive", second, trust=trust)
    with pytest.raises(IndexMovedError) as caught:
        night.update(late, second, index)
    assert caught.value.what == "the archive changed its index while packages were resolved"

    next_night = Snapshot()
    next_night.update(late, second, next_night.once("index", lambda: moved))
    assert late.versions(["web"])["web"][0][0] == "2.0"
