#!/usr/bin/env python3
"""Decides in which order `mke2fs -d` lays out the files of a tree.

    arrange_files.py TREE FOLDER

mke2fs gives inodes and blocks in the order in which it meets files, and a file with several names
keeps what it got at the first. So TREE gets a folder that is met before all others and holds a hard
link to every regular file, in the order wanted. FOLDER gets `size` (blocks of content, blocks and
inodes with free room) and `finish`: commands for debugfs that take the links away again.

The order is for the next build, of which only the changed parts of the disk are sent:

- Large packages come first, then smaller ones, then what changes with every package (dpkg's
  records, caches), then the appliance's own files. So a change moves only what is smaller.
- Packages of about one size are a zone. Free room follows each, up to a round number of blocks and
  of inodes, so a zone that grows a little moves nothing behind it.
- Folders and symbolic links come after all zones, so they stay where they are too.

Free room is made by files that are removed in the end, with zeros in their place.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path

BLOCK = 4096
FOLDER = "!phantom-order"
"""The name is the first in a byte-wise sort of any root folder, as mke2fs sorts."""
NAMES = 320
TOP_NAMES = 250
"""Names in a folder of links, and in the folder of these folders: as many as fit in one block."""
ZONE_BLOCKS = 4 * 2**20 // BLOCK
ZONE_INODES = 256
"""What zones end at a multiple of: many times what a small package has, and half of it for each of
about a dozen zones is within the tenth that the file system is larger than its content."""
SMALL = 5
"""Packages of fewer than 2**5 blocks are one zone: there is little of them."""
FAST_LINK = 60
"""Bytes of a symbolic link's target that an inode itself cannot hold."""
INODE_EXTENTS = 4
"""Extents that an inode itself holds; a file of more has a block for them."""
GENERATED = ("boot/", "usr/bin/", "usr/lib/", "usr/share/")
"""Where a file of no package is, as a rule, made from packages' files."""
RECORDS = ("etc/", "var/")
"""Where a file of no package is, as a rule, a record of what is installed."""


@dataclass(kw_only=True)
class File:
    """A regular file."""

    path: str
    """The first of its names, below the tree."""
    names: int
    blocks: int


@dataclass(kw_only=True)
class Content:
    """What is in a tree."""

    files: list[File]
    others: int = 0
    """Inodes of all but regular files."""
    other_blocks: int = 0
    root_links: int = 3
    """What the root folder's link count has to be; `lost+found` is one."""


def main() -> None:
    """Reads the arguments and does what the module says."""
    tree, folder = Path(sys.argv[1]), Path(sys.argv[2])
    times = (tree.stat().st_atime_ns, tree.stat().st_mtime_ns)
    content = read_tree(tree)
    links = Links(tree)
    for zone in zones(content.files, owners(tree)):
        links.add_zone(tree, zone)
    links.close(content.root_links)
    os.utime(tree, ns=times)  # the root folder's own come with the tree
    sizes = (
        sum(file.blocks for file in content.files) + content.other_blocks,
        links.blocks + content.other_blocks,
        links.inodes + content.others,
    )
    (folder / "size").write_text(" ".join(map(str, sizes)) + "\n")
    (folder / "finish").write_text("".join(f"{line}\n" for line in links.commands))


# ---- what is in the tree


