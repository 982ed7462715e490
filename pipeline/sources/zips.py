"""Unpacks the one file of an untrusted zip archive in constant memory.

Python's zipfile finds the file. Its data is decompressed here: zipfile returns all that a piece of
bzip2 or LZMA data holds at once, which can be a million times as much.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipeline.disk import decompress
from pipeline.errors import ImageFormatError
from pipeline.model import KIB, MIB

if TYPE_CHECKING:
    from zipfile import ZipInfo

_DIRECTORY_LIMIT = MIB  # of a zip's list of files: one file takes some hundred bytes
_PIECE = 64 * KIB
_LOCAL_HEADER = 30
_HAS_END_MARK = 1 << 1  # flag of LZMA data that ends by itself
_ENCRYPTED = 1 << 0 | 1 << 6
_PATCH = 1 << 5
_STORED, _LZMA = 0, 14
# Methods by their numbers (PKWARE's APPNOTE, 4.4.5).
_METHODS = {_STORED: "store", 8: "deflate", 12: "bzip2", _LZMA: "lzma", 95: "xz"}
_UNKNOWN_METHODS = {9: "deflate64", 93: "zstd", 98: "ppmd"}
_ALONE_HEADER = 13  # of LZMA outside a zip: properties, and the size
_UNKNOWN_SIZE = b"\xff" * 8

Damaged = Callable[[str], ImageFormatError]
"""Makes the error for a damaged archive, of a reason."""


class _TooLarge(Exception):
    """The list of files is too long."""


class _Bounded:
    """A file of which zipfile reads only a little at once, whatever the file says."""

    def __init__(self, opened: BinaryIO) -> None:
        self.seek, self.tell, self._read = opened.seek, opened.tell, opened.read

    def read(self, size: int = -1) -> bytes:
        """At most `_DIRECTORY_LIMIT` bytes. Raises _TooLarge where more are asked for."""
        if size > _DIRECTORY_LIMIT:
            raise _TooLarge
        return self._read(_DIRECTORY_LIMIT if size < 0 else size)


def read_zip(opened: BinaryIO, damaged: Damaged) -> Iterator[bytes]:
    """The content of an archive's only file, in chunks of at most `decompress.CHUNK` bytes.

    Raises ImageFormatError, and the exceptions in `decompress.errors` for damaged data.
    """
    entry = _find_file(opened, damaged)
    start = _find_data(opened, entry, damaged)
    size = checksum = 0
    for chunk in _read_data(opened, start, entry):
        size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
        if size > entry.file_size:
            raise damaged("it holds more than its list of files says")
        yield chunk
    if size < entry.file_size:
        raise damaged("it ends too early")
    if checksum != entry.CRC:
        raise damaged("its checksum is wrong")


def _find_file(opened: BinaryIO, damaged: Damaged) -> ZipInfo:
    """The entry of the archive's only file. Raises ImageFormatError."""
    import zipfile

    try:
        archive = zipfile.ZipFile(_Bounded(opened))
        files = [entry for entry in archive.infolist() if not entry.is_dir()]
    except _TooLarge as error:
        raise _not_one_file("many") from error
    # zipfile raises these, too, for figures that make no sense.
    except (zipfile.BadZipFile, ArithmeticError, LookupError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise damaged("its list of files is damaged") from error
    except (ValueError, struct.error) as error:
        raise damaged("its list of files is damaged") from error
    if len(files) != 1:
        raise _not_one_file(len(files))
    return files[0]


def _not_one_file(count: int | str) -> ImageFormatError:
    return ImageFormatError(
        f"is a zip archive of {count} files, not one",
        todo="unpack it, and name the disk image that is in it",
    )


def _find_data(opened: BinaryIO, entry: ZipInfo, damaged: Damaged) -> int:
    """Where the data of a file starts. Raises ImageFormatError."""
    if entry.flag_bits & _ENCRYPTED:
        raise ImageFormatError("is a zip archive with a password", todo="unpack it")
    name = _UNKNOWN_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
    if entry.flag_bits & _PATCH:
        name = "patches"
    if entry.flag_bits & _PATCH or entry.compress_type not in _METHODS:
        raise ImageFormatError(
            f"is a zip archive compressed by {name}, which is not supported",
            todo="unpack it, and name the disk image that is in it, or compress it by deflate",
        )
    size, at = os.fstat(opened.fileno()).st_size, entry.header_offset
    header = os.pread(opened.fileno(), _LOCAL_HEADER, at) if 0 <= at < size else b""
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise damaged("its list of files leads to no file")
    name, extra = struct.unpack_from("<HH", header, 26)
    start: int = at + _LOCAL_HEADER + name + extra
    if not 0 <= entry.compress_size <= size - start:
        raise damaged("it ends too early")
    return start


def _read_data(opened: BinaryIO, start: int, entry: ZipInfo) -> Iterator[bytes]:
    opened.seek(start)
    pieces = _pieces(opened, entry.compress_size)
    if entry.compress_type == _STORED:
        yield from pieces
        return
    name = _METHODS[entry.compress_type]
    if entry.compress_type == _LZMA:
        pieces = _with_alone_header(pieces, entry)
    yield from decompress.read_member(pieces, decompress.make(name))


def _pieces(opened: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := opened.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _with_alone_header(pieces: Iterator[bytes], entry: ZipInfo) -> Iterator[bytes]:
    """The same as a file of the older lzma format: a decompressor with a memory limit reads that.
    In a zip, version and length precede the properties, and no size follows them."""
    first = next(pieces, b"")
    ends = entry.flag_bits & _HAS_END_MARK
    size = _UNKNOWN_SIZE if ends else struct.pack("<Q", entry.file_size)
    properties = first[4:9]
    if first[2:4] != b"\x05\0" or len(properties) < _ALONE_HEADER - len(size):
        raise ValueError("its LZMA properties are damaged")
    yield properties + size + first[9:]
    yield from pieces
