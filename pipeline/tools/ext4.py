"""ext4 file systems inside disk files, read and written by debugfs: no mount, no root rights."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path, PurePosixPath

from pipeline.errors import FileSystemError, StageFailedError
from pipeline.model import GIB, MIB, format_size
from pipeline.tools import run

# Whoever made the image decides what its files are, and how large.
_LONGEST_PATH = 1024
_LARGEST_BLOCK = 6  # as the binary logarithm of its KiB
_TEXT_LIMIT, _COPY_LIMIT = 16 * MIB, GIB
_LONGEST_CHAIN = 8  # of symbolic links
_LONGEST_LINK = 4096  # as Linux has it
_SECONDS = 120.0

NEW_FEATURES = frozenset(
    {
        *("metadata_csum", "metadata_csum_seed", "bigalloc", "quota", "inline_data", "encrypt"),
        *("casefold", "project", "verity", "ea_inode", "large_dir", "mmp", "orphan_file"),
    }
)
"""Features of ext4 with which Linux 2.6.32, of 2010, does not mount a file system to write into
it (fs/ext4/ext4.h), in the words of tune2fs."""


def is_at(file: Path, offset: int) -> bool:
    """Whether an ext file system begins at an offset, in bytes, of a file: by its superblock's
    magic, and a size that the file has room for."""
    with file.open("rb") as opened:
        superblock = os.pread(opened.fileno(), 1024, offset + 1024)
        room = os.fstat(opened.fileno()).st_size - offset
    if superblock[0x38:0x3A] != b"\x53\xef":
        return False
    blocks = int.from_bytes(superblock[4:8], "little")
    binary = int.from_bytes(superblock[0x18:0x1C], "little")
    return binary <= _LARGEST_BLOCK and 0 < blocks * (1024 << binary) <= room


class FileSystem:
    """The ext4 file system that begins at an offset, in bytes, of a file.

    What its files and links are called is nobody's who can be trusted: a path that debugfs's
    commands cannot hold counts as one where nothing is.
    """

    def __init__(self, file: Path, offset: int) -> None:
        self._device = f"{file}?offset={offset}"

    def features(self) -> frozenset[str]:
        """Its features, in the words of tune2fs. Raises ToolError."""
        _, _, told = self._debugfs("features").partition("Filesystem features:")
        return frozenset(told.split())

    def names(self, folder: PurePosixPath) -> list[str]:
        """What lies in a folder; nothing where there is none. Raises ToolError, FileSystemError."""
        if not _is_plain(folder):
            return []
        listed = self._debugfs(f"ls -p {_quote(folder)}")
        return [line.split("/")[5] for line in listed.splitlines() if line.count("/") == 7]

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """What a symbolic link leads to, from the root of the file system; None where there is no
        link, or one that is longer than links can be. Raises ToolError, FileSystemError."""
        told = self._stat(path)
        if not re.search(r"Type: symlink", told):
            return None
        # A short one lies in the inode; a longer one is told as a file's content is.
        short = re.search(r'^Fast link dest: "(.*)"$', told, re.MULTILINE | re.DOTALL)
        size = re.search(r"\bSize: ([0-9]+)", told)
        if not short and (size is None or int(size[1]) > _LONGEST_LINK):
            return None
        target = short[1] if short else self._debugfs(f"cat {_quote(path)}", most=_LONGEST_LINK)
        if len(target) > _LONGEST_LINK:  # debugfs tells the lower half of a size, and goes by both
            return None
        return PurePosixPath("/", path.parent, target)

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file to the host; whether there was one. Raises ToolError, FileSystemError."""
        copy.unlink(missing_ok=True)
        if self._size(path, _COPY_LIMIT) is not None:
            self._debugfs(f'dump {_quote(path)} "{copy}"')
        return copy.exists()

    def write(self, path: PurePosixPath, text: str, mode: int) -> None:
        """Writes a small file, owned by root, in place of one that is there, and makes its folder
        (mode 0700) if need be. Raises StageFailedError if it cannot be read back."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as local:
            local.write(text)
            local.flush()
            commands = [f"mkdir {path.parent}", f"set_inode_field {path.parent} mode 040700"]
            if self.names(path.parent):
                commands = [f"rm {path}"] if path.name in self.names(path.parent) else []
            commands += [f'write "{local.name}" {path}']
            commands += [f"set_inode_field {path} mode 0100{mode:03o}"]
            self._debugfs(*commands, write=True)
        if self.read(path) != text:
            raise StageFailedError(f"{path} cannot be written into the root file system")

    def read(self, path: PurePosixPath) -> str:
        """The content of a small text file, or of what a link there leads to; empty where there is
        none. Raises ToolError, FileSystemError."""
        for _ in range(_LONGEST_CHAIN):
            linked = self.read_link(path)
            if linked is None:
                break
            path = linked
        if self._size(path, _TEXT_LIMIT) is None:
            return ""
        return self._debugfs(f"cat {_quote(path)}")

    def _size(self, path: PurePosixPath, limit: int) -> int | None:
        """How large a file is; None where there is no file."""
        told = self._stat(path)
        found = re.search(r"Type: regular", told) and re.search(r"\bSize: ([0-9]+)", told)
        if not found:
            return None
        size = int(found[1])
        if size > limit:
            raise FileSystemError(
                f"{path} in the image takes {format_size(size)}, and at most {format_size(limit)} "
                "of such a file are read",
                todo="remove it, or choose another base image",
            )
        return size

    def _stat(self, path: PurePosixPath) -> str:
        return self._debugfs(f"stat {_quote(path)}") if _is_plain(path) else ""

    def _debugfs(self, *commands: str, write: bool = False, most: int | None = None) -> str:
        """What commands print: of more than `most` letters, some more than these. Without `most`,
        what is too long is an error."""
        script = "".join(f"{command}\n" for command in commands)
        words = ["debugfs", *(["-w"] if write else []), "-f", "-", self._device]
        limit = 2 * (len(script) + 1024) + (2 * _TEXT_LIMIT if most is None else most)
        printed = run.capture(words, input=script, timeout=_SECONDS, most=limit)
        if most is None and len(printed) == limit:
            raise FileSystemError(
                "a file or folder in the image is described by more than "
                f"{format_size(2 * _TEXT_LIMIT)}",
                todo="choose another base image: this one is damaged, or was made to harm",
            )
        # Each command is echoed on a line of its own before what it prints.
        echoes = {f"debugfs: {command}" for command in commands}
        return "".join(
            line for line in printed.splitlines(keepends=True) if line.rstrip("\n") not in echoes
        )


def _is_plain(path: PurePosixPath) -> bool:
    """Whether a line of debugfs's commands can hold a path."""
    text = str(path)
    return len(text) <= _LONGEST_PATH and text.isprintable()


def _quote(path: PurePosixPath) -> str:
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'
