"""Compressed files that may have been made to harm: all their members, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Protocol

from pipeline.model import KIB, MIB

CHUNK = MIB
"""No more than this comes out at once."""
MEMORY = 128 * MIB
"""Of xz and zstd for their window: as much as xz -9 and zstd --ultra ask for, with room."""

# What follows a member is copied with each: of short ones, many lie in what was read.
_READ = 64 * KIB
_MOST_EMPTY = 100_000  # members in which nothing is


class Decompressor(Protocol):
    """What the decompressors of bz2, lzma and isal have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def make(compression: str) -> Decompressor:
    """A decompressor of one member: of gzip, of xz or the older lzma, or of bzip2."""
    if compression == "gzip":
        from isal import igzip_lib

        found: Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return found
    if compression == "xz":
        import lzma

        return lzma.LZMADecompressor(format=lzma.FORMAT_AUTO, memlimit=MEMORY)
    import bz2

    return bz2.BZ2Decompressor()


def errors() -> tuple[type[Exception], ...]:
    """What is raised for damaged data: an OSError without a number too."""
    import lzma
    import zlib

    from isal import igzip_lib

    isal_error: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
    return (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, isal_error)


def read(opened: IO[bytes], new: Callable[[], Decompressor]) -> Iterator[bytes]:
    """What the members of a file hold, one after the other; zeros behind the last do no harm.

    Chunks may be empty: one comes for each piece of the file that was read, whatever it held.
    Raises what `errors` lists.
    """
    data = opened.read(_READ)
    empty = 0
    while data:
        decompressor, held = new(), False
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = opened.read(_READ)
                if not data:
                    raise EOFError("it ends too early")
            chunk = decompressor.decompress(data, CHUNK)
            data = b""
            held = held or bool(chunk)
            yield chunk
        empty += not held
        if empty > _MOST_EMPTY:
            raise ValueError("it has many parts in which nothing is")
        data = decompressor.unused_data.lstrip(b"\0")
        while not data:
            data = opened.read(_READ)
            if not data:
                return
            data = data.lstrip(b"\0")
            yield b""
