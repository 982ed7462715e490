"""ext4 file systems inside disk files, read and written by debugfs: no mount, no root rights."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path, PurePosixPath

from pipeline.errors import StageFailedError
from pipeline.tools import run


class FileSystem:
    """The ext4 file system that begins at an offset, in bytes, of a file."""

    def __init__(self, file: Path, offset: int) -> None:
        self._device = f"{file}?offset={offset}"

    def names(self, folder: PurePosixPath) -> list[str]:
        """What lies in a folder; nothing where there is none. Raises ToolError."""
        listed = self._debugfs(f"ls -p {folder}")
        return [line.split("/")[5] for line in listed.splitlines() if line.startswith("/")]

    def read_link(self, path: PurePosixPath) -> PurePosixPath | None:
        """What a symbolic link leads to, from the root of the file system; None where there is no
        link. Raises ToolError."""
        told = re.search(r'link dest: "([^"]*)"', self._debugfs(f"stat {path}"))
        return None if told is None else PurePosixPath("/", path.parent, told[1])

    def copy_out(self, path: PurePosixPath, copy: Path) -> bool:
        """Copies a file to the host; whether there was one. Raises ToolError."""
        self._debugfs(f'dump {path} "{copy}"')
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
        """The content of a small text file; empty where there is none. Raises ToolError."""
        return self._debugfs(f"cat {path}")

    def _debugfs(self, *commands: str, write: bool = False) -> str:
        script = "".join(f"{command}\n" for command in commands)
        words = ["debugfs", *(["-w"] if write else []), "-f", "-", self._device]
        printed = run.capture(words, input=script)
        # Each command is echoed on a line of its own before what it prints.
        echoes = {f"debugfs: {command}" for command in commands}
        return "".join(
            line for line in printed.splitlines(keepends=True) if line.rstrip("\n") not in echoes
        )
