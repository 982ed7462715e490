"""A root file system unpacked for a shell is as the file system has it."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root's rights")


def describe(tree: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that has to arrive."""
    described: dict[str, tuple[object, ...]] = {}
    paths = [tree, *tree.rglob("*")]
    for path in paths:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = os.readlink(path) if path.is_symlink() else ""
        names = sorted(os.listxattr(path, follow_symlinks=False))
        attributes = tuple((name, os.getxattr(path, name)) for name in names)
        inode = sorted(
            str(other.relative_to(tree))
            for other in paths
            if kind == stat.S_IFREG and other.lstat().st_ino == status.st_ino
        )
        told = (oct(status.st_mode), status.st_uid, status.st_gid, content, link, attributes, inode)
        described[str(path.relative_to(tree))] = told
    return described


def make_image(tree: Path, image: Path) -> None:
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(image), "16M"]
    subprocess.run(words, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/sbin"})


def unpack(image: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Unpacks in a process of its own, which limits how large files become."""
    target.mkdir()
    script = "import sys; from pipeline.tools.open_tree import unpack; unpack(*sys.argv[1:])"
    argv = [sys.executable, "-c", script, str(image), str(target)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@needs_root
def test_what_is_unpacked_is_what_was_packed(tmp_path: Path) -> None:
    tree = tmp_path / "packed"
    folder = tree / 'a "b" c' / ("n" * 255)
    folder.mkdir(parents=True)
    for name in ("able", "plain", "set", b"bytes \xff".decode(errors="surrogateescape"), "\x1b[2J"):
        (folder / name).write_text(f"content of {name!a}")
    (folder / "empty").touch()
    os.link(folder / "plain", tree / "same")
    (tree / "link").symlink_to("x" * 200)
    os.chown(tree / "link", 7, 8, follow_symlinks=False)
    os.mkfifo(tree / "pipe", 0o640)
    os.chown(folder / "set", 1000, 60_000)
    (folder / "set").chmod(0o6711)
    folder.chmod(0o3770)
    able = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(folder / "able", "security.capability", able)
    os.setxattr(folder / "able", "user.note", b'"quoted" (5) = \x00')
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(folder / "plain", "system.posix_acl_access", access)
    (tree / "lost+found").mkdir(mode=0o700)
    image = tmp_path / "root.ext4"
    make_image(tree, image)

    done = unpack(image, tmp_path / "unpacked")
    assert done.returncode == 0, done.stderr
    assert describe(tmp_path / "unpacked") == describe(tree)


@needs_root
def test_what_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    tree = tmp_path / "packed"
    tree.mkdir()
    with (tree / "hole").open("wb") as file:
        file.truncate(64 << 20)  # larger than the file system
    make_image(tree, tmp_path / "root.ext4")
    done = unpack(tmp_path / "root.ext4", tmp_path / "unpacked")
    assert "UnpackError: /hole cannot be unpacked: " in done.stderr
    (tree / "hole").rename(tree / "line\nfeed")
    os.truncate(tree / "line\nfeed", 0)
    (tree / "folder\n").mkdir()
    make_image(tree, tmp_path / "root.ext4")
    done = unpack(tmp_path / "root.ext4", tmp_path / "other")
    assert done.returncode == 1 and "UnpackError: " in done.stderr
