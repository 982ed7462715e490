"""The folder of builds, which gives names to stored files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pipeline.errors import NoSpaceError, StoreError
from pipeline.model import MIB, NoProgress
from pipeline.store import Store
from pipeline.workspace import Workspace, link


def test_many_threads_give_the_same_name(tmp_path: Path) -> None:
    """Two sites of one cloud share one image and are delivered at the same time."""
    errors: list[OSError] = []
    for number in range(50):
        stored = tmp_path / f"stored-{number}"
        stored.write_text("image")
        barrier = threading.Barrier(4)

        def work(stored: Path = stored, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                link(stored, tmp_path / "build" / stored.name)
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert not list((tmp_path / "build").glob(".*"))


def test_a_copy_keeps_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the store is on another file system, a copy of a large disk must not fill this one."""
    stored = tmp_path / "disk.raw"
    with stored.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data")
    stored.chmod(0o444)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    named = tmp_path / "build" / "image.raw"
    link(stored, named)
    assert named.read_bytes() == stored.read_bytes()
    assert named.stat().st_blocks * 512 < 8 * MIB
    assert named.stat().st_mtime_ns == stored.stat().st_mtime_ns
    before = named.stat().st_ino
    link(stored, named)
    assert named.stat().st_ino == before


@pytest.mark.parametrize(("number", "kind"), [(28, NoSpaceError), (13, StoreError)])
def test_errors_of_the_file_system_are_translated(
    tmp_path: Path, number: int, kind: type[Exception]
) -> None:
    store = Store(tmp_path / "store")
    workspace = Workspace(build=tmp_path, store=store, progress=lambda _: NoProgress())
    with pytest.raises(kind), workspace.errors():
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
