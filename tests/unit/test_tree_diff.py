"""Root file systems made by mke2fs, read by our own reader; debugfs says the same of each file."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.build.compare import compare_units
from pipeline.disk.ext4_reader import ROOT, Reader
from pipeline.disk.tree_diff import Change, compare_trees
from pipeline.errors import FileSystemError

FEATURES = {
    "ext4": ["-t", "ext4", "-O", "^64bit,^metadata_csum"],
    "ext4 of today": ["-t", "ext4", "-b", "4096"],
    "ext2 of small blocks": ["-t", "ext2", "-b", "1024"],
}


def make(tree: Path, image: Path, kind: str = "ext4") -> Path:
    image.unlink(missing_ok=True)
    size = ["-E", "root_owner=0:0", "-d", str(tree), str(image), "64M"]
    subprocess.run(["mke2fs", "-q", "-F", *FEATURES[kind], *size], check=True)
    return image


def make_tree(tree: Path) -> None:
    draw = random.Random(7)
    (tree / "etc/deep/er").mkdir(parents=True)
    (tree / "etc/motd").write_text("welcome\n")
    (tree / "etc/deep/er/empty").touch()
    (tree / "etc/short").symlink_to("motd")
    (tree / "etc/long").symlink_to("/etc/" + "x" * 90)
    (tree / "big").write_bytes(draw.randbytes(9_000_001))
    (tree / "many").mkdir()
    for number in range(700):
        (tree / "many" / f"a file with a long name, number {number}").write_text(str(number))
    with (tree / "holes").open("wb") as file:
        for _ in range(40):
            file.seek(draw.randrange(200) * 65_536)
            file.write(draw.randbytes(5000))


def compare(old: Path, new: Path) -> list[Change]:
    with Reader(old) as one, Reader(new) as other:
        return [*compare_trees(one, other)]


@pytest.mark.parametrize("kind", FEATURES)
def test_every_file_reads_as_it_was_written(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    image = make(tree, tmp_path / "image", kind)
    with Reader(image) as reader:
        for path in sorted(tree.rglob("*")):
            name = str(path.relative_to(tree))
            if path.is_symlink():
                folder = reader.find(str(path.parent.relative_to(tree)))
                assert folder is not None
                found = reader.inode(reader.folder(folder)[path.name.encode()])
                assert reader.link(found).decode() == os.readlink(path)
                continue
            inode = reader.find(name)
            assert inode is not None, name
            assert inode.mode == path.stat().st_mode
            if path.is_dir():
                assert {each.decode() for each in reader.folder(inode)} == set(os.listdir(path))
            else:
                assert b"".join(reader.content(inode)) == path.read_bytes(), name
        through = reader.find("etc/short")
        assert through is not None and b"".join(reader.content(through)) == b"welcome\n"
        assert reader.find("etc/long") is None and reader.find("etc/motd/x") is None
        told = subprocess.run(
            ["dumpe2fs", "-h", image], capture_output=True, text=True, check=True
        ).stdout
        figures = dict(re.findall(r"^(Block size|Block count|Free blocks): +(\d+)$", told, re.M))
        block = int(figures["Block size"])
        assert reader.bytes == int(figures["Block count"]) * block
        assert reader.used == reader.bytes - int(figures["Free blocks"]) * block


def test_differences(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    old = make(tree, tmp_path / "old")
    assert compare(old, make(tree, tmp_path / "same", "ext4 of today")) == []
    with (tree / "big").open("r+b") as file:
        file.seek(8_000_000)
        file.write(b"!")
    (tree / "etc/motd").write_text("hello\n")
    (tree / "etc/short").unlink()
    (tree / "etc/short").symlink_to("long")
    (tree / "holes").chmod(0o4755)
    shutil.rmtree(tree / "etc/deep")
    (tree / "etc/deep").write_text("a file now\n")
    (tree / "new/folder").mkdir(parents=True)
    (tree / "new/folder/file").write_text("new\n")
    changes = {change.path: change for change in compare(old, make(tree, tmp_path / "new"))}
    assert list(changes) == [
        "/big",
        "/etc/deep",
        "/etc/deep/er",
        "/etc/deep/er/empty",
        "/etc/motd",
        "/etc/short",
        "/holes",
        "/new",
        "/new/folder",
        "/new/folder/file",
    ]
    assert {path for path, change in changes.items() if change.content} == {"/big", "/etc/motd"}
    holes, short, deep = changes["/holes"], changes["/etc/short"], changes["/etc/deep"]
    assert holes.new is not None and holes.new.mode == 0o4755
    assert short.old is not None and short.new is not None
    assert (short.old.target, short.new.target) == ("motd", "long")
    assert deep.old is not None and deep.new is not None
    assert (deep.old.kind, deep.new.kind) == ("folder", "file")
    assert changes["/etc/deep/er"].new is None and changes["/new/folder/file"].old is None


def test_damaged_file_systems_raise_nothing_else(tmp_path: Path) -> None:
    """Bytes changed at random, mostly where the structure is: an answer or FileSystemError."""
    tree = tmp_path / "tree"
    make_tree(tree)
    image = make(tree, tmp_path / "image")
    whole = image.read_bytes()
    draw = random.Random(11)
    refused = 0
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(40):
            damaged[draw.randrange(1024, 700_000)] = draw.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            compare(image, tmp_path / "damaged")
        except FileSystemError:
            refused += 1
    assert refused > 0
    (tmp_path / "damaged").write_bytes(whole[: len(whole) // 32])
    with pytest.raises(FileSystemError), Reader(tmp_path / "damaged") as reader:
        for number in reader.folder(reader.inode(ROOT)).values():
            b"".join(reader.content(reader.inode(number)))


def test_units_that_boots_start() -> None:
    entry = {"kind": "link"}
    wants = "/etc/systemd/system/multi-user.target.wants"
    changes: list[dict[str, object]] = [
        {"path": f"{wants}/nginx.service", "old": None, "new": entry},
        {"path": f"{wants}/cron.service", "old": entry, "new": None},
        {"path": "/usr/lib/systemd/system/cron.service", "old": entry, "new": None},
        {"path": f"{wants}/moved.service", "old": entry, "new": None},
        {"path": "/usr/lib/systemd/system/a.target.requires/moved.service", "old": None}
        | {"new": entry},
        {"path": f"{wants}/both.service", "old": entry, "new": {**entry, "target": "x"}},
    ]
    assert compare_units(changes) == {"added": ["nginx.service"], "removed": ["cron.service"]}
