"""How two files differ: by diffoscope where it is installed, else line by line."""

from __future__ import annotations

import difflib
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.tools import run

_MOST_LINES, _MOST_SECONDS = 40, 120.0


def compare(old: Path, new: Path, work: Path) -> list[str]:
    """The first lines of what differs between two files, with room for files in the folder `work`;
    without diffoscope nothing for files that are no text."""
    if shutil.which("diffoscope"):
        told = work / "diffoscope"
        with suppress(run.ToolError):  # that they differ is an exit status of 1
            words = ["diffoscope", "--no-progress", "--text", str(told), str(old), str(new)]
            run.capture(words, timeout=_MOST_SECONDS)
        if told.is_file():
            return told.read_text(errors="replace").splitlines()[:_MOST_LINES]
    try:
        one, other = (path.read_text().splitlines() for path in (old, new))
    except UnicodeDecodeError:
        return []
    lines = difflib.unified_diff(one, other, "before", "now", n=1, lineterm="")
    return [*lines][:_MOST_LINES]
