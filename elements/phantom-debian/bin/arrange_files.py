#!/usr/bin/env python3
"""Decides in which order `mke2fs -d` lays out the files of a tree.

    arrange_files.py TREE ATTRIBUTES FOLDER

mke2fs gives inodes and blocks in the order in which it meets files, and a file with several names
keeps what it got at the first. So TREE gets a folder that is met before all others and holds a hard
link to every regular file, in the order wanted. ATTRIBUTES are notes of take_attributes.py. FOLDER
gets `size` (blocks of content, blocks and inodes with free room) and commands for debugfs: `begin`
gives files what mke2fs does not, and `finish` takes the links away again.

The order is for the next build, of which only the changed parts of the disk are sent:

- Large packages come first, then smaller ones, then what changes with every package (dpkg's
  records, caches), then the appliance's own files. So a change moves only what is smaller.
- Packages of about one size are a zone. Free room follows each, up to a round number of blocks and
  of inodes, so a zone that grows a little moves nothing behind it.
- Folders and symbolic links come after all zones, so they stay where they are too.

Free room is made by files that are removed in the end, with zeros in their place.

mke2fs leaves out blocks of zeros. A file whose blocks were all allocated, though many hold zeros,
gets them back: a swap file must have no holes, and what was allocated ahead has a purpose.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
ZERO_BLOCKS = 16
"""How many blocks of zeros in a row, that were allocated, tell that they were meant to be. Programs
have fewer, by chance, and whether those are holes depends on how the tree was copied."""
EXTENTS = 0x80000
"""The attribute of each file and folder that mke2fs makes."""
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
    blocks: int
    attributes: int
    """Those of `chattr`, beside `EXTENTS`."""
    allocate: int
    """How many blocks it has to have, though mke2fs makes holes of some; 0 if it may have holes."""


@dataclass(kw_only=True)
class Content:
    """What is in a tree."""

    files: list[File]
    others: int = 0
    """Inodes of all but regular files."""
    other_blocks: int = 0
    root_links: int = 3
    """What the root folder's link count has to be; `lost+found` is one."""
    folders: dict[str, int] = field(default_factory=dict)
    """The attributes of folders that have any."""


def main() -> None:
    """Reads the arguments and does what the module says."""
    tree, notes, folder = map(Path, sys.argv[1:])
    times = (tree.stat().st_atime_ns, tree.stat().st_mtime_ns)
    content = read_tree(tree, read_attributes(tree, notes))
    links = Links(tree)
    links.begin += describe_root(tree)
    for path, attributes in sorted(content.folders.items()):
        links.begin.append(f"set_inode_field {quoted(path)} flags {attributes | EXTENTS:#x}")
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
    for name, commands in (("begin", links.begin), ("finish", links.finish)):
        text = "".join(f"{line}\n" for line in commands)
        (folder / name).write_text(text, errors="surrogateescape")


# ---- what is in the tree


def read_attributes(tree: Path, notes: Path) -> dict[int, int]:
    """The attributes that take_attributes.py took away, by inode."""
    found: dict[int, int] = {}
    for note in notes.read_text(errors="surrogateescape").split("\0")[:-1]:
        attributes, _, path = note.partition(" ")
        if os.path.lexists(tree / path):
            inode = os.lstat(tree / path).st_ino
            found[inode] = found.get(inode, 0) | int(attributes)
    return found


def read_tree(tree: Path, attributes: Mapping[int, int]) -> Content:
    """Counts what mke2fs will make of a tree; `attributes` are those of inodes."""
    files: dict[int, File] = {}
    content = Content(files=[])
    above = len(str(tree)) + 1
    for entry in _walk(str(tree)):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            if status.st_ino not in files:
                path = entry.path[above:]
                files[status.st_ino] = _read_file(entry.path, path, status, attributes)
            continue
        content.others += 1
        if stat.S_ISDIR(status.st_mode):
            content.other_blocks += _folder_blocks(entry.path)
            if status.st_ino in attributes:
                content.folders[entry.path[above:]] = attributes[status.st_ino]
            content.root_links += entry.path == str(tree / entry.name) != str(tree / "lost+found")
        else:
            content.other_blocks += stat.S_ISLNK(status.st_mode) and status.st_size >= FAST_LINK
    content.files = list(files.values())
    return content


