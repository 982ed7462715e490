"""Small files that unpack to much, or ask for much memory. As a program: reads the bombs in a
folder as commands do, and tells what each took."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import resource
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.disk import initramfs
from pipeline.errors import PhantomError
from pipeline.model import GIB, KIB, MIB, NoProgress, Sha256
from pipeline.sources.base_disk import BaseDisk, look, stamp_of
from pipeline.stages.base import Context, LocalFile
from pipeline.store import Store

SIZE = 256 * MIB  # more than the limit that the test holds
MOST = 64 * MIB  # of a disk
_ZEROS = bytes(MIB)


def _zip(method: int) -> Callable[[Path], object]:
    def make(file: Path) -> None:
        with zipfile.ZipFile(file, "w", method) as archive, archive.open("disk", "w") as member:
            for _ in range(SIZE // MIB):
                member.write(_ZEROS)

    return make


def _zip_as(method: int) -> Callable[[Path], object]:
    """A zip of deflated data that claims another method."""

    def make(file: Path) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("disk", bytes(MIB))
        content = bytearray(file.read_bytes())
        for magic, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            struct.pack_into("<H", content, content.index(magic) + place, method)
        file.write_bytes(content)

    return make


def _zip_lzma_dictionary(file: Path) -> None:
    """LZMA data that asks for a dictionary of 4 GiB."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("disk", bytes(MIB))
    content = bytearray(file.read_bytes())
    at = 30 + len("disk") + 5
    content[at : at + 4] = b"\xff" * 4
    file.write_bytes(content)


def _zip_directory(file: Path) -> None:
    """A list of files of 3 GiB, before which another, small one is told of."""
    with file.open("wb") as written:
        written.write(b"PK\3\4")
        written.seek(3 * GIB)
        written.write(_zip64_end())


def _zip64_end() -> bytes:
    """Records of ZIP64: the one that is pointed to is small, the one that lies in front is not."""
    small = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 60, 4)
    large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 3 * GIB, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 3 * GIB, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return small + large + locator + last


def _gzip_name(file: Path) -> None:
    """A gzip member with a file name of 250 MiB, in a sparse file."""
    with file.open("wb") as written:
        written.write(b"\x1f\x8b\x08\x08" + bytes(6))
        for _ in range(250):
            written.write(b"a" * MIB)


def _xz_dictionary(file: Path) -> None:
    """xz data that asks for a dictionary of 4 GiB."""
    content = bytearray(lzma.compress(bytes(MIB)))
    length = (content[12] + 1) * 4
    content[16] = 40  # the largest, behind the filter's number and the size of its properties
    checksum = zlib.crc32(content[12 : 12 + length - 4])
    content[12 + length - 4 : 12 + length] = struct.pack("<I", checksum)
    file.write_bytes(content)


def _lzma_dictionary(file: Path) -> None:
    content = bytearray(lzma.compress(bytes(MIB), lzma.FORMAT_ALONE))
    content[1:5] = b"\0\0\0\x80"
    file.write_bytes(content)


def _pipe(*words: str) -> Callable[[Path], object]:
    """What a program makes of zeros."""

    def make(file: Path) -> None:
        script = f"head -c {SIZE} /dev/zero | {shlex.join(words)}"
        with file.open("wb") as written:
            subprocess.run(["sh", "-c", script], stdout=written, check=True)

    return make


def _zstd_window(file: Path) -> None:
    """A frame that asks for a window of 1 TiB."""
    file.write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([30 << 3]) + bytes(64))


def _qcow2_packed(file: Path) -> None:
    """Clusters of 2 MiB, each packed."""
    disk = file.with_suffix(".disk")
    disk.write_bytes(b"\1" * 48 * MIB)
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "cluster_size=2M"]
    subprocess.run([*words, disk, file], check=True)
    disk.unlink()


def _qcow2_bitmaps(file: Path) -> None:
    """A dirty bitmap of one bit for each sector of 2 TiB."""
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(file), "2T"]
    for words in (create, ["qemu-img", "bitmap", "--add", str(file), "b"]):
        subprocess.run(words, check=True)
    content = bytearray(file.read_bytes())
    at = content.index(b"\x23\x85\x28\x75")
    (directory,) = struct.unpack_from(">Q", content, at + 24)
    content[directory + 17] = 9
    file.write_bytes(content)


def _vmdk(kind: str, *, capacity: int, grain: int, per_table: int) -> Callable[[Path], object]:
    """A VMDK with these figures in its header, and holes for its tables."""

    def make(file: Path) -> None:
        words = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            f"subformat={kind}",
            str(file),
            "1M",
        ]
        subprocess.run(words, check=True)
        with file.open("r+b") as opened:
            os.pwrite(opened.fileno(), struct.pack("<QQ", capacity, grain), 12)
            os.pwrite(opened.fileno(), struct.pack("<I", per_table), 44)
            opened.truncate(16 * GIB)

    return make


