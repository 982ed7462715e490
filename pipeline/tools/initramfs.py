"""What is in an initramfs, as initramfs-tools' own program lists it."""

from __future__ import annotations

from pathlib import Path

from pipeline.tools import run


def list_files(initramfs: Path, work: Path) -> list[str]:
    """The paths of the files in it, without a slash before them. What the program unpacks goes to
    the folder `work`. Raises ToolError, HostError."""
    return run.capture(["lsinitramfs", str(initramfs)], env={"TMPDIR": str(work)}).splitlines()
