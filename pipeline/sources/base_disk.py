"""The raw disk in a base image, whatever format and compression the image has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline import sparse
from pipeline.disk import containers, convert, decompress, formats
from pipeline.disk.formats import HEAD, DiskFormat
from pipeline.errors import DiskTooSmallError, ImageFormatError, StageFailedError
from pipeline.model import GIB, MIB, Progress, Sha256, format_size
from pipeline.sources import download, unpacking
from pipeline.stages.base import HERE_ONLY, Context, LocalFile, Stage, key_of
from pipeline.store import Artifact, Store

BASE = "base.raw"
_COUNTED = 16 * GIB  # unpacking goes on this far, to tell how large a disk is that does not fit


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
    """Here the digest is the SHA-256 of the content alone, as a definition pins it; empty where
    nobody does."""
    location: str = field(metadata=HERE_ONLY)
    """What messages call the image: its URL or file."""
    stamp: str | None = field(default=None, metadata=HERE_ONLY)
    """What `stamp_of` said when the file's digest was taken. It is taken again before the file is
    used, to see whether that is the one that was planned with."""

    def run(self, inputs: Sequence[Artifact], context: Context) -> Mapping[str, Any]:
        source = self._source(inputs)
        try:
            before = stamp_of(source)
            self._check_content(source, before, context)
            head = _read_head(source)
        except OSError as error:
            raise StageFailedError(
                f"the base image cannot be read: {error.strerror}",
                where=self.location,
                todo="run the same command again, when it is there",
            ) from error
        compression = decompress.detect(head)
        unpacked = source
        if compression is not None:
            unpacked = context.work / "unpacked"
            self._unpack(source, compression, unpacked, context)
        with unpacking.interruptible() as check:
            disk = formats.read_format(
                unpacked, self.location, self.format, check_size=self._check_size, check=check
            )
        self._write(unpacked, disk, context, linked=not (self.file or compression))
        if self.file is not None and stamp_of(source) != before:
            raise self._changed(source)
        return {"format": disk.name, "compression": compression, "bytes": disk.bytes}

    def _source(self, inputs: Sequence[Artifact]) -> Path:
        if self.file is not None:
            return self.file.path
        (fetched,) = inputs
        return fetched.file(download.FILE)

    def _unpack(self, source: Path, compression: str, target: Path, context: Context) -> None:
        context.progress.step(f"unpacking {format_size(source.stat().st_size)} of {compression}")
        head = unpacking.read_head(source, compression, self.location)
        name = _check_inner(head, self.location, self.format)
        size = formats.peek_size(name, head)
        if size is not None and size <= containers.LARGEST:
            self._check_size(size)
        context.store.check_space(source.stat().st_size)
        if name == "raw":  # or a fixed VHD, which has a footer of one sector more
            most = self.most_bytes + containers.SECTOR
            counted = max(_COUNTED, 8 * self.most_bytes)
        else:  # a container's tables are far less than the eighth
            most = counted = self.most_bytes + self.most_bytes // 8 + 64 * MIB
        try:
            unpacking.unpack(
                source,
                compression,
                target,
                context,
                where=self.location,
                most=most,
                counted=counted,
            )
        except unpacking.TooLarge as error:
            if name == "raw":
                raise self._too_small(error.size) from error
            raise ImageFormatError(
                "is larger than an image of its disk can be",
                where=self.location,
                todo="fetch it again, or convert it with a program that its publisher trusts",
            ) from error

    def _check_size(self, size: int) -> None:
        if size > self.most_bytes:
            raise self._too_small(size)

    def _too_small(self, size: int | None) -> DiskTooSmallError:
        most = format_size(self.most_bytes)
        if size is None:
            what = f"is larger than disk_size ({most}), and was not unpacked to its end"
            needed = "what its publisher says that it needs"
        else:
            what = f"has {format_size(size)}, and disk_size is {most}"
            needed = f"{-(-size // MIB)} MiB or more"
        return DiskTooSmallError(
            f"the disk in the base image {what}",
            where=self.location,
            todo=f"set disk_size to {needed}",
        )

    def _write(self, image: Path, disk: DiskFormat, context: Context, *, linked: bool) -> None:
        """Makes `base.raw` of an unpacked image, without a copy where the file is the store's."""
        target, progress = context.out / BASE, context.progress
        if disk.name != "raw":
            progress.step(
                f"converting {format_size(disk.bytes)} of {formats.to_user_name(disk.name)}"
            )
            store = context.store
            store.check_space(convert.data_bytes(image, disk))
            convert.convert(
                image,
                disk,
                target,
                where=self.location,
                log=context.log,
                progress=progress,
                watch=store.check_space,
            )
        elif image.parent == context.work:
            image.rename(target)
        elif linked:
            os.link(image, target)
        else:
            progress.step(f"copying {format_size(disk.bytes)}")
            with unpacking.interruptible() as check:
                context.store.check_space(image.stat().st_blocks * 512)

                def advance(done: int, total: int) -> None:
                    check()
                    context.store.check_space()
                    progress.advance(done, total)

                sparse.copy_data(image, target, disk.bytes, advance)

    def _check_content(self, source: Path, stamp: str, context: Context) -> None:
        """The file is the one that the plan was made with. Raises StageFailedError."""
        if self.file is None:
            return
        if not self.file.digest:  # nobody pinned it
            if self.stamp not in (None, stamp):
                raise self._changed(source)
            return
        context.progress.step("computing the base image's digest")
        if sparse.sha256(source, context.progress.advance) != self.file.digest:
            if self.stamp is not None:
                digest_memory(context.store, source, self.stamp).unlink(missing_ok=True)
            raise self._changed(source)

    def _changed(self, source: Path) -> StageFailedError:
        return StageFailedError(
            f"{source} was changed after the plan was made", todo="run the same command again"
        )


