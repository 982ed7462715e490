"""What an appliance prints, and how it ends: it may be anything."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ApplianceError, PhantomError, StageFailedError
from pipeline.guest import appliance
from pipeline.guest.appliance import Drive, launched
from pipeline.model import NoProgress
from pipeline.tools import run


def launch(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> PhantomError:
    """The error of an appliance whose QEMU, once it is to start, is a script."""
    qemu, disk = folder / "qemu", folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    qemu.write_text(
        '#!/bin/sh\ncase "$*" in\n*socket,path=*) ;;\n*) exec qemu-system-x86_64 "$@" ;;\nesac\n'
        f"{script}\n"
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("LIBGUESTFS_HV", str(qemu))
    with (
        pytest.raises(PhantomError) as caught,
        launched([Drive(file=disk)], store=folder, log=folder / "log", progress=NoProgress()),
    ):
        pass
    return caught.value


@pytest.mark.slow
def test_what_is_no_text_is_written_down_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = launch(
        tmp_path,
        monkeypatch,
        "printf 'not text: \\377\\n'; head -c 200000 /dev/zero | tr '\\0' x\n"
        "echo; echo end; exit 1",
    )
    assert type(said) is ApplianceError
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "not text: \N{REPLACEMENT CHARACTER}"
    assert lines[-1] == "end"
    assert {len(line) for line in lines[1:-1]} >= {64 << 10} and max(map(len, lines)) == 64 << 10


@pytest.mark.slow
def test_a_log_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance, "_LARGEST_LOG", 1000)
    launch(tmp_path, monkeypatch, "yes | head -n 100000; exit 1")
    written = (tmp_path / "log").read_text()
    assert len(written) < 2000
    assert written.endswith("\n(what came after this is left out: the log is too large)\n")


@pytest.mark.slow
def test_a_log_that_cannot_be_written_keeps_nobody_from_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    said = launch(tmp_path, monkeypatch, "yes | head -n 100000; exit 1")
    assert type(said) is ApplianceError


@pytest.mark.slow
def test_an_interrupted_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Timer(3, run.stop_all)
    stop.start()
    began = time.monotonic()
    said = launch(tmp_path, monkeypatch, "echo waiting; read -r line")
    stop.join()
    assert time.monotonic() - began < 20
    assert (type(said), str(said)) == (
        StageFailedError,
        "was interrupted\n  do: run the same command again",
    )