def read_tree(tree: Path) -> Content:
    """Counts what mke2fs will make of a tree."""
    files: dict[int, File] = {}
    content = Content(files=[])
    for entry in _walk(str(tree)):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            if status.st_ino not in files:
                path = os.path.relpath(entry.path, tree)
                files[status.st_ino] = File(path=path, names=0, blocks=count_blocks(entry.path))
            files[status.st_ino].names += 1
            continue
        content.others += 1
        if stat.S_ISDIR(status.st_mode):
            content.other_blocks += _folder_blocks(entry.path)
            content.root_links += entry.path == str(tree / entry.name) != str(tree / "lost+found")
        else:
            content.other_blocks += stat.S_ISLNK(status.st_mode) and status.st_size >= FAST_LINK
    content.files = list(files.values())
    return content


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """All that is below a folder, in the same order wherever the tree lies."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in ordered:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def _folder_blocks(path: str) -> int:
    """About. What a folder takes where the tree lies must not count."""
    return 1 + sum(12 + len(os.fsencode(name)) for name in os.listdir(path)) // BLOCK


def count_blocks(path: str) -> int:
    """The blocks that mke2fs will use: it leaves out those of zeros only."""
    zeros = bytes(BLOCK)
    used = runs = 0
    inside = False
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(2**20):
            for start in range(0, len(chunk), BLOCK):
                block = chunk[start : start + BLOCK]
                data = block != zeros[: len(block)]
                used += data
                runs += data and not inside
                inside = data
    return used + (runs > INODE_EXTENTS)


def owners(tree: Path) -> dict[str, str]:
    """Files' packages, from dpkg's lists."""
    found: dict[str, str] = {}
    merged = {  # /bin is a link to usr/bin, and lists say either
        entry.name: os.readlink(entry.path).lstrip("/")
        for entry in os.scandir(tree)
        if entry.is_symlink()
    }
    for listed in sorted((tree / "var/lib/dpkg/info").glob("*.list")):
        package = listed.stem.split(":")[0]
        for line in listed.read_text(errors="surrogateescape").splitlines():
            first, _, rest = line.lstrip("/").partition("/")
            found.setdefault(f"{merged.get(first, first)}/{rest}", package)
    return found


# ---- the order


def zones(files: Iterable[File], owner: Mapping[str, str]) -> list[list[File]]:
    """The files in order, in groups that free room follows."""

    def package(file: File) -> str:
        """What was generated for packages (initramfs, indexes) is a package of its own."""
        return owner.get(file.path) or (file.path if file.path.startswith(GENERATED) else "")

    sizes = Counter[str]()
    for file in files:
        sizes[package(file)] += file.blocks

    def zone(file: File) -> tuple[int, int]:
        if name := package(file):
            return 0, -max(sizes[name].bit_length(), SMALL)
        if file.path.startswith(RECORDS):
            return 1, 0
        return 2, -max(file.blocks.bit_length(), ZONE_BLOCKS.bit_length())

    def order(file: File) -> tuple[tuple[int, int], str, bytes]:
        return zone(file), package(file), os.fsencode(file.path)

    return [list(group) for _, group in groupby(sorted(files, key=order), zone)]


# ---- its links


class Links:
    """The folder of links, and what debugfs has to do in the end."""

    def __init__(self, tree: Path) -> None:
        self.commands: list[str] = []
        self.inodes = self.blocks = 1  # the folder itself
        self._top = tree / FOLDER
        self._top.mkdir()
        self._folders = 0

    def add_zone(self, tree: Path, files: Sequence[File]) -> None:
        """Links to the files, and free room after them, up to round numbers."""
        empty = 0
        while (self.inodes + _inodes_for(len(files) + empty + 1)) % ZONE_INODES:
            empty += 1
        names = self._names()
        for file, name in zip(files, names, strict=False):
            os.link(tree / file.path, self._top / name, follow_symlinks=False)
            self.commands.append(f"set_inode_field /{FOLDER}/{name} links_count {file.names}")
            self.blocks += file.blocks
            self.inodes += 1
        for name in islice(names, empty):
            self._add_room(name, 0)
        name = next(names)
        self._add_room(name, -self.blocks % ZONE_BLOCKS)
        self._close_folder()

    def close(self, root_links: int) -> None:
        """`root_links` is the number of links that the root folder has without ours."""
        self._remove("", blocks=1 + max(0, self._folders - 1) // TOP_NAMES)
        self.commands += [f"unlink /{FOLDER}", f"set_inode_field / links_count {root_links}"]

    def _names(self) -> Iterator[str]:
        for number in count():
            if number % NAMES == 0:
                if number:
                    self._close_folder()
                self._open_folder()
            yield f"{self._folders:05}/{number % NAMES:04}"

    def _open_folder(self) -> None:
        self._folders += 1
        (self._top / f"{self._folders:05}").mkdir()
        self.inodes += 1
        self.blocks += 1 + (self._folders > 1 and self._folders % TOP_NAMES == 1)

    def _close_folder(self) -> None:
        self._remove(f"/{self._folders:05}", blocks=1)

    def _add_room(self, name: str, blocks: int) -> None:
        (self._top / name).write_bytes(b"\1" * (blocks * BLOCK))
        self._remove(f"/{name}", blocks)
        self.blocks += blocks
        self.inodes += 1

    def _remove(self, name: str, blocks: int) -> None:
        """Frees an inode and its blocks, and leaves zeros there."""
        path = f"/{FOLDER}{name}"
        self.commands += [f"zap_block -f {path} {number}" for number in range(blocks)]
        self.commands += [f"kill_file {path}", f"clri {path}"]


def _inodes_for(names: int) -> int:
    return names + -(-names // NAMES)


if __name__ == "__main__":
    main()
