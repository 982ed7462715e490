"""The file that a site boots: a disk as it is, or compressed where the site unpacks it."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import StageFailedError
from pipeline.model import Progress, Sha256
from pipeline.sparse import CHUNK
from pipeline.stages.base import Context, Stage
from pipeline.stages.disk import DISK, PASSED_ON, AssembleDisk
from pipeline.store import Artifact

IMAGE = "image.raw.gz"
_HEADER = bytes.fromhex("1f8b0800000000000003")  # deflate, no name, no time, Unix
_FINAL_BLOCK = bytes.fromhex("0300")  # deflate's last block, empty
_LEVEL = 3  # ISA-L's best: measured 20 times as fast as gzip -6 and within 10 % of its size
_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """The file that a site boots, as it lies in the store."""

    file: Path
    bytes: int
    sha256: Sha256 | None
    """None for a raw image, which is the disk itself: the stage `hash` has it."""
    md5: str | None
    disk_bytes: int


def describe_image(artifact: Artifact) -> ImageFile:
    """The image in the artifact of `CompressImage`, or of `AssembleDisk` where that is the image.

    Raises ValueError for one of another stage.
    """
    facts = artifact.facts
    if artifact.stage == CompressImage.name:
        told = {name: facts[name] for name in ("bytes", "sha256", "md5", "disk_bytes")}
        return ImageFile(file=artifact.file(IMAGE), **told)
    if artifact.stage == AssembleDisk.name:
        size = facts["bytes"]
        return ImageFile(
            file=artifact.file(DISK), bytes=size, sha256=None, md5=None, disk_bytes=size
        )
    raise ValueError(f"the stage {artifact.stage} makes no image")


@dataclass(frozen=True, kw_only=True)
class CompressImage(Stage):
    """The disk as one gzip member, by ISA-L's deflate.

    Chunks are deflated independently, on several threads, and a chunk of zeros is deflated
    once for all: the time goes with the data and hardly with the disk's size. The facts tell where
    each chunk with data lies in the file, so that it can be unpacked without inflating the zeros.
    """

    name: ClassVar[str] = "image"
    revision: ClassVar[int] = 2
    cores: ClassVar[int] = _THREADS

    tools: Mapping[str, str]
    """Versions of the libraries whose output is the result."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (disk,) = inputs
        context.progress.step("compressing")
        with disk.file(DISK).open("rb") as source, (context.out / IMAGE).open("wb") as target:
            facts = _Gzip(source.fileno(), target, context.progress).write()
        passed_on = {name: disk.facts.get(name) for name in ("root_sha256", "identities")}
        passed_on |= {name: disk.facts[name] for name in PASSED_ON if name in disk.facts}
        return {**facts, **passed_on}


@dataclass(frozen=True, kw_only=True)
class HashDisk(Stage):
    """The SHA-256 of the whole disk, for those who unpack the image and compare."""

    name: ClassVar[str] = "hash"

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        (disk,) = (artifact.file(DISK) for artifact in inputs)
        context.progress.step("computing the disk's digest")
        return {"sha256": sparse.sha256(disk, context.progress.advance)}


class _Gzip:
    """Writes the file at `source` to `target`, in order, deflating ahead on threads."""

    def __init__(self, source: int, target: Any, progress: Progress) -> None:
        self._source = source
        self._size = os.fstat(source).st_size
        self._target = target
        self._progress = progress
        self._written = 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._zeros: Future[bytes] = Future()
        self._zeros.set_result(_deflate_zeros())

    def write(self) -> Mapping[str, Any]:
        from isal import isal_zlib

        crc, chunks = 0, []
        self._put(_HEADER)
        for offset, raw, packed in self._packed():
            crc = isal_zlib.crc32(raw, crc)
            if raw is not sparse.ZEROS:
                chunks.append([offset, self._written, len(packed)])
            self._put(packed)
            self._progress.advance(offset + len(raw), self._size)
        self._put(_FINAL_BLOCK)
        self._put(struct.pack("<LL", crc, self._size % (1 << 32)))
        return {
            "bytes": self._written,
            "sha256": self._sha256.hexdigest(),
            "md5": self._md5.hexdigest(),
            "disk_bytes": self._size,
            "chunks": chunks,
        }

    def _packed(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Offset, content and deflated content of each chunk, in order; at most a few ahead."""
        ahead: deque[tuple[int, bytes, Future[bytes]]] = deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            for offset, raw in sparse.all_chunks(self._source, self._size):
                packed = self._zeros if raw is sparse.ZEROS else pool.submit(_deflate, raw)
                ahead.append((offset, raw, packed))
                if len(ahead) > 2 * _THREADS:
                    offset, raw, packed = ahead.popleft()
                    yield offset, raw, packed.result()
            for offset, raw, packed in ahead:
                yield offset, raw, packed.result()

    def _put(self, data: bytes) -> None:
        self._target.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self._written += len(data)


def _deflate(raw: bytes) -> bytes:
    """Raw deflate blocks that refer to nothing before them and end on a byte."""
    from isal import isal_zlib

    packer = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -15)
    return bytes(packer.compress(raw) + packer.flush(isal_zlib.Z_FULL_FLUSH))


def _deflate_zeros() -> bytes:
    """A chunk of zeros, deflated as small as possible: a large disk has thousands."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(sparse.ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)


def data_bytes(image: Artifact) -> int:
    """How many bytes `unpack_image` writes, without holes."""
    if image.stage == CompressImage.name:
        return len(image.facts["chunks"]) * CHUNK
    return describe_image(image).file.stat().st_blocks * 512


def unpack_image(image: Artifact, disk: Path) -> None:
    """Makes a sparse file of an image: the disk that a machine of it gets.

    A compressed one is unpacked as a node would, but without inflating zeros. Raises
    StageFailedError if a byte of it is not what `CompressImage` wrote.
    """
    if image.stage == CompressImage.name:
        _unpack(image, disk)
        return
    described = describe_image(image)
    with disk.open("wb") as copy:
        copy.truncate(described.disk_bytes)
        sparse.copy_into(described.file, copy.fileno(), 0)


def _unpack(image: Artifact, disk: Path) -> None:
    facts = image.facts
    digest = hashlib.sha256()
    ahead: deque[Future[None]] = deque()
    with (
        image.file(IMAGE).open("rb") as packed,
        disk.open("wb") as unpacked,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        unpacked.truncate(facts["disk_bytes"])
        for offset, start, length in facts["chunks"]:
            _hash_until(packed, start, digest)
            data = packed.read(length)
            digest.update(data)
            ahead.append(pool.submit(_inflate, data, unpacked.fileno(), offset))
            if len(ahead) > 2 * _THREADS:
                ahead.popleft().result()
        _hash_until(packed, facts["bytes"], digest)
        for inflating in ahead:
            inflating.result()
    if Sha256(digest.hexdigest()) != facts["sha256"]:
        raise _damaged()


def _inflate(data: bytes, descriptor: int, offset: int) -> None:
    from isal import isal_zlib

    try:
        inflated = isal_zlib.decompressobj(-15).decompress(data + _FINAL_BLOCK, CHUNK)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stubs hide what it is
        raise _damaged() from error
    sparse.write_at(descriptor, inflated, offset)


def _damaged() -> StageFailedError:
    return StageFailedError(
        "the image is damaged", todo="run the same command again: it is made anew"
    )


def _hash_until(packed: Any, position: int, digest: Any) -> None:
    while packed.tell() < position:
        digest.update(packed.read(min(CHUNK, position - packed.tell())))
