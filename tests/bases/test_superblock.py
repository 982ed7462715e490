"""Superblocks, as our reader and e2fsprogs read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.disk.superblock import AT_LEAST, read_superblock, superblock_at
from pipeline.model import MIB


def dumped(disk: Path) -> dict[str, str]:
    words = ["dumpe2fs", "-h", str(disk)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition(":") for line in told.splitlines())
    return {name: value.strip() for name, _, value in pairs}


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "ext2"],
        ["-t", "ext3", "-b", "1024"],
        ["-t", "ext4"],
        ["-t", "ext4", "-O", "^resize_inode,meta_bg,bigalloc,quota,project,mmp,verity"],
        ["-t", "ext4", "-O", "metadata_csum_seed,casefold,encrypt,ea_inode,large_dir,inline_data"],
        ["-t", "ext4", "-O", "sparse_super2,stable_inodes,fast_commit,orphan_file,^64bit"],
        ["-t", "ext4", "-O", "none"],
    ],
)
def test_the_same_as_e2fsprogs(words: list[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    made = ["mke2fs", "-q", "-F", *words, "-M", "/somewhere", str(disk), "64M"]
    subprocess.run(made, check=True, capture_output=True)
    told, found = dumped(disk), superblock_at(disk, 0)
    assert found is not None
    assert " ".join(found.features) == told["Filesystem features"].replace("(none)", "")
    assert found.bytes == int(told["Block count"]) * int(told["Block size"]) == 64 * MIB
    assert found.clean
    assert told["Filesystem state"] == "clean"
    assert found.last_mounted == told["Last mounted on"] == "/somewhere"


@pytest.mark.parametrize(("state", "clean"), [(0, False), (1, True), (2, False), (3, False)])
def test_state_of_a_file_system(state: int, clean: bool, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    made = ["mke2fs", "-q", "-F", "-O", "^metadata_csum", str(disk), "8M"]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", f"ssv state {state}", str(disk)], check=True)
    found = superblock_at(disk, 0)
    assert found is not None
    assert found.clean == clean == (dumped(disk)["Filesystem state"] == "clean")


def test_every_feature_is_called_as_e2fsprogs_calls_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-F", "-O", "none", str(disk), "8M"], check=True)
    names = " ".join(f"FEATURE_{field}{bit}" for field in "CIR" for bit in range(32))
    words = ["debugfs", "-w", "-R", f"feature {names}", str(disk)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = superblock_at(disk, 0)
    assert found is not None
    assert len(found.features) == 96
    assert list(found.features) == told.partition("features:")[2].split()


def test_zeros_are_not_a_superblock() -> None:
    assert read_superblock(bytes(AT_LEAST)) is None
    assert read_superblock(b"") is None
