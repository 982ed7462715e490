"""Reads and writes ext4 file systems in disk files by debugfs, without mounting them or root."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.disk.tree import COPY_LIMIT, TEXT_LIMIT, check_size
from pipeline.errors import FileSystemError, StageFailedError
from pipeline.model import format_size
from pipeline.tools import run

_LONGEST_PATH = 1024
_LONGEST_CHAIN = 8  # of symbolic links
_LONGEST_LINK = 4096  # Linux's limit
_SECONDS = 120.0


class FileSystem:
    """The ext4 file system at an offset, in bytes, of a file.

    An untrusted image may have any names of files and links. Paths that do not fit into a debugfs
    command count as absent. All methods raise ToolError and FileSystemError.
    """

    def __init__(self, file: Path, offset: int) -> None:
        self._device = f"{file}?offset={offset}"
        self.offset = offset

    def names(self, folder: PurePosixPath) -> list[str]:
        if not _is_plain(folder):
            return []
        listed = self._debugfs(f"ls -p {_quote(folder)}")
        return [line.split("/")[5] for line in listed.splitlines() if line.count("/") == 7]

    def exists(self, path: PurePosixPath) -> bool:
        return "Type: " in self._stat(path)

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        status = self._stat(path)
        if "Type: symlink" not in status:
            return None
        # `stat` prints a short target, which lies in the inode. A longer one is content.
        short = re.search(r'^Fast link dest: "(.*)"$', status, re.MULTILINE | re.DOTALL)
        size = _find_size(status)
        if not short and (size is None or size > _LONGEST_LINK):
            return None
        target = short[1] if short else self._debugfs(f"cat {_quote(path)}", most=_LONGEST_LINK)
        if len(target) > _LONGEST_LINK:  # `stat` prints only the lower half of a size
            return None
        return PurePosixPath("/", path.parent, target)

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        copy.unlink(missing_ok=True)
        size = self._size(path, COPY_LIMIT)
        if size is not None:
            with copy.open("wb") as file:  # debugfs does not tell of a full disk
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            copy.unlink()
            self._debugfs(f'dump {_quote(path)} "{copy}"')
        return copy.exists()

    def write(self, path: PurePosixPath, text: str, mode: int) -> None:
        """Writes or replaces a small file, owned by root, and makes its folder (mode 0700) if
        necessary. Raises StageFailedError if the file does not read back the same."""
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
        """The content of a small text file, through links; empty if there is no such file."""
        for _ in range(_LONGEST_CHAIN):
            target = self.read_link(path)
            if target is None:
                break
            path = target
        if self._size(path, TEXT_LIMIT) is None:
            return ""
        return self._debugfs(f"cat {_quote(path)}")

    def find_owners(self, offsets: Iterable[int]) -> dict[int, str]:
        """The path of the file that each byte of the file system belongs to, or of the folder that
        lists its name there; a byte of no file has none. It reads all folders."""
        block = re.search(r"^Block size: +([0-9]{1,9})$", self._debugfs("stats -h"), re.MULTILINE)
        if block is None:
            return {}
        blocks = {offset: offset // int(block[1]) for offset in offsets}
        asked = " ".join(map(str, sorted({*blocks.values()})))
        inodes = _pairs(self._debugfs(f"icheck {asked}"))
        paths = _pairs(self._debugfs(f"ncheck {' '.join(sorted({*inodes.values()}))}"))
        found = {offset: inodes.get(str(number), "") for offset, number in blocks.items()}
        return {
            offset: f"/{paths[inode].lstrip('/')}"
            for offset, inode in found.items()
            if inode in paths
        }

    def _size(self, path: PurePosixPath, limit: int) -> int | None:
        """A regular file's size; None if there is no such file."""
        status = self._stat(path)
        size = _find_size(status)
        if size is None or "Type: regular" not in status:
            return None
        return check_size(path, size, limit)

    def _stat(self, path: PurePosixPath) -> str:
        return self._debugfs(f"stat {_quote(path)}") if _is_plain(path) else ""

    def _debugfs(self, *commands: str, write: bool = False, most: int | None = None) -> str:
        """The output of debugfs commands. It may be cut after `most` characters; without `most`,
        output that is too long is an error."""
        script = "".join(f"{command}\n" for command in commands)
        argv = ["debugfs", *(["-w"] if write else []), "-f", "-", self._device]
        limit = 2 * (len(script) + 1024) + (2 * TEXT_LIMIT if most is None else most)
        printed = run.capture(argv, input=script, timeout=_SECONDS, most=limit)
        if most is None and len(printed) == limit:
            raise FileSystemError(
                "a file or folder in the image is described by more than "
                f"{format_size(2 * TEXT_LIMIT)}",
                todo="choose another base image: this one is damaged, or was made to harm",
            )
        # debugfs echoes each command on its own line.
        echoes = {f"debugfs: {command}" for command in commands}
        return "".join(
            line for line in printed.splitlines(keepends=True) if line.rstrip("\n") not in echoes
        )


def _find_size(status: str) -> int | None:
    """The size that debugfs's `stat` tells."""
    size = re.search(r"\bSize: ([0-9]{1,20})", status)
    return None if size is None else int(size[1])


def _pairs(table: str) -> dict[str, str]:
    """The two columns of what debugfs's `icheck` and `ncheck` print: a number, and what it leads
    to. Of several, the first."""
    pairs: dict[str, str] = {}
    for line in table.splitlines():
        number, tab, leads_to = line.partition("\t")
        if tab and number.isascii() and number.isdigit() and not leads_to.startswith("<"):
            pairs.setdefault(number, leads_to)
    return pairs


def _is_plain(path: PurePosixPath) -> bool:
    """Whether a path fits into a debugfs command."""
    text = str(path)
    return len(text) <= _LONGEST_PATH and text.isprintable()


def _quote(path: PurePosixPath) -> str:
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'
