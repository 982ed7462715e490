"""FAT file systems, made and filled by mtools: no mount, no root rights, no vfat in the kernel."""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath

from pipeline.tools import run

_SECTOR = 512
# Neither the host's settings of mtools nor its clock or time zone may decide what is written.
# 1980-01-02 is the first day that FAT can express in every time zone.
_ENVIRONMENT = {"MTOOLSRC": "/dev/null", "SOURCE_DATE_EPOCH": "315619200", "TZ": "UTC"}


@cache
def version() -> str:
    """The version of the host's mtools, whose output lands in the image."""
    return run.capture(["mformat", "--version"]).splitlines()[0].split()[-1]


def make(
    image: Path, size: int, files: dict[PurePosixPath, Path], *, label: str, serial: int, start: int
) -> None:
    """Makes a FAT32 of `size` bytes in a sparse file, the same bytes for the same arguments.

    `files` are the host's files by their paths in it; `start` is its future offset on the disk in
    bytes; `serial` has 32 bits. Raises HostError, ToolError.
    """
    with image.open("wb") as made:
        made.truncate(size)
    # 64 heads and 32 sectors make a cylinder of 1 MiB. No firmware uses these numbers any more.
    geometry = ["-h", "64", "-s", "32", "-T", str(size // _SECTOR), "-H", str(start // _SECTOR)]
    names = ["-N", f"{serial:08x}", "-v", label]
    _mtools("mformat", image, "-F", "-c", "1", *geometry, *names, "::")
    folders = {folder for path in files for folder in path.parents if folder != PurePosixPath("/")}
    for folder in sorted(folders):
        _mtools("mmd", image, f"::{folder}")
    for path, file in sorted(files.items()):
        _mtools("mcopy", image, str(file), f"::{path}")


def _mtools(program: str, image: Path, *words: str) -> None:
    run.capture([program, "-i", str(image), *words], env=_ENVIRONMENT)
