"""Disks, read by other tools: tables by sfdisk, FAT by mtools and fsck, boot code as bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from files import make_context

from pipeline.errors import DiskTooSmallError, GuestSilentError
from pipeline.layouts import LAYOUTS
from pipeline.machine.node import find_root
from pipeline.model import MIB, ContentKey
from pipeline.stages.base import Stage
from pipeline.stages.disk import DISK, HEAD, AssembleDisk
from pipeline.store import Artifact
from pipeline.tools import sfdisk

SIZE = 160 * MIB
SECTOR = 512
ESP_START, ESP_END = 4 * MIB, 64 * MIB  # of the layout `hybrid`


class Root(Stage):
    """Stands in for the stage that makes the root file system; its label decides its key."""

    name = "root"

    def run(self, inputs: Any, context: Any) -> Any:
        raise NotImplementedError


def root(letter: str = "a") -> Root:
    return Root(label=letter, inputs=() if letter == "a" else (Root(),))


def make_root(folder: Path) -> Artifact:
    """A small root file system that holds a GRUB configuration."""
    tree = folder / "tree"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "boot/grub/grub.cfg").write_text("echo the configuration was found\n")
    image = folder / "root.ext4"
    words = ["mke2fs", "-q", "-t", "ext4", "-L", "phantom-root", "-d", str(tree), str(image), "8M"]
    subprocess.run(words, check=True)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    return Artifact(stage="root", key=ContentKey("r"), folder=folder, facts={"sha256": digest})


def assemble(
    folder: Path,
    layout: str,
    *,
    size: int = SIZE,
    letter: str = "a",
    kept: dict[str, Any] | None = None,
) -> Path:
    """A disk. `kept` has the facts of a base image's disk, whose head lies in the folder."""
    folder.mkdir(parents=True, exist_ok=kept is not None)
    source = make_root(folder)
    if kept is not None:
        source = replace(source, facts={**source.facts, "kept": kept})
    context = make_context(folder)
    stage = AssembleDisk(inputs=(root(letter),), layout=LAYOUTS[layout], size=size, tools={})
    facts = stage.run([source], context)
    assert facts == {"bytes": size, "root_sha256": source.facts["sha256"], "identities": None}
    assert (context.out / DISK).stat().st_size == size
    return context.out / DISK


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("hybrid") / "disk", "hybrid")