def _vhd_table(file: Path) -> None:
    """A table of 4 GiB, in blocks of one sector."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vpc", "-o", "force_size=on", file, "64M"], check=True
    )
    with file.open("r+b") as opened:
        os.pwrite(opened.fileno(), struct.pack(">II", 1 << 30, 512), 512 + 28)
        opened.truncate(8 * GIB)


def _archive(names: int, length: int, content: int = 0) -> bytes:
    """A cpio archive of files with long names of four-byte characters."""
    name = ("\U0001f600" * (length // 4)).encode() + b"\0"
    head = b"070701" + b"".join(b"%08X" % n for n in (1, 0o100644, 0, 0, 1, 0, content, *[0] * 4))
    entry = head + b"%08X" % len(name) + b"00000000" + name
    entry += bytes(-len(entry) % 4) + bytes(content)
    return entry * names


def _with(*words: str) -> Callable[[bytes], bytes]:
    return lambda content: (
        subprocess.run(words, input=content, stdout=subprocess.PIPE, check=True).stdout
    )


IMAGES: Mapping[str, Callable[[Path], object]] = {
    "zip deflate": _zip(zipfile.ZIP_DEFLATED),
    "zip bzip2": _zip(zipfile.ZIP_BZIP2),
    "zip lzma": _zip(zipfile.ZIP_LZMA),
    "zip lzma dictionary": _zip_lzma_dictionary,
    "zip deflate64": _zip_as(9),
    "zip zstd": _zip_as(93),
    "zip xz": _zip_as(95),
    "zip stored": _zip_as(0),
    "zip directory": _zip_directory,
    "gzip": lambda file: file.write_bytes(gzip.compress(bytes(16 * MIB), 1) * (SIZE // 16 // MIB)),
    "gzip name": _gzip_name,
    "bzip2": lambda file: file.write_bytes(bz2.compress(bytes(90 * MIB), 9) * 4),
    "xz": lambda file: file.write_bytes(lzma.compress(bytes(SIZE), preset=0)),
    "xz dictionary": _xz_dictionary,
    "zstd": _pipe("zstd", "-q", "-c"),
    "zstd window": _zstd_window,
    "zstd long": _pipe("zstd", "-q", "-c", "--long=27"),
    "qcow2 packed": _qcow2_packed,
    "qcow2 bitmaps": _qcow2_bitmaps,
    "vmdk grains": _vmdk("streamOptimized", capacity=128 * KIB, grain=128 * KIB, per_table=512),
    "vmdk tables": _vmdk("monolithicSparse", capacity=1 << 31, grain=1, per_table=1),
    "vhd table": _vhd_table,
}
_NAMES = (4_000, 4_000)
INITRAMFS: Mapping[str, Callable[[Path], object]] = {
    "names": lambda file: file.write_bytes(_archive(8_000, 4_000)),
    "many": lambda file: file.write_bytes(gzip.compress(_archive(300_000, 4), 1)),
    "gzip": lambda file: file.write_bytes(gzip.compress(_archive(*_NAMES), 1) * 20),
    "xz": lambda file: file.write_bytes(lzma.compress(_archive(*_NAMES), preset=0) * 20),
    "bzip2": lambda file: file.write_bytes(bz2.compress(_archive(1, 8, 16 * MIB)) * 16),
    "lzma dictionary": _lzma_dictionary,
    "zstd": lambda file: file.write_bytes(_with("zstd", "-q")(_archive(1, 8, 16 * MIB)) * 16),
    "zstd window": _zstd_window,
    "lz4": lambda file: file.write_bytes(_with("lz4", "-q", "-l")(_archive(*_NAMES)) * 20),
}


def make_bombs(folder: Path) -> None:
    """Makes all bombs, each in a file with its name."""
    for kind, bombs in (("image", IMAGES), ("initramfs", INITRAMFS)):
        for name, make in bombs.items():
            make(folder / f"{kind} {name}")


def swallow(file: Path, folder: Path) -> str:
    """Reads a file as commands do; the error that it is refused by."""
    store = Store(folder / "store")
    try:
        if file.name.startswith("initramfs"):
            return f"{len(initramfs.list_files(file, folder))} files"
        look(file, "BOMB")
        with store.temporary("bomb") as work:
            for name in ("out", "work"):
                (work / name).mkdir()
            BaseDisk(
                file=LocalFile(digest=Sha256(""), path=file),
                most_bytes=MOST,
                location="BOMB",
                stamp=stamp_of(file),
            ).run(
                [],
                Context(
                    out=work / "out",
                    work=work / "work",
                    log=folder / "log",
                    store=store,
                    progress=NoProgress(),
                ),
            )
    except PhantomError as error:
        return error.what
    return "taken"


def _most_memory() -> int:
    """Bytes that this process, or one that it has run, took at most."""
    status = Path("/proc/self/status").read_text()
    (own,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * KIB


if __name__ == "__main__":
    bombs = Path(sys.argv[1])
    for bomb in sorted(bombs.iterdir()):
        reason = swallow(bomb, Path(sys.argv[2]))
        print(json.dumps([bomb.name, reason, _most_memory()]), flush=True)
