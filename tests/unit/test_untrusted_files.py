"""Files of an image that were made to exhaust the host that reads them."""

from __future__ import annotations

import gzip
import lzma
import resource
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from pipeline.disk import ext4, initramfs
from pipeline.errors import FileSystemError, KernelError
from pipeline.model import MIB
from pipeline.tools import run


def make_root(folder: Path, *names: str) -> Path:
    tree, image = folder / "tree", folder / "root.ext4"
    tree.mkdir()
    for name in names:
        (tree / name).touch()
    (tree / "link").symlink_to("a" * 100)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), "8M"], check=True)
    return image


def set_size(image: Path, name: str, size: int) -> None:
    command = f"set_inode_field {name} size {size}"
    subprocess.run(["debugfs", "-w", "-R", command, image], check=True, capture_output=True)


def test_a_link_that_is_longer_than_links_can_be(tmp_path: Path) -> None:
    image = make_root(tmp_path)
    tree, path = ext4.FileSystem(image, 0), PurePosixPath("/link")
    assert tree.read_link(path) == PurePosixPath("/", "a" * 100)
    set_size(image, "/link", 400_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tree.read_link(path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
    set_size(image, "/link", (1 << 34) + 100)
    assert tree.read_link(path) is None


def test_a_folder_that_is_larger_than_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_root(tmp_path, *(f"{number:0100}" for number in range(100)))
    tree = ext4.FileSystem(image, 0)
    assert len(tree.names(PurePosixPath("/"))) > 100
    assert tree.exists(PurePosixPath("/link")) and not tree.exists(PurePosixPath("/lost"))
    monkeypatch.setattr(ext4, "TEXT_LIMIT", 4096)
    with pytest.raises(FileSystemError) as caught:
        tree.names(PurePosixPath("/"))
    assert str(caught.value) == (
        "a file or folder in the image is described by more than 8 KiB\n"
        "  do: choose another base image: this one is damaged, or was made to harm"
    )


def test_a_program_that_prints_without_end() -> None:
    assert run.capture(["yes"], most=10_000) == 5000 * "y\n"
    assert run.capture(["cat"], input="text\n", most=10_000) == "text\n"
    code = "import sys; sys.stderr.write('complaint\\n' * 100_000); sys.exit(3)"
    with pytest.raises(run.ToolError) as caught:
        run.capture([sys.executable, "-c", code], most=10_000)
    assert caught.value.status == 3 and caught.value.output.endswith("complaint\n")
    with pytest.raises(run.ToolError) as caught:
        run.capture(["sleep", "60"], most=10_000, timeout=0.2)
    assert caught.value.output == "it had not ended after 0.2 s"


def refused(folder: Path, content: bytes) -> str:
    file = folder / "initrd.img"
    file.write_bytes(content)
    with pytest.raises(KernelError) as caught:
        initramfs.list_files(file, folder)
    return caught.value.what.removeprefix("the initramfs cannot be read: ")


def test_an_initramfs_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [initramfs.Entry(f"{number:0500}", b"") for number in range(90)]
    initramfs.write(tmp_path / "one", entries)
    archive = (tmp_path / "one").read_bytes()
    assert len(archive) < MIB
    (tmp_path / "two").write_bytes(2 * archive + gzip.compress(archive))
    assert len(initramfs.list_files(tmp_path / "two", tmp_path)) == 270

    # The limits hold for all archives together.
    with monkeypatch.context() as patch:
        patch.setattr(initramfs, "_ENTRY_LIMIT", 250)
        assert refused(tmp_path, 3 * archive) == "it holds more files than any that boots"
        assert refused(tmp_path, 2 * archive + gzip.compress(archive)) == (
            "it holds more files than any that boots"
        )
        patch.setattr(initramfs, "_ENTRY_LIMIT", 200_000)
        patch.setattr(initramfs, "_NAMES_LIMIT", 100_000)
        assert refused(tmp_path, 3 * archive) == "it holds more files than any that boots"
    initramfs.write(tmp_path / "none", [])
    none = (tmp_path / "none").read_bytes()
    assert refused(tmp_path, 200_001 * none) == "it holds more files than any that boots"
    assert refused(tmp_path, 200_000 * gzip.compress(b"")) == (
        "it has many parts in which nothing is"
    )


def test_an_initramfs_whose_window_is_too_large(tmp_path: Path) -> None:
    packed = bytearray(lzma.compress(bytes(100), format=lzma.FORMAT_ALONE))
    packed[1:5] = (1 << 30).to_bytes(4, "little")  # the size of its window
    assert refused(tmp_path, bytes(packed)) == "Memory usage limit exceeded"