def describe_root(tree: Path) -> list[str]:
    """debugfs's commands for the mode and owner of the root folder, which mke2fs does not copy."""
    status = tree.stat()
    fields = {"mode": f"0{status.st_mode:o}", "uid": status.st_uid, "gid": status.st_gid}
    return [f"set_inode_field / {name} {value}" for name, value in fields.items()]


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


def _read_file(
    place: str, path: str, status: os.stat_result, attributes: Mapping[int, int]
) -> File:
    blocks, zeros = count_blocks(place)
    allocated = zeros >= ZERO_BLOCKS and status.st_blocks * 512 >= status.st_size
    all_blocks = -(-status.st_size // BLOCK)
    return File(
        path=path,
        blocks=all_blocks + 1 if allocated else blocks,
        attributes=attributes.get(status.st_ino, 0),
        allocate=all_blocks if allocated else 0,
    )


def count_blocks(path: str) -> tuple[int, int]:
    """The blocks that mke2fs will use: it leaves out those of zeros only. And how many of those
    come in a row at most."""
    used = runs = longest = 0
    last = -1  # the last block with data
    with open(path, "rb", buffering=0) as file:
        for number in _blocks_with_data(file.fileno()):
            used += 1
            runs += used == 1 or number > last + 1
            longest = max(longest, number - last - 1)
            last = number
        longest = max(longest, -(-os.fstat(file.fileno()).st_size // BLOCK) - last - 1)
    return used + (runs > INODE_EXTENTS), longest


def _blocks_with_data(file: int) -> Iterator[int]:
    """The numbers of a file's blocks that do not hold zeros only. Holes are not read."""
    zeros = bytes(BLOCK)
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # no more data
            return
        end = -(-os.lseek(file, start, os.SEEK_HOLE) // BLOCK) * BLOCK
        start = start // BLOCK * BLOCK
        for place in range(start, end, 2**20):
            chunk = os.pread(file, min(2**20, end - place), place)
            for first in range(0, len(chunk), BLOCK):
                block = chunk[first : first + BLOCK]
                if block != zeros[: len(block)]:
                    yield (place + first) // BLOCK


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
        self.begin: list[str] = []
        self.finish: list[str] = []
        self.inodes = self.blocks = 1  # the folder itself
        self._top = tree / FOLDER
        self._top.mkdir()
        self._folders = 0

    def add_zone(self, tree: Path, files: Sequence[File]) -> None:
        """Links to the files, and free room after them, up to round numbers."""
        empty = 0
        while (self.inodes + _inodes_for(len(files) + empty + 1)) % ZONE_INODES:
            empty += 1
        names, top = self._names(), str(self._top)
        for file, name in zip(files, names, strict=False):
            os.link(f"{tree}/{file.path}", f"{top}/{name}", follow_symlinks=False)
            if file.allocate:
                self.begin.append(f"fallocate /{FOLDER}/{name} 0 {file.allocate - 1}")
            if file.attributes:
                flags = file.attributes | EXTENTS
                self.begin.append(f"set_inode_field /{FOLDER}/{name} flags {flags:#x}")
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
        self.finish += [f"unlink /{FOLDER}", f"set_inode_field / links_count {root_links}"]

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
        self.finish += [f"zap_block -f {path} {number}" for number in range(blocks)]
        self.finish += [f"kill_file {path}", f"clri {path}"]


def quoted(path: str) -> str:
    """A path below the root as debugfs reads it."""
    if "\n" in path:
        raise SystemExit(f"a folder with a line feed in its name cannot be immutable: {path!r}")
    return '"/' + path.replace('"', '""') + '"'


def _inodes_for(names: int) -> int:
    return names + -(-names // NAMES)


if __name__ == "__main__":
    main()
