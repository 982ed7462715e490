"""A base image as the raw disk that is in it, whatever it comes as."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.errors import DiskTooSmallError, ImageFormatError, StageFailedError
from pipeline.model import GIB, MIB, Progress, format_size
from pipeline.sources import download, unpacking
from pipeline.stages.base import HERE_ONLY, Context, LocalFile, Stage
from pipeline.store import Artifact, Store
from pipeline.tools import disk_formats, qemu_img
from pipeline.tools.disk_formats import HEAD, DiskFormat

BASE = "base.raw"
_COUNTED = 16 * GIB  # unpacking goes on so far, to tell how large a disk is that is too large


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a file is, as far as its beginning tells."""

    format: str
    compression: str | None
    bytes: int | None
    """The size of the disk, where the headers tell it."""


@dataclass(frozen=True, kw_only=True)
class BaseDisk(Stage):
    """The disk in a base image, raw and sparse: unpacked, and converted where it is a container.

    The image is an input, made by `Download`, or a file of this host; it is only read.
    """

    name: ClassVar[str] = "base"

    format: str | None = None
    """The format that the definition declares; None: as the headers say."""
    most_bytes: int
    """A larger disk than this is refused."""
    file: LocalFile | None = None
    """Here the digest is the SHA-256 of the content alone, as a definition pins it."""
    location: str = field(default="", metadata=HERE_ONLY)
    """What messages call the image: its URL or file."""
    stamp: str | None = field(default=None, metadata=HERE_ONLY)
    """What `stamp_of` said when the file's digest was taken; without it the digest is taken again,
    to see whether the file is the one that was planned with."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        source = self._source(inputs)
        where = self.location or str(source)
        try:
            before = stamp_of(source)
            head = _read_head(source)
        except OSError as error:
            raise StageFailedError(
                f"the base image cannot be read: {error.strerror}",
                where=where,
                todo="run the same command again, when it is there",
            ) from error
        compression = disk_formats.detect_compression(head)
        unpacked = source
        if compression is not None:
            unpacked = context.work / "unpacked"
            self._unpack(source, compression, unpacked, where, context)
        with unpacking.interruptible() as check:
            disk = disk_formats.read_format(
                unpacked,
                where,
                self.format,
                check_size=lambda size: self._check_size(size, where),
                check=check,
            )
        self._write(unpacked, disk, where, context, linked=not (self.file or compression))
        self._check_unchanged(source, before, context.progress)
        return {"format": disk.name, "compression": compression, "bytes": disk.bytes}

    def _source(self, inputs: Sequence[Artifact]) -> Path:
        if self.file is not None:
            return self.file.path
        (fetched,) = inputs
        return fetched.file(download.FILE)

    def _unpack(
        self, source: Path, compression: str, target: Path, where: str, context: Context
    ) -> None:
        context.progress.step(f"unpacking {format_size(source.stat().st_size)} of {compression}")
        head = unpacking.read_head(source, compression, where)
        name = _check_inner(head, where, self.format)
        size = disk_formats.peek_size(name, head)
        if size is not None and size <= disk_formats.LARGEST:
            self._check_size(size, where)
        Store(context.store).check_space(source.stat().st_size)
        try:
            unpacking.unpack(
                source,
                compression,
                target,
                self._limits(name),
                where=where,
                log=context.log,
                progress=context.progress,
            )
        except unpacking.TooLarge as error:
            if name == "raw":
                raise self._too_small(error.size, where) from error
            raise ImageFormatError(
                "is larger than an image of its disk can be",
                where=where,
                todo="fetch it again, or convert it with a program that its publisher trusts",
            ) from error

    def _limits(self, name: str) -> unpacking.Limits:
        """How much a packed image may unpack to."""
        if name == "raw":  # or a fixed VHD, which has a footer of one sector more
            most = self.most_bytes + disk_formats.SECTOR
            return unpacking.Limits(most=most, counted=max(_COUNTED, 8 * self.most_bytes))
        most = self.most_bytes + self.most_bytes // 8 + 64 * MIB  # its tables are far less
        return unpacking.Limits(most=most, counted=most)

    def _check_size(self, size: int, where: str) -> None:
        if size > self.most_bytes:
            raise self._too_small(size, where)

    def _too_small(self, size: int | None, where: str) -> DiskTooSmallError:
        if size is None:
            return DiskTooSmallError(
                f"the disk in the base image is larger than disk_size "
                f"({format_size(self.most_bytes)}), and was not unpacked to its end",
                where=where,
                todo="set disk_size to what its publisher says that it needs",
            )
        return DiskTooSmallError(
            f"the disk in the base image has {format_size(size)}, and disk_size is "
            f"{format_size(self.most_bytes)}",
            where=where,
            todo=f"set disk_size to {-(-size // MIB)} MiB or more",
        )

    def _write(
        self, image: Path, disk: DiskFormat, where: str, context: Context, *, linked: bool
    ) -> None:
        """Makes `base.raw` of an unpacked image, without a copy where the file is the store's."""
        target = context.out / BASE
        if disk.name != "raw":
            context.progress.step(
                f"converting {format_size(disk.bytes)} of {disk_formats.called(disk.name)}"
            )
            qemu_img.convert(
                image, disk, target, where=where, log=context.log, progress=context.progress
            )
        elif image.parent == context.work:
            image.rename(target)
        elif linked:
            os.link(image, target)
        else:
            context.progress.step(f"copying {format_size(disk.bytes)}")
            _copy(image, target, disk.bytes, context.progress)

    def _check_unchanged(self, source: Path, before: str, progress: Progress) -> None:
        """The file is the one that the plan was made with. Raises StageFailedError."""
        if self.file is None:
            return
        unchanged = before == stamp_of(source)
        if unchanged and self.stamp is None:
            progress.step("computing the base image's digest")
            unchanged = sparse.sha256(source, progress.advance) == self.file.digest
        elif unchanged:
            unchanged = before == self.stamp
        if not unchanged:
            raise StageFailedError(
                f"{source} was changed after the plan was made", todo="run the same command again"
            )