def look(file: Path, where: str, declared: str | None = None) -> Looked:
    """What a base image is, without unpacking more than its beginning.

    Raises ImageFormatError for a fault that shows there.
    """
    compression = decompress.detect(_read_head(file))
    if compression is None:
        disk = formats.read_format(file, where, declared)
        return Looked(format=disk.name, compression=None, bytes=disk.bytes)
    head = unpacking.read_head(file, compression, where)
    name = _check_inner(head, where, declared)
    return Looked(format=name, compression=compression, bytes=formats.peek_size(name, head))


def stamp_of(file: Path) -> str:
    """One state of a file, by inode, size and times. Nobody but root can change a file so that it
    stays: the kernel sets the time of the last change of status."""
    status = file.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_dev}:{status.st_ino} {status.st_size} {times}"


def digest_memory(store: Store, file: Path, stamp: str) -> Path:
    """Where the store keeps the digest of a file of the user's in that state."""
    return store.folder / "digests" / key_of([str(file), stamp])


def _check_inner(head: bytes, where: str, declared: str | None) -> str:
    """The format of a packed image, by its first bytes. Raises ImageFormatError."""
    again = decompress.detect(head)
    if again is not None:
        raise ImageFormatError(
            f"is packed twice: what was unpacked is {again}",
            where=where,
            todo="unpack it once, and name what comes out",
        )
    name = formats.detect_format(head, where)
    if not (name == "raw" and declared == "vpc"):  # a fixed VHD begins like a raw disk
        formats.check_declared(name, declared, where)
    return name


def _read_head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(HEAD)


def unpack_disk(
    file: Path,
    declared: str | None,
    most_bytes: int,
    folder: Path,
    log: Path,
    store: Store,
    progress: Progress,
) -> Path:
    """The raw disk in an image file of any format, made in `folder`, with no artifact of it. Raises
    as the stage does."""
    stage = BaseDisk(
        file=LocalFile(digest=Sha256(""), path=file),  # no digest is pinned
        format=declared,
        most_bytes=most_bytes,
        location=str(file),
        stamp=stamp_of(file),
    )
    out, work = folder / "out", folder / "work"
    out.mkdir()
    work.mkdir()
    stage.run((), Context(out=out, work=work, log=log, store=store, progress=progress))
    return out / BASE
