"""Machines whose disk cannot grow, because the host has no space left."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import REPOSITORY
from terminals import Terminal

from pipeline.errors import NoSpaceError
from pipeline.guest.appliance import Drive, launched
from pipeline.machine.full_disk import FullDiskWatch
from pipeline.model import MIB, NoProgress
from pipeline.tools import run

_WRITES = bytes.fromhex("b80103 bb007c b9010a ba8000 cd13 f4".replace(" ", ""))
"""A boot sector's code: has the BIOS write a sector ten cylinders away, and halts."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of 8 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tests", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def _machine(folder: Path) -> list[str]:
    """QEMU with a disk in a folder that has no space left, to which the machine writes."""
    disk = folder / "disk.raw"
    disk.write_bytes(_WRITES.ljust(510, b"\0") + b"\x55\xaa")
    os.truncate(disk, 64 * MIB)
    _fill(folder)
    return [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg"),
        *("-drive", f"id=root,if=none,format=raw,file={disk}", "-device", "ide-hd,drive=root"),
    ]


def test_a_machine_that_would_stand_still_is_ended(small: Path) -> None:
    with FullDiskWatch() as watch:
        argv = [*_machine(small), *itertools.chain.from_iterable(watch.options)]
        with run.start(argv, lifeline=True) as process:
            process.wait()
    assert watch.full == "root"


def test_a_machine_on_a_terminal_is_ended(small: Path) -> None:
    code = "import sys; from pipeline.machine.console import attach; attach(sys.argv[1:], '')"
    argv = [sys.executable, "-c", code, *_machine(small)]
    with Terminal(argv, cwd=REPOSITORY, env={"PATH": os.environ["PATH"]}) as terminal:
        terminal.wait_for("NoSpaceError: the machine was ended: no space is left")
        assert terminal.end() == 1


def test_nothing_is_left_of_a_watch_that_nobody_reports_to() -> None:
    with FullDiskWatch() as watch:
        pass
    watch._thread.join(10)
    assert not watch._thread.is_alive()
    assert watch.full is None


def test_libguestfs_ends_where_its_own_files_find_no_space(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes beside an image that it only reads goes to the folder of temporary files."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"")
    os.truncate(disk, 256 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(disk)], check=True)
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    monkeypatch.setenv("TMPDIR", str(small))
    drive = Drive(file=disk, name="root")
    with (
        pytest.raises(NoSpaceError) as caught,
        launched([drive], store=tmp_path, log=tmp_path / "log", progress=NoProgress()) as guest,
    ):
        guest.handle.mount(drive.device, "/")
        guest.handle.fill(1, 32 * MIB, "/large")
        guest.handle.umount_all()
    assert caught.value.where == str(small)
    assert [*small.iterdir()] == []


def test_libguestfs_ends_where_it_would_wait_for_good(small: Path, tmp_path: Path) -> None:
    disk = small / "disk.raw"
    disk.write_bytes(b"")
    os.truncate(disk, 256 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(disk)], check=True)
    drive = Drive(file=disk, name="root", writable=True)
    log = tmp_path / "log"
    with (
        pytest.raises(NoSpaceError) as caught,
        launched([drive], store=tmp_path, log=log, progress=NoProgress()) as guest,
    ):
        guest.handle.mount(drive.device, "/")
        guest.handle.fill(1, 32 * MIB, "/large")
        guest.handle.umount_all()
    assert str(caught.value) == (
        f"{small}: no space is left for what libguestfs's appliance writes\n"
        "  do: free some space there (`phantom-image gc` evicts old artifacts), then run the same "
        f"command again\n  log: {log}"
    )
    assert list(small.iterdir()) == [disk]