def look(file: Path, where: str, declared: str | None = None) -> Looked:
    """What a base image is, without unpacking more than its beginning.

    Raises ImageFormatError as far as that tells of a fault.
    """
    compression = disk_formats.detect_compression(_read_head(file))
    if compression is None:
        disk = disk_formats.read_format(file, where, declared)
        return Looked(format=disk.name, compression=None, bytes=disk.bytes)
    head = unpacking.read_head(file, compression, where)
    name = _check_inner(head, where, declared)
    return Looked(format=name, compression=compression, bytes=disk_formats.peek_size(name, head))


def stamp_of(file: Path) -> str:
    """What changes with each change of a file: which it is, its size and its time."""
    status = file.stat()
    return f"{status.st_dev}:{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _check_inner(head: bytes, where: str, declared: str | None) -> str:
    """The format that a packed image begins like. Raises ImageFormatError."""
    again = disk_formats.detect_compression(head)
    if again is not None:
        raise ImageFormatError(
            f"is packed twice: what was unpacked is {again}",
            where=where,
            todo="unpack it once, and name what comes out",
        )
    name = disk_formats.detect_format(head, where)
    if not (name == "raw" and declared == "vpc"):  # a fixed VHD begins like a raw disk
        disk_formats.check_declared(name, declared, where)
    return name


def _read_head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEAD)


def _copy(source: Path, target: Path, size: int, progress: Progress) -> None:
    """Copies a file's data; zeros become holes."""
    with (
        unpacking.interruptible() as check,
        source.open("rb") as opened,
        target.open("wb") as written,
    ):
        os.ftruncate(written.fileno(), size)
        for offset, chunk in sparse.data_chunks(opened.fileno(), size):
            sparse.write_at(written.fileno(), chunk, offset)
            check()
            progress.advance(offset + len(chunk), size)