def read_table(disk: Path) -> dict[str, Any]:
    words = ["sfdisk", "--json", str(disk)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    table: dict[str, Any] = json.loads(told)["partitiontable"]
    return table


def read_at(disk: Path, start: int, size: int) -> bytes:
    with disk.open("rb") as file:
        return os.pread(file.fileno(), size, start)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_root_lies_in_every_layout_byte_for_byte(tmp_path: Path, layout: str) -> None:
    disk = assemble(tmp_path / "disk", layout)
    content = (tmp_path / "disk/root.ext4").read_bytes()
    start = LAYOUTS[layout].root_start
    assert read_at(disk, start, len(content)) == content
    if start:
        assert sfdisk.partition_starts(disk)[1] == start
    assert find_root(disk).names(PurePosixPath("/boot/grub")) == [".", "..", "grub.cfg"]


def test_table_of_the_hybrid_disk(hybrid: Path) -> None:
    """Numbers and types are as in well-known cloud images; root is last, before the second GPT."""
    table = read_table(hybrid)
    assert (table["label"], table["lastlba"]) == ("gpt", SIZE // SECTOR - 34)
    partitions = {
        each["node"].removeprefix(str(hybrid)): (each["start"], each["size"], each["type"])
        for each in table["partitions"]
    }
    assert partitions == {
        "1": (131072, (SIZE - 65 * MIB) // SECTOR, "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
        "14": (2048, 6144, "21686148-6449-6E6F-744E-656564454649"),
        "15": (8192, 122880, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    }
    verified = subprocess.run(
        ["sfdisk", "--verify", str(hybrid)], capture_output=True, text=True, check=True
    )
    assert "No errors detected." in verified.stdout
    assert verified.stderr == ""


def test_guids_come_from_the_key(hybrid: Path, tmp_path: Path) -> None:
    def guids(disk: Path) -> list[str]:
        table = read_table(disk)
        return [table["id"], *(each["uuid"] for each in table["partitions"])]

    first = guids(hybrid)
    assert len(set(first)) == 4
    assert guids(assemble(tmp_path / "same", "hybrid")) == first
    assert not {*guids(assemble(tmp_path / "other", "hybrid", letter="b"))} & {*first}


def test_the_same_inputs_give_the_same_bytes(
    hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's clock, time zone and mtools settings change nothing."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.mtoolsrc").write_text("MTOOLS_LOWER_CASE=1\nMTOOLS_NO_VFAT=1\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    again = assemble(tmp_path / "again", "hybrid")
    assert read_at(again, 0, 64 * MIB) == read_at(hybrid, 0, 64 * MIB)
    tail = SIZE - MIB
    assert read_at(again, tail, MIB) == read_at(hybrid, tail, MIB)


def test_what_boots_is_the_same_for_every_key_and_size(hybrid: Path, tmp_path: Path) -> None:
    """Only the tables differ, so an upload of differences never sends the boot code again."""
    other = assemble(tmp_path / "other", "hybrid", size=SIZE + 7 * MIB, letter="b")
    start, size = 34 * SECTOR, 64 * MIB - 34 * SECTOR
    assert read_at(other, start, size) == read_at(hybrid, start, size)
    assert read_at(other, 0, 440) == read_at(hybrid, 0, 440)


def test_bios_finds_the_core(hybrid: Path) -> None:
    """boot.img knows the core's first sector, and this sector knows the rest of the core."""
    boot, core = read_at(hybrid, 0, SECTOR), read_at(hybrid, MIB, 3 * MIB)
    assert struct.unpack_from("<Q", boot, 0x5C) == (2048,)
    start, count, segment = struct.unpack_from("<QHH", core, SECTOR - 12)
    used = len(core.rstrip(b"\0"))
    assert (start, segment) == (2049, 0x820)
    assert 0 < used - SECTOR <= count * SECTOR
    assert boot[510:] == b"\x55\xaa"


def test_bios_finds_the_core_behind_an_mbr(tmp_path: Path) -> None:
    disk = assemble(tmp_path / "disk", "mbr")
    boot, core = read_at(disk, 0, SECTOR), read_at(disk, SECTOR, SECTOR)
    assert struct.unpack_from("<Q", boot, 0x5C) == (1,)
    assert struct.unpack_from("<Q", core, SECTOR - 12) == (2,)


def test_efi_system_partition(hybrid: Path, tmp_path: Path) -> None:
    """A sound FAT32 that holds one program where UEFI looks for it."""
    system, program = tmp_path / "efi.fat", tmp_path / "BOOTX64.EFI"
    system.write_bytes(read_at(hybrid, ESP_START, ESP_END - ESP_START))
    checked = subprocess.run(
        ["fsck.vfat", "-n", "-v", str(system)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert "2 FATs, 32 bit entries" in checked.stdout
    assert f"{ESP_START // SECTOR} hidden sectors" in checked.stdout
    listed = subprocess.run(
        ["mdir", "-/", "-b", "-i", str(system), "::"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.splitlines() == ["::/EFI/", "::/EFI/BOOT/", "::/EFI/BOOT/BOOTX64.EFI"]
    copied = ["mcopy", "-i", str(system), "::/EFI/BOOT/BOOTX64.EFI", str(program)]
    subprocess.run(copied, check=True)
    content = program.read_bytes()
    (header,) = struct.unpack_from("<L", content, 0x3C)
    assert content[:2] == b"MZ"
    assert content[header : header + 6] == b"PE\0\0" + struct.pack("<H", 0x8664)
    assert b"(,gpt1)/boot/grub" in content


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    """Root takes 8 MiB, what is in front of it 64 MiB, and what is behind it 1 MiB."""
    with pytest.raises(DiskTooSmallError) as caught:
        assemble(tmp_path / "disk", "hybrid", size=72 * MIB)
    assert str(caught.value) == (
        "the disk of 72 MiB is too small: the root file system and what lies around it take "
        "73 MiB\n  do: set disk_size to 73MiB or more"
    )
    assemble(tmp_path / "fits", "hybrid", size=73 * MIB)


def test_a_larger_disk_takes_no_more_room(hybrid: Path, tmp_path: Path) -> None:
    large = assemble(tmp_path / "disk", "hybrid", size=100 * SIZE)
    assert large.stat().st_blocks <= hybrid.stat().st_blocks + 8 * MIB // SECTOR


def test_layouts_are_known_by_their_names() -> None:
    assert {name: layout.name for name, layout in LAYOUTS.items()} == {
        "bare": "bare",
        "hybrid": "hybrid",
        "mbr": "mbr",
    }


def test_needs_of_the_host() -> None:
    stages = {
        name: AssembleDisk(layout=layout, size=SIZE, tools={}) for name, layout in LAYOUTS.items()
    }
    assert stages["bare"].requires == ()
    assert stages["mbr"].requires == ("disk",)
    assert stages["hybrid"].requires == ("disk", "disk for UEFI")


def test_a_changed_tool_changes_the_key() -> None:
    layout = LAYOUTS["hybrid"]
    keys = {
        AssembleDisk(layout=layout, size=SIZE, tools={"mtools": version}).key
        for version in ("4.0.32", "4.0.43")
    }
    assert len(keys) == 2


def test_a_table_without_partitions(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(4 * MIB)
    sfdisk.write_table(disk, "label: gpt\n")
    assert sfdisk.partition_starts(disk) == {}
    with pytest.raises(GuestSilentError, match="has no partition 1, where root is to lie"):
        find_root(disk)


def test_a_bare_file_system_of_the_disks_size(tmp_path: Path) -> None:
    """There is no table, and nothing behind the file system until it grows at the first boot."""
    disk = assemble(tmp_path / "disk", "bare")
    root = (tmp_path / "disk/root.ext4").read_bytes()
    assert disk.read_bytes() == root + bytes(SIZE - len(root))
    assert read_at(disk, 510, 2) != b"\x55\xaa"
    checked = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    with pytest.raises(DiskTooSmallError) as caught:
        assemble(tmp_path / "small", "bare", size=7 * MIB)
    assert str(caught.value) == (
        "the disk of 7 MiB is too small: the root file system takes 8 MiB\n"
        "  do: set disk_size to 8MiB or more"
    )


def take_apart(disk: Path, layout: str, folder: Path) -> dict[str, Any]:
    """Returns the facts of a base image that has the layout, and writes its head to the folder."""
    folder.mkdir()
    start, tail = LAYOUTS[layout].root_start, LAYOUTS[layout].tail
    (folder / HEAD).write_bytes(read_at(disk, 0, start))
    told = subprocess.run(["sfdisk", "-d", str(disk)], capture_output=True, text=True, check=True)
    room = (SIZE - tail - start) // SECTOR
    script = re.sub(rf"size= *{room}\b", "size={size}", told.stdout)
    script = re.sub(r"^(device|last-lba):.*\n", "", script, flags=re.MULTILINE)
    return {"layout": layout, "root_start": start, "tail": tail, "table": script}


@pytest.mark.parametrize("layout", ["hybrid", "mbr"])
def test_what_a_base_image_has_of_the_layout_is_kept(tmp_path: Path, layout: str) -> None:
    """Its table with all names, its boot code and everything in front of root stay."""
    base = assemble(tmp_path / "base", layout)
    with base.open("r+b") as file:
        os.pwrite(file.fileno(), b"their boot code", 16)
        os.pwrite(file.fileno(), b"their core", 600_000)
    kept = take_apart(base, layout, tmp_path / "same")
    again = assemble(tmp_path / "same", layout, letter="b", kept=kept)
    start, tail = LAYOUTS[layout].root_start, LAYOUTS[layout].tail
    for at, room in ((0, start), (SIZE - tail, tail)):
        assert read_at(again, at, room) == read_at(base, at, room)
    take_apart(base, layout, tmp_path / "larger")
    larger = assemble(tmp_path / "larger", layout, size=2 * SIZE, letter="b", kept=kept)
    assert read_table(larger)["id"] == read_table(base)["id"]
    first = read_table(larger)["partitions"][0]
    assert (first["start"] + first["size"]) * SECTOR == 2 * SIZE - LAYOUTS[layout].tail
    verified = subprocess.run(
        ["sfdisk", "--verify", str(larger)], capture_output=True, text=True, check=True
    )
    assert (verified.stderr, "No errors detected." in verified.stdout) == ("", True)
    assert read_at(larger, 0, 440) == read_at(base, 0, 440)
    table = 34 * SECTOR
    assert read_at(larger, table, start - table) == read_at(base, table, start - table)
    with pytest.raises(DiskTooSmallError):
        take_apart(base, layout, tmp_path / "small")
        assemble(tmp_path / "small", layout, size=8 * MIB, kept=kept)


def test_another_layout_is_not_kept(tmp_path: Path) -> None:
    base = assemble(tmp_path / "base", "hybrid")
    kept = take_apart(base, "hybrid", tmp_path / "mbr")
    disk = assemble(tmp_path / "mbr", "mbr", kept=kept)
    assert read_table(disk)["label"] == "dos"
    assert sfdisk.partition_starts(disk) == {1: MIB}


def test_grub_has_more_built_in_for_a_base_image(tmp_path: Path) -> None:
    """Its own update-grub may ask for more modules than ours. Disks from scratch stay small."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        source = make_root(folder)
        if folder == theirs:
            source = replace(source, facts={**source.facts, "system": {}})
        stage = AssembleDisk(inputs=(root("a"),), layout=LAYOUTS["mbr"], size=SIZE, tools={})
        stage.run([source], make_context(folder))
    cores = [read_at(each / "out" / DISK, SECTOR, MIB - SECTOR) for each in (ours, theirs)]
    assert len(cores[0].rstrip(b"\0")) < len(cores[1].rstrip(b"\0"))
