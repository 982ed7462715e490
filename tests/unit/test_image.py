"""Images: raw, the image is the disk itself; compressed, any gunzip makes the disk of it again."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from files import extents, make_context, sizes, write_sparse
from hypothesis import given, settings
from soak import examples

from pipeline.errors import StageFailedError
from pipeline.model import ContentKey, Sha256
from pipeline.sparse import CHUNK
from pipeline.stages.disk import DISK
from pipeline.stages.image import (
    IMAGE,
    CompressImage,
    ImageFile,
    describe_image,
    unpack_image,
)
from pipeline.store import Artifact


@dataclass(frozen=True)
class Compressed:
    disk: Path
    image: Artifact


def compress(folder: Path, size: int, data: list[tuple[int, bytes, int]]) -> Compressed:
    disk = folder / DISK
    write_sparse(disk, size, data)
    made = Artifact(
        stage="disk", key=ContentKey("k"), folder=folder, facts={"root_sha256": "0" * 64}
    )
    context = make_context(folder)
    facts: Any = CompressImage(tools={}).run([made], context)
    image = Artifact(stage="image", key=ContentKey("k"), folder=context.out, facts=facts)
    return Compressed(disk=disk, image=image)


@settings(max_examples=examples(25), deadline=None)
@given(size=sizes, data=extents)
def test_gunzip_gives_the_disk(size: int, data: list[tuple[int, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = compress(Path(folder), size, data)
        packed = made.image.file(IMAGE)
        assert gzip.decompress(packed.read_bytes()) == made.disk.read_bytes()
        assert made.image.facts["bytes"] == packed.stat().st_size
        assert made.image.facts["sha256"] == hashlib.sha256(packed.read_bytes()).hexdigest()
        assert made.image.facts["md5"] == hashlib.md5(packed.read_bytes()).hexdigest()
        unpacked = Path(folder, "unpacked")
        unpack_image(made.image, unpacked)
        assert unpacked.read_bytes() == made.disk.read_bytes()


def test_the_gzip_program_takes_it_as_one_member(tmp_path: Path) -> None:
    """A Nimbus node runs gunzip; `gzip -l` reads the size of the last member only."""
    size = 5 * CHUNK + 17
    made = compress(tmp_path, size, [(CHUNK + 5, b"data", 1000), (4 * CHUNK, b"\xff", 3)])
    packed = str(made.image.file(IMAGE))
    subprocess.run(["gzip", "--test", "--suffix=.gz", packed], check=True)
    listed = subprocess.run(["gzip", "-l", packed], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[5] == str(size)


@settings(max_examples=examples(25), deadline=None)
@given(size=sizes, data=extents)
def test_a_raw_image_is_the_disk_itself(size: int, data: list[tuple[int, bytes, int]]) -> None:
    """No stage has to make it from the disk, and a machine's disk is a copy of it."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, DISK)
        write_sparse(disk, size, data)
        image = Artifact(
            stage="disk", key=ContentKey("k"), folder=Path(folder), facts={"bytes": size}
        )
        assert describe_image(image) == ImageFile(
            file=disk, bytes=size, sha256=None, md5=None, disk_bytes=size
        )
        unpack_image(image, Path(folder, "unpacked"))
        assert Path(folder, "unpacked").read_bytes() == disk.read_bytes()


def test_a_copy_of_a_raw_image_is_sparse(tmp_path: Path) -> None:
    disk = tmp_path / DISK
    write_sparse(disk, 500 * CHUNK, [(100 * CHUNK + 7, b"data", 1)])
    facts = {"bytes": 500 * CHUNK}
    image = Artifact(stage="disk", key=ContentKey("k"), folder=tmp_path, facts=facts)
    unpack_image(image, tmp_path / "unpacked")
    assert (tmp_path / "unpacked").stat().st_blocks * 512 <= 2 * CHUNK
    assert (tmp_path / "unpacked").stat().st_size == 500 * CHUNK


def test_a_compressed_image_is_described(tmp_path: Path) -> None:
    made = compress(tmp_path, 3 * CHUNK, [(5, b"data", 1000)])
    packed = made.image.file(IMAGE)
    assert describe_image(made.image) == ImageFile(
        file=packed,
        bytes=packed.stat().st_size,
        sha256=Sha256(hashlib.sha256(packed.read_bytes()).hexdigest()),
        md5=hashlib.md5(packed.read_bytes()).hexdigest(),
        disk_bytes=3 * CHUNK,
    )


def test_other_artifacts_are_no_images(tmp_path: Path) -> None:
    root = Artifact(stage="root", key=ContentKey("k"), folder=tmp_path)
    with pytest.raises(ValueError, match="the stage root makes no image"):
        describe_image(root)


def test_zeros_cost_no_memory_and_hardly_a_byte(tmp_path: Path) -> None:
    made = compress(tmp_path, 2000 * CHUNK, [])
    assert made.image.file(IMAGE).stat().st_size < 2000 * CHUNK / 1000
    assert made.image.facts["chunks"] == []


@pytest.mark.parametrize("where", [12, -6, "middle"])
def test_a_damaged_image_is_not_booted(tmp_path: Path, where: int | str) -> None:
    made = compress(tmp_path, 2 * CHUNK, [(0, bytes(range(256)), 4000)])
    content = bytearray(made.image.file(IMAGE).read_bytes())
    content[len(content) // 2 if isinstance(where, str) else where] ^= 1
    made.image.file(IMAGE).write_bytes(content)
    with pytest.raises(StageFailedError, match="the image is damaged"):
        unpack_image(made.image, tmp_path / "unpacked")
