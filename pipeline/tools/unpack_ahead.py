"""Unpacks the packages that dpkg will ask for next, beside dpkg.

    python3 unpack_ahead.py ORDER REPOSITORY FOLDER BYTES

ORDER has a line for each package: its file in REPOSITORY, what apt calls it in its cache, about how
many bytes it has when it is unpacked, and `essential` or `other`. FOLDER gets the files of each
package as an uncompressed tar of that name, which is called NAME.part until all of it is there. An
empty file NAME.begun tells that the package needs no unpacking any more, or that dpkg does it. What
lies there never has more than BYTES; dpkg takes it away.

Essential packages come first, as mmdebstrap needs them. A kernel takes as long as all others
together. So room is kept for the largest package that fits, and the others, in the order of the
lines, get what is left until that one is unpacked.

It ends with the last package, and needs nothing but Python's own library. What is not compressed
as Debian's packages are is left to dpkg.
"""

from __future__ import annotations

import lzma
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_MAGIC, _HEADER = b"!<arch>\n", 60
_WAIT_SECONDS = 0.05
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A line of ORDER."""

    file: Path
    target: Path
    size: int
    essential: bool

    @property
    def begun(self) -> Path:
        """The file that tells that somebody unpacks it or has done so."""
        return Path(f"{self.target}.begun")


def main() -> None:
    """Reads the arguments and does what the module says."""
    order, repository, folder, most = sys.argv[1:]
    rows = (line.split() for line in Path(order).read_text().splitlines())
    packages = [
        Package(Path(repository, file), Path(folder, name), int(size), kind == "essential")
        for file, name, size, kind in rows
    ]
    left = [package for package in packages if package.size <= int(most)]
    while left := [package for package in left if not package.begun.exists()]:
        package = choose(left, held(Path(folder)), int(most))
        if package is None:
            time.sleep(_WAIT_SECONDS)
        else:
            unpack(package, int(most))


def choose(left: Sequence[Package], held: int, most: int) -> Package | None:
    """Which package to unpack next; None while there is no room."""
    others = [package for package in left if not package.essential]
    largest = max(others, key=lambda package: package.size, default=None)
    kept = largest.size if largest is not None and largest.size > most // 4 else 0
    for package in left:
        room = most if package.essential or package is largest else most - kept
        if held + package.size <= room:
            return package
    return None


def unpack(package: Package, most: int) -> None:
    """Unpacks one package, unless dpkg took it before."""
    target, part = package.target, Path(f"{package.target}.part")
    try:
        package.begun.touch(exist_ok=False)
        with (
            package.file.open("rb") as file,
            open_files(file) as source,
            part.open("wb") as written,
        ):
            while chunk := source.read(_CHUNK):
                written.write(chunk)
                if held(target.parent) > most:
                    raise ValueError("it is larger than it was to be")
        part.rename(target)
    except FileExistsError:
        pass  # dpkg was faster
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        part.unlink(missing_ok=True)  # dpkg tells what is wrong with a package


def held(folder: Path) -> int:
    """Bytes of all that lies in a folder."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def open_files(package: IO[bytes]) -> IO[bytes]:
    """The files of a package, as an uncompressed tar. Raises ValueError for what is no package, or
    one that is compressed in another way than Debian's are."""
    for name, size in members(package):
        if name == "data.tar":
            return package  # the last member
        if name == "data.tar.xz":
            return lzma.LZMAFile(package)
        if name.startswith("data.tar"):
            break
        package.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("no files of a known compression")


def members(package: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Name and size of each member of an ar archive; the file stands at its content."""
    if package.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not an ar archive")
    while len(header := package.read(_HEADER)) == _HEADER:
        yield header[:16].decode("ascii", "replace").rstrip().rstrip("/"), int(header[48:58])


if __name__ == "__main__":
    main()
