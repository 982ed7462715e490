"""Decompresses untrusted files, with all their members, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from pipeline.model import KIB, MIB

CHUNK = MIB
"""The most bytes that one call of a decompressor returns."""
MEMORY = 128 * MIB
"""The memory limit of zstd, a process of its own; files of zstd --ultra need less."""
_XZ_MEMORY = 80 * MIB  # files of xz -9 need 65 MiB, which this process takes

# Each member's decompressor copies the data behind the member, so a large piece with many short
# members would be copied many times.
_READ = 64 * KIB
_MOST_EMPTY = 100_000  # empty members

_COMPRESSIONS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)


def detect(head: bytes) -> str | None:
    """The compression that a file's first bytes show: a name in `_COMPRESSIONS`, or None."""
    for magic, name in _COMPRESSIONS:
        if head.startswith(magic):
            # bzip2's magic has only three letters, so look at block size and first block too.
            if name == "bzip2" and not re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", head):
                continue
            return name
    return None


class Decompressor(Protocol):
    """The common interface of the decompressors of bz2, lzma and isal."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def make(compression: str) -> Decompressor:
    """A decompressor for one member of a `gzip`, `xz`, older `lzma`, `bzip2` or bare `deflate`
    file."""
    if compression in ("gzip", "deflate"):
        from isal import igzip_lib

        bare = compression == "deflate"
        flag = igzip_lib.DECOMP_DEFLATE if bare else igzip_lib.DECOMP_GZIP
        made: Decompressor = igzip_lib.IgzipDecompressor(flag=flag)
        return made
    if compression in ("xz", "lzma"):
        import lzma

        form = lzma.FORMAT_XZ if compression == "xz" else lzma.FORMAT_ALONE
        return lzma.LZMADecompressor(format=form, memlimit=_XZ_MEMORY)
    import bz2

    return bz2.BZ2Decompressor()


def errors() -> tuple[type[Exception], ...]:
    """The exceptions that decompressors raise for damaged data, such as OSError without errno."""
    import lzma
    import zlib

    from isal import igzip_lib

    isal_error: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
    return (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, isal_error)


def read_member(pieces: Iterator[bytes], decompressor: Decompressor) -> Iterator[bytes]:
    """The content of one member, whose compressed data comes in pieces.

    Yields a chunk, perhaps empty, for each call of the decompressor. Raises the exceptions in
    `errors`.
    """
    while not decompressor.eof:
        piece = next(pieces, b"") if decompressor.needs_input else b""
        if decompressor.needs_input and not piece:
            raise EOFError("it ends too early")
        yield decompressor.decompress(piece, CHUNK)


def read(opened: IO[bytes], new: Callable[[], Decompressor]) -> Iterator[bytes]:
    """The content of a file's members, in order, without zeros behind the last member.

    Yields a chunk, perhaps empty, for each piece that it reads. Raises the exceptions in `errors`.
    """
    data = opened.read(_READ)
    empty = 0
    while data:
        decompressor, has_content = new(), False
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = opened.read(_READ)
                if not data:
                    raise EOFError("it ends too early")
            chunk = decompressor.decompress(data, CHUNK)
            data = b""
            has_content = has_content or bool(chunk)
            yield chunk
        empty += not has_content
        if empty > _MOST_EMPTY:
            raise ValueError("it has many parts in which nothing is")
        data = decompressor.unused_data.lstrip(b"\0")
        while not data:
            data = opened.read(_READ)
            if not data:
                return
            data = data.lstrip(b"\0")
            yield b""
